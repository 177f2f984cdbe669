"""A running average of a network's weights."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage(nn.Module):
    """Exponential moving average (EMA) of a network's weights and buffers.

    Parameters
    ----------
    network : Module
        Copied; the average begins as it is.
    decay : float, default=0.999
        Share of the old average in the new one, at least 0 and below 1. In the first steps it is
        less, (1 + t) / (10 + t) after t of them, so that the initial weights are soon forgotten.

    Attributes
    ----------
    network : Module
        The network with the average weights; while they are lent, with those that they replace.
    updates : int
        Updates so far.
    lent : int or None
        While the average is lent, a checksum of it, else None.

    Raises
    ------
    ValueError
        If the decay is out of range.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.modules import WeightAverage
    >>> network = torch.nn.Linear(1, 1)
    >>> average = WeightAverage(network, decay=0.5)
    >>> with torch.no_grad():
    ...     before = network.weight.clone()
    ...     network.weight += 1.0
    >>> average.update(network)
    >>> torch.allclose(average.network.weight, 0.1 * before + 0.9 * network.weight)
    True
    """

    def __init__(self, network: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self.lent: int | None = None

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards a network's present weights; counters are taken over."""
        part = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs = [*zip(_tensors(self.network), _tensors(network), strict=True)]
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        counting = [pair for pair in pairs if not pair[0].is_floating_point()]
        # A device gets one kernel for all, where hundreds would take as long as the step itself.
        if moving:
            torch._foreach_lerp_(*_columns(moving), part)
        if counting:
            torch._foreach_copy_(*_columns(counting))
        self.updates += 1

    def lend(self, network: nn.Module) -> None:
        """Give a network the average weights, and keep its own for `take_back`.

        Without updates so far there is nothing to lend.
        """
        if self.updates and self.lent is None:
            self._exchange(network)
            self.lent = _checksum(network)

    @torch.no_grad()
    def take_back(self, network: nn.Module) -> None:
        """Give a network its own weights again, and begin the average if that is still to be done.

        A network whose weights are no longer those that were lent, since others were loaded, keeps
        them, and the average begins anew from them.
        """
        if self.lent is not None and self.lent == _checksum(network):
            self._exchange(network)
        elif self.lent is not None or not self.updates:
            for average, present in zip(_tensors(self.network), _tensors(network), strict=True):
                average.copy_(present)
            self.updates = 0
        self.lent = None

    @torch.no_grad()
    def _exchange(self, network: nn.Module) -> None:
        # In place: optimizers and compiled code hold on to the tensors.
        for one, other in zip(_tensors(self.network), _tensors(network), strict=True):
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network with the average weights."""
        return self.network(*args, **kwargs)

    def get_extra_state(self) -> dict[str, int | None]:
        """Return what a state holds besides tensors."""
        return {"updates": self.updates, "lent": self.lent}

    def set_extra_state(self, state: Any) -> None:
        """Take from a state what it holds besides tensors."""
        self.updates, self.lent = state["updates"], state["lent"]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def _columns(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def _checksum(network: nn.Module) -> int:
    raw = [t.detach().contiguous().flatten().view(torch.uint8) for t in _tensors(network)]
    # One transfer, where a device would be waited for once a tensor.
    return zlib.crc32(torch.cat(raw).cpu().numpy().data)
