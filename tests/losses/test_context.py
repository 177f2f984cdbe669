"""Losses that need more than the logits: features, and the weights of the last layer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from imbmargin import MaxMarginClassifier, load_model, save_model
from imbmargin.losses import (
    LOSSES,
    ClassCountLoss,
    InfluenceBalancedLoss,
    LargeMarginSoftmaxLoss,
)
from imbmargin.metrics import balanced_accuracy
from tests.reference import losses as naive

COUNTS = [70, 20, 9, 3]
CONTEXT = {name: loss for name, loss in LOSSES.items() if loss.needs}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, dtype=torch.float64, generator=generator)
    w = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    return x, w, torch.arange(40) % 4


def test_every_loss_with_a_context_is_tested_here():
    assert set(CONTEXT) == {"influence_balanced", "large_margin_softmax"}


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("class_weight", [None, [0.1, 0.5, 1.5, 4.0]])
def test_influence_balanced_is_a_loop(by_class, class_weight, batch):
    x, w, y = batch
    loss = InfluenceBalancedLoss(alpha=5.0, by_class=by_class)
    loss.set_class_counts(COUNTS)
    loss.set_class_weight(class_weight)
    inverse = [1 / n for n in COUNTS]
    factors = [5 * 4 * v / sum(inverse) if by_class else 5.0 for v in inverse]
    rows = zip((x @ w.T).tolist(), y.tolist(), x.tolist(), strict=True)
    losses = [naive.influence_balanced(z, label, h, factors[label], 1e-3) for z, label, h in rows]
    weights = [1.0 if class_weight is None else class_weight[label] for label in y.tolist()]
    expected = naive.weighted_mean(losses, weights)
    assert loss(x @ w.T, y, features=x).item() == pytest.approx(expected, rel=1e-10)


def test_the_published_value_of_influence_balanced():
    z = torch.tensor([[0.6, 0.2, -0.1]], dtype=torch.float64)
    h = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    loss = InfluenceBalancedLoss(alpha=1 / 3)
    loss.set_class_counts([100, 10, 1])
    assert loss(z, torch.tensor([1]), features=h).item() == pytest.approx(0.021859, abs=6e-7)


def test_the_denominator_carries_a_gradient_unless_it_is_detached(batch):
    x, w, y = batch
    gradients = []
    for detach in (False, True):
        features = x.clone().requires_grad_()
        loss = InfluenceBalancedLoss(detach=detach)
        loss.set_class_counts(COUNTS)
        loss((x @ w.T).requires_grad_(), y, features=features).backward()
        gradients.append(features.grad)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None


@pytest.mark.parametrize("multiple", [1, 2, 3, 4])
@pytest.mark.parametrize("blend", [0.0, 3.0])
def test_large_margin_softmax_is_a_loop(multiple, blend, batch):
    x, w, y = batch
    loss = LargeMarginSoftmaxLoss(multiple, blend=blend, gamma=0.0).eval()
    losses = [
        naive.large_margin_softmax(row, w.tolist(), label, multiple, blend)
        for row, label in zip(x.tolist(), y.tolist(), strict=True)
    ]
    found = loss(x @ w.T, y, features=x, head_weight=w)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-10)
    if multiple == 1:
        assert found.item() == pytest.approx(LOSSES["cross_entropy"]()(x @ w.T, y).item())


@given(angle=st.floats(0, np.pi), multiple=st.integers(1, 4))
@settings(derandomize=True, deadline=None, max_examples=100)
def test_the_angle_falls_from_1_to_1_minus_2m(angle, multiple):
    x = torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float64)
    w = torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    loss = LargeMarginSoftmaxLoss(multiple, blend=0.0)
    psi = loss.adjust(x @ w.T, torch.tensor([0]), features=x, head_weight=w)[0, 0].item()
    assert 1 - 2 * multiple - 1e-6 <= psi <= np.cos(angle) + 1e-6


def test_the_gradient_is_finite_where_the_angle_is_0_or_straight():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], requires_grad=True)
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    loss = LargeMarginSoftmaxLoss(4, blend=0.0)
    loss(x @ w.T, torch.tensor([0, 0, 0]), features=x, head_weight=w).backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(w.grad).all()


def test_the_blend_falls_with_the_training_batches(batch):
    x, w, y = batch
    loss = LargeMarginSoftmaxLoss(blend=10.0, gamma=0.5, power=2.0, least_blend=0.1)

    def value(blend):
        fixed = LargeMarginSoftmaxLoss(blend=blend, gamma=0.0)
        return fixed(x @ w.T, y, features=x, head_weight=w).item()

    for t in range(30):
        found = loss(x @ w.T, y, features=x, head_weight=w).item()
        assert found == pytest.approx(value(max(0.1, 10 * (1 + 0.5 * t) ** -2)))
    loss.eval()
    for _ in range(2):
        loss(x @ w.T, y, features=x, head_weight=w)
    assert loss.batches == 30


def test_the_blend_falls_as_published_in_a_fit_of_any_length(batch, table):
    x, w, y = batch
    found = []
    for steps in (3, 30_000):
        loss = LargeMarginSoftmaxLoss()
        loss.planned_batches = steps
        loss.batches.fill_(steps)
        found.append(loss(x @ w.T, y, features=x, head_weight=w).item())
    assert found[0] == found[1]
    assert loss.batches == 30_001
    settings = {"loss": "large_margin_softmax", "loss_epoch": 2, "max_epochs": 6}
    for name in ("iterator_train__batch_size", "batch_size"):
        clf = MaxMarginClassifier(**settings, **{name: 50}, random_state=0).fit(*table)
        assert clf.criterion_.batches == clf.criterion_.planned_batches
        assert clf.criterion_.batches == 4 * clf.history_[-1, "train_batch_count"]
    # Nobody knows how often it will be called.
    clf.partial_fit(*table)
    assert clf.criterion_.batches > clf.criterion_.planned_batches
    first = MaxMarginClassifier(**settings).partial_fit(*table)
    assert first.criterion_.planned_batches == 30_000


@pytest.mark.parametrize("make", CONTEXT.values(), ids=CONTEXT)
def test_what_is_missing_is_named(make):
    loss = make()
    loss.set_class_counts([2, 1])
    with pytest.raises(RuntimeError, match=r"needs \['features'.*: call loss\(logits, target, fea"):
        loss(torch.zeros(2, 2), torch.tensor([0, 1]))


class Network(nn.Module):
    """A user's network, without an attribute `head`."""

    def __init__(self, num_classes, in_features, bias=False):
        super().__init__()
        self.first = nn.Linear(in_features, 16)
        self.last = nn.Linear(16, num_classes, bias=bias)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


