"""Class counts, and the weights and drawing rates that follow from them.

Re-weighting and re-sampling use the same formulas, so they stand in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CLASS_WEIGHTS",
    "RESAMPLING",
    "class_counts",
    "class_rates",
    "class_weights",
    "effective_number",
]

Scheme = str | Mapping[Any, float] | Callable[[NDArray[np.int64]], ArrayLike] | None

CLASS_WEIGHTS = ("inverse", "balanced", "effective_number")
"""Names that ``class_weight`` takes, see `class_weights`."""

RESAMPLING = ("class_balanced", "square_root", "progressive", "effective_number")
"""Names that ``resample`` takes, see `class_rates`."""


def class_counts(y_encoded: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count the rows of each class.

    Parameters
    ----------
    y_encoded : array-like of int, shape (n,)
        Encoded labels 0..K-1.
    num_classes : int
        Number of classes K.

    Returns
    -------
    class_counts : ndarray of int64, shape (K,)
        Rows of each class; 0 for a class that does not occur.

    Raises
    ------
    ValueError
        If a label is not in 0..K-1.

    Examples
    --------
    >>> from imbmargin.weights import class_counts
    >>> class_counts([0, 0, 2], num_classes=4)
    array([2, 0, 1, 0])
    """
    y = np.asarray(y_encoded, dtype=np.int64)
    if y.size and not 0 <= y.min() <= y.max() < num_classes:
        raise ValueError(
            f"y_encoded must have labels 0..{num_classes - 1}, got {y.min()}..{y.max()}; "
            "encode the labels, or raise num_classes"
        )
    return np.bincount(y, minlength=num_classes).astype(np.int64)


def effective_number(class_counts: ArrayLike, beta: float = 0.9999) -> NDArray[np.float64]:
    """Return the effective number of samples, (1 - β^n) / (1 - β).

    Parameters
    ----------
    class_counts : array-like of int, shape (K,)
        Rows n of each class.
    beta : float, default=0.9999
        β, in [0, 1). 0 gives 1 for every class present; near 1 it approaches n.

    Returns
    -------
    effective_number : ndarray of float64, shape (K,)
        0 for a class without rows.

    Raises
    ------
    ValueError
        If ``beta`` is not in [0, 1), or a count is negative.

    References
    ----------
    .. [1] Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.

    Examples
    --------
    >>> from imbmargin import effective_number
    >>> effective_number([5000, 50], beta=0.9999).round(1)
    array([3934.8,   49.9])
    """
    counts = _check_counts(class_counts)
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, got {beta}; the usual is 0.9999")
    if beta == 0:
        return (counts > 0).astype(np.float64)
    # 1 - beta^n without cancellation: tail classes have n near 1 and beta^n near 1.
    return -np.expm1(counts * np.log(beta)) / (1 - beta)


def class_weights(
    class_counts: ArrayLike,
    scheme: Scheme,
    *,
    classes: Sequence[Any] | NDArray[Any] | None = None,
    beta: float = 0.9999,
) -> NDArray[np.float64]:
    """Return the weight of each class in the loss.

    Parameters
    ----------
    class_counts : array-like of int, shape (K,)
        Rows n of each class in the training part.
    scheme : {"inverse", "balanced", "effective_number"}, dict, callable or None
        "inverse": proportional to 1 / n. "balanced": scikit-learn's N / (K n). "effective_number":
        proportional to one over the effective number. A dict by label, where a label that is left
        out weighs 1. A function of the counts. None: ones.
    classes : array-like of shape (K,), default=None
        The labels, which a dict needs; by default 0..K-1.
    beta : float, default=0.9999
        β of the effective number.

    Returns
    -------
    class_weights : ndarray of float64, shape (K,)
        "inverse" and "effective_number" sum to K. A class without rows has weight 0 in the named
        schemes.

    Raises
    ------
    ValueError
        If the scheme or a label is unknown, or a weight is negative, not finite, or all are 0.

    References
    ----------
    .. [1] Cui et al., CVPR 2019, sections 3 and 4.

    Examples
    --------
    >>> from imbmargin import class_weights
    >>> class_weights([100, 10, 1], "effective_number").round(4)
    array([0.0272, 0.2704, 2.7025])
    >>> class_weights([90, 10], {"fraud": 5.0}, classes=["fine", "fraud"])
    array([1., 5.])
    """
    counts = _check_counts(class_counts)
    if scheme is None:
        return np.ones(len(counts))
    if isinstance(scheme, str):
        if scheme == "balanced":
            return _invert(counts) * counts.sum() / len(counts)
        if scheme not in CLASS_WEIGHTS:
            raise ValueError(_unknown("class_weight", scheme, CLASS_WEIGHTS))
        size = counts if scheme == "inverse" else effective_number(counts, beta)
        weight = _invert(size)
        return weight * len(counts) / weight.sum()
    return _given("class_weight", scheme, counts, classes, missing=1.0)


