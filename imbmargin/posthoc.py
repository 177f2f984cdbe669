"""Corrections after training: logit adjustment, tau-normalisation, nearest class mean.

Each is a meta-estimator around a classifier. One that is fitted already is used as it is if it
comes in a `sklearn.frozen.FrozenEstimator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.metrics import get_scorer
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import check_cv
from sklearn.preprocessing import normalize
from sklearn.utils import _safe_indexing, column_or_1d, indexable
from sklearn.utils.validation import check_is_fitted

from imbmargin._wrapper import (
    LogitClassifier,
    Wrapper,
    find_network,
    head_pass,
    log_proba,
    training_counts,
)
from imbmargin.data.inputs import check_weights, encode
from imbmargin.modules import find_head

__all__ = ["LogitAdjustment", "NearestClassMean", "TauNormalization"]

_TAUS = tuple(np.round(np.arange(0, 2.01, 0.1), 1).tolist())


def _are_numbers(values: Any) -> bool:
    values = np.asarray(values)
    return values.ndim == 1 and values.size > 0 and bool(np.isfinite(values).all())


class _FixedLogits(LogitClassifier):
    """A classifier for scorers, whose logits are known."""

    def __init__(self, classes: NDArray[Any], logits: NDArray[Any]) -> None:
        self.classes_ = classes
        self.logits_ = logits

    def _logits(self, X: Any) -> NDArray[Any]:
        return self.logits_


class _TauAdjusted(Wrapper):
    """Logits that are moved by class as far as tau says."""

    def __init__(
        self,
        estimator: Any,
        tau: Any = 1.0,
        *,
        taus: Sequence[float] | None = None,
        scoring: Any = "balanced_accuracy",
        cv: Any = 5,
    ) -> None:
        self.estimator = estimator
        self.tau = tau
        self.taus = taus
        self.scoring = scoring
        self.cv = cv

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> _TauAdjusted:
        """Fit the classifier, and choose tau if it is to be chosen.

        Parameters
        ----------
        X, y
            Training data, as the classifier takes them.
        **fit_params
            For the classifier's fit.

        Returns
        -------
        self : estimator
        """
        chosen = isinstance(self.tau, str) and self.tau == "cv"
        if not chosen and not (isinstance(self.tau, Real) and np.isfinite(float(self.tau))):
            raise ValueError(f"tau must be a number or 'cv', got {self.tau!r}")
        if chosen and self.taus is not None and not _are_numbers(self.taus):
            raise ValueError(f"taus must be numbers, at least one, got {self.taus!r}")
        self._fit_estimator(X, y, fit_params)
        self._by_class = self._class_values(self.estimator_, X, y)
        self.tau_ = self._choose_tau(X, y, fit_params) if chosen else float(self.tau)
        return self

    def _choose_tau(self, X: Any, y: Any, fit_params: dict[str, Any]) -> float:
        if y is None:
            raise ValueError("tau='cv' needs X and y as arrays; pass a number as tau")
        if fit_params:
            raise ValueError(
                f"tau='cv' does not pass {sorted(fit_params)} on to its folds; pass a number as tau"
            )
        taus: Sequence[float] = _TAUS if self.taus is None else list(self.taus)
        score, (X, y) = get_scorer(self.scoring), indexable(X, column_or_1d(y))
        rows = []
        for train, valid in check_cv(self.cv, y, classifier=True).split(X, y):
            X_train, X_valid = (_safe_indexing(X, part) for part in (train, valid))
            fitted = clone(self.estimator).fit(X_train, y[train])
            by_class = self._class_values(fitted, X_train, y[train])
            base = self._base(fitted, X_valid)
            # A rare class may have no row in the training part of a fold.
            known = np.isin(self.classes_, fitted.classes_)
            logits = np.full((len(base), len(known)), -np.inf)
            scores = []
            for tau in taus:
                logits[:, known] = self._move(base, by_class, tau)
                scores.append(score(_FixedLogits(self.classes_, logits), X_valid, y[valid]))
            rows.append(scores)
        means = np.mean(rows, axis=0)
        self.cv_scores_ = dict(zip(taus, means.tolist(), strict=True))
        return float(taus[int(means.argmax())])

    def _logits(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return self._move(self._base(self.estimator_, X), self._by_class, self.tau_)

    def _class_values(self, estimator: Any, X: Any, y: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _base(self, estimator: Any, X: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _move(self, base: NDArray[Any], by_class: NDArray[Any], tau: float) -> NDArray[Any]:
        raise NotImplementedError


class LogitAdjustment(_TauAdjusted):
    """Post-hoc logit adjustment: predict with log p - τ log π of any classifier.

    A classifier that was trained with the frequencies of its training data takes them for those
    of the world; this takes them off. Not for one whose loss, weights or sampling have done so
    already.

    Parameters
    ----------
    estimator : classifier
        With ``predict_log_proba`` or ``predict_proba``.
    tau : float or "cv", default=1.0
        τ; 1 is consistent for the balanced error, 0 changes nothing. "cv": the best of ``taus`` by
        cross-validation on the training data.
    taus : sequence of float, default=None
        What "cv" tries; by default 0, 0.1, ..., 2.
    scoring : str or callable, default="balanced_accuracy"
        What "cv" maximises.
    cv : int, splitter or iterable, default=5
        Folds of "cv". A frozen estimator is not fitted on them: give fit rows then that it has not
        been trained on.
    class_counts : array-like of shape (K,), default=None
        Rows of each class in the training data, in the order of ``classes_``. None: the
        ``class_counts_`` of the estimator, or of the last step of a Pipeline, if it has them; else
        those of y.

    Attributes
    ----------
    estimator_ : classifier
        The fitted one.
    tau_ : float
        τ that is used.
    cv_scores_ : dict of float to float
        Mean score of each τ, with ``tau="cv"``.
    classes_ : ndarray of shape (K,)
        The labels.

    Raises
    ------
    ValueError
        In fit, if ``tau`` is neither a number nor "cv", a class has no rows, or "cv" is asked for
        with parameters of fit or a Dataset.

    References
    ----------
    .. [1] Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 9.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from imbmargin import make_long_tailed
    >>> from imbmargin.posthoc import LogitAdjustment
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> plain = make_pipeline(StandardScaler(), LogisticRegression())
    >>> adjusted = LogitAdjustment(plain, tau="cv", cv=3).fit(X, y)
    >>> rare = adjusted.predict_proba(X)[:, 2].mean()
    >>> bool(rare >= plain.fit(X, y).predict_proba(X)[:, 2].mean())
    True
    """

    def __init__(
        self,
        estimator: Any,
        tau: Any = 1.0,
        *,
        taus: Sequence[float] | None = None,
        scoring: Any = "balanced_accuracy",
        cv: Any = 5,
        class_counts: ArrayLike | None = None,
    ) -> None:
        super().__init__(estimator, tau, taus=taus, scoring=scoring, cv=cv)
        self.class_counts = class_counts

    def _class_values(self, estimator: Any, X: Any, y: Any) -> NDArray[Any]:
        classes = np.asarray(estimator.classes_)
        if self.class_counts is None:
            counts = training_counts(estimator, X, y, classes)
        else:
            counts = np.asarray(self.class_counts)
        finite = np.isfinite(counts) & (counts > 0)
        fits = counts.ndim == 1 and len(counts) in (len(classes), len(self.classes_))
        if not fits or not finite.all():
            raise ValueError(
                f"class_counts must be above 0 for each of the {len(self.classes_)} classes, got "
                f"{counts.tolist()}; pass the rows of each class in the training data"
            )
        if len(counts) > len(classes):
            # Those that a fold has.
            counts = counts[np.isin(self.classes_, classes)]
        return np.log(counts / counts.sum())

    def _base(self, estimator: Any, X: Any) -> NDArray[Any]:
        return log_proba(estimator, X)

    def _move(self, base: NDArray[Any], by_class: NDArray[Any], tau: float) -> NDArray[Any]:
        return base - tau * by_class


class TauNormalization(_TauAdjusted):
    """Tau-normalisation: weight vectors of the last layer are divided by their length to the τ.

    Frequent classes have longer vectors, which this shortens; the bias is dropped.

    Parameters
    ----------
    estimator : skorch classifier
        Its network ends with a Linear layer (``head``, or the last one); also at the end of a
        Pipeline.
    tau : float or "cv", default=1.0
        τ; 0 keeps the vectors, 1 makes them all as long. "cv": the best of ``taus`` by
        cross-validation.
    taus, scoring, cv
        As in `LogitAdjustment`.

    Attributes
    ----------
    estimator_, tau_, cv_scores_, classes_
        As in `LogitAdjustment`.

    Raises
    ------
    TypeError
        In fit, if the estimator is not a skorch classifier.
    ValueError
        In fit, if its network does not end with a Linear layer.

    References
    ----------
    .. [1] Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
       ICLR 2020, section 4.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, make_long_tailed
    >>> from imbmargin.posthoc import TauNormalization
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> network = MaxMarginClassifier(loss="cross_entropy", max_epochs=20, random_state=0)
    >>> TauNormalization(network, tau=0.7).fit(X, y).score(X, y) > 0.9
    True
    """

    def _class_values(self, estimator: Any, X: Any, y: Any) -> NDArray[Any]:
        weight, _ = _linear_parameters(estimator)
        return np.log(np.maximum(np.linalg.norm(weight, axis=1), 1e-12))

    def _base(self, estimator: Any, X: Any) -> NDArray[Any]:
        _, bias = _linear_parameters(estimator)
        return head_pass(estimator, X)[1] - bias

    def _move(self, base: NDArray[Any], by_class: NDArray[Any], tau: float) -> NDArray[Any]:
        return base * np.exp(-tau * by_class).astype(base.dtype)


def _linear_parameters(estimator: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    name, head = find_head(find_network(estimator).module_)
    if getattr(head, "normalized", False) or not hasattr(head, "bias"):
        raise ValueError(
            f"tau-normalisation needs a Linear layer at the end, {name} is a "
            f"{type(head).__name__}; a cosine head has vectors of one length already"
        )
    weight, bias = (_as_array(getattr(head, name)) for name in ("weight", "bias"))
    return weight, bias


def _as_array(parameter: Any) -> NDArray[Any]:
    if parameter is None:
        return np.zeros((), dtype=np.float32)
    return np.asarray(parameter.detach().float().cpu().numpy())


class NearestClassMean(Wrapper):
    """Nearest class mean (NCM): the class whose mean feature is nearest, from a trained network.

    Parameters
    ----------
    estimator : skorch classifier
        As in `TauNormalization`; any kind of last layer.
    normalize : bool, default=True
        Whether features are centred by the mean of the training rows and brought to length 1
        first, as in the released code; else the features as they are.

    Attributes
    ----------
    estimator_ : classifier
        The fitted one.
    means_ : ndarray of shape (K, features)
        Mean feature of each class; NaN for a class without rows (or with none of a weight above
        0), which is never predicted.
    classes_ : ndarray of shape (K,)
        The labels.

    Raises
    ------
    TypeError
        In fit, if the estimator is not a skorch classifier.
    ValueError
        In fit, if its network has no head.

    Notes
    -----
    Logits are minus the squared distances, so probabilities are a ranking rather than calibrated.
    Features of the training rows are taken without augmentation.

    References
    ----------
    .. [1] Kang et al., ICLR 2020, section 4.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, make_long_tailed
    >>> from imbmargin.posthoc import NearestClassMean
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> network = MaxMarginClassifier(loss="cross_entropy", max_epochs=20, random_state=0)
    >>> NearestClassMean(network).fit(X, y).score(X, y) > 0.9
    True
    """

    def __init__(self, estimator: Any, *, normalize: bool = True) -> None:
        self.estimator = estimator
        self.normalize = normalize

    def fit(self, X: Any, y: Any, **fit_params: Any) -> NearestClassMean:
        """Fit the classifier, and take the class means of its features.

        Parameters
        ----------
        X, y
            Training data, as arrays.
        **fit_params
            For the classifier's fit; ``sample_weight`` is for the means too.

        Returns
        -------
        self : NearestClassMean
        """
        fit_params = self._fit_estimator(X, y, fit_params)
        features = head_pass(self.estimator_, X)[0]
        codes = encode(column_or_1d(y), self.classes_)
        weight = self._sample_weight(fit_params)
        weight = check_weights(weight, features, codes, classes_known=True).astype(features.dtype)
        self.center_ = np.zeros(features.shape[1], features.dtype)
        if self.normalize:
            self.center_ = np.average(features, axis=0, weights=weight)
        placed = self._place(features)
        self.means_ = np.full((len(self.classes_), features.shape[1]), np.nan, features.dtype)
        for k in np.unique(codes[weight > 0]):
            self.means_[k] = np.average(placed[codes == k], axis=0, weights=weight[codes == k])
        return self

    def _place(self, features: NDArray[Any]) -> NDArray[Any]:
        return normalize(features - self.center_) if self.normalize else features

    def _logits(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        features = self._place(head_pass(self.estimator_, X)[0])
        seen = ~np.isnan(self.means_).any(axis=1)
        logits = np.full((len(features), len(self.means_)), -np.inf, features.dtype)
        logits[:, seen] = -euclidean_distances(features, self.means_[seen], squared=True)
        return logits
