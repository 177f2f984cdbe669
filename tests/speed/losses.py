"""Forward and backward of the margin losses against torch's cross-entropy: microseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imbmargin.losses import LDAMLoss, MaxMarginLDAMLoss, MaxMarginLoss
from tests.speed.epochs import stamp
from tests.speed.measure import Comparison, Sample, run_rounds

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = {"MM": MaxMarginLoss, "MM-LDAM": MaxMarginLDAMLoss, "LDAM": LDAMLoss}
# (rows, classes) -> calls of a run, a few milliseconds.
FULL = {(128, 10): 100, (128, 100): 100, (256, 1000): 20, (256, 8142): 3}
QUICK = {(128, 10): 3, (16, 100): 3}
NOTE = "Each is divided by cross-entropy with, or without, class weights, as it has them itself."


def time_loss(loss: Loss, logits: Tensor, target: Tensor, calls: int) -> Callable[[], Sample]:
    """Return a contender: microseconds of a forward and a backward."""

    def run() -> Sample:
        start = perf_counter()
        for _ in range(calls):
            torch.autograd.grad(loss(logits, target), logits)
        return Sample(1e6 * (stamp(logits.device.type) - start) / calls)

    return run


def make_losses(num_classes: int, device: str) -> dict[str, Loss]:
    """Return the losses, with class counts bound, each without and with class weights."""
    counts = torch.linspace(500, 5, num_classes, device=device).long()
    weight = 1 / counts
    found: dict[str, Loss] = {
        "cross_entropy": F.cross_entropy,
        "cross_entropy weighted": lambda z, y: F.cross_entropy(z, y, weight),
    }
    for name, kind in LOSSES.items():
        for suffix, given in (("", None), (" weighted", weight)):
            loss = kind()
            loss.set_class_counts(counts)
            loss.set_class_weight(given)
            found[name + suffix] = loss
    return found


def compare(rows: int, num_classes: int, calls: int, rounds: int, device: str) -> dict[str, Any]:
    """Compare the losses on logits of one shape."""
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.rand(rows, num_classes, generator=generator) - 1).to(device)
    logits.requires_grad_()
    target = torch.randint(num_classes, (rows,), generator=generator).to(device)
    losses = make_losses(num_classes, device)
    weighted = [name for name in losses if name.endswith(" weighted")]
    comparison = Comparison(
        title=f"losses: logits ({rows}, {num_classes})",
        unit="microseconds, forward and backward",
        contenders={name: time_loss(loss, logits, target, calls) for name, loss in losses.items()},
        references={
            "cross_entropy": [name for name in losses if name not in weighted],
            "cross_entropy weighted": weighted,
        },
        note=NOTE,
    )
    return run_rounds(comparison, rounds)


def run(
    rounds: int | None = None, quick: bool = False, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Run the case, and yield the result of each comparison."""
    shapes = QUICK if quick else FULL
    for shape, calls in shapes.items():
        # Long enough for a device to be kept busy.
        calls = calls if device == "cpu" else 100
        yield compare(*shape, calls, rounds or 50, device)
