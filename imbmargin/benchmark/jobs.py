"""A job of the benchmark: one method on one data set with one seed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
import traceback
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from scipy.special import expit, softmax
from sklearn.metrics import confusion_matrix

from imbmargin._hardware import cpu_name, gpu_name
from imbmargin.benchmark.contenders import make_contender, training_settings
from imbmargin.benchmark.epochs import TestErrors, watch
from imbmargin.benchmark.scores import finite, scores
from imbmargin.callbacks import resolve_epoch
from imbmargin.data.cifar import is_batches
from imbmargin.data.images import digest_of, find_test_folder, list_images
from imbmargin.data.imbalance import long_tailed_indices, step_indices
from imbmargin.datasets import (
    EMBEDDED,
    TrainTest,
    load_cifar,
    load_embedded,
    load_image_folder,
    load_keel,
    load_table_file,
)
from imbmargin.methods import AFTER, METHODS, trained_as
from imbmargin.metrics import per_class_error, sample_margins

__all__ = ["FOLDS", "KEEL", "DataSpec", "Job", "environment", "load_data", "run_job"]

KEEL = "keel:"
"""Before the name of a table of the KEEL repository, as a source."""

FOLDS = 5
"""Folds of such a table: seeds 0 to 4 are those of one split, 5 to 9 those of the next."""

# The test part is looked at from the epoch on at which the methods of the papers defer.
_DEFERRED = 0.8
MARGIN_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
IMBALANCES = ("long_tailed", "step", "none")
_INDICES = {"long_tailed": long_tailed_indices, "step": step_indices}


@dataclass(frozen=True)
class DataSpec:
    """What is loaded, and how it is made imbalanced.

    Parameters
    ----------
    source : str
        A name of `imbmargin.datasets.EMBEDDED`, a table of `imbmargin.datasets.load_keel` with
        "keel:" before its name, a CSV or Parquet file, or a folder of images.
    target : str, default=None
        Column of the labels, of a file.
    imbalance : {"long_tailed", "step", "none"}, default="none"
        Subset of the training part.
    ratio : float, default=20
        Imbalance ratio of the subset.
    n_max : int, default=None
        Rows of the most frequent class of the subset; by default all that it has.
    image_size : int, default=None
        Pixels to which images of a folder are brought.
    dataset : {"cifar10", "cifar100"}, default=None
        What the folder must hold, completely.
    cache : str, default=None
        Folder in which the decoded images of a folder are kept; it changes no result.
    state : str, default=None
        Tells a file or a folder from what it was before it changed: a digest of the paths, sizes
        and times of what is read. By default as it is now.

    Raises
    ------
    ValueError, OSError
        If a folder is no folder of images, or cannot be read.
    """

    source: str
    target: str | None = None
    imbalance: str = "none"
    ratio: float = 20.0
    n_max: int | None = None
    image_size: int | None = None
    dataset: str | None = None
    cache: str | None = None
    state: str | None = None

    def __post_init__(self) -> None:
        # Once, when a run begins: what changes meanwhile must not change the names of its files.
        if self.state is None and self.dataset is None and self.source not in EMBEDDED:
            object.__setattr__(self, "state", _state_of(Path(self.source)))

    @property
    def name(self) -> str:
        """Short name, for titles and files."""
        if self.dataset is not None:
            return self.dataset
        if self.source.startswith(KEEL):
            return self.source.removeprefix(KEEL)
        return self.source if self.source in EMBEDDED else Path(self.source).resolve().stem

    @property
    def is_folder(self) -> bool:
        """Whether these are images in a folder."""
        return self.source not in EMBEDDED and Path(self.source).is_dir()

    def choose(self, seed: int) -> Any:
        """Return the function from training labels to the rows kept, or None for all."""
        if self.imbalance == "none":
            return None

        def indices(y: np.ndarray) -> np.ndarray:
            classes, counts = np.unique(y, return_counts=True)
            # In a user's table the frequent class stays frequent; else the order that papers have.
            own_table = self.source not in EMBEDDED and not self.is_folder
            order = classes[np.argsort(-counts, kind="stable")] if own_table else classes
            return _INDICES[self.imbalance](
                y,
                imbalance_ratio=self.ratio,
                n_max=self.n_max,
                class_order=order.tolist(),
                protocol="ldam" if self.is_folder else "random",
                random_state=0 if self.is_folder else seed,
            )

        return indices


def _state_of(source: Path) -> str | None:
    """Return the digest of a file or of the images of a folder; None if there is neither."""
    if source.is_dir():
        train, test = list_images(source)
        return digest_of(np.concatenate([part[0] for part in (train, test) if part is not None]))
    return digest_of(np.array([str(source)])) if source.is_file() else None


@dataclass(frozen=True)
class Job:
    """One method on one data set with one seed.

    Parameters
    ----------
    data : DataSpec
        The data.
    method : str
        One of `imbmargin.benchmark.contenders.CONTENDERS`.
    seed : int
        Of the split, the subset and the training.
    epochs : int
        Epochs of the networks.
    precision : str, default="float32"
        As in `MaxMarginClassifier`.
    arguments : tuple of (str, value), default=()
        Further arguments of `MaxMarginClassifier`, before those of the method.
    """

    data: DataSpec
    method: str
    seed: int
    epochs: int
    precision: str = "float32"
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """The method and its further arguments, in words."""
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.arguments)])

    @property
    def title(self) -> str:
        """Data set, method and seed, in words."""
        return f"{self.data.name} {self.label} seed {self.seed}"

    @property
    def training(self) -> Job:
        """The job with whose training this one begins: itself, unless something comes after it."""
        if self.method not in METHODS:
            return self
        return replace(self, method=trained_as(self.method))

    @property
    def file_name(self) -> str:
        """Name of the JSON file: readable, and different for different settings or data."""
        settings = asdict(self)
        del settings["data"]["cache"]
        # What has no state has the name that it had before there were any.
        state = settings["data"].pop("state")
        if self.data.dataset is not None:
            # Wherever it lies, it is the same, but for the order of its images.
            del settings["data"]["source"]
            batches = is_batches(Path(self.data.source), self.data.dataset)
            settings["state"] = "batches" if batches else "folders"
        elif state is not None:
            settings["state"] = state
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.data.name}--{self.method}--seed{self.seed}--{digest}.json"


def load_data(data: DataSpec, seed: int) -> TrainTest:
    """Load the data of a job; jobs that follow one another share it.

    Raises
    ------
    ValueError, OSError, ImportError
        If they cannot be loaded, or the subset is not possible.
    """
    # A folder with a test part, and the protocol's own choice of rows, are the same for all seeds.
    fixed = data.is_folder and (data.dataset or find_test_folder(Path(data.source)) is not None)
    return _load(data, 0 if fixed else seed)


@lru_cache(maxsize=1)
def _load(data: DataSpec, seed: int) -> TrainTest:
    options: dict[str, Any] = {"choose": data.choose(seed), "random_state": seed}
    if data.source in EMBEDDED:
        return load_embedded(data.source, **options)
    if data.source.startswith(KEEL):
        options["random_state"], fold = divmod(seed, FOLDS)
        return load_keel(data.name, fold=fold, **options)
    if data.dataset is not None:
        return load_cifar(data.source, data.dataset, choose=options["choose"], cache_dir=data.cache)
    if data.is_folder:
        return load_image_folder(
            data.source, image_size=data.image_size, cache_dir=data.cache, **options
        )
    if not Path(data.source).exists():
        raise FileNotFoundError(
            f"there is no file or folder {data.source}; pass one, or one of {list(EMBEDDED)}"
        )
    return load_table_file(data.source, data.target, **options)


def run_job(
    job: Job, shows_epochs: bool = False, checkpoint_dir: Path | None = None
) -> dict[str, Any]:
    """Train and test; return a record that JSON can hold. An error becomes part of it.

    Parameters
    ----------
    job : Job
        What to do.
    shows_epochs : bool, default=False
        Whether a bar shows the epochs of a network.
    checkpoint_dir : Path, default=None
        Where methods keep the state of their training after every epoch, and go on from. Jobs
        with the same `Job.training` may have the same folder.

    Returns
    -------
    record : dict
        ``status`` is "done" or "failed". Scores are those after the last epoch.

    Examples
    --------
    >>> from imbmargin.benchmark.jobs import DataSpec, Job, run_job
    >>> record = run_job(Job(DataSpec("iris"), "ERM", seed=0, epochs=20))
    >>> record["status"], record["scores"]["accuracy"] > 0.8
    ('done', True)
    """
    # In the form in which it comes back from a file: with lists for tuples.
    described = json.loads(json.dumps(asdict(job)))
    record: dict[str, Any] = {
        "format": 1,
        "name": job.data.name,
        "job": described,
        "environment": environment(),
    }
    try:
        return {**record, "status": "done", **_measure(job, shows_epochs, checkpoint_dir)}
    except Exception as error:
        return {
            **record,
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "traceback": _without_folders(traceback.format_exc()),
        }


def _measure(job: Job, shows_epochs: bool, checkpoint_dir: Path | None) -> dict[str, Any]:
    data = load_data(job.data, job.seed)
    X_train, X_test = (X.reshape(len(X), -1) for X in (data.X_train, data.X_test))
    classes, counts = np.unique(data.y_train, return_counts=True)
    model = make_contender(
        job.method,
        image_shape=data.image_shape,
        class_counts=counts,
        max_epochs=job.epochs,
        random_state=job.seed,
        precision=job.precision,
        # On tables the network differs between methods that look into it and others.
        checkpoint_dir=None if checkpoint_dir is None else checkpoint_dir / "{run}",
        **dict(job.arguments),
    )
    _watch(model, job, data, job.title if shows_epochs else None)
    start = time.perf_counter()
    model.fit(X_train, data.y_train)
    fitted = time.perf_counter()
    logits = model.decision_function(X_test) if _has_epochs(model) else None
    predicted = model.predict(X_test) if logits is None else classes[_largest(logits)]
    seconds = {"fit": fitted - start, "predict": time.perf_counter() - fitted}
    if job.method in METHODS:
        seconds["fit"] = _training_seconds(model, seconds["fit"])
    proba = model.predict_proba(X_test) if logits is None else _probability(model, logits)
    record = {
        "images": data.image_shape is not None,
        "settings": training_settings(len(data.y_train), data.image_shape, job.method),
        "sample_shape": list(data.X_train.shape[1:]),
        "n_train": len(data.y_train),
        "n_test": len(data.y_test),
        "classes": classes.tolist(),
        "class_counts": counts.tolist(),
        "test_counts": [int((data.y_test == label).sum()) for label in classes],
        "scores": scores(data.y_test, predicted, proba, counts, classes),
        "per_class_error": finite(per_class_error(data.y_test, predicted, labels=classes)),
        "confusion": confusion_matrix(data.y_test, predicted, labels=classes).tolist(),
        "seconds": seconds,
    }
    if logits is None:
        return record
    margins = sample_margins(logits, np.searchsorted(classes, data.y_test))
    record["margins"] = [_quantiles(margins[data.y_test == label]) for label in classes]
    return {**record, **_training(model, job, len(data.y_train))}


def _watch(model: Any, job: Job, data: TrainTest, title: str | None) -> None:
    if job.method in METHODS:
        first = resolve_epoch(_DEFERRED, job.epochs, "start")
        X_test = data.X_test.reshape(len(data.X_test), -1)
        # The errors of a network to which something is done later serve the jobs that share it.
        network = model.estimator if job.method in AFTER else model
        watch(network, title, TestErrors(X_test, data.y_test, first))


def _training_seconds(model: Any, passed: float) -> float:
    """Return the seconds of all epochs, wherever they were run, and of what came after them.

    Of a job that went on, or found its training done, the epochs before count too; the
    predictions of the test part do not.
    """
    network = getattr(model, "estimator_", model)
    epochs = sum(row["dur"] for row in network.history_)
    if network is model:
        return float(epochs)
    (errors,) = (cb for _, cb in network.callbacks_ if isinstance(cb, TestErrors))
    return float(epochs + passed - errors.spent_)


def _has_epochs(model: Any) -> bool:
    return getattr(model, "history_", None) is not None


def _largest(logits: np.ndarray) -> np.ndarray:
    """Return the class with the largest logit, as the classifier itself predicts it."""
    return logits.argmax(axis=1) if logits.ndim == 2 else (logits > 0).astype(np.int64)


def _probability(model: Any, logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of the classifier without a second pass through the network."""
    scaled = model.logit_scale_ * logits.astype(np.float64)
    if logits.ndim == 2:
        return np.asarray(softmax(scaled, axis=1))
    return np.column_stack([expit(-scaled), expit(scaled)])


