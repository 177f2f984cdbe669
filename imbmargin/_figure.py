"""What the figures share: colours, axes, names of classes, bars and counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COLORS",
    "DASHES",
    "GREY",
    "MARKERS",
    "axes_inches",
    "describe_counts",
    "draw_bars",
    "draw_counts_behind",
    "finish_axes",
    "make_axes",
    "name_classes",
    "running_mean",
    "scale_for_counts",
    "series_look",
]

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
# For bars what dashes are for lines, where colours come again.
HATCHES = ("", "///", "...", "xxx")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
GREY = "0.4"


def make_axes(ax: Any, n_axes: int = 1) -> tuple[Any, Any]:
    """Return ``ax``, or the axes of a new figure, and the figure."""
    if ax is None:
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("figures need matplotlib: pip install imbmargin[plot]") from error
        _, ax = plt.subplots(n_axes, figsize=(6, 4), sharex=True, layout="constrained")
    if np.size(ax) != n_axes:
        raise ValueError(f"ax must be {n_axes} axes, got {np.size(ax)}; see plt.subplots({n_axes})")
    return ax, np.ravel(ax)[0].figure


def series_look(i: int) -> dict[str, str]:
    """Return colour and dashes of series i: different for the first 28."""
    dashes = DASHES[i // len(COLORS) % len(DASHES)]
    return {"color": COLORS[i % len(COLORS)], "linestyle": dashes}


def finish_axes(ax: Any, legend: bool = True, percent: bool = False) -> None:
    """Lighten the frame, and put the legend above it, where it covers no data."""
    from matplotlib.ticker import PercentFormatter

    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.3, linewidth=0.6)
    ax.set_axisbelow(True)
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    if legend:
        longest = max(len(label) for label in ax.get_legend_handles_labels()[1])
        columns = max(1, int(axes_inches(ax) / (0.065 * longest + 0.5)))
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        ax.legend(ncols=columns, frameon=False, fontsize=9, **place)


def axes_inches(ax: Any) -> float:
    return float(ax.get_position().width * ax.figure.get_figwidth())


def draw_bars(ax: Any, values: Mapping[str, NDArray[Any]], **kwargs: Any) -> None:
    """Draw series side by side; as marks on lines where bars would be too narrow."""
    width = 0.8 / len(values)
    for i, (name, value) in enumerate(values.items()):
        rank, look = np.arange(len(value)), series_look(i)
        if len(values) * len(value) <= 60:
            fill: dict[str, Any] = {"label": name, "color": look["color"]}
            if hatch := HATCHES[i // len(COLORS) % len(HATCHES)]:
                fill |= {"hatch": hatch, "edgecolor": "white", "linewidth": 0}
            ax.bar(rank + (i + 0.5) * width - 0.4, value, width, **fill | kwargs)
        else:
            marks = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "linewidth": 0.8}
            ax.plot(rank, value, **{"label": name} | look | marks | kwargs)


def name_classes(ax: Any, labels: NDArray[Any], rows: str, counts: NDArray[Any] | None) -> bool:
    """Name the classes under the axis, turned if they are long; or their ranks, if too many."""
    room = axes_inches(ax) / len(labels)
    if room < 0.16:
        ax.set_xlabel(f"rank of the class, from most to fewest {rows}")
        ax.set_xlim(0.5, len(labels) + 0.5)
        return False
    names = [str(label) if len(str(label)) <= 20 else f"{str(label)[:19]}…" for label in labels]
    numbers = [] if counts is None else [f"{count:,}" for count in counts]
    turned = max(map(len, names + numbers)) * 0.075 > room
    if counts is not None:
        pairs = zip(names, numbers, strict=True)
        names = [f"{name} ({n})" if turned else f"{name}\n{n}" for name, n in pairs]
        ax.set_xlabel(f"class and its {rows}")
    style: dict[str, Any] = {"fontsize": 9, "parse_math": False}
    if turned:
        style |= {"rotation": 45, "rotation_mode": "anchor", "ha": "right"}
        style |= {} if room > 0.25 else {"rotation": 90, "va": "center"}
    ax.set_xticks(np.arange(len(names)), names, **style)
    return True


def describe_counts(count: NDArray[Any]) -> str:
    empty = int((count == 0).sum())
    ratio = count.max() / count[count > 0].min()
    text = f"{count.sum():,} rows, imbalance ratio {ratio:.4g}"
    return text + (f", empty classes: {empty}" if empty else "")


def scale_for_counts(ax: Any, counts: NDArray[Any]) -> float:
    """Make the y-axis logarithmic, from below the rarest class; return its foot."""
    rarest, commonest = counts[counts > 0].min(), counts.max()
    foot = max(0.5, 10 ** np.floor(np.log10(rarest) - 0.1))
    ax.set(yscale="log", ylim=(foot, 10 ** np.ceil(np.log10(commonest) + 0.02)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return float(foot)


def draw_counts_behind(ax: Any, counts: NDArray[Any]) -> None:
    """Draw the counts in grey on a second axis behind the first."""
    behind = ax.twinx()
    foot = scale_for_counts(behind, counts)
    behind.stairs(counts, np.arange(len(counts) + 1) + 0.5, baseline=foot, fill=True, color="0.92")
    behind.set_ylabel("training rows", color=GREY)
    behind.tick_params(colors=GREY, which="both")
    behind.spines[["top", "left", "bottom"]].set_visible(False)
    ax.set_zorder(behind.get_zorder() + 1)
    ax.patch.set_visible(False)


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over a tenth of the classes around each, leaving out NaN."""
    window = np.ones(len(values) // 10 | 1)
    known = ~np.isnan(values)
    total = np.convolve(np.where(known, values, 0), window, mode="same")
    number = np.convolve(known, window, mode="same")
    return np.divide(total, number, out=np.full(len(values), np.nan), where=number > 0.5)
