import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn
from torch.func import functional_call
from torch.utils.data import TensorDataset

from imbmargin import BatchedGridSearchCV, make_long_tailed
from imbmargin.meta import MetaWeightNetClassifier
from tests.checks import expected_failures

SETTINGS = {"max_epochs": 5, "random_state": 0, "module__hidden_units": (8,)}


@parametrize_with_checks(
    [MetaWeightNetClassifier(max_epochs=30, random_state=0)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_small_network_goes_down_the_loss_after_a_virtual_step(weighted, table):
    """The step is that of finite differences of the meta loss, for one weight of the network."""
    X, y = table
    clf = MetaWeightNetClassifier(**SETTINGS).fit(X, y)
    clf.module_.double()
    x, target = torch.from_numpy(X[:20]).double(), torch.from_numpy(y[:20])
    given, by_class = torch.linspace(0.1, 3, 20).double(), torch.tensor([0.2, 1.0, 5.0]).double()
    if weighted:
        clf.criterion_.set_class_weight(by_class)
    clf.meta_rows_ = clf.meta_rows_.double()
    lr = clf.optimizer_.param_groups[0]["lr"]

    def losses_of(logits, labels):
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    def meta_loss():
        weights = dict(clf.module_.named_parameters())
        losses = losses_of(functional_call(clf.module_, weights, (x,)), target)
        rows = clf.weight_net_(losses.detach().float().unsqueeze(1)).squeeze(1).double()
        if weighted:
            rows = rows * given * by_class[target]
        total = (rows * losses).sum() / rows.sum()
        gradients = torch.autograd.grad(total, list(weights.values()))
        moved = {
            name: weight - lr * gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
        return losses_of(functional_call(clf.module_, moved, (clf.meta_rows_,)), clf.meta_targets_)

    parameter, step = clf.weight_net_[2].bias, 1e-2
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * step
        values.append(meta_loss().mean().item())
        with torch.no_grad():
            parameter -= sign * step
    expected = (values[0] - values[1]) / (2 * step)
    seen = []
    clf.weight_optimizer_.step = lambda: seen.append(parameter.grad.item())
    losses = losses_of(clf.module_(x), target)
    clf._change_weights(x, target, losses, given if weighted else None)
    # The small network computes in float32.
    assert seen[0] == pytest.approx(expected, rel=0.02)
    assert parameter.grad is None


def test_the_virtual_step_has_the_loss_and_the_dropout_of_the_real_one(table, monkeypatch):
    X, y = table
    settings = {"loss": "vs", "loss_epoch": 1, "max_epochs": 2, "module__dropout": 0.5}
    clf = MetaWeightNetClassifier(**{**SETTINGS, **settings})
    seen = []

    def slopes(weights, direction, x, target):
        with torch.no_grad():
            logits = clf._virtual(weights, x)
            seen.append((clf.criterion_.active, logits, clf.criterion_.row_losses(logits, target)))
        return seen[-1][2]

    change = clf._change_weights

    def changed(x, target, losses, *args):
        change(x, target, losses, *args)
        torch.testing.assert_close(seen[-1][2], losses)
        active, logits, _ = seen[-1]
        plain = nn.functional.cross_entropy(logits, target, reduction="none")
        assert torch.allclose(losses, plain) != active

    monkeypatch.setattr(clf, "_slopes", slopes, raising=False)
    monkeypatch.setattr(clf, "_change_weights", changed, raising=False)
    clf.fit(X, y)
    assert {active for active, *_ in seen} == {False, True}


def test_virtual_steps_leave_statistics_and_gradients_alone(images):
    X, y = images
    clf = MetaWeightNetClassifier("resnet20", max_epochs=1, random_state=0, batch_size=32).fit(
        X[:64], y[:64]
    )
    before = {name: value.clone() for name, value in clf.module_.state_dict().items()}
    x, target = torch.from_numpy(X[:16]), torch.from_numpy(y[:16])
    clf.module_.train()
    x = clf._network_input(x)
    losses = clf.criterion_.per_sample(
        clf._virtual(dict(clf.module_.named_parameters()), x), target
    )
    clf._change_weights(x, target, losses)
    after = clf.module_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_half_precisions(images, float16, monkeypatch):
    X, y = images
    clf = MetaWeightNetClassifier("resnet20", max_epochs=1, random_state=0, batch_size=32)
    with pytest.raises(ValueError, match="gradients of a virtual step are lost; use 'bfloat16'"):
        clf.fit(X[:64], y[:64])
    monkeypatch.undo()
    clf.set_params(precision="bfloat16").fit(X[:64], y[:64])
    assert np.isfinite(clf.history[:, "train_loss"]).all()


def test_the_small_network_learns_and_its_rate_stays(images):
    X, y = images
    settings = {"max_epochs": 4, "random_state": 0, "batch_size": 64}
    clf = MetaWeightNetClassifier("resnet20", **settings).fit(X[:128], y[:128])
    fresh = clone(clf)
    fresh.fit(X[:128], y[:128], epochs=0)
    assert not torch.equal(clf.weight_net_[0].weight, fresh.weight_net_[0].weight)
    assert clf.weight_optimizer_.param_groups[0]["lr"] == 1e-5
    assert clf.optimizer_.param_groups[0]["lr"] < 0.1


def test_the_meta_set_is_balanced_and_drawn_from_the_training_part(table):
    X, y = table
    clf = MetaWeightNetClassifier(**SETTINGS, train_split=0.3, meta_per_class=12).fit(X, y)
    assert clf.meta_targets_.bincount().tolist() == [12, 12, 12]
    rows = {row.tobytes() for row in X}
    assert all(row.numpy().tobytes() in rows for row in clf.meta_rows_)
    # The rarest class has about 21 rows; asked for more, they come again.
    many = MetaWeightNetClassifier(**SETTINGS, meta_per_class=50).fit(X, y)
    assert many.meta_targets_.bincount().tolist() == [50, 50, 50]


def test_a_meta_set_of_the_user(table):
    X, y = table
    labels = np.array(["a", "b", "c"])[y]
    meta = X[:60], labels[:60]
    clf = MetaWeightNetClassifier(**SETTINGS, meta_set=meta).fit(X[60:], labels[60:])
    torch.testing.assert_close(clf.meta_rows_, torch.from_numpy(X[:60]))
    assert clf.meta_targets_.tolist() == y[:60].tolist()
    lacking = MetaWeightNetClassifier(**SETTINGS, meta_set=(X[y < 2], labels[y < 2]))
    with pytest.raises(ValueError, match=r"meta_set has no rows of \['c'\]"):
        lacking.fit(X, labels)
    with pytest.raises(ValueError, match="X has 3 features, but MetaWeightNetClassifier is expec"):
        MetaWeightNetClassifier(**SETTINGS, meta_set=(X[:, :3], labels)).fit(X, labels)


def test_wrong_labels_weigh_less():
    X, y = make_classification(460, 6, class_sep=2.0, flip_y=0, random_state=1)
    X = X.astype(np.float32)
    wrong = np.random.default_rng(0).random(400) < 0.3
    noisy = np.where(wrong, 1 - y[60:], y[60:])
    settings = {"max_epochs": 40, "random_state": 0, "meta_lr": 0.1}
    clf = MetaWeightNetClassifier(**settings, meta_set=(X[:60], y[:60])).fit(X[60:], noisy)
    with torch.no_grad():
        weight = clf.weight_net_(torch.tensor([[0.05], [4.0]])).flatten()
    # A large loss is a wrong label more often than not.
    assert weight[0] > 2 * weight[1]
    assert clf.score(X[60:], y[60:]) > 0.85


def test_rows_that_are_learned_keep_a_weight():
    X, y = load_digits(return_X_y=True)
    X, y = make_long_tailed(X.astype(np.float32), y, imbalance_ratio=20, random_state=0)
    settings = {"optimizer": torch.optim.SGD, "lr": 0.1, "batch_size": 32, "max_epochs": 60}
    clf = MetaWeightNetClassifier(**settings, random_state=0).fit(X, y)
    with torch.no_grad():
        learned, hard = clf.weight_net_(torch.tensor([[0.0], [5.0]])).flatten()
    # Adam's steps at 1e-3 made it 6 here, and 1,000 after five epochs of CIFAR-10.
    assert 1 < hard / learned < 3


def test_checkpoints_datasets_and_pickles(table, tmp_path):
    X, y = table
    whole = MetaWeightNetClassifier(**SETTINGS).fit(X, y)
    kept = MetaWeightNetClassifier(**SETTINGS, checkpoint_dir=tmp_path).fit(X, y)
    again = MetaWeightNetClassifier(**SETTINGS, checkpoint_dir=tmp_path).fit(X, y)
    for clf in (kept, again, pickle.loads(pickle.dumps(whole))):
        np.testing.assert_array_equal(clf.predict_proba(X), whole.predict_proba(X))
        assert torch.equal(clf.weight_net_[2].weight, whole.weight_net_[2].weight)
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    assert MetaWeightNetClassifier(**SETTINGS).fit(rows, None).predict(X).shape == y.shape


def test_its_repr_shows_what_is_not_the_default():
    clf = MetaWeightNetClassifier(meta_lr=0.01, drw_epoch=0.8, optimizer__momentum=0.9)
    assert repr(clf) == (
        "MetaWeightNetClassifier(drw_epoch=0.8, meta_lr=0.01, optimizer__momentum=0.9)"
    )
    assert repr(MetaWeightNetClassifier()) == "MetaWeightNetClassifier()"


def test_it_is_not_batched_with_others(table):
    X, y = table
    grid = {"lr": [0.01, 0.02]}
    with pytest.warns(UserWarning, match="one at a time"):
        BatchedGridSearchCV(MetaWeightNetClassifier(**SETTINGS), grid, cv=2).fit(X, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"meta_per_class": 0}, "meta_per_class must be an integer of at least 1, got 0"),
        ({"meta_hidden": 2.5}, "meta_hidden must be an integer of at least 1, got 2.5"),
        ({"meta_lr": 0}, "meta_lr must be above 0, got 0"),
        ({"mixing": "mixup"}, "mixing='mixup' and weights of single rows cannot be had together"),
        ({"loss": "influence_balanced"}, "does not give losses of single rows from the logits"),
        ({"loss": nn.CrossEntropyLoss}, "does not give losses of single rows from the logits"),
    ],
)
def test_wrong_arguments(arguments, message, table):
    with pytest.raises(ValueError, match=message):
        MetaWeightNetClassifier(**{**SETTINGS, **arguments}).fit(*table)
