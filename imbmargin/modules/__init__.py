"""Networks: a normalising input layer, a backbone and a head.

Each has the attributes ``input_norm``, ``backbone`` and ``head``; forward returns logits (n, K).
"""

from collections.abc import Callable

from torch import nn

from imbmargin.modules.average import WeightAverage
from imbmargin.modules.heads import (
    HEADS,
    CosineLinear,
    find_head,
    make_head,
    replace_head,
    watch_input,
)
from imbmargin.modules.mlp import MLP, TabM
from imbmargin.modules.normalize import InputNorm, channel_statistics
from imbmargin.modules.resnet import ResNet20, ResNet32, ResNet44, ResNet56, ResNetCIFAR

MODULES: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "tabm": TabM,
    "resnet20": ResNet20,
    "resnet32": ResNet32,
    "resnet44": ResNet44,
    "resnet56": ResNet56,
}
"""Name -> what makes the network: what ``MaxMarginClassifier(module=...)`` accepts."""

__all__ = [
    "HEADS",
    "MLP",
    "MODULES",
    "CosineLinear",
    "InputNorm",
    "ResNet20",
    "ResNet32",
    "ResNet44",
    "ResNet56",
    "ResNetCIFAR",
    "TabM",
    "WeightAverage",
    "channel_statistics",
    "find_head",
    "make_head",
    "replace_head",
    "watch_input",
]
