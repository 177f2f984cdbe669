"""Measured errors beside those that the paper prints."""

from __future__ import annotations

from typing import Any

import numpy as np

from imbmargin._epochs import resolve_epoch, step_epochs
from imbmargin.benchmark.paper import GRID_METHOD, PAPER_EPOCHS
from imbmargin.benchmark.table import Group, Rows, spread
from imbmargin.methods import METHODS, TABLE1, paper_grid, paper_settings, published_error

__all__ = ["Table", "best_errors", "last_errors", "paper_tables", "schedule_note"]

Table = tuple[str, Rows]
"""A caption and the rows."""


def best_errors(records: list[dict[str, Any]]) -> np.ndarray:
    """Return the error (%) of the best epoch of each record, NaN for methods without epochs."""
    best = (record.get("best_epoch") for record in records)
    return np.array([np.nan if epoch is None else 100 * epoch["error"] for epoch in best])


def last_errors(records: list[dict[str, Any]]) -> np.ndarray:
    """Return the error (%) after the last epoch of each record."""
    return np.array([100 * (1 - record["scores"]["accuracy"]) for record in records])


_EPOCHS = {"best epoch, chosen on the test set": best_errors, "last epoch": last_errors}


def schedule_note(epochs: int) -> str:
    """Say what became of the papers' schedule, if the epochs are not theirs.

    Examples
    --------
    >>> from imbmargin.benchmark.published import schedule_note
    >>> schedule_note(40)
    "40 epochs in place of the papers' 200, and the schedule in proportion: no warm-up, drops of \
the rate after 32 and 36, deferral after 32. The published errors are those of 200 epochs."
    """
    if epochs == PAPER_EPOCHS:
        return "200 epochs, as in the papers."
    warm_up, drops = step_epochs(epochs)
    reached = " and ".join(str(drop) for drop in drops if drop < epochs)
    return (
        f"{epochs} epochs in place of the papers' {PAPER_EPOCHS}, and the schedule in proportion: "
        f"{warm_up or 'no'}{' of' if warm_up else ''} warm-up, "
        f"{f'drops of the rate after {reached}' if reached else 'no drop of the rate'}, "
        f"deferral after {resolve_epoch(0.8, epochs, 'deferral')}. The published errors are those "
        f"of {PAPER_EPOCHS} epochs."
    )


def paper_tables(group: Group) -> list[Table]:
    """Return the tables of a setting of the paper; errors in percent.

    Parameters
    ----------
    group : Group
        Its records, with ``setting`` set.

    Returns
    -------
    tables : list of (str, rows)
        Table 1 by best and by last epoch, the published grid of MM-DRW if more than Table 1's own
        point of it was run, and all runs with other arguments.
    """
    measured = group.by_method
    rows = {name: records for name, records in measured.items() if name in METHODS}
    others = {name: records for name, records in measured.items() if name not in METHODS}
    # Nothing was published for a part of the images.
    setting = None if group.job["data"].get("n_max") else group.setting
    grid = _grid(group, setting)
    tables = []
    for epoch, errors in _EPOCHS.items():
        found = {name: errors(records) for name, records in rows.items()}
        # What is done after a training has no best epoch.
        known = {name: values for name, values in found.items() if not np.isnan(values).all()}
        body = [_compare(name, _published(name, setting), known[name]) for name in known]
        head = ["method", "published", "measured", "difference", "runs"]
        if body:
            tables.append((f"Table 1, error (%) of the {epoch}", [head, *body]))
    if grid:
        tables.append(("Tables 2 and 3, error (%) of MM-DRW over beta and delta_neg", grid))
    if others:
        head = ["method", "best epoch", "last epoch", "runs"]
        body = [
            [name, spread(best_errors(rs), 2), spread(last_errors(rs), 2), str(len(rs))]
            for name, rs in others.items()
        ]
        tables.append(("Other arguments, error (%)", [head, *body]))
    return tables


def _published(method: str, setting: str | None) -> float | None:
    if method not in TABLE1 or setting is None or setting not in paper_settings():
        return None
    return published_error(method, setting)


def _compare(name: str, published: float | None, errors: np.ndarray) -> list[str]:
    cells = ["-", spread(errors, 2), "-"]
    if published is not None:
        cells = [f"{published:.2f}", spread(errors, 2), f"{errors.mean() - published:+.2f}"]
    return [name, *cells, str(len(errors))]


def _grid(group: Group, setting: str | None) -> Rows:
    """Return the published grid beside what was measured of it."""
    if setting is None or setting not in paper_settings():
        return []
    body = []
    for point in paper_grid(setting):
        wanted = {"beta": point["beta"], "delta_neg": point["delta_neg"]}
        found = [
            record
            for record in group.records
            if record["job"]["method"] == GRID_METHOD and dict(record["job"]["arguments"]) == wanted
        ]
        if found:
            best = best_errors(found)
            body.append(
                [
                    f"beta {point['beta']:g}, delta_neg {point['delta_neg']:g}",
                    f"{point['error']:.2f}",
                    spread(best, 2),
                    spread(last_errors(found), 2),
                    f"{best.mean() - point['error']:+.2f}",
                    str(len(found)),
                ]
            )
    head = ["point", "published", "best epoch", "last epoch", "difference of the best", "runs"]
    return [head, *body] if len(body) > 1 else []
