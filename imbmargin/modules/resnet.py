"""The residual networks for small images that the field's figures are made with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from imbmargin.modules.heads import CosineLinear, Head, make_head
from imbmargin.modules.normalize import InputNorm

__all__ = ["ResNet20", "ResNet32", "ResNet44", "ResNet56", "ResNetCIFAR"]


class _Shortcut(nn.Module):
    """Option A: every second pixel, new channels filled with zeros; no parameters."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class _Block(nn.Module):
    """Two 3x3 convolutions and the shortcut around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else _Shortcut(channels - channels_in)

    def forward(self, x: Tensor) -> Tensor:
        # In place where no gradient needs what was there: less memory to go through.
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNetCIFAR(nn.Module):
    """ResNet for small images: three stages of 16, 32 and 64 channels, option-A shortcuts.

    Parameters
    ----------
    num_classes : int
        Number of classes K.
    depth : int, default=32
        6 m + 2 layers with m blocks a stage: 20, 32, 44, 56, ...
    in_channels : int, default=3
        Channels of the images.
    head : {"linear", "unbiased", "cosine"} or callable, default="linear"
        See `imbmargin.modules.make_head`.
    mean, std : sequence of float, default=None
        Statistics of the channels in the unit of the data, see `imbmargin.modules.InputNorm`.

    Attributes
    ----------
    input_norm, backbone, head : Module
        Standardisation, convolutions (to 64 features), last layer.

    Raises
    ------
    ValueError
        If the depth is not 6 m + 2.

    References
    ----------
    .. [1] He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.

    Examples
    --------
    >>> from imbmargin.modules import ResNet32
    >>> sum(p.numel() for p in ResNet32(num_classes=10).parameters())
    464154
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 32,
        in_channels: int = 3,
        head: Head = "linear",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 6 m + 2 (20, 32, 44, 56, ...), got {depth}")
        self.input_norm = InputNorm(in_channels, mean, std)
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
        ]
        size = 16
        for channels in (16, 32, 64):
            for block in range(blocks):
                stride = 2 if block == 0 and channels > 16 else 1
                layers.append(_Block(size, channels, stride))
                size = channels
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        #: Layers at the end of the backbone that make its last stage: block, pooling, flattening.
        self.branch_layers = 3
        self.head = make_head(head, size, num_classes)
        for layer in self.modules():
            # The normalised head has an initialisation of its own.
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and not isinstance(layer, CosineLinear):
                nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, K) of images (n, in_channels, height, width)."""
        return self.head(self.backbone(self.input_norm(x)))


ResNet20 = partial(ResNetCIFAR, depth=20)
"""`ResNetCIFAR` with 20 layers."""

ResNet32 = partial(ResNetCIFAR, depth=32)
"""`ResNetCIFAR` with 32 layers, the network of the LDAM and MM papers."""

ResNet44 = partial(ResNetCIFAR, depth=44)
"""`ResNetCIFAR` with 44 layers."""

ResNet56 = partial(ResNetCIFAR, depth=56)
"""`ResNetCIFAR` with 56 layers."""
