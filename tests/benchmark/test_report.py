import csv
import re
from urllib.parse import unquote

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from imbmargin.benchmark.figures import _draw_errors, _panels, _short_names, _wrapped
from imbmargin.benchmark.report import write_report
from imbmargin.benchmark.table import as_csv, as_markdown, as_text, group_records


def make_record(method, seed, accuracy, **changes):
    scores = {
        "accuracy": accuracy,
        "balanced_accuracy": accuracy,
        "geometric_mean": accuracy,
        "many_error": 1 - accuracy,
        "medium_error": None,
        "few_error": 1 - accuracy,
    }
    return {
        "format": 1,
        "job": {
            "data": {"source": "a<b", "imbalance": "step", "ratio": 10.0},
            "method": method,
            "seed": seed,
            "epochs": 3,
            "precision": "float32",
        },
        "environment": {"python": "3.11", "gpu": None},
        "command": "imbmargin benchmark --data 'a<b'",
        "status": "done",
        "images": False,
        "settings": {"batch_size": 32},
        "sample_shape": [4],
        "n_train": 1100,
        "n_test": 50,
        "classes": ["x", "y"],
        "class_counts": [1000, 100],
        "test_counts": [25, 25],
        "scores": scores,
        "per_class_error": [1 - accuracy, 1 - accuracy],
        "seconds": {"fit": 1.0, "predict": 0.1},
        "history": [{"epoch": e, "train_loss": 1 / e} for e in (1, 2, 3)],
        "deferred_epoch": 2,
        "rows_per_second": 3300.0,
        **changes,
    }


def make_failure(method):
    record = make_record(method, 0, 0.5)
    return {
        **{key: record[key] for key in ("format", "job", "environment")},
        "status": "failed",
        "error": "ValueError: too few <rows>",
        "traceback": "",
    }


RECORDS = [
    make_record("MM-DRW", 0, 0.9),
    make_record("MM-DRW", 1, 0.8),
    make_record("ERM", 0, 0.7),
    make_failure("SMOTE+MLP"),
]


def test_rows_have_mean_and_sample_deviation_in_the_order_of_the_methods():
    [group] = group_records(RECORDS)
    head, erm, mm = group.rows()
    assert head == ["method", "accuracy", "balanced acc.", "G-mean", "many err.", "few err.",
                    "seconds", "runs"]  # fmt: skip
    assert erm[:2] == ["ERM", "70.0"]
    assert mm[:2] == ["MM-DRW", f"85.0 ± {np.std([90, 80], ddof=1):.1f}"]
    assert group.best()["accuracy"] == group.best()["few_error"] == "MM-DRW"
    assert group.title == "a<b, step, ratio 10, 3 epochs"


def test_numbers_of_runs_stand_in_the_table_where_they_differ(tmp_path):
    [group] = group_records(RECORDS)
    assert [row[-1] for row in group.rows()] == ["runs", "1", "2"]
    write_report(RECORDS, tmp_path)
    assert "| seconds | runs |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    [group] = group_records(RECORDS[1:3])
    assert [row[-1] for row in group.rows()] == ["seconds", "1.0", "1.0"]


def with_arguments(record, **arguments):
    record["job"]["arguments"] = [[name, value] for name, value in arguments.items()]
    return record


def test_the_seconds_hold_the_pretraining():
    records = [make_record("MM-DRW", 0, 0.9), make_record("LDAM-DRW+SSP", 0, 0.9)]
    records[0]["pretraining"] = None
    records[1]["pretraining"] = {"epochs": 3, "seconds": 2.5}
    [group] = group_records(records)
    assert [row[-1] for row in group.rows()] == ["seconds", "3.5", "1.0"]
    rows = csv.DictReader(as_csv([group]).splitlines())
    assert {row["method"]: row["fit_seconds"] for row in rows}["LDAM-DRW+SSP"] == "3.5"


def test_further_arguments_come_after_the_plain_method_by_their_size():
    records = [make_record("MM-DRW", 0, 0.5) for _ in range(4)]
    for record, scale in zip(records[1:], (10, 5, 2.5), strict=True):
        record["job"]["arguments"] = [["criterion__scale", scale]]
    [group] = group_records([*records[::-1], *RECORDS[2:3]])
    assert list(group.by_method) == [
        "ERM",
        "MM-DRW",
        "MM-DRW criterion__scale=2.5",
        "MM-DRW criterion__scale=5",
        "MM-DRW criterion__scale=10",
    ]


