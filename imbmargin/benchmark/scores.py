"""The scores of a job, from labels, predictions and probabilities of the test part."""

from __future__ import annotations

from typing import Any

import numpy as np
from imblearn.metrics import geometric_mean_score
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from imbmargin.metrics import balanced_accuracy, group_accuracy

__all__ = ["average_precision", "finite", "scores"]


def scores(
    y_true: NDArray[Any],
    y_pred: NDArray[Any],
    probability: NDArray[Any],
    counts: NDArray[np.int64],
    classes: NDArray[Any],
) -> dict[str, float | None]:
    """Return the scores by name; None is one that has no value.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n,)
        Labels and predictions.
    probability : ndarray of shape (n, K)
        Of the classes, in their order.
    counts : ndarray of int, shape (K,)
        Training rows of each class.
    classes : ndarray of shape (K,)
        The labels.

    Returns
    -------
    scores : dict of str to float or None
        Accuracies, means and errors as fractions; log-loss in nats. Means over classes are those
        over the classes of ``y_true``.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.scores import scores
    >>> y, classes = np.array(["a", "a", "a", "b"]), np.array(["a", "b"])
    >>> probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    >>> predicted = classes[probability.argmax(axis=1)]
    >>> found = scores(y, predicted, probability, np.array([30, 10]), classes)
    >>> round(found["balanced_accuracy"], 3), found["average_precision"]
    (0.833, 0.5)
    """
    probability = np.asarray(probability, dtype=np.float64)
    probability = probability / probability.sum(axis=1, keepdims=True)
    groups = group_accuracy(y_true, y_pred, class_counts=counts, labels=classes)
    # A class without test rows counts for no mean, also where it is predicted.
    tested = np.unique(y_true)
    return {
        "accuracy": float(accuracy_score(y_true, y_pred)),
        "balanced_accuracy": balanced_accuracy(y_true, y_pred),
        "geometric_mean": float(
            geometric_mean_score(y_true, y_pred, labels=tested, average="multiclass")
        ),
        "macro_f1": float(f1_score(y_true, y_pred, labels=tested, average="macro")),
        "average_precision": finite([average_precision(y_true, probability, counts, classes)])[0],
        "log_loss": float(log_loss(y_true, probability, labels=classes)),
        **{f"{name}_error": finite([1 - part])[0] for name, part in groups.items()},
    }


def average_precision(
    y_true: NDArray[Any],
    probability: NDArray[Any],
    counts: NDArray[np.int64],
    classes: NDArray[Any],
) -> float:
    """Return that of the rarer of two classes, or the mean over more classes, one against the rest.

    Classes that the test part lacks do not count.

    Parameters
    ----------
    y_true, probability, counts, classes
        As in `scores`.

    Returns
    -------
    score : float
        NaN if the test part lacks the rarer of two classes.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.scores import average_precision
    >>> y, classes = np.array([0, 1, 2, 2]), np.arange(3)
    >>> average_precision(y, np.eye(3)[y], np.array([5, 4, 9]), classes)
    1.0
    """
    wanted = classes[[np.argmin(counts)]] if len(classes) == 2 else classes
    parts = [
        average_precision_score(y_true == label, probability[:, i])
        for i, label in enumerate(classes)
        if label in wanted and (y_true == label).any()
    ]
    return float(np.mean(parts)) if parts else float("nan")


def finite(values: Any) -> list[float | None]:
    """Put None, which JSON has, in the place of NaN, which it has not."""
    return [None if np.isnan(value) else float(value) for value in values]
