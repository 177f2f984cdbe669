"""From records to a table: mean and standard deviation over the seeds."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbmargin.benchmark.contenders import CONTENDERS
from imbmargin.benchmark.jobs import KEEL
from imbmargin.benchmark.paper import setting_of, table_arguments

__all__ = [
    "COLUMNS",
    "Group",
    "Rows",
    "as_csv",
    "as_markdown",
    "as_text",
    "fit_seconds",
    "group_records",
    "method_label",
    "spread",
]

Rows = list[list[str]]
"""A table: a heading, and rows of text."""

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "geometric_mean": "G-mean",
    "average_precision": "avg. precision",
    "many_error": "many err.",
    "medium_error": "medium err.",
    "few_error": "few err.",
}
"""Score -> heading; all in percent. Average precision, of the rarer class, is shown of two."""

_FURTHER = ("macro_f1", "log_loss")

_LOWER_IS_BETTER = {"many_error", "medium_error", "few_error"}

# What titles do not say of the data, and what stands before it where it tells two groups apart.
_TELLING = {
    "source": "",
    "target": "target ",
    "n_max": "n_max ",
    "image_size": "image_size ",
    "state": "data ",
}


@dataclass(frozen=True)
class Group:
    """The records of one comparison: the same data, subset and epochs.

    Parameters
    ----------
    records : list of dict
        Those that are done.
    failed : list of dict
        Those that are not.
    distinction : str, default=""
        What tells the data from those of other groups with the same words, such as the column of
        the labels, or the same file or folder before or after it changed.
    """

    records: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    distinction: str = ""

    @property
    def job(self) -> dict[str, Any]:
        """Settings that all jobs share."""
        return dict((self.records or self.failed)[0]["job"])

    @property
    def title(self) -> str:
        """Data set, imbalance and epochs, in words."""
        data = self.job["data"]
        made = {"long_tailed": "long-tailed", "step": "step"}.get(data["imbalance"])
        subset = f", {made}, ratio {data['ratio']:g}" if made else ", as it is"
        text = f"{self.name}{subset}, {self.job['epochs']} epochs"
        text += "" if self.job["precision"] == "float32" else f", {self.job['precision']}"
        return f"{text}, {self.distinction}" if self.distinction else text

    @property
    def name(self) -> str:
        """Short name of the data set."""
        data = self.job["data"]
        if self.is_keel:
            return str(data["source"].removeprefix(KEEL))
        # A source such as "." has no name of its own; records of earlier versions lack the other.
        name = (self.records or self.failed)[0].get("name")
        return str(name or data.get("dataset") or Path(data["source"]).stem)

    @property
    def is_keel(self) -> bool:
        """Whether this is a table of the KEEL repository."""
        return str(self.job["data"]["source"]).startswith(KEEL)

    @property
    def short_title(self) -> str:
        """Data set and the ratio of its long-tailed subset, if it is one."""
        data = self.job["data"]
        return self.name if data["imbalance"] == "none" else f"{self.name} {data['ratio']:g}"

    @property
    def setting(self) -> str | None:
        """Name of the setting, if this is a data set of the paper."""
        return setting_of(self.job["data"]) if self.job["data"].get("dataset") else None

    @property
    def by_method(self) -> dict[str, list[dict[str, Any]]]:
        """Records of each method (and further arguments), in the order of the methods."""
        found: dict[str, list[dict[str, Any]]] = {}
        for record in sorted(self.records, key=_place):
            found.setdefault(method_label(record), []).append(record)
        return found

    def scores(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the values over the seeds (in percent; seconds of fit) by method and score."""
        return {
            name: {
                **{
                    c: 100 * np.array([r["scores"].get(c) for r in rs], dtype=float)
                    for c in COLUMNS
                },
                "seconds": np.array([fit_seconds(r) for r in rs]),
            }
            for name, rs in self.by_method.items()
        }

    def best(self) -> dict[str, str]:
        """Return the method with the best mean of each score."""
        found = {}
        for column in COLUMNS:
            means = {name: float(score[column].mean()) for name, score in self.scores().items()}
            known = {name: mean for name, mean in means.items() if not np.isnan(mean)}
            pick = min if column in _LOWER_IS_BETTER else max
            if known:
                found[column] = pick(known, key=lambda name: known[name])
        return found

    def rows(self) -> Rows:
        """Return a heading, and a row of text for each method."""
        scores = self.scores()
        known = [c for c in COLUMNS if not all(np.isnan(s[c]).all() for s in scores.values())]
        of_two = len(self.records[0]["class_counts"]) == 2
        shown = [c for c in known if of_two or c != "average_precision"]
        runs = {name: len(records) for name, records in self.by_method.items()}
        differ = len(set(runs.values())) > 1
        table = [["method", *(COLUMNS[c] for c in shown), "seconds", *["runs"] * differ]]
        for name, score in scores.items():
            cells = [spread(score[column]) for column in shown]
            table.append([name, *cells, spread(score["seconds"]), *[str(runs[name])] * differ])
        return table


