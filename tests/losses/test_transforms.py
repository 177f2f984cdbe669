"""What the margin losses write into one buffer is unseen by autograd and by torch.func."""

from functools import partial

import pytest
import torch
from torch import func, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from imbmargin.losses import (
    LOSSES,
    LDAMLoss,
    MaxMarginLoss,
    ldam_loss,
    ldam_margins,
    max_margin,
    max_margin_loss,
    weighted_mean,
)

COUNTS = torch.tensor([70, 20, 9, 3])
SCALE = 4.0
MARGIN_LOSSES = ["mm", "mm_ldam", "ldam", "uniform_margin"]
PLAIN = {name: loss for name, loss in LOSSES.items() if not loss.needs}
every_loss = pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)


def shifted(logits, target, margin, scale=SCALE):
    """Cross-entropy of s (z - margin e_y) with nothing written in place."""
    label = torch.arange(logits.shape[-1]) == target.unsqueeze(-1)
    adjusted = scale * (logits - margin.detach().unsqueeze(-1) * label)
    return -F.log_softmax(adjusted, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)


def naive_mm(logits, target, delta_neg=0.6, beta=1.5, scale=SCALE):
    return shifted(logits, target, naive_margin(logits, target, delta_neg, beta), scale)


def naive_margin(logits, target, delta_neg=0.6, beta=1.5):
    label = torch.arange(logits.shape[-1]) == target.unsqueeze(-1)
    gap = (logits * label).sum(-1) - torch.where(label, -torch.inf, logits).amax(-1)
    right = (gap >= 0).to(logits.dtype)
    return torch.exp(-gap.abs() - delta_neg * (1 + (beta - 1) * right))


def naive_ldam(logits, target):
    return shifted(logits, target, ldam_margins(COUNTS)[target])


PAIRS = {
    "mm": (partial(max_margin_loss, scale=SCALE), naive_mm),
    "ldam": (lambda z, y: ldam_loss(z, y, ldam_margins(COUNTS), SCALE), naive_ldam),
}
every_pair = pytest.mark.parametrize(("loss", "naive"), PAIRS.values(), ids=PAIRS)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    logits[0], logits[1] = torch.tensor([-0.2, -0.5, -0.6, -0.9]), torch.tensor([0.1, 0.3, 0.3, 0])
    return logits, torch.arange(12) % 4


@pytest.fixture
def candidates():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 12, 4, dtype=torch.float64, generator=generator)
    delta_neg = torch.tensor([0.2, 0.6, 1.2], dtype=torch.float64)
    beta = torch.tensor([0.8, 1.0, 1.5], dtype=torch.float64)
    return logits, delta_neg, beta


def bound(name, class_weight=None):
    loss = LOSSES[name](scale=SCALE)
    loss.set_class_counts(COUNTS)
    loss.set_class_weight(class_weight)
    return loss


def mean_of(name, class_weight):
    """Return the naive form of what `bound` returns."""
    margins = ldam_margins(COUNTS, power=0 if name == "uniform_margin" else 0.25)

    def loss(logits, target):
        if name == "mm":
            losses = naive_mm(logits, target)
        elif name == "mm_ldam":
            losses = naive_mm(logits, target, 0.6 - margins[target])
        else:
            losses = shifted(logits, target, margins[target])
        weight = torch.ones_like(losses) if class_weight is None else class_weight[target]
        return (weight * losses).sum() / weight.sum()

    return loss


