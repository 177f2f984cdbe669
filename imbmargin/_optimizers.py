"""Steps of torch's fused Adam and AdamW without what torch does around each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer, optimizer

__all__ = ["QuickSteps"]

_KERNELS: dict[type[Optimizer], Callable[..., Any] | None] = {
    Adam: getattr(torch, "_fused_adam_", None),
    AdamW: getattr(torch, "_fused_adamw_", None),
}
_STATE = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class _Gathered:
    """The tensors of a group of parameters, in the order in which the kernel takes them."""

    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    counts: list[Tensor]
    #: All of them, one tensor of which they are views.
    count: Tensor


class QuickSteps:
    """The steps of an optimizer while nobody else touches it, such as in an epoch.

    For each step torch gathers its tensors anew, asks for hooks and tells the profiler, which on
    tables costs more than the kernel. Here they are gathered once; rates and other numbers are read
    at each step. What is not a fused Adam or AdamW that steps as torch makes it steps by itself.

    Parameters
    ----------
    steps_of : Optimizer
        The optimizer.

    Examples
    --------
    >>> import torch
    >>> from imbmargin._optimizers import QuickSteps
    >>> layer = torch.nn.Linear(3, 2)
    >>> quick = QuickSteps(torch.optim.AdamW(layer.parameters(), fused=True))
    >>> for _ in range(2):
    ...     layer(torch.ones(4, 3)).sum().backward()
    ...     quick.step()
    >>> quick.is_quick
    True
    """

    def __init__(self, steps_of: Optimizer) -> None:
        self._optimizer = steps_of
        self._kernel = None if _is_changed(steps_of) else _KERNELS.get(type(steps_of))
        self._state: Any = None
        self._groups: list[_Gathered] = []
        # A new one makes in its first step what is gathered.
        if self._kernel is not None and steps_of.state:
            self._gather()

    @property
    def is_quick(self) -> bool:
        """Whether the next step is one of those."""
        groups = self._optimizer.param_groups
        # Loading a state replaces it.
        return self._state is self._optimizer.state and len(groups) == len(self._groups)

    def step(self) -> None:
        """Take a step down the gradients of the parameters."""
        if self._kernel is None:
            self._optimizer.step()
            return
        gradients = [[p.grad for p in group.parameters] for group in self._groups]
        if not self.is_quick or any(g is None for group in gradients for g in group):
            # It makes what the next ones gather.
            self._optimizer.step()
            self._gather()
            return
        with torch.no_grad():
            for numbers, own, found in zip(
                self._optimizer.param_groups, self._groups, gradients, strict=True
            ):
                own.count.add_(1)
                self._kernel(
                    own.parameters,
                    found,
                    own.averages,
                    own.squares,
                    [],
                    own.counts,
                    lr=numbers["lr"],
                    beta1=numbers["betas"][0],
                    beta2=numbers["betas"][1],
                    weight_decay=numbers["weight_decay"],
                    eps=numbers["eps"],
                    amsgrad=False,
                    maximize=numbers["maximize"],
                )

    def _gather(self) -> None:
        state, groups = self._optimizer.state, self._optimizer.param_groups
        # A frozen parameter has no state, and may learn later.
        states = [[state.get(p, {}) for p in group["params"]] for group in groups]
        if not all(map(_is_plain, groups, states)):
            self._kernel = self._state = None
            return
        self._groups = list(map(_gathered, groups, states))
        self._state = state


def _gathered(group: dict[str, Any], states: list[dict[str, Tensor]]) -> _Gathered:
    """Gather the state, in which the counts of steps get one memory, to be raised together."""
    count = torch.stack([own["step"] for own in states])
    for own, view in zip(states, count.unbind(), strict=True):
        own["step"] = view
    averages, squares, counts = ([own[name] for own in states] for name in _STATE)
    return _Gathered(list(group["params"]), averages, squares, counts, count)


def _is_changed(steps_of: Optimizer) -> bool:
    """Tell whether somebody follows the steps: hooks, or a schedule of torch."""
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    of_all = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    return (
        "step" in vars(steps_of)
        or any(getattr(steps_of, name, True) for name in hooks)
        or any(getattr(optimizer, name, True) for name in of_all)
    )


def _is_plain(group: dict[str, Any], states: list[dict[str, Tensor]]) -> bool:
    """Tell whether a fused kernel takes all parameters of a group, with their states, at once."""
    numbers = (group["lr"], *group["betas"])
    flags = [group[name] for name in ("amsgrad", "capturable", "differentiable")]
    kinds = {(p.device, p.dtype) for p in group["params"]}
    return (
        bool(group["fused"])
        and not any(flags)
        and not any(isinstance(number, Tensor) for number in numbers)
        and len(kinds) == 1
        and all(own.keys() >= {*_STATE} for own in states)
    )
