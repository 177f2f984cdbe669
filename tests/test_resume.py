"""A run that breaks off goes on to the same result."""

import json
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EpochScoring, LRScheduler, ProgressBar
from skorch.dataset import ValidSplit
from torch.utils.data import TensorDataset

from imbmargin import MaxMarginClassifier
from imbmargin.callbacks import EarlyStopping
from imbmargin.checkpoint import CheckpointFolder
from imbmargin.data.augment import RandomCrop
from imbmargin.data.split import StratifiedSplit
from imbmargin.resume import StopRequest


class Crash(Callback):
    """Break off at the end of an epoch, while `epoch` is set."""

    epoch = None

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == Crash.epoch:
            Crash.epoch = None
            raise RuntimeError("power cut")


class Other(MaxMarginClassifier):
    """It may train in another way, with the same parameters."""


@pytest.fixture(autouse=True)
def _no_crash():
    Crash.epoch = None
    yield
    Crash.epoch = None


@pytest.fixture(autouse=True)
def _ctrl_c():
    """A shell starts what runs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def make(folder=None, **kwargs):
    callbacks = [*kwargs.pop("callbacks", []), Crash()]
    kwargs = {"max_epochs": 8, "batch_size": 64, "random_state": 0, **kwargs}
    return MaxMarginClassifier(checkpoint_dir=folder, callbacks=callbacks, **kwargs)


def assert_equal_nets(one, other):
    for name in ("module_", "criterion_"):
        states = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert states[0].keys() == states[1].keys()
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), (name, key)
    rows = [[{k: v for k, v in r.items() if k != "dur"} for r in n.history] for n in (one, other)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])
    optimizers = one.optimizer_.state_dict(), other.optimizer_.state_dict()
    for key, state in optimizers[0]["state"].items():
        for name, value in state.items():
            found = optimizers[1]["state"][key][name]
            assert value is None if found is None else torch.equal(value, found), name


TABLES = {
    "defaults": {},
    "deferred weights": {"loss": "mm_ldam", "drw_epoch": 5},
    "weights are on": {"loss": "ldam", "drw_epoch": 2},
    "deferred sampling": {"resample": "progressive", "drs_epoch": 2},
    "dropout": {"module__dropout": 0.3},
    "schedule": {"optimizer": torch.optim.SGD, "lr": 0.1, "lr_schedule": "step"},
    "momentum": {"optimizer": torch.optim.SGD, "lr": 0.1, "optimizer__momentum": 0.9},
    "validation": {"train_split": 0.2},
    "early stopping": {
        "train_split": 0.3,
        "max_epochs": 30,
        "callbacks": [EarlyStopping(patience=4, sink=lambda text: None)],
    },
    "skorch's schedule": {
        "optimizer": torch.optim.SGD,
        "callbacks": [LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=2)],
    },
    "a score with its best": {"callbacks": [EpochScoring("accuracy", on_train=True, name="acc")]},
}


@pytest.mark.parametrize("kwargs", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("epoch", [1, 4])
def test_a_run_that_crashed_goes_on_to_the_same_bits(table, tmp_path, kwargs, epoch):
    X, y = table
    straight = make(**kwargs).fit(X, y)
    Crash.epoch = epoch
    with pytest.raises(RuntimeError, match="power cut"):
        make(tmp_path, **kwargs).fit(X, y)
    resumed = make(tmp_path, **kwargs).fit(X, y)
    assert_equal_nets(straight, resumed)
    np.testing.assert_array_equal(straight.predict_proba(X), resumed.predict_proba(X))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_images_with_augmentation_and_momentum(images, tmp_path, precision):
    kwargs = {"module": "resnet20", "augment": ["crop", "flip"], "max_epochs": 4, "drw_epoch": 3}
    kwargs["precision"] = precision
    straight = make(**kwargs).fit(*images)
    Crash.epoch = 2
    with pytest.raises(RuntimeError, match="power cut"):
        make(tmp_path, **kwargs).fit(*images)
    resumed = make(tmp_path, **kwargs).fit(*images)
    assert_equal_nets(straight, resumed)
    momentum = next(iter(resumed.optimizer_.state_dict()["state"].values()))["momentum_buffer"]
    assert momentum.is_contiguous(memory_format=torch.channels_last)


def test_sample_weights_and_datasets(table, tmp_path):
    X, y = table
    weight = np.linspace(0.5, 2, len(y))
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y).long())
    for i, arguments in enumerate([{"X": X, "y": y, "sample_weight": weight}, {"X": data}]):
        straight = make(max_epochs=4).fit(**arguments)
        Crash.epoch = 2
        with pytest.raises(RuntimeError, match="power cut"):
            make(tmp_path / str(i), max_epochs=4).fit(**arguments)
        assert_equal_nets(straight, make(tmp_path / str(i), max_epochs=4).fit(**arguments))


def test_a_finished_run_is_read_and_not_trained_again(table, tmp_path):
    X, y = table
    done = make(tmp_path).fit(X, y)
    files = sorted(tmp_path.iterdir())
    Crash.epoch = 8
    again = make(tmp_path).fit(X, y)
    assert Crash.epoch == 8
    assert_equal_nets(done, again)
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"verbose": 1}),
        ({"device": "cpu"}, {"device": torch.device("cpu")}),
        ({}, {"callbacks": [ProgressBar()]}),
    ],
)
def test_what_only_shows_may_come_and_go(table, tmp_path, before, after, capsys):
    done = make(tmp_path, max_epochs=2, **before).fit(*table)
    assert_equal_nets(done, make(tmp_path, max_epochs=2, **after).fit(*table))


def test_a_run_without_a_seed_keeps_the_one_it_drew(table, tmp_path):
    X, y = table
    Crash.epoch = 3
    with pytest.raises(RuntimeError, match="power cut"):
        make(tmp_path, random_state=None).fit(X, y)
    seed = CheckpointFolder(tmp_path).read()["seed"]
    resumed = make(tmp_path, random_state=None).fit(X, y)
    assert resumed.seed_ == seed
    assert_equal_nets(make(random_state=seed).fit(X, y), resumed)


def test_another_configuration_or_other_data_are_refused_by_name(table, tmp_path):
    X, y = table
    clf = make(tmp_path, lr=0.01).fit(X, y)
    with pytest.raises(
        ValueError, match=r"another configuration or data \(lr was 0.01, now 0.02\)"
    ):
        make(tmp_path, lr=0.02).fit(X, y)
    with pytest.raises(ValueError, match=r"delta_neg was 0.6, now 0.7; max_epochs was 8, now 9"):
        make(tmp_path, lr=0.01, delta_neg=0.7, max_epochs=9).fit(X, y)
    with pytest.raises(
        ValueError, match=r"data: inputs were '.*', now '.*'\); pass another folder"
    ):
        make(tmp_path, lr=0.01).fit(X + 1, y)
    with pytest.raises(ValueError, match=r"data: rows were 300, now 299"):
        make(tmp_path, lr=0.01).fit(X[1:], y[1:])
    with pytest.raises(ValueError, match=r"data: sample_weight were None, now"):
        make(tmp_path, lr=0.01).fit(X, y, sample_weight=np.ones(300))
    with pytest.raises(ValueError, match=r"estimator was '.*MaxMarginClassifier', now '.*Other'"):
        Other(**make(tmp_path, lr=0.01).get_params(deep=False)).fit(X, y)
    with pytest.raises(ValueError, match="callbacks was"):
        make(tmp_path, lr=0.01, callbacks=[EarlyStopping()]).fit(X, y)
    assert_equal_nets(clf, make(tmp_path, lr=0.01, verbose=0).fit(X, y))


class Meanwhile(Callback):
    """Train another net when training begins, after the checkpoints have been looked for."""

    only_shows = True

    def __init__(self, net, X, y):
        self.net, self.X, self.y = net, X, y

    def on_train_begin(self, net, **kwargs):
        self.net.fit(self.X, self.y)


def test_a_run_that_began_at_the_same_time_is_not_overwritten(table, tmp_path):
    X, y = table
    first = make(tmp_path, max_epochs=2)
    second = make(tmp_path, max_epochs=2, beta=1.2, callbacks=[Meanwhile(first, X, y)])
    with pytest.raises(
        ValueError, match=r"holds a run with .*\(beta was 1.5, now 1.2\); .*\{run\}"
    ):
        second.fit(X, y)
    assert make(tmp_path, max_epochs=2).fit(X, y).history == first.history
    # The same run may go on beside itself: what it writes is the same.
    twin = Meanwhile(make(tmp_path / "twin", max_epochs=2), X, y)
    assert_equal_nets(first, make(tmp_path / "twin", max_epochs=2, callbacks=[twin]).fit(X, y))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array], ids=["array", "sparse"])
def test_a_single_value_of_many_rows_is_seen(table, tmp_path, form):
    X, y = np.tile(table[0], (5, 1)), np.tile(table[1], 5)
    make(tmp_path, max_epochs=1).fit(form(X), y)
    X[3, 2] += 1e-3
    with pytest.raises(ValueError, match=r"\(data: inputs were '[^']*', now '[^']*'\);"):
        make(tmp_path, max_epochs=1).fit(form(X), y)


class Epochs(Callback):
    """Count the epochs of all nets, and break off where `last` of them were begun."""

    begun = 0
    last = None

    def on_epoch_begin(self, net, **kwargs):
        if Epochs.begun == Epochs.last:
            raise RuntimeError("power cut")
        Epochs.begun += 1


def test_a_search_goes_on_where_each_run_has_its_own_folder(table, tmp_path, monkeypatch):
    X, y = table

    def search(folder):
        net = make(folder, callbacks=[Epochs()], max_epochs=4)
        return GridSearchCV(net, {"beta": [1.0, 1.5]}, cv=2, error_score="raise")

    whole = search(None).fit(X, y)
    monkeypatch.setattr(Epochs, "begun", 0)
    monkeypatch.setattr(Epochs, "last", 10)
    with pytest.raises(RuntimeError, match="power cut"):
        search(tmp_path / "{run}").fit(X, y)
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(Epochs, "begun", 0)
    monkeypatch.setattr(Epochs, "last", None)
    resumed = search(tmp_path / "{run}").fit(X, y)
    # Of two candidates, two folds and one refit, 4 epochs each, 10 were done.
    assert Epochs.begun == 10
    assert len(list(tmp_path.iterdir())) == 5
    assert resumed.best_params_ == whole.best_params_
    np.testing.assert_array_equal(
        resumed.cv_results_["mean_test_score"], whole.cv_results_["mean_test_score"]
    )
    assert_equal_nets(resumed.best_estimator_, whole.best_estimator_)
    # Parameters stay as they were given.
    assert resumed.best_estimator_.checkpoint_dir == tmp_path / "{run}"
    with pytest.raises(ValueError, match=r"holds a run with .*put \{run\} into the path"):
        search(tmp_path / "one").fit(X, y)


def test_a_folder_that_cannot_be_is_refused_before_training(table, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    fitted = make(max_epochs=1).fit(*table)
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ValueError, match=r"file(/below)?' cannot hold checkpoints: .*; pass an"
        ):
            fitted.set_params(checkpoint_dir=folder).fit(*table)
    monkeypatch.setattr("imbmargin.checkpoint.os.access", lambda *_: False)
    with pytest.raises(ValueError, match="cannot hold checkpoints: it may not be written into"):
        fitted.set_params(checkpoint_dir=tmp_path).fit(*table)
    # What was fitted before is still there.
    assert len(fitted.history) == 1


def test_modules_and_functions_are_told_apart(table, tmp_path):
    X, y = table
    module = torch.nn.Linear(8, 3)
    make(tmp_path / "m", module=module, loss="cross_entropy").fit(X, y)
    with pytest.raises(ValueError, match="module was 'Linear"):
        make(tmp_path / "m", module=torch.nn.Linear(8, 3), loss="cross_entropy").fit(X, y)
    make(tmp_path / "w", class_weight={0: 1.0, 1: 2.0, 2: 3.0}).fit(X, y)
    with pytest.raises(ValueError, match="class_weight was"):
        make(tmp_path / "w", class_weight=lambda counts: 1 / counts).fit(X, y)


def scaled_schedule(epoch, max_epochs, factor):
    return factor


class Net(torch.nn.Linear):
    def __init__(self, in_features=8, num_classes=3, scale=1.0):
        super().__init__(in_features, num_classes)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self.scale = scale


SETTINGS = {
    "train_split": [StratifiedSplit(0.2), StratifiedSplit(0.3)],
    "train_split of skorch": [ValidSplit(5), ValidSplit(4)],
    "lr_schedule": [partial(scaled_schedule, factor=f) for f in (1.0, 0.5)],
    "class_weight": [lambda counts: 1 / counts, lambda counts: 1 / counts**2],
    "module": [Net(scale=1.0), Net(scale=2.0)],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_inside_objects_are_told_apart(table, tmp_path, name):
    parameter = name.split()[0]
    one, other = ({parameter: value, "loss": "cross_entropy"} for value in SETTINGS[name])
    clf = make(tmp_path, max_epochs=2, **one).fit(*table)
    with pytest.raises(ValueError, match=f"{parameter} was .*, now"):
        make(tmp_path, max_epochs=2, **other).fit(*table)
    assert_equal_nets(clf, make(tmp_path, max_epochs=2, **one).fit(*table))


def test_what_images_and_backbones_are_is_told_apart(images, tmp_path):
    X, y = images[0][:64], images[1][:64]
    settings = {"module": "resnet20", "max_epochs": 1}
    backbones = [make(random_state=seed, **settings).fit(X, y) for seed in (0, 1)]
    one = {"augment": [RandomCrop(1)], "init_backbone": backbones[0], **settings}
    make(tmp_path, **one).fit(X, y)
    for other in ({"augment": [RandomCrop(4)]}, {"init_backbone": backbones[1]}):
        with pytest.raises(ValueError, match=f"{next(iter(other))} was .*, now"):
            make(tmp_path, **{**one, **other}).fit(X, y)
    make(tmp_path, **one).fit(X, y)


def test_labels_are_told_apart(table, tmp_path):
    X, y = table
    make(tmp_path, max_epochs=1).fit(X, np.array(["a", "b", "c"])[y])
    with pytest.raises(
        ValueError, match=r"data: classes were \['a', 'b', 'c'\], now \['b', 'c', 'd"
    ):
        make(tmp_path, max_epochs=1).fit(X, np.array(["b", "c", "d"])[y])


def test_a_damaged_checkpoint_costs_an_epoch(table, tmp_path):
    X, y = table
    Crash.epoch = 5
    with pytest.raises(RuntimeError, match="power cut"):
        make(tmp_path).fit(X, y)
    newest = max(tmp_path.iterdir(), key=lambda path: path.name)
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match="is damaged"):
        resumed = make(tmp_path).fit(X, y)
    assert_equal_nets(make().fit(X, y), resumed)


def test_only_fit_has_checkpoints(table, tmp_path):
    X, y = table
    with pytest.raises(ValueError, match=r"checkpoint_dir=.* is for fit with warm_start=False"):
        make(tmp_path).partial_fit(X, y)
    with pytest.raises(ValueError, match=r"checkpoint_dir=.* is for fit with warm_start=False"):
        make(tmp_path, warm_start=True).fit(X, y)


class Signal(Callback):
    """Raise a signal in the middle of an epoch, while `number` is set."""

    number = None
    batches = 0

    def on_batch_begin(self, net, training=False, **kwargs):
        Signal.batches += 1
        if Signal.number is not None and len(net.history) == 4 and training:
            number, Signal.number = Signal.number, None
            signal.raise_signal(number)
            Signal.batches = 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_after_the_batch_with_a_checkpoint(table, tmp_path, number):
    X, y = table
    before = signal.getsignal(number)
    Signal.number = number
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit) as caught:
        make(tmp_path, callbacks=[Signal()]).fit(X, y)
    if number == signal.SIGTERM:
        assert caught.value.code == 128 + number
    assert Signal.batches == 0
    assert signal.getsignal(number) is before
    state = CheckpointFolder(tmp_path).read()
    assert len(state["state"]["history"]) == 3
    assert not state["finished"]
    assert_equal_nets(
        make(callbacks=[Signal()]).fit(X, y), make(tmp_path, callbacks=[Signal()]).fit(X, y)
    )


def test_without_checkpoints_ctrl_c_keeps_the_net_as_skorch_does(table):
    X, y = table
    Signal.number = signal.SIGINT
    clf = make(callbacks=[Signal()]).fit(X, y)
    assert len(clf.history) == 4
    assert clf.predict(X).shape == (300,)


def test_a_second_signal_acts_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_handler_of_the_user_is_called():
    calls = []
    before = signal.signal(signal.SIGTERM, lambda *_: calls.append(1))
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert calls == []
            stop.deliver()
        assert calls == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


# One process imports the package and forks the runs that are killed: an import takes seconds.
KILLED = """
import hashlib, json, os, random, signal, sys, time
import numpy as np, torch
torch.set_num_threads(1)
from skorch.callbacks import Callback
from imbmargin import MaxMarginClassifier

