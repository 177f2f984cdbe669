"""Grid search that trains all candidates of an architecture as one batched network."""

from __future__ import annotations

import time
import warnings
from collections.abc import Hashable, Sequence
from contextlib import suppress
from math import ceil
from pickle import PicklingError
from types import FunctionType
from typing import Any

import joblib
import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.metrics import check_scoring
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _num_samples
from skorch.utils import is_dataset
from torch import Tensor, nn, optim

from imbmargin._batched import NotBatchedError, train_together
from imbmargin.data.batches import ArrayDataset
from imbmargin.description import describe_value
from imbmargin.estimator import MaxMarginClassifier

__all__ = ["BatchedGridSearchCV"]

# Beyond this their activations leave the cache of a CPU.
_MOST_ON_CPU = 32
# Their steps treat every number by itself, so stacked weights move as separate ones do.
_ELEMENTWISE: tuple[Any, ...] = (
    "auto",
    *(optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax),
    *(optim.Adagrad, optim.Adadelta, optim.RMSprop, optim.Rprop, optim.ASGD),
)
# What reaches into the training of a single network, and must be left as it is here.
_DEFAULTS = {
    "train_split": None,
    "warm_start": False,
    "compile": False,
    "checkpoint_dir": None,
    "mixing": None,
    "ema_decay": None,
    "loss_epoch": None,
    "dataset": ArrayDataset,
    "iterator_train": "auto",
}


