"""The jobs of ``imbmargin benchmark tabular``: real tables, and what users would pick for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imbmargin.benchmark.collection import Table, tables
from imbmargin.benchmark.contenders import NETWORKS
from imbmargin.benchmark.jobs import FOLDS, KEEL, DataSpec, Job

__all__ = ["TABULAR_EPOCHS", "TABULAR_METHODS", "TABULAR_REPEATS", "tabular_jobs"]

TABULAR_METHODS = (
    *NETWORKS,
    "LA-post-hoc",
    "SMOTE+MLP",
    "BorderlineSMOTE+MLP",
    "RandomUnderSampler+MLP",
    "SMOTE+HGB",
    "BorderlineSMOTE+HGB",
    "RandomUnderSampler+HGB",
    "LogisticRegression",
    "RandomForest",
    "HistGradientBoosting",
    "LightGBM",
    "BalancedRandomForest",
    "BalancedBagging",
    "EasyEnsemble",
    "RUSBoost",
)
"""What is compared unless others are asked for."""

TABULAR_EPOCHS = 40
"""Epochs of the networks."""

TABULAR_REPEATS = 2
"""Splits of each table into five folds; the judged half then takes 70 minutes on two cores that do
nothing else."""

# Six tables of the tuning half, five of the judged half: minutes on two cores.
_QUICK_ROWS = 1500
_QUICK_STEP = 2


def tabular_jobs(
    part: str,
    methods: Sequence[str],
    repeats: int,
    epochs: int,
    precision: str,
    arguments: dict[str, Any],
    quick: bool = False,
) -> list[Job]:
    """Return the jobs of a half of the tables: each method on each fold of each table.

    The seed of a job numbers its fold, so that all methods have the same folds, and the same rows
    of a long-tailed training part.

    Parameters
    ----------
    part : {"tuning", "judged"}
        The half.
    methods : sequence of str
        What is compared.
    repeats : int
        How often a table is split into five folds.
    epochs, precision
        As in `Job`.
    arguments : dict
        Further arguments for every method.
    quick : bool, default=False
        Whether only some of the small tables are wanted.

    Returns
    -------
    jobs : list of Job

    Examples
    --------
    >>> from imbmargin.benchmark.tabular import tabular_jobs
    >>> jobs = tabular_jobs("tuning", ["ERM"], 1, 40, "float32", {})
    >>> len(jobs), jobs[0].title
    (125, 'abalone9-18 ERM seed 0')
    """
    found = tables(part)
    if quick:
        small = [table for table in found if table.rows <= _QUICK_ROWS]
        found = sorted(small, key=lambda table: (table.ratio, table.name))[::_QUICK_STEP]
    return [
        Job(_spec(table), method, seed, epochs, precision, tuple(sorted(arguments.items())))
        for table in found
        for seed in range(FOLDS * repeats)
        for method in dict.fromkeys(methods)
    ]


def _spec(table: Table) -> DataSpec:
    source = KEEL + table.name
    if table.long_tailed:
        return DataSpec(source, imbalance="long_tailed", ratio=float(table.long_tailed))
    return DataSpec(source)
