import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from imbmargin import MaxMarginClassifier
from imbmargin.bbn import BBNClassifier
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.modules import WeightAverage

SETTINGS = {"max_epochs": 6, "random_state": 0, "batch_size": 64, "ema_decay": 0.9}


class Weights(Callback):
    """Keep the weights after every step, and the average."""

    only_shows = True

    def on_train_begin(self, net, **kwargs):
        self.seen = [net.module_.head.weight.detach().clone()]

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.seen.append(net.module_.head.weight.detach().clone())


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
    torch.testing.assert_close(clf.average_.network.head.weight, expected)
    assert clf.average_.updates == 30


def test_training_is_as_without_it_and_prediction_is_not(table):
    X, y = table
    averaged = MaxMarginClassifier(**SETTINGS).fit(X, y)
    plain = MaxMarginClassifier(**{**SETTINGS, "ema_decay": None}).fit(X, y)
    for name in ("train_loss", "event_lr"):
        assert averaged.history_[:, name] == plain.history_[:, name]
    assert not np.allclose(averaged.predict_proba(X), plain.predict_proba(X))
    assert plain.average_ is None
    averaged.average_ = None
    again = averaged.predict_proba(X)
    averaged.fit(X, y)
    np.testing.assert_array_equal(averaged.predict_proba(X), again)


def test_the_validation_part_is_judged_by_the_average(table):
    X, y = table
    settings = {**SETTINGS, "train_split": 0.3, "loss": "influence_balanced"}
    averaged = MaxMarginClassifier(**settings).fit(X, y)
    plain = MaxMarginClassifier(**{**settings, "ema_decay": None}).fit(X, y)
    assert averaged.history_[:, "train_loss"] == plain.history_[:, "train_loss"]
    assert averaged.history_[:, "valid_loss"] != plain.history_[:, "valid_loss"]


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
    for clf in (resumed, again, pickle.loads(pickle.dumps(whole))):
        np.testing.assert_array_equal(clf.predict_proba(X), whole.predict_proba(X))
        assert clf.average_.updates == whole.average_.updates
    pictures = make("resnet20", max_epochs=1, ema_decay=0.9, random_state=0).fit(*images)
    assert np.isfinite(pictures.predict_proba(images[0])).all()


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range(decay, table):
    with pytest.raises(ValueError, match="ema_decay must be None, or at least 0 and below 1"):
        MaxMarginClassifier(ema_decay=decay).fit(*table)
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1"):
        WeightAverage(nn.Linear(1, 1), decay)
