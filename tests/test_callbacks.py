from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from torch import nn

from imbmargin import MaxMarginClassifier
from imbmargin.callbacks import (
    LR_SCHEDULES,
    DeferredResampling,
    DeferredReweighting,
    EarlyStopping,
    LearningRateSchedule,
    bind_class_weight,
    resolve_epoch,
)
from imbmargin.losses import LDAMLoss, MaxMarginLoss
from imbmargin.samplers import ClassSampledLoader
from imbmargin.weights import class_rates, class_weights


class Spy(Callback):
    """Note per epoch: the weights in use, the classes drawn, the optimizer and its momentum."""

    def on_train_begin(self, net, **kwargs):
        self.weights, self.drawn, self.optimizers, self.before = [], [], [], []

    def on_epoch_begin(self, net, **kwargs):
        self.before.append(self._momentum(net))
        self.drawn.append([])

    def on_batch_end(self, net, batch, training, **kwargs):
        if training:
            self.drawn[-1] += batch[1].tolist()

    def on_epoch_end(self, net, **kwargs):
        weight = net.criterion_.class_weight
        self.weights.append(None if weight is None else weight.tolist())
        self.optimizers.append(net.optimizer_)
        self.after = self._momentum(net)

    @staticmethod
    def _momentum(net):
        state = net.optimizer_.state
        return {
            id(p): s["momentum_buffer"].clone()
            for p, s in state.items()
            if s.get("momentum_buffer") is not None
        }


def plain_net(spy, *callbacks, **kwargs):
    """A skorch classifier that knows nothing of this package but the loss."""
    return NeuralNetClassifier(
        nn.Linear(8, 3),
        **{
            "criterion": LDAMLoss,
            "optimizer": torch.optim.SGD,
            "optimizer__momentum": 0.9,
            "train_split": None,
            "max_epochs": 6,
            "verbose": 0,
            "callbacks": [*callbacks, spy],
            **kwargs,
        },
    )


@pytest.mark.parametrize(("start", "first"), [(4, 4), (0.5, 3), (None, 0), (0, 0)])
def test_weights_are_off_in_the_first_epochs_and_on_from_the_next(table, start, first):
    X, y = table
    spy = Spy()
    plain_net(spy, DeferredReweighting(start)).fit(X, y.astype(np.int64))
    expected = class_weights(np.bincount(y), "effective_number")
    assert spy.weights[:first] == [None] * first
    for weight in spy.weights[first:]:
        np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_momentum_is_the_same_object_with_the_same_values_across_the_switch(table):
    X, y = table

    class Switch(Spy):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 4:
                # After the callback before this one has switched the weights on.
                assert net.criterion_.class_weight is not None
                for key, value in self._momentum(net).items():
                    assert torch.equal(value, self.after[key])
            super().on_epoch_begin(net, **kwargs)

    spy = Switch()
    plain_net(spy, DeferredReweighting(3)).fit(X, y.astype(np.int64))
    assert len({id(optimizer) for optimizer in spy.optimizers}) == 1
    assert spy.before[3].keys() == spy.after.keys()


def test_the_estimator_switches_as_the_plain_net_does(table):
    X, y = table
    spy = Spy()
    clf = MaxMarginClassifier(
        loss="ldam",
        drw_epoch=3,
        drs_epoch=4,
        resample="class_balanced",
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        max_epochs=6,
        callbacks=[spy],
        random_state=0,
    ).fit(X, y)
    assert [weight is None for weight in spy.weights] == [True] * 3 + [False] * 3
    assert len({id(optimizer) for optimizer in spy.optimizers}) == 1
    counts = [np.bincount(drawn, minlength=3) for drawn in spy.drawn]
    for epoch in range(4):
        np.testing.assert_array_equal(counts[epoch], clf.class_counts_)
    for epoch in (4, 5):
        np.testing.assert_allclose(counts[epoch] / 300, 1 / 3, atol=0.09)


