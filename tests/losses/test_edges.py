"""Types, sizes, empty batches, empty classes and arguments that cannot be used."""

import pickle
from functools import partial

import pytest
import torch

from imbmargin.losses import (
    LOSSES,
    ClassCountLoss,
    FocalLoss,
    MaxMarginLoss,
    focal_loss,
    hinge_loss,
    large_margin_logits,
    max_margin,
)

PLAIN = {name: loss for name, loss in LOSSES.items() if not loss.needs}
every_loss = pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)


def bound(make, num_classes, **kwargs):
    loss = make(**kwargs)
    loss.set_class_counts(torch.arange(num_classes, 0, -1))
    return loss


@every_loss
@pytest.mark.parametrize("num_classes", [2, 1000, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_sizes_and_types(make, num_classes, dtype):
    generator = torch.Generator().manual_seed(0)
    cosines = 2 * torch.rand(16, num_classes, generator=generator, dtype=torch.float64) - 1
    target = torch.randint(num_classes, (16,), generator=generator)
    loss = bound(make, num_classes)
    loss.set_class_weight(torch.linspace(0.5, 2, num_classes))
    rounded = cosines.to(dtype)
    expected = loss(rounded.double(), target)
    free = rounded.clone().requires_grad_()
    value = loss(free, target)
    value.backward()
    half = dtype in (torch.bfloat16, torch.float16)
    assert value.dtype == (torch.float32 if half else dtype)
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)
    assert free.grad.dtype == dtype
    assert torch.isfinite(free.grad).all()


@every_loss
def test_an_empty_batch_is_0_and_has_a_graph(make):
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = bound(make, 3)
    for weight in (None, [1.0, 2.0, 3.0]):
        loss.set_class_weight(weight)
        value = loss(logits, torch.zeros(0, dtype=torch.int64))
        assert value.item() == 0
        value.backward()


@every_loss
def test_a_batch_of_weight_0_is_0_and_moves_nothing(make):
    logits = torch.randn(4, 3, requires_grad=True)
    loss = bound(make, 3)
    loss.set_class_weight([0.0, 1.0, 1.0])
    value = loss(logits, torch.zeros(4, dtype=torch.int64))
    assert value.item() == 0
    value.backward()
    assert logits.grad.abs().sum() == 0


@every_loss
def test_one_class_of_weight_0_counts_for_nothing(make):
    logits, target = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 1, 2])
    loss = bound(make, 3)
    loss.set_class_weight([0.0, 1.0, 1.0])
    value = loss(logits, target)
    loss.set_class_weight(None)
    torch.testing.assert_close(value, loss(logits[2:], target[2:]))


@every_loss
def test_a_class_without_rows_gets_the_margin_of_the_rarest(make):
    logits, target = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 1, 2])
    loss, other = make(), make()
    loss.set_class_counts([50, 5, 0])
    other.set_class_counts([50, 5, 5])
    torch.testing.assert_close(loss(logits, target), other(logits, target))
    assert torch.isfinite(loss(logits, target))


@every_loss
def test_far_logits_stay_finite(make):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    value = bound(make, 3)(logits, torch.tensor([0, 0]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_the_gradient_of_focal_is_finite_where_the_label_is_certain(gamma, form):
    logits = torch.tensor([[80.0, -80.0], [-80.0, 80.0]], requires_grad=True)
    FocalLoss(gamma, form)(logits, torch.tensor([0, 0])).backward()
    assert torch.isfinite(logits.grad).all()


@every_loss
def test_the_state_goes_into_a_fresh_loss(make):
    loss = bound(make, 3)
    loss.set_class_weight([1.0, 2.0, 3.0])
    fresh = make()
    fresh.load_state_dict(loss.state_dict())
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert fresh(logits, target) == loss(logits, target)
    assert fresh.class_counts.tolist() == [3, 2, 1]
    assert make().load_state_dict(make().state_dict()) is not None


def test_counts_are_bound_by_value():
    counts = torch.tensor([3, 1])
    loss = LOSSES["ldam"]()
    loss.set_class_counts(counts)
    counts += 100
    assert loss.class_counts.tolist() == [3, 1]


NEED_COUNTS = {"ldam", "mm_ldam", "ldam_hinge", "balanced_softmax", "logit_adjusted", "vs"}


@pytest.mark.parametrize("name", sorted(NEED_COUNTS))
def test_losses_that_need_counts_say_so(name):
    with pytest.raises(RuntimeError, match=r"Loss needs the class counts .*set_class_counts"):
        LOSSES[name]()(torch.zeros(1, 2), torch.tensor([0]))


@pytest.mark.parametrize("name", sorted(set(PLAIN) - NEED_COUNTS))
def test_the_others_need_none(name):
    assert torch.isfinite(LOSSES[name]()(torch.zeros(1, 2), torch.tensor([0])))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("focal", {"gamma": -1}, "gamma must be at least 0, got -1"),
        ("focal", {"form": "tanh"}, r"form must be one of \['softmax', 'sigmoid'\], got 'tanh'"),
        ("ldam", {"max_margin": -0.1}, "max_margin must be at least 0, got -0.1"),
        ("ldam", {"power": float("nan")}, "power must be at least 0, got nan"),
        ("hinge", {"scale": 0}, "scale must be above 0, got 0; pass a larger scale"),
        ("mm", {"delta_neg": -0.5}, "delta_neg must be at least 0, got -0.5"),
        ("mm_ldam", {"beta": 0}, "beta must be above 0, got 0"),
        ("hinge", {"form": "one_sided"}, r"form must be one of \['crammer_singer', 'weston_watk"),
        ("vs", {"gamma": -1}, "gamma must be at least 0, got -1"),
        ("logit_adjusted", {"tau": -0.5}, "tau must be at least 0, got -0.5"),
    ],
)
def test_arguments_out_of_range(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name](**kwargs)


