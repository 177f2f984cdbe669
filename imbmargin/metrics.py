"""Scores by class; all others are in `sklearn.metrics` and `imblearn.metrics`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["balanced_accuracy", "group_accuracy", "per_class_error", "sample_margins"]


def per_class_error(
    y_true: ArrayLike, y_pred: ArrayLike, *, labels: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the part of each class's rows that is predicted wrong.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        True and predicted labels of any type.
    labels : array-like of shape (K,), default=None
        The classes, in the order of the result; by default those of ``y_true``, sorted.

    Returns
    -------
    error : ndarray of float64, shape (K,)
        In [0, 1]; NaN for a class without rows in ``y_true``.

    Raises
    ------
    ValueError
        If there are no rows, the lengths differ, or one holds strings and the other numbers.

    Examples
    --------
    >>> from imbmargin import per_class_error
    >>> per_class_error(["a", "a", "b"], ["a", "b", "b"])
    array([0.5, 0. ])
    """
    known, right, size = _count_right(y_true, y_pred)
    error = (size - right) / size
    if labels is None:
        return error
    by_label = dict(zip(known.tolist(), error.tolist(), strict=True))
    return np.array([by_label.get(label, np.nan) for label in np.asarray(labels).tolist()])


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the mean recall over the classes of ``y_true``.

    The value of `sklearn.metrics.balanced_accuracy_score`, without its warning for predictions of
    a class that ``y_true`` lacks, which small validation parts often do.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        True and predicted labels.

    Returns
    -------
    score : float
        In [0, 1].

    Raises
    ------
    ValueError
        As `per_class_error`.

    Examples
    --------
    >>> from imbmargin import balanced_accuracy
    >>> balanced_accuracy([0, 0, 1], [0, 1, 1])
    0.75
    """
    _, right, size = _count_right(y_true, y_pred)
    return float((right / size).mean())


def group_accuracy(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    class_counts: ArrayLike,
    labels: ArrayLike | None = None,
    many: int = 100,
    few: int = 20,
) -> dict[str, float]:
    """Return the mean accuracy of classes with many, medium and few training rows.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        True and predicted labels.
    class_counts : array-like of int, shape (K,)
        Rows of each class in the training part (a fitted estimator's ``class_counts_``).
    labels : array-like of shape (K,), default=None
        The classes, in the order of ``class_counts`` (``classes_``); by default those of
        ``y_true``, sorted.
    many, few : int, default=100, 20
        Classes with more than ``many`` rows are "many", those with fewer than ``few`` are "few".
        100 and 20 are the bounds of the ImageNet-LT benchmark.

    Returns
    -------
    accuracy : dict
        Keys "many", "medium" and "few"; NaN for a group without classes in ``y_true``.

    Raises
    ------
    ValueError
        If there is not one count for each class, or ``few`` is above ``many``.

    References
    ----------
    .. [1] Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019.

    Examples
    --------
    >>> from imbmargin import group_accuracy
    >>> group_accuracy([0, 0, 1, 2], [0, 0, 1, 0], class_counts=[500, 50, 5])
    {'many': 1.0, 'medium': 1.0, 'few': 0.0}
    """
    if few > many:
        raise ValueError(f"few must not be above many, got few={few} and many={many}")
    error = per_class_error(y_true, y_pred, labels=labels)
    counts = np.asarray(class_counts)
    if counts.shape != error.shape:
        raise ValueError(
            f"class_counts must have one count for each of the {len(error)} classes, got shape "
            f"{counts.shape}; pass labels= if y_true lacks a class"
        )
    groups = {
        "many": counts > many,
        "medium": (counts <= many) & (counts >= few),
        "few": counts < few,
    }
    seen = ~np.isnan(error)
    accuracy = {name: 1 - error[group & seen] for name, group in groups.items()}
    return {name: float(part.mean()) if len(part) else np.nan for name, part in accuracy.items()}


def sample_margins(logits: Any, target: Any) -> NDArray[np.float64]:
    """Return the margin of each sample: its label's logit less the largest other one.

    Parameters
    ----------
    logits : array-like or Tensor, shape (n, K), or (n,) for two classes
        Logits z, before any scale. For two classes also the difference z_1 - z_0, as
        ``decision_function`` returns it.
    target : array-like or Tensor of int, shape (n,)
        Encoded labels 0..K-1.

    Returns
    -------
    margin : ndarray of float64, shape (n,)
        γ = z_y - max over j≠y of z_j; above 0 where the prediction is right.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a target is not in 0..K-1.

    Examples
    --------
    >>> from imbmargin import sample_margins
    >>> sample_margins([[0.5, 0.25, 0.0], [0.5, 0.25, 0.0]], [0, 2])
    array([ 0.25, -0.5 ])
    """
    if hasattr(logits, "detach"):
        logits = logits.detach().cpu().double().numpy()  # NumPy has no bfloat16
    z = np.array(logits, dtype=np.float64)
    y = np.asarray(target.cpu() if hasattr(target, "cpu") else target)
    if z.ndim == 1:
        z = np.column_stack([np.zeros_like(z), z])
    if z.ndim != 2 or z.shape[1] < 2 or y.shape != z.shape[:1]:
        raise ValueError(
            f"logits must have shape (n, K) with K >= 2 and target shape (n,), got {z.shape} and "
            f"{y.shape}"
        )
    if y.size and (y.dtype.kind not in "biu" or not 0 <= y.min() <= y.max() < z.shape[1]):
        raise ValueError(
            f"target must have encoded labels 0..{z.shape[1] - 1}, got "
            f"{np.unique(y)[:10].tolist()}; encode the labels, for instance by "
            "np.searchsorted(clf.classes_, y)"
        )
    row, y = np.arange(len(y)), y.astype(np.int64)
    own = z[row, y]
    z[row, y] = -np.inf
    return own - z.max(axis=1)


def _count_right(
    y_true: ArrayLike, y_pred: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the classes of ``y_true``, sorted, and how many of how many rows of each are right."""
    true, pred = _labels(y_true), _labels(y_pred)
    if true.shape != pred.shape or true.ndim != 1 or not true.size:
        raise ValueError(
            "y_true and y_pred must be 1-D, not empty and of the same length, got shapes "
            f"{true.shape} and {pred.shape}"
        )
    if (true.dtype.kind in "UT") != (pred.dtype.kind in "UT"):
        raise ValueError(
            "y_true and y_pred must have labels of one type, got "
            f"{true.tolist()[0]!r} and {pred.tolist()[0]!r}; "
            "decode the predictions, for instance by clf.classes_[y_pred]"
        )
    known, code = np.unique(true, return_inverse=True)
    return known, np.bincount(code[true == pred], minlength=len(known)), np.bincount(code)


def _labels(y: ArrayLike) -> NDArray[Any]:
    """Return labels as an array; from pandas' object columns, of the type that they hold."""
    labels = np.asarray(y)
    return np.array(labels.tolist()) if labels.dtype == object else labels