@pytest.mark.parametrize("resample", ["class_balanced", "effective_number", {0: 1, 1: 1, 2: 1}])
def test_resampling_on_a_plain_net_draws_from_the_training_part_only(table, resample):
    X, y = table
    seen = []

    class Rows(Spy):
        def on_batch_end(self, net, batch, training, **kwargs):
            super().on_batch_end(net, batch, training, **kwargs)
            if training:
                seen.extend(batch[0][:, 0].tolist())

        def on_train_end(self, net, **kwargs):
            pass

        def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
            super().on_epoch_begin(net, **kwargs)
            self.valid = {float(X[i, 0]) for i in dataset_valid.indices}

    spy = Rows()
    plain_net(
        spy,
        DeferredReweighting(class_weight=None),
        DeferredResampling(2, resample),
        iterator_train=ClassSampledLoader,
        **{"train_split": __import__("skorch").dataset.ValidSplit(5, stratified=True)},
    ).fit(X, y.astype(np.int64))
    assert spy.valid
    assert not spy.valid & set(seen)
    late = np.bincount(list(chain.from_iterable(spy.drawn[2:])), minlength=3)
    np.testing.assert_allclose(late / late.sum(), 1 / 3, atol=0.05)


def test_progressive_sampling_moves_from_the_data_to_balance(table):
    X, y = table
    spy = Spy()
    MaxMarginClassifier(resample="progressive", max_epochs=11, callbacks=[spy], random_state=0).fit(
        X, y
    )
    tail = [np.mean(np.array(drawn) == 2) for drawn in spy.drawn]
    assert tail[0] < 0.15
    assert abs(tail[-1] - 1 / 3) < 0.08
    assert tail[0] < np.mean(tail[4:7]) < tail[-1]


def test_resampling_without_a_class_sampler_says_how_to_get_one(table):
    X, y = table
    net = plain_net(Spy(), DeferredReweighting(class_weight=None), DeferredResampling(1))
    with pytest.raises(TypeError, match=r"iterator_train=imbmargin.samplers.ClassSampledLoader"):
        net.fit(X, y.astype(np.int64))


@pytest.mark.parametrize("callback", [DeferredReweighting, DeferredResampling])
@pytest.mark.parametrize("start", [6, 7, 1.0])
def test_a_start_that_is_never_reached_is_an_error_on_a_plain_net(table, callback, start):
    X, y = table
    with pytest.raises(ValueError, match=f"={start} is never reached: .* max_epochs is 6"):
        plain_net(Spy(), callback(start)).fit(X, y.astype(np.int64))


@pytest.mark.parametrize("start", [-1, True, "late", 1.5, float("nan")])
def test_a_start_that_is_no_epoch(start):
    with pytest.raises(ValueError, match="drw_epoch must be"):
        resolve_epoch(start, 200, "drw_epoch")


