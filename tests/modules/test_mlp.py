import pytest
import torch
from torch import nn

from imbmargin.modules import MLP, CosineLinear


def test_layers_follow_the_arguments():
    network = MLP(6, 3, hidden_units=(5, 4), dropout=0.5, head="cosine")
    sizes = [layer.out_features for layer in network.backbone if isinstance(layer, nn.Linear)]
    assert sizes == [5, 4]
    assert sum(isinstance(layer, nn.Dropout) for layer in network.backbone) == 2
    assert isinstance(network.head, CosineLinear)
    assert not any(isinstance(layer, nn.Dropout) for layer in MLP(6, 3).modules())


def test_the_first_layer_standardises():
    torch.manual_seed(0)
    scaled = MLP(2, 3, mean=[10.0, 0.0], std=[2.0, 0.5])
    plain = MLP(2, 3)
    plain.load_state_dict(scaled.state_dict())
    plain.input_norm.set_statistics([0.0, 0.0], [1.0, 1.0])
    x = torch.tensor([[12.0, -1.0], [8.0, 0.5]])
    torch.testing.assert_close(
        scaled(x), plain((x - torch.tensor([10.0, 0.0])) / scaled.input_norm.std)
    )


def test_images_are_flattened():
    assert MLP(12, 3)(torch.zeros(2, 3, 2, 2, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.parametrize("units", [(), (0,), (4, -1)])
def test_impossible_layers(units):
    with pytest.raises(ValueError, match=r"hidden_units must hold one size .*for example \(128"):
        MLP(4, 3, hidden_units=units)
