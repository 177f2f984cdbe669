"""Training in two processes on the CPU, against one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from imbmargin import MaxMarginClassifier, load_model, save_model
from imbmargin.distributed import DistributedClassifier
from imbmargin.samplers import BatchParts, ClassSampler
from tests import launched

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
OPTIONS = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]


def free_port():
    """Return a port that nobody uses; older versions of Accelerate do not look for one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("launched")


@pytest.fixture(scope="module")
def printed(folder):
    """What two processes print in all scenarios."""
    ran = subprocess.run(
        [*LAUNCH, *OPTIONS, f"--main_process_port={free_port()}", "-m", "tests.launched", folder],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def two(printed, folder):
    """What each of two processes found."""
    results = [joblib.load(folder / f"{index}.joblib") for index in range(2)]
    assert [result["processes"] for result in results] == [2, 2]
    return results


def assert_equal(one, other):
    """Hold two results against each other that may differ by rounding only."""
    torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(one["counts"], other["counts"])
    np.testing.assert_allclose(one["error"], other["error"], atol=0.02)
    for mine, others in zip(one["losses"], other["losses"], strict=True):
        np.testing.assert_allclose(
            np.array(mine, float), np.array(others, float), rtol=1e-3, equal_nan=True
        )


def test_weights_and_counts_are_those_of_one_process(two, tmp_path):
    alone = launched.weighted(tmp_path)
    assert alone["class_weight"] is not None
    for result in two:
        assert_equal(result["weighted"], alone)
        assert torch.equal(result["weighted"]["class_weight"], alone["class_weight"])


def test_a_dataset_is_shared_too(two, tmp_path):
    assert_equal(two[0]["loaded"], launched.loaded(tmp_path))


@pytest.mark.parametrize("scenario", ["weighted", "loaded", "normalized", "resumed"])
def test_all_processes_end_with_the_same_bits(two, scenario):
    first, second = (result[scenario] for result in two)
    assert first["losses"] == second["losses"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_rows_are_shared_and_drawn_at_the_rates_of_all_rows(two):
    first, second = (result["resampled"] for result in two)
    for mine, others in zip(first[:2], second[:2], strict=True):
        assert sorted(mine + others) == list(range(301))
    assert first[0] != first[1]
    for mine, others in zip(first[2:], second[2:], strict=True):
        drawn = np.bincount(launched.Y[mine + others], minlength=3)
        # 100 of each class are expected, with a standard deviation of 8; by rows it were 30.
        assert drawn.sum() == 301
        assert (abs(drawn - 100) < 40).all()
        # Draws with replacement coincide now and then; equal draws would coincide always.
        assert len({*mine} ^ {*others}) > 50


def test_an_interrupted_run_goes_on(two, tmp_path):
    whole = launched.found(launched.fitted())
    assert_equal(two[0]["resumed"], whole)
    assert len(two[0]["resumed"]["losses"]) == 4


def test_one_process_goes_on_where_two_were(two, folder):
    net = launched.fitted(checkpoint_dir=launched.FOLDER.format(folder), max_epochs=4)
    # It is done: nothing is trained again.
    assert_equal(launched.found(net), two[0]["resumed"])


def test_where_one_stops_all_do(two):
    assert [result["stopped"] for result in two] == [2, 2]


def test_what_does_not_fit_together_is_refused_by_all(two):
    for result in two:
        errors = result["refused"]
        assert "data: rows were 301, now 300" in errors["data"]
        assert "lr was 0.1, now 0.2" in errors["parameters"]
        assert "at least 4 rows" in errors["batch_size"]
        assert "device='cpu:0'" in errors["device"]


def test_the_first_process_prints_alone(printed):
    assert printed.count("train_loss") == 1


def test_batches_of_the_users_own_are_refused(table):
    net = DistributedClassifier(iterator_train=DataLoader, iterator_train__shuffle=True)
    with pytest.raises(TypeError, match="leave iterator_train"):
        net.fit(*table)


def test_a_launch_that_accelerate_does_not_see_is_refused(table, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched"):
        DistributedClassifier(max_epochs=1).fit(*table)


def test_missing_accelerate_is_named_with_its_extra(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"imbmargin\[distributed\]"):
        DistributedClassifier(max_epochs=1).fit(*table)


def test_predicting_and_files_need_no_accelerate(table, tmp_path, monkeypatch):
    net = DistributedClassifier(max_epochs=2, random_state=0).fit(*table)
    save_model(net, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    loaded = load_model(tmp_path / "model.safetensors")
    assert isinstance(loaded, MaxMarginClassifier)
    np.testing.assert_array_equal(loaded.predict_proba(table[0]), net.predict_proba(table[0]))


def test_a_rest_that_is_too_small_joins_the_batch_before():
    parts = [BatchParts(ClassSampler([0, 1] * 9 + [1]), 8, index, 2) for index in range(2)]
    assert parts[0].sizes == [8, 11]
    for part in parts:
        part.start_epoch(seed=3)
    assert [[len(rows) for rows in part] for part in parts] == [[4, 5], [4, 6]]