def _place(record: dict[str, Any]) -> tuple[int, list[tuple[str, float, str]]]:
    """Return a key that sorts by method, then by further arguments, numbers by their size."""
    job = record["job"]
    arguments = [
        (key, value if isinstance(value, (int, float)) else 0.0, str(value))
        for key, value in job.get("arguments", [])
    ]
    return CONTENDERS.index(job["method"]), arguments


def method_label(record: dict[str, Any]) -> str:
    """Return the method, with those of its arguments that Table 1 does not have."""
    job = record["job"]
    usual = {}
    if job["data"].get("dataset"):
        usual = table_arguments(job["method"], setting_of(job["data"]))
    given = job.get("arguments", [])
    further = [f"{k}={v}" for k, v in given if k not in usual or usual[k] != v]
    return " ".join([str(job["method"]), *further])


def fit_seconds(record: dict[str, Any]) -> float:
    """Return the seconds of a training, with those of the pre-training before it."""
    before = record.get("pretraining") or {"seconds": 0.0}
    return float(record["seconds"]["fit"] + before["seconds"])


def spread(values: np.ndarray, digits: int = 1) -> str:
    """Return mean ± standard deviation, the value alone of one, and a dash for unknown ones."""
    if np.isnan(values).any():
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def group_records(records: list[dict[str, Any]]) -> list[Group]:
    """Put records that may be compared into groups.

    Those of a file or folder before and after it changed are in groups of their own. Titles say
    what tells groups apart.

    Examples
    --------
    >>> from imbmargin.benchmark.jobs import DataSpec, Job, run_job
    >>> from imbmargin.benchmark.table import as_text, group_records
    >>> record = run_job(Job(DataSpec("iris"), "ERM", seed=0, epochs=5))
    >>> [group] = group_records([record])
    >>> group.title
    'iris, as it is, 5 epochs'
    >>> as_text(group.rows()).splitlines()[0].split()[:2]
    ['method', 'accuracy']
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        job = record["job"]
        key = str((sorted(_data_of(record).items()), job["epochs"], job["precision"]))
        found.setdefault(key, []).append(record)
    alike: dict[str, list[Group]] = {}
    for part in found.values():
        done = [record for record in part if record["status"] == "done"]
        group = Group(done, [record for record in part if record["status"] != "done"])
        alike.setdefault(group.title, []).append(group)
    return [group for groups in alike.values() for group in _told_apart(groups)]


def _data_of(record: dict[str, Any]) -> dict[str, Any]:
    data = dict(record["job"]["data"])
    data.pop("cache", None)
    # Records of earlier versions, and those of data that cannot change, have none.
    data["state"] = data.get("state") or "of an earlier version"
    if data.get("dataset"):
        data["source"] = data["dataset"]  # wherever it lies, it is the same
    return data


def _told_apart(groups: list[Group]) -> list[Group]:
    """Return groups with the same title, each with what distinguishes its data."""
    data = [_data_of((group.records or group.failed)[0]) for group in groups]
    differ = [name for name in _TELLING if len({str(each.get(name)) for each in data}) > 1]
    texts = [", ".join(f"{_TELLING[name]}{each.get(name)}" for name in differ) for each in data]
    return [replace(group, distinction=text) for group, text in zip(groups, texts, strict=True)]


def as_text(rows: Rows) -> str:
    """Return the table in columns, for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def as_markdown(rows: Rows) -> str:
    """Return the table in Markdown."""
    head, *others = rows
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *others])


def as_csv(groups: list[Group]) -> str:
    """Return all values, a line for each job, with the scores as they were measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [*COLUMNS, *_FURTHER]
    writer.writerow(["data", "method", "seed", *columns, "fit_seconds", "predict_seconds"])
    for group in groups:
        for record in group.records:
            # Records of earlier versions lack the further ones.
            scores = [record["scores"].get(column) for column in columns]
            seconds = [fit_seconds(record), record["seconds"]["predict"]]
            writer.writerow(
                [group.title, method_label(record), record["job"]["seed"], *scores, *seconds]
            )
    return text.getvalue()