def test_functions_refuse_what_they_do_not_know():
    z, y, x = torch.zeros(2, 3), torch.tensor([0, 1]), torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"form must be one of .*got 'Softmax'"):
        focal_loss(z, y, 1.0, "Softmax")
    with pytest.raises(ValueError, match=r"form must be one of .*got 'crammer'"):
        hinge_loss(z, y, torch.ones(3), form="crammer")
    with pytest.raises(ValueError, match=r"multiple must be one of \[1, 2, 3, 4\], got 5"):
        large_margin_logits(z, y, x, torch.ones(3, 4), multiple=5)


@pytest.mark.parametrize("counts", [[], [0, 0], [-1, 2], [[1, 2]]])
def test_counts_that_cannot_be_used(counts):
    with pytest.raises(ValueError, match="class_counts must be a 1-D array of counts"):
        LOSSES["ldam"]().set_class_counts(counts)


def test_weights_that_cannot_be_used():
    loss = bound(LOSSES["mm"], 3)
    for weight in ([-1.0, 1, 1], [float("inf"), 1, 1], [[1.0, 1, 1]]):
        with pytest.raises(ValueError, match="class_weight must be a 1-D array of finite weights"):
            loss.set_class_weight(weight)
    with pytest.raises(ValueError, match="one weight for each of the 3 classes, got 2"):
        loss.set_class_weight([1.0, 2.0])


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4, 2)])
def test_logits_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"logits must have shape \(n, K\) with K >= 2"):
        bound(LOSSES["mm"], 4)(torch.zeros(shape), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(3, 4\) and \(2,\)"):
        bound(LOSSES["mm"], 4)(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))


def test_a_loss_of_ones_own_brings_per_sample():
    class Zero(ClassCountLoss):
        pass

    with pytest.raises(TypeError, match="Zero does not define per_sample"):
        Zero()(torch.zeros(1, 2), torch.tensor([0]))


@pytest.mark.cuda
@every_loss
def test_buffers_follow_the_logits(make):
    logits, target = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 1, 2])
    loss = bound(make, 3)
    loss.set_class_weight([1.0, 2.0, 3.0])
    expected = loss(logits, target)
    torch.testing.assert_close(loss(logits.cuda(), target.cuda()).cpu(), expected)


@every_loss
def test_a_device_without_float64_gets_float32(make):
    def move(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("no float64, as on Apple's GPUs")
        return tensor.clone()

    loss = bound(make, 3)
    loss.set_class_weight([1.0, 2.0, 3.0])
    logits, target = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 1, 2])
    expected = loss(logits, target)
    loss._apply(move)
    assert all(buffer.dtype != torch.float64 for buffer in loss.buffers())
    torch.testing.assert_close(loss(logits, target), expected)


def test_max_margin_in_half_precision():
    z = torch.tensor([[0.6, 0.2, -0.1]], dtype=torch.bfloat16)
    margin = max_margin(z, torch.tensor([0]))
    assert margin.dtype == torch.bfloat16
    assert margin.item() == pytest.approx(0.2725, rel=0.01)


