"""Pre-training without labels, whose backbone a classifier then starts from."""

from __future__ import annotations

import inspect
from copy import copy
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch.utils import is_dataset
from torch import Tensor
from torch.utils.data import Dataset, Subset

from imbmargin.data.batches import ArrayDataset, as_arrays, is_array_dataset
from imbmargin.data.transfer import send
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.modules import CosineLinear
from imbmargin.modules.heads import Linear
from imbmargin.parts import find_backbone
from imbmargin.randomness import isolated_random_state

__all__ = ["RotationPretrainer"]

_ROTATIONS = 4
# What speaks of labels, or of the run that the settings were taken from.
_REPLACED: dict[str, Any] = {
    "loss": "cross_entropy",
    "loss_epoch": None,
    "mixing": None,
    "class_weight": None,
    "drw_epoch": None,
    "resample": None,
    "drs_epoch": None,
    "train_split": None,
    "warm_start": False,
    "classes": list(range(_ROTATIONS)),
    "init_backbone": None,
}


class _RotationNet(MaxMarginClassifier):
    """A network that tells by which quarter turn an image was rotated."""

    def initialize_module(self) -> _RotationNet:
        super().initialize_module()
        head = getattr(self.module_, "head", None)
        if isinstance(head, CosineLinear):
            # Its cosines are for the losses that scale them.
            with isolated_random_state(self.seed_, 5, device=self.device):
                self.module_.head = Linear(head.in_features, _ROTATIONS)
            self._begin_average()
        return self

    def _augmented(self, batch: Any) -> Any:
        x = self._to_module(batch[0])
        if x.ndim != 4 or x.shape[2] != x.shape[3]:
            raise ValueError(
                f"rotation needs square images, got samples of shape {tuple(x.shape[1:])}; cut "
                "them, or pass image_shape=(channels, height, width) for flattened ones"
            )
        return rotate(self._varied(x))


def rotate(images: Tensor) -> tuple[Tensor, Tensor]:
    """Turn each image by one of four quarter turns, all four as often as each other.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, H)
        A batch.

    Returns
    -------
    rotated : Tensor of shape (n, C, H, H)
        The images, in their order.
    turns : Tensor of int64, shape (n,)
        Quarter turns of each, 0 to 3.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.pretraining import rotate
    >>> _, turns = rotate(torch.zeros(8, 3, 4, 4))
    >>> turns.bincount()
    tensor([2, 2, 2, 2])
    """
    order = send(torch.randperm(len(images)), images.device)
    rotated = torch.empty_like(images)
    turns = torch.empty(len(images), dtype=torch.int64, device=images.device)
    for turn in range(_ROTATIONS):
        rows = order[turn::_ROTATIONS]
        rotated[rows] = images[rows].rot90(turn, (2, 3))
        turns[rows] = turn
    return rotated, turns


