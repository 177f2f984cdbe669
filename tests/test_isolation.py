"""What looks on, copies or runs beside a training does not change it."""

import copy
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from skorch.callbacks import BatchScoring, Callback
from torch.utils.data import TensorDataset

from imbmargin import MaxMarginClassifier
from imbmargin.checkpoint import CheckpointFolder, write_file

SETTINGS = {"max_epochs": 4, "batch_size": 64, "random_state": 0}


class Predicts(Callback):
    def __init__(self, X, moment):
        self.X, self.moment = X, moment

    def _predict(self, net, moment):
        if moment == self.moment:
            net.predict(self.X)

    def on_batch_end(self, net, training=None, **kwargs):
        self._predict(net, "batch")

    def on_epoch_end(self, net, **kwargs):
        self._predict(net, "epoch")


@pytest.mark.parametrize("moment", ["batch", "epoch"])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_a_callback_that_predicts_changes_nothing(moment, as_dataset, table):
    X, y = table
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y)) if as_dataset else X
    settings = {**SETTINGS, "module__dropout": 0.5}
    plain = MaxMarginClassifier(**settings).fit(X, y)
    watched = MaxMarginClassifier(**settings, callbacks=[Predicts(rows, moment)]).fit(X, y)
    np.testing.assert_array_equal(watched.predict_proba(X), plain.predict_proba(X))


def test_scores_that_predict_anew_change_nothing(table):
    X, y = table
    settings = {**SETTINGS, "module__dropout": 0.5}
    plain = MaxMarginClassifier(**settings).fit(X, y)
    scoring = BatchScoring("accuracy", name="own", on_train=True, use_caching=False)
    watched = MaxMarginClassifier(**settings, callbacks=[scoring]).fit(X, y)
    np.testing.assert_array_equal(watched.predict_proba(X), plain.predict_proba(X))
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    cached, anew = (
        MaxMarginClassifier(**settings, train_split=0.3, use_caching=caching).fit(data)
        for caching in (True, False)
    )
    np.testing.assert_array_equal(cached.predict_proba(X), anew.predict_proba(X))


def test_predicting_a_dataset_leaves_the_generator_alone(table):
    X, y = table
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    clf = MaxMarginClassifier(**SETTINGS).fit(X, y)
    before = torch.get_rng_state()
    clf.predict(data)
    assert torch.equal(torch.get_rng_state(), before)


def test_fits_in_threads_are_as_in_turn(table):
    X, y = table
    seeds = [0, 1, 2, 3]
    expected = [
        MaxMarginClassifier(**{**SETTINGS, "random_state": seed}).fit(X, y).predict_proba(X)
        for seed in seeds
    ]
    before = torch.get_rng_state(), np.random.get_state()[1].copy()

    def fit(seed):
        return MaxMarginClassifier(**{**SETTINGS, "random_state": seed}).fit(X, y).predict_proba(X)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(fit, seeds))
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_does_not_wait_for_a_thread_of_its_parent():
    from imbmargin.randomness import isolated_random_state

    held, ended = threading.Event(), threading.Event()

    def hold():
        with isolated_random_state(0):
            held.set()
            ended.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        with isolated_random_state(0):
            os._exit(0)
    try:
        assert os.waitpid(child, 0)[1] == 0
    finally:
        ended.set()
        thread.join()


class Copies(Callback):
    """Copies the net after its second epoch."""

    def __init__(self, how):
        self.how = how

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            self.copied = self.how(net)


def pickled(net):
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
def test_a_copy_made_in_a_run_does_not_write_into_its_folder(how, table, tmp_path, monkeypatch):
    X, y = table
    # It is looked at after the training, and is no part of what the run is.
    monkeypatch.setattr(Copies, "only_shows", True, raising=False)
    copies = Copies(how)
    settings = {**SETTINGS, "checkpoint_dir": tmp_path}
    first = MaxMarginClassifier(**settings, callbacks=[copies]).fit(X, y)
    copied = copies.copied
    copied.set_params(checkpoint_dir=None).partial_fit(X, y)
    assert len(copied.history_) == 6
    again = MaxMarginClassifier(**settings).fit(X, y)
    assert len(again.history_) == 4
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))


def test_random_states_and_arguments_of_fit_are_part_of_a_run(table, tmp_path):
    X, y = table
    folder = tmp_path / "{run}"

    def fit(seed):
        state = np.random.RandomState(seed)
        clf = MaxMarginClassifier(**{**SETTINGS, "random_state": state}, checkpoint_dir=folder)
        return clf.fit(X, y).predict_proba(X)

    first = fit(0)
    np.testing.assert_array_equal(fit(0), first)
    assert not np.array_equal(fit(1), first)
    assert len(list(tmp_path.iterdir())) == 2

    class Scaled(torch.nn.Module):
        def __init__(self, in_features, num_classes):
            super().__init__()
            self.head = torch.nn.Linear(in_features, num_classes)

        def forward(self, x, factor=1.0):
            return factor * self.head(x)

    settings = {**SETTINGS, "checkpoint_dir": tmp_path / "own"}
    MaxMarginClassifier(Scaled, **settings).fit(X, y, factor=0.5)
    MaxMarginClassifier(Scaled, **settings).fit(X, y, factor=0.5)
    with pytest.raises(ValueError, match=r"holds a run with another configuration.*fit parameters"):
        MaxMarginClassifier(Scaled, **settings).fit(X, y, factor=2.0)


def test_a_fit_that_fails_leaves_a_random_state_where_it_was(table):
    X, y = table
    state = np.random.RandomState(0)
    clf = MaxMarginClassifier(**{**SETTINGS, "random_state": state}, lr=1e30)
    with pytest.raises(FloatingPointError):
        clf.fit(X, y)
    found = clf.set_params(lr="auto").fit(X, y).predict_proba(X)
    expected = MaxMarginClassifier(**{**SETTINGS, "random_state": np.random.RandomState(0)})
    np.testing.assert_array_equal(found, expected.fit(X, y).predict_proba(X))


def test_files_that_others_are_writing_are_left_alone(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: seen.append(str(a)) or replace(a, b))
    for _ in range(2):
        write_file(tmp_path / "file", b"content")
    assert len(set(seen)) == 2
    folder = CheckpointFolder(tmp_path)
    begun, left = (tmp_path / f"epoch-00000{i}.safetensors.0.part" for i in (1, 2))
    for path in (begun, left):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    folder.write(3, {"loss": 0.5})
    assert begun.exists()
    assert not left.exists()
