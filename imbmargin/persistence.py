"""Fitted models in files that run nothing when they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from imbmargin import pretraining, two_stage
from imbmargin.bbn import BBNClassifier, BilateralNetwork
from imbmargin.checkpoint import write_file
from imbmargin.distributed import DistributedClassifier
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.meta_sampler import ClassRates, MetaSamplerClassifier
from imbmargin.portable import Describer, know, name_of
from imbmargin.posthoc import LogitAdjustment, NearestClassMean, TauNormalization
from imbmargin.prior import PriorCorrection
from imbmargin.stored import WITH_SKOPS, from_bytes, to_bytes

__all__ = ["TRUSTED_TYPES", "load_model", "save_model"]

_ESTIMATORS: tuple[type, ...] = (
    MaxMarginClassifier,
    DistributedClassifier,
    BBNClassifier,
    MetaWeightNetClassifier,
    MetaSamplerClassifier,
    LogitAdjustment,
    PriorCorrection,
    TauNormalization,
    NearestClassMean,
    two_stage.ClassifierRetraining,
    two_stage.LearnableWeightScaling,
    two_stage.MetaSampledRetraining,
)

TRUSTED_TYPES: list[str] = [name_of(kind) for kind in _ESTIMATORS]
"""The estimators of this package by name, for ``skops.io.load(file, trusted=TRUSTED_TYPES)``."""

know(*_ESTIMATORS, BilateralNetwork, ClassRates, FrozenEstimator)
know(pretraining.RotationPretrainer, pretraining._RotationNet)
know(two_stage._FrozenFeatures, two_stage._ScaledHead, two_stage._head_schedule)


def save_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Save a fitted classifier in one file: safetensors and JSON, without pickle.

    The file holds parameters, weights, the state of the optimizer and of the callbacks, the history
    and the classes, so that `load_model` gives a classifier that predicts the same and goes on
    training (``partial_fit``, ``warm_start``). It does not hold training data, but for the meta set
    of a `MetaWeightNetClassifier`.

    Parameters
    ----------
    model : MaxMarginClassifier, or a meta-estimator of this package
        A fitted one.
    path : str or Path
        The file. One that is there is replaced when the new one is whole. Any name will do;
        other tools know the format by ``.safetensors``.

    Raises
    ------
    TypeError
        If the model is of another class (for a Pipeline, use skops), or holds what cannot be named
        in a file, such as a lambda.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    OSError
        If the file cannot be written.

    See Also
    --------
    TRUSTED_TYPES : For the same with ``skops.io``, which saves Pipelines too.

    Notes
    -----
    Classes and functions of your own (a network, a loss, a schedule) are in the file by name only:
    their code is not. Whoever loads it passes them to `load_model`.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, load_model, save_model
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = MaxMarginClassifier(max_epochs=5, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "wine.safetensors")
    ...     save_model(clf, path)
    ...     loaded = load_model(path)
    >>> bool((loaded.predict_proba(X) == clf.predict_proba(X)).all())
    True
    """
    if not isinstance(model, _ESTIMATORS):
        raise TypeError(
            f"save_model saves the classifiers of imbmargin, got a {type(model).__name__}; "
            f"{WITH_SKOPS}"
        )
    check_is_fitted(model)
    write_file(Path(path), to_bytes(model, Describer()))


def load_model(path: str | os.PathLike[str], *, trusted: Sequence[Any] = ()) -> Any:
    """Load a classifier that `save_model` saved.

    Nothing in the file is executed, and nothing is imported because it says so. It names classes
    and functions; they are looked up among those of this package, ``torch.nn``, ``torch.optim``
    and skorch's callbacks that do no harm, and in ``trusted``. All names are checked first.

    Parameters
    ----------
    path : str or Path
        The file.
    trusted : sequence of classes and functions, default=()
        Further ones that the file may name: yours, themselves and not their names.

    Returns
    -------
    model : estimator
        As it was saved. On the CPU its predictions are the same bit for bit with the same version
        of torch. A device that is not here is replaced by the CPU, with a warning; "auto" means
        the device of this machine.

    Raises
    ------
    ValueError
        If the file is damaged, not one that `save_model` wrote, of an unknown format, or names what
        is neither known nor trusted.
    OSError
        If it is not there, or cannot be read.

    Warns
    -----
    RuntimeWarning
        If it was written with a newer version of imbmargin, torch or scikit-learn.

    Notes
    -----
    Parameters are kept as they were, also ``checkpoint_dir``: training goes on with what the file
    says, so look at ``get_params()`` before you train a model of unknown origin.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_wine
    >>> from torch import nn
    >>> from imbmargin import MaxMarginClassifier, load_model, save_model
    >>> class Net(nn.Linear):
    ...     def __init__(self, in_features, num_classes):
    ...         super().__init__(in_features, num_classes)
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = MaxMarginClassifier(Net, max_epochs=1, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "wine.safetensors")
    ...     save_model(clf, path)
    ...     load_model(path, trusted=[Net]).module_
    Net(in_features=13, out_features=3, bias=True)
    """
    model = from_bytes(Path(path).read_bytes(), trusted, str(path))
    if not isinstance(model, _ESTIMATORS):
        raise ValueError(f"{path} holds a {type(model).__name__}, not a classifier of imbmargin")
    return model
