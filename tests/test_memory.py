"""Freed memory stays with the process during a training, and goes back at its end."""

import platform
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from imbmargin import MaxMarginClassifier, _memory
from imbmargin._memory import kept_memory, note, read_notes

on_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds"
)
# What malloc.h calls M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, and what they are set to.
BEGIN = [(-3, 32 * 2**20), (-1, 2**31 - 1)]
END = [(-3, 32 * 2**20), (-1, 64 * 2**20), "trimmed"]


@pytest.fixture
def calls(monkeypatch):
    """Note the calls of the C library's functions."""
    found = []
    library = SimpleNamespace(
        mallopt=lambda *args: found.append(args), malloc_trim=lambda rest: found.append("trimmed")
    )
    monkeypatch.setattr(_memory, "_find_library", lambda: library)
    return found


@pytest.fixture
def anew():
    """Let the library be looked for in the test, and after it."""
    _memory._find_library.cache_clear()
    yield
    _memory._find_library.cache_clear()


def test_a_training_begins_and_ends_it(table, calls):
    MaxMarginClassifier(max_epochs=2).fit(*table)
    assert calls == BEGIN + END


def test_no_tensor_of_a_batch_outlives_it(table):
    seen = []

    class Spied(MaxMarginClassifier):
        """Note what memory the losses have."""

        def get_loss(self, *args, **kwargs):
            assert all(earlier.expired() for earlier in seen[:-1])
            loss = super().get_loss(*args, **kwargs)
            seen.append(StorageWeakRef(loss.untyped_storage()))
            return loss

    clf = Spied(max_epochs=2, batch_size=16, train_split=0.2, random_state=0).fit(*table)
    losses = clf.history[:, "batches", :, "train_loss"]
    assert all(isinstance(loss, float) for epoch in losses for loss in epoch)
    assert len(seen) > sum(map(len, losses)) > 10


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_notes_are_the_numbers_of_small_tensors(shape, device):
    tensors = [torch.rand(shape, device=device, requires_grad=True) for _ in range(4)]
    notes = [note(tensor) for tensor in tensors]
    assert read_notes(notes) == torch.stack(tensors).tolist()
    assert all(isinstance(kept, torch.Tensor) is (device == "cuda") for kept in notes)
    assert not any(getattr(kept, "requires_grad", False) for kept in notes)
    assert read_notes([]) == []


def test_the_last_of_several_trainings_ends_it(calls):
    with kept_memory():
        with kept_memory():
            assert calls == BEGIN
        assert calls == BEGIN
    assert calls == BEGIN + END


def test_an_error_ends_it(calls):
    with pytest.raises(ZeroDivisionError), kept_memory():
        raise ZeroDivisionError
    assert calls == BEGIN + END


def test_trainings_in_threads(calls):
    def train(_):
        with kept_memory():
            return len(calls)

    with kept_memory(), ThreadPoolExecutor(4) as pool:
        assert set(pool.map(train, range(50))) == {2}
    assert calls == BEGIN + END


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_has_chosen_stays(anew, monkeypatch, name):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv(name, "1")
    assert _memory._find_library() is None
    with kept_memory():
        assert _memory._trainings == 0


def test_other_c_libraries_are_left_alone(anew, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert _memory._find_library() is None


def faults_of(work):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def fill_200_megabytes():
    # As in a training: all are needed until the way back.
    return len([torch.ones(25 * 2**18) for _ in range(8)])


@on_glibc
def test_pages_are_not_mapped_again(anew, monkeypatch):
    for name in _memory._CHOICES:  # Dask chooses in the process that starts its workers
        monkeypatch.delenv(name, raising=False)
    pages = 200 * 2**20 // 4096
    with kept_memory():
        within = [faults_of(fill_200_megabytes) for _ in range(4)]
    after = [faults_of(fill_200_megabytes) for _ in range(4)]
    assert min(within) < pages / 10
    # The first maps what was given back.
    assert after[0] > pages / 2