class BatchedGridSearchCV(GridSearchCV):
    """GridSearchCV that trains the candidates of a `MaxMarginClassifier` side by side.

    Candidates that differ in ``delta_neg``, ``beta``, ``lr``, ``criterion__*``, ``optimizer__*``
    or, on rows of a table, ``random_state`` are one batched network: a step of all of them is a
    few matrix products. Each ends as it would alone. Other parameters (the architecture, the
    schedule, class weights, sampling) may be searched too: candidates that share them are trained
    together.

    Parameters
    ----------
    estimator : MaxMarginClassifier
        Anything else is searched as `sklearn.model_selection.GridSearchCV` does, with a warning.
    param_grid, scoring, refit, cv, verbose, error_score, return_train_score
        As in `sklearn.model_selection.GridSearchCV`.
    n_jobs : int, default=None
        Processes, each of which trains a batch of candidates on one split. None is one, in which
        torch uses all cores. Scores are computed, and the best candidate is refitted, in this
        process.
    pre_dispatch : int or str, default="2*n_jobs"
        As in `sklearn.model_selection.GridSearchCV`.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_, \
refit_time_, multimetric_, classes_, n_features_in_, feature_names_in_
        As in `sklearn.model_selection.GridSearchCV`. ``mean_fit_time`` is a candidate's share in
        the time of its batch.

    Warns
    -----
    UserWarning
        If candidates are trained one at a time, with the cause.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : The same search, one candidate at a time.

    Notes
    -----
    On the CPU a network of linear layers and functions of single numbers has the weights, bit for
    bit, that it has when it is trained alone with as many threads. Other layers, such as batch
    normalisation, other types than float32, and CUDA devices may round otherwise. Where a loss
    jumps, as the maximum margin does at the decision boundary, a few hundred steps turn a last bit
    into visible differences.

    One at a time are trained: candidates with a ``train_split``, ``callbacks``, ``warm_start``,
    ``checkpoint_dir``, ``compile``, ``mixing``, ``loss_epoch``, ``ema_decay``, float16, their own
    ``dataset`` or ``iterator_train``, an optimizer that is not elementwise (LBFGS, Adafactor,
    Muon), a network with convolutions, or a loss with weights or of features. A Pipeline is not
    batched; put the search into it as its last step.

    With ``random_state=None`` the candidates of a batch share one fresh seed. A candidate that is
    not valid, or whose loss becomes infinite, is trained alone, where its error goes the way of
    ``error_score``; the others are not touched.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import BatchedGridSearchCV, MaxMarginClassifier
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = MaxMarginClassifier(drw_epoch=0.8, max_epochs=10, random_state=0)
    >>> grid = {"delta_neg": [0.4, 0.6, 0.8], "beta": [1.0, 1.5]}
    >>> search = BatchedGridSearchCV(clf, grid, scoring="balanced_accuracy", cv=3).fit(X, y)
    >>> len(search.cv_results_["params"]), bool(search.best_score_ > 0.9)
    (6, True)
    """

    def fit(self, X: Any, y: Any = None, **params: Any) -> BatchedGridSearchCV:
        """Train all candidates on all splits, score them, and refit the best.

        Parameters
        ----------
        X : array-like
            The inputs, as in `MaxMarginClassifier.fit`.
        y : array-like of shape (n,)
            The labels.
        **params
            ``groups`` for the splitter. Others, such as ``sample_weight``, are passed on as
            GridSearchCV does, and nothing is batched.

        Returns
        -------
        self : BatchedGridSearchCV
            The fitted search.
        """
        cause = self._why_one_at_a_time(X, params)
        plan = None if cause else _Plan(self.estimator, ParameterGrid(self.param_grid), X)
        if plan is not None:
            cause = plan.why_one_at_a_time()
        if cause:
            _warn(cause)
        if plan is None or not plan.has_batches:
            return super().fit(X, y, **params)

        X, y = indexable(X, y)
        splitter = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(splitter.split(X, y, params.get("groups")))
        jobs = {"n_jobs": self.n_jobs, "pre_dispatch": self.pre_dispatch}
        trainings = _Trainings(plan, X, y, splits, jobs)
        inner = GridSearchCV(_ByRows(self.estimator, trainings), self.param_grid)
        shared = ("refit", "verbose", "error_score", "return_train_score")
        inner.set_params(**{name: getattr(self, name) for name in shared})
        inner.set_params(cv=splits, scoring=self._scoring_by_rows())
        inner.fit(np.arange(_num_samples(X))[:, None], y)
        self._take_over(inner, trainings)
        return self

    def _why_one_at_a_time(self, X: Any, params: dict[str, Any]) -> str | None:
        if type(self.estimator) is not MaxMarginClassifier:
            cure = ""
            if isinstance(self.estimator, Pipeline):
                cure = "; make BatchedGridSearchCV(MaxMarginClassifier(...), ...) its last step"
            name = type(self.estimator).__name__
            return f"the estimator is a {name}, not a MaxMarginClassifier{cure}"
        if is_dataset(X):
            return "X is a torch Dataset; batched are arrays"
        routing = get_config()["enable_metadata_routing"]
        further = sorted(params.keys() - (set() if routing else {"groups"}))
        return f"fit got {further[0]}, which is passed on" if further else None

    def _scoring_by_rows(self) -> Any:
        if callable(self.scoring):
            self.scorer_ = self.scoring
            return _ScoreByRows(self.scoring)
        # Makes the errors of a scoring that is not usable, too.
        scorer = check_scoring(self.estimator, scoring=self.scoring)
        if self.scoring is None or isinstance(self.scoring, str):
            self.scorer_ = scorer
            return _ScoreByRows(scorer)
        named = self.scoring
        named = named.items() if isinstance(named, dict) else [(name, name) for name in named]
        self.scorer_ = {n: check_scoring(self.estimator, scoring=s) for n, s in named}
        return {name: _ScoreByRows(scorer) for name, scorer in self.scorer_.items()}

    def _take_over(self, inner: GridSearchCV, trainings: _Trainings) -> None:
        for name, value in vars(inner).items():
            if name.endswith("_") and not name.startswith("_") and name != "scorer_":
                setattr(self, name, value)
        if self.refit:
            self.best_estimator_ = inner.best_estimator_.model_
            if hasattr(self.best_estimator_, "feature_names_in_"):
                self.feature_names_in_ = self.best_estimator_.feature_names_in_
        for row, params in enumerate(self.cv_results_["params"]):
            seconds = trainings.seconds_of(params)
            if seconds is not None:
                self.cv_results_["mean_fit_time"][row] = np.mean(seconds)
                self.cv_results_["std_fit_time"][row] = np.std(seconds)


def _warn(cause: str) -> None:
    warnings.warn(
        f"BatchedGridSearchCV trains candidates one at a time: {cause}", UserWarning, stacklevel=3
    )


def _key(params: dict[str, Any]) -> Hashable:
    return frozenset((name, _identify(value)) for name, value in params.items())


