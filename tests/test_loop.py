"""The training loop: what callbacks and the history see, steps, and divergence."""

import math
import warnings

import numpy as np
import pytest
import torch
from joblib import Parallel, cpu_count, delayed
from sklearn.base import clone
from skorch.callbacks import Callback, GradientNormClipping
from torch import nn

from imbmargin import MaxMarginClassifier, make_classifier
from imbmargin.bbn import BBNClassifier
from imbmargin.loop import DivergenceError, has_finite_weights
from imbmargin.meta_sampler import MetaSamplerClassifier


def fit(X, y, **kwargs):
    return MaxMarginClassifier(**{"max_epochs": 4, "random_state": 0, **kwargs}).fit(X, y)


class FreezesHead(nn.Sequential):
    """A network whose last layer never is in training."""

    def train(self, mode=True):
        super().train(mode)
        self[-1].eval()
        return self


class Modes(Callback):
    """Set one layer's mode before an epoch, and note those of all in it."""

    def initialize(self):
        self.seen = []
        return self

    def on_epoch_begin(self, net, **kwargs):
        net.module_[0].train(len(self.seen) % 2 == 0)

    def on_epoch_end(self, net, **kwargs):
        self.seen.append([layer.training for layer in net.module_])


@pytest.mark.parametrize("watched", [False, True])
def test_all_layers_are_in_training_in_every_epoch(table, watched):
    module = FreezesHead(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    modes = Modes()
    callbacks = [modes, Watcher()] if watched else [modes]
    clf = fit(*table, loss="cross_entropy", module=module, callbacks=callbacks)
    assert modes.seen == [[True, True, False]] * 4
    clf.predict(table[0])
    assert not any(layer.training for layer in clf.module_.modules())


class Watcher(Callback):
    """Note every batch, and the loss that the history has of it."""

    def initialize(self):
        self.seen = []
        return self

    def on_batch_end(self, net, batch=None, training=False, loss=None, y_pred=None, **kwargs):
        row = net.history[-1]["batches"][-1]
        name = "train_loss" if training else "valid_loss"
        self.seen.append((len(batch[0]), training, row[name], float(loss.detach()), len(y_pred)))


class GradientWatcher(Callback):
    def initialize(self):
        self.calls = 0
        return self

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.calls += all(p.grad is not None for _, p in named_parameters)


def columns(history):
    """All that does not depend on the clock."""
    return [{key: value for key, value in row.items() if key != "dur"} for row in history]


@pytest.mark.parametrize("split", [None, 0.2])
def test_the_history_is_the_same_whether_batches_are_watched_or_not(table, split):
    plain = fit(*table, batch_size=64, train_split=split)
    watched = fit(*table, batch_size=64, train_split=split, callbacks=[Watcher()])
    assert columns(plain.history) == columns(watched.history)
    assert plain.history[:, "batches", :, "train_batch_size"][0][0] == 64
    assert plain.history[-1, "train_batch_count"] == len(plain.history[-1]["batches"]) - (
        plain.history[-1].get("valid_batch_count", 0)
    )
    rows = [row for row in plain.history[-1]["batches"] if "train_loss" in row]
    losses, sizes = zip(*((r["train_loss"], r["train_batch_size"]) for r in rows), strict=True)
    assert plain.history[-1, "train_loss"] == pytest.approx(np.average(losses, weights=sizes))


def test_a_callback_sees_every_batch_when_it_is_there(table):
    X, y = table
    clf = fit(X, y, batch_size=100, train_split=0.2, callbacks=[("watcher", Watcher())])
    seen = dict(clf.callbacks_)["watcher"].seen
    sizes = [size for size, training, *_ in seen if training]
    assert len(sizes) == 4 * 3
    assert sum(sizes) == 4 * clf.class_counts_.sum()
    assert any(not training for _, training, *_ in seen)
    for size, _, recorded, loss, predicted in seen:
        assert recorded == pytest.approx(loss)
        assert size == predicted


def test_gradients_are_shown_and_can_be_clipped(table):
    clf = fit(*table, batch_size=100, callbacks=[("watcher", GradientWatcher())])
    assert dict(clf.callbacks_)["watcher"].calls == 4 * 3
    plain = fit(*table, optimizer=torch.optim.SGD, lr=0.1)
    clipped = fit(*table, optimizer=torch.optim.SGD, lr=0.1, callbacks=[GradientNormClipping(1e-3)])
    start = fit(*table, optimizer=torch.optim.SGD, lr=0.0)

    def distance(clf):
        pairs = zip(clf.module_.parameters(), start.module_.parameters(), strict=True)
        return sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5

    # 12 steps of at most lr times the clipped norm.
    assert distance(clipped) <= 12 * 0.1 * 1e-3 * 1.01
    assert distance(plain) > 10 * distance(clipped)


def test_an_optimizer_that_calls_back(table):
    clf = fit(*table, optimizer=torch.optim.LBFGS, lr=0.1, batch_size=-1, loss="cross_entropy")
    assert clf.history[-1, "train_loss"] < clf.history[0, "train_loss"]


@pytest.mark.parametrize(
    ("given", "fused"),
    [
        ({}, True),
        ({"optimizer": torch.optim.SGD, "lr": 0.1}, True),
        ({"optimizer": torch.optim.Adam}, True),
        ({"optimizer__fused": False}, False),
        ({"optimizer__foreach": True}, None),
        ({"optimizer": torch.optim.RMSprop}, None),
    ],
)
def test_steps_are_fused_unless_told_otherwise(table, given, fused):
    clf = fit(*table, max_epochs=1, **given)
    assert clf.optimizer_.param_groups[0].get("fused") is fused


def test_a_fused_step_is_the_same_step(table):
    one = fit(*table, optimizer__fused=True).predict_proba(table[0])
    other = fit(*table, optimizer__fused=False).predict_proba(table[0])
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_sparse_gradients_have_no_fused_step(table):
    class Embedded(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.table = nn.Embedding(5, num_classes, sparse=True)

        def forward(self, x):
            return self.table(x[:, 0].long().clamp(0, 4))

    clf = fit(*table, module=Embedded, optimizer=torch.optim.SGD, lr=0.1, optimizer__momentum=0.0)
    assert clf.predict(table[0]).shape == (300,)


def test_divergence_names_epoch_and_batch_and_keeps_what_was_there(table):
    X, y = table
    clf = fit(X, y, loss="cross_entropy")
    before = clf.predict_proba(X)
    clf.set_params(optimizer=torch.optim.SGD, lr=1e30, batch_size=100)
    with pytest.raises(
        DivergenceError,
        match=r"training loss became nan in batch \d of 3 of epoch \d\..*lr=1e\+30.*lower lr, or "
        r"add skorch.callbacks.GradientNormClipping",
    ):
        clf.fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert len(clf.history) == 4


class LastGradient(Callback):
    """Makes a gradient infinite in the last batch of an epoch."""

    def __init__(self, batches):
        self.batches = batches

    def on_epoch_begin(self, net, **kwargs):
        self.done_ = 0

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.done_ += 1
        if self.done_ == self.batches:
            net.module_.head.weight.grad[0, 0] = np.inf


def test_weights_that_the_last_batch_made_infinite_are_divergence_too(table, tmp_path):
    X, y = table
    clf = fit(X, y, loss="cross_entropy")
    before = clf.predict_proba(X)
    clf.set_params(callbacks=[LastGradient(3)], checkpoint_dir=tmp_path, batch_size=100)
    with pytest.raises(
        DivergenceError, match=r"weights are not finite any more after the last batch of epoch 1\."
    ):
        clf.fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_training_that_goes_on_and_diverges_is_taken_back(table):
    X, y = table
    clf = fit(X, y, loss="cross_entropy", optimizer=torch.optim.SGD, lr=0.1)
    before = clf.predict_proba(X)
    momentum = clf.optimizer_.state_dict()
    clf.set_params(lr=1e30)
    with pytest.raises(DivergenceError):
        clf.partial_fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    assert len(clf.history) == 4
    assert clf.optimizer_.state_dict()["state"].keys() == momentum["state"].keys()
    assert clf.set_params(lr=0.1).partial_fit(X, y).score(X, y) > 0.6


# torch's tracer looks at attributes that warn.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_module_trains_the_same(table):
    plain = fit(*table).predict_proba(table[0])
    # This backend traces forward and backward, and needs no C++ compiler.
    compiled = fit(*table, compile=True, compile__backend="aot_eager")
    np.testing.assert_allclose(compiled.predict_proba(table[0]), plain, atol=1e-6)


def _threads():
    return torch.get_num_threads()


def test_jobs_do_not_take_more_threads_than_cores():
    threads = Parallel(n_jobs=2, backend="loky")(delayed(_threads)() for _ in range(2))
    assert sum(threads) <= max(2, cpu_count())


def test_predicting_sets_the_mode_of_the_network_once(table, monkeypatch):
    X, y = table
    clf = MaxMarginClassifier(max_epochs=1, batch_size=16, random_state=0).fit(X, y)
    calls = []
    train = type(clf.module_).train
    monkeypatch.setattr(
        type(clf.module_), "train", lambda self, mode=True: calls.append(mode) or train(self, mode)
    )
    expected = clf.predict_proba(X)
    assert calls == [False]
    outputs = clf.forward_iter(X)
    next(outputs)
    # What somebody changes between two batches does not stay.
    clf.module_.train()
    next(outputs)
    assert not clf.module_.training
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


def test_a_precision_that_is_set_later_brings_its_gradient_scaler(table, float16, monkeypatch):
    # On the CPU float16 is refused.
    half = {"auto": torch.float16, "float32": None}
    monkeypatch.setattr("imbmargin.steps.resolve_precision", lambda name, *_: half[name])
    clf = MaxMarginClassifier(max_epochs=1, random_state=0).fit(*table)
    assert clf.grad_scaler_ is None
    clf.set_params(precision="auto").partial_fit(*table)
    scaler = clf.grad_scaler_
    assert scaler.get_scale() > 1
    clf.partial_fit(*table)
    assert clf.grad_scaler_ is scaler
    clf.set_params(precision="float32").partial_fit(*table)
    assert clf.grad_scaler_ is None


@pytest.mark.parametrize("kind", [MaxMarginClassifier, BBNClassifier, MetaSamplerClassifier])
def test_gradients_in_float16_have_their_own_size(kind, table, float16, monkeypatch):
    settings = {"max_epochs": 2, "random_state": 0, "optimizer": torch.optim.SGD, "lr": 0.01}
    half = kind(**settings).fit(*table)
    assert half.grad_scaler_.get_scale() > 1
    monkeypatch.undo()
    single = kind(**settings).fit(*table)
    fresh = clone(single).fit(*table, epochs=0)
    pairs = [
        [net.module_.state_dict()[name] for net in (half, single, fresh)]
        for name, _ in single.module_.named_parameters()
    ]
    away = max((b - c).abs().max().item() for _, b, c in pairs)
    assert away > 0
    # The first steps are left out, until the scale has come down.
    assert max((a - b).abs().max().item() for a, b, _ in pairs) < 0.5 * away


class _Waits(Callback):
    """Count how often an epoch, after the first, makes Python wait for the CUDA device."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            torch.cuda.set_sync_debug_mode("warn")

    def on_epoch_end(self, net, **kwargs):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.skipif(
    not hasattr(torch.cuda, "set_sync_debug_mode"), reason="a simulated device tells of no waits"
)
@pytest.mark.parametrize(
    "name", ["ERM", "MM-LDAM-DRW", "CB-RS", "VS", "IB", "remix", "BBN", "MW-Net", "LDAM-DRW+SSP"]
)
def test_no_batch_makes_python_wait_for_a_cuda_device(name):
    waits = []
    for rows in (64, 128):
        generator = np.random.default_rng(0)
        X = generator.integers(256, size=(rows, 3, 16, 16), dtype=np.uint8)
        clf = make_classifier(
            name, max_epochs=2, batch_size=16, device="cuda", callbacks=[_Waits()], random_state=0
        )
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            clf.fit(X, np.arange(rows) % 3)
        waits.append(sum("synchroniz" in str(warning.message) for warning in found))
    assert 0 < waits[1] <= waits[0] <= 4


@pytest.mark.parametrize(
    ("values", "are_finite"),
    [
        ([1.0, -2.0], True),
        ([], True),
        # Their sum is not finite, or is no number.
        ([3e38, 3e38], True),
        ([math.inf, -math.inf], False),
        ([math.nan, 1.0], False),
    ],
)
@pytest.mark.parametrize("other", [torch.float32, torch.float64])
def test_weights_that_are_not_finite_are_found(values, are_finite, other):
    weights = [torch.tensor(values), torch.tensor([5.0], dtype=other), torch.zeros(0)]
    groups = [{"params": weights[:1]}, {"params": weights[1:]}]
    assert has_finite_weights(torch.optim.SGD(groups, lr=0.1)) is are_finite
