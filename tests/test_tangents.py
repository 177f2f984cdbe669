"""Forward derivatives of batch normalisation, against torch's own rule."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

from imbmargin._tangents import QuickBatchNorm
from imbmargin.meta import _load_forward_rules
from imbmargin.modules import ResNet20

NETWORKS = {
    "weights": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
    "the input does not change": lambda: nn.BatchNorm2d(3),
    "no weights": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    "no statistics": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "rows": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.BatchNorm1d(5)),
    "a ResNet": lambda: ResNet20(num_classes=3),
}


def derivative(network, x, quick, trained=None):
    """Return the output, its change as the weights change, and the buffers afterwards."""
    generator = torch.Generator().manual_seed(0)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.no_grad(), forward_ad.dual_level(), QuickBatchNorm() if quick else nullcontext():
        dual = {}
        for name, weight in network.named_parameters():
            change = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            moves = trained is None or name.endswith(trained)
            weight = weight.detach()
            dual[name] = forward_ad.make_dual(weight, change) if moves else weight
        found = forward_ad.unpack_dual(functional_call(network, (dual, buffers), (x,)))
    return found.primal, found.tangent, *buffers.values()


@pytest.fixture(autouse=True)
def rules():
    _load_forward_rules()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_what_torch_finds(name, training):
    torch.manual_seed(0)
    network = NETWORKS[name]().double().train(training)
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    own, torchs = (derivative(network, x, quick) for quick in (True, False))
    assert own[1].abs().max() > 0.1
    for one, other in zip(own, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_one_of_the_two_may_stay(part):
    torch.manual_seed(0)
    network, x = nn.BatchNorm2d(3).double(), torch.randn(6, 3, 4, 4, dtype=torch.float64)
    own, torchs = (derivative(network, x, quick, part) for quick in (True, False))
    torch.testing.assert_close(own[1], torchs[1])


def test_in_bfloat16_it_is_as_near_as_torchs_own():
    torch.manual_seed(0)
    network, x = ResNet20(num_classes=3), torch.rand(32, 3, 16, 16)
    exact = derivative(network, x, quick=False)[1]
    with torch.autocast("cpu", torch.bfloat16):
        own, torchs = (derivative(network, x, quick)[1] for quick in (True, False))
    errors = [float((found - exact).norm() / exact.norm()) for found in (own, torchs)]
    assert errors[0] < 1.2 * errors[1] < 0.5


def test_other_functions_are_torchs():
    with QuickBatchNorm():
        x = torch.ones(2, 3)
        assert torch.equal(torch.nn.functional.layer_norm(x, (3,)), torch.zeros(2, 3))
