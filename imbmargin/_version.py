"""The version, in one place: packaging and the benchmark read it from here."""

__version__ = "0.1.0"
