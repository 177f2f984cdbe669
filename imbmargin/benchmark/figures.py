"""The figures of a report."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from imbmargin.benchmark.jobs import MARGIN_QUANTILES
from imbmargin.benchmark.ranks import cliques
from imbmargin.benchmark.table import Group

__all__ = ["draw_critical_difference", "draw_figures"]

Figure = tuple[Path, str]
"""A file and its caption."""

# Bars of more methods side by side can no longer be told apart; then so many are shown.
_MOST_BARS, _FEW_BARS = 9, 5
# So many letters fit over the narrowest panel, and beside the legend of curves.
_TITLE_LETTERS = 19
_LEGEND_LETTERS = 60

_CAPTIONS = {
    "classes": "Rows of each class.",
    "errors": "Error of each class after the last epoch, from the most frequent to the rarest; "
    "mean over the seeds. Of more than nine methods the first, and the four with the "
    "lowest errors.",
    "curves": "Training loss of the first seed; the dashed line is where re-weighting begins.",
    "tests": "Test error after each epoch that was looked at, mean over the seeds; the other "
    "methods in grey.",
    "margins": "Margins of the test samples of each class after the last epoch, first seed: logit "
    "of the label less the largest other. Boxes hold the middle half, lines the middle 90 %; "
    "below 0 are errors.",
}


def draw_figures(group: Group, folder: Path, prefix: str) -> list[Figure]:
    """Draw the figures of a group into a folder.

    Parameters
    ----------
    group : Group
        Records of one comparison, at least one that is done.
    folder : Path
        Where the PNG files go.
    prefix : str
        Begins their names.

    Returns
    -------
    figures : list of (Path, str)
        Files and captions.
    """
    import matplotlib

    drawings: dict[str, Callable[[Group], Any]] = {
        "classes": _draw_classes,
        "errors": _draw_errors,
    }
    trained = [record for record in group.records if "history" in record]
    if group.setting is None and trained:
        drawings["curves"] = _draw_curves
    if group.setting is not None and trained:
        drawings |= {"tests": _draw_tests, "margins": _draw_margins}
    # Without a screen: the caller's choice of a backend is left alone.
    with matplotlib.rc_context({"figure.dpi": 150, "backend": "agg"}):
        return [
            _save(draw(group), folder / f"{prefix}-{name}.png", _CAPTIONS[name])
            for name, draw in drawings.items()
        ]


def draw_critical_difference(
    ranks: dict[str, float], difference: float, path: Path, heading: str
) -> Figure:
    """Draw mean ranks on a line, with bars that join those without a critical difference.

    Parameters
    ----------
    ranks : dict of str to float
        Mean rank of each method, 1 or more.
    difference : float
        Critical difference, in ranks.
    path : Path
        Of the PNG file.
    heading : str
        The score that was ranked.

    Returns
    -------
    figure : (Path, str)
        File and caption.

    References
    ----------
    .. [1] Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 2006.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    names = sorted(ranks, key=lambda name: ranks[name])
    bars = cliques(np.array(list(ranks.values())), difference)
    rows = -(-len(names) // 2)
    with matplotlib.rc_context({"figure.dpi": 150, "backend": "agg"}):
        height = 0.9 + 0.14 * len(bars) + 0.2 * rows
        figure, ax = plt.subplots(figsize=(8, height), layout="constrained")
        _draw_rank_line(ax, len(names), difference)
        foot = 0.5 + 0.6 * len(bars)
        for i, (low, high) in enumerate(bars):
            ax.plot([low - 0.06, high + 0.06], [0.5 + 0.6 * i] * 2, color="black", linewidth=3)
        for i, name in enumerate(names):
            # The better half at the left, the best on top; the other half in mirror image.
            left = i < rows
            y = foot + 0.9 * ((i if left else len(names) - 1 - i) + 0.6)
            end = 0.6 if left else len(names) + 0.4
            ax.plot([ranks[name], ranks[name], end], [0, y, y], color="0.45", linewidth=0.9)
            text = f"{name}  {ranks[name]:.2f}" if left else f"{ranks[name]:.2f}  {name}"
            pad = (-4, 0) if left else (4, 0)
            ax.annotate(text, (end, y), pad, textcoords="offset points", va="center",
                        ha="right" if left else "left", fontsize=9)  # fmt: skip
        ax.set_ylim(foot + 0.9 * (rows + 0.2), -2.4)
        caption = (
            f"Mean ranks of {heading}; 1 is the best. Bars join methods that differ by less than "
            f"the critical difference (CD) of {difference:.2f}."
        )
        return _save(figure, path, caption)


def _draw_rank_line(ax: Any, n_methods: int, difference: float) -> None:
    """Draw the line of ranks with its numbers, and the critical difference above it."""
    ax.axis("off")
    ax.set_xlim(0.6, n_methods + 0.4)
    ax.plot([1, n_methods], [0, 0], color="black", linewidth=1.2)
    for rank in range(1, n_methods + 1):
        ax.plot([rank, rank], [0, -0.25], color="black", linewidth=1.2)
        ax.text(rank, -0.4, str(rank), ha="center", va="bottom", fontsize=9)
    ax.plot([1, 1 + difference], [-1.5, -1.5], color="black", linewidth=1.2)
    for end in (1, 1 + difference):
        ax.plot([end, end], [-1.65, -1.35], color="black", linewidth=1.2)
    ax.text(1 + difference, -1.5, f"  CD {difference:.2f}", ha="left", va="center", fontsize=9)


def _save(figure: Any, path: Path, caption: str) -> Figure:
    import matplotlib.pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return path, caption


def _draw_classes(group: Group) -> Any:
    from imbmargin.plotting import ClassDistributionDisplay

    first = group.records[0]
    counts = {"training": first["class_counts"], "test": first["test_counts"]}
    return ClassDistributionDisplay(counts, first["classes"]).plot().figure_


def _short_names(names: Iterable[str]) -> dict[str, str]:
    """Return the names without the arguments that all of them have."""
    parts = {name: re.split(r" (?=\w+=)", name) for name in names}
    alike = set.intersection(*(set(arguments) for _, *arguments in parts.values()))
    if len(parts) == 1:
        alike = set()
    return {name: " ".join(p for p in parts[name] if p not in alike) for name in parts}


def _titles(group: Group, shown: Iterable[str]) -> dict[str, str]:
    names = _short_names(group.by_method)
    return {name: names[name] for name in shown}


def _wrapped(name: str, letters: int) -> str:
    """Break a name into lines: between arguments, else after the prefix of one, else anywhere."""
    lines = textwrap.wrap(name, letters, break_on_hyphens=False, break_long_words=False)
    parts = [
        part
        for line in lines
        for part in (re.split("(?<=__)", line) if len(line) > letters else [line])
    ]
    return "\n".join(textwrap.fill(part, letters, break_on_hyphens=False) for part in parts)


def _draw_errors(group: Group) -> Any:
    from imbmargin.plotting import PerClassErrorDisplay

    first, names = group.records[0], _short_names(group.by_method)
    errors = {
        _wrapped(names[name], _LEGEND_LETTERS): np.mean(
            np.array([r["per_class_error"] for r in records], dtype=float), axis=0
        )
        for name, records in group.by_method.items()
    }
    if len(errors) > _MOST_BARS:
        reference, *others = errors
        best = sorted(others, key=lambda name: np.nanmean(errors[name]))[: _FEW_BARS - 1]
        errors = {name: errors[name] for name in errors if name in (reference, *best)}
    return PerClassErrorDisplay(errors, first["class_counts"], first["classes"]).plot().figure_


def _panels(titles: dict[str, str], columns: int, size: tuple[float, float], **kwargs: Any) -> Any:
    """Return a figure and one of its axes for each name, with its title."""
    import matplotlib.pyplot as plt

    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(size[0] * columns, size[1] * rows),
        layout="constrained",
        squeeze=False,
        **kwargs,
    )
    for ax in axes.flat[len(titles) :]:
        ax.remove()
    for ax in axes.flat[max(0, len(titles) - columns) : len(titles)]:
        # Also where the axes below, which would have them, are removed.
        ax.tick_params(labelbottom=True)
    panels = dict(zip(titles, axes.flat, strict=False))
    for name, ax in panels.items():
        # A name with other arguments is longer than a panel is wide.
        ax.set_title(_wrapped(titles[name], _TITLE_LETTERS), loc="right", fontsize="medium")
    return figure, panels


