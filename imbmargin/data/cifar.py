"""CIFAR-10 and CIFAR-100: found on disk, in either of their two layouts, and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbmargin.data.images import Listing, class_folders, find_parts, list_images

__all__ = ["CIFAR_CLASSES", "guess_cifar", "is_batches", "list_cifar", "read_batches"]

CIFAR_CLASSES = {"cifar10": 10, "cifar100": 100}
"""Data set -> number of classes."""

_ROWS = {"training": 50_000, "test": 10_000}
_BATCHES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def is_batches(root: Path, dataset: str) -> bool:
    """Tell whether the folder has the data set as it is published: batches, as torchvision has."""
    return (root / _BATCHES[dataset]).is_dir()


def guess_cifar(root: Path) -> str:
    """Return which of the two a folder seems to hold.

    Raises
    ------
    ValueError
        If it holds neither, or both.
    """
    found = [name for name in CIFAR_CLASSES if is_batches(root, name)]
    if not found and root.is_dir() and (parts := find_parts(root)):
        folders = len(class_folders(parts["train"]))
        found = [name for name, classes in CIFAR_CLASSES.items() if classes == folders]
    if len(found) != 1:
        what = "both data sets" if found else "neither 10 nor 100 class folders in train/"
        raise ValueError(
            f"{root} has {what}; name the data set, one of {list(CIFAR_CLASSES)}, or pass its own "
            "folder"
        )
    return found[0]


def list_cifar(root: Path, dataset: str) -> tuple[Listing, Listing]:
    """Return paths and labels of the training part, and those of the test part.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the data set is not there, or not completely.
    """
    train, test = list_images(root)
    if test is None:
        raise ValueError(
            f"{root} has no {dataset}: it needs train/ and test/ with a folder for each class, or "
            "the published batches; download=True (--download) fetches those"
        )
    for part, (_, labels) in (("training", train), ("test", test)):
        _check_complete(labels, dataset, part, root)
    return train, test


def _check_complete(labels: NDArray[Any], dataset: str, part: str, root: Path) -> None:
    classes, counts = np.unique(labels, return_counts=True)
    expected = CIFAR_CLASSES[dataset]
    if len(classes) != expected:
        raise ValueError(
            f"{root} has {len(classes)} classes in its {part} part, {dataset} has {expected}; pass "
            f"the folder of {dataset}, or copy it again"
        )
    each = _ROWS[part] // expected
    wrong = np.flatnonzero(counts != each)
    if len(wrong):
        first = wrong[0]
        raise ValueError(
            f"{root} has {counts[first]:,} {part} images of class {str(classes[first])!r} and "
            f"{counts.sum():,} in all, {dataset} has {each:,} of each class; copy it again"
        )


def read_batches(root: Path, dataset: str, download: bool) -> tuple[Listing, Listing]:
    """Return images (n, 3, 32, 32) and class names of the training and the test part.

    torchvision checks the files against their checksums before it reads them.

    Raises
    ------
    ValueError
        If a file is missing or damaged.
    OSError
        If they cannot be fetched, or not be read.
    """
    from torchvision import datasets

    factory = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[dataset]
    try:
        parts = [factory(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise ValueError(
            f"{root / _BATCHES[dataset]} is missing files or damaged ({error}); copy it again, or "
            "pass download=True (--download)"
        ) from error
    except OSError as error:
        if not download:
            raise
        raise OSError(
            f"{dataset} could not be fetched from {factory.url} ({error}); try again, or put "
            f"{factory.filename} into {root}, where it is looked for first"
        ) from error
    train, test = (
        (part.data.transpose(0, 3, 1, 2), np.array(part.classes)[part.targets]) for part in parts
    )
    return train, test
