"""Classifiers over many data sets: mean ranks, and which differences are more than chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range, wilcoxon

__all__ = ["against_control", "cliques", "critical_difference", "friedman", "holm", "mean_ranks"]


def mean_ranks(scores: NDArray[np.float64], lower_is_better: bool = False) -> NDArray[np.float64]:
    """Return the mean rank of each classifier; 1 is the best, and equal scores share their ranks.

    Parameters
    ----------
    scores : ndarray of shape (n_data_sets, n_classifiers)
        A score of each classifier on each data set.
    lower_is_better : bool, default=False
        Whether the lowest score has rank 1.

    Returns
    -------
    ranks : ndarray of shape (n_classifiers,)

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.ranks import mean_ranks
    >>> mean_ranks(np.array([[0.9, 0.8, 0.8], [0.7, 0.9, 0.6]]))
    array([1.5 , 1.75, 2.75])
    """
    order = scores if lower_is_better else -scores
    return np.asarray(rankdata(order, axis=1).mean(axis=0))


def friedman(scores: NDArray[np.float64]) -> float:
    """Return the p-value of Friedman's test that all classifiers are equal.

    Parameters
    ----------
    scores : ndarray of shape (n_data_sets, n_classifiers)
        As in `mean_ranks`, of 3 classifiers or more.

    Returns
    -------
    p : float
        1 if all scores of every data set are equal.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.ranks import friedman
    >>> float(friedman(np.tile([0.9, 0.8, 0.7], (10, 1)))) < 1e-4
    True
    """
    if (scores == scores[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*scores.T).pvalue)


def critical_difference(n_classifiers: int, n_data_sets: int, alpha: float = 0.05) -> float:
    """Return by how much two mean ranks must differ to be more than chance (Nemenyi's test).

    Parameters
    ----------
    n_classifiers, n_data_sets : int
        2 or more classifiers, on so many data sets.
    alpha : float, default=0.05
        Probability of a false difference among all pairs.

    Returns
    -------
    difference : float
        In ranks: q_α sqrt(k (k + 1) / (6 N)), with q_α the quantile of the studentised range
        divided by sqrt(2).

    References
    ----------
    .. [1] Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.

    Examples
    --------
    >>> from imbmargin.benchmark.ranks import critical_difference
    >>> round(critical_difference(4, 14), 2)
    1.25
    """
    quantile = studentized_range.ppf(1 - alpha, n_classifiers, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(n_classifiers * (n_classifiers + 1) / (6 * n_data_sets)))


def cliques(ranks: NDArray[np.float64], difference: float) -> list[tuple[float, float]]:
    """Return the lowest and highest rank of each largest group without a critical difference.

    Parameters
    ----------
    ranks : ndarray of shape (n_classifiers,)
        Mean ranks, in any order.
    difference : float
        The critical difference.

    Returns
    -------
    groups : list of (float, float)
        Of two classifiers or more, from the best on.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.ranks import cliques
    >>> cliques(np.array([1.0, 1.8, 2.5, 4.7]), difference=1.0)
    [(1.0, 1.8), (1.8, 2.5)]
    """
    found: list[tuple[float, float]] = []
    ordered = np.sort(ranks)
    for i, low in enumerate(ordered):
        last = int(np.searchsorted(ordered, low + difference, side="right")) - 1
        high = ordered[last]
        if last > i and (not found or high > found[-1][1]):
            found.append((float(low), float(high)))
    return found


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values adjusted by Holm's step-down method.

    Parameters
    ----------
    p : ndarray of shape (m,)
        Of the single comparisons.

    Returns
    -------
    adjusted : ndarray of shape (m,)
        Compare them with the level for the whole family.

    References
    ----------
    .. [1] Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 1979.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.ranks import holm
    >>> holm(np.array([0.03, 0.01, 0.04]))
    array([0.06, 0.03, 0.06])
    """
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def against_control(scores: NDArray[np.float64], control: int) -> NDArray[np.float64]:
    """Return Holm-adjusted p-values of Wilcoxon's signed-rank test of each against one of them.

    Parameters
    ----------
    scores : ndarray of shape (n_data_sets, n_classifiers)
        As in `mean_ranks`.
    control : int
        Column of the classifier with which the others are compared.

    Returns
    -------
    p : ndarray of shape (n_classifiers,)
        NaN for the control itself, 1 where all scores are equal.

    References
    ----------
    .. [1] Benavoli et al., "Should We Really Use Post-Hoc Tests Based on Mean-Ranks?", JMLR 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.ranks import against_control
    >>> scores = np.column_stack([np.arange(10) + 0.5, np.arange(10), np.arange(10) + 0.5])
    >>> against_control(scores, control=0).round(3)
    array([  nan, 0.004, 1.   ])
    """
    others = [i for i in range(scores.shape[1]) if i != control]
    p = np.full(scores.shape[1], np.nan)
    p[others] = holm(np.array([_wilcoxon(scores[:, i] - scores[:, control]) for i in others]))
    return p


def _wilcoxon(differences: NDArray[np.float64]) -> float:
    # Pratt's ranks keep data sets without a difference in the count.
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="pratt").pvalue)
