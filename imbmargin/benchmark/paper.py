"""The jobs of the paper's tables, and what was published for them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from imbmargin.benchmark.jobs import DataSpec, Job
from imbmargin.losses import LOSSES
from imbmargin.methods import METHODS, paper_grid, paper_margins, paper_settings, setting_name

__all__ = ["GRID_METHOD", "PAPER_EPOCHS", "TABLES", "setting_of", "table_arguments", "table_jobs"]

TABLES = ("table1", "table2", "table3")
"""The methods; MM-DRW over beta and delta_neg on CIFAR-10, and on CIFAR-100."""

GRID_METHOD = "MM-DRW"
PAPER_EPOCHS = 200


def table_jobs(
    table: str,
    specs: Sequence[DataSpec],
    methods: Sequence[str],
    seeds: int,
    epochs: int,
    precision: str,
    arguments: dict[str, Any],
) -> list[Job]:
    """Return the jobs of a table, ordered so that all rows of a seed come before the next seed.

    Parameters
    ----------
    table : str
        One of `TABLES`.
    specs : sequence of DataSpec
        Its settings, with ``dataset`` set.
    methods : sequence of str
        Rows of Table 1; the other tables have one method.
    seeds, epochs, precision
        As in `Job`.
    arguments : dict
        Further arguments for every method, which come before those of the paper.

    Returns
    -------
    jobs : list of Job

    Raises
    ------
    ValueError
        If a setting of Tables 2 and 3 was not published.

    Examples
    --------
    >>> from imbmargin.benchmark.jobs import DataSpec
    >>> from imbmargin.benchmark.paper import table_jobs
    >>> spec = DataSpec("cifar/", imbalance="long_tailed", ratio=100, dataset="cifar10")
    >>> jobs = table_jobs("table2", [spec], [], 1, 200, "bfloat16", {})
    >>> len(jobs), jobs[0].label
    (3, 'MM-DRW beta=1.4 delta_neg=0.6')
    """
    jobs = []
    for seed in range(seeds):
        for spec in specs:
            for method, own in _rows(table, spec, methods):
                merged = tuple(sorted({**own, **arguments}.items()))
                jobs.append(Job(spec, method, seed, epochs, precision, merged))
    return jobs


def _rows(table: str, spec: DataSpec, methods: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    setting = setting_of(asdict(spec))
    if table == "table1":
        return [(method, table_arguments(method, setting)) for method in methods]
    grid = paper_grid(setting)
    return [(GRID_METHOD, {k: row[k] for k in ("beta", "delta_neg")}) for row in grid]


def setting_of(data: dict[str, Any]) -> str:
    """Return the name of the setting of a `DataSpec` with ``dataset`` set, as a dict."""
    return setting_name(data["dataset"], data["imbalance"], data["ratio"])


def table_arguments(method: str, setting: str) -> dict[str, Any]:
    """Return the arguments that Table 1 has for a method in a setting, besides the method's own.

    For the maximum-margin losses these are delta_neg and beta of the best row of Tables 2 and 3;
    where nothing was published, the estimator's defaults stand.

    Examples
    --------
    >>> from imbmargin.benchmark.paper import table_arguments
    >>> table_arguments("MM-LDAM-DRW", "cifar10_step_100")
    {'delta_neg': 0.6, 'beta': 1.3}
    >>> table_arguments("LDAM-DRW", "cifar10_step_100")
    {}
    """
    takes_margins = "delta_neg" in inspect.signature(LOSSES[METHODS[method]["loss"]]).parameters
    if not takes_margins or setting not in paper_settings():
        return {}
    return paper_margins(setting)
