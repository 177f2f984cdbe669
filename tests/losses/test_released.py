import pytest
import torch

from imbmargin.losses import MaxMarginLoss, max_margin, max_margin_loss
from tests.reference.released import ReleasedMaxMarginLoss, released_margin

Z = torch.tensor([[0.6, 0.2, -0.1], [0.6, 0.2, -0.1], [-0.2, -0.5, -0.6], [0.3, 0.3, 0.1]])
Y = torch.tensor([0, 1, 0, 0])


def test_the_released_margin_depends_on_the_order_of_the_batch():
    margin = released_margin(Z, Y, 0.6, 1.5)
    torch.testing.assert_close(margin, torch.tensor([0.2725, 0, 0.4493, 0]), atol=1e-4, rtol=0)
    order = torch.tensor([1, 0, 2, 3])
    assert not torch.equal(released_margin(Z[order], Y[order], 0.6, 1.5), margin[order])
    torch.testing.assert_close(max_margin(Z[order], Y[order]), max_margin(Z, Y)[order])


def test_where_the_two_agree():
    # The first label's rows that are right, with a positive rival.
    loss = ReleasedMaxMarginLoss()(Z[:1], Y[:1])
    assert loss.item() == pytest.approx(max_margin_loss(Z[:1], Y[:1]).item(), rel=1e-6)


def test_both_have_the_same_head():
    assert ReleasedMaxMarginLoss.head == MaxMarginLoss.head
    assert ReleasedMaxMarginLoss.normalized_logits == MaxMarginLoss.normalized_logits
