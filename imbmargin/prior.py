"""Probabilities for the class frequencies of the world, after training with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from imbmargin._wrapper import Wrapper, last_step, log_proba, training_counts
from imbmargin.callbacks import resolve_epoch, resolve_scheme
from imbmargin.data.batches import rows_of_a_batch
from imbmargin.data.mixing import Mixup, make_mixing
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.weights import class_rates

__all__ = ["PriorCorrection", "trained_prior"]

# Weights that begin at half of a cosine schedule, where the rest has a third of the mean rate, are
# learned; at 80 %, where it has a fifteenth, the probabilities stay off by more than a third.
_LEAST_RATE = 0.1


def trained_prior(clf: MaxMarginClassifier) -> NDArray[np.float64]:
    """Return the class shares for which the probabilities of a classifier hold.

    Class weights, rates and the shift of a loss such as balanced softmax make them others than the
    frequencies of the data. A weighted mean is taken over each batch by itself: a class that many
    batches do not have counts less than its weight says.

    Parameters
    ----------
    clf : MaxMarginClassifier
        Fitted, without ``sample_weight``.

    Returns
    -------
    prior : ndarray of shape (K,)
        Those of the end of its training, in the order of ``classes_``; they sum to 1.

    Raises
    ------
    ValueError
        If it is of another class, such as BBN, mixes rows otherwise than mixup, or began
        re-weighting or re-sampling when its learning rate had fallen.
    NotFittedError
        If it is not fitted.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin import MaxMarginClassifier
    >>> from imbmargin.prior import trained_prior
    >>> X, y = np.random.RandomState(0).randn(100, 2), np.repeat([0, 1], [90, 10])
    >>> clf = MaxMarginClassifier(loss="cross_entropy", max_epochs=1, random_state=0)
    >>> trained_prior(clf.fit(X, y))
    array([0.9, 0.1])
    >>> trained_prior(clf.set_params(class_weight="balanced").fit(X, y))
    array([0.5, 0.5])
    >>> trained_prior(clf.set_params(batch_size=10).fit(X, y)).round(2)
    array([0.61, 0.39])
    """
    # Mixup's labels have the frequencies of the data on average, those of others may not.
    mixing = make_mixing(getattr(clf, "mixing", None))
    mixes_evenly = mixing is None or type(mixing) is Mixup
    if not (getattr(clf, "has_known_prior", False) and mixes_evenly):
        raise ValueError(
            f"what {type(clf).__name__} has learned from is not known; pass trained_prior, such as "
            "'uniform' for class_weight='balanced', or the frequencies of its data"
        )
    clf.check_is_fitted()
    _check_learned(clf)
    counts, classes = clf.class_counts_, clf.classes_
    resample = resolve_scheme(clf.resample, clf.drs_epoch)
    rates = class_rates(counts, resample, classes=classes)
    buffers = dict(clf.criterion_.named_buffers(recurse=False))
    weight = buffers.get("class_weight", buffers.get("weight"))
    prior = rates
    if weight is not None:
        total = int(counts.sum())
        rows: float = rows_of_a_batch(clf, total)
        if resample is None:
            # Drawn without replacement, its shares vary as those of a larger batch with it.
            rows = rows * (total - 1) / (total - rows) if rows < total else np.inf
        prior = _weighted_shares(rates, weight.cpu().double().numpy(), rows)
    if hasattr(clf.criterion_, "trained_prior"):
        prior = clf.criterion_.trained_prior(torch.from_numpy(prior)).numpy()
    return prior / prior.sum()


def _check_learned(clf: Any) -> None:
    """Raise an error if weights or rates began when the learning rate was too low for them."""
    starts = [
        resolve_epoch(start, clf.max_epochs, name, clf.open_ended_)
        for name, start in (("drw_epoch", clf.drw_epoch), ("drs_epoch", clf.drs_epoch))
        if start is not None
    ]
    lr = [row.get("event_lr") for row in clf.history]
    after = lr[max(starts, default=0) :]
    if not after or None in lr or np.mean(after) >= _LEAST_RATE * np.mean(lr):
        return
    raise ValueError(
        f"how much {type(clf).__name__} has learned of weights or rates that began in epoch "
        f"{max(starts) + 1} is not known, since the learning rate had fallen by then; pass "
        "trained_prior, or train with weights from the start or a constant rate"
    )


def _weighted_shares(
    rates: NDArray[np.float64], weight: NDArray[np.float64], rows: float
) -> NDArray[np.float64]:
    """Return what each class has on average of a batch's weighted mean, up to a factor.

    The mean is divided by the sum of the batch's own weights, so that a class has
    E[n_c w_c / sum_k n_k w_k] for multinomial n: less than among all rows together if it is rare
    and its weight large, since many batches have none of it. With 1/s = int_0^inf exp(-s t) dt
    this is proportional to r_c w_c int exp(-w_c t) (sum_k r_k exp(-w_k t))^(rows - 1) dt.
    """
    product = rates * weight
    if not np.isfinite(rows) or not product.any():
        return product
    weight = weight / product.sum()
    # The integrand is smooth in log(t), and 0 at both ends: the trapezoidal rule is then exact.
    end = np.log(60 / weight[product > 0].min())
    log_t, step = np.linspace(-40, end, 1000, retstep=True)
    decay = np.exp(-np.exp(log_t)[:, None] * weight)
    share = np.exp(log_t) * (decay @ rates) ** (rows - 1)
    return product * (share @ decay) * step


class PriorCorrection(Wrapper):
    """Probabilities for other class frequencies than those that a classifier has learned from.

    Re-weighting and re-sampling find rare classes, and make their probabilities too large: those
    of a world in which they are frequent. This gives the probabilities for the frequencies of the
    data, or for those that you expect: p(c) times the ratio of the two, and then to sum 1.

    Parameters
    ----------
    estimator : classifier
        With ``predict_log_proba`` or ``predict_proba``.
    prior : array-like of shape (K,), dict or "uniform", default=None
        Frequencies of the classes where the probabilities will be used, in the order of
        ``classes_`` or by label; they are brought to sum 1. None: those of y in fit. It may be
        changed after fit, with ``set_params``.
    trained_prior : array-like of shape (K,), dict or "uniform", default=None
        Frequencies that the classifier has learned from, with its weights: "uniform" for
        ``class_weight="balanced"`` and for SMOTE to the same number of rows. None: what a
        `MaxMarginClassifier` (or a Pipeline that ends with one) knows of itself.

    Attributes
    ----------
    estimator_ : classifier
        The fitted one.
    class_prior_ : ndarray of shape (K,)
        Frequencies of y.
    classes_ : ndarray of shape (K,)
        The labels.

    Raises
    ------
    ValueError
        In fit or at prediction, if a prior is not one, or what the classifier has learned from is
        not known.

    See Also
    --------
    imbmargin.posthoc.LogitAdjustment : Moves towards rare classes, for the balanced error.

    Notes
    -----
    Right for a classifier that minimises weighted cross-entropy, as far as its own probabilities
    are: a rate that falls to 0 (``lr_schedule="cosine"``) makes them steadier. Margin losses make
    networks more certain than they should be, before and after: put
    `sklearn.calibration.CalibratedClassifierCV` around them, which learns both from data.

    References
    ----------
    .. [1] Saerens, Latinne, Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori
       Probabilities", Neural Computation 14, 2002, eq. 2.4.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from imbmargin import MaxMarginClassifier
    >>> from imbmargin.prior import PriorCorrection
    >>> X, y = make_classification(1000, weights=[0.9], class_sep=0.5, random_state=0)
    >>> network = MaxMarginClassifier(
    ...     loss="cross_entropy", class_weight="balanced", max_epochs=5, random_state=0)
    >>> corrected = PriorCorrection(network).fit(X, y)
    >>> print(f"{corrected.estimator_.predict_proba(X)[:, 1].mean():.1f}")
    0.2
    >>> print(f"{corrected.predict_proba(X)[:, 1].mean():.1f}, {y.mean():.1f}")
    0.1, 0.1
    """

    def __init__(self, estimator: Any, prior: Any = None, *, trained_prior: Any = None) -> None:
        self.estimator = estimator
        self.prior = prior
        self.trained_prior = trained_prior

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> PriorCorrection:
        """Fit the classifier, and count the classes.

        Parameters
        ----------
        X, y
            Training data, as the classifier takes them.
        **fit_params
            For the classifier's fit.

        Returns
        -------
        self : PriorCorrection
        """
        fit_params = self._fit_estimator(X, y, fit_params)
        weights = [name for name in fit_params if name.endswith("sample_weight")]
        if weights and self.trained_prior is None:
            raise ValueError(
                f"what a classifier learns from with {weights[0]} is not known; pass "
                "trained_prior, the weighted frequencies of the classes"
            )
        counts = training_counts(None, X, y, self.classes_)
        self.class_prior_ = counts / counts.sum()
        self._log_ratio()
        return self

    def _logits(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return log_proba(self.estimator_, X) + self._log_ratio()

    def _log_ratio(self) -> NDArray[Any]:
        trained = self.trained_prior
        if trained is None:
            trained = trained_prior(last_step(self.estimator_))
        wanted = self.class_prior_ if self.prior is None else self.prior
        with np.errstate(divide="ignore"):
            return np.log(self._check("prior", wanted, 0)) - np.log(
                self._check("trained_prior", trained, np.finfo(float).tiny)
            )

    def _check(self, name: str, prior: Any, least: float) -> NDArray[Any]:
        classes = self.classes_.tolist()
        if isinstance(prior, str) and prior == "uniform":
            return np.full(len(classes), 1 / len(classes))
        if isinstance(prior, Mapping):
            if set(prior) != set(classes):
                raise ValueError(f"{name} must have the labels {classes}, got {list(prior)}")
            prior = [prior[label] for label in classes]
        value = np.asarray(prior)
        valid = value.dtype.kind in "fiu" and value.shape == (len(classes),)
        if not valid or not np.isfinite(value).all() or (value < least).any() or not value.sum():
            word = "0 or more" if least == 0 else "above 0"
            raise ValueError(
                f"{name} must be 'uniform', a dict by label, or a frequency {word} for each of the "
                f"{len(classes)} classes, got {prior!r}"
            )
        return value / value.sum()
