"""What fit and predict accept as X and y, checked and brought into one form."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from imbmargin.data.batches import targets_of

__all__ = [
    "Layout",
    "check_inputs",
    "check_labels",
    "check_weights",
    "encode",
    "find_layout",
    "warn_of_other_pixels",
]

_CHANNELS = (1, 3)
_CHUNK_BYTES = 2**26
_LOOKED_AT = 10_000
# float32 has a grid of 6e-8 of a value's size: below, a column has some hundred values left.
_SPREAD = 1e-5


@dataclass(frozen=True)
class Layout:
    """How the rows of X lie, and what a module gets to see.

    Parameters
    ----------
    kind : {"rows", "nchw", "nhwc", "flat"}
        Rows of a table, images with channels first or last, or images flattened to rows.
    shape : tuple of int
        Shape of one sample as the module sees it: (features,) or (channels, height, width).
    """

    kind: str
    shape: tuple[int, ...]

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(channels, height, width), or None for rows of a table."""
        return None if self.kind == "rows" else self.shape

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as it lies in X."""
        if self.kind == "nhwc":
            return (*self.shape[1:], self.shape[0])
        return (prod(self.shape),) if self.kind == "flat" else self.shape

    def to_module(self, x: torch.Tensor) -> torch.Tensor:
        """Bring a batch into the module's shape; images come channels-last in memory.

        A batch that has this shape already stays as it is.
        """
        if self.kind == "rows":
            return x
        if x.shape[1:] != self.shape:
            x = x.permute(0, 3, 1, 2) if self.kind == "nhwc" else x.reshape(-1, *self.shape)
        return x.contiguous(memory_format=torch.channels_last)


def find_layout(shape: tuple[int, ...], image_shape: tuple[int, int, int] | None) -> Layout:
    """Tell rows of a table from images, and where the channels of images are.

    Parameters
    ----------
    shape : tuple of int
        Shape of X.
    image_shape : tuple of int, or None
        (channels, height, width), where the user gave it.

    Raises
    ------
    ValueError
        If the shape fits neither, or the channels could be first or last.

    Examples
    --------
    >>> from imbmargin.data.inputs import find_layout
    >>> find_layout((100, 32, 32, 3), None)
    Layout(kind='nhwc', shape=(3, 32, 32))
    >>> find_layout((100, 64), (1, 8, 8)).kind
    'flat'
    """
    if len(shape) not in (2, 4):
        raise ValueError(
            f"Found array with dim {len(shape)}, shape {shape}. X must be 2-D rows of a table "
            "(n, features) or 4-D images (n, channels, height, width) or (n, height, width, "
            "channels); give grey images a channel axis, X[:, None], or flatten them with "
            "X.reshape(len(X), -1) and pass image_shape"
        )
    if image_shape is None:
        return Layout("rows", shape[1:]) if len(shape) == 2 else _guess(shape)
    image_shape = tuple(int(size) for size in image_shape)  # type: ignore[assignment]
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise ValueError(
            f"image_shape must be (channels, height, width), got {image_shape}; "
            "for example (3, 32, 32)"
        )
    for kind in ("nchw", "nhwc", "flat"):
        layout = Layout(kind, image_shape)
        if shape[1:] == layout.sample_shape:
            return layout
    raise ValueError(
        f"image_shape={image_shape} does not fit X of shape {shape}; samples must have the shape "
        f"{image_shape}, {(*image_shape[1:], image_shape[0])} or ({prod(image_shape)},)"
    )


def _guess(shape: tuple[int, ...]) -> Layout:
    first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
    if first and not last:
        return Layout("nchw", shape[1:])
    if last and not first:
        return Layout("nhwc", (shape[3], *shape[1:3]))
    raise ValueError(
        f"X of shape {shape} is ambiguous: neither axis 1 nor axis 3 alone has the 1 or 3 channels "
        "of an image; pass image_shape=(channels, height, width), for example "
        f"image_shape={shape[1:]} for channels first"
    )


def check_inputs(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Check X as scikit-learn does, and return it as an array, a CSR matrix or a memory map.

    float32 and uint8 data are not copied; a memory map is read in chunks and never as a whole.

    Parameters
    ----------
    estimator : estimator
        Gets ``n_features_in_`` and ``feature_names_in_`` with ``reset=True``, is held to them
        otherwise.
    X : array-like, tensor, DataFrame or sparse matrix
        The input.
    reset : bool
        Whether this is the data that the estimator is fitted to.

    Raises
    ------
    ValueError
        If X has NaN or infinite values, no rows, or another width than at fit; for a DataFrame the
        columns are named.
    """
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        X = (X.float() if X.dtype in (torch.float16, torch.bfloat16) else X).numpy()
    if isinstance(X, np.memmap):
        _check_memmap(X)
        validate_data(estimator, X, skip_check_array=True, reset=reset)
        return X
    # A number too large for float32 becomes infinite, and that is an error of its own.
    with np.errstate(over="ignore", invalid="ignore"), _named_columns(X):
        _refuse_dates(X)
        if reset:
            _warn_of_lost_digits(X)
        return validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse="csr",
            accept_large_sparse=False,
            # The first is what everything else becomes.
            dtype=[np.float32, np.uint8],
            allow_nd=True,
        )