def test_torch_losses_take_class_weights_too():
    criterion = nn.CrossEntropyLoss()
    bind_class_weight(criterion, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert criterion.weight.tolist() == [1.0, 2.0]
    assert criterion.weight.dtype == torch.float32
    with pytest.raises(TypeError, match=r"MSELoss has neither; use a loss of imbmargin.losses"):
        bind_class_weight(nn.MSELoss(), torch.ones(2))


def test_the_step_schedule_is_the_papers():
    # methods of the LDAM protocol: 0-based epochs, 200 in all.
    rates = [0.1 * LR_SCHEDULES["step"](epoch, 200) for epoch in range(200)]
    expected = [0.02, 0.04, 0.06, 0.08] + [0.1] * 156 + [1e-3] * 20 + [1e-5] * 20
    np.testing.assert_allclose(rates, expected)


def test_the_half_step_schedule_is_that_of_the_influence_balanced_loss():
    factors = [LR_SCHEDULES["half_step"](epoch, 200) for epoch in range(200)]
    expected = [0.2, 0.4, 0.6, 0.8] + [1] * 96 + [1e-2] * 60 + [1e-4] * 20 + [1e-6] * 20
    np.testing.assert_allclose(factors, expected)


@pytest.mark.parametrize("name", ["step", "early_step", "half_step", "tenth_step"])
def test_the_rate_never_drops_twice_at_once(name):
    for max_epochs in range(1, 50):
        factors = [LR_SCHEDULES[name](epoch, max_epochs) for epoch in range(max_epochs)]
        assert factors[0] == 1
        assert all(after > b / 101 for b, after in pairwise(factors))


def test_the_cosine_schedule_falls_from_one_to_almost_zero():
    factors = [LR_SCHEDULES["cosine"](epoch, 50) for epoch in range(50)]
    assert factors[0] == 1
    assert all(a > b for a, b in pairwise(factors))
    assert factors[-1] < 1e-2


def test_a_schedule_sets_every_group_and_starts_anew_with_each_training(table):
    X, y = table
    clf = MaxMarginClassifier(
        lr=0.5,
        lr_schedule=lambda epoch, max_epochs: 1 / (1 + epoch),
        max_epochs=3,
        optimizer__param_groups=[("head*", {"lr": 0.1})],
        random_state=0,
    ).fit(X, y)
    assert clf.history[:, "event_lr"] == pytest.approx([0.1, 0.05, 0.1 / 3])
    clf.partial_fit(X, y)
    assert clf.history[:, "event_lr"][3:] == pytest.approx([0.1, 0.05, 0.1 / 3])
    clf.set_params(lr=0.9, optimizer__param_groups__1__lr=0.9)
    clf.partial_fit(X, y)
    assert clf.optimizer_.param_groups[1]["lr"] == pytest.approx(0.3)


def test_an_unknown_schedule(table):
    with pytest.raises(ValueError, match=r"lr_schedule must be one of .*'half_step', 'step'"):
        MaxMarginClassifier(lr_schedule="linear").fit(*table)


def test_own_lr_scheduler_replaces_the_automatic_schedule(images):
    from skorch.callbacks import LRScheduler

    X, y = images[0][:60], images[1][:60]
    own = [LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)]
    plain, clf = (
        MaxMarginClassifier("mlp", lr=0.4, max_epochs=5, callbacks=callbacks).fit(X, y)
        for callbacks in (None, own)
    )
    assert dict(plain.callbacks_)["lr_schedule"].schedule == "step"
    assert dict(clf.callbacks_)["lr_schedule"].schedule is None
    assert clf.history[:, "event_lr"] == pytest.approx([0.4, 0.2, 0.1, 0.05, 0.025])


def test_early_stopping_restores_the_best_weights(table):
    X, y = table
    clf = MaxMarginClassifier(
        train_split=0.3, max_epochs=60, callbacks=[EarlyStopping(patience=4)], random_state=0
    ).fit(X, y)
    scores = clf.history[:, "valid_balanced_accuracy"]
    assert len(scores) < 60
    stopped = dict(clf.callbacks_)["EarlyStopping"]
    assert stopped.best_epoch_ == len(scores) - 4
    valid = None

    class Keep(Callback):
        def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
            nonlocal valid
            valid = dataset_valid

    again = MaxMarginClassifier(
        train_split=0.3,
        max_epochs=60,
        callbacks=[EarlyStopping(patience=4), Keep()],
        random_state=0,
    ).fit(X, y)
    from imbmargin import balanced_accuracy

    restored = balanced_accuracy(y[valid.indices], again.predict(X[valid.indices]))
    assert restored == pytest.approx(max(scores))


@pytest.mark.parametrize("name", ["drw_epoch", "drs_epoch", "loss_epoch"])
@pytest.mark.parametrize("patience", [1, 2])
def test_early_stopping_counts_nothing_before_the_deferred_phase(table, name, patience):
    # With a rate of 0 the first score is the best, and every later epoch is one without progress.
    settings = {"lr": 0.0, "optimizer": torch.optim.SGD, "train_split": 0.3, "random_state": 0}
    stopping = EarlyStopping(patience=patience)
    clf = MaxMarginClassifier(**{name: 20}, **settings, max_epochs=40, callbacks=[stopping])
    assert len(clf.fit(*table).history) == 20 + patience


def test_early_stopping_without_a_validation_part(table):
    with pytest.raises(ValueError, match=r"EarlyStopping needs 'valid_balanced_accuracy'.*0.2"):
        MaxMarginClassifier(max_epochs=3, callbacks=[EarlyStopping()]).fit(*table)


def test_counts_are_bound_on_a_plain_net_without_weights(table):
    X, y = table
    net = plain_net(Spy(), DeferredReweighting(class_weight=None)).fit(X, y.astype(np.int64))
    assert net.criterion_.class_counts.tolist() == np.bincount(y).tolist()
    assert net.criterion_.class_weight is None


