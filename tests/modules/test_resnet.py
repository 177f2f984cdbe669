import math

import pytest
import torch
from torch import nn

from imbmargin.modules import MODULES, ResNet32, ResNetCIFAR
from imbmargin.modules.resnet import _Shortcut


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def expected_count(depth, num_classes, in_channels=3):
    """Convolutions without bias, two numbers a channel for each normalisation, a linear head."""
    blocks, total, size = (depth - 2) // 6, 16 * (9 * in_channels + 2), 16
    for channels in (16, 32, 64):
        for _ in range(blocks):
            total += 9 * size * channels + 9 * channels * channels + 4 * channels
            size = channels
    return total + 65 * num_classes


def test_resnet_32_has_046_million_parameters():
    assert count(ResNet32(num_classes=10)) == expected_count(32, 10) == 464_154


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_depths_by_name(depth):
    network = MODULES[f"resnet{depth}"](num_classes=7, in_channels=1)
    assert count(network) == expected_count(depth, 7, 1)
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


@pytest.mark.parametrize("depth", [0, 2, 21, 33])
def test_other_depths_are_an_error(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6 m \+ 2 .*got {depth}"):
        ResNetCIFAR(10, depth=depth)


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.randn(2, 4, 6, 6)
    out = _Shortcut(4)(x)
    assert out.shape == (2, 8, 3, 3)
    assert not list(_Shortcut(4).parameters())
    for c in range(8):
        expected = x[:, c - 2, ::2, ::2] if 2 <= c < 6 else torch.zeros(2, 3, 3)
        torch.testing.assert_close(out[:, c], expected)


def test_weights_start_kaiming_normal_except_those_of_the_cosine_head():
    torch.manual_seed(0)
    network = ResNet32(num_classes=10, head="cosine")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            fan = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.15)
    torch.testing.assert_close(network.head.weight.norm(dim=1), torch.ones(10))


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (33, 17)])
def test_images_of_other_sizes(size):
    network = MODULES["resnet20"](num_classes=3, in_channels=1).eval()
    images = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
    out = network(images)
    assert out.shape == (2, 3)
    last = network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images), out, rtol=1e-3, atol=1e-3)
