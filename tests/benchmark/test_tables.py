import json

import numpy as np
import pytest
from PIL import Image

from imbmargin.benchmark.cli import main
from imbmargin.benchmark.jobs import DataSpec, Job
from imbmargin.benchmark.paper import PAPER_EPOCHS, table_arguments, table_jobs
from imbmargin.benchmark.published import paper_tables, schedule_note
from imbmargin.benchmark.runner import read_records
from imbmargin.benchmark.table import group_records
from imbmargin.data import cifar
from imbmargin.methods import AFTER, TABLE1

LT100 = DataSpec("cifar/", None, "long_tailed", 100.0, dataset="cifar10")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """CIFAR-10 with 12 training and 2 test images of 8 x 8 pixels of each class."""
    monkeypatch.setattr(cifar, "_ROWS", {"training": 120, "test": 20})
    rng = np.random.default_rng(0)
    root = tmp_path / "cifar"
    for part, n in (("train", 12), ("test", 2)):
        for label in range(10):
            (root / part / f"class{label}").mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / f"class{label}" / f"{i}.png")
    return root


def run(table, folder, out, *more):
    options = ["--seeds", "1", "--epochs", "2", "--jobs", "1", "--out", str(out), "--ratio", "10"]
    return main(["benchmark", table, "--data", str(folder), *options, *more])


def test_all_methods_of_table_1_run_and_a_second_start_runs_nothing(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("table1", folder, out) == 0
    printed = capsys.readouterr().out
    assert "2 epochs in place of the papers' 200" in printed
    records = read_records(out / "jobs")
    assert {record["job"]["method"] for record in records} == set(TABLE1)
    lines = printed[printed.index("Table 1, error (%) of the best epoch") :].splitlines()
    assert [line.split()[0] for line in lines[3 : 3 + len(TABLE1)]] == list(TABLE1)
    erm = next(record for record in records if record["job"]["method"] == "ERM")
    assert lines[3].split()[1] == "13.61"
    assert lines[3].split()[2] == f"{100 * erm['best_epoch']['error']:.2f}"
    ssp = next(record for record in records if record["job"]["method"] == "LDAM-DRW+SSP")
    assert ssp["pretraining"]["epochs"] == 2
    times = {path.name: path.stat().st_mtime_ns for path in (out / "jobs").glob("*.json")}
    (out / "report.html").unlink()
    assert run("table1", folder, out) == 0
    assert times == {p.name: p.stat().st_mtime_ns for p in (out / "jobs").glob("*.json")}
    page = (out / "report.html").read_text()
    assert "Table 1, error (%) of the last epoch" in page
    assert page.count("data:image/png") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_a_record_has_what_a_researcher_needs(folder, tmp_path):
    out = tmp_path / "out"
    arguments = ["--methods", "MM-DRW", "--set", "criterion__scale=10", "delta_neg=0.5"]
    assert run("table1", folder, out, *arguments) == 0
    [record] = read_records(out / "jobs")
    assert dict(record["job"]["arguments"]) == {
        "beta": 1.2,
        "criterion__scale": 10,
        "delta_neg": 0.5,
    }
    assert [("test_error" in row) for row in record["history"]] == [False, True]
    assert record["best_epoch"] == {"epoch": 2, "error": record["history"][1]["test_error"]}
    confusion = np.array(record["confusion"])
    assert confusion.sum() == 20
    assert 1 - confusion.trace() / 20 == pytest.approx(record["history"][1]["test_error"])
    assert np.array(record["margins"]).shape == (10, 5)
    assert record["environment"]["cpu"]
    assert "--set criterion__scale=10" in record["command"]
    [group] = group_records([record])
    [(caption, rows)] = paper_tables(group)
    assert caption.startswith("Other arguments")
    assert rows[1][0] == "MM-DRW criterion__scale=10 delta_neg=0.5"


def test_a_cache_changes_no_result(folder, tmp_path):
    arguments = ["--methods", "ERM", "--cache", str(tmp_path / "cache")]
    assert run("table1", folder, tmp_path / "a", *arguments) == 0
    assert run("table1", folder, tmp_path / "b", *arguments[:2]) == 0
    [cached], [plain] = (read_records(tmp_path / name / "jobs") for name in "ab")
    assert cached["history"] == plain["history"]
    names = [path.name for name in "ab" for path in (tmp_path / name / "jobs").glob("*.json")]
    assert names[0] == names[1]
    assert list((tmp_path / "cache").iterdir())


def test_methods_that_go_on_after_training_have_a_row_without_a_published_figure(
    folder, tmp_path, capsys
):
    assert run("table1", folder, tmp_path, "--methods", "ERM", *AFTER, "VS") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*AFTER, "VS"):
        found = [line.split() for line in lines if line.split()[:1] == [name]]
        # Only what has epochs has a best one.
        assert len(found) == (1 if name in AFTER else 2)
        assert all(line[1] == "-" and line[2] != "-" for line in found)
    records = read_records(tmp_path / "jobs")
    assert all(("history" in r) == (r["job"]["method"] not in AFTER) for r in records)


