"""From records to a comparison over many tables: mean ranks, mean scores, times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbmargin.benchmark.contenders import CONTENDERS
from imbmargin.benchmark.ranks import against_control, critical_difference, friedman, mean_ranks
from imbmargin.benchmark.table import Group, Rows, fit_seconds, method_label

__all__ = ["CONTROL", "METRICS", "NOTES", "Comparison", "compare_tables", "share_scores"]

METRICS = {
    "balanced_accuracy": "balanced acc.",
    "geometric_mean": "G-mean",
    "macro_f1": "macro F1",
    "average_precision": "av. precision",
    "log_loss": "log-loss",
}
"""Score -> heading. All but log-loss are shown in percent."""

_LOWER_IS_BETTER = {"log_loss"}
_KIND_METRICS = ("balanced_accuracy", "geometric_mean")

CONTROL = "MM-DRW"
"""The method with which Wilcoxon's test compares the others, chosen before any result."""

NOTES = (
    "A score of a table is the mean over its folds, after the last epoch; every method has the "
    "same folds. Ranks are those of the methods within each table, 1 the best, equal ones shared, "
    "and their mean over the tables. Seconds are the median time of fit over all folds and tables, "
    "with one thread. A method that fails on a fold has there the scores of predicting the most "
    "frequent class, with the classes' shares as probabilities. Average precision is that of the "
    "rarer of two classes, or the mean over more, one against the rest; log-loss is in nats, of "
    "the probabilities as the methods give them. Columns with words are one column for each value, "
    "learned from the training part; SMOTE interpolates these too. Friedman's test asks whether "
    "the methods differ at all. In the diagrams, methods whose mean ranks differ by less than the "
    "critical difference of Nemenyi's test are joined: one length holds for all pairs, so that it "
    "can be drawn, and it is cautious. Because the mean ranks of two methods depend on the others "
    "that are compared, the table has beside them Wilcoxon's signed-rank test of each method "
    f"against {CONTROL}, which was chosen beforehand, by the differences of balanced accuracy "
    "alone, adjusted by Holm. Both tests take tables as independent; two entries of one family are "
    "less than two."
)


