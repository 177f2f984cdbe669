"""Augmentation of a whole batch of images at once, on the device where it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AUGMENTATIONS", "RandomCrop", "RandomFlip", "make_augment"]

Augment = Callable[[Tensor], Tensor]


class RandomCrop:
    """Pad every image with zeros and cut out a window of its own size, at its own offset.

    Parameters
    ----------
    padding : int
        Pixels on each side. 4 in the CIFAR protocol.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.data.augment import RandomCrop
    >>> RandomCrop(4)(torch.ones(8, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([8, 3, 32, 32])
    """

    def __init__(self, padding: int) -> None:
        if padding < 1:
            raise ValueError(f"padding must be at least 1 pixel, got {padding}")
        self.padding = padding

    def __call__(self, images: Tensor) -> Tensor:
        """Return the shifted images, of the same shape, type and memory format."""
        n, _, height, width = images.shape
        # Channels last: the gathered elements are whole pixels, which is what makes it fast.
        padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, *(self.padding,) * 4))
        offset = torch.randint(2 * self.padding + 1, (2, n, 1, 1)).to(images.device)
        rows = offset[0] + torch.arange(height, device=images.device).view(1, -1, 1)
        columns = offset[1] + torch.arange(width, device=images.device).view(1, 1, -1)
        samples = torch.arange(n, device=images.device).view(-1, 1, 1)
        return padded[samples, rows, columns].permute(0, 3, 1, 2)


class RandomFlip:
    """Mirror each image left to right with probability 1/2.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.data.augment import RandomFlip
    >>> images = torch.arange(3.0).expand(100, 1, 1, 3)
    >>> 20 < int((RandomFlip()(images)[:, 0, 0, 0] == 2).sum()) < 80
    True
    """

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images, some mirrored."""
        mirrored = (torch.rand(len(images)) < 0.5).to(images.device)
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


class _Compose:
    def __init__(self, *steps: Augment) -> None:
        self.steps = steps

    def __call__(self, images: Tensor) -> Tensor:
        for step in self.steps:
            images = step(images)
        return images


AUGMENTATIONS: dict[str, Callable[[int], Augment]] = {
    "crop": RandomCrop,
    "flip": lambda padding: RandomFlip(),
    "crop_flip": lambda padding: _Compose(RandomCrop(padding), RandomFlip()),
}
"""Name -> function of the padding."""


def make_augment(augment: Any, image_shape: tuple[int, ...] | None) -> Augment | None:
    """Return the augmentation that a name stands for.

    Parameters
    ----------
    augment : {"auto", "crop", "flip", "crop_flip"}, callable or None
        "auto": crop and flip for images with 3 channels; crop for other images, since a mirrored
        digit is another digit; nothing for tables. A callable gets the batch (n, C, H, W), such as
        a torchvision v2 transform.
    image_shape : tuple of int, or None
        (channels, height, width); None for rows of a table. The padding of the crop is an eighth
        of the height: 4 for CIFAR.

    Returns
    -------
    augment : callable or None
        It draws from torch's CPU generator.

    Raises
    ------
    ValueError
        If the name is unknown, or the data are rows of a table.

    Examples
    --------
    >>> from imbmargin.data.augment import make_augment
    >>> make_augment("auto", (1, 8, 8)).padding
    1
    >>> make_augment("auto", None) is None
    True
    """
    if augment is None or (image_shape is None and isinstance(augment, str) and augment == "auto"):
        return None
    if image_shape is None:
        raise ValueError(
            f"augment={augment!r} is for images, but X has rows of a table; pass image_shape if "
            "the rows are flattened images, or augment=None"
        )
    if callable(augment):
        return augment
    if augment == "auto":
        augment = "crop_flip" if image_shape[0] == 3 else "crop"
    if augment not in AUGMENTATIONS:
        raise ValueError(
            f"augment must be one of {['auto', *AUGMENTATIONS]}, a callable or None, "
            f"got {augment!r}"
        )
    return AUGMENTATIONS[augment](max(1, image_shape[1] // 8))
