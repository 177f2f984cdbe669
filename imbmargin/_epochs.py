"""Numbers of epochs that follow from the length of a training."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

__all__ = ["resolve_epoch", "step_epochs"]


def resolve_epoch(start: Any, max_epochs: int, name: str, open_ended: bool = False) -> int:
    """Turn a start (an int, a fraction of ``max_epochs``, or None) into completed epochs.

    Parameters
    ----------
    start : int, float or None
        Completed epochs, or a fraction of ``max_epochs``: below 1 it is always reached.
    max_epochs : int
        Epochs of the training.
    name : str
        Name of the argument, for the errors.
    open_ended : bool, default=False
        Whether training may go on after ``max_epochs`` (``partial_fit``): any start is fine.

    Returns
    -------
    epoch : int

    Raises
    ------
    ValueError
        If the start is negative, not a number, or not reached within ``max_epochs``.

    Examples
    --------
    >>> from imbmargin.callbacks import resolve_epoch
    >>> resolve_epoch(0.8, 200, "drw_epoch"), resolve_epoch(160, 200, "drw_epoch")
    (160, 160)
    """
    if start is None:
        return 0
    if isinstance(start, bool) or not isinstance(start, Real) or not float(start) >= 0:
        raise ValueError(
            f"{name} must be None, a number of epochs (0 or more) or a fraction of max_epochs, "
            f"got {start!r}"
        )
    # An integer 1 is one epoch; a float 1.0 is all of them.
    if isinstance(start, Integral):
        epoch = int(start)
    elif (fraction := float(start)) <= 1:
        # A fraction below 1 leaves an epoch, however few there are.
        epoch = min(round(fraction * max_epochs), max_epochs - (fraction < 1))
    else:
        raise ValueError(
            f"{name} must be a whole number of epochs or a fraction up to 1, got {start!r}"
        )
    if epoch >= max_epochs and not open_ended:
        raise ValueError(
            f"{name}={start} is never reached: it starts after {epoch} epochs and max_epochs is "
            f"{max_epochs}; lower {name} or raise max_epochs"
        )
    return epoch


def step_epochs(max_epochs: int, parts: tuple[float, ...] = (0.8, 0.9)) -> tuple[int, list[int]]:
    """Return the epochs of warm-up, and the completed epochs after which the rate drops."""
    # The last epoch of warm-up has the full rate: one epoch alone is none.
    warm_up = round(0.025 * max_epochs)
    drop, drops = 0, []
    for part in parts:
        drop = max(round(part * max_epochs), drop + 1)
        drops.append(drop)
    return warm_up if warm_up > 1 else 0, drops
