"""What holds for any logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imbmargin.losses import (
    LOSSES,
    CrossEntropyLoss,
    FocalLoss,
    LDAMLoss,
    MaxMarginLoss,
    max_margin,
)

FAST = settings(derandomize=True, deadline=None, max_examples=40)
LOGITS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(2, 5)), elements=st.floats(-5, 5, width=32)
)
# The others need features too, see test_context.
PLAIN = {name: loss for name, loss in LOSSES.items() if not loss.needs}
every_loss = pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)


def prepare(make, logits, **kwargs):
    z = torch.from_numpy(logits)
    n, num_classes = z.shape
    loss = make(**kwargs)
    counts = torch.arange(1, num_classes + 1) ** 3
    loss.set_class_counts(counts)
    loss.set_class_weight(1.0 / counts)
    return loss, z, torch.arange(n) % num_classes, counts


@every_loss
@given(logits=LOGITS, seed=st.integers(0, 99))
@FAST
def test_permuting_the_classes_changes_nothing(make, logits, seed):
    loss, z, y, counts = prepare(make, logits)
    order = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(seed))
    other = make()
    other.set_class_counts(counts[order])
    other.set_class_weight(1.0 / counts[order])
    torch.testing.assert_close(other(z[:, order], torch.argsort(order)[y]), loss(z, y))


@every_loss
@given(logits=LOGITS, shift=st.floats(-3, 3))
@FAST
def test_shifting_all_logits_of_a_row_changes_nothing(make, logits, shift):
    # A tie may fall to the other side by rounding, where the margin of mm jumps unless beta is 1.
    # VS multiplies the logits of each class by another factor, unless gamma is 0.
    neutral = {"beta": 1.0, "gamma": 0.0}
    taken = make.__init__.__annotations__
    kwargs = {name: value for name, value in neutral.items() if name in taken}
    loss, z, y, _ = prepare(make, logits, **kwargs)
    torch.testing.assert_close(loss(z + shift, y), loss(z, y), rtol=1e-9, atol=1e-9)


@every_loss
@given(logits=LOGITS, factor=st.floats(1e-3, 1e3))
@FAST
def test_the_scale_of_the_class_weights_cancels(make, logits, factor):
    loss, z, y, counts = prepare(make, logits)
    expected = loss(z, y)
    loss.set_class_weight(factor / counts)
    torch.testing.assert_close(loss(z, y), expected)


@every_loss
@given(logits=LOGITS)
@FAST
def test_a_loss_is_not_negative_and_a_row_of_weight_0_is_as_if_not_there(make, logits):
    loss, z, y, _ = prepare(make, logits)
    assert loss(z, y) >= 0
    if len(z) > 1:
        weight = torch.ones(len(z), dtype=torch.float64)
        weight[0] = 0
        torch.testing.assert_close(loss(z, y, weight), loss(z[1:], y[1:]))


@given(logits=LOGITS)
@FAST
def test_a_margin_of_zero_is_cross_entropy(logits):
    z = torch.from_numpy(logits)
    y = torch.arange(len(z)) % z.shape[1]
    expected = CrossEntropyLoss()(2 * z, y)
    ldam = LDAMLoss(max_margin=0, scale=2)
    ldam.set_class_counts(torch.arange(1, z.shape[1] + 1))
    torch.testing.assert_close(ldam(z, y), expected)
    torch.testing.assert_close(LDAMLoss(max_margin=0, scale=2, power=0)(z, y), expected)
    # A large delta is a margin of zero.
    torch.testing.assert_close(MaxMarginLoss(delta_neg=1e3, scale=2)(z, y), expected)
    torch.testing.assert_close(FocalLoss(gamma=0)(2 * z, y), expected)


@given(logits=LOGITS, tau=st.floats(0, 3))
@FAST
def test_losses_that_are_special_cases_of_one_another(logits, tau):
    z = torch.from_numpy(logits)
    y = torch.arange(len(z)) % z.shape[1]
    counts = torch.arange(1, z.shape[1] + 1) ** 3

    def value(loss, **kwargs):
        made = LOSSES[loss](**kwargs)
        made.set_class_counts(counts)
        return made(z, y)

    torch.testing.assert_close(value("vs", gamma=0, tau=tau), value("logit_adjusted", tau=tau))
    torch.testing.assert_close(value("balanced_softmax"), value("logit_adjusted", tau=1))
    torch.testing.assert_close(value("vs", gamma=0, tau=0), value("cross_entropy"))
    # The shift is the prior's: counts of equal classes change nothing.
    counts = torch.full_like(counts, 7)
    torch.testing.assert_close(value("vs", gamma=0.3, tau=tau), value("cross_entropy"))


@given(logits=LOGITS, delta=st.floats(0, 3), beta=st.floats(0.5, 3))
@FAST
def test_margins_of_mm_are_bounded_and_fall_with_delta(logits, delta, beta):
    z = torch.from_numpy(logits)
    y = torch.arange(len(z)) % z.shape[1]
    margin = max_margin(z, y, delta, beta)
    assert (margin > 0).all()
    assert (margin <= np.exp(-min(delta, beta * delta)) + 1e-12).all()
    assert (max_margin(z, y, delta + 0.1, beta) < margin).all()