def _quantiles(margins: np.ndarray) -> list[float] | None:
    return np.quantile(margins, MARGIN_QUANTILES).tolist() if len(margins) else None


def _training(model: Any, job: Job, n_train: int) -> dict[str, Any]:
    starts = [
        resolve_epoch(getattr(model, name), job.epochs, name) for name in ("drw_epoch", "drs_epoch")
    ]
    tested = [row for row in model.history_ if "test_error" in row]
    best = min(tested, key=lambda row: float(row["test_error"]))
    kept = ("epoch", "train_loss", "test_error")
    before = getattr(model, "pretraining_history_", None)
    return {
        "pretraining": before
        and {"epochs": len(before), "seconds": sum(row["dur"] for row in before)},
        "history": [{key: row[key] for key in kept if key in row} for row in model.history_],
        "best_epoch": {"epoch": best["epoch"], "error": best["test_error"]},
        "deferred_epoch": max((s for s in starts if s), default=None),
        "rows_per_second": n_train * job.epochs / sum(row["dur"] for row in model.history_),
    }


def _without_folders(text: str) -> str:
    """Take the folders from which Python imports out of a traceback; a result has no machine."""
    folders = {str(Path(__file__).parents[2]), *filter(None, sys.path)}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(f'File "{folder}{os.sep}', 'File "')
    return text


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Return versions and hardware, as they are printed with results."""
    packages = ("imbmargin", "torch", "scikit-learn", "skorch", "imbalanced-learn", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "gpu": gpu_name(),
    }
