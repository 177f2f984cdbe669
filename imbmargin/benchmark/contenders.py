"""What the benchmark compares: the methods, and what users would otherwise pick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imblearn.ensemble import BalancedRandomForestClassifier, EasyEnsembleClassifier
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from imbmargin.estimator import MaxMarginClassifier
from imbmargin.methods import METHODS, make_classifier

__all__ = ["BASELINES", "CONTENDERS", "DEFAULT_METHODS", "make_contender"]


def _oversampled_mlp(rarest: int, max_epochs: int, random_state: int) -> Any:
    sampler = RandomOverSampler(random_state=random_state)
    return make_pipeline(StandardScaler(), sampler, _mlp(max_epochs, random_state))


def _smote_mlp(rarest: int, max_epochs: int, random_state: int) -> Any:
    # SMOTE needs more rows in every class than it takes neighbours.
    sampler = SMOTE(k_neighbors=max(1, min(5, rarest - 1)), random_state=random_state)
    return make_pipeline(StandardScaler(), sampler, _mlp(max_epochs, random_state))


def _mlp(max_epochs: int, random_state: int) -> MaxMarginClassifier:
    # The network and the training of ERM on tables, so that the sampler makes the difference.
    return MaxMarginClassifier(
        module="mlp", loss="cross_entropy", max_epochs=max_epochs, random_state=random_state
    )


def _balanced_forest(rarest: int, max_epochs: int, random_state: int) -> Any:
    return BalancedRandomForestClassifier(
        sampling_strategy="all", replacement=True, bootstrap=False, random_state=random_state
    )


def _easy_ensemble(rarest: int, max_epochs: int, random_state: int) -> Any:
    return EasyEnsembleClassifier(random_state=random_state)


BASELINES: dict[str, Callable[[int, int, int], Any]] = {
    "RandomOverSampler+MLP": _oversampled_mlp,
    "SMOTE+MLP": _smote_mlp,
    "BalancedRandomForest": _balanced_forest,
    "EasyEnsemble": _easy_ensemble,
}
"""Name -> function of the rows of the rarest class, the epochs and the seed."""

CONTENDERS = (*METHODS, *BASELINES)
"""What ``imbmargin benchmark --methods`` accepts."""

DEFAULT_METHODS = ("ERM", "LDAM-DRW", "MM-DRW", "MM-LDAM-DRW", *BASELINES)


def make_contender(
    name: str,
    *,
    image_shape: tuple[int, ...] | None,
    rarest: int,
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
        (channels, height, width) of images. The methods then train a ResNet-32; the baselines see
        the rows.
    rarest : int
        Training rows of the rarest class.
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
    >>> from imbmargin.benchmark.contenders import make_contender
    >>> make_contender("MM-DRW", image_shape=None, rarest=5, max_epochs=60, random_state=0).loss
    'mm'
    """
    if name in BASELINES:
        return BASELINES[name](rarest, max_epochs, random_state)
    if name not in METHODS:
        raise ValueError(f"methods must be among {list(CONTENDERS)}, got {name!r}")
    return make_classifier(
        name,
        image_shape=image_shape,
        max_epochs=max_epochs,
        random_state=random_state,
        **training,
    )
