"""The one function of autograd that margins with many classes take: it is the ordinary way."""

from functools import partial

import pytest
import torch
from torch import func, nn
from torch.autograd import forward_ad

from imbmargin.losses import LDAMLoss, MaxMarginLDAMLoss, MaxMarginLoss, UniformMarginLoss, _shifted

LOSSES = {
    "mm": MaxMarginLoss,
    "mm_ldam": MaxMarginLDAMLoss,
    "ldam": LDAMLoss,
    "uniform_margin": UniformMarginLoss,
}
every_loss = pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
weighted = pytest.mark.parametrize("weighted", [False, True])


@pytest.fixture
def taken(monkeypatch):
    """Return the shapes of the logits that went through the function."""
    shapes, apply = [], _shifted._ShiftedCrossEntropy.apply

    def noted(logits, *others):
        shapes.append(tuple(logits.shape))
        return apply(logits, *others)

    monkeypatch.setattr(_shifted._ShiftedCrossEntropy, "apply", noted)
    return shapes


def take_it(monkeypatch, always):
    monkeypatch.setattr(_shifted, "_LEAST_LOGITS", 1 if always else 2**62)


def batch(rows, classes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.rand(rows, classes, dtype=dtype, generator=generator) - 1
    return logits.requires_grad_(), torch.randint(classes, (rows,), generator=generator)


def bound(make, classes, weighted=False, scale=30.0):
    loss = make(scale=scale)
    loss.set_class_counts(torch.linspace(500, 5, classes).long())
    loss.set_class_weight(torch.linspace(0.1, 3, classes) if weighted else None)
    return loss


def value_and_gradients(loss, logits, target):
    """Return the loss, its gradient, and the gradient of a number made of that."""
    value = loss(logits * 1, target)
    (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sin().sum() + gradient.square().sum(), logits)
    return value, gradient, second


@every_loss
@weighted
@pytest.mark.parametrize("shape", [(140, 1013), (1, 2**17)])
def test_many_classes_take_it(make, weighted, shape, taken, monkeypatch):
    logits, target = batch(*shape)
    loss = bound(make, shape[1], weighted)
    found = loss(logits, target), *torch.autograd.grad(loss(logits, target), logits)
    assert taken == [shape, shape]
    take_it(monkeypatch, always=False)
    expected = loss(logits, target), *torch.autograd.grad(loss(logits, target), logits)
    assert taken == [shape, shape]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.cuda
@every_loss
@weighted
def test_a_device_has_the_values_of_the_cpu(make, weighted, taken):
    logits, target = batch(140, 1013, torch.float32)
    loss = bound(make, 1013, weighted)
    expected = loss(logits, target), *torch.autograd.grad(loss(logits, target), logits)
    loss, there = loss.cuda(), logits.detach().cuda().requires_grad_()
    value = loss(there, target.cuda())
    found = value, *torch.autograd.grad(value, there)
    assert len(taken) == 3
    assert all(tensor.is_cuda for tensor in found)
    torch.testing.assert_close([tensor.cpu() for tensor in found], [*expected])


@every_loss
@weighted
@pytest.mark.parametrize("shape", [(12, 2), (7, 5), (33, 17)])
def test_derivatives_of_both_orders(make, weighted, shape, taken, monkeypatch):
    logits, target = batch(*shape)
    loss = bound(make, shape[1], weighted, scale=4.0)
    take_it(monkeypatch, always=False)
    expected = value_and_gradients(loss, logits, target)
    take_it(monkeypatch, always=True)
    torch.testing.assert_close(value_and_gradients(loss, logits, target), expected)
    assert taken == [shape]


def test_gradcheck(taken, monkeypatch):
    take_it(monkeypatch, always=True)
    logits, target = batch(6, 4)
    loss = partial(bound(LDAMLoss, 4, weighted=True, scale=3.0), target=target)
    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)
    assert taken


