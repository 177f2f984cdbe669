import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, Checkpoint, EarlyStopping
from torch import nn

from imbmargin import MaxMarginClassifier, load_model, save_model
from imbmargin._wrapper import head_pass
from imbmargin.bbn import BBNClassifier
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.modules import WeightAverage
from imbmargin.posthoc import NearestClassMean, TauNormalization
from imbmargin.two_stage import (
    ClassifierRetraining,
    LearnableWeightScaling,
    MetaSampledRetraining,
)

SETTINGS = {"max_epochs": 6, "random_state": 0, "batch_size": 64, "ema_decay": 0.9}


class Weights(Callback):
    """Keep the weights after every step, and the average."""

    only_shows = True

    def on_train_begin(self, net, **kwargs):
        self.seen = [net.module_.head.weight.detach().clone()]

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.seen.append(net.module_.head.weight.detach().clone())


def assert_equal_states(one, other):
    for name in ("module_", "average_"):
        states = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert states[0].pop("_extra_state", None) == states[1].pop("_extra_state", None)
        for key, value in states[0].items():
            assert torch.equal(value, states[1][key]), (name, key)


def test_the_average_is_that_of_the_weights_after_every_step(table):
    callback = Weights()
    clf = MaxMarginClassifier(**SETTINGS, callbacks=[callback]).fit(*table)
    seen = next(c for _, c in clf.callbacks_ if isinstance(c, Weights)).seen
    assert len(seen) == 31
    expected = seen[0]
    for t, weight in enumerate(seen[1:]):
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(clf.module_.head.weight, expected)
    assert torch.equal(clf.average_.network.head.weight, seen[-1])
    assert clf.average_.updates == 30


def test_training_is_as_without_it_and_prediction_is_not(table):
    X, y = table
    averaged = MaxMarginClassifier(**SETTINGS).fit(X, y)
    plain = MaxMarginClassifier(**{**SETTINGS, "ema_decay": None}).fit(X, y)
    for name in ("train_loss", "event_lr"):
        assert averaged.history_[:, name] == plain.history_[:, name]
    assert not np.allclose(averaged.predict_proba(X), plain.predict_proba(X))
    assert plain.average_ is None
    for clf in (averaged, plain):
        clf.partial_fit(X, y)
    assert averaged.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
    assert "average" not in "".join(name for name, _ in averaged.get_all_learnable_params())


def test_the_validation_part_is_judged_by_the_average(table):
    X, y = table
    settings = {**SETTINGS, "train_split": 0.3, "loss": "influence_balanced"}
    averaged = MaxMarginClassifier(**settings).fit(X, y)
    plain = MaxMarginClassifier(**{**settings, "ema_decay": None}).fit(X, y)
    assert averaged.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
    assert averaged.history_[:, "valid_loss"] != plain.history_[:, "valid_loss"]


class States(Callback):
    """Keep the weights of every epoch's end, and what the net predicts there."""

    only_shows = True

    def __init__(self, X):
        self.X = X

    def on_train_begin(self, net, **kwargs):
        self.seen = []

    def on_epoch_end(self, net, **kwargs):
        self.seen.append((net.module_.head.weight.detach().clone(), net.predict_proba(self.X)))


@pytest.mark.parametrize("kind", [EarlyStopping, Checkpoint])
def test_the_state_that_is_restored_is_the_one_that_was_judged(kind, table, tmp_path):
    X, y = table
    if kind is EarlyStopping:
        best = EarlyStopping(patience=3, load_best=True, sink=lambda text: None)
    else:
        best = Checkpoint(dirname=tmp_path, load_best=True, sink=lambda text: None)
    callbacks = [("states", States(X)), ("best", best)]
    settings = {**SETTINGS, "max_epochs": 20, "lr": 0.1, "train_split": 0.3}
    clf = MaxMarginClassifier(**settings, callbacks=callbacks).fit(X, y)
    losses = clf.history_[:, "valid_loss"]
    seen = dict(clf.callbacks_)["states"].seen
    index = int(np.argmin(losses))
    assert index < len(seen) - 1
    weight, expected = seen[index]
    assert torch.equal(clf.module_.head.weight, weight)
    np.testing.assert_array_equal(clf.predict_proba(X), expected)


def test_weights_that_are_loaded_are_predicted_with_and_trained_on(table, tmp_path):
    X, y = table
    clf = MaxMarginClassifier(**SETTINGS, optimizer=torch.optim.SGD, lr=1e-9).fit(X, y)
    other = MaxMarginClassifier(**{**SETTINGS, "random_state": 1}).fit(X, y)
    other.save_params(f_params=tmp_path / "weights.pt")
    clf.load_params(f_params=tmp_path / "weights.pt")
    np.testing.assert_array_equal(clf.predict_proba(X), other.predict_proba(X))
    clf.partial_fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), other.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize(
    "wrapper",
    [
        TauNormalization,
        NearestClassMean,
        ClassifierRetraining,
        LearnableWeightScaling,
        MetaSampledRetraining,
    ],
)
def test_what_looks_into_the_network_sees_the_average(wrapper, table):
    X, y = table
    clf = MaxMarginClassifier(**SETTINGS, loss="cross_entropy")
    fitted = wrapper(clf).fit(X, y)
    assert fitted.score(X, y) > 0.5
    _, logits = head_pass(fitted.estimator_, X)
    np.testing.assert_array_equal(logits, fitted.estimator_.decision_function(X))


