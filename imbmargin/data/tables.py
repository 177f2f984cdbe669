"""Tables of files: read, and made of numbers alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

__all__ = ["as_numbers", "plain_columns", "read_frame"]

# Of what pandas finds in columns of any type.
_DATES = {"date", "datetime", "datetime64", "time", "timedelta", "timedelta64", "period"}
_WORDS = {"string", "mixed", "mixed-integer", "empty", "bytes"}

# A column of words holds numbers, or dates, if this part of its distinct values does.
_MOST = 0.9
# With fewer, what looks like numbers may be codes.
_FEWEST_NUMBERS = 10
_DATES_LOOKED_AT = 100

_THOUSANDS = r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?"
# What pandas calls a first column without a name, also when such a table is saved once more.
_UNNAMED = re.compile(r"Unnamed: 0(\.\d+)?")

# float32 has seven digits: below this part of a column's size, few are left for its differences.
_NARROW = 1e-3


def read_frame(path: Path) -> Any:
    r"""Read a CSV or Parquet file, without the row numbers that ``to_csv`` puts first.

    Parameters
    ----------
    path : Path
        A file; Parquet if its name ends so.

    Returns
    -------
    frame : DataFrame
        Its columns have names that are str.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read.
    ImportError
        If pandas (or, for Parquet, pyarrow) is not installed.

    Warns
    -----
    UserWarning
        If row numbers are left out.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from imbmargin.data.tables import read_frame
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "t.csv")
    ...     _ = path.write_text("amount,fraud\n1.5,no\n")
    ...     frame = read_frame(path)
    >>> list(frame.columns)
    ['amount', 'fraud']
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("tables in files need pandas: pip install imbmargin[tables]") from error
    is_parquet = path.suffix == ".parquet"
    try:
        # In parts, a column could hold numbers in one part and words in another.
        frame = pd.read_parquet(path) if is_parquet else pd.read_csv(path, low_memory=False)
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install imbmargin[tables]") from error
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a table: {error}; pass a .csv or .parquet file"
        ) from error
    frame.columns = [str(column) for column in frame.columns]
    numbered = [] if is_parquet else _row_numbers(frame)
    if numbered:
        _warn(
            f"the first columns of {path}, {numbered}, count the rows from 0 on, as to_csv writes "
            "them; they are left out. Save with to_csv(path, index=False), or give them names to "
            "keep them"
        )
    return frame.drop(columns=numbered)


def _row_numbers(frame: Any) -> list[str]:
    """Return the names of the first columns that were the index of a frame."""
    numbered = []
    for name, column in frame.items():
        if not _UNNAMED.fullmatch(name) or not np.array_equal(column, np.arange(len(frame))):
            break
        numbered.append(name)
    return numbered


def plain_columns(X: Any, path: Any) -> Any:
    """Return a frame whose columns are numbers, or words with NaN where they are missing.

    Parameters
    ----------
    X : DataFrame
        Columns of any type.
    path : str or Path
        What errors and warnings call the table.

    Returns
    -------
    plain : DataFrame
        A column of words holds numbers if at least nine in ten of its distinct values, and ten or
        more, can be read as such; its other values are NaN. A comma in them is a decimal point, or
        stands between thousands if it always has three digits behind it.

    Raises
    ------
    ValueError
        If columns hold dates, or values that are neither numbers nor words.

    Warns
    -----
    UserWarning
        If columns of words are taken for numbers.

    Examples
    --------
    >>> import pandas as pd
    >>> from imbmargin.data.tables import plain_columns
    >>> X = pd.DataFrame({"a": [1.5, 2.5], "b": ["NL", None]})
    >>> plain_columns(X, "payments.csv").isna().values.tolist()
    [[False, False], [False, True]]
    """
    from pandas.api.types import infer_dtype

    plain = X.copy(deep=False)
    dates, read = [], {}
    for name, column in X.items():
        kind = infer_dtype(column, skipna=True)
        if kind in _DATES:
            dates.append(name)
        elif kind == "decimal":
            plain[name] = column.astype(float)
        elif kind in _WORDS:
            plain[name] = words = _as_words(column, kind, path)
            distinct = words.dropna().unique()
            numbers, remark = _read_numbers(distinct)
            if _are_numbers(numbers):
                plain[name] = words.map(dict(zip(distinct, numbers, strict=True))).astype(float)
                read[name] = remark
            elif _are_dates(distinct):
                dates.append(name)
    if dates:
        raise ValueError(f"columns {dates} of {path} hold dates; turn them into numbers")
    if read:
        columns = "; ".join(f"{name!r} ({remark})" for name, remark in read.items())
        _warn(
            f"columns of {path} that hold text are read as numbers, since most of their values "
            f"are: {columns}. Leave cells without a number empty, and write a decimal point; if "
            "the numbers are codes, put a letter before each"
        )
    return plain