@every_loss
def test_a_row_far_on_the_wrong_side_in_float32(make, taken, monkeypatch):
    # The label's share, exp(-200), is 0 in float32.
    logits = torch.tensor([[1.0, -1.0, -1.0]], requires_grad=True)
    loss, target = bound(make, 3, scale=100.0), torch.tensor([2])
    take_it(monkeypatch, always=True)
    value = loss(logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    assert taken
    assert 200 < value < 301
    torch.testing.assert_close(gradient, torch.tensor([[100.0, 0.0, -100.0]]))


@every_loss
def test_large_logits_stay_finite(make, monkeypatch):
    take_it(monkeypatch, always=True)
    logits = torch.tensor([[1e4, 0.0], [-1e30, 1e30], [0.0, -torch.inf]], requires_grad=True)
    loss = bound(make, 2)
    value = loss(logits, torch.tensor([0, 1, 0]))
    (gradient,) = torch.autograd.grad(value, logits)
    assert value == 0
    assert (gradient == 0).all()


@every_loss
def test_logits_that_are_not_contiguous_and_a_second_pass_back(make, monkeypatch):
    logits, target = batch(9, 12)
    loss = bound(make, 12, weighted=True)
    expected = torch.autograd.grad(loss(logits, target), logits)
    take_it(monkeypatch, always=True)
    value = loss(logits.t().contiguous().t(), target)
    for _ in range(2):
        found = torch.autograd.grad(value, logits, retain_graph=True)
        torch.testing.assert_close(found, expected)


def test_the_logits_are_not_written(monkeypatch):
    take_it(monkeypatch, always=True)
    logits, target = batch(5, 4)
    before = logits.detach().clone()
    bound(MaxMarginLoss, 4, scale=1.0)(logits, target).backward()
    assert torch.equal(logits, before)


def test_a_margin_that_is_learned_gets_its_gradient(taken, monkeypatch):
    take_it(monkeypatch, always=True)
    logits, target = batch(6, 4)
    loss = bound(LDAMLoss, 4)
    loss.margins = nn.Parameter(loss.margins.clone())
    loss(logits, target).backward()
    assert loss.margins.grad.abs().sum() > 0
    assert logits.grad.abs().sum() > 0
    assert not taken


def test_an_adjust_of_ones_own_is_not_taken_for_it(taken, monkeypatch):
    class Steeper(MaxMarginLoss):
        def adjust(self, logits, target):
            return 2 * super().adjust(logits, target)

    take_it(monkeypatch, always=True)
    logits, target = batch(6, 4)
    twice, once = bound(Steeper, 4, scale=5.0), bound(MaxMarginLoss, 4, scale=5.0)
    (found,) = torch.autograd.grad(twice(logits, target), logits)
    assert not taken
    adjusted = 2 * once.adjust(logits, target)
    expected = nn.functional.cross_entropy(adjusted, target)
    torch.testing.assert_close(found, torch.autograd.grad(expected, logits)[0])


# torch itself still scripts what its forward mode needs.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_transforms_forward_derivatives_and_validation_go_the_ordinary_way(taken, monkeypatch):
    take_it(monkeypatch, always=True)
    logits, target = batch(6, 4)
    loss = bound(LDAMLoss, 4, scale=4.0)
    gradient = func.grad(lambda z: loss(z, target))(logits.detach())
    tangent = torch.cos(torch.arange(24.0, dtype=torch.float64)).view(6, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, tangent)
        slope = forward_ad.unpack_dual(loss(dual, target)).tangent
    loss(logits.detach(), target)
    compiled = torch.compile(loss, backend="eager")(logits, target)
    assert not taken
    torch.testing.assert_close(compiled, loss(logits, target))
    (expected,) = torch.autograd.grad(loss(logits, target), logits)
    assert taken
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(slope, (expected * tangent).sum())


def test_class_weights_of_0_and_weights_of_rows_go_the_ordinary_way(taken, monkeypatch):
    take_it(monkeypatch, always=True)
    logits, target = batch(6, 4)
    loss = bound(MaxMarginLoss, 4)
    loss(logits, target, torch.ones(6))
    loss.set_class_weight([0.0, 1.0, 1.0, 1.0])
    loss(logits, target)
    assert not taken