def _why_alone(net: MaxMarginClassifier) -> str | None:
    """Return why a classifier must be trained by itself, or None if it can be batched.

    Parameters
    ----------
    net : MaxMarginClassifier
        Not fitted.

    Returns
    -------
    cause : str or None
        The parameter, its value, and what would be batched.
    """
    for name, default in _DEFAULTS.items():
        value = getattr(net, name)
        if value is not default and value != default:
            return f"{name}={value!r} (batched: {name}={default!r})"
    if net.callbacks not in (None, [], "disable"):
        return f"callbacks={net.callbacks!r}, which look at one network (batched: callbacks=None)"
    if net.precision == "float16":
        return "precision='float16', which scales gradients (batched: 'bfloat16' or 'float32')"
    if net.optimizer not in _ELEMENTWISE:
        names = ", ".join(getattr(known, "__name__", repr(known)) for known in _ELEMENTWISE)
        return f"optimizer={net.optimizer!r} (batched, because elementwise: {names})"
    loader = [name for name in net.get_params(deep=False) if name.startswith("iterator_train__")]
    return f"{loader[0]}, which asks for a DataLoader" if loader else None


def _varies_freely(name: str, is_table: bool) -> bool:
    """Tell whether candidates that differ in this parameter can be trained together."""
    if name == "random_state":
        # Batches of several seeds have one axis more, which images have no room for.
        return is_table
    part, _, argument = name.partition("__")
    if argument:
        return part in ("criterion", "optimizer") and argument != "param_groups"
    return name in ("lr", "delta_neg", "beta")


def _identify(value: Any) -> Hashable:
    """Return what tells a parameter's value from others, the same for a copy of it."""
    if isinstance(value, (Tensor, nn.Module)):
        # Pickles of equal tensors differ.
        return str(describe_value(value))
    by_identity = type(value).__eq__ is object.__eq__ and not isinstance(value, FunctionType)
    if by_identity or not isinstance(value, Hashable):
        with suppress(PicklingError, TypeError, AttributeError):
            return joblib.hash(value)
    # 1 and 1.0 are equal, but not as a number of epochs.
    return type(value), value


class _Plan:
    """Which candidates are trained together.

    Parameters
    ----------
    estimator : MaxMarginClassifier
        Not fitted.
    candidates : iterable of dict
        Their parameters.
    X : array-like
        The inputs.

    Attributes
    ----------
    candidates : list of dict
        Their parameters.
    nets : list of MaxMarginClassifier
        The candidates.
    blocks : list of list of int
        The candidates that are trained together.
    """

    def __init__(self, estimator: MaxMarginClassifier, candidates: Any, X: Any) -> None:
        self.candidates = [clone(params, safe=False) for params in candidates]
        self.nets = [clone(estimator).set_params(**params) for params in self.candidates]
        causes = [_why_alone(net) for net in self.nets]
        self.causes = sorted({cause for cause in causes if cause})
        groups: dict[Hashable, list[int]] = {}
        for i, (params, net) in enumerate(zip(self.candidates, self.nets, strict=True)):
            is_table = np.ndim(X) == 2 and net.image_shape is None
            fixed = {n: value for n, value in params.items() if not _varies_freely(n, is_table)}
            groups.setdefault(i if causes[i] else _key(fixed), []).append(i)
        self.blocks = [part for group in groups.values() for part in self._parts(group)]

    def _parts(self, group: list[int]) -> list[list[int]]:
        on_cuda = str(self.nets[group[0]].device).startswith("cuda")
        number = 1 if on_cuda else ceil(len(group) / _MOST_ON_CPU)
        return [part.tolist() for part in np.array_split(group, number)]

    @property
    def has_batches(self) -> bool:
        """Whether any two candidates are trained together."""
        return any(len(block) > 1 for block in self.blocks)

    def why_one_at_a_time(self) -> str | None:
        """Return why some candidates, or all, are not batched."""
        if self.causes:
            return "; ".join(self.causes)
        if not self.has_batches and len(self.candidates) > 1:
            names = sorted({name for params in self.candidates for name in params})
            return f"no two of them share everything that must be equal; searched are {names}"
        return None


