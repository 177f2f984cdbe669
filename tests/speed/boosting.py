"""What the networks for tables cost, beside gradient boosting: whole fits, and what they give."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split

from imbmargin import make_classifier
from imbmargin.benchmark.contenders import BASELINES, check_baselines
from tests.speed.measure import Comparison, Sample, run_rounds

NOTE = (
    "Two classes, 32 columns, 2 % positive, 1 % of the labels wrong; 40 epochs of the networks. "
    "balanced: balanced accuracy of as many test rows. All with the threads of the machine."
)
LIGHTGBM = "LightGBM"


def contenders(epochs: int, counts: np.ndarray, device: str) -> dict[str, Any]:
    """Return name -> function that makes a classifier."""
    network = partial(make_classifier, max_epochs=epochs, device=device, random_state=0)
    return {
        # The benchmark gives it one thread.
        LIGHTGBM: lambda: BASELINES[LIGHTGBM](counts, epochs, 0).set_params(n_jobs=None),
        "HistGradientBoosting": lambda: BASELINES["HistGradientBoosting"](counts, epochs, 0),
        "LA-post-hoc, mlp": partial(network, "LA-post-hoc"),
        "LA-post-hoc, tabm": partial(network, "LA-post-hoc", module="tabm"),
        "MM-DRW, mlp": partial(network, "MM-DRW"),
    }


def fit(make: Any, data: list[np.ndarray]) -> Sample:
    """Train, and return the time of fit."""
    X_train, X_test, y_train, y_test = data
    model = make()
    start = time.perf_counter()
    model.fit(X_train, y_train)
    seconds = time.perf_counter() - start
    return Sample(seconds, {"balanced": balanced_accuracy_score(y_test, model.predict(X_test))})


def run(
    rounds: int | None = None, quick: bool = False, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Run the case, and yield the result of its comparisons."""
    for rows in (400,) if quick else (10_000, 50_000):
        X, y = make_classification(
            2 * rows, 32, n_informative=12, weights=[0.98], flip_y=0.01, random_state=0
        )
        data = train_test_split(X.astype(np.float32), y, test_size=0.5, stratify=y, random_state=0)
        made, skipped = contenders(2 if quick else 40, np.bincount(data[2]), device), {}
        try:
            check_baselines([LIGHTGBM])
        except ImportError as error:
            del made[LIGHTGBM]
            skipped[LIGHTGBM] = str(error)
        reference = next(iter(made))
        yield run_rounds(
            Comparison(
                title=f"boosting: {rows:,} rows, {int(data[2].sum())} of them positive",
                unit="seconds of fit",
                contenders={name: partial(fit, make, data) for name, make in made.items()},
                references={reference: list(made)},
                note=NOTE,
                skipped=skipped,
            ),
            rounds or 3,
            warm_up=not quick,
        )
