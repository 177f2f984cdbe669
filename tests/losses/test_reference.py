"""Every loss equals a loop over single samples, and its gradient finite differences."""

from functools import partial

import numpy as np
import pytest
import torch

from imbmargin import LOSSES
from imbmargin.losses import (
    FocalLoss,
    HingeLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    MaxMarginLoss,
    VectorScalingLoss,
    max_margin,
    weighted_mean,
)
from tests.reference import losses as naive

COUNTS = [70, 20, 9, 3]
SCALE = 4.0


def sample_ldam(z, y, power=0.25, scale=SCALE):
    return naive.shifted(z, y, naive.ldam_margin(COUNTS, y, power=power), scale)


def sample_mm(z, y, margin=None, label_aware=False):
    delta = 0.6 - (naive.ldam_margin(COUNTS, y) if label_aware else 0.0)
    if margin is None:
        margin = naive.maximum_margin(z, y, delta, 1.5)
    return naive.shifted(z, y, margin, SCALE)


def sample_hinge(z, y, power):
    return naive.crammer_singer(z, y, naive.ldam_margin(COUNTS, y, power=power), SCALE)


def sample_vs(z, y, gamma, tau):
    return naive.vector_scaling(z, y, COUNTS, gamma, tau)


CASES = {
    "cross_entropy": (LOSSES["cross_entropy"](), naive.cross_entropy),
    "focal": (LOSSES["focal"](), partial(naive.focal_softmax, gamma=1.0)),
    "focal, gamma 2": (FocalLoss(2.0), partial(naive.focal_softmax, gamma=2.0)),
    "focal, gamma 0.5": (FocalLoss(0.5), partial(naive.focal_softmax, gamma=0.5)),
    "focal, sigmoid": (FocalLoss(1.0, "sigmoid"), partial(naive.focal_sigmoid, gamma=1.0)),
    "focal, sigmoid, gamma 2": (FocalLoss(2.0, "sigmoid"), partial(naive.focal_sigmoid, gamma=2.0)),
    "ldam": (LOSSES["ldam"](scale=SCALE), sample_ldam),
    "ldam, power 1/3": (LDAMLoss(scale=SCALE, power=1 / 3), partial(sample_ldam, power=1 / 3)),
    "uniform_margin": (LOSSES["uniform_margin"](scale=SCALE), partial(sample_ldam, power=0.0)),
    "mm": (LOSSES["mm"](scale=SCALE), sample_mm),
    "mm_ldam": (LOSSES["mm_ldam"](scale=SCALE), partial(sample_mm, label_aware=True)),
    "hinge": (LOSSES["hinge"](scale=SCALE), partial(sample_hinge, power=0.0)),
    "ldam_hinge": (LOSSES["ldam_hinge"](scale=SCALE), partial(sample_hinge, power=0.25)),
    "hinge, weston_watkins": (
        HingeLoss(scale=SCALE, form="weston_watkins"),
        lambda z, y: naive.weston_watkins(z, y, 0.5, SCALE),
    ),
    "balanced_softmax": (LOSSES["balanced_softmax"](), partial(sample_vs, gamma=0.0, tau=1.0)),
    "logit_adjusted": (LOSSES["logit_adjusted"](), partial(sample_vs, gamma=0.0, tau=1.0)),
    "logit_adjusted, tau 1.5": (LogitAdjustedLoss(1.5), partial(sample_vs, gamma=0.0, tau=1.5)),
    "vs": (LOSSES["vs"](), partial(sample_vs, gamma=0.3, tau=1.0)),
    "cdt": (VectorScalingLoss(0.2, 0.0), partial(sample_vs, gamma=0.2, tau=0.0)),
}
every_loss = pytest.mark.parametrize(("loss", "sample"), CASES.values(), ids=CASES)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 4, dtype=torch.float64, generator=generator)
    # A row in which every other logit is negative, and a tie.
    logits[0], logits[1] = torch.tensor([-0.2, -0.5, -0.6, -0.9]), torch.tensor([0.3, 0.3, 0.1, 0])
    return logits, torch.arange(40) % 4


def test_every_name_has_a_case():
    assert {name for name in LOSSES if not LOSSES[name].needs} <= CASES.keys()


@every_loss
@pytest.mark.parametrize("class_weight", [None, [0.1, 0.5, 1.5, 4.0], [1.0, 0.0, 2.0, 0.0]])
@pytest.mark.parametrize("weighted_rows", [False, True])
def test_the_loss_of_a_batch(loss, sample, class_weight, weighted_rows, batch):
    logits, target = batch
    loss.set_class_counts(COUNTS)
    loss.set_class_weight(class_weight)
    rows = torch.linspace(0, 3, 40, dtype=torch.float64) if weighted_rows else None
    losses = [sample(z, y) for z, y in zip(logits.tolist(), target.tolist(), strict=True)]
    weights = [1.0 if class_weight is None else class_weight[y] for y in target.tolist()]
    if weighted_rows:
        weights = [w * r for w, r in zip(weights, rows.tolist(), strict=True)]
    expected = naive.weighted_mean(losses, weights)
    assert loss(logits, target, rows).item() == pytest.approx(expected, abs=1e-10, rel=1e-10)
    np.testing.assert_allclose(loss.per_sample(logits, target), losses, rtol=1e-10, atol=1e-10)


@every_loss
def test_the_gradient_is_that_of_finite_differences_with_the_margin_held(loss, sample, batch):
    logits, target = (part[:8] for part in batch)
    loss.set_class_counts(COUNTS)
    loss.set_class_weight(None)
    free = logits.clone().requires_grad_()
    (len(target) * loss(free, target)).backward()
    step = 1e-6
    for i, (z, y) in enumerate(zip(logits.tolist(), target.tolist(), strict=True)):
        held = sample
        if isinstance(loss, MaxMarginLoss):
            delta = 0.6 - (naive.ldam_margin(COUNTS, y) if loss.label_aware else 0.0)
            held = partial(sample_mm, margin=naive.maximum_margin(z, y, delta, 1.5))
        if i == 1 and "Hinge" in type(loss).__name__:
            continue  # in the tie the hinge has no derivative
        for j in range(4):
            up, down = ([v + s * (k == j) for k, v in enumerate(z)] for s in (step, -step))
            expected = (held(up, y) - held(down, y)) / (2 * step)
            assert free.grad[i, j].item() == pytest.approx(expected, abs=1e-6)


def test_the_margin_of_mm_carries_no_gradient(batch):
    logits, target = batch
    margin = max_margin(logits.requires_grad_(), target)
    assert not margin.requires_grad
    expected = [
        naive.maximum_margin(z, y, 0.6, 1.5)
        for z, y in zip(logits.tolist(), target.tolist(), strict=True)
    ]
    np.testing.assert_allclose(margin, expected, rtol=1e-12)


def test_the_hinge_moves_the_label_and_one_rival_also_in_a_tie():
    logits = torch.tensor([[0.1, 0.4, 0.4]], requires_grad=True)
    loss = LOSSES["hinge"](scale=1.0)
    loss(logits, torch.tensor([0])).backward()
    assert sorted(logits.grad[0].tolist()) == [-1.0, 0.0, 1.0]
    met = torch.tensor([[2.0, 0.4, 0.4]], requires_grad=True)
    loss(met, torch.tensor([0])).backward()
    assert met.grad.abs().sum() == 0


def test_the_weighted_mean_equals_torchs_weighted_cross_entropy(batch):
    logits, target = batch
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    expected = torch.nn.functional.cross_entropy(logits, target, weight=weight)
    torch.testing.assert_close(weighted_mean(losses, weight[target]), expected)
