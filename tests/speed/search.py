"""A grid search over delta_neg and beta: seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier

from imbmargin import MaxMarginClassifier
from imbmargin.losses import MaxMarginLoss
from imbmargin.modules import MLP
from tests.speed.measure import Comparison, Sample, run_rounds

CLASSES = 4
SKORCH, PLAIN = "GridSearchCV, skorch", "GridSearchCV, imbmargin"
PARALLEL, BATCHED = "GridSearchCV, skorch, n_jobs=2", "BatchedGridSearchCV, imbmargin"
BATCH = 128
NOTE = (
    "No refit; balanced accuracy; all fits with the MM loss, MLP 128-128 with cosine head, batch "
    "128. best: mean_test_score of the best candidate. difference: the largest of mean_test_score "
    "between BatchedGridSearchCV and GridSearchCV over MaxMarginClassifier."
)


@dataclass(frozen=True)
class Work:
    """Size of the table and of the search."""

    rows: int
    delta_neg: tuple[float, ...]
    beta: tuple[float, ...]
    folds: int
    epochs: int
    device: str = "cpu"

    def make_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return an imbalanced table with 20 columns, standardised as imbmargin's network does."""
        X, y = make_classification(
            self.rows,
            n_informative=10,
            n_classes=CLASSES,
            weights=[0.7, 0.18, 0.08, 0.04],
            random_state=0,
        )
        return StandardScaler().fit_transform(X).astype(np.float32), y

    def options(self, n_jobs: int, prefix: str = "") -> dict[str, Any]:
        """Return what all searches share."""
        return {
            "param_grid": {
                f"{prefix}delta_neg": list(self.delta_neg),
                f"{prefix}beta": list(self.beta),
            },
            "scoring": "balanced_accuracy",
            "cv": StratifiedKFold(self.folds, shuffle=True, random_state=0),
            "refit": False,
            "n_jobs": n_jobs,
        }


FULL = Work(5_000, (0.2, 0.4, 0.6, 0.8, 1.0), (1.0, 1.25, 1.5, 1.75, 2.0), folds=5, epochs=20)
QUICK = Work(300, (0.4, 0.6), (1.0, 1.5), folds=2, epochs=2)


def make_skorch(work: Work, n_jobs: int) -> GridSearchCV:
    """Search over skorch's own classifier, with this package's loss and network."""
    net = NeuralNetClassifier(
        MLP,
        module__in_features=20,
        module__num_classes=CLASSES,
        module__head="cosine",
        criterion=MaxMarginLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=1e-4,
        lr=2e-3,
        batch_size=BATCH,
        max_epochs=work.epochs,
        iterator_train__shuffle=True,
        train_split=None,
        device=work.device,
        verbose=0,
    )
    return GridSearchCV(net, **work.options(n_jobs, "criterion__"))


def make_imbmargin(work: Work, search: type[GridSearchCV]) -> GridSearchCV:
    """Search over this package's classifier."""
    clf = MaxMarginClassifier(
        batch_size=BATCH, max_epochs=work.epochs, device=work.device, random_state=0
    )
    return search(clf, **work.options(1))


def time_search(
    search: GridSearchCV, X: np.ndarray, y: np.ndarray, kept: dict[str, Any], name: str
) -> Sample:
    """Run the search; its result is kept for later comparison."""
    start = perf_counter()
    search.fit(X, y)
    seconds = perf_counter() - start
    scores = search.cv_results_["mean_test_score"]
    kept[name] = scores
    extra = {"best": float(scores.max()), "candidate": str(search.best_params_)}
    if name == BATCHED:
        gap = np.abs(scores - kept[PLAIN]).max()
        extra["difference"] = float(gap)
    return Sample(seconds, extra)


def make_searches(
    work: Work, quick: bool
) -> tuple[dict[str, Callable[[], GridSearchCV]], dict[str, str]]:
    """Return what makes each search, and why others are left out."""
    found: dict[str, Callable[[], GridSearchCV]] = {}
    skipped: dict[str, str] = {}
    found[SKORCH] = partial(make_skorch, work, 1)
    if work.device != "cpu":
        skipped[PARALLEL] = "its processes would share one device"
    elif quick:
        skipped[PARALLEL] = "starting processes takes long"
    else:
        found[PARALLEL] = partial(make_skorch, work, 2)
    found[PLAIN] = partial(make_imbmargin, work, GridSearchCV)
    try:
        from imbmargin.search import BatchedGridSearchCV
    except ImportError as error:
        skipped[BATCHED] = f"there is none ({error})"
    else:
        found[BATCHED] = partial(make_imbmargin, work, BatchedGridSearchCV)
    return found, skipped


def run(
    rounds: int | None = None, quick: bool = False, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Run the case, and yield the result of each comparison."""
    work = replace(QUICK if quick else FULL, device=device)
    X, y = work.make_data()
    searches, skipped = make_searches(work, quick)
    kept: dict[str, Any] = {}
    contenders = {
        name: (lambda name=name, make=make: time_search(make(), X, y, kept, name))
        for name, make in searches.items()
    }
    candidates = len(work.delta_neg) * len(work.beta)
    comparison = Comparison(
        title=f"search: {work.rows:,} x 20, {candidates} candidates, {work.folds} folds, "
        f"{work.epochs} epochs",
        unit="seconds",
        contenders=contenders,
        references={name: list(searches) for name in (SKORCH, PLAIN)},
        note=NOTE,
        skipped=skipped,
    )
    yield run_rounds(comparison, rounds or 1, warm_up=False)
