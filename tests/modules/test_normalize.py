import numpy as np
import pytest
import torch

from imbmargin.modules import InputNorm, channel_statistics


@pytest.mark.parametrize("shape", [(50, 3), (10, 3, 4, 5)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_statistics_of_batches_equal_those_of_the_whole(shape, offset):
    x = torch.randn(shape, dtype=torch.float64) * torch.arange(1, 4).view(
        -1, *[1] * (len(shape) - 2)
    )
    x += offset
    mean, std = channel_statistics([x[:7], x[7:8], x[8:8], x[8:]])
    axes = (0, *range(2, len(shape)))
    np.testing.assert_allclose(mean, x.numpy().mean(axes), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(std, x.numpy().std(axes), rtol=1e-6)


def test_normalised_channels_have_mean_0_and_std_1():
    images = torch.randint(0, 256, (200, 3, 4, 4), dtype=torch.uint8)
    norm = InputNorm(3)
    assert not norm.is_fitted
    torch.testing.assert_close(norm(images), images.float())
    norm.set_statistics(*channel_statistics([images]))
    out = norm(images)
    assert norm.is_fitted
    torch.testing.assert_close(out.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=(0, 2, 3), correction=0), torch.ones(3))


@pytest.mark.parametrize("value", [0.0, 5.0, 1e8])
def test_a_constant_column_is_only_centred(value):
    x = torch.full((100, 1), value)
    norm = InputNorm(1)
    norm.set_statistics(*channel_statistics([x[:33], x[33:]]))
    torch.testing.assert_close(norm(x), torch.zeros_like(x))
    torch.testing.assert_close(norm(x + 1), norm(x) + (x + 1 - x))


def test_statistics_travel_with_the_state():
    norm, other = InputNorm(2, mean=[1.0, 2.0], std=[3.0, 4.0]), InputNorm(2)
    other.load_state_dict(norm.state_dict())
    assert other.is_fitted
    assert other.mean.tolist() == [1, 2]
    assert list(norm.parameters()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": [0.0, 0.0]}, "mean and std must be given together"),
        ({"mean": [0.0], "std": [1.0]}, "mean must have a finite value for each of the 2 channels"),
        ({"mean": [0.0, 0.0], "std": [1.0, np.inf]}, "std must have a finite value"),
        ({"mean": [0.0, 0.0], "std": [1.0, -1.0]}, r"std must be 0 or more, got \[1.0, -1.0\]"),
    ],
)
def test_statistics_that_cannot_be_used(arguments, message):
    with pytest.raises(ValueError, match=message):
        InputNorm(2, **arguments)
