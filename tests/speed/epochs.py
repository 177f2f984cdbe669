"""Epochs of a training, timed by stamps at their ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F

from tests.speed.measure import Sample

Stamps = list[float]
Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def stamp(device: str) -> float:
    """Return the time when the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return perf_counter()


class EpochStamps(Callback):
    """Note the time at the end of each epoch, after all other callbacks."""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.stamps.append(stamp(net.device))


def time_epochs(train: Callable[[], Stamps], units: float = 0) -> Callable[[], Sample]:
    """Return a contender: seconds an epoch, or units a second if an epoch has so many.

    The first epoch is left out; checks, copies and initialisation come before it and are given
    apart, with all that comes after the last epoch.
    """

    def run() -> Sample:
        start = perf_counter()
        stamps = train()
        whole = perf_counter() - start
        epoch = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        value = units / epoch if units else epoch
        return Sample(value, {"outside epochs, s": max(whole - epoch * len(stamps), 0.0)})

    return run


def train_bare(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    epochs: int,
    steps: int,
    dtype: torch.dtype | None = None,
) -> Stamps:
    """Run bare steps on one batch: the bound for any loop around them."""
    x, target = batch
    device = x.device.type
    stamps = []
    for _ in range(epochs):
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device, dtype, enabled=dtype is not None):
                logits = network(x)
            F.cross_entropy(logits.float(), target).backward()
            optimizer.step()
        stamps.append(stamp(device))
    return stamps


def train_by_hand(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    epochs: int,
    device: str = "cpu",
) -> Stamps:
    """Run a plain torch loop, as a good user would write it."""
    stamps = []
    network.train()
    for _ in range(epochs):
        total, count = torch.zeros((), device=device), 0
        for x, target in batches():
            x, target = x.to(device), target.to(device)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), target)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
            count += len(x)
        assert float(total / count) > 0
        stamps.append(stamp(device))
    return stamps
