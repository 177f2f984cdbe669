"""Copies to the device that nothing waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["send"]


def send(tensor: Tensor, device: Any) -> Tensor:
    """Copy a tensor of the CPU to a device, without waiting until a CUDA device has it.

    Such a device takes what it is given in turn, so what comes after the copy sees all of it. From
    memory that is not pinned torch would wait until the device has done all that it was given.

    Parameters
    ----------
    tensor : Tensor
        On the CPU, or already on the device.
    device : str or torch.device
        Where to.

    Returns
    -------
    tensor : Tensor
        The same values on the device.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.data.transfer import send
    >>> send(torch.arange(3), "cpu")
    tensor([0, 1, 2])
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