class _Trainings:
    """The classifiers of all candidates and splits; trained when the first is asked for.

    Parameters
    ----------
    plan : _Plan
        The candidates.
    X, y : array-like
        The data.
    splits : list of tuple of ndarray
        Training and test rows.
    jobs : dict
        Arguments of joblib's Parallel.
    """

    def __init__(
        self, plan: _Plan, X: Any, y: Any, splits: Sequence[Any], jobs: dict[str, Any]
    ) -> None:
        self.plan, self.X, self.y, self.jobs = plan, X, y, jobs
        every = np.arange(_num_samples(X))
        self.train_rows = [every[train] for train, _ in splits]
        self.fitted: dict[Hashable, MaxMarginClassifier] | None = None
        self.seconds: dict[Hashable, float] = {}

    def get(self, params: dict[str, Any], rows: np.ndarray) -> MaxMarginClassifier | None:
        """Return the classifier of a candidate on these rows, None if it could not be trained."""
        if self.fitted is None:
            self.fitted = {}
            try:
                self._train()
            except Exception as error:
                # scikit-learn would blame the candidate that happens to come first.
                _warn(f"{type(error).__name__}: {error}")
        return self.fitted.get((_key(params), rows.tobytes()))

    def seconds_of(self, params: dict[str, Any]) -> list[float] | None:
        """Return the time of a candidate on each split, None if there is a split without."""
        keys = [(_key(params), rows.tobytes()) for rows in self.train_rows]
        return [self.seconds[key] for key in keys] if set(keys) <= self.seconds.keys() else None

    def inputs(self, rows: np.ndarray) -> Any:
        """Return some rows of X."""
        return _safe_indexing(self.X, rows)

    def _train(self) -> None:
        assert self.fitted is not None
        tasks = [(rows, block) for rows in self.train_rows for block in self.plan.blocks]
        outcomes = Parallel(**self.jobs)(
            delayed(_train_block)(
                [self.plan.nets[i] for i in block],
                self.inputs(rows),
                None if self.y is None else _safe_indexing(self.y, rows),
            )
            for rows, block in tasks
        )
        causes: dict[str | None, None] = {}
        for (rows, block), (nets, seconds, cause) in zip(tasks, outcomes, strict=True):
            causes[cause] = None
            for i, net in zip(block, nets, strict=True):
                if net is not None:
                    key = _key(self.plan.candidates[i]), rows.tobytes()
                    self.fitted[key], self.seconds[key] = net, seconds
        for cause in filter(None, causes):
            _warn(cause)


def _train_block(
    nets: Sequence[MaxMarginClassifier], X: Any, y: Any
) -> tuple[list[MaxMarginClassifier | None], float, str | None]:
    """Return the fitted classifiers, seconds for each, and why they were not batched, if so."""
    start, cause, fitted = time.perf_counter(), None, None
    if len(nets) > 1:
        try:
            fitted = train_together([clone(net) for net in nets], X, y)
        except NotBatchedError as error:
            cause = str(error)
        except Exception as error:
            # Anything can be in a user's network: what cannot be batched can still be trained.
            cause = f"{type(error).__name__}: {error}"
    if fitted is None:
        fitted = [_train_alone(clone(net), X, y) for net in nets]
    return fitted, (time.perf_counter() - start) / len(nets), cause


def _train_alone(net: MaxMarginClassifier, X: Any, y: Any) -> MaxMarginClassifier | None:
    try:
        return net.fit(X, y)
    except Exception:
        # It comes again where scikit-learn looks for it.
        return None


class _ByRows(BaseEstimator):
    """What scikit-learn's search sees: a candidate whose X holds row numbers.

    Parameters
    ----------
    estimator : MaxMarginClassifier
        Not fitted.
    trainings : _Trainings
        Where its fitted copies come from.
    """

    def __init__(self, estimator: MaxMarginClassifier, trainings: _Trainings) -> None:
        self.estimator = estimator
        self.trainings = trainings

    def __sklearn_clone__(self) -> _ByRows:
        return _ByRows(self.estimator, self.trainings)

    def set_params(self, **params: Any) -> _ByRows:
        self.params_ = params
        return self

    def fit(self, X: Any, y: Any) -> _ByRows:
        rows = X[:, 0]
        model = self.trainings.get(self.params_, rows)
        if model is None:
            model = clone(self.estimator).set_params(**self.params_)
            model.fit(self.trainings.inputs(rows), y)
        self.model_ = model
        return self


class _ScoreByRows:
    """A scorer of the classifier behind `_ByRows`, on the rows that X numbers."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def __call__(self, estimator: _ByRows, X: Any, y: Any) -> Any:
        return self.scorer(estimator.model_, estimator.trainings.inputs(X[:, 0]), y)
