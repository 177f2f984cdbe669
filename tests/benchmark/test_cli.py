import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imbmargin import __version__
from imbmargin.benchmark import cli
from imbmargin.benchmark.arguments import make_parser
from imbmargin.benchmark.cli import main
from imbmargin.benchmark.runner import read_records
from imbmargin.methods import METHODS


def test_a_benchmark_prints_a_table_and_writes_a_report(tmp_path, capsys):
    out = tmp_path / "out"
    methods = ["ERM", "MM-DRW", "BalancedRandomForest"]
    arguments = ["benchmark", "--data", "iris", "--ratio", "5", "--methods", *methods]
    arguments += ["--seeds", "2", "--epochs", "3", "--jobs", "1"]
    assert main([*arguments, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "iris, long-tailed, ratio 5, 3 epochs" in text
    assert text.index("ERM") < text.index("MM-DRW") < text.index("BalancedRandomForest")
    assert "balanced acc." in text
    assert f"Report: {out / 'report.html'}" in text
    assert len(read_records(out / "jobs")) == 6
    assert {path.name for path in out.iterdir()} == {
        "figures", "jobs", "report.html", "report.md", "results.csv",
    }  # fmt: skip
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").is_file()


def test_a_failed_job_is_reported_with_status_1(tmp_path, capsys):
    arguments = ["--data", "iris", "--ratio", "35", "--methods", "SMOTE+MLP", "ERM"]
    options = ["--seeds", "1", "--epochs", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["benchmark", *arguments, *options]) == 1
    text = capsys.readouterr().out
    assert "failed: SMOTE+MLP, seed 0: ValueError" in text
    assert "ERM" in text


def test_a_file_of_a_user_is_taken_as_it_is(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "\n".join(f"{i % 7},{int(i < 30)}" for i in range(300)))
    options = ["--methods", "ERM", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "o")]
    assert main(["benchmark", "--data", str(path), "--target", "y", *options]) == 0
    assert "t, as it is, 1 epochs" in capsys.readouterr().out
    [record] = read_records(tmp_path / "o" / "jobs")
    assert record["class_counts"] == [189, 21]


def test_a_folder_of_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 4)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    options = ["--methods", "MM-LDAM-DRW", "--seeds", "1", "--epochs", "2", "--image-size", "8"]
    subset = ["--imbalance", "long_tailed", "--ratio", "4", "--out", str(tmp_path / "o")]
    assert main(["benchmark", "--data", str(tmp_path), *options, *subset]) == 0
    [record] = read_records(tmp_path / "o" / "jobs")
    assert record["class_counts"] == [12, 3]
    assert record["sample_shape"] == [3, 8, 8]
    assert record["n_test"] == 8


def write_photos(folder):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 60 * i).save(folder / name / f"{i}.png")


def test_results_are_no_class_of_the_data(tmp_path, capsys, monkeypatch):
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "photos")
    run = ["benchmark", "--data", ".", "--methods", "ERM", "--seeds", "1", "--epochs", "1"]
    assert main(run) == 2
    assert "--out imbmargin-benchmark lies in ., where each folder" in capsys.readouterr().err
    assert main([*run, "--out", "../out", "--cache", "cache"]) == 2
    assert "; pass --cache with a folder elsewhere" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["a", "b"]
    assert main([*run, "--out", "../out"]) == 0
    assert "photos, as it is, 1 epochs" in capsys.readouterr().out
    write_photos(tmp_path / "split" / "train")
    write_photos(tmp_path / "split" / "test")
    run[2] = str(tmp_path / "split")
    assert main([*run, "--out", str(tmp_path / "split" / "test" / "out")]) == 2
    assert main([*run, "--out", str(tmp_path / "split" / "val" / "out")]) == 2
    assert main([*run, "--out", str(tmp_path / "split" / "out")]) == 0


