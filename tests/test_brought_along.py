"""skorch's callbacks and torch's losses through checkpoints, files and failed trainings."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, Freezer, Initializer, LRScheduler, Unfreezer
from torch import nn

from imbmargin import MaxMarginClassifier, load_model, save_model
from tests.test_resume import assert_equal_nets


def small(**kwargs):
    settings = {"module__hidden_units": (8,), "max_epochs": 6, "random_state": 0}
    return MaxMarginClassifier(**{**settings, **kwargs})


class PowerCut(Callback):
    """Break off at the begin of an epoch, once for each instance."""

    only_shows = True

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise RuntimeError("power cut")


CASES = {
    "Freezer": {"callbacks": [Freezer("backbone*")]},
    "Unfreezer": {"callbacks": [Freezer("backbone*"), Unfreezer("backbone*", at=3)]},
    "Initializer": {"callbacks": [Initializer("head*", fn=partial(nn.init.uniform_, a=-0.1))]},
    "LRScheduler": {"callbacks": [LRScheduler("StepLR", step_size=2, gamma=0.5)]},
    "torch's loss, weighted": {"loss": nn.CrossEntropyLoss, "class_weight": "balanced"},
    "torch's loss, deferred": {"loss": nn.CrossEntropyLoss, "drw_epoch": 3},
}


def make(name, **kwargs):
    """Make a classifier of a case, with callbacks of its own: skorch's change in use."""
    settings = dict(CASES[name])
    callbacks = [type(cb)(**cb.get_params(deep=False)) for cb in settings.pop("callbacks", [])]
    return small(**settings, callbacks=callbacks + kwargs.pop("callbacks", []), **kwargs)


@pytest.mark.parametrize("epoch", [2, 5])
@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_broken_off_goes_on_to_the_same_bits(name, epoch, table, tmp_path):
    whole = make(name).fit(*table)
    with pytest.raises(RuntimeError, match="power cut"):
        make(name, callbacks=[PowerCut(epoch)], checkpoint_dir=tmp_path).fit(*table)
    resumed = make(name, checkpoint_dir=tmp_path).fit(*table)
    assert_equal_nets(resumed, whole)
    for one, other in zip(resumed.module_.parameters(), whole.module_.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
    # The same object again: what its callbacks have become is no other configuration.
    assert_equal_nets(resumed.fit(*table), whole)


@pytest.mark.cuda
@pytest.mark.parametrize("name", CASES)
def test_a_run_on_a_cuda_device_goes_on_there(name, table, tmp_path):
    X, y = table
    whole = make(name, device="cuda").fit(X, y)
    with pytest.raises(RuntimeError, match="power cut"):
        make(name, device="cuda", callbacks=[PowerCut(5)], checkpoint_dir=tmp_path).fit(X, y)
    resumed = make(name, device="cuda", checkpoint_dir=tmp_path).fit(X, y)
    np.testing.assert_allclose(resumed.predict_proba(X), whole.predict_proba(X), atol=1e-3)
    buffers = [*resumed.module_.state_dict().values(), *resumed.criterion_.state_dict().values()]
    assert all(buffer.is_cuda for buffer in buffers)


@pytest.mark.parametrize("name", CASES)
def test_a_model_in_a_file_predicts_and_goes_on(name, table, tmp_path):
    X, y = table
    clf = make(name).fit(X, y)
    save_model(clf, tmp_path / "model.safetensors")
    trusted = [nn.init.uniform_] if name == "Initializer" else []
    loaded = load_model(tmp_path / "model.safetensors", trusted=trusted)
    np.testing.assert_array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert_equal_nets(loaded.partial_fit(X, y), clf.partial_fit(X, y))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("torch")])
def test_a_failed_training_leaves_a_loss_of_torch_as_it_was(name, table):
    X, y = table
    clf = small(loss=nn.CrossEntropyLoss, max_epochs=2).fit(X, y)
    before = clf.predict_proba(X)
    clf.set_params(**{**CASES[name], "drw_epoch": None, "class_weight": "balanced"})
    clf.set_params(callbacks=[PowerCut(4)])
    with pytest.raises(RuntimeError, match="power cut"):
        clf.partial_fit(X, y)
    assert len(clf.history) == 2
    assert clf.criterion_.weight is None
    np.testing.assert_array_equal(clf.predict_proba(X), before)


def test_arguments_of_callbacks_are_part_of_the_configuration(table, tmp_path):
    X, y = table
    grid = {"callbacks__reweighting__beta": [0.0, 0.9, 0.9999]}
    scores = []
    for folder in (None, tmp_path / "{run}"):
        net = small(drw_epoch=1, max_epochs=3, checkpoint_dir=folder)
        search = GridSearchCV(net, grid, cv=2, scoring="neg_log_loss").fit(X, y)
        scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)
    assert len(set(scores[0])) == 3
    net = small(drw_epoch=1, max_epochs=3, checkpoint_dir=tmp_path / "one").fit(X, y)
    net.set_params(callbacks__print_log__sink=print).fit(X, y)
    with pytest.raises(ValueError, match=r"callbacks__reweighting__beta was None, now 0\.9"):
        net.set_params(callbacks__reweighting__beta=0.9).fit(X, y)
    with pytest.raises(ValueError, match=r"callbacks was \[\], now 'disable'"):
        small(max_epochs=3, drw_epoch=1, callbacks="disable", checkpoint_dir=tmp_path / "one").fit(
            X, y
        )


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, nn.CrossEntropyLoss(), nn.MultiMarginLoss])
def test_weights_of_rows_need_a_loss_that_takes_them(loss, table):
    X, y = table
    with pytest.raises(ValueError, match=r"sample_weight needs a loss that takes weights of rows"):
        small(loss=loss).fit(X, y, sample_weight=np.ones(len(X)))


class Weighted(nn.Module):
    """A user's loss, which is no class of the package."""

    def forward(self, logits, target, weight=None):
        losses = nn.functional.cross_entropy(logits, target, reduction="none")
        return (losses if weight is None else losses * weight).mean()


@pytest.mark.parametrize("loss", [Weighted, Weighted(), partial(Weighted)])
def test_a_loss_of_the_users_own_may_take_weights_of_rows(loss, table):
    X, y = table
    weight = torch.linspace(0, 1, len(X)).numpy()
    clf = small(loss=loss, mixing="mixup", max_epochs=1).fit(X, y, sample_weight=weight)
    other = small(loss=loss, mixing="mixup", max_epochs=1).fit(X, y)
    assert (clf.predict_proba(X) != other.predict_proba(X)).any()
