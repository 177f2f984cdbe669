"""Figures in the style of scikit-learn's displays; matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imbmargin._figure import (
    GREY,
    describe_counts,
    draw_bars,
    draw_counts_behind,
    finish_axes,
    make_axes,
    name_classes,
    running_mean,
    scale_for_counts,
    series_look,
)
from imbmargin.metrics import per_class_error, sample_margins

__all__ = [
    "ClassDistributionDisplay",
    "MarginDisplay",
    "PerClassErrorDisplay",
    "TrainingCurvesDisplay",
]


class PerClassErrorDisplay:
    """Error of each class, from the most frequent to the rarest, of one or several methods.

    Classes that can be named are bars (marks, if methods are many) over names and training rows.
    More are running means over their ranks (with dots, if not too many), before the training rows
    in grey.

    Parameters
    ----------
    errors : dict of str to array-like of shape (K,)
        Error of each class in [0, 1], by method.
    class_counts : array-like of int, shape (K,)
        Rows of each class in the training part.
    labels : array-like of shape (K,), default=None
        Names of the classes; by default 0..K-1.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn.

    Examples
    --------
    >>> from imbmargin.plotting import PerClassErrorDisplay
    >>> y, counts = ["cat", "cat", "dog", "dog"], [500, 5]
    >>> predictions = {"ERM": ["cat", "cat", "cat", "cat"], "MM-DRW": ["cat", "cat", "cat", "dog"]}
    >>> display = PerClassErrorDisplay.from_predictions(y, predictions, class_counts=counts)
    >>> display.errors["MM-DRW"]
    array([0. , 0.5])
    """

    def __init__(
        self,
        errors: Mapping[str, ArrayLike],
        class_counts: ArrayLike,
        labels: ArrayLike | None = None,
    ) -> None:
        self.class_counts = np.asarray(class_counts, dtype=np.int64)
        self.errors = {name: np.asarray(error, dtype=float) for name, error in errors.items()}
        self.labels = _check_classes("errors", self.errors, len(self.class_counts), labels)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: Any,
        *,
        class_counts: ArrayLike,
        labels: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> PerClassErrorDisplay:
        """Draw the errors of predictions: an array, or a dict of them by method.

        ``labels`` holds the classes in the order of ``class_counts``; by default those of
        ``y_true``, sorted. ``kwargs`` are those of `plot`.
        """
        names = np.unique(np.asarray(y_true)) if labels is None else np.asarray(labels)
        methods = y_pred if isinstance(y_pred, Mapping) else {"error": y_pred}
        errors = {name: per_class_error(y_true, y, labels=names) for name, y in methods.items()}
        return cls(errors, class_counts, names).plot(ax, **kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        class_counts: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> PerClassErrorDisplay:
        """Draw the errors of a fitted classifier, or of a dict of them by method.

        ``class_counts``, in the order of ``classes_``, are by default the first classifier's
        ``class_counts_``. ``kwargs`` are those of `plot`.
        """
        many = isinstance(estimator, Mapping)
        methods = estimator if many else {type(estimator).__name__: estimator}
        first = next(iter(methods.values()))
        counts = _training_counts(first, class_counts)
        predictions = {name: fitted.predict(X) for name, fitted in methods.items()}
        options = {"class_counts": counts, "labels": first.classes_, "ax": ax}
        return cls.from_predictions(y, predictions, **options, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> PerClassErrorDisplay:
        """Draw on ``ax`` or on a new figure; ``kwargs`` go to ``Axes.bar`` or ``Axes.plot``."""
        self.ax_, self.figure_ = make_axes(ax)
        order = np.argsort(-self.class_counts, kind="stable")
        counts = self.class_counts[order]
        errors = {name: error[order] for name, error in self.errors.items()}
        if name_classes(self.ax_, self.labels[order], "training rows", counts):
            draw_bars(self.ax_, errors, **kwargs)
        else:
            rank = np.arange(1, len(order) + 1)
            for i, (name, error) in enumerate(errors.items()):
                look = series_look(i)
                if len(errors) * len(rank) <= 400:
                    self.ax_.plot(rank, error, ".", color=look["color"], alpha=0.3, markersize=4)
                self.ax_.plot(rank, running_mean(error), **{"label": name} | look | kwargs)
            draw_counts_behind(self.ax_, counts)
        self.ax_.set(ylabel="error", ylim=(0, None))
        finish_axes(self.ax_, legend=len(errors) > 1, percent=True)
        return self


class ClassDistributionDisplay:
    """Rows of each class on a log scale, from the most frequent class to the rarest.

    Parameters
    ----------
    counts : dict of str to array-like of int, shape (K,)
        Rows of each class, by split; the first split sets the order of the classes.
    labels : array-like of shape (K,), default=None
        Names of the classes; by default 0..K-1.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn.

    Examples
    --------
    >>> from imbmargin.plotting import ClassDistributionDisplay
    >>> display = ClassDistributionDisplay.from_labels(["ham"] * 90 + ["spam"] * 10)
    >>> display.ax_.get_title()
    '100 rows, imbalance ratio 9'
    """

    def __init__(self, counts: Mapping[str, ArrayLike], labels: ArrayLike | None = None) -> None:
        self.counts = {name: np.asarray(count, dtype=np.int64) for name, count in counts.items()}
        n_classes = len(next(iter(self.counts.values()), ()))
        self.labels = _check_classes("counts", self.counts, n_classes, labels)
        empty = [name for name, count in self.counts.items() if not count.any()]
        if empty:
            raise ValueError(f"every split must have rows of the classes, these have none: {empty}")

    @classmethod
    def from_labels(
        cls, y: Any, *, labels: ArrayLike | None = None, ax: Any = None, **kwargs: Any
    ) -> ClassDistributionDisplay:
        """Draw the counts of labels: an array, or a dict of arrays by split.

        ``labels`` holds the classes that are counted; by default all that occur. ``kwargs`` are
        those of `plot`.
        """
        splits = y if isinstance(y, Mapping) else {"rows": y}
        parts = {name: np.asarray(part) for name, part in splits.items()}
        names = np.unique(np.concatenate([*parts.values()])) if labels is None else labels
        names = np.asarray(names)
        counts = {name: [(part == label).sum() for label in names] for name, part in parts.items()}
        return cls(counts, names).plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> ClassDistributionDisplay:
        """Draw on ``ax`` or on a new figure; ``kwargs`` go to ``Axes.bar`` or ``Axes.stairs``."""
        self.ax_, self.figure_ = make_axes(ax)
        order = np.argsort(-next(iter(self.counts.values())), kind="stable")
        single = len(self.counts) == 1
        texts = [describe_counts(count) for count in self.counts.values()]
        counts = {
            f"{name}: {text}": count[order]
            for (name, count), text in zip(self.counts.items(), texts, strict=True)
        }
        foot = scale_for_counts(self.ax_, np.stack([*counts.values()]))
        shown = next(iter(counts.values())) if single else None
        if name_classes(self.ax_, self.labels[order], "rows", shown):
            draw_bars(self.ax_, counts, **kwargs)
        else:
            edges = np.arange(len(order) + 1) + 0.5
            for i, (name, count) in enumerate(counts.items()):
                look = {"baseline": foot, "fill": single, "linewidth": 1.5, "label": name}
                self.ax_.stairs(count, edges, **look | series_look(i) | kwargs)
        self.ax_.set(ylabel="rows", title=texts[0] if single else "")
        finish_axes(self.ax_, legend=not single)
        return self


class MarginDisplay:
    """Distribution of the margins of samples, by group of classes; below 0 are errors.

    Parameters
    ----------
    margins : dict of str to array-like of shape (n_group,)
        γ = z_y - max over j≠y of z_j of each sample, by group.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it is drawn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from imbmargin.plotting import MarginDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = LogisticRegression(max_iter=1000).fit(X, y)
    >>> display = MarginDisplay.from_estimator(clf, X, y, groups={"setosa": [0], "others": [1, 2]})
    >>> {name: len(margins) for name, margins in display.margins.items()}
    {'setosa': 50, 'others': 100}
    """

    def __init__(self, margins: Mapping[str, ArrayLike]) -> None:
        self.margins = {name: np.asarray(margin, dtype=float) for name, margin in margins.items()}
        empty = [name for name, margin in self.margins.items() if not len(margin)]
        if empty or not self.margins:
            raise ValueError(f"every group must have samples, these have none: {empty}")
        wrong = [name for name, margin in self.margins.items() if not np.isfinite(margin).all()]
        if wrong:
            raise ValueError(
                f"margins must be finite, those of {wrong} are not; leave such samples out"
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        groups: Mapping[str, ArrayLike] | None = None,
        class_counts: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> MarginDisplay:
        """Draw the margins of a fitted classifier that has a ``decision_function``.

        ``groups`` are labels by name; by default each class up to 4, or thirds of the classes by
        ``class_counts``: training rows in the order of ``classes_``, by default the estimator's
        ``class_counts_``. ``kwargs`` are those of `plot`.
        """
        classes, labels = np.asarray(estimator.classes_), np.asarray(y)
        unknown = np.setdiff1d(labels, classes).tolist()
        if unknown:
            raise ValueError(f"y has labels {unknown} that are not in classes_ of the estimator")
        if groups is None and len(classes) <= 4:
            groups = {str(label): [label] for label in classes}
        elif groups is None:
            counts = _training_counts(estimator, class_counts)
            thirds = np.array_split(np.argsort(-counts, kind="stable"), 3)
            groups = {
                f"{name}, {counts[third].max():,} to {counts[third].min():,} rows": classes[third]
                for name, third in zip(("head", "middle", "tail"), thirds, strict=True)
            }
        margin = sample_margins(estimator.decision_function(X), np.searchsorted(classes, labels))
        parts = {name: margin[np.isin(labels, group)] for name, group in groups.items()}
        return cls(parts).plot(ax, **kwargs)

    def plot(self, ax: Any = None, bins: Any = 40, **kwargs: Any) -> MarginDisplay:
        """Draw on ``ax`` or on a new figure; ``bins`` and ``kwargs`` are those of ``Axes.hist``."""
        self.ax_, self.figure_ = make_axes(ax)
        edges = np.histogram_bin_edges(np.concatenate([*self.margins.values()]), bins)
        for i, (name, margin) in enumerate(self.margins.items()):
            color, dashes = series_look(i).values()
            look: dict[str, Any] = {"histtype": "stepfilled", "linewidth": 1.5, "linestyle": dashes}
            look |= {"facecolor": (color, 0.15), "edgecolor": color}
            look["label"] = f"{name}: {(margin < 0).mean():.1%} wrong"
            weights = np.full(len(margin), 1 / len(margin))
            self.ax_.hist(margin, edges, weights=weights, **look | kwargs)
        self.ax_.axvline(0, color=GREY, linewidth=1)
        self.ax_.set(xlabel="margin: logit of the label less the largest other")
        self.ax_.set(ylabel="samples of the group")
        finish_axes(self.ax_, percent=True)
        return self


class TrainingCurvesDisplay:
    """Loss, and below it balanced accuracy, over the epochs.

    Parameters
    ----------
    history : list of dict
        Of each epoch ``train_loss``, and from a validation part, if there is one, ``valid_loss``
        and ``valid_balanced_accuracy``.
    drw_epoch : int, default=None
        Epochs completed before re-weighting switched on: a line after that epoch.

    Attributes
    ----------
    ax_ : matplotlib Axes, or ndarray of two
        The loss, and the balanced accuracy if it is known.
    figure_ : matplotlib Figure
        The figure.

    Examples
    --------
    >>> from imbmargin.plotting import TrainingCurvesDisplay
    >>> history = [{"train_loss": 1.2}, {"train_loss": 0.8}, {"train_loss": 0.9}]
    >>> display = TrainingCurvesDisplay.from_history(history, drw_epoch=2)
    >>> display.ax_.get_ylabel()
    'loss'
    """

    def __init__(self, history: list[dict[str, Any]], drw_epoch: int | None = None) -> None:
        if not isinstance(history, list) or not any("train_loss" in row for row in history):
            raise ValueError(
                "history must be a fitted estimator, or a list of a dict for each epoch with "
                f"train_loss, got {history!r:.60}"
            )
        if drw_epoch is not None and (not isinstance(drw_epoch, Integral) or drw_epoch < 0):
            raise ValueError(
                f"drw_epoch must be a number of completed epochs, got {drw_epoch!r}; for a "
                "fraction pass round(fraction * max_epochs)"
            )
        self.history = history
        self.drw_epoch = drw_epoch

    @classmethod
    def from_history(
        cls, history: Any, *, drw_epoch: int | None = None, ax: Any = None, **kwargs: Any
    ) -> TrainingCurvesDisplay:
        """Draw a history, or that of a fitted estimator; ``kwargs`` are those of `plot`.

        The estimator may be a Pipeline, or a search or another classifier around one.
        """
        return cls(_history_of(history), drw_epoch).plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> TrainingCurvesDisplay:
        """Draw on ``ax`` or on a new figure; ``kwargs`` go to ``Axes.plot``.

        With a balanced accuracy ``ax`` must be two axes, such as those of ``plt.subplots(2)``.
        """
        scored = any("valid_balanced_accuracy" in row for row in self.history)
        self.ax_, self.figure_ = make_axes(ax, 1 + scored)
        panels = np.ravel(self.ax_)
        epochs = np.arange(1, len(self.history) + 1)
        for key, name, i, panel in (
            ("train_loss", "training", 0, panels[0]),
            ("valid_loss", "validation", 1, panels[0]),
            ("valid_balanced_accuracy", "validation", 1, panels[-1]),
        ):
            if any(key in row for row in self.history):
                values = [row.get(key, np.nan) for row in self.history]
                look = {"label": name, "marker": "." if len(epochs) < 20 else ""} | series_look(i)
                panel.plot(epochs, values, **look | kwargs)
        for panel, label in zip(panels, ("loss", "balanced accuracy"), strict=False):
            if self.drw_epoch is not None:
                line = {"color": GREY, "dashes": (4, 2), "label": "re-weighting on"}
                panel.axvline(self.drw_epoch + 0.5, **line)
            panel.set_ylabel(label)
            finish_axes(panel, legend=panel is panels[0], percent=panel is not panels[0])
        panels[-1].set_xlabel("epoch")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
        self.figure_.align_ylabels(panels)
        return self


def _history_of(source: Any) -> Any:
    """Return the history of the network in a fitted estimator, or what is none as it is."""
    inner = source
    while not hasattr(inner, "history_"):
        if hasattr(inner, "steps"):
            inner = inner.steps[-1][1]
        elif hasattr(inner, "estimator_"):
            inner = inner.estimator_
        elif hasattr(inner, "best_estimator_"):
            inner = inner.best_estimator_
        else:
            return source
    return inner.history_


def _check_classes(
    name: str, values: Mapping[str, NDArray[Any]], n_classes: int, labels: ArrayLike | None
) -> NDArray[Any]:
    """Return the labels, if every series has a value for each class."""
    names = np.arange(n_classes) if labels is None else np.asarray(labels)
    sizes = {"labels": len(names)} | {key: len(value) for key, value in values.items()}
    if not values or set(sizes.values()) != {n_classes}:
        raise ValueError(
            f"{name} and labels must have one value for each of {n_classes} classes, got {sizes}"
        )
    return names


def _training_counts(estimator: Any, class_counts: ArrayLike | None) -> NDArray[Any]:
    counts: Any = class_counts
    if class_counts is None:
        counts = getattr(estimator, "class_counts_", None)
    if np.shape(counts) != np.shape(estimator.classes_):
        raise ValueError(
            f"class_counts must be the training rows of each of the {len(estimator.classes_)} "
            f"classes of {type(estimator).__name__}, got {counts}; pass "
            "np.unique(y_train, return_counts=True)[1]"
        )
    return np.asarray(counts, dtype=np.int64)
