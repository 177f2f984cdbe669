import re

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier

from imbmargin.benchmark.across import METRICS, compare_tables, share_scores
from imbmargin.benchmark.ranks import mean_ranks
from imbmargin.benchmark.report import write_report
from imbmargin.benchmark.scores import scores
from imbmargin.benchmark.table import group_records

TABLES, METHODS, SEEDS = ("a", "b", "c"), ("ERM", "MM-DRW", "LightGBM"), (0, 1)


def make_record(table, method, seed, value, tail=0):
    data = {"source": f"keel:{table}", "imbalance": "long_tailed" if tail else "none"}
    return {
        "format": 1,
        "job": {
            "data": data | {"ratio": float(tail or 20)},
            "method": method,
            "seed": seed,
            "epochs": 5,
            "precision": "float32",
        },
        "environment": {"python": "3.11"},
        "command": "imbmargin benchmark tabular",
        "status": "done",
        "class_counts": [75, 25],
        "test_counts": [15, 5],
        "scores": {
            **dict.fromkeys(METRICS, value),
            "log_loss": 1 - value,
            "accuracy": value,
            **dict.fromkeys(("many_error", "medium_error", "few_error"), 1 - value),
        },
        "seconds": {"fit": 10 * value, "predict": 0.1},
    }


VALUES = np.array([[0.5, 0.9, 0.7], [0.6, 0.6, 0.8], [0.55, 0.95, 0.65]])


@pytest.fixture
def records():
    return [
        # The second fold is a little better: scores are means over the folds.
        make_record(table, method, seed, VALUES[t, m] + 0.02 * seed)
        for t, table in enumerate(TABLES)
        for m, method in enumerate(METHODS)
        for seed in SEEDS
    ]


def fail(record):
    kept = {key: record[key] for key in ("format", "job", "environment", "command")}
    return {**kept, "status": "failed", "error": "ValueError: no", "traceback": ""}


def test_ranks_and_scores_are_means_over_folds_then_tables(records):
    [found] = compare_tables(group_records(records))
    assert (found.names, found.methods, found.folds) == (list(TABLES), list(METHODS), 2)
    np.testing.assert_allclose(found.scores["balanced_accuracy"], VALUES + 0.01)
    np.testing.assert_array_equal(found.ranks("balanced_accuracy"), mean_ranks(VALUES))
    np.testing.assert_array_equal(found.ranks("log_loss"), mean_ranks(VALUES))
    head, first, *_ = found.rank_rows()
    assert head == ["method", *METRICS.values(), "seconds", "p against MM-DRW"]
    assert first == ["MM-DRW", "1.50", "1.50", "1.50", "1.50", "1.50", "9.10", "-"]
    assert found.score_rows()[1] == ["MM-DRW", "82.7", "82.7", "82.7", "82.7", "0.173", "9.10"]
    assert found.table_rows()[1][:2] == ["a", "91.0 (9.10 s)"]
    assert found.best(of_ranks=True)["log-loss"] == "MM-DRW"


def test_a_failure_counts_as_the_shares_and_is_told(records, tmp_path):
    broken = [fail(r) if r["job"]["method"] == "MM-DRW" else r for r in records]
    [found] = compare_tables(group_records(broken))
    assert found.names == list(TABLES)
    assert (found.scores["geometric_mean"][:, 1] == 0).all()
    assert found.score_rows()[3][-1] == "-"
    write_report(broken, tmp_path)
    assert "a, MM-DRW, seed 0 failed: ValueError: no" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ([75, 25], [15, 5]),
        ([20, 30, 50], [4, 6, 11]),
        ([20, 30, 50], [4, 0, 11]),
        ([20, 30, 50], [4, 6, 0]),
    ],
)
def test_the_scores_of_the_shares_are_those_of_a_dummy(train, test):
    y_train, y_test = (np.repeat(np.arange(len(n)), n) for n in (train, test))
    dummy = DummyClassifier(strategy="prior").fit(y_train[:, None], y_train)
    predicted, probability = (f(y_test[:, None]) for f in (dummy.predict, dummy.predict_proba))
    expected = scores(y_test, predicted, probability, np.array(train), np.arange(len(train)))
    for metric, value in share_scores(train, test).items():
        assert value == pytest.approx(expected[metric])


def test_a_table_without_all_jobs_is_left_out_and_named(records):
    [found] = compare_tables(group_records(records[:-1]))
    assert found.names == ["a", "b"]
    assert "Left out, because a method lacks a fold: c." in found.describe()


def test_subsets_of_a_table_are_entries_and_training_lengths_are_apart(records):
    tailed = [make_record("a", m, s, 0.5, tail) for m in METHODS for s in SEEDS for tail in (20, 9)]
    [found] = compare_tables(group_records([*records, *tailed]))
    assert found.names == ["a", "b", "c", "a 20", "a 9"]
    tailed[0]["job"]["epochs"] = 6
    assert [f.job["epochs"] for f in compare_tables(group_records([*records, tailed[0]]))] == [5, 6]


def test_ranks_among_the_kinds_of_tables(records):
    [one_kind] = compare_tables(group_records(records))
    assert one_kind.kind_rows() == []
    tail = [make_record("d", "ERM", seed, 0.9, tail=20) for seed in SEEDS]
    tail += [make_record("d", "MM-DRW", seed, 0.8, tail=20) for seed in SEEDS]
    tail += [make_record("d", "LightGBM", seed, 0.7, tail=20) for seed in SEEDS]
    [found] = compare_tables(group_records(records + tail))
    head, *body = found.kind_rows()
    assert head[1::2] == ["balanced acc., 3 as they are", "balanced acc., 1 long-tailed"]
    ranks = mean_ranks(VALUES)
    expected = {name: [f"{ranks[i]:.2f}"] for i, name in enumerate(METHODS)}
    assert {row[0]: row[1:2] for row in body} == expected
    assert {row[0]: row[3] for row in body} == {"ERM": "1.00", "MM-DRW": "2.00", "LightGBM": "3.00"}


def test_the_report_has_tables_and_a_diagram_for_each_score(records, tmp_path):
    write_report(records, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == sorted(f"ranks-1-{metric}.png" for metric in METRICS)
    assert page.count("<img ") == len(METRICS)
    assert page.count("<table>") == 3
    assert '<td class="best">1.50</td>' in page
    assert "Friedman&#x27;s test that all are equal, p: balanced acc." in page
    for name in re.findall(r"\(figures/(.*?)\)", text):
        assert name in figures
    assert "| MM-DRW | 1.50 |" in text
    assert "Many, medium and few" not in page


def test_two_methods_are_ranked_without_tests(records, tmp_path):
    few = [record for record in records if record["job"]["method"] != "LightGBM"]
    [found] = compare_tables(group_records(few))
    assert "p against MM-DRW" not in found.rank_rows()[0]
    write_report(few, tmp_path)
    assert not list((tmp_path / "figures").iterdir())


@pytest.mark.parametrize("broken_off", [True, False])
def test_where_no_table_is_complete_the_report_says_so(records, tmp_path, broken_off):
    if broken_off:
        left = [r for r in records if r["job"]["seed"] == 0 or r["job"]["method"] == "ERM"]
    else:
        left = [fail(record) for record in records]
    [found] = compare_tables(group_records(left))
    assert found.names == []
    assert "Left out, because a method lacks a fold: a, b, c." in found.describe()
    write_report(left, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Left out, because a method lacks a fold: a, b, c." in text
    assert ("a, MM-DRW, seed 0 failed: ValueError: no" in text) is not broken_off