class LengthShifted(ClassCountLoss):
    """A user's cross-entropy whose logits are shifted by the length of the features."""

    needs = ("features",)

    def adjust(self, logits, target, *, features):
        return logits + features.norm(dim=1, keepdim=True) * torch.arange(logits.shape[1])


def test_adjusted_logits_may_need_a_context_with_and_without_weights_of_rows(batch, table):
    x, w, y = batch
    loss, weight = LengthShifted(), torch.linspace(0.1, 2, len(y), dtype=torch.float64)
    losses = F.cross_entropy(loss.adjust(x @ w.T, y, features=x), y, reduction="none")
    torch.testing.assert_close(loss(x @ w.T, y, features=x), losses.mean())
    expected = (weight * losses).sum() / weight.sum()
    torch.testing.assert_close(loss(x @ w.T, y, weight, features=x), expected)
    X, labels = table
    clf = MaxMarginClassifier(Network, loss=LengthShifted, max_epochs=1)
    clf.fit(X, labels, sample_weight=np.linspace(0.1, 2, len(X)))


@pytest.mark.parametrize("name", CONTEXT)
@pytest.mark.parametrize("module", ["auto", Network])
@pytest.mark.parametrize("mixing", [None, "mixup"])
def test_the_classifier_passes_what_they_need(name, module, mixing, table):
    X, y = table
    settings = {"loss": name, "mixing": mixing, "loss_epoch": 0.5, "max_epochs": 60}
    clf = MaxMarginClassifier(module, **settings, train_split=0.2, random_state=0).fit(X, y)
    assert balanced_accuracy(y, clf.predict(X)) > 0.5
    assert np.isfinite(clf.history_[:, "valid_loss"]).all()
    assert clf._context == {}
    head = clf.module_.head if module == "auto" else clf.module_.last
    assert (head.bias is None) == (name == "large_margin_softmax" or module is Network)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_large_margin_softmax_needs_plain_products(head, table):
    clf = MaxMarginClassifier(loss="large_margin_softmax", module__head=head, max_epochs=1)
    with pytest.raises(ValueError, match="needs a head without a bias, whose logits are products"):
        clf.fit(*table)


def test_influence_balanced_takes_any_head(table):
    def head(in_features, num_classes):
        return nn.Sequential(nn.Dropout(0.1), nn.Linear(in_features, num_classes))

    settings = {"loss_epoch": 10, "max_epochs": 20, "random_state": 0}
    clf = MaxMarginClassifier(loss="influence_balanced", module__head=head, **settings)
    assert clf.fit(*table).score(*table) > 0.8
    assert isinstance(clf.module_.head, nn.Sequential)


def test_features_are_those_of_the_batch(table):
    X, y = table
    clf = MaxMarginClassifier(loss="influence_balanced", max_epochs=1, random_state=0).fit(X, y)
    rows = torch.from_numpy(X[:10])
    logits = clf.infer(rows)
    found = clf._context["features"]
    torch.testing.assert_close(found, clf.module_.backbone(clf.module_.input_norm(rows)))
    torch.testing.assert_close(clf.module_.head(found), logits)
    clf.get_loss(logits, torch.from_numpy(y[:10])).backward()
    assert clf._context == {}