def test_the_margins_of_table_1_are_the_best_of_tables_2_and_3():
    for setting, beta in (("cifar10_lt_100", 1.5), ("cifar100_step_100", 1.8)):
        for method in ("MM", "MM-DRW", "MM-LDAM-DRW"):
            assert table_arguments(method, setting)["beta"] == beta
    assert table_arguments("MM-DRW", "cifar10_lt_50") == {}
    assert table_arguments("ERM", "cifar10_lt_100") == {}


def test_table_2_has_the_published_grid_and_shares_a_job_with_table_1():
    arguments = ([LT100], ["MM-DRW"], 2, PAPER_EPOCHS, "bfloat16", {})
    grid, [*row] = table_jobs("table2", *arguments), table_jobs("table1", *arguments)
    assert [dict(job.arguments)["beta"] for job in grid[:3]] == [1.4, 1.5, 1.6]
    assert [job.seed for job in grid] == [0, 0, 0, 1, 1, 1]
    assert set(row) < set(grid)
    with pytest.raises(ValueError, match="setting must be one of"):
        table_jobs("table2", [DataSpec("c", None, "step", 50.0, dataset="cifar10")], *arguments[1:])


def make_record(job, error, best, seed=0):
    return {
        "status": "done",
        "job": json.loads(json.dumps({**job.__dict__, "data": job.data.__dict__, "seed": seed})),
        "scores": {"accuracy": 1 - error},
        "best_epoch": {"epoch": 1, "error": best},
    }


def test_differences_are_those_of_the_mean_from_the_published_figure():
    [job] = table_jobs("table1", [LT100], ["LDAM-DRW"], 1, 200, "bfloat16", {})
    records = [make_record(job, 0.25, 0.24), make_record(job, 0.26, 0.22, seed=1)]
    tables = dict(paper_tables(group_records(records)[0]))
    best = tables["Table 1, error (%) of the best epoch, chosen on the test set"]
    assert best[1] == ["LDAM-DRW", "22.97", "23.00 ± 1.41", "+0.03", "2"]
    assert tables["Table 1, error (%) of the last epoch"][1][2:4] == ["25.50 ± 0.71", "+2.53"]


def test_the_grid_stands_beside_the_published_one():
    jobs = table_jobs("table2", [LT100], [], 1, 200, "bfloat16", {})
    records = [make_record(job, 0.25, 0.2224) for job in jobs]
    tables = dict(paper_tables(group_records(records)[0]))
    grid = tables["Tables 2 and 3, error (%) of MM-DRW over beta and delta_neg"]
    assert grid[1] == ["beta 1.4, delta_neg 0.6", "22.24", "22.24", "25.00", "+0.00", "1"]
    assert len(grid) == 4