def test_an_argument_that_is_none_is_not_the_default():
    records = [make_record("ERM", 0, 0.5), make_record("ERM", 0, 0.7)]
    with_arguments(records[1], augment=None)
    [group] = group_records(records)
    assert list(group.by_method) == ["ERM", "ERM augment=None"]
    assert [row[1] for row in group.rows()[1:]] == ["50.0", "70.0"]
    rows = csv.DictReader(as_csv([group]).splitlines())
    assert {row["method"]: row["accuracy"] for row in rows}["ERM augment=None"] == "0.7"


def test_settings_that_all_jobs_replace_are_not_told(tmp_path):
    def told(*records):
        for record in records:
            record["settings"] = {"batch_size": 32, "lr_schedule": "cosine"}
        write_report(list(records), tmp_path)
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        return re.findall(r"Settings other than the defaults: (.*?)\.", text)

    def own():
        return with_arguments(make_record("ERM", 0, 0.5), batch_size=64)

    assert told(own()) == ["lr_schedule cosine"]
    assert told(own(), make_record("ERM", 0, 0.5)) == ["batch_size 32, lr_schedule cosine"]
    # A method's own are arguments too.
    assert told(make_record("BBN", 0, 0.5)) == ["batch_size 32"]
    assert told(with_arguments(make_record("BBN", 0, 0.5), batch_size=64)) == []


def test_other_settings_are_other_groups():
    other = make_record("ERM", 0, 0.5)
    other["job"]["epochs"] = 4
    assert len(group_records([*RECORDS, other])) == 2


def test_data_that_changed_are_other_groups(tmp_path):
    old, new, earlier = (make_record("ERM", 0, accuracy) for accuracy in (0.5, 0.7, 0.9))
    for record, state in ((old, "abc"), (new, "def")):
        record["job"]["data"] = {**record["job"]["data"], "state": state}
    # A class was added.
    new |= {"classes": ["x", "y", "z"], "class_counts": [1000, 100, 50], "test_counts": [25] * 3}
    new["per_class_error"] = [0.3] * 3
    groups = write_report([old, new, earlier], tmp_path)
    title = "a<b, step, ratio 10, 3 epochs, data"
    assert {group.title: len(group.records) for group in groups} == {
        f"{title} abc": 1,
        f"{title} def": 1,
        f"{title} of an earlier version": 1,
    }
    assert [group.title for group in group_records([old, old])] == ["a<b, step, ratio 10, 3 epochs"]


def test_titles_say_what_tells_groups_apart():
    one, other, third = (make_record("ERM", 0, 0.5) for _ in range(3))
    for record, changes in ((one, {}), (other, {"target": "fraud"}), (third, {"n_max": 40})):
        record["job"]["data"] = {**record["job"]["data"], "target": "late", **changes}
    title = "a<b, step, ratio 10, 3 epochs"
    assert [group.title for group in group_records([one])] == [title]
    assert [group.title for group in group_records([one, other])] == [
        f"{title}, target late",
        f"{title}, target fraud",
    ]
    titles = [group.title for group in group_records([one, other, third])]
    assert titles[2] == f"{title}, target late, n_max 40"
    assert len(set(titles)) == 3


def test_the_text_is_in_columns():
    [group] = group_records(RECORDS)
    lines = as_text(group.rows()).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert as_markdown(group.rows()).splitlines()[1].startswith("| --- | ---: |")


def test_the_csv_has_each_job_as_it_was_measured():
    rows = list(csv.DictReader(as_csv(group_records(RECORDS)).splitlines()))
    assert [row["accuracy"] for row in rows] == ["0.9", "0.8", "0.7"]
    assert {row["data"] for row in rows} == {"a<b, step, ratio 10, 3 epochs"}


