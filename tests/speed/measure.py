"""Rounds of contenders, their medians and ratios, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from imbmargin._hardware import cpu_name, gpu_name

PACKAGES = ("torch", "torchvision", "scikit-learn", "skorch", "numpy", "imbmargin")


@dataclass(frozen=True)
class Sample:
    """What one run of a contender gave: a value in the comparison's unit, and what else it saw."""

    value: float
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Contenders that do the same work.

    ``references`` maps a contender to those that are divided by it.
    """

    title: str
    unit: str
    contenders: dict[str, Callable[[], Sample]]
    references: dict[str, Iterable[str]]
    note: str = ""
    skipped: dict[str, str] = field(default_factory=dict)


def run_rounds(comparison: Comparison, rounds: int, warm_up: bool = True) -> dict[str, Any]:
    """Run A B C A B C ... after a warm-up of each, and return what goes into the JSON file."""
    samples: dict[str, list[Sample]] = {name: [] for name in comparison.contenders}
    for turn in range(-int(warm_up), rounds):
        for name, run in comparison.contenders.items():
            sample = run()
            if turn >= 0:
                samples[name].append(sample)
    raw = {name: [sample.value for sample in found] for name, found in samples.items()}
    return {
        "title": comparison.title,
        "unit": comparison.unit,
        "note": comparison.note,
        "rounds": rounds,
        "contenders": {name: _summary(found) for name, found in samples.items()},
        "ratios": _ratios(raw, comparison.references),
        "skipped": comparison.skipped,
    }


def _summary(samples: list[Sample]) -> dict[str, Any]:
    raw = [sample.value for sample in samples]
    return {
        "median": median(raw),
        "min": min(raw),
        "max": max(raw),
        "raw": raw,
        "extra": [sample.extra for sample in samples],
    }


def _ratios(
    raw: dict[str, list[float]], references: dict[str, Iterable[str]]
) -> dict[str, dict[str, Any]]:
    """Return reference -> contender -> median of the ratios of the rounds, and all of them."""
    found: dict[str, dict[str, Any]] = {}
    for reference, names in references.items():
        found[reference] = {}
        for name in names:
            pairs = zip(raw[name], raw[reference], strict=True)
            ratios = [value / base for value, base in pairs]
            found[reference][name] = {"median": median(ratios), "raw": ratios}
    return found


def as_table(result: dict[str, Any]) -> str:
    """Return the result of a comparison as a Markdown table."""
    extras = _names_of_extras(result)
    head = ["contender", "median", "min", "max"]
    head += [f"/ {reference}" for reference in result["ratios"]] + extras
    rows = []
    for name, found in result["contenders"].items():
        row = [name, *(_digits(found[key]) for key in ("median", "min", "max"))]
        for ratios in result["ratios"].values():
            row.append(f"{ratios[name]['median']:.2f}" if name in ratios else "")
        row += [_middle([x[key] for x in found["extra"] if key in x]) for key in extras]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    cells = (" | ".join(map(str.ljust, line, widths)) for line in lines)
    title = f"\n{result['title']}: {result['unit']}, {result['rounds']} rounds"
    notes = [result["note"]] if result["note"] else []
    notes += [f"{name}: skipped, {cause}" for name, cause in result["skipped"].items()]
    return "\n".join([title, "", *(f"| {line} |" for line in cells), "", *notes])


def _names_of_extras(result: dict[str, Any]) -> list[str]:
    extras = (extra for found in result["contenders"].values() for extra in found["extra"])
    return list(dict.fromkeys(key for extra in extras for key in extra))


def _middle(values: list[Any]) -> str:
    if not values or isinstance(values[-1], str):
        return values[-1] if values else ""
    return _digits(median(values))


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def environment() -> dict[str, Any]:
    """Return versions, processor, threads, command and date."""
    gpu = gpu_name()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        **({"gpu": gpu} if gpu else {}),
        "torch threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "command": " ".join(["python -m tests.speed", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_json(folder: Path, case: str, results: list[dict[str, Any]]) -> Path:
    """Write the comparisons of a case, with the environment, into one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{case}.json"
    content = {"case": case, "environment": environment(), "comparisons": results}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


MARK = "<!-- What follows is written by python -m tests.speed --page. -->"


def as_page(paths: Iterable[Path]) -> str:
    """Return the tables of the files that are there, with what they were measured with."""
    parts = []
    for path in paths:
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            parts.append(f"\n## {content['case']}\n")
            parts += [as_table(result) for result in content["comparisons"]]
            measured = ", ".join(f"{key} {value}" for key, value in content["environment"].items())
            parts.append(f"\nMeasured with {measured}.")
    return "\n".join(parts) + "\n"


def write_page(page: Path, paths: Iterable[Path]) -> None:
    """Write the tables into a page, below the mark."""
    text = page.read_text(encoding="utf-8").partition(MARK)[0]
    page.write_text(text + MARK + "\n" + as_page(paths), encoding="utf-8")