@dataclass(frozen=True)
class Comparison:
    """The scores of methods on tables, for one training length.

    Parameters
    ----------
    job : dict
        Settings that all jobs share.
    methods : list of str
        In the order of the methods.
    names : list of str
        Tables on which every method was tried on all folds.
    long_tailed : ndarray of bool, shape (n_tables,)
        Which of them were made long-tailed; the others are as they are.
    scores : dict of str to ndarray of shape (n_tables, n_methods)
        Mean over the folds of each of `METRICS`, as fractions and nats.
    seconds : ndarray of shape (n_tables, n_methods, n_folds)
        Times of fit; NaN where it failed.
    folds : int
        Folds of a table.
    left_out : list of str
        Tables on which a method lacks a fold.
    failed : list of dict
        Records of failed jobs.
    """

    job: dict[str, Any]
    methods: list[str]
    names: list[str]
    long_tailed: NDArray[np.bool_]
    scores: dict[str, NDArray[np.float64]]
    seconds: NDArray[np.float64]
    folds: int
    left_out: list[str]
    failed: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """What is compared, in words."""
        n = len(self.names)
        text = f"{n} KEEL {'table' if n == 1 else 'tables'}, {self.job['epochs']} epochs"
        return text if self.job["precision"] == "float32" else f"{text}, {self.job['precision']}"

    @property
    def has_tests(self) -> bool:
        """Whether there are enough methods and tables for the tests."""
        return len(self.methods) > 2 and len(self.names) > 1

    @property
    def difference(self) -> float:
        """The critical difference of mean ranks."""
        return critical_difference(len(self.methods), len(self.names))

    def ranks(self, metric: str, among: Any = slice(None)) -> NDArray[np.float64]:
        """Return the mean rank of each method, over all tables or those of an index."""
        return mean_ranks(self.scores[metric][among], metric in _LOWER_IS_BETTER)

    def order(self) -> NDArray[np.int64]:
        """Return the methods' numbers, the best mean rank of balanced accuracy first."""
        return np.argsort(self.ranks("balanced_accuracy"), kind="stable")

    def describe(self) -> str:
        """Say what was compared, and what Friedman's test finds."""
        text = f"{self.folds} {'fold' if self.folds == 1 else 'folds'} of each table."
        if self.left_out:
            text += f" Left out, because a method lacks a fold: {', '.join(self.left_out)}."
        if not self.has_tests:
            return text
        p = ", ".join(f"{METRICS[m]} {_p_value(friedman(self.scores[m]))}" for m in METRICS)
        return (
            f"{text} Friedman's test that all are equal, p: {p}. Critical difference of two mean "
            f"ranks at 5 %: {self.difference:.2f}."
        )

    def rank_rows(self) -> Rows:
        """Return the mean ranks of each score, a row for each method, the best first."""
        ranks = {metric: self.ranks(metric) for metric in METRICS}
        p = np.full(len(self.methods), np.nan)
        if CONTROL in self.methods and self.has_tests:
            p = against_control(self.scores["balanced_accuracy"], self.methods.index(CONTROL))
        tested = not np.isnan(p).all()
        head = ["method", *METRICS.values(), "seconds", *([f"p against {CONTROL}"] * tested)]
        body = [
            [
                self.methods[i],
                *(f"{ranks[metric][i]:.2f}" for metric in METRICS),
                _seconds(self.seconds[:, i]),
                *([_p_value(p[i])] * tested),
            ]
            for i in self.order()
        ]
        return [head, *body]

    def kind_rows(self) -> Rows:
        """Return the mean ranks among each kind of tables; nothing if all are of one kind."""
        kinds = {"as they are": ~self.long_tailed, "long-tailed": self.long_tailed}
        if not all(among.any() for among in kinds.values()):
            return []
        columns = {
            f"{METRICS[metric]}, {among.sum()} {kind}": self.ranks(metric, among)
            for kind, among in kinds.items()
            for metric in _KIND_METRICS
        }
        body = [
            [self.methods[i], *(f"{ranks[i]:.2f}" for ranks in columns.values())]
            for i in self.order()
        ]
        return [["method", *columns], *body]

    def score_rows(self) -> Rows:
        """Return the mean scores over the tables, a row for each method."""
        body = [
            [
                self.methods[i],
                *(_score(metric, self.scores[metric][:, i].mean()) for metric in METRICS),
                _seconds(self.seconds[:, i]),
            ]
            for i in self.order()
        ]
        return [["method", *METRICS.values(), "seconds"], *body]

    def table_rows(self) -> Rows:
        """Return balanced accuracy and time of fit of each method, a row for each table."""
        order = self.order()
        scores = self.scores["balanced_accuracy"]

        def cell(table: int, method: int) -> str:
            seconds = _seconds(self.seconds[table, method])
            return f"{_score('balanced_accuracy', scores[table, method])} ({seconds} s)"

        body = [[name, *(cell(t, i) for i in order)] for t, name in enumerate(self.names)]
        return [["table", *(self.methods[i] for i in order)], *body]

    def best(self, of_ranks: bool) -> dict[str, str]:
        """Return the method with the best mean rank or mean score, by the heading of the score."""
        found = {}
        for metric, heading in METRICS.items():
            values = self.ranks(metric) if of_ranks else self.scores[metric].mean(axis=0)
            lowest = of_ranks or metric in _LOWER_IS_BETTER
            found[heading] = self.methods[int(values.argmin() if lowest else values.argmax())]
        return found


