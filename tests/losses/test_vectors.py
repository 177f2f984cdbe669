"""Published and hand-checked values."""

import numpy as np
import pytest
import torch

from imbmargin.data.imbalance import long_tailed_counts
from imbmargin.losses import LOSSES, FocalLoss, ldam_margins, logit_shift, max_margin

Z, Y = torch.tensor([[0.6, 0.2, -0.1]], dtype=torch.float64), torch.tensor([1])
COUNTS = [100, 10, 1]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (LOSSES["cross_entropy"](), 1.173300),
        (FocalLoss(1.0), 0.810346),
        (FocalLoss(0.0, "sigmoid"), 2.280023),
        (FocalLoss(1.0, "sigmoid"), 1.245224),
        (LOSSES["ldam"](scale=10.0), 6.813717),
        (LOSSES["mm"](scale=10.0), 7.680168),
        (LOSSES["mm_ldam"](scale=10.0), 8.874276),
        (LOSSES["hinge"](scale=1.0), 0.900000),
        (LOSSES["ldam_hinge"](scale=1.0), 0.681171),
        (LOSSES["balanced_softmax"](), 2.772109),
        (LOSSES["logit_adjusted"](), 2.772109),
        (LOSSES["logit_adjusted"](tau=1.5), 3.875340),
        (LOSSES["vs"](gamma=0.2, tau=1.5), 3.947701),
    ],
)
def test_the_toy_example(loss, expected):
    loss.set_class_counts(COUNTS)
    assert loss(Z, Y).item() == pytest.approx(expected, abs=6e-7)


def test_margins_of_single_rows():
    rows = torch.tensor(
        [[0.6, 0.2, -0.1], [0.6, 0.2, -0.1], [-0.2, -0.5, -0.6], [0.3, 0.3, 0.1]],
        dtype=torch.float64,
    )
    margins = max_margin(rows, torch.tensor([0, 1, 0, 0]), delta_neg=0.6, beta=1.5)
    np.testing.assert_allclose(margins, [0.2725, 0.3679, 0.3012, 0.4066], atol=6e-5)
    # The label's own row decides, wherever it stands in the batch.
    reverse = max_margin(rows.flip(0), torch.tensor([0, 0, 1, 0]), 0.6, 1.5)
    torch.testing.assert_close(reverse.flip(0), margins)


def test_the_margin_of_mm_ldam():
    delta = 0.6 - ldam_margins(torch.tensor(COUNTS))[Y]
    assert max_margin(Z, Y, delta, 1.5).item() == pytest.approx(0.487322, abs=6e-7)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (COUNTS, [0.1581, 0.2812, 0.5]),
        (
            long_tailed_counts(5000, 10, 100),
            [0.1581, 0.1797, 0.2042, 0.2321, 0.2638, 0.2998, 0.3407, 0.3872, 0.4405, 0.5],
        ),
        (
            long_tailed_counts(5000, 10, 10),
            [0.2812, 0.2997, 0.3196, 0.3407, 0.3632, 0.3872, 0.4127, 0.44, 0.4692, 0.5],
        ),
    ],
)
def test_margins_of_ldam(counts, expected):
    np.testing.assert_allclose(ldam_margins(torch.as_tensor(counts)), expected, atol=6e-5)


def test_the_shift_of_cifar_10_long_tailed_100():
    expected = [-0.9087, -1.4206, -1.9326, -2.4440, -2.9567, -3.4675, -3.9792, -4.4915, -5.0071]
    shift = logit_shift(long_tailed_counts(5000, 10, 100))
    np.testing.assert_allclose(shift, [*expected, -5.5139], atol=6e-5)
