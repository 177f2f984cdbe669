import pytest
import torch
from torch import nn

from imbmargin.modules import HEADS, MLP, CosineLinear, make_head, replace_head


def test_cosines_equal_a_naive_loop():
    torch.manual_seed(0)
    head, features = CosineLinear(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)
    for i, f in enumerate(features):
        for k, w in enumerate(head.weight):
            expected = f @ w / (f.norm() * w.norm())
            assert head(features)[i, k].item() == pytest.approx(expected.item(), abs=1e-12)


def test_cosines_do_not_see_lengths_and_stand_zero_features():
    head = CosineLinear(4, 3)
    features = torch.randn(6, 4)
    torch.testing.assert_close(head(features), head(7 * features))
    before = head(features)
    with torch.no_grad():
        head.weight.mul_(3)
    torch.testing.assert_close(before, head(features))
    zero = torch.zeros(1, 4, requires_grad=True)
    head(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_cosine_weights_start_with_length_1_and_there_is_no_bias():
    head = CosineLinear(64, 10)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(10))
    assert [name for name, _ in head.named_parameters()] == ["weight"]


def test_heads_by_name_and_by_function():
    for name in HEADS:
        assert make_head(name, 4, 3)(torch.zeros(2, 4)).shape == (2, 3)
    assert isinstance(make_head(lambda i, o: nn.Linear(i, o, bias=False), 4, 3), nn.Linear)
    with pytest.raises(ValueError, match=r"head must be one of .*'unbiased', 'cosine'.*got 'x'"):
        make_head("x", 4, 3)


@pytest.mark.parametrize(
    "head",
    [
        make_head("linear", 4, 2),
        nn.Linear(4, 2),
        nn.Linear(4, 2, bias=False),
        CosineLinear(4, 2),
        nn.LazyLinear(2),
    ],
)
def test_a_replaced_head_is_of_the_same_kind(head):
    network = MLP(3, 2, (4,), head=lambda *_: head)
    replace_head(network, 5)
    assert type(network.head) is type(head)
    assert (getattr(network.head, "bias", None) is None) == (getattr(head, "bias", None) is None)
    assert network(torch.zeros(2, 3)).shape == (2, 5)


def test_a_head_of_another_kind_cannot_be_replaced():
    network = nn.Module()
    network.head = nn.Bilinear(2, 2, 3)
    with pytest.raises(TypeError, match=r"head is a Bilinear .* give the module a head"):
        replace_head(network, 4)
