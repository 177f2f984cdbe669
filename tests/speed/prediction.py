"""Predictions against the bare forward pass: rows, or images, a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from skorch import NeuralNetClassifier
from torch import nn

from imbmargin import MaxMarginClassifier
from tests.speed import images, tables
from tests.speed.epochs import stamp
from tests.speed.measure import Comparison, Sample, run_rounds

NOTE = (
    "forward: the network alone on batches of the same size, on a tensor of the whole array. "
    "skorch predicts with the same network."
)


def time_prediction(predict: Callable[[], Any], units: int) -> Callable[[], Sample]:
    """Return a contender: units a second."""

    def run() -> Sample:
        start = perf_counter()
        predict()
        return Sample(units / (perf_counter() - start))

    return run


def forward(network: nn.Module, x: torch.Tensor, batch: int) -> None:
    """Run the network over all batches."""
    with torch.inference_mode():
        for part in x.split(batch):
            network(part)
    stamp(x.device.type)


def compare(
    title: str, X: np.ndarray, y: np.ndarray, batch: int, rounds: int, device: str
) -> dict[str, Any]:
    """Compare the predictions for X of a classifier that has seen a part of it."""
    first = 10 * batch
    clf = MaxMarginClassifier(
        loss="cross_entropy", max_epochs=1, batch_size=batch, device=device, random_state=0
    ).fit(X[:first], y[:first])
    network = clf.module_.eval()
    x = torch.from_numpy(X)
    x = x.permute(0, 3, 1, 2) if x.ndim == 4 else x
    net = NeuralNetClassifier(
        network, criterion=nn.CrossEntropyLoss, batch_size=batch, device=device
    )
    net.initialize()
    runs = {
        "forward": partial(forward, network, x.to(device), batch),
        "skorch predict_proba": partial(net.predict_proba, x),
        "imbmargin predict_proba": partial(clf.predict_proba, X),
        "imbmargin predict": partial(clf.predict, X),
    }
    comparison = Comparison(
        title=f"prediction: {title}, batch {batch}",
        unit="a second",
        contenders={name: time_prediction(call, len(X)) for name, call in runs.items()},
        references={"forward": list(runs)},
        note=NOTE,
    )
    return run_rounds(comparison, rounds)


def run(
    rounds: int | None = None, quick: bool = False, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Run the case, and yield the result of each comparison."""
    rows = tables.QUICK["a"] if quick else tables.FULL["a"]
    pictures = images.Work(32, 16, epochs=1) if quick else images.Work(2_000, 128, epochs=1)
    title = f"MLP, {rows.rows:,} rows"
    yield compare(title, *rows.make_data(), rows.batch, rounds or 7, device)
    title = f"ResNet-32, {pictures.images:,} images"
    yield compare(title, *pictures.make_data(), pictures.batch, rounds or 7, device)