def compare_tables(groups: list[Group]) -> list[Comparison]:
    """Return the comparisons over the KEEL tables among the groups, one for each training length.

    Examples
    --------
    >>> from imbmargin.benchmark.across import compare_tables
    >>> compare_tables([])
    []
    """
    found: dict[tuple[int, str], list[Group]] = {}
    for group in groups:
        if group.is_keel:
            found.setdefault((group.job["epochs"], group.job["precision"]), []).append(group)
    return [_compare(part) for part in found.values()]


def _compare(groups: list[Group]) -> Comparison:
    by_table = [_results(group) for group in groups]
    names = {method for results in by_table for method, _ in results}
    methods = sorted(names, key=lambda name: (CONTENDERS.index(name.split()[0]), name))
    seeds = sorted({seed for results in by_table for _, seed in results})
    wanted = {(method, seed) for method in methods for seed in seeds}
    whole = [bool(wanted) and results.keys() == wanted for results in by_table]
    kept = [results for results, is_whole in zip(by_table, whole, strict=True) if is_whole]
    titles = [group.short_title for group in groups]

    def gather(key: str) -> NDArray[np.float64]:
        values = [[[found[m, s][key] for s in seeds] for m in methods] for found in kept]
        # Also where nothing is kept.
        shape = (len(kept), len(methods), max(len(seeds), 1))
        return np.array(values, dtype=np.float64).reshape(shape)

    return Comparison(
        groups[0].job,
        methods,
        [name for name, is_whole in zip(titles, whole, strict=True) if is_whole],
        np.array([group.job["data"]["imbalance"] != "none" for group in groups])[whole],
        # Equal up to rounding is equal, for ranks.
        {metric: gather(metric).mean(axis=-1).round(12) for metric in METRICS},
        gather("seconds"),
        len(seeds),
        [name for name, is_whole in zip(titles, whole, strict=True) if not is_whole],
        [record for group in groups for record in group.failed],
    )


def _results(group: Group) -> dict[tuple[str, int], dict[str, float]]:
    """Return scores and time of fit by method and seed; a failure has those of the class shares."""
    folds = {record["job"]["seed"]: record for record in group.records}
    found = {
        (method, record["job"]["seed"]): record["scores"] | {"seconds": fit_seconds(record)}
        for method, records in group.by_method.items()
        for record in records
    }
    for record in group.failed:
        seed = record["job"]["seed"]
        if seed in folds:
            found[method_label(record), seed] = share_scores(
                folds[seed]["class_counts"], folds[seed]["test_counts"]
            ) | {"seconds": float("nan")}
    return found


def share_scores(class_counts: list[int], test_counts: list[int]) -> dict[str, float]:
    """Return the scores of predicting the most frequent class, with the classes' shares.

    Parameters
    ----------
    class_counts, test_counts : list of int
        Rows of each class in the training and the test part.

    Returns
    -------
    scores : dict of str to float
        Each of `METRICS`.

    Examples
    --------
    >>> from imbmargin.benchmark.across import share_scores
    >>> scores = share_scores([75, 25], [15, 5])
    >>> scores["balanced_accuracy"], scores["average_precision"], round(scores["log_loss"], 3)
    (0.5, 0.25, 0.562)
    """
    train, test = np.array(class_counts) / sum(class_counts), np.array(test_counts)
    test = test / test.sum()
    hits = test[train.argmax()]
    # As in `scores`, classes without test rows count for no mean.
    seen = test[test > 0]
    rarer = test[train.argmin()] or np.nan
    return {
        "balanced_accuracy": float(hits > 0) / len(seen),
        "geometric_mean": float(hits == 1),
        "macro_f1": float(2 * hits / (1 + hits)) / len(seen),
        "average_precision": float(rarer if len(train) == 2 else seen.mean()),
        "log_loss": float(-(test * np.log(train)).sum()),
    }


def _score(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric in _LOWER_IS_BETTER else f"{100 * value:.1f}"


def _seconds(times: NDArray[np.float64]) -> str:
    known = times[~np.isnan(times)]
    if not len(known):
        return "-"
    value = float(np.median(known))
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _p_value(value: float) -> str:
    if np.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
