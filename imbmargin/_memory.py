"""Memory that stays with the process while a network is trained, and does not scatter."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

__all__ = ["kept_memory", "note", "read_notes"]

# Numbers of malloc.h, and the names under which a user may have chosen for the process.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_CHOICES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
# To these both grow by themselves when blocks of such a size are freed.
_LARGEST_BLOCK, _USUAL_REST = 32 * 2**20, 64 * 2**20
_ALL = 2**31 - 1

_lock = Lock()
_trainings = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep what is freed for the next tensors, until the block is left.

    glibc hands freed memory back to the system, which maps the next tensors anew, page by page. In
    a step of ResNet-32 on batches of 128 images these were 7,000 to 32,000 pages, and keeping them
    took 5 to 9 % off its time. Blocks above 32 MiB go back as before, and all does at the end.
    Elsewhere than with glibc, or where the environment sets its thresholds, nothing is changed.

    Examples
    --------
    >>> import torch
    >>> from imbmargin._memory import kept_memory
    >>> with kept_memory():
    ...     total = sum(torch.ones(2**20).sum() for _ in range(10))
    >>> total == 10 * 2**20
    tensor(True)
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def note(tensor: Tensor) -> Any:
    """Return what to keep of a small tensor, such as the loss of a batch, for `read_notes`.

    These are its numbers, or the tensor itself if it lies on a device, which has to finish before
    they are known. A small tensor that is kept from each batch, among the large ones that are
    freed, would scatter memory: the process grew by up to 1.4 times the size of a large table.

    Examples
    --------
    >>> import torch
    >>> from imbmargin._memory import note, read_notes
    >>> read_notes([note(torch.tensor(0.5)), note(torch.tensor(2.0))])
    [0.5, 2.0]
    """
    return tensor.tolist() if tensor.is_cpu else tensor.detach()


def read_notes(notes: list[Any]) -> list[Any]:
    """Return the numbers of tensors of one shape, those on a device in one transfer."""
    on_device = bool(notes) and isinstance(notes[0], Tensor)
    return torch.stack(notes).tolist() if on_device else notes


def _count(change: int) -> None:
    """Add to the trainings that run in this process; the first and the last set thresholds."""
    global _trainings
    library = _find_library()
    if library is None:
        return
    with _lock:
        before, _trainings = _trainings, _trainings + change
        if 0 in (before, _trainings):
            library.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
            library.mallopt(_TRIM_THRESHOLD, _ALL if _trainings else _USUAL_REST)
        ended = _trainings == 0
    if ended:
        # The threshold is for the end of its memory only; this goes through all.
        library.malloc_trim(0)


@cache
def _find_library() -> Any:
    """Return the C library that this process allocates with, or None if it is to be left alone."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _CHOICES):
        return None
    return ctypes.CDLL(None)