def _warn_of_lost_digits(X: Any) -> None:
    """Warn of columns whose values differ in digits that float32, which X becomes, has not."""
    is_array = isinstance(X, np.ndarray)
    if not (is_array or hasattr(X, "columns")) or len(X.shape) != 2 or X.shape[0] == 0:
        return
    part = X[:: max(1, X.shape[0] // _LOOKED_AT)]
    lost = []
    for column, name in enumerate(range(X.shape[1]) if is_array else X.columns):
        values = np.asarray(part[:, column] if is_array else part[name])
        # Of narrower types no digit is lost; two columns may have one name.
        if values.ndim > 1 or values.dtype.kind not in "fiu" or values.dtype.itemsize < 8:
            continue
        low, high = values.min(), values.max()
        if 0 < float(high) - float(low) < _SPREAD * max(abs(float(low)), abs(float(high))):
            lost.append(name)
    if lost:
        warnings.warn(
            f"the values of columns {lost} of X differ by less than {_SPREAD:g} of their size, and "
            "float32, in which networks compute, has seven digits; subtract an offset, or put "
            "sklearn.preprocessing.StandardScaler before the classifier",
            UserWarning,
            stacklevel=2,
        )


@contextmanager
def _named_columns(X: Any) -> Iterator[None]:
    """Say of an error about the values of a DataFrame which columns they are in."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text, missing = _unusable_columns(X) if hasattr(X, "columns") else ([], [])
        if not text and not missing:
            raise
        found = [f"columns that are not numbers, {text}"] if text else []
        found += [f"columns with missing or infinite values, {missing}"] if missing else []
        raise ValueError(
            f"X has {' and '.join(found)}. A network needs numbers: encode and impute them in a "
            "Pipeline before it, for example with sklearn.compose.make_column_transformer, "
            "SimpleImputer and OneHotEncoder(handle_unknown='ignore')"
        ) from error


def _refuse_dates(X: Any) -> None:
    """Raise an error for dates and durations, which would become numbers of nanoseconds."""
    dtypes = getattr(X, "dtypes", getattr(X, "dtype", ()))
    for dtype in dtypes if isinstance(dtypes, Iterable) else (dtypes,):
        # The first is pandas' and NumPy's, the second polars'.
        if getattr(dtype, "kind", None) in ("m", "M") or getattr(dtype, "is_temporal", bool)():
            raise ValueError(
                f"X holds dates or durations ({dtype}), not numbers; make numbers of them"
            )


def _unusable_columns(frame: Any) -> tuple[list[Any], list[Any]]:
    text, missing = [], []
    for name in frame.columns:
        try:
            _refuse_dates(frame[name])
            values = np.asarray(frame[name], dtype=np.float64)
        except (ValueError, TypeError):
            text.append(name)
        else:
            if not np.isfinite(values).all():
                missing.append(name)
    return text, missing


def _check_memmap(X: np.memmap) -> None:
    if X.ndim < 2 or X.shape[0] < 1 or X.dtype.kind not in "fiub":
        raise ValueError(
            f"X must be a memory map of numbers with at least one row and 2 or 4 dimensions, got "
            f"dtype {X.dtype} and shape {X.shape}"
        )
    if X.dtype.kind != "f":
        return
    rows = max(1, _CHUNK_BYTES // max(1, X[0].nbytes))
    limit = np.finfo(np.float32).max
    for start in range(0, len(X), rows):
        # The comparison is False for NaN.
        if not (np.abs(X[start : start + rows]) <= limit).all():
            raise ValueError(
                f"Input X contains NaN, infinity or a value too large for dtype('float32') "
                f"between rows {start} and {min(start + rows, len(X)) - 1}; "
                "impute or remove these rows"
            )


def warn_of_other_pixels(X: Any, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Warn if images to predict are of 0..1, and those of training were of 0..255, or turned round.

    Parameters
    ----------
    X : ndarray
        Images.
    mean, std : Tensor of shape (channels,)
        Of the pixels of the training part.
    """
    if not isinstance(X, np.ndarray):
        return
    in_floats = X.dtype.kind == "f"
    # First what needs no walk over all pixels.
    if not (std.min() > 5 if in_floats else (mean + 3 * std).max() <= 5):
        return
    top = X.max()
    if 0 < top <= 1 if in_floats else top > 1:
        warnings.warn(
            f"the pixels of X go up to {top:g}, and those of the training part had a mean of "
            f"{mean.mean():.3g}; if they are on another scale, "
            f"{'multiply' if in_floats else 'divide'} X by 255",
            UserWarning,
            stacklevel=2,
        )


def check_labels(y: Any, n_rows: int) -> np.ndarray:
    """Return y as a 1-D array of class labels, one for each row.

    Raises
    ------
    ValueError
        If y has another length, is continuous, or has missing values.
    """
    if y is None:
        raise ValueError(
            "a classifier requires y to be passed, but the target y is None; pass one label for "
            "each row of X"
        )
    if isinstance(y, torch.Tensor):
        y = y.detach().cpu().numpy()
    labels = column_or_1d(y, warn=True)
    if labels.shape[0] != n_rows:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has {n_rows} rows and "
            f"y has {labels.shape[0]} labels; they must be the same"
        )
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise ValueError("Input y contains NaN or infinity; remove the rows without a label")
    try:
        check_classification_targets(labels)
    except (ValueError, TypeError) as error:
        # Of objects it looks at the first alone, and sorts them if that is a string.
        if labels.dtype.kind != "O":
            raise
        kinds = sorted({type(label).__name__ for label in labels})
        raise ValueError(
            f"Unknown label type: y is an array of objects, {kinds}; pass strings or numbers "
            "alone, for example y.astype(str), and no rows without a label"
        ) from error
    return labels


def encode(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Turn labels into the numbers 0..K-1 of their classes.

    Raises
    ------
    ValueError
        If a label is not among the classes.
    """
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise ValueError(
            f"y has labels {unknown.tolist()} that are not among the classes {classes.tolist()}; "
            "pass all classes with the first call of partial_fit, or call fit"
        )
    order = np.argsort(classes)
    return order[np.searchsorted(classes, labels, sorter=order)]


def check_weights(
    sample_weight: Any, X: Any, target: np.ndarray, *, classes_known: bool
) -> np.ndarray:
    """Return the sample weights as float64, one for each row.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, if none is above 0, or if only one class has any
        weight and the classes are not known otherwise.
    """
    weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
    if not classes_known and len(np.unique(target[weight > 0])) < 2:
        raise ValueError(
            "sample_weight is above zero for fewer than two classes; "
            "a classifier needs rows of at least two classes"
        )
    if not weight.any():
        # Newer versions of scikit-learn have said so above.
        raise ValueError("sample_weight must contain at least one non-zero number, got 0 in all")
    return weight


def check_dataset_targets(dataset: Any, y: Any = None) -> np.ndarray:
    """Return the targets of a torch Dataset, which must be 0..K-1.

    Parameters
    ----------
    dataset : Dataset
        The dataset.
    y : array-like of shape (n,), default=None
        Its targets, where the caller knows them: looking them up may decode all rows.

    Raises
    ------
    ValueError
        If they are not integers from 0 on, or y is of another length.
    """
    target = targets_of(dataset) if y is None else check_labels(y, len(dataset))
    if target.dtype.kind not in "iub" or target.min(initial=0) < 0:
        raise ValueError(
            f"the targets of a torch Dataset must be the integers 0..K-1, got "
            f"{np.unique(target)[:10].tolist()} of dtype {target.dtype}; encode them, for example "
            "with sklearn.preprocessing.LabelEncoder"
        )
    return target.astype(np.int64)


def check_dataset_sample(sample: Any) -> None:
    """Raise an error if the input of a torch Dataset's row is a picture that nobody has decoded.

    Raises
    ------
    ValueError
        If it is an image of PIL, as torchvision's datasets give without a transform.
    """
    if type(sample).__module__.partition(".")[0] == "PIL":
        raise ValueError(
            f"the rows of X are images of PIL ({type(sample).__name__}), not tensors; give the "
            "dataset a transform, such as torchvision.transforms.v2.PILToTensor(), after a Resize "
            "if the images differ in size"
        )
