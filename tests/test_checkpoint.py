"""Checkpoint files: what they hold, and what damage does."""

import errno
import os
import pickle

import numpy as np
import pytest
import torch

from imbmargin.checkpoint import CheckpointFolder, is_plain, pack, unpack


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(same(a, b) for a, b in pairs)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


STATE = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 3)}, 1: {}},
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "fused": True, "params": [0, 1]}],
    "half": torch.ones(2, dtype=torch.bfloat16),
    "scalar": torch.tensor(True),
    "random": ("MT19937", np.arange(5, dtype=np.uint32), 2),
    "none": None,
    "text": "a b",
}


def test_a_state_comes_back_as_it_was(tmp_path):
    folder = CheckpointFolder(tmp_path / "made" / "when needed")
    folder.write(1, STATE)
    assert same(folder.read(), STATE)


def test_infinite_numbers_and_numpy_numbers(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.write(1, {"best": -np.inf, "score": np.float64(0.1), "count": np.int64(3)})
    assert folder.read() == {"best": -np.inf, "score": 0.1, "count": 3}


def test_the_memory_format_of_weights_is_kept():
    weights = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    loaded = unpack(*pack(weights))
    assert loaded.stride() == weights.stride()
    assert torch.equal(loaded, weights)


@pytest.mark.parametrize("value", [object(), {1, 2}, len, np.array([None]), [lambda: 0]])
def test_other_objects_are_refused(value):
    with pytest.raises(TypeError, match="a checkpoint cannot hold"):
        pack({"key": value})
    assert not is_plain(value)


def test_the_two_newest_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for epoch in range(1, 6):
        folder.write(epoch, {"epoch": epoch})
    assert len(list(tmp_path.iterdir())) == 2
    assert folder.read() == {"epoch": 5}


def test_files_that_another_process_removes_are_passed_over(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    folder.write(1, {"epoch": 1})
    glob = type(tmp_path).glob

    def and_gone(path, pattern):
        return [path / pattern.replace("*", "000009"), *glob(path, pattern)]

    monkeypatch.setattr(type(tmp_path), "glob", and_gone)
    folder.write(2, {"epoch": 2})
    folder.write(3, {"epoch": 3})
    assert folder.read() == {"epoch": 3}
    assert len(list(tmp_path.iterdir())) == 2


def newest(tmp_path):
    return max(tmp_path.iterdir(), key=lambda path: path.name)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_file_falls_back_to_the_one_before(tmp_path, damage):
    folder = CheckpointFolder(tmp_path)
    for epoch in (1, 2):
        folder.write(epoch, {"epoch": epoch, "weights": torch.ones(8)})
    damage(newest(tmp_path))
    with pytest.warns(RuntimeWarning, match=r"epoch-000002.* is damaged .*the one before it"):
        assert folder.read()["epoch"] == 1
    damage(min(tmp_path.iterdir()))
    with pytest.warns(RuntimeWarning, match="or from the start"):
        assert folder.read() is None


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, call):
    folder = CheckpointFolder(tmp_path)
    folder.write(1, {"epoch": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.warns(RuntimeWarning, match="epoch 2 could not be written .*No space left"):
        folder.write(2, {"epoch": 2})
    monkeypatch.undo()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    assert folder.read() == {"epoch": 1}


def test_a_hostile_file_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    content = pickle.dumps(Hostile())
    (tmp_path / "epoch-000001.safetensors").write_bytes(content)
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert CheckpointFolder(tmp_path).read() is None
    assert not (tmp_path / "ran").exists()