def test_the_average_begins_with_the_weights_that_training_begins_with(table):
    X, y = table
    first = MaxMarginClassifier(**SETTINGS).fit(X, y)
    settings = {**SETTINGS, "max_epochs": 1, "optimizer": torch.optim.SGD, "lr": 1e-9}
    clf = MaxMarginClassifier(**settings, init_backbone=first).fit(X, y)
    for name in ("input_norm.mean", "backbone.0.weight"):
        found, expected = (net.module_.state_dict()[name] for net in (clf, first))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_lent_weights_are_taken_back_unless_others_were_loaded():
    network = nn.Linear(2, 1)
    average = WeightAverage(network, 0.5)
    average.lend(network)
    assert average.lent is None
    own = network.weight.detach().clone()
    average.update(network)
    with torch.no_grad():
        network.weight += 1
    average.update(network)
    mean = average.network.weight.clone()
    average.lend(network)
    assert torch.equal(network.weight, mean)
    average.take_back(network)
    assert torch.equal(network.weight, own + 1)
    assert torch.equal(average.network.weight, mean)
    average.lend(network)
    with torch.no_grad():
        network.weight[:] = 7.0
    average.take_back(network)
    assert (network.weight == 7).all()
    assert (average.network.weight == 7).all()
    assert average.updates == 0


# torch's tracer looks at attributes that warn.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_network_is_averaged_as_a_plain_one(table):
    X, y = table
    plain, compiled = (
        MaxMarginClassifier(**SETTINGS, compile=compiles, compile__backend="aot_eager").fit(X, y)
        for compiles in (False, True)
    )
    for clf in (plain, compiled):
        assert type(clf.average_) is WeightAverage
        clf.partial_fit(X, y)
    np.testing.assert_allclose(compiled.predict_proba(X), plain.predict_proba(X), atol=1e-6)


def test_another_decay_holds_from_the_next_training_on(table, tmp_path):
    X, y = table
    plain = MaxMarginClassifier(**{**SETTINGS, "ema_decay": None}).fit(X, y)
    clf = MaxMarginClassifier(**SETTINGS, warm_start=True).fit(X, y)
    assert clf.set_params(ema_decay=0.5).fit(X, y).average_.decay == 0.5
    for _ in range(2):
        plain.partial_fit(X, y)
    # Without an average training goes on, and prediction is by the weights that learn.
    clf.set_params(ema_decay=None).fit(X, y)
    assert clf.average_ is None
    assert clf.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
    np.testing.assert_array_equal(clf.predict_proba(X), plain.predict_proba(X))
    clf.set_params(ema_decay=0.9)
    save_model(clf, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    plain.partial_fit(X, y)
    for model in (clf, loaded):
        model.fit(X, y)
        assert model.average_.updates == 30
        assert model.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
        assert not np.allclose(model.predict_proba(X), plain.predict_proba(X))
    assert_equal_states(clf, loaded)


def test_statistics_of_normalisation_layers_are_averaged_and_counters_taken_over():
    network = nn.BatchNorm1d(2)
    average = WeightAverage(network, 0.5)
    for _ in range(3):
        network(torch.randn(8, 2) + 5)
        average.update(network)
    assert average.network.num_batches_tracked == 3
    assert (average.network.running_mean < network.running_mean).all()
    assert (average.network.running_mean > 0).all()


@pytest.mark.parametrize("make", [MaxMarginClassifier, BBNClassifier, MetaWeightNetClassifier])
def test_checkpoints_pickles_and_images(make, table, images, tmp_path):
    X, y = table
    whole = make(**SETTINGS).fit(X, y)

    class Break(Callback):
        only_shows = True

        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        make(**SETTINGS, callbacks=[Break()], checkpoint_dir=tmp_path).fit(X, y)
    resumed = make(**SETTINGS, checkpoint_dir=tmp_path).fit(X, y)
    again = make(**SETTINGS, checkpoint_dir=tmp_path).fit(X, y)
    copied = pickle.loads(pickle.dumps(whole))
    expected = whole.predict_proba(X)
    assert resumed.history_[:, "train_loss"] == whole.history_[:, "train_loss"]
    for clf in (resumed, again, copied):
        np.testing.assert_array_equal(clf.predict_proba(X), expected)
        assert_equal_states(clf, whole)
    whole.partial_fit(X, y)
    for clf in (resumed.set_params(checkpoint_dir=None), copied):
        assert_equal_states(clf.partial_fit(X, y), whole)
    pictures = make("resnet20", max_epochs=1, ema_decay=0.9, random_state=0).fit(*images)
    assert np.isfinite(pictures.predict_proba(images[0])).all()


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range(decay, table):
    with pytest.raises(ValueError, match="ema_decay must be None, or at least 0 and below 1"):
        MaxMarginClassifier(ema_decay=decay).fit(*table)
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        WeightAverage(nn.Linear(1, 1), decay)
