"""What the benchmark compares: the methods, and what users would otherwise pick."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from imblearn.ensemble import (
    BalancedBaggingClassifier,
    BalancedRandomForestClassifier,
    EasyEnsembleClassifier,
    RUSBoostClassifier,
)
from imblearn.over_sampling import SMOTE, BorderlineSMOTE, RandomOverSampler
from imblearn.pipeline import make_pipeline
from imblearn.under_sampling import RandomUnderSampler
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from imbmargin.estimator import MaxMarginClassifier
from imbmargin.losses import LOSSES
from imbmargin.methods import AFTER, CLASSES, METHODS, make_classifier
from imbmargin.parts import check_arguments, resolve_loss
from imbmargin.posthoc import LogitAdjustment

__all__ = [
    "BASELINES",
    "CONTENDERS",
    "DEFAULT_METHODS",
    "NETWORKS",
    "check_baselines",
    "check_losses",
    "make_contender",
    "training_settings",
]

Make = Callable[[NDArray[Any], int, int], Any]
"""From class counts, epochs and seed to a classifier."""

# Below these, the papers' protocol leaves a network too few steps, or too few pixels.
_SMALL_SET = 5000
_SMALL_IMAGE = 16
# Batches of a table: a sixteenth of its rows, between these, in powers of two.
_TABLE_BATCHES = (32, 256)


def training_settings(
    n_train: int, image_shape: tuple[int, ...] | None, method: str | None = None
) -> dict[str, Any]:
    """Return the arguments of `MaxMarginClassifier` that small data need.

    Its defaults are the papers' protocol for sets like CIFAR: batches of 128 and, for images, a
    ResNet-32 and a rate that falls a hundredfold after 80 % of the epochs. A few hundred images
    then have too few steps left. Tables get batches of a sixteenth of their rows, and the network
    that was best on the tuning half of the tables.

    Parameters
    ----------
    n_train : int
        Training rows.
    image_shape : tuple of int, or None
        (channels, height, width) of images.
    method : str, default=None
        Name of the method. Some look into the network, which then cannot be an ensemble.

    Returns
    -------
    settings : dict
        Empty from 5,000 images on.

    Examples
    --------
    >>> from imbmargin.benchmark.contenders import training_settings
    >>> training_settings(400, (1, 8, 8))
    {'batch_size': 32, 'lr_schedule': 'cosine', 'module': 'resnet20'}
    >>> training_settings(12406, (3, 32, 32))
    {}
    >>> training_settings(2000, None)
    {'batch_size': 128, 'module': 'tabm'}
    >>> training_settings(2000, None, "cRT")
    {'batch_size': 128, 'module': 'mlp'}
    """
    if image_shape is None:
        size = 2 ** round(np.log2(n_train / 16))
        module = "mlp" if method in METHODS and _needs_one_head(method) else "tabm"
        return {"batch_size": int(np.clip(size, *_TABLE_BATCHES)), "module": module}
    if n_train >= _SMALL_SET:
        return {}
    settings: dict[str, Any] = {"batch_size": 32, "lr_schedule": "cosine"}
    if min(image_shape[1:]) < _SMALL_IMAGE:
        settings["module"] = "resnet20"
    return settings


def _needs_one_head(name: str) -> bool:
    """Tell whether a method looks into the network."""
    looks = bool(LOSSES[METHODS[name]["loss"]].needs) or name in CLASSES
    return looks or AFTER.get(name, LogitAdjustment) is not LogitAdjustment


def _mlp(counts: NDArray[Any], max_epochs: int, random_state: int) -> MaxMarginClassifier:
    # The network and the training of ERM on tables, so that the sampler makes the difference.
    settings = training_settings(counts.sum(), None)
    settings |= {"max_epochs": max_epochs, "random_state": random_state}
    return MaxMarginClassifier(loss="cross_entropy", **settings)


def _seeded(kind: Callable[..., Any], **arguments: Any) -> Make:
    """Return the function that makes a classifier with these arguments, and else its defaults."""

    def make(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
        return kind(random_state=random_state, **arguments)

    return make


def _sampled(sampler: type[Any], model: Make, takes_neighbors: bool = False) -> Make:
    """Return the function that makes a model behind a sampler."""

    def make(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
        arguments = {"random_state": random_state}
        if takes_neighbors:
            # More rows are needed in every class than neighbours are taken.
            arguments["k_neighbors"] = max(1, min(5, int(counts.min()) - 1))
        classifier = model(counts, max_epochs, random_state)
        return make_pipeline(StandardScaler(), sampler(**arguments), classifier)

    return make


def _logistic_regression(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    return make_pipeline(StandardScaler(), model)


def _lightgbm(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
    try:
        from lightgbm import LGBMClassifier
    except ImportError as error:
        raise ImportError("LightGBM needs lightgbm: pip install imbmargin[bench]") from error
    return LGBMClassifier(class_weight="balanced", n_jobs=1, verbose=-1, random_state=random_state)


_boosting = _seeded(HistGradientBoostingClassifier)

BASELINES: dict[str, Make] = {
    "RandomOverSampler+MLP": _sampled(RandomOverSampler, _mlp),
    "SMOTE+MLP": _sampled(SMOTE, _mlp, takes_neighbors=True),
    "BorderlineSMOTE+MLP": _sampled(BorderlineSMOTE, _mlp, takes_neighbors=True),
    "RandomUnderSampler+MLP": _sampled(RandomUnderSampler, _mlp),
    "SMOTE+HGB": _sampled(SMOTE, _boosting, takes_neighbors=True),
    "BorderlineSMOTE+HGB": _sampled(BorderlineSMOTE, _boosting, takes_neighbors=True),
    "RandomUnderSampler+HGB": _sampled(RandomUnderSampler, _boosting),
    "LogisticRegression": _logistic_regression,
    "RandomForest": _seeded(RandomForestClassifier, class_weight="balanced"),
    "HistGradientBoosting": _seeded(HistGradientBoostingClassifier, class_weight="balanced"),
    "LightGBM": _lightgbm,
    "BalancedRandomForest": _seeded(
        BalancedRandomForestClassifier, sampling_strategy="all", replacement=True, bootstrap=False
    ),
    "BalancedBagging": _seeded(BalancedBaggingClassifier),
    "EasyEnsemble": _seeded(EasyEnsembleClassifier),
    "RUSBoost": _seeded(RUSBoostClassifier),
}
"""Name -> function of the class counts, the epochs and the seed.

