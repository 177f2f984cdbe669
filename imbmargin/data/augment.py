"""Augmentation of a whole batch of images at once, on the device where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imbmargin.data.transfer import send

__all__ = ["AUGMENTATIONS", "Cutout", "Grouped", "RandomCrop", "RandomFlip", "make_augment"]

Augment = Callable[[Tensor], Tensor]


class RandomCrop:
    """Pad every image with zeros and cut out a window of its own size, at its own offset.

    Parameters
    ----------
    padding : int
        Pixels on each side. 4 in the CIFAR protocol.

    Raises
    ------
    ValueError
        If ``padding`` is below 1.

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
        offset = send(torch.randint(2 * self.padding + 1, (2, n, 1, 1)), images.device)
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
        mirrored = send(torch.rand(len(images)) < 0.5, images.device)
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


class Cutout:
    """Blacken a square of each image, at its own place; it may lie partly outside.

    Parameters
    ----------
    size : int
        Side of the square, in pixels. 16 for CIFAR.

    Raises
    ------
    ValueError
        If the size is below 1.

    References
    ----------
    .. [1] DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
       Cutout", arXiv 1708.04552.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.data.augment import Cutout
    >>> holes = Cutout(2)(torch.ones(100, 1, 4, 4)) == 0
    >>> sorted(set(holes.sum((1, 2, 3)).tolist()))
    [1, 2, 4]
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        self.size = size

    def __call__(self, images: Tensor) -> Tensor:
        """Return the images, each with its hole."""
        n, _, *sides = images.shape
        hole = torch.ones((), dtype=torch.bool, device=images.device)
        for axis, side in enumerate(sides):
            centre = send(torch.randint(side, (n, 1)), images.device)
            distance = torch.arange(side, device=images.device) - centre
            inside = (distance >= -(self.size // 2)) & (distance < (self.size + 1) // 2)
            hole = hole & inside.view(n, 1, *((-1, 1) if axis == 0 else (1, -1)))
        # Unlike masked_fill this keeps the memory format.
        return images * ~hole


class Grouped:
    """Apply a transform that draws once a call, such as torchvision's, to groups of a batch.

    The groups are drawn anew for every batch. Each image then gets what it would get alone, at the
    cost of one call a group instead of one an image; images of a group get the same.

    Parameters
    ----------
    transform : callable
        From images (m, C, H, W) to images of the same shape and type.
    groups : int, default=16
        Number of groups.

    Raises
    ------
    ValueError
        If the number of groups is below 1.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.data.augment import Grouped
    >>> shift = Grouped(lambda images: images + torch.rand(()), groups=4)
    >>> len(shift(torch.zeros(16, 3, 8, 8)).unique())
    4
    """

    def __init__(self, transform: Augment, groups: int = 16) -> None:
        if groups < 1:
            raise ValueError(f"groups must be at least 1, got {groups}")
        self.transform = transform
        self.groups = groups

    def __call__(self, images: Tensor) -> Tensor:
        """Return the transformed images, in their order."""
        out = torch.empty_like(images)
        for part in send(torch.randperm(len(images)), images.device).chunk(self.groups):
            out[part] = self.transform(images[part])
        return out


class _Policy:
    """A policy of torchvision, which needs pixels of 0 to 255."""

    def __init__(self, name: str, image_shape: tuple[int, ...], **kwargs: Any) -> None:
        # Not needed by those who have no use for it, and slow to import.
        from torchvision.transforms import v2

        if image_shape[0] not in (1, 3):
            raise ValueError(
                f"augment={name.lower()!r} needs images with 1 or 3 channels, got {image_shape[0]}"
            )
        self.name = name
        self.apply = Grouped(getattr(v2, name)(**kwargs))

    def __call__(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise ValueError(
                f"augment={self.name.lower()!r} needs images of type uint8 (pixels of 0 to 255), "
                f"got {images.dtype}; pass X as uint8, such as (255 * X).astype(numpy.uint8)"
            )
        return self.apply(images)


def _autoaugment(image_shape: tuple[int, ...]) -> Augment:
    from torchvision.transforms import AutoAugmentPolicy

    return _Policy("AutoAugment", image_shape, policy=AutoAugmentPolicy.CIFAR10)


class _Compose:
    def __init__(self, steps: Sequence[Augment]) -> None:
        self.steps = steps

    def __call__(self, images: Tensor) -> Tensor:
        for step in self.steps:
            images = step(images)
        return images


AUGMENTATIONS: dict[str, Callable[[tuple[int, ...]], Augment]] = {
    "crop": lambda image_shape: RandomCrop(max(1, image_shape[1] // 8)),
    "flip": lambda image_shape: RandomFlip(),
    "autoaugment": _autoaugment,
    "randaugment": lambda image_shape: _Policy("RandAugment", image_shape),
    "trivialaugment": lambda image_shape: _Policy("TrivialAugmentWide", image_shape),
    "cutout": lambda image_shape: Cutout(max(1, image_shape[1] // 2)),
}
"""Name -> function of (channels, height, width): the single steps of ``augment``."""

_RECIPES: dict[str, Callable[[int], list[str]]] = {
    "auto": lambda channels: ["crop", "flip"] if channels == 3 else ["crop"],
    "strong": lambda channels: [*_RECIPES["auto"](channels), "autoaugment", "cutout"],
}


def make_augment(augment: Any, image_shape: tuple[int, ...] | None) -> Augment | None:
    """Return the augmentation that a name stands for.

    Parameters
    ----------
    augment : str, callable, list of these, or None
        A key of `AUGMENTATIONS`: "crop" after padding by an eighth of the height (4 for CIFAR),
        "flip" left to right, the policies "autoaugment" (that of CIFAR-10), "randaugment" and
        "trivialaugment" of torchvision for uint8 images, "cutout" of half the height. Or "auto":
        crop and flip for images with 3 channels; crop for other images, since a mirrored digit is
        another digit; nothing for tables. Or "strong": "auto", "autoaugment" and "cutout". A
        callable gets the batch (n, C, H, W), such as a torchvision v2 transform (see `Grouped`).
        Of a list each is applied in turn.
    image_shape : tuple of int, or None
        (channels, height, width); None for rows of a table.

    Returns
    -------
    augment : callable or None
        It draws from torch's CPU generator.

    Raises
    ------
    ValueError
        If a name is unknown, or the data are rows of a table, or have channels that a policy does
        not know. When it is called: if a policy gets images of another type than uint8.

    References
    ----------
    .. [1] Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", CVPR 2019.

    Examples
    --------
    >>> from imbmargin.data.augment import make_augment
    >>> make_augment("auto", (1, 8, 8)).padding
    1
    >>> make_augment("auto", None) is None
    True
    >>> make_augment(["flip", "cutout"], (3, 32, 32)).steps[1].size
    16
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
    if isinstance(augment, str) and augment in _RECIPES:
        augment = _RECIPES[augment](image_shape[0])
    if isinstance(augment, (list, tuple)):
        steps = [make_augment(step, image_shape) for step in augment]
        return steps[0] if len(steps) == 1 else _Compose([step for step in steps if step])
    if not isinstance(augment, str) or augment not in AUGMENTATIONS:
        raise ValueError(
            f"augment must be one of {[*_RECIPES, *AUGMENTATIONS]}, a callable, a list of these "
            f"or None, got {augment!r}"
        )
    return AUGMENTATIONS[augment](image_shape)