def test_the_page_holds_all_and_asks_for_nothing(tmp_path):
    write_report(RECORDS, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3
    assert len(re.findall('<img src="data:image/png;base64,', page)) == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "a&lt;b, step" in page
    assert "<code>imbmargin benchmark --data &#x27;a&lt;b&#x27;</code>" in page
    assert "a<b" not in page
    assert "SMOTE+MLP, seed 0 failed: ValueError: too few &lt;rows&gt;" in page
    assert '<td class="best">85.0' in page
    assert "Measured with python 3.11." in page
    assert "Settings other than the defaults: batch_size 32." in page
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    for name in re.findall(r"\(figures/(.*?)\)", markdown):
        assert (tmp_path / "figures" / unquote(name)).is_file()


def test_links_to_figures_hold_no_blanks(tmp_path):
    for source, prefix in (("my photos (new)", "my%20photos%20%28new%29"), ("a-b_c.1", "a-b_c")):
        record = make_record("ERM", 0, 0.5)
        record["job"]["data"] = {**record["job"]["data"], "source": source}
        write_report([record], tmp_path)
        markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
        names = re.findall(r"\]\(figures/(.*)\)", markdown)
        assert names == [f"{prefix}-1-{name}.png" for name in ("classes", "errors", "curves")]
        assert all((tmp_path / "figures" / unquote(name)).is_file() for name in names)


def test_a_failure_is_told_with_its_arguments(tmp_path):
    write_report([with_arguments(make_failure("ERM"), batch_size=64)], tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- ERM batch_size=64, seed 0 failed: ValueError: too few" in markdown


def test_a_group_in_which_all_failed_is_reported(tmp_path):
    write_report([make_failure("ERM")], tmp_path)
    assert "too few" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "too few" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["history", "rows_per_second"])
def test_methods_without_epochs(tmp_path, key):
    records = [make_record("EasyEnsemble", 0, 0.6)]
    del records[0][key]
    write_report(records, tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("count", [9, 10])
def test_of_many_methods_the_first_and_the_best_have_bars(count):
    names = ["ERM", "Focal", "LDAM", "MM", "CB-RS", "CB-RW", "M-DRW", "BSCE", "LA", "VS"][:count]
    records = [make_record(name, 0, (3 + i) / 20) for i, name in enumerate(names)]
    [group] = group_records(records)
    figure = _draw_errors(group)
    (legend,) = [legend for ax in figure.axes if (legend := ax.get_legend())] or figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == (names if count == 9 else ["ERM", "M-DRW", "BSCE", "LA", "VS"])
    plt.close(figure)


def test_figures_leave_out_the_arguments_that_all_methods_have():
    names = ["ERM lr=[0.1, 0.2] scale=10", "NCM lr=[0.1, 0.2] scale=3", "cRT lr=[0.1, 0.2]"]
    assert list(_short_names(names).items()) == [
        (names[0], "ERM scale=10"),
        (names[1], "NCM scale=3"),
        (names[2], "cRT"),
    ]
    assert _short_names(names[:1]) == {names[0]: names[0]}


def test_long_names_stay_over_their_panels():
    names = [f"{name} criterion__scale=10" for name in ("LDAM-DRW", "MM-DRW", "MM-LDAM-DRW")]
    figure, panels = _panels({name: name for name in names}, 4, (2.4, 1.9))
    figure.canvas.draw()
    for name, ax in panels.items():
        method, argument = name.split(" ")
        texts = ax.findobj(Text)
        (title,) = [text for text in texts if text.get_text() == f"{method}\n{argument}"]
        assert ax.bbox.x0 <= title.get_window_extent().x0
        assert title.get_window_extent().x1 <= ax.bbox.x1 + 1
    plt.close(figure)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("MM-DRW criterion__scale=10", ["MM-DRW", "criterion__scale=10"]),
        ("criterion__max_margin=0.2", ["criterion__", "max_margin=0.2"]),
        ("ERM optimizer__weight_decay=0.0005", ["ERM", "optimizer__", "weight_decay=0.0005"]),
        ("a__long_name_without_a_place", ["a__", "long_name_without_a", "_place"]),
    ],
)
def test_long_names_break_behind_a_prefix(name, lines):
    assert _wrapped(name, 19) == "\n".join(lines)


def test_average_precision_stands_in_the_table_of_two_classes():
    records = [make_record("ERM", 0, 0.9), make_record("MM", 0, 0.8)]
    for record, precision in zip(records, (0.25, 0.5), strict=True):
        record["scores"]["average_precision"] = precision
    [group] = group_records(records)
    head, erm, _ = group.rows()
    assert erm[head.index("avg. precision")] == "25.0"
    assert group.best()["average_precision"] == "MM"
    for record in records:
        record |= {"class_counts": [1000, 100, 10], "classes": ["x", "y", "z"]}
    [group] = group_records(records)
    assert "avg. precision" not in group.rows()[0]