def _draw_curves(group: Group) -> Any:
    from imbmargin.plotting import TrainingCurvesDisplay

    shown = {n: rs[0] for n, rs in group.by_method.items() if "history" in rs[0]}
    figure, panels = _panels(_titles(group, shown), 2, (4, 2.6))
    for name, ax in panels.items():
        record = shown[name]
        TrainingCurvesDisplay(record["history"], record["deferred_epoch"]).plot(ax)
    return figure


def _draw_tests(group: Group) -> Any:
    curves = {
        name: _test_curve(records)
        for name, records in group.by_method.items()
        if "history" in records[0]
    }
    figure, panels = _panels(_titles(group, curves), 4, (2.4, 1.9), sharex=True, sharey=True)
    for name, ax in panels.items():
        for epochs, errors in curves.values():
            ax.plot(epochs, errors, color="0.85", linewidth=1)
        ax.plot(*curves[name], color="#0072b2", linewidth=1.8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("epochs")
    figure.supylabel("test error (%)")
    return figure


def _test_curve(records: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    rows = [[row for row in r["history"] if "test_error" in row] for r in records]
    errors = 100 * np.mean([[row["test_error"] for row in part] for part in rows], axis=0)
    return np.array([row["epoch"] for row in rows[0]]), errors


def _draw_margins(group: Group) -> Any:
    shown = {n: rs[0]["margins"] for n, rs in group.by_method.items() if "margins" in rs[0]}
    figure, panels = _panels(_titles(group, shown), 4, (2.4, 1.9), sharex=True)
    low, first, middle, third, high = range(len(MARGIN_QUANTILES))
    for name, ax in panels.items():
        boxes = [
            {
                "whislo": values[low],
                "q1": values[first],
                "med": values[middle],
                "q3": values[third],
                "whishi": values[high],
            }
            for values in shown[name]
        ]
        look = {"boxprops": {"facecolor": "#56b4e9"}, "medianprops": {"color": "black"}}
        numbers = np.arange(1, len(boxes) + 1)
        ax.bxp(boxes, numbers, widths=0.6, showfliers=False, patch_artist=True, **look)
        ax.axhline(0, color="0.5", linewidth=1)
        ax.set_xticks(numbers[[0, -1]], ["head", "tail"])
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("classes, from the most frequent to the rarest")
    figure.supylabel("margin")
    return figure