def test_schedule_on_a_plain_net(table):
    X, y = table
    net = plain_net(
        Spy(), LearningRateSchedule("cosine"), criterion=MaxMarginLoss, criterion__scale=1.0
    )
    net.fit(X, y.astype(np.int64))
    assert net.history[:, "event_lr"][-1] < net.history[:, "event_lr"][0]


def test_a_training_without_a_schedule_has_the_rate_before_that_of_an_earlier_one(table):
    clf = MaxMarginClassifier(max_epochs=3, lr=0.01, lr_schedule="cosine", random_state=0)
    clf.partial_fit(*table).set_params(lr_schedule=None).partial_fit(*table)
    rates = clf.history[:, "event_lr"]
    assert rates[2] < 0.005
    assert rates[3:] == [0.01] * 3


class Rates(Callback):
    """Keep the class rates of every epoch."""

    def on_train_begin(self, net, **kwargs):
        self.seen = []

    def on_epoch_begin(self, net, dataset_train=None, **kwargs):
        self.seen.append(dataset_train.class_sampler.rates)


def test_rates_between_the_start_of_re_sampling_and_the_last_epoch(table):
    counts, kept = np.bincount(table[1]), Rates()
    settings = {"callbacks": [kept], "random_state": 0}
    clf = MaxMarginClassifier(resample="progressive", drs_epoch=3, max_epochs=6, **settings)
    clf.fit(*table)
    assert kept.seen[:3] == [None] * 3
    for found, progress in zip(kept.seen[3:], (0, 0.5, 1), strict=True):
        np.testing.assert_allclose(found, class_rates(counts, "progressive", progress=progress))
    clf.partial_fit(*table)
    np.testing.assert_allclose(kept.seen, [[1 / 3] * 3] * 6)
    MaxMarginClassifier(drs_epoch=1, max_epochs=2, **settings).fit(*table)
    np.testing.assert_allclose(kept.seen[1], class_rates(counts, "effective_number"))


def test_the_early_the_tenth_and_the_cosine_schedule_have_their_values():
    factors = [LR_SCHEDULES["early_step"](epoch, 200) for epoch in range(200)]
    expected = [0.2, 0.4, 0.6, 0.8] + [1] * 116 + [1e-2] * 40 + [1e-4] * 40
    np.testing.assert_allclose(factors, expected)
    factors = [LR_SCHEDULES["tenth_step"](epoch, 200) for epoch in range(200)]
    expected = [0.2, 0.4, 0.6, 0.8] + [1] * 156 + [1e-1] * 20 + [1e-2] * 20
    np.testing.assert_allclose(factors, expected)
    factors = [LR_SCHEDULES["cosine"](epoch, 50) for epoch in range(50)]
    np.testing.assert_allclose(factors, (1 + np.cos(np.pi * np.arange(50) / 50)) / 2)


def test_class_weights_of_a_loss_of_torchs_own_come_and_go_with_what_is_loaded(table, tmp_path):
    settings = {"loss": torch.nn.CrossEntropyLoss, "class_weight": "inverse", "random_state": 0}
    best = Checkpoint(monitor=lambda net: len(net.history) == 1, dirname=tmp_path, load_best=True)
    clf = MaxMarginClassifier(**settings, drw_epoch=2, max_epochs=4, callbacks=[best]).fit(*table)
    assert clf.criterion_.weight is None
    every = Checkpoint(monitor=None, dirname=tmp_path / "all")
    MaxMarginClassifier(**settings, max_epochs=2, callbacks=[every]).fit(*table)
    goes_on = MaxMarginClassifier(**settings, max_epochs=1, callbacks=[LoadInitState(every)])
    assert goes_on.fit(*table).criterion_.weight is not None


def test_the_best_loss_is_one_after_the_deferral(table):
    stopping = EarlyStopping("valid_loss", patience=4, lower_is_better=True, sink=lambda _: None)
    settings = {"loss": "cross_entropy", "batch_size": 32, "train_split": 0.25, "random_state": 0}
    clf = MaxMarginClassifier(**settings, drw_epoch=16, max_epochs=20, callbacks=[stopping])
    losses = clf.fit(*table).history_[:, "valid_loss"]
    # Weights make it another loss, which is larger.
    assert min(losses[:16]) < min(losses[16:])
    assert stopping.best_epoch_ == 17 + int(np.argmin(losses[16:]))