@pytest.mark.parametrize("change", [{"delta_neg": 0.1}, {"beta": 3.0}, {"label_aware": False}])
def test_what_is_set_between_batches_counts_at_once(change):
    logits, target = torch.tensor([[0.6, 0.2, -0.1]] * 3), torch.tensor([0, 1, 2])
    made = {"delta_neg": 0.6, "beta": 1.5, "label_aware": True}
    loss = bound(partial(MaxMarginLoss, **made), 3)
    before = loss(logits, target)
    for name, value in change.items():
        setattr(loss, name, value)
    expected = bound(partial(MaxMarginLoss, **{**made, **change}), 3)(logits, target)
    assert loss(logits, target) == expected != before


def test_margins_and_counts_that_are_set_between_batches_count_at_once():
    logits, target = torch.tensor([[0.6, 0.2, -0.1]] * 3), torch.tensor([0, 1, 2])
    loss = bound(partial(MaxMarginLoss, label_aware=True), 3)
    before = loss(logits, target)
    loss.set_class_counts([1, 1, 50])
    other = loss(logits, target)
    loss.margins = torch.full((3,), 0.5, dtype=torch.float64)
    # δ⁻ - 0.5 for all classes.
    alike = MaxMarginLoss(delta_neg=0.6 - 0.5)(logits, target)
    torch.testing.assert_close(loss(logits, target), alike)
    assert len({before.item(), other.item(), alike.item()}) == 3


def test_class_weights_that_change_between_batches_count_at_once():
    logits, target = torch.tensor([[0.6, 0.2, -0.1]] * 3), torch.tensor([0, 1, 2])
    loss = MaxMarginLoss()

    def expected(weight):
        other = MaxMarginLoss()
        other.set_class_weight(weight)
        return other(logits, target)

    loss.set_class_weight([1.0, 2.0, 3.0])
    assert loss(logits, target) == loss(logits, target) == expected([1.0, 2.0, 3.0])
    loss.class_weight[0] = 5.0
    assert loss(logits, target) == expected([5.0, 2.0, 3.0])
    loss.load_state_dict({**loss.state_dict(), "class_weight": torch.tensor([1.0, 1.0, 9.0])})
    assert loss(logits, target) == expected([1.0, 1.0, 9.0])
    swapped = {"class_weight": torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)}
    found = torch.func.functional_call(loss, swapped, (logits, target))
    assert found == expected([4.0, 1.0, 1.0])
    assert loss(logits, target) == expected([1.0, 1.0, 9.0])
    with torch.inference_mode():
        loss.set_class_weight([1.0, 2.0, 3.0])
        assert loss(logits, target) == expected([1.0, 2.0, 3.0])
    loss.set_class_weight(None)
    assert loss(logits, target) == expected(None)


def test_a_class_that_is_masked_out_gets_and_gives_no_margin():
    z = torch.tensor([[0.6, -torch.inf], [-torch.inf, 0.6]], requires_grad=True)
    assert max_margin(z, torch.tensor([0, 0])).tolist() == [0.0, 0.0]
    loss = MaxMarginLoss()(z[:1], torch.tensor([0]))
    loss.backward()
    assert loss == 0
    assert z.grad[0].tolist() == [0.0, 0.0]


def test_batches_of_other_sizes_and_types_one_after_another():
    loss = bound(partial(MaxMarginLoss, label_aware=True), 3)
    logits, target = torch.tensor([[0.6, 0.2, -0.1]] * 3), torch.tensor([0, 1, 2])
    single = [loss(logits[i : i + 1].double(), target[i : i + 1]) for i in range(3)]
    together = loss(logits, target)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.double(), torch.stack(single).mean())


def test_a_copy_keeps_nothing_of_the_batches_before():
    loss = bound(partial(MaxMarginLoss, label_aware=True), 3)
    fresh = pickle.dumps(loss)
    value = loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    assert pickle.dumps(loss) == fresh
    assert pickle.loads(fresh)(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1])) == value


def test_a_loss_that_was_first_used_in_a_transform():
    logits, target = torch.tensor([[[0.6, 0.2, -0.1]], [[0.1, 0.2, 0.3]]]), torch.tensor([1])
    loss = bound(MaxMarginLoss, 3)
    found = torch.func.vmap(lambda z: loss(z, target))(logits)
    expected = torch.stack([loss(z, target) for z in logits])
    torch.testing.assert_close(found, expected)