@pytest.mark.parametrize("name", MARGIN_LOSSES)
@pytest.mark.parametrize("class_weight", [None, torch.tensor([0.1, 0.5, 1.5, 4.0])])
@pytest.mark.parametrize("weighted_rows", [False, True])
def test_first_and_second_derivatives(name, class_weight, weighted_rows, batch):
    logits, target = batch
    weight = None if class_weight is None else class_weight.double()
    rows = torch.ones(12, dtype=torch.float64) if weighted_rows else None
    found, direction = [], torch.sin(torch.arange(48.0, dtype=torch.float64)).view(12, 4)
    for loss in (partial(bound(name, weight), sample_weight=rows), mean_of(name, weight)):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf * 1, target)
        (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
        (second,) = torch.autograd.grad(
            (gradient * direction).sum() + gradient.square().sum(), leaf
        )
        found.append((value, gradient, second))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_gradcheck_with_the_margin_held(batch):
    # Each row is a class of its own, so that ldam_loss can hold the margin of each row.
    logits, target = batch[0][:4].contiguous().requires_grad_(), torch.arange(4)
    held = partial(ldam_loss, target=target, margins=max_margin(logits, target), scale=SCALE)
    assert torch.autograd.gradcheck(held, logits)
    assert torch.autograd.gradgradcheck(held, logits)
    free = partial(max_margin_loss, target=target, scale=SCALE)
    torch.testing.assert_close(free(logits), held(logits))
    jacobian = torch.autograd.functional.jacobian
    torch.testing.assert_close(jacobian(free, logits), jacobian(held, logits))


# torch itself still scripts what its forward mode needs.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
@every_pair
@pytest.mark.parametrize("transform", [func.grad, func.hessian, func.jacfwd, func.jacrev])
def test_derivatives_of_torch_func(loss, naive, transform, batch):
    logits, target = batch
    found, expected = (
        transform(lambda z, function=function: function(z, target).sum())(logits)
        for function in (loss, naive)
    )
    torch.testing.assert_close(found, expected)


@every_pair
def test_functional_call_and_gradients_of_single_rows(loss, naive, batch):
    x, target = batch
    model = nn.Linear(4, 4).double()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def single(function, parameters, row, label):
        logits = func.functional_call(model, parameters, (row.unsqueeze(0),))
        return function(logits, label.unsqueeze(0)).sum()

    found, expected = (
        func.vmap(func.grad(partial(single, function)), (None, 0, 0))(parameters, x, target)
        for function in (loss, naive)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("function", [max_margin, max_margin_loss])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (None, 0, 0), (None, 0, None), (0, None, 0)])
def test_vmap_over_candidates_is_a_loop(function, in_dims, batch, candidates):
    logits, delta_neg, beta = (
        values if dim == 0 else values[0] for values, dim in zip(candidates, in_dims, strict=True)
    )
    target = batch[1]

    def call(z, d, b):
        return function(z, target, d, b)

    pick = [
        lambda i, v=v, dim=dim: v[i] if dim == 0 else v
        for v, dim in zip((logits, delta_neg, beta), in_dims, strict=True)
    ]
    expected = torch.stack([call(*(part(i) for part in pick)) for i in range(3)])
    torch.testing.assert_close(func.vmap(call, in_dims)(logits, delta_neg, beta), expected)

    def total(z, d, b):
        return call(z, d, b).sum()

    if function is max_margin_loss:
        gradient = func.vmap(func.grad(total), in_dims)(logits, delta_neg, beta)
        looped = [func.grad(total)(*(part(i) for part in pick)) for i in range(3)]
        torch.testing.assert_close(gradient, torch.stack(looped))


def test_vmap_over_margins_and_targets_is_a_loop(batch):
    logits, target = batch
    margins, targets = torch.rand(3, 4), torch.stack([target, target.flip(0), target.roll(1)])
    expected = torch.stack([ldam_loss(logits, target, m) for m in margins])
    found = func.vmap(ldam_loss, (None, None, 0))(logits, target, margins)
    torch.testing.assert_close(found, expected)
    expected = torch.stack([max_margin_loss(logits, y) for y in targets])
    found = func.vmap(max_margin_loss, (None, 0))(logits, targets)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(), (1,), (12,)])
def test_delta_neg_and_beta_as_tensors(shape, batch):
    logits, target = batch
    for delta_neg, beta in ((0.4, 1.5), (-0.3, 0.8)):
        expected = naive_margin(logits, target, delta_neg, beta)
        many = [torch.full(shape, value, dtype=torch.float64) for value in (delta_neg, beta)]
        for pair in ((delta_neg, beta), (many[0], beta), (delta_neg, many[1]), many):
            torch.testing.assert_close(max_margin(logits, target, *pair), expected)
            loss = max_margin_loss(logits, target, *pair, SCALE)
            torch.testing.assert_close(loss, shifted(logits, target, expected))


def test_a_delta_neg_that_asks_for_a_gradient_gets_none(batch):
    logits, target = batch[0].requires_grad_(), batch[1]
    delta_neg, beta = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.6, 1.5))
    assert not max_margin(logits, target, delta_neg, beta).requires_grad
    max_margin_loss(logits, target, delta_neg, beta, SCALE).sum().backward()
    assert delta_neg.grad is None
    assert beta.grad is None
    expected = torch.autograd.grad(naive_mm(logits, target).sum(), logits)[0]
    torch.testing.assert_close(logits.grad, expected)


def test_margins_of_ldam_can_be_learned(batch):
    logits, target = batch
    margins = ldam_margins(COUNTS).requires_grad_()
    ldam_loss(logits, target, margins, SCALE).sum().backward()
    step, expected = 1e-6, []
    for j in range(4):
        up, down = margins.detach().clone(), margins.detach().clone()
        up[j] += step
        down[j] -= step
        totals = [ldam_loss(logits, target, m, SCALE).sum().item() for m in (up, down)]
        expected.append((totals[0] - totals[1]) / (2 * step))
    torch.testing.assert_close(margins.grad.tolist(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, -2.0])
