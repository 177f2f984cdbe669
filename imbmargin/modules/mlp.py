"""A multi-layer perceptron for rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from imbmargin.modules.heads import Head, make_head
from imbmargin.modules.normalize import InputNorm

__all__ = ["MLP"]


class MLP(nn.Module):
    """Multi-layer perceptron whose first layer standardises the columns.

    Parameters
    ----------
    in_features : int
        Columns of the table. Images are flattened.
    num_classes : int
        Number of classes K.
    hidden_units : sequence of int, default=(128, 128)
        Sizes of the hidden layers.
    dropout : float, default=0.0
        Probability with which a hidden unit is dropped in training.
    head : {"linear", "cosine"} or callable, default="linear"
        See `imbmargin.modules.make_head`.
    mean, std : sequence of float, default=None
        Statistics of the columns, see `imbmargin.modules.InputNorm`.

    Attributes
    ----------
    input_norm, backbone, head : Module
        Standardisation, hidden layers, last layer.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.modules import MLP
    >>> MLP(in_features=4, num_classes=3, hidden_units=(16,))(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_units: Sequence[int] = (128, 128),
        dropout: float = 0.0,
        head: Head = "linear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if len(hidden_units) == 0 or min(hidden_units) < 1:
            raise ValueError(
                f"hidden_units must hold one size of at least 1 for each hidden layer, got "
                f"{hidden_units!r}; for example (128, 128)"
            )
        self.input_norm = InputNorm(in_features, mean, std)
        layers: list[nn.Module] = []
        size = in_features
        for units in hidden_units:
            layers += [nn.Linear(size, units), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            size = units
        self.backbone = nn.Sequential(*layers)
        #: Layers at the end of the backbone that make its last stage.
        self.branch_layers = min(3 if dropout else 2, len(layers) - 1)
        self.head = make_head(head, size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, K) of rows (n, in_features), or of images."""
        return self.head(self.backbone(self.input_norm(x.flatten(1))))
