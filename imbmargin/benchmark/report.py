"""From records to a report: tables, figures, and one page that holds them all."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from imbmargin.benchmark.across import METRICS, NOTES, Comparison, compare_tables
from imbmargin.benchmark.figures import draw_critical_difference, draw_figures
from imbmargin.benchmark.published import Table, paper_tables, schedule_note
from imbmargin.benchmark.table import (
    COLUMNS,
    Group,
    Rows,
    as_csv,
    as_markdown,
    group_records,
    method_label,
)
from imbmargin.methods import METHODS

__all__ = ["write_report"]

_NOTES = (
    "Scores are those after the last epoch, on the test part, in percent; mean ± standard "
    "deviation over the seeds. Every method of a seed has the same training and test rows. Many, "
    "medium and few: error of classes with more than 100, 20 to 100, and fewer than 20 training "
    "rows. Seconds are those of fit. Methods train TabM on tables (an MLP where a method looks "
    "into the network) and a ResNet on images; the network behind the over-samplers is that of ERM "
    "on tables."
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem;
  color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
th { border-bottom: 2px solid #888; } td.best { font-weight: 700; }
img { max-width: 100%; height: auto; } figure { margin: 1.5rem 0; }
caption { text-align: left; }
figcaption, caption, .small { color: #555; font-size: .875rem; } .failed { color: #a40000; }
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
    # In one order, whatever that of the records: figures are numbered by it.
    groups = sorted(group_records(records), key=lambda group: group.title)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    own = [group for group in groups if not group.is_keel]
    sections = [_of_group(group, folder, i) for i, group in enumerate(own, 1)]
    sections += [_of_tables(found, folder, i) for i, found in enumerate(compare_tables(groups), 1)]
    notes = " ".join([_NOTES] * bool(own) + [NOTES] * (len(own) < len(groups)))
    markdown = ["# Benchmark", "", notes, ""]
    markdown += [*(f"    {command}" for command in _commands(records)), ""]
    markdown += [line for section in sections for line in _markdown(section)]
    markdown += ["", _environment(records), ""]
    page = _page([_html(section) for section in sections], records, notes)
    (out / "report.html").write_text(page, encoding="utf-8")
    (out / "report.md").write_text("\n".join(markdown), encoding="utf-8")
    (out / "results.csv").write_text(as_csv(groups), encoding="utf-8")
    return groups


@dataclass(frozen=True)
class _Section:
    """A part of the report.

    Parameters
    ----------
    title, text : str
        Its heading, and what stands below.
    figures : list of (Path, str)
        Files and captions.
    failures : list of str
        What went wrong.
    tables : list of (str, rows)
        Captions and tables.
    best : list of dict of str to str
        Of each table, the method with the best value of a column, by the column's heading.
    """

    title: str
    text: str
    figures: list[tuple[Path, str]]
    failures: list[str]
    tables: list[Table]
    best: list[dict[str, str]] = field(default_factory=list)


def _of_group(group: Group, folder: Path, number: int) -> _Section:
    prefix = f"{group.name}-{number}"
    figures = draw_figures(group, folder, prefix) if group.records else []
    failures = [_failure(record) for record in group.failed]
    tables = _tables(group)
    best = {COLUMNS[column]: name for column, name in group.best().items()}
    return _Section(group.title, _describe(group), figures, failures, tables, [best] * len(tables))


def _of_tables(found: Comparison, folder: Path, number: int) -> _Section:
    failures = [f"{Group([], [r]).short_title}, {_failure(r)}" for r in found.failed]
    if not found.names:
        return _Section(found.title, found.describe(), [], failures, [])
    ranks, scores = found.best(of_ranks=True), found.best(of_ranks=False)
    tables = [
        ("Mean ranks (1 is the best)", found.rank_rows(), ranks),
        ("Mean ranks among tables as they are, and made long-tailed", found.kind_rows(), {}),
        ("Mean scores (%; log-loss in nats)", found.score_rows(), scores),
        ("Balanced accuracy (%) of each table, and seconds of fit", found.table_rows(), {}),
    ]
    shown = [(caption, rows, best) for caption, rows, best in tables if rows]
    figures = []
    if found.has_tests:
        figures = [
            draw_critical_difference(
                dict(zip(found.methods, found.ranks(metric), strict=True)),
                found.difference,
                folder / f"ranks-{number}-{metric}.png",
                heading,
            )
            for metric, heading in METRICS.items()
        ]
    return _Section(
        found.title,
        found.describe(),
        figures,
        failures,
        [(caption, rows) for caption, rows, _ in shown],
        [best for _, _, best in shown],
    )


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
    settings = ", ".join(f"{key} {value}" for key, value in _settings(group).items())
    text += f" Settings other than the defaults: {settings}." if settings else ""
    rates = [f"{name} {rate:,.0f}" for name, rate in _rates(group).items()]
    text += f" Training {kind} per second: {', '.join(rates)}." if rates else ""
    return text if group.setting is None else f"{schedule_note(group.job['epochs'])} {text}"


def _settings(group: Group) -> dict[str, Any]:
    """Return the settings of the data, without those that all jobs replace with arguments."""
    jobs = [record["job"] for record in group.records]
    own = [{*METHODS.get(job["method"], {}), *dict(job.get("arguments", []))} for job in jobs]
    replaced = set.intersection(*own)
    settings = group.records[0]["settings"]
    return {name: value for name, value in settings.items() if name not in replaced}


def _tables(group: Group) -> list[Table]:
    """Return the tables of a group, with their captions."""
    if not group.records:
        return []
    scores = [("Scores after the last epoch (%)", group.rows())]
    return scores if group.setting is None else [*paper_tables(group), *scores]


def _rates(group: Group) -> dict[str, float]:
    """Median training rows per second of the methods that count epochs."""
    return {
        name: float(np.median([record["rows_per_second"] for record in records]))
        for name, records in group.by_method.items()
        if "rows_per_second" in records[0]
    }


def _failure(record: dict[str, Any]) -> str:
    return f"{method_label(record)}, seed {record['job']['seed']} failed: {record['error']}"


def _markdown(section: _Section) -> list[str]:
    lines = [f"## {section.title}", "", section.text, ""]
    for caption, rows in section.tables:
        lines += [f"{caption}:", "", as_markdown(rows), ""]
    lines += [f"![{text}](figures/{quote(path.name)})" for path, text in section.figures]
    return [*lines, "", *(f"- {failure}" for failure in section.failures), ""]


def _html(section: _Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", f"<p>{escape(section.text)}</p>"]
    pairs = zip(section.tables, section.best, strict=True)
    parts += [_table(caption, rows, best) for (caption, rows), best in pairs]
    parts += [f'<p class="failed">{escape(failure)}</p>' for failure in section.failures]
    for path, text in section.figures:
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(text)}">'
        parts.append(f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>")
    return "\n".join(parts)


def _table(caption: str, rows: Rows, best: dict[str, str]) -> str:
    head, *others = rows
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = [f"<caption>{escape(caption)}</caption>", f"<tr>{cells}</tr>"]
    for row in others:
        marks = [' class="best"' if best.get(name) == row[0] else "" for name in head]
        pairs = zip(marks, row, strict=True)
        cells = "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in pairs)
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _commands(records: list[dict[str, Any]]) -> list[str]:
    return sorted({record["command"] for record in records if record.get("command")})


def _environment(records: list[dict[str, Any]]) -> str:
    seen = {", ".join(f"{k} {v}" for k, v in r["environment"].items() if v) for r in records}
    return "Measured with " + "; and with ".join(sorted(seen)) + "."


def _page(sections: list[str], records: list[dict[str, Any]], notes: str) -> str:
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
<p>{escape(notes)} Bold: the best mean.</p>
{"".join(sections)}
<p class="small">{escape(_environment(records))}</p>
</body>
</html>
"""
