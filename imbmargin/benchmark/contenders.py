"""What the benchmark compares: the methods, and what users would otherwise pick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imblearn.ensemble import BalancedRandomForestClassifier, EasyEnsembleClassifier
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.pipeline import make_pipeline
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from imbmargin.estimator import MaxMarginClassifier
from imbmargin.methods import METHODS, make_classifier

__all__ = ["BASELINES", "CONTENDERS", "DEFAULT_METHODS", "make_contender", "training_settings"]


# Below these, the papers' protocol leaves a network too few steps, or too few pixels.
_SMALL_SET = 5000
_SMALL_IMAGE = 16


def training_settings(n_train: int, image_shape: tuple[int, ...] | None) -> dict[str, Any]:
    """Return the arguments of `MaxMarginClassifier` that small data need.

    Its defaults are the papers' protocol for sets like CIFAR: batches of 128 and, for images, a
    ResNet-32 and a rate that falls a hundredfold after 80 % of the epochs. A few hundred images
    then have too few steps left.

    Parameters
    ----------
    n_train : int
        Training rows.
    image_shape : tuple of int, or None
        (channels, height, width) of images.

    Returns
    -------
    settings : dict
        Empty from 5,000 rows on.

    Examples
    --------
    >>> from imbmargin.benchmark.contenders import training_settings
    >>> training_settings(400, (1, 8, 8))
    {'batch_size': 32, 'lr_schedule': 'cosine', 'module': 'resnet20'}
    >>> training_settings(12406, (3, 32, 32))
    {}
    """
    if n_train >= _SMALL_SET:
        return {}
    settings: dict[str, Any] = {"batch_size": 32}
    if image_shape is not None:
        settings["lr_schedule"] = "cosine"
        if min(image_shape[1:]) < _SMALL_IMAGE:
            settings["module"] = "resnet20"
    return settings


def _mlp(n_train: int, **training: Any) -> MaxMarginClassifier:
    # The network and the training of ERM on tables, so that the sampler makes the difference.
    settings = training_settings(n_train, None)
    return MaxMarginClassifier(module="mlp", loss="cross_entropy", **settings, **training)


def _oversampled_mlp(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
    sampler = RandomOverSampler(random_state=random_state)
    network = _mlp(counts.sum(), max_epochs=max_epochs, random_state=random_state)
    return make_pipeline(StandardScaler(), sampler, network)


def _smote_mlp(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
    # SMOTE needs more rows in every class than it takes neighbours.
    neighbors = max(1, min(5, int(counts.min()) - 1))
    sampler = SMOTE(k_neighbors=neighbors, random_state=random_state)
    network = _mlp(counts.sum(), max_epochs=max_epochs, random_state=random_state)
    return make_pipeline(StandardScaler(), sampler, network)


def _balanced_forest(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
    return BalancedRandomForestClassifier(
        sampling_strategy="all", replacement=True, bootstrap=False, random_state=random_state
    )


def _easy_ensemble(counts: NDArray[Any], max_epochs: int, random_state: int) -> Any:
    return EasyEnsembleClassifier(random_state=random_state)


BASELINES: dict[str, Callable[[NDArray[Any], int, int], Any]] = {
    "RandomOverSampler+MLP": _oversampled_mlp,
    "SMOTE+MLP": _smote_mlp,
    "BalancedRandomForest": _balanced_forest,
    "EasyEnsemble": _easy_ensemble,
}
"""Name -> function of the class counts, the epochs and the seed."""

CONTENDERS = (*METHODS, *BASELINES)
"""What ``imbmargin benchmark --methods`` accepts."""

DEFAULT_METHODS = ("ERM", "LDAM-DRW", "MM-DRW", "MM-LDAM-DRW", *BASELINES)


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
    settings = training_settings(class_counts.sum(), image_shape)
    # Where a method has a setting of its own, that holds; and before all, what is given.
    settings = {key: value for key, value in settings.items() if key not in METHODS[name]}
    return make_classifier(
        name,
        image_shape=image_shape,
        max_epochs=max_epochs,
        random_state=random_state,
        **{**settings, **training},
    )