def test_a_result_counts_wherever_the_data_set_lies(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run("table1", folder, out, "--methods", "ERM") == 0
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.setattr("imbmargin.benchmark.runner.run_job", None)
    assert run("table1", moved, out, "--methods", "ERM") == 0
    batches = DataSpec(str(tmp_path / "batches"), dataset="cifar10")
    before = Job(batches, "ERM", 0, 1).file_name
    (tmp_path / "batches" / "cifar-10-batches-py").mkdir(parents=True)
    assert Job(batches, "ERM", 0, 1).file_name != before


def test_results_of_the_same_data_set_in_other_folders_belong_together():
    [job] = table_jobs("table1", [LT100], ["ERM"], 1, 200, "float32", {})
    moved = make_record(job, 0.3, 0.3, seed=1)
    moved["job"]["data"]["source"] = "elsewhere"
    assert len(group_records([make_record(job, 0.3, 0.3), moved])) == 1


def test_settings_that_were_not_published_have_no_figure():
    spec = DataSpec("cifar/", None, "long_tailed", 50.0, dataset="cifar10")
    [job] = table_jobs("table1", [spec], ["ERM"], 1, 200, "float32", {})
    tables = paper_tables(group_records([make_record(job, 0.3, 0.3)])[0])
    assert tables[0][1][1] == ["ERM", "-", "30.00", "-", "1"]


def test_a_part_of_the_images_has_no_published_figure():
    spec = DataSpec("cifar/", None, "long_tailed", 100.0, n_max=500, dataset="cifar10")
    jobs = table_jobs("table2", [spec], [], 1, 200, "float32", {})
    tables = dict(paper_tables(group_records([make_record(job, 0.3, 0.3) for job in jobs])[0]))
    assert not any("Tables 2 and 3" in caption for caption in tables)
    for rows in (rows for caption, rows in tables.items() if caption.startswith("Table 1")):
        assert rows[1:] == [["MM-DRW", "-", "30.00", "-", "1"]]
    assert len(tables["Other arguments, error (%)"]) == 3


def test_the_schedule_is_told():
    assert schedule_note(200) == "200 epochs, as in the papers."
    assert "2 of warm-up, drops of the rate after 80 and 90" in schedule_note(100)
    # One epoch of warm-up would be at the full rate.
    assert "no warm-up, drops of the rate after 6 and 7" in schedule_note(8)
    assert "no warm-up, drops of the rate after 4, deferral after 4" in schedule_note(5)
    assert "no drop of the rate" in schedule_note(1)


@pytest.mark.parametrize(
    ("table", "more", "message"),
    [
        ("table1", ["--methods", "SMOTE+MLP"], "table1 has no rows ['SMOTE+MLP']"),
        ("table2", ["--methods", "MM-DRW"], "--methods is for table1"),
        ("table3", [], "table3 is not of cifar10"),
        ("table1", ["--dataset", "cifar100"], "has 10 classes in its training part, cifar100 has"),
        ("table1", ["--ratio", "100"], "pass imbalance_ratio=12 or less"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_training(
    folder, tmp_path, capsys, table, more, message
):
    assert run(table, folder, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_half_copied_data_set_is_said_before_any_training(folder, tmp_path, capsys):
    (folder / "test" / "class1" / "0.png").unlink()
    assert run("table1", folder, tmp_path / "out") == 2
    assert "has 1 test images of class 'class1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1"], "table1 needs --data with the folder of CIFAR"),
        (["table1", "--data", ".", "--download"], "--download needs --dataset, one of ['cifar10'"),
        (["table1", "--data", ".", "--target", "y"], "leave out --target, --image-size and --imba"),
        (["table1", "--data", ".", "--imbalance", "none"], "leave out --target, --image-size and"),
        (["--download"], "--dataset and --download belong to table1"),
        (["--set", "beta=2"], "--set is for the networks"),
        (["--dask", "tcp://host:1", "--jobs", "2"], "--jobs is for this machine"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, message):
    assert main(["benchmark", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_assignment_without_a_name_prints_the_usage(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--set", "scale"])
    assert "must have the form name=value, got 'scale'" in capsys.readouterr().err
