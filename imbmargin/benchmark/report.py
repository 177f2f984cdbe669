"""From records to a report: tables, figures, and one page that holds them all."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from imbmargin.benchmark.table import COLUMNS, Group, as_csv, as_markdown, group_records

__all__ = ["write_report"]

_NOTES = (
    "Scores are those after the last epoch, on the test part, in percent; mean ± standard "
    "deviation over the seeds. Every method of a seed has the same training and test rows. Many, "
    "medium and few: error of classes with more than 100, 20 to 100, and fewer than 20 training "
    "rows. Seconds are those of fit. Methods train an MLP on tables and a ResNet on images; the "
    "MLP behind the over-samplers is the same as on tables."
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th { border-bottom: 2px solid #888; } td.best { font-weight: 700; }
img { max-width: 100%; height: auto; } figure { margin: 1.5rem 0; }
figcaption, .small { color: #555; font-size: .875rem; } .failed { color: #a40000; }
code { overflow-wrap: anywhere; }
"""


def write_report(records: list[dict[str, Any]], out: Path) -> list[Group]:
    """Write the tables, figures and the page into a folder, and return the groups.

    Parameters
    ----------
    records : list of dict
        Records of jobs.
    out : Path
        Folder; gets report.html, report.md, results.csv and figures/.

    Returns
    -------
    groups : list of Group

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from imbmargin.benchmark.jobs import DataSpec, Job, run_job
    >>> from imbmargin.benchmark.report import write_report
    >>> record = run_job(Job(DataSpec("iris"), "ERM", seed=0, epochs=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_report([record], pathlib.Path(folder))
    ...     sorted(path.name for path in pathlib.Path(folder).iterdir())
    ['figures', 'report.html', 'report.md', 'results.csv']
    """
    groups = group_records(records)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    sections, markdown = [], ["# Benchmark", "", _NOTES, ""]
    markdown += [*(f"    {command}" for command in _commands(records)), ""]
    for number, group in enumerate(groups, 1):
        prefix = f"{Path(group.job['data']['source']).stem}-{number}"
        figures = _draw(group, folder, prefix) if group.records else []
        sections.append(_section(group, figures))
        markdown += _markdown_section(group, figures)
    markdown += ["", _environment(records), ""]
    (out / "report.html").write_text(_page(sections, records), encoding="utf-8")
    (out / "report.md").write_text("\n".join(markdown), encoding="utf-8")
    (out / "results.csv").write_text(as_csv(groups), encoding="utf-8")
    return groups


def _describe(group: Group) -> str:
    if not group.records:
        return ""
    first = group.records[0]
    kind = "images" if first["images"] else "rows"
    counts = first["class_counts"]
    shape = "x".join(str(size) for size in first["sample_shape"])
    seeds = len({record["job"]["seed"] for record in group.records})
    text = (
        f"{first['n_train']:,} training and {first['n_test']:,} test {kind} of {shape} values, "
        f"{len(counts)} classes with {max(counts):,} to {min(counts):,} training {kind}; "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}."
    )
    settings = ", ".join(f"{key} {value}" for key, value in first["settings"].items())
    text += f" Small data: {settings}." if settings else ""
    rates = [f"{name} {rate:,.0f}" for name, rate in _rates(group).items()]
    return text + (f" Training {kind} per second: {', '.join(rates)}." if rates else "")


def _rates(group: Group) -> dict[str, float]:
    """Median training rows per second of the methods that count epochs."""
    return {
        name: float(np.median([record["rows_per_second"] for record in records]))
        for name, records in group.by_method.items()
        if "rows_per_second" in records[0]
    }


def _failures(group: Group) -> list[str]:
    return [
        f"{r['job']['method']}, seed {r['job']['seed']} failed: {r['error']}" for r in group.failed
    ]