folder, kills = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
X = rng.standard_normal((400, 6)).astype(np.float32)
y = (X[:, 0] + 0.3 * X[:, 1] > 0.8).astype(int)

class Report(Callback):
    pipe = None
    def on_epoch_begin(self, net, **kwargs):
        if self.pipe is not None:
            os.write(self.pipe, b"%d\\n" % len(net.history))

def run(checkpoint_dir, pipe=None):
    Report.pipe = pipe
    return MaxMarginClassifier(
        loss="mm_ldam", drw_epoch=0.5, max_epochs=400, batch_size=64, random_state=0,
        module__dropout=0.1, checkpoint_dir=checkpoint_dir, callbacks=[Report()],
    ).fit(X, y)

def digest(clf):
    parts = [value.numpy().tobytes() for value in clf.module_.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()

straight = digest(run(None))  # also loads what is loaded on first use
random.seed(1)
began = []
for _ in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        run(folder, writer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as epochs:
        began.append(int(epochs.readline()))
        # Moments are counted in epochs, which take longer where other work runs.
        for _ in range(random.randint(2, 6)):
            epochs.readline()
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert killed, "the run was over before it was killed"
print(json.dumps({"began": began, "resumed": digest(run(folder)), "straight": straight}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_at_twenty_random_moments_it_ends_with_the_same_bits(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["resumed"] == result["straight"]
    # Each run went on from where the one before was.
    assert result["began"] == sorted(result["began"])
    assert result["began"][-1] > 20
