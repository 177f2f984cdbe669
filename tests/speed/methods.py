"""What a method's training step costs, beside that of plain cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from imbmargin import make_classifier
from imbmargin.meta_sampler import MetaSamplerClassifier
from tests.speed.epochs import EpochStamps, Stamps, time_epochs
from tests.speed.images import Work
from tests.speed.measure import Comparison, run_rounds

NOTE = (
    "Epochs after the first, float32, crop and flip. strong: also AutoAugment in 16 groups a "
    "batch, and Cutout. meta sampler: on the whole network; BALMS runs it on frozen features."
)
SETTINGS: dict[str, dict[str, Any]] = {
    "ERM": {},
    "MM": {},
    "mixup": {},
    "ERM, strong": {"augment": "strong"},
    "ERM, averaged": {"ema_decay": 0.999},
    "BBN": {},
    "MW-Net": {},
    "meta sampler": {},
}


def fit(X: np.ndarray, y: np.ndarray, work: Work, name: str) -> Stamps:
    """Train a method on the array."""
    stamps: Stamps = []
    method = name.partition(",")[0]
    settings = {
        **SETTINGS[name],
        "batch_size": work.batch,
        "max_epochs": work.epochs,
        "device": work.device,
        "random_state": 0,
        "callbacks": [EpochStamps(stamps)],
    }
    sampled = method == "meta sampler"
    clf = MetaSamplerClassifier(**settings) if sampled else make_classifier(method, **settings)
    clf.fit(X, y)
    return stamps


def run(
    rounds: int | None = None, quick: bool = False, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Run the case, and yield the result of its comparison."""
    images = 1_280 if device == "cpu" else 6_400
    work = Work(16, 8, 2, device) if quick else Work(images, 128, 2, device)
    X, y = work.make_data()
    y[:10] = np.arange(10)
    comparison = Comparison(
        title=f"methods: ResNet-32, {work.images:,} images of 32x32x3, batch {work.batch}",
        unit="seconds an epoch",
        contenders={name: time_epochs(partial(fit, X, y, work, name)) for name in SETTINGS},
        references={"ERM": list(SETTINGS)},
        note=NOTE,
    )
    yield run_rounds(comparison, rounds or 3, warm_up=not quick)