def _markdown_section(group: Group, figures: list[tuple[Path, str]]) -> list[str]:
    lines = [f"## {group.title}", "", _describe(group), ""]
    lines += [as_markdown(group), ""] if group.records else []
    lines += [f"![{text}](figures/{path.name})" for path, text in figures]
    return [*lines, "", *(f"- {failure}" for failure in _failures(group)), ""]


def _section(group: Group, figures: list[tuple[Path, str]]) -> str:
    parts = [f"<h2>{escape(group.title)}</h2>", f"<p>{escape(_describe(group))}</p>"]
    if group.records:
        parts.append(_table(group))
    parts += [f'<p class="failed">{escape(failure)}</p>' for failure in _failures(group)]
    for path, text in figures:
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(text)}">'
        parts.append(f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>")
    return "\n".join(parts)


def _table(group: Group) -> str:
    head, *rows = group.rows()
    headings = {heading: column for column, heading in COLUMNS.items()}
    best = group.best()
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        marks = [
            ' class="best"' if best.get(headings.get(name, "")) == row[0] else "" for name in head
        ]
        pairs = zip(marks, row, strict=True)
        cells = "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in pairs)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _commands(records: list[dict[str, Any]]) -> list[str]:
    return sorted({record["command"] for record in records if record.get("command")})


def _environment(records: list[dict[str, Any]]) -> str:
    seen = {", ".join(f"{k} {v}" for k, v in r["environment"].items() if v) for r in records}
    return "Measured with " + "; and with ".join(sorted(seen)) + "."


def _page(sections: list[str], records: list[dict[str, Any]]) -> str:
    commands = "<br>".join(f"<code>{escape(command)}</code>" for command in _commands(records))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>imbmargin benchmark</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>imbmargin benchmark</h1>
<p>{commands}</p>
<p>{escape(_NOTES)} Bold: the best mean.</p>
{"".join(sections)}
<p class="small">{escape(_environment(records))}</p>
</body>
</html>
"""


def _draw(group: Group, folder: Path, prefix: str) -> list[tuple[Path, str]]:
    """Draw the figures of a group; return their files and captions."""
    import matplotlib

    from imbmargin import plotting

    first = group.records[0]
    classes, counts = first["classes"], np.array(first["class_counts"])
    errors = {
        name: np.mean(np.array([r["per_class_error"] for r in records], dtype=float), axis=0)
        for name, records in group.by_method.items()
    }
    # Without a screen: the caller's choice of a backend is left alone.
    with matplotlib.rc_context({"figure.dpi": 150, "backend": "agg"}):
        splits = {"training": counts, "test": np.array(first["test_counts"])}
        drawn = {
            "classes": plotting.ClassDistributionDisplay(splits, classes).plot().figure_,
            "errors": plotting.PerClassErrorDisplay(errors, counts, classes).plot().figure_,
        }
        if any("history" in record for record in group.records):
            drawn["curves"] = _draw_curves(group)
    captions = {
        "classes": "Rows of each class.",
        "errors": "Error of each class, from the most frequent to the rarest; mean over the seeds.",
        "curves": "Training loss of the first seed; the dashed line is where re-weighting begins.",
    }
    return [
        _save(figure, folder / f"{prefix}-{name}.png", captions[name])
        for name, figure in drawn.items()
    ]


def _draw_curves(group: Group) -> Any:
    import matplotlib.pyplot as plt

    from imbmargin.plotting import TrainingCurvesDisplay

    shown = {n: rs[0] for n, rs in group.by_method.items() if "history" in rs[0]}
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    size = (4 * columns, 2.6 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel, (name, record) in zip(panels.flat, shown.items(), strict=False):
        display = TrainingCurvesDisplay(record["history"], record["deferred_epoch"])
        display.plot(panel).ax_.set_title(name, loc="right")
    for panel in panels.flat[len(shown) :]:
        panel.remove()
    return figure


def _save(figure: Any, path: Path, caption: str) -> tuple[Path, str]:
    import matplotlib.pyplot as plt

    figure.savefig(path)
    plt.close(figure)
    return path, caption