def test_a_scale_that_is_not_above_0(scale, batch):
    found = max_margin_loss(*batch, scale=scale)
    torch.testing.assert_close(found, naive_mm(*batch, scale=scale))


@every_loss
def test_the_logits_stay_as_they_are(make, batch):
    loss = make()
    loss.set_class_counts(COUNTS)
    target = batch[1]
    leaf = batch[0].clone().requires_grad_()
    wide = torch.cat([batch[0], batch[0]], 1)
    for logits in (batch[0], leaf, leaf * 1, wide[:, ::2], batch[0][:1].expand(12, 4)):
        before, version = logits.detach().clone(), logits._version
        value = loss(logits, target)
        torch.testing.assert_close(value, loss(before, target))
        if value.requires_grad:
            value.backward()
        assert torch.equal(logits, before)
        assert logits._version == version


class Buffers(TorchDispatchMode):
    """Counts the tensors of some size that are made, all of them kept alive."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.kept = numel, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        outputs = out if isinstance(out, (tuple, list)) else [out]
        self.kept += [o for o in outputs if isinstance(o, torch.Tensor) and o.numel() == self.numel]
        return out

    def count(self, *inputs):
        known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        return len({tensor.untyped_storage().data_ptr() for tensor in self.kept} - known)


@pytest.mark.parametrize("name", MARGIN_LOSSES)
@pytest.mark.parametrize("class_weight", [None, [0.1, 0.5, 1.5, 4.0], [0.0, 0.5, 1.5, 4.0]])
def test_one_more_buffer_than_cross_entropy(name, class_weight):
    logits = torch.randn(12, 4).requires_grad_() * 1
    target = torch.arange(12) % 4
    with Buffers(logits.numel()) as plain:
        F.cross_entropy(logits, target)
    with Buffers(logits.numel()) as ours:
        bound(name, class_weight)(logits, target)
    assert ours.count(logits) <= plain.count(logits) + 1


@every_loss
@pytest.mark.parametrize("class_weight", [None, [0.1, 0.5, 1.5, 4.0], [0.0, 0.5, 1.5, 4.0]])
def test_nothing_waits_for_the_device(make, class_weight):
    # A tensor on the meta device has no values that could be asked for.
    loss = make()
    loss.set_class_counts(COUNTS)
    loss.set_class_weight(class_weight)
    logits = torch.empty(12, 4, device="meta", requires_grad=True)
    value = loss(logits, torch.empty(12, dtype=torch.int64, device="meta"))
    value.backward()
    assert value.shape == ()
    assert logits.grad.shape == (12, 4)


@every_loss
@pytest.mark.parametrize("class_weight", [None, [0.1, 0.5, 1.5, 4.0], [0.0, 0.5, 1.5, 4.0]])
def test_the_mean_is_that_of_the_single_losses(make, class_weight, batch):
    logits, target = batch
    loss = make()
    loss.set_class_counts(COUNTS)
    loss.set_class_weight(class_weight)
    weight = None if class_weight is None else loss.class_weight[target]
    expected = weighted_mean(loss.per_sample(logits, target), weight)
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(loss(logits, target, torch.ones(12).double()), expected)


@pytest.mark.parametrize("kind", [LDAMLoss, MaxMarginLoss])
def test_a_subclass_with_single_losses_of_its_own(kind, batch):
    class Half(kind):
        def per_sample(self, logits, target):
            return super().per_sample(logits, target) / 2

    losses = [kind(), Half()]
    for loss in losses:
        loss.set_class_counts(COUNTS)
    whole, half = (loss(*batch) for loss in losses)
    torch.testing.assert_close(half, whole / 2)


def test_weights_that_are_0_in_float32_leave_the_mean_a_number():
    loss = bound("mm", [1e-60, 1.0, 1.0, 1.0])
    assert loss(torch.randn(2, 4), torch.tensor([0, 0])).item() == 0
    assert bound("mm", [1e-60] * 4)(torch.randn(2, 4), torch.tensor([0, 0])).isfinite()


def test_weights_from_a_state_are_known_to_hold_a_0():
    fresh = LOSSES["mm"]()
    fresh.load_state_dict(bound("mm", [0.0, 1.0, 1.0, 1.0]).state_dict())
    assert fresh(torch.randn(2, 4), torch.tensor([0, 0])).item() == 0