def class_rates(
    class_counts: ArrayLike,
    scheme: Scheme,
    *,
    classes: Sequence[Any] | NDArray[Any] | None = None,
    progress: float = 1.0,
    beta: float = 0.9999,
) -> NDArray[np.float64]:
    """Return the probability that a draw of the sampler is of each class.

    Parameters
    ----------
    class_counts : array-like of int, shape (K,)
        Rows n of each class in the training part.
    scheme : {"class_balanced", "square_root", "progressive", "effective_number"}, dict, \
callable or None
        "class_balanced": the same for all classes that have rows. "square_root": proportional to
        the square root of n. "progressive": from the data's rates (``progress`` 0) to
        class-balanced ones (1). "effective_number": proportional to n over the effective number,
        close to class-balanced. A dict of relative rates by label, where a label that is left out
        has 1. A function of the counts. None: the data's rates, n / N.
    classes : array-like of shape (K,), default=None
        The labels, which a dict needs; by default 0..K-1.
    progress : float, default=1.0
        Part of the way of "progressive", t / T.
    beta : float, default=0.9999
        β of the effective number.

    Returns
    -------
    class_rates : ndarray of float64, shape (K,)
        Sums to 1; 0 for a class without rows.

    Raises
    ------
    ValueError
        As `class_weights`; and if ``progress`` is not in [0, 1].

    References
    ----------
    .. [1] Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
       ICLR 2020, eq. 1 and 2.

    Examples
    --------
    >>> from imbmargin import class_rates
    >>> class_rates([90, 10], "class_balanced")
    array([0.5, 0.5])
    >>> class_rates([90, 10], "progressive", progress=0.5)
    array([0.7, 0.3])
    """
    counts = _check_counts(class_counts)
    present = (counts > 0).astype(np.float64)
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}; pass the part that is done")
    if scheme is None:
        rate = counts
    elif isinstance(scheme, str):
        if scheme not in RESAMPLING:
            raise ValueError(_unknown("resample", scheme, RESAMPLING))
        balanced = present / max(present.sum(), 1)
        rate = {
            "class_balanced": balanced,
            "square_root": np.sqrt(counts),
            "progressive": (1 - progress) * counts / max(counts.sum(), 1) + progress * balanced,
            "effective_number": counts * _invert(effective_number(counts, beta)),
        }[scheme]
    else:
        # Nothing can be drawn from a class without rows.
        rate = _given("resample", scheme, counts, classes, missing=1.0) * present
    if not rate.sum() > 0:
        raise ValueError(f"resample={scheme!r} gives every class with rows the rate 0")
    return rate / rate.sum()


def _invert(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / size, and 0 where the size is 0."""
    return np.divide(1.0, size, out=np.zeros_like(size), where=size > 0)


def _check_counts(class_counts: ArrayLike) -> NDArray[np.float64]:
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.ndim != 1 or not (np.isfinite(counts) & (counts >= 0)).all() or not counts.sum() > 0:
        raise ValueError(
            "class_counts must be a 1-D array of counts of 0 or more, not all 0, got "
            f"{np.asarray(class_counts).tolist()}"
        )
    return counts


def _unknown(name: str, scheme: str, known: tuple[str, ...]) -> str:
    return (
        f"{name} must be one of {list(known)}, a dict by label, a function of the class counts or "
        f"None, got {scheme!r}"
    )


def _given(
    name: str,
    scheme: Any,
    counts: NDArray[np.float64],
    classes: Sequence[Any] | NDArray[Any] | None,
    missing: float,
) -> NDArray[np.float64]:
    """Values that the user gives, as a dict by label or as a function of the counts."""
    if isinstance(scheme, Mapping):
        labels = list(range(len(counts))) if classes is None else np.asarray(classes).tolist()
        unknown = [label for label in scheme if label not in labels]
        if unknown:
            raise ValueError(f"{name} has labels {unknown} that are not among the classes {labels}")
        value = np.array([scheme.get(label, missing) for label in labels], dtype=np.float64)
    elif callable(scheme):
        value = np.asarray(scheme(counts.astype(np.int64)), dtype=np.float64)
    else:
        known = CLASS_WEIGHTS if name == "class_weight" else RESAMPLING
        raise ValueError(_unknown(name, scheme, known))
    if value.shape != counts.shape:
        raise ValueError(
            f"{name} must give one value for each of the {len(counts)} classes, got shape "
            f"{value.shape}"
        )
    if not (np.isfinite(value) & (value >= 0)).all() or not value.sum() > 0:
        raise ValueError(
            f"{name} must give finite values of 0 or more, not all 0, got {value.tolist()}"
        )
    return value
