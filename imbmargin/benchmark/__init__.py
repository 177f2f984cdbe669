"""The command line: compare methods, report, list the methods."""
