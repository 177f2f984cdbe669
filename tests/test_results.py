"""The pages show what the result files hold."""

import re
from pathlib import Path

import numpy as np
import pytest

from imbmargin.benchmark.across import compare_tables
from imbmargin.benchmark.collection import tables
from imbmargin.benchmark.contenders import BASELINES
from imbmargin.benchmark.published import last_errors
from imbmargin.benchmark.runner import read_records
from imbmargin.benchmark.table import as_markdown, group_records, spread

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/jobs"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_run_is_done_and_tells_how_it_was_made(folder):
    records = read_records(folder / "jobs")
    assert len(records) == len(list((folder / "jobs").glob("*.json")))
    for record in records:
        assert record["command"].startswith("imbmargin benchmark")
        # An error of another package is a result too, which the report names.
        assert record["status"] == "done" or record["job"]["method"] in BASELINES
        assert record["environment"]["torch"]
        assert np.isfinite([row["train_loss"] for row in record.get("history", [])]).all()
        # A result belongs to no machine.
        assert not Path(record["job"]["data"]["source"]).is_absolute()
        assert 'File "/' not in record.get("traceback", "")


@pytest.mark.parametrize(
    "name",
    [
        "cifar10-lt100-200",
        "cifar10-lt100-200-combined",
        "cifar10-lt100-40-float32",
        "cifar10-lt100-40",
        "cifar10-step100-40",
        "digits",
        "digits-hinge",
        "digits-scale",
        "digits-160",
        "digits-10-seeds",
    ],
)
def test_the_tables_of_the_page_are_those_of_the_report(name):
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    report = (RESULTS / name / "report.md").read_text(encoding="utf-8")
    rows = [line for line in report.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert all(row in page for row in rows)


def test_the_report_is_that_of_the_files():
    [group] = group_records(read_records(RESULTS / "digits" / "jobs"))
    report = (RESULTS / "digits" / "report.md").read_text(encoding="utf-8")
    assert as_markdown(group.rows()) in report


def test_the_differences_over_ten_seeds():
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    [group] = group_records(read_records(RESULTS / "digits-10-seeds" / "jobs"))
    accuracy = {
        name: {r["job"]["seed"]: 100 * r["scores"]["balanced_accuracy"] for r in records}
        for name, records in group.by_method.items()
    }
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+ ± .+) \| (\d+) of 10 \|$", page, re.MULTILINE)
    assert len(rows) == 15
    for method, other, difference, better in rows:
        found = [accuracy[method][seed] - accuracy[other][seed] for seed in range(10)]
        error = np.std(found, ddof=1) / np.sqrt(10)
        assert difference == f"{np.mean(found):+.1f} ± {error:.1f}"
        assert int(better) == np.sum(np.array(found) > 0)


def test_the_ranks_and_scores_of_tables_are_those_of_the_files():
    folder = RESULTS / "tabular-judged"
    [found] = compare_tables(group_records(read_records(folder / "jobs")))
    assert found.left_out == []
    report = (folder / "report.md").read_text(encoding="utf-8")
    page = (DOCS / "tabular.md").read_text(encoding="utf-8")
    for rows in (found.rank_rows(), found.kind_rows(), found.score_rows()):
        assert as_markdown(rows) in report
        assert as_markdown(rows) in page
    assert len(found.names) == len(tables("judged"))


def test_the_precisions_on_the_speed_page():
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    groups = group_records(read_records(RESULTS / "precision" / "jobs"))
    assert len(groups) == 2
    for group in groups:
        records = sorted(group.records, key=lambda record: record["job"]["seed"])
        errors = last_errors(records)
        cells = [*(f"{error:.2f}" for error in errors), spread(errors, 2)]
        row = " | ".join([group.job["precision"], *cells])
        assert f"| {row} |" in page


def test_linked_files_exist():
    for page in [*DOCS.glob("*.md"), *RESULTS.glob("*/report.md")]:
        text = page.read_text(encoding="utf-8")
        for part in text.split("](")[1:]:
            target = part.split(")")[0]
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)