LogisticRegression, the forest and the boosting without a sampler weight the classes; the ensembles
of imbalanced-learn sample for each member. HGB is scikit-learn's histogram gradient boosting.
"""

CONTENDERS = (*METHODS, *BASELINES)
"""What ``imbmargin benchmark --methods`` accepts."""

NETWORKS = ("ERM", "LDAM-DRW", "MM-DRW", "MM-LDAM-DRW")
"""The networks with which both lists of defaults begin."""

DEFAULT_METHODS = (
    *NETWORKS,
    "LA-post-hoc",
    "RandomOverSampler+MLP",
    "SMOTE+MLP",
    "BalancedRandomForest",
    "EasyEnsemble",
)
"""The methods that are compared unless others are asked for."""


def check_baselines(methods: Iterable[str]) -> None:
    """Raise ImportError if one of the methods needs a package that is not installed.

    Examples
    --------
    >>> from imbmargin.benchmark.contenders import check_baselines
    >>> check_baselines(["ERM", "EasyEnsemble"])
    """
    for name in methods:
        if name in BASELINES:
            BASELINES[name](np.array([2, 2]), 1, 0)


def check_losses(methods: Iterable[str], arguments: Mapping[str, Any]) -> None:
    """Raise an error if the loss of a method does not take an argument that is given for it.

    Parameters
    ----------
    methods : iterable of str
        Those of `METHODS` are looked at.
    arguments : mapping of str to value
        Of `MaxMarginClassifier`, before those of the methods; ``loss`` may be among them.

    Raises
    ------
    ValueError
        If an argument ``criterion__...`` is foreign to a loss, or the loss is unknown.

    Examples
    --------
    >>> from imbmargin.benchmark.contenders import check_losses
    >>> check_losses(["LDAM-DRW", "EasyEnsemble"], {"criterion__scale": 10})
    """
    foreign: dict[str, list[str]] = {}
    for method in (name for name in methods if name in METHODS):
        merged = {**METHODS[method], **arguments}
        loss = resolve_loss(merged["loss"])
        for name in (name for name in merged if name.startswith("criterion__")):
            try:
                check_arguments("criterion", loss, [name.removeprefix("criterion__")])
            except TypeError:
                foreign.setdefault(f"{name}={merged[name]!r}", []).append(method)
    if foreign:
        found = "; ".join(f"{text} with {', '.join(names)}" for text, names in foreign.items())
        raise ValueError(
            f"losses do not take what is given for them: {found}; take it away, or leave these "
            "methods out"
        )


def make_contender(
    name: str,
    *,
    image_shape: tuple[int, ...] | None,
    class_counts: NDArray[Any],
    max_epochs: int,
    random_state: int,
    **training: Any,
) -> Any:
    """Make a classifier for rows of a table, or for images flattened to rows.

    Parameters
    ----------
    name : str
        One of `CONTENDERS`.
    image_shape : tuple of int, or None
        (channels, height, width) of images. The methods then train a ResNet; the baselines see the
        rows.
    class_counts : ndarray of int, shape (K,)
        Training rows of each class.
    max_epochs, random_state : int
        Epochs of the networks, and seed.
    **training
        Further arguments of `MaxMarginClassifier`, for the methods.

    Returns
    -------
    classifier : estimator
        Not fitted.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.benchmark.contenders import make_contender
    >>> counts, training = np.array([90, 10]), {"max_epochs": 60, "random_state": 0}
    >>> make_contender("MM-DRW", image_shape=None, class_counts=counts, **training).loss
    'mm'
    """
    if name in BASELINES:
        return BASELINES[name](class_counts, max_epochs, random_state)
    if name not in METHODS:
        raise ValueError(f"methods must be among {list(CONTENDERS)}, got {name!r}")
    settings = training_settings(class_counts.sum(), image_shape, name)
    # Where a method has a setting of its own, that holds; and before all, what is given.
    settings = {key: value for key, value in settings.items() if key not in METHODS[name]}
    return make_classifier(
        name,
        image_shape=image_shape,
        max_epochs=max_epochs,
        random_state=random_state,
        **{**settings, **training},
    )
