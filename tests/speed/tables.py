"""Training on rows of a table: seconds an epoch, and peak memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from skorch import NeuralNetClassifier
from torch import Tensor, nn

from imbmargin import MaxMarginClassifier
from tests.speed.epochs import EpochStamps, Stamps, time_epochs, train_bare, train_by_hand
from tests.speed.measure import Comparison, run_rounds
from tests.speed.memory import peak_in_child

CLASSES = 10
NOTE = (
    "Epochs after the first; MLP 128-128, AdamW (lr 2e-3, weight decay 1e-4), cross-entropy. "
    "bound: steps on one fixed batch; fused: with torch's fused AdamW, which imbmargin chooses. "
    "imbmargin's network also standardises its input; that of mm has the cosine head."
)


@dataclass(frozen=True)
class Work:
    """Size of a table and of its batches."""

    rows: int
    columns: int
    batch: int
    epochs: int
    device: str = "cpu"
    #: Short rounds are repeated, since a disturbance takes longer than they do.
    repeats: int = 1

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return ceil(self.rows / self.batch)

    def make_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return random float32 rows and int64 labels."""
        generator = np.random.default_rng(0)
        X = generator.standard_normal((self.rows, self.columns), dtype=np.float32)
        return X, generator.integers(CLASSES, size=self.rows)


FULL = {
    "a": Work(100_000, 32, 256, epochs=4),
    "b": Work(2_000, 32, 128, epochs=51, repeats=5),
    "c": Work(1_000_000, 64, 1024, epochs=2),
}
QUICK = {"a": Work(600, 8, 64, epochs=3), "c": Work(1_000, 8, 128, epochs=2)}


def make_network(columns: int) -> nn.Sequential:
    """Return the network of all torch contenders but imbmargin, which brings its own."""
    return nn.Sequential(
        *(nn.Linear(columns, 128), nn.ReLU()),
        *(nn.Linear(128, 128), nn.ReLU()),
        nn.Linear(128, CLASSES),
    )


def make_optimizer(network: nn.Module, fused: bool | None = None) -> torch.optim.AdamW:
    """Return the optimizer of the torch contenders."""
    return torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4, fused=fused)


def fit_bound(X: np.ndarray, y: np.ndarray, work: Work, fused: bool | None = None) -> Stamps:
    """Bare steps on the first batch."""
    network = make_network(work.columns).to(work.device)
    x, target = (torch.from_numpy(part[: work.batch]).to(work.device) for part in (X, y))
    optimizer = make_optimizer(network, fused)
    return train_bare(network, optimizer, (x, target), work.epochs, work.steps)


def fit_by_hand(X: np.ndarray, y: np.ndarray, work: Work) -> Stamps:
    """Train with a plain loop over tensors in the device's memory."""
    rows, target = (torch.from_numpy(part).to(work.device) for part in (X, y))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(rows), device=work.device).split(work.batch):
            yield rows[index], target[index]

    network = make_network(work.columns).to(work.device)
    return train_by_hand(network, make_optimizer(network), batches, work.epochs, work.device)


def fit_skorch(X: np.ndarray, y: np.ndarray, work: Work) -> Stamps:
    """Train skorch's own classifier, with its callbacks."""
    stamps: Stamps = []
    NeuralNetClassifier(
        make_network(work.columns),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=1e-4,
        lr=2e-3,
        batch_size=work.batch,
        max_epochs=work.epochs,
        iterator_train__shuffle=True,
        train_split=None,
        device=work.device,
        verbose=0,
        callbacks=[EpochStamps(stamps)],
    ).fit(X, y)
    return stamps


class _StampedMLP(MLPClassifier):
    def _update_no_improvement_count(self, *args: Any, **kwargs: Any) -> None:
        super()._update_no_improvement_count(*args, **kwargs)
        self.stamps_.append(perf_counter())


def fit_sklearn(X: np.ndarray, y: np.ndarray, work: Work) -> Stamps:
    """Train scikit-learn's network, for the same epochs."""
    clf = _StampedMLP(
        (128, 128),
        batch_size=work.batch,
        learning_rate_init=2e-3,
        max_iter=work.epochs,
        n_iter_no_change=work.epochs + 1,
    )
    clf.stamps_ = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf.fit(X, y)
    return clf.stamps_


def fit_imbmargin(X: np.ndarray, y: np.ndarray, work: Work, loss: str = "cross_entropy") -> Stamps:
    """Train this package's classifier; its optimizer for tables is that of the others."""
    stamps: Stamps = []
    MaxMarginClassifier(
        "mlp",
        loss=loss,
        batch_size=work.batch,
        max_epochs=work.epochs,
        device=work.device,
        callbacks=[EpochStamps(stamps)],
    ).fit(X, y)
    return stamps


FITS: dict[str, Callable[[np.ndarray, np.ndarray, Work], Stamps]] = {
    "bound": fit_bound,
    "bound fused": partial(fit_bound, fused=True),
    "hand-written": fit_by_hand,
    "skorch": fit_skorch,
    "MLPClassifier": fit_sklearn,
    "imbmargin": fit_imbmargin,
    "imbmargin mm": partial(fit_imbmargin, loss="mm"),
}


def compare(name: str, work: Work, rounds: int) -> dict[str, Any]:
    """Compare all contenders on one table."""
    X, y = work.make_data()
    # scikit-learn knows no other device.
    fits = [fit for fit in FITS if work.device == "cpu" or fit != "MLPClassifier"]
    runs = {fit: time_epochs(partial(FITS[fit], X, y, work)) for fit in fits}
    comparison = Comparison(
        title=f"tables {name}: {work.rows:,} x {work.columns}, batch {work.batch}",
        unit="seconds an epoch",
        contenders=runs,
        references={"bound": list(runs), "hand-written": list(runs), "imbmargin": list(runs)},
        note=NOTE,
    )
    return run_rounds(comparison, rounds * work.repeats)


def compare_memory(work: Work, quick: bool) -> dict[str, Any]:
    """Compare the growth of the peak memory in fit, each in a process of its own."""
    names = ["hand-written", "skorch", "MLPClassifier", "imbmargin", "imbmargin mm"]
    names = ["imbmargin"] if quick else names
    comparison = Comparison(
        title=f"memory: {work.rows:,} x {work.columns}, batch {work.batch}",
        unit="growth of peak memory in fit, as a part of the array",
        contenders={name: partial(peak_in_child, name, work) for name in names},
        references={},
        note="A fresh process each: data made, a small fit done, then the fit that is measured.",
    )
    return run_rounds(comparison, 1, warm_up=False)


def run(
    rounds: int | None = None, quick: bool = False, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Run the case, and yield the result of each comparison."""
    works = QUICK if quick else FULL
    # On a device the largest one would show what the first one does.
    names = works if device == "cpu" else works.keys() - {"c"}
    for name in sorted(names):
        work = works[name]
        yield compare(name, replace(work, device=device), rounds or 3)
    if device == "cpu":
        yield compare_memory(works["c"], quick)