def _as_words(column: Any, kind: str, path: Any) -> Any:
    known = column.dropna()
    if kind == "bytes" or not all(map(np.isscalar, known)):
        raise ValueError(
            f"column {column.name!r} of {path} holds values such as {known.iloc[0]!r}, which are "
            "neither numbers nor words; turn them into one of the two, or leave it out"
        )
    return known.astype(str).astype(object).reindex(column.index)


def _are_numbers(numbers: NDArray[np.float64]) -> bool:
    n_read = np.isfinite(numbers).sum()
    return bool(n_read >= max(_FEWEST_NUMBERS, _MOST * len(numbers)))


def _read_numbers(words: NDArray[Any]) -> tuple[NDArray[np.float64], str]:
    """Return the numbers that words are, NaN for the others, and how they were read."""
    import pandas as pd

    texts = pd.Series(words, dtype=object).astype(str).str.strip()
    with_comma = texts[texts.str.contains(",", regex=False)]
    remarks = []
    if len(with_comma) and with_comma.str.fullmatch(_THOUSANDS).all():
        texts = texts.str.replace(",", "", regex=False)
        remarks.append(f"the comma of {with_comma.iloc[0]!r} taken for one between thousands")
    elif len(with_comma):
        points = texts.str.replace(",", ".", regex=False)
        # A comma that is none in one value is none in the others.
        if pd.to_numeric(points[with_comma.index], errors="coerce").notna().all():
            texts = points
            remarks.append(f"the comma of {with_comma.iloc[0]!r} taken for a decimal point")
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)
    others = words[np.isnan(numbers)]
    if len(others):
        remarks.append(f"{_name_some(others)} taken for missing")
    return numbers, ", ".join(remarks) or "nothing but numbers"


def _name_some(values: NDArray[Any]) -> str:
    shown = ", ".join(f"{value!r:.40}" for value in values[:3])
    return f"{shown} and {len(values) - 3} more" if len(values) > 3 else shown


def _are_dates(words: NDArray[Any]) -> bool:
    """Tell whether words are days, or times of days, in one format with the year in four digits."""
    import pandas as pd

    sample = words[:_DATES_LOOKED_AT]
    for form in _date_formats(sample):
        # In UTC, since the offset of a place may change over the year.
        found = pd.to_datetime(pd.Series(sample), format=form, errors="coerce", utc=True)
        if found.notna().sum() >= _MOST * len(sample):
            return True
    return False


def _date_formats(words: Iterable[str]) -> set[str]:
    """Return the formats with year and day that words may have, with the day or the month first."""
    from pandas.tseries.api import guess_datetime_format

    with warnings.catch_warnings():
        # That "31/12/2026" has the day first, though it was not asked for, is no news here.
        warnings.simplefilter("ignore", UserWarning)
        guesses = {
            guess_datetime_format(word, dayfirst=dayfirst)
            for word in words
            for dayfirst in (False, True)
        }
    # Without anything between year and month it is a plain number.
    return {form for form in guesses if form and re.search("%Y(?!%m).*%d|%d.*%Y", form)}


def as_numbers(
    X_train: Any, X_test: Any, numbers: Any, words: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fill in the median of numbers, and encode words; both are learned from the training part.

    Parameters
    ----------
    X_train, X_test : DataFrame or ndarray
        The two parts.
    numbers, words : callable, or array-like
        Columns, as scikit-learn's ColumnTransformer takes them.

    Returns
    -------
    X_train, X_test : ndarray of float32
        Of columns whose range in the training part is below a thousandth of their size, such as
        times in seconds, the median is subtracted: float32 would not tell their values apart.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.data.tables import as_numbers
    >>> train, test = np.array([[1.0, 5e9], [3.0, 5e9 + 2]]), np.array([[np.nan, 5e9 + 4]])
    >>> as_numbers(train, test, [0, 1], [])[1].tolist()
    [[2.0, 3.0]]
    """
    median = SimpleImputer(strategy="median", keep_empty_features=True)
    one_hot = OneHotEncoder(
        handle_unknown="infrequent_if_exist", max_categories=50, sparse_output=False
    )
    numeric = ColumnTransformer([("numbers", median, numbers), ("words", one_hot, words)])
    numeric.set_output(transform="default")
    train, test = numeric.fit_transform(X_train), numeric.transform(X_test)
    low, high = train.min(axis=0), train.max(axis=0)
    narrow = (low < high) & (high - low < _NARROW * np.maximum(np.abs(low), np.abs(high)))
    for column in np.flatnonzero(narrow):
        middle = np.median(train[:, column])
        train[:, column] -= middle
        test[:, column] -= middle
    return train.astype(np.float32), test.astype(np.float32)


def _warn(text: str) -> None:
    # At the line that asked imbmargin.datasets for the table.
    warnings.warn(text, UserWarning, stacklevel=4)