@pytest.mark.parametrize("loss", ["vs", "mm"])
def test_a_deferred_loss_is_cross_entropy_first(loss, table):
    X, y = table
    settings = {"max_epochs": 4, "random_state": 0}
    deferred = MaxMarginClassifier(loss=loss, loss_epoch=2, **settings).fit(X, y)
    own = MaxMarginClassifier(loss=loss, **settings).fit(X, y)
    losses = [clf.history_[:, "train_loss"] for clf in (deferred, own)]
    assert losses[0][0] != losses[1][0]
    if loss == "vs":
        plain = MaxMarginClassifier(loss="cross_entropy", **settings).fit(X, y)
        np.testing.assert_allclose(losses[0][:2], plain.history_[:, "train_loss"][:2], rtol=1e-6)
        assert losses[0][2] != pytest.approx(plain.history_[2, "train_loss"], rel=1e-3)


def test_a_deferred_loss_of_torch_is_an_error(table):
    with pytest.raises(TypeError, match=r"loss_epoch=1 needs a loss of imbmargin\.losses, got Cro"):
        MaxMarginClassifier(loss=nn.CrossEntropyLoss, loss_epoch=1, max_epochs=2).fit(*table)
    with pytest.raises(ValueError, match="loss_epoch=9 is never reached"):
        MaxMarginClassifier(loss="vs", loss_epoch=9, max_epochs=2).fit(*table)


@pytest.mark.parametrize("name", ["mm", "mm_ldam", "ldam", "uniform_margin", "hinge", "ldam_hinge"])
def test_a_loss_that_is_not_active_is_cross_entropy_of_the_scaled_logits(name, batch):
    x, w, y = batch
    loss = LOSSES[name](scale=4.0)
    loss.set_class_counts(COUNTS)
    loss.active = False
    torch.testing.assert_close(loss(x @ w.T, y), F.cross_entropy(4 * (x @ w.T), y))


@pytest.mark.parametrize("multiple", [1, 2, 3, 4])
def test_the_gradient_of_large_margin_softmax(multiple, batch):
    x, w, y = batch
    loss = LargeMarginSoftmaxLoss(multiple, blend=0.5, gamma=0.0).eval()
    free = [part.clone().requires_grad_() for part in (x[:8], w)]

    def of_both(features, weight):
        return loss(features @ weight.T, y[:8], features=features, head_weight=weight)

    assert torch.autograd.gradcheck(of_both, free)


@pytest.mark.parametrize("detach", [False, True])
def test_the_gradient_of_influence_balanced(detach, batch):
    x, w, y = (part[:8] if len(part) == 40 else part for part in batch)
    z = (x @ w.T).requires_grad_()
    loss = InfluenceBalancedLoss(alpha=5.0, detach=detach)
    loss.set_class_counts(COUNTS)
    loss(z, y, features=x).backward()
    inverse = 1 / torch.tensor(COUNTS, dtype=torch.float64)
    factor = (5 * 4 * inverse / inverse.sum())[y]

    def denominator(z):
        return (z.softmax(1) - F.one_hot(y, 4)).abs().sum(1) * x.abs().sum(1) + 1e-3

    held = denominator(z.detach())

    def total(z):
        losses = factor * F.cross_entropy(z, y, reduction="none")
        return (losses / (held if detach else denominator(z))).mean()

    step = 1e-6
    for i, j in np.ndindex(8, 4):
        moved = torch.zeros(8, 4, dtype=torch.float64)
        moved[i, j] = step
        change = total(z.detach() + moved) - total(z.detach() - moved)
        assert z.grad[i, j].item() == pytest.approx(change.item() / (2 * step), abs=1e-7)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (LargeMarginSoftmaxLoss, {"multiple": 5}, r"multiple must be one of \[1, 2, 3, 4\], got 5"),
        (LargeMarginSoftmaxLoss, {"blend": -1}, "blend must be at least 0, got -1"),
        (LargeMarginSoftmaxLoss, {"gamma": -1}, "gamma must be at least 0, got -1"),
        (LargeMarginSoftmaxLoss, {"power": -1}, "power must be at least 0, got -1"),
        (LargeMarginSoftmaxLoss, {"least_blend": -1}, "least_blend must be at least 0, got -1"),
        (InfluenceBalancedLoss, {"alpha": 0}, "alpha must be above 0, got 0"),
        (InfluenceBalancedLoss, {"epsilon": 0}, "epsilon must be above 0, got 0"),
    ],
)
def test_arguments_out_of_range(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_large_margin_softmax_goes_on_as_planned_after_loading(table, tmp_path):
    X, y = table
    clf = MaxMarginClassifier(loss="large_margin_softmax", max_epochs=3, random_state=0).fit(X, y)
    save_model(clf, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.criterion_.planned_batches == clf.criterion_.planned_batches < 100
    expected = clf.partial_fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(loaded.partial_fit(X, y).predict_proba(X), expected)
