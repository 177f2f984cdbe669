import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

from imbmargin.benchmark import jobs
from imbmargin.benchmark.contenders import (
    CONTENDERS,
    DEFAULT_METHODS,
    make_contender,
    training_settings,
)
from imbmargin.benchmark.jobs import DataSpec, Job, environment, load_data, run_job
from imbmargin.benchmark.scores import scores
from imbmargin.methods import METHODS

IRIS = DataSpec("iris", imbalance="long_tailed", ratio=5)


@pytest.mark.parametrize("method", DEFAULT_METHODS)
def test_a_job_measures_what_a_user_would(method):
    job = Job(IRIS, method, seed=1, epochs=10)
    record = run_job(job)
    data = load_data(IRIS, 1)
    counts = np.unique(data.y_train, return_counts=True)[1]
    training = {"max_epochs": 10, "random_state": 1}
    model = make_contender(method, image_shape=None, class_counts=counts, **training)
    predicted = model.fit(data.X_train, data.y_train).predict(data.X_test)
    assert record["status"] == "done"
    assert record["scores"]["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(data.y_test, predicted)
    )
    error = [np.mean(predicted[data.y_test == c] != c) for c in record["classes"]]
    np.testing.assert_allclose(record["per_class_error"], error)
    assert record["class_counts"] == [35, 15, 7]
    assert (record["n_train"], record["n_test"]) == (57, 45)
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_groups_without_classes_have_no_error():
    found = run_job(Job(IRIS, "ERM", 0, 2))["scores"]
    assert found["many_error"] is None
    assert found["few_error"] is not None


def test_a_class_without_test_rows_counts_for_no_mean():
    y, classes = np.array(list("aaabbb")), np.array(list("abc"))
    predicted = np.array(list("aacbbb"))
    probability = np.eye(3)[np.searchsorted(classes, predicted)]
    found = scores(y, predicted, probability, np.array([30, 20, 10]), classes)
    assert found["balanced_accuracy"] == pytest.approx(5 / 6)
    assert found["geometric_mean"] == pytest.approx((2 / 3) ** 0.5)
    assert found["macro_f1"] == pytest.approx((0.8 + 1) / 2)


def test_the_record_tells_where_re_weighting_begins():
    assert run_job(Job(IRIS, "MM-DRW", 0, 5))["deferred_epoch"] == 4
    record = run_job(Job(IRIS, "ERM", 0, 5))
    assert record["deferred_epoch"] is None
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3, 4, 5]
    assert record["rows_per_second"] == pytest.approx(57 * 5 / record["seconds"]["fit"])


def test_a_failure_becomes_a_record():
    record = run_job(Job(DataSpec("iris", imbalance="long_tailed", ratio=35), "SMOTE+MLP", 0, 2))
    assert record["status"] == "failed"
    assert "n_samples" in record["error"]
    assert "Traceback" in record["traceback"]
    assert 'File "imbmargin' in record["traceback"]
    assert str(Path(__file__).parents[2]) not in record["traceback"]


def test_every_method_of_a_seed_sees_the_same_rows_and_seeds_differ():
    jobs._load.cache_clear()
    first = load_data(IRIS, 0)
    other = load_data(IRIS, 1)
    again = load_data(IRIS, 0)
    np.testing.assert_array_equal(first.X_train, again.X_train)
    np.testing.assert_array_equal(first.X_test, again.X_test)
    assert not np.array_equal(first.X_test, other.X_test)


def test_a_folder_with_a_test_part_is_decoded_once_for_all_seeds(tmp_path):
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (8, 8), i).save(tmp_path / part / name / f"{i}.png")
    data = DataSpec(str(tmp_path), imbalance="step", ratio=2)
    assert load_data(data, 0) is load_data(data, 1)
    assert load_data(data, 0).X_train.shape == (6, 1, 8, 8)


def test_a_step_and_a_smaller_head():
    data = load_data(DataSpec("wine", imbalance="step", ratio=5, n_max=20), 0)
    assert np.unique(data.y_train, return_counts=True)[1].tolist() == [20, 20, 4]


def test_in_a_table_of_a_user_the_frequent_class_stays_frequent(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "\n".join(f"{i},{'a' if i < 30 else 'b'}" for i in range(100)))
    data = load_data(DataSpec(str(path), "y", "long_tailed", ratio=7), 0)
    assert dict(zip(*np.unique(data.y_train, return_counts=True), strict=True)) == {"a": 7, "b": 49}