def test_parts_are_known_by_all_their_names(tmp_path, capsys):
    write_photos(tmp_path / "Training")
    write_photos(tmp_path / "Validation")
    run = ["benchmark", "--data", str(tmp_path), "--methods", "ERM", "--seeds", "1"]
    run += ["--epochs", "1", "--jobs", "1", "--out"]
    assert main([*run, str(tmp_path / "Validation" / "out")]) == 2
    assert main([*run, str(tmp_path / "out")]) == 0
    [record] = read_records(tmp_path / "out" / "jobs")
    assert (record["n_train"], record["n_test"]) == (8, 8)
    write_photos(tmp_path / "val")
    assert main([*run, str(tmp_path / "out")]) == 2
    assert "has the folders ['Validation', 'val']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.csv"], "there is no file or folder none.csv; pass one, or one of"),
        (["--data", "{csv}"], "needs --target, the column of the labels"),
        (["--data", "{csv}", "--target", "z"], r"target='z' is not a column"),
        (["--data", "{empty}"], "has no class folders"),
        (["--ratio", "0.5"], "imbalance_ratio must be a number of at least 1, got 0.5"),
        (["--ratio", "1e6"], "leaves class"),
        (["--data", "{csv}", "--target", "y", "--ratio", "5"], "add --imbalance"),
        (["--data", "iris", "--out", "{csv}"], "cannot be written"),
        (["--data", "iris", "--target", "y"], "--target is for CSV and Parquet files, and --data"),
        (["--image-size", "8"], "--image-size is for folders of images, and --data has none"),
        (["--data", "{csv}", "--target", "y", "--cache", "c"], "--cache is for folders of images"),
        (
            ["--methods", "LDAM", "ERM", "cRT", "--set", "criterion__scale=10"],
            "losses do not take what is given for them: criterion__scale=10 with ERM, cRT; take it",
        ),
        (
            ["--methods", "VS", "CDT", "--set", "loss=mm"],
            "criterion__gamma=0.15 with VS; criterion__tau=1.25 with VS; criterion__gamma=0.2 with",
        ),
        (["--methods", "ERM", "--set", "loss=nope"], "loss must be one of ['balanced_softmax', "),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, arguments, message):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "\n".join(f"{i},{i % 2}" for i in range(20)))
    (tmp_path / "empty").mkdir()
    names = {"csv": path, "empty": tmp_path / "empty"}
    filled = [argument.format(**names) for argument in arguments]
    options = [] if "--out" in filled else ["--out", str(tmp_path / "o")]
    assert main(["benchmark", *filled, *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("imbmargin: error: ")
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "MMM"], "invalid choice: 'MMM'"),
        (["--epochs", "0"], "must be at least 1, got 0"),
        (["--imbalance", "huge"], "invalid choice: 'huge'"),
        (["--set", "max_epochs=3"], "max_epochs is set by the command: pass --epochs"),
        (["--set", "random_state=3"], "random_state is set by the command: pass --seeds"),
        (["--set", "precision=auto"], "precision is set by the command: pass --precision"),
        (["--set", "checkpoint_dir=x"], "checkpoint_dir is set by the command: leave it out"),
        (["--set", "callbacks=disable"], "callbacks is set by the command: leave it out"),
        (["--set", "class_weight={0: 2}"], "class_weight must be a number, a word"),
        (["--set", "module__hidden=[8]"], "as in 'module__hidden=(1, 2)'; got [8]"),
        (["--set", "delta_neg=1e999"], "delta_neg must be a number"),
    ],
)
def test_wrong_arguments_print_the_usage(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["benchmark", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_jobs", stop)
    assert main(["benchmark", "--data", "iris", "--out", str(tmp_path)]) == 130
    assert "goes on with the jobs that are left" in capsys.readouterr().err


def test_a_report_of_nothing(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "has no results" in capsys.readouterr().err


def test_a_damaged_result_is_told_by_its_name(tmp_path, capsys):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "iris--ERM.json").write_text("{")
    with pytest.warns(UserWarning, match=r"iris--ERM\.json is damaged, or no result of a job"):
        assert main(["report", str(tmp_path)]) == 2
    assert "has no results" in capsys.readouterr().err


def test_methods_prints_a_line_for_each(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS)
    row = next(line for line in lines if line.startswith("MM-LDAM-DRW"))
    assert "mm_ldam" in row
    assert "80%" in row
    assert "ClassifierRetraining" in next(line for line in lines if line.startswith("cRT"))


@pytest.mark.parametrize("arguments", [["--help"], ["benchmark", "--help"]])
def test_the_commands_that_the_help_teaches_are_understood(arguments, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(arguments)
    taught = re.findall(r"^  imbmargin (.+?)(?:   .*)?$", capsys.readouterr().out, re.MULTILINE)
    taught = [command.split() for command in taught if "--help" not in command]
    assert len(taught) >= 2
    for command in taught:
        make_parser().parse_args(command)


def test_the_example_of_set_runs(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    (example,) = re.findall(r"as in (--methods .*? --set \S+)", text)
    options = ["--data", "iris", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    run = ["benchmark", *shlex.split(example), *options, "--out", str(tmp_path)]
    assert main(run) == 0
    assert "criterion__scale=10" in capsys.readouterr().out


def test_a_loss_of_set_decides_what_its_arguments_are(tmp_path):
    run = ["benchmark", "--data", "iris", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    run += ["--methods", "ERM", "--set", "loss=mm", "criterion__scale=10", "--out", str(tmp_path)]
    assert main(run) == 0


def test_a_failed_job_is_told_with_its_arguments(tmp_path, capsys):
    run = ["benchmark", "--data", "iris", "--seeds", "1", "--epochs", "1", "--jobs", "1"]
    assert main([*run, "--methods", "ERM", "--set", "lr=-1", "--out", str(tmp_path)]) == 1
    assert "failed: ERM lr=-1, seed 0: ValueError" in capsys.readouterr().out
    assert "- ERM lr=-1, seed 0 failed: ValueError" in (tmp_path / "report.md").read_text()


def test_the_module_runs_as_a_command():
    code = "from imbmargin.benchmark.cli import main; main(['--version'])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == f"imbmargin {__version__}"