class RotationPretrainer(BaseEstimator):
    """Self-supervised pre-training (SSP): learn to tell by how much an image was rotated.

    Handed to a classifier as ``init_backbone``, it is fitted on the classifier's training part
    and gives it its backbone to start from.

    Parameters
    ----------
    estimator : MaxMarginClassifier, default=None
        Its network and training settings are used: module, augmentation, optimizer, schedule,
        epochs, precision, seed. None: those of the classifier that it is handed to, or the
        defaults.
    callbacks : list, default=None
        skorch callbacks of the pre-training.

    Attributes
    ----------
    backbone_ : Module
        The trained backbone, with the statistics of its normalisation layers.
    net_ : MaxMarginClassifier
        The fitted rotation network.
    history_ : skorch History
        A row for each epoch.
    n_features_in_ : int
        As in `MaxMarginClassifier`.

    Raises
    ------
    ValueError
        In fit, if the images are not square or fewer than four.

    Notes
    -----
    Each image of a batch is turned by one of four quarter turns after its augmentation, each turn
    as often as the others. Labels are not looked at.

    References
    ----------
    .. [1] Yang, Xu, "Rethinking the Value of Labels for Improving Class-Imbalanced Learning",
       NeurIPS 2020.
    .. [2] Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image
       Rotations", ICLR 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from imbmargin import MaxMarginClassifier
    >>> from imbmargin.pretraining import RotationPretrainer
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> clf = MaxMarginClassifier(
    ...     module="resnet20", image_shape=(1, 8, 8), max_epochs=1, random_state=0,
    ...     init_backbone=RotationPretrainer())
    >>> clf = clf.fit(X, y)
    >>> pretrainer = RotationPretrainer(clf).fit(X)
    >>> len(pretrainer.history_)
    1
    """

    def __init__(self, estimator: Any = None, *, callbacks: Any = None) -> None:
        self.estimator = estimator
        self.callbacks = callbacks

    def fit(self, X: Any, y: Any = None) -> RotationPretrainer:
        """Train the network to tell the rotations of images.

        Parameters
        ----------
        X : array-like of shape (n, C, H, H), (n, H, H, C) or (n, features), or torch Dataset
            The images.
        y : object, default=None
            Not looked at.

        Returns
        -------
        self : RotationPretrainer
        """
        template = MaxMarginClassifier() if self.estimator is None else self.estimator
        return self._fit(X, template, {})

    def pretrain_for(self, net: MaxMarginClassifier, train: Dataset) -> RotationPretrainer:
        """Return a fitted pre-trainer for a classifier: this one, or else a copy that is fitted.

        Parameters
        ----------
        net : MaxMarginClassifier
            Gives its settings if there is no ``estimator``, its seed, and the folder in which its
            checkpoints are.
        train : Dataset
            Its training part.

        Returns
        -------
        fitted : RotationPretrainer

        Raises
        ------
        ValueError
            If the network has no backbone that could take the weights.
        """
        if hasattr(self, "net_"):
            return self
        # Before the work, not after it.
        find_backbone(net.module_)
        template = net if self.estimator is None else self.estimator
        settings: dict[str, Any] = {"image_shape": net.image_shape}
        if template is net or template.random_state is None:
            settings["random_state"] = net.seed_
        if net._folder is not None:
            settings["checkpoint_dir"] = net._folder.folder / "pretraining"
        return copy(self)._fit(train, template, settings)

    def _fit(self, X: Any, template: Any, settings: dict[str, Any]) -> RotationPretrainer:
        # Those of a subclass are about its own kind of step.
        known = inspect.signature(MaxMarginClassifier).parameters
        given = {
            name: value
            for name, value in template.get_params(deep=False).items()
            if (name in known or "__" in name)
            and not name.startswith(("criterion__", "callbacks__"))
        }
        net = _RotationNet(**{**given, **_REPLACED, "callbacks": self.callbacks, **settings})
        images, turns = _without_labels(X)
        self.net_ = net.fit(images, turns)
        self.history_ = net.history_
        if hasattr(net, "n_features_in_"):
            self.n_features_in_ = net.n_features_in_
        return self

    @property
    def backbone_(self) -> torch.nn.Module:
        """The trained backbone."""
        return self.net_.module_.backbone


def _without_labels(X: Any) -> tuple[Any, Any]:
    """Put placeholders in the place of labels: the turns are drawn for every batch."""
    n = len(X) if is_dataset(X) or not hasattr(X, "shape") else X.shape[0]
    if n < _ROTATIONS:
        raise ValueError(f"X must have at least {_ROTATIONS} images, got {n}")
    if not is_dataset(X):
        return X, _placeholders(n)
    if not is_array_dataset(X):
        return _Unlabelled(X), None
    arrays, rows = as_arrays(X)
    unlabelled = ArrayDataset(arrays.X, _placeholders(len(arrays)))
    return (unlabelled if rows is None else Subset(unlabelled, rows.tolist())), None


def _placeholders(n: int) -> np.ndarray:
    return np.arange(n) % _ROTATIONS


class _Unlabelled(Dataset):
    """A Dataset with placeholders for labels."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.targets = _placeholders(len(dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index][0], int(self.targets[index])