def test_file_names_differ_with_every_setting(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,0\n")
    job = Job(DataSpec(str(path), "y"), "ERM", 0, 10)
    others = [
        replace(job, method="MM"),
        replace(job, seed=1),
        replace(job, epochs=11),
        replace(job, precision="bfloat16"),
        replace(job, data=replace(job.data, imbalance="step")),
        replace(job, data=replace(job.data, ratio=3.0)),
    ]
    names = {other.file_name for other in others}
    assert len(names) == len(others)
    assert job.file_name not in names
    assert job.file_name == replace(job).file_name
    os.utime(path, ns=(0, 0))
    changed = replace(job, data=DataSpec(str(path), "y"))
    assert changed.file_name not in names | {job.file_name}
    # What changes while a job runs does not change where its result is.
    assert job.file_name == replace(job).file_name


def test_a_folder_whose_images_change_has_other_results(tmp_path):
    def name():
        return Job(DataSpec(str(tmp_path)), "ERM", 0, 1).file_name

    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.new("L", (8, 8), i).save(tmp_path / label / f"{i}.png")
    first = name()
    top = tmp_path.stat().st_mtime_ns
    assert name() == first
    Image.new("L", (8, 8)).save(tmp_path / "a" / "3.png")
    with_another = name()
    os.utime(tmp_path / "a" / "3.png", ns=(0, 0))
    with_another_time = name()
    (tmp_path / "a" / "3.png").rename(tmp_path / "b" / "3.png")
    assert len({first, with_another, with_another_time, name()}) == 4
    (tmp_path / "b" / "3.png").unlink()
    (tmp_path / "a" / "notes.txt").write_text("is no image")
    assert name() == first
    assert tmp_path.stat().st_mtime_ns == top


def test_data_that_change_are_loaded_anew(tmp_path):
    path = tmp_path / "t.csv"
    for n in (20, 30):
        path.write_text("a,y\n" + "\n".join(f"{i},{i % 2}" for i in range(n)))
        data = load_data(DataSpec(str(path), "y"), 0)
        assert len(data.y_train) + len(data.y_test) == n


def test_the_names_of_results_of_embedded_data_stay():
    assert Job(IRIS, "ERM", 0, 10).file_name == "iris--ERM--seed0--b021c0bc25.json"


def test_contenders_have_names_that_are_files_names():
    assert all("/" not in name and " " not in name for name in CONTENDERS)
    with pytest.raises(ValueError, match=r"methods must be among \['ERM', .*got 'Nope'"):
        make_contender(
            "Nope", image_shape=None, class_counts=np.ones(2), max_epochs=1, random_state=0
        )


def test_small_data_have_settings_of_their_own_unless_others_are_given():
    small = {
        "image_shape": (1, 8, 8),
        "class_counts": np.array([300, 30]),
        "max_epochs": 1,
        "random_state": 0,
    }
    model = make_contender("MM-DRW", **small)
    assert (model.module, model.batch_size, model.lr_schedule) == ("resnet20", 32, "cosine")
    assert make_contender("BBN", **small).lr_schedule == "early_step"
    given = make_contender("BBN", **small, lr_schedule="step", batch_size=8)
    assert (given.lr_schedule, given.batch_size) == ("step", 8)
    assert training_settings(400, (3, 32, 32)) == {"batch_size": 32, "lr_schedule": "cosine"}
    assert training_settings(400, None) == {"batch_size": 32, "module": "tabm"}
    assert training_settings(10**6, None)["batch_size"] == 256
    assert training_settings(5000, (1, 8, 8)) == {}


@pytest.mark.parametrize("method", [m for m in METHODS if m != "LDAM-DRW+SSP"])
def test_a_table_has_an_ensemble_where_the_method_takes_one(method, table):
    X, y = table
    classifier = make_contender(
        method, image_shape=None, class_counts=np.bincount(y), max_epochs=2, random_state=0
    )
    one_head = {"IB", "L-Softmax", "BBN", "MW-Net", "tau-norm", "NCM", "cRT", "LWS", "MM-cRT"}
    network = "mlp" if method in one_head | {"BALMS"} else "tabm"
    assert getattr(classifier, "estimator", classifier).module == network
    assert classifier.fit(X, y).predict(X).shape == y.shape


def test_environment_names_versions_and_hardware():
    found = environment()
    assert {"python", "torch", "imbmargin", "cores", "platform"} <= found.keys()
