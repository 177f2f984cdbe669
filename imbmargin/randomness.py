"""One seed for everything that fit draws, without touching the caller's random state."""

# NumPy's global generator is seeded and given back, since users' datasets may draw from it.
# ruff: noqa: NPY002

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch

__all__ = [
    "derive_seed",
    "draw_seed",
    "get_random_states",
    "get_torch_states",
    "isolated_random_state",
    "set_random_states",
    "set_torch_states",
]


class _OneAtATime:
    """A lock that the threads of a process share, for the generators that they share."""

    def __init__(self) -> None:
        self.renew()
        if hasattr(os, "register_at_fork"):
            # The thread that holds it is not there in a child.
            os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.RLock()


_GENERATORS = _OneAtATime()


def draw_seed(random_state: Any) -> int:
    """Turn scikit-learn's ``random_state`` into a seed.

    None takes fresh entropy from the operating system: unlike scikit-learn's own estimators, a fit
    leaves NumPy's global generator as it found it.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, Integral) and not isinstance(random_state, bool):
        if random_state < 0:
            raise ValueError(f"random_state must be 0 or more, got {random_state}")
        return int(random_state)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(np.iinfo(np.int32).max))
    raise ValueError(
        "random_state must be None, an int or a numpy.random.RandomState, got "
        f"{random_state!r}; pass an int for reproducible results"
    )


def derive_seed(seed: int, *stage: int) -> int:
    """Return a seed of its own for a stage, which is named by numbers."""
    return int(np.random.SeedSequence(seed, spawn_key=stage).generate_state(1)[0])


@contextmanager
def isolated_random_state(seed: int, *stage: int, device: str = "cpu") -> Iterator[None]:
    """Seed torch, NumPy and Python inside the block and give their states back after it.

    Parameters
    ----------
    seed : int
        The seed.
    *stage : int
        Numbers that make the stream of this block differ from that of other blocks of one seed.
    device : str, default="cpu"
        A CUDA device whose generator is forked too.

    Notes
    -----
    The generators belong to the process: blocks in other threads wait until this one has ended.
    """
    stream = derive_seed(seed, *stage)
    with _GENERATORS.lock:
        states = get_random_states(device)
        try:
            random.seed(stream)
            np.random.seed(stream)
            # torch.manual_seed would seed every device, also those that are not given back.
            torch.default_generator.manual_seed(stream)
            if _is_cuda(device):
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(stream)
            yield
        finally:
            set_random_states(states, device)


def get_random_states(device: Any = "cpu") -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch, and of the device."""
    own = {"python": random.getstate(), "numpy": np.random.get_state()}
    return {**own, **get_torch_states(device)}


def set_random_states(states: dict[str, Any], device: Any = "cpu") -> None:
    """Set the states that `get_random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    set_torch_states(states, device)


def get_torch_states(device: Any = "cpu") -> dict[str, Any]:
    """Return the states of torch's generators alone, which takes a hundredth of the time."""
    states = {"torch": torch.get_rng_state()}
    if _is_cuda(device):
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_torch_states(states: dict[str, Any], device: Any = "cpu") -> None:
    """Set the states that `get_torch_states` returned."""
    torch.set_rng_state(states["torch"])
    if _is_cuda(device) and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _is_cuda(device: Any) -> bool:
    return torch.device(device or "cpu").type == "cuda"
