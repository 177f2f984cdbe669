"""Two stages: a classifier is trained, then its head alone, with class-balanced sampling."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.validation import _num_samples, check_is_fitted
from skorch.utils import is_dataset
from torch import Tensor, nn
from torch.utils.data import Subset

from imbmargin._wrapper import Wrapper, find_network, look_into
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.meta_sampler import MetaSamplerClassifier
from imbmargin.modules import find_head
from imbmargin.modules.heads import Linear
from imbmargin.weights import class_rates

__all__ = ["ClassifierRetraining", "LearnableWeightScaling", "MetaSampledRetraining"]

_BATCH_NORM = ("train", "eval")
# What the second stage takes over from the first.
_KEPT = ("batch_size", "device", "image_shape", "augment", "precision", "verbose")


def _head_schedule(epoch: int, max_epochs: int) -> float:
    """Warm up over a sixth of the epochs, and fall tenfold after one third and after two."""
    warm_up = max(1, round(max_epochs / 6))
    if epoch < warm_up:
        return (epoch + 1) / warm_up
    return 0.1 ** sum(epoch >= round(part * max_epochs) for part in (1 / 3, 2 / 3))


class _FrozenFeatures(nn.Module):
    """A trained network up to its last layer, which is frozen, and a new last layer."""

    def __init__(
        self,
        network: nn.Module,
        head_name: str,
        make_head: Callable[[], nn.Module],
        eval_mode: bool,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        parent, _, name = head_name.rpartition(".")
        setattr(self.network.get_submodule(parent), name, nn.Identity())
        self.network.requires_grad_(False)
        self.head = make_head()
        self.eval_mode = eval_mode

    @property
    def input_norm(self) -> nn.Module:
        """The network's own, if it has one: it knows the pixels of the training part."""
        return self.network.get_submodule("input_norm")

    def train(self, mode: bool = True) -> _FrozenFeatures:
        """Set the mode; in "eval" the normalisation layers of the frozen part keep theirs."""
        super().train(mode)
        if self.eval_mode:
            self.network.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n, K)."""
        with torch.no_grad():
            features = self.network(x)
        return self.head(features)


class _ScaledHead(nn.Module):
    """A frozen last layer, and a factor for the logit of each class."""

    def __init__(self, head: nn.Module, num_classes: int, scale: float) -> None:
        super().__init__()
        self.inner = copy.deepcopy(head).requires_grad_(False)
        self.scale = scale
        self.factor = nn.Parameter(torch.ones(num_classes))
        self.out_features = num_classes

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (n, K)."""
        return self.factor * (self.scale * self.inner(features))


class _TwoStage(Wrapper):
    """The second stage, on whatever head a subclass makes."""

    def __init__(
        self,
        estimator: Any,
        *,
        max_epochs: int = 30,
        lr: float = 0.1,
        resample: Any = "class_balanced",
        batch_norm: str = "eval",
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.max_epochs = max_epochs
        self.lr = lr
        self.resample = resample
        self.batch_norm = batch_norm
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> _TwoStage:
        """Fit the classifier, then its new head.

        Parameters
        ----------
        X, y
            Training data, as the classifier takes them.
        **fit_params
            For the classifier's fit; ``sample_weight`` is for that of the head too.

        Returns
        -------
        self : estimator
        """
        if self.batch_norm not in _BATCH_NORM:
            raise ValueError(
                f"batch_norm must be one of {list(_BATCH_NORM)}, got {self.batch_norm!r}"
            )
        settings = {
            "optimizer": torch.optim.SGD,
            "optimizer__momentum": 0.9,
            "optimizer__weight_decay": 5e-4,
            "lr": self.lr,
            "max_epochs": self.max_epochs,
            "random_state": self.random_state,
        }
        # What cannot work is known before the first training.
        second = self._second_stage("auto", **settings)
        second._check_parameters()
        if isinstance(second.resample, str):
            class_rates(np.ones(2), second.resample)
        fit_params = self._fit_estimator(X, y, fit_params)
        first = find_network(self.estimator_)
        name, head = find_head(first.module_)
        inputs = self._transformed(X)
        _check_last(first, head, inputs)
        # Made where the classifier makes its network: from its seed.
        network = partial(
            _FrozenFeatures,
            first.module_,
            name,
            self._head_factory(first, head),
            self.batch_norm == "eval",
        )
        self.net_ = self._second_stage(
            network,
            **settings,
            # All of them, in their order, also those that have no rows.
            classes=self.classes_,
            **_settings_of(first),
        )
        self.net_.fit(inputs, y, self._sample_weight(fit_params))
        return self

    def _second_stage(self, network: Any, **settings: Any) -> MaxMarginClassifier:
        return MaxMarginClassifier(
            network,
            loss="cross_entropy",
            resample=self.resample,
            lr_schedule=_head_schedule,
            **settings,
        )

    def _transformed(self, X: Any) -> Any:
        """Pass X through what stands before the network in a Pipeline."""
        pipeline = self._pipeline()
        for _, step in [] if pipeline is None else pipeline.steps[:-1]:
            # A sampler of imbalanced-learn has no transform, nor has "passthrough".
            if hasattr(step, "transform"):
                X = step.transform(X)
        return X

    def _head_factory(self, net: Any, head: nn.Module) -> Callable[[], nn.Module]:
        raise NotImplementedError

    def _logits(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self)
        scores = self.net_.decision_function(self._transformed(X))
        return scores if scores.ndim == 2 else np.column_stack([-scores / 2, scores / 2])


def _settings_of(net: Any) -> dict[str, Any]:
    if isinstance(net, MaxMarginClassifier):
        given = net.get_params(deep=False)
        settings = {name: given[name] for name in _KEPT}
        shared = torch.distributed.is_available() and torch.distributed.is_initialized()
        # Processes that have shared the first stage each do the second, and would write the same.
        if net.checkpoint_dir is not None and not shared:
            # Several heads may be trained on one network.
            settings["checkpoint_dir"] = Path(net.checkpoint_dir) / "second_stage-{run}"
        return settings
    return {"device": net.device, "batch_size": net.batch_size}


def _check_last(net: Any, head: nn.Module, X: Any) -> None:
    """Raise an error if the network does something to the logits of its last layer."""
    if is_dataset(X):
        rows: Any = Subset(X, range(min(8, len(X))))
    else:
        (X,) = indexable(X)
        rows = _safe_indexing(X, np.arange(min(8, _num_samples(X))))
    with look_into(net.module_) as whole, look_into(head) as last:
        net.predict(rows)
    if not torch.allclose(whole["outputs"][0], last["outputs"][0]):
        raise ValueError(
            f"the network {type(net.module_).__name__} does something to the outputs of its last "
            "layer, such as a softmax; let it return the logits"
        )


class ClassifierRetraining(_TwoStage):
    """Classifier re-training (cRT): a fresh linear head on the frozen features of a network.

    Parameters
    ----------
    estimator : skorch classifier
        The first stage, such as `MaxMarginClassifier` with ``loss="cross_entropy"``. Its network
        ends with ``head``, or with a Linear layer; also at the end of a Pipeline.
    max_epochs : int, default=30
        Epochs of the second stage.
    lr : float, default=0.1
        Its initial learning rate, for SGD with momentum 0.9 and weight decay 5e-4. It warms up
        over a sixth of the epochs (not below 9), and falls tenfold after one third and after two.
    resample : str, dict or callable, default="class_balanced"
        Rates of the classes in the second stage, as in `MaxMarginClassifier`.
    batch_norm : {"eval", "train"}, default="eval"
        Mode of the frozen network's normalisation layers in the second stage. "train", as in the
        released code, lets their statistics drift to those of the balanced sample.
    random_state : int, RandomState or None, default=None
        Seed of the second stage.

    Attributes
    ----------
    estimator_ : classifier
        The first stage.
    net_ : MaxMarginClassifier
        The second stage.
    classes_ : ndarray of shape (K,)
        The labels.

    Raises
    ------
    ValueError
        In fit, if ``batch_norm`` is unknown, or the network has no head or does something to the
        outputs of its last layer, such as a softmax.
    TypeError
        In fit, if the estimator is not a skorch classifier.

    Notes
    -----
    The second stage trains on all rows, also on those that a ``train_split`` of the first one has
    set aside: judge it on rows that are in neither. With ``checkpoint_dir`` in the first one, both
    go on after an interruption; the second has a folder of its own below it.

    References
    ----------
    .. [1] Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
       ICLR 2020, section 4. Epochs, rate and schedule: Zhang et al., "Bag of Tricks for
       Long-Tailed Visual Recognition", AAAI 2021.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, make_long_tailed
    >>> from imbmargin.two_stage import ClassifierRetraining
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> network = MaxMarginClassifier(loss="cross_entropy", max_epochs=20, random_state=0)
    >>> ClassifierRetraining(network, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    def _head_factory(self, net: Any, head: nn.Module) -> Callable[[], nn.Module]:
        if not hasattr(head, "in_features"):
            raise ValueError(
                f"the head of the network is a {type(head).__name__} without `in_features`; a new "
                "one cannot be sized after it"
            )
        return partial(Linear, int(head.in_features), len(self.classes_))  # type: ignore[arg-type]


class MetaSampledRetraining(ClassifierRetraining):
    """Classifier re-training at learned class rates: BALMS, around a balanced-softmax classifier.

    Parameters
    ----------
    estimator : skorch classifier
        The first stage, in the paper with ``loss="balanced_softmax"``; see `ClassifierRetraining`.
    loss : str, default="balanced_softmax"
        The loss of the second stage.
    max_epochs, batch_norm, random_state
        As in `ClassifierRetraining`.
    lr : float, default=0.1
        Initial learning rate of the head, for SGD with momentum 0.9 and weight decay 5e-4. It falls
        along a cosine.
    rate_lr : float, default=0.01
        Learning rate of the class rates, see `imbmargin.meta_sampler.MetaSamplerClassifier`.

    Attributes
    ----------
    estimator_, net_, classes_
        As in `ClassifierRetraining`; ``net_`` has ``class_rates_``.

    Raises
    ------
    ValueError, TypeError
        As in `ClassifierRetraining` and `imbmargin.meta_sampler.MetaSamplerClassifier`.

    References
    ----------
    .. [1] Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020.
       The second stage has 2,000 of 15,000 steps there.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, make_long_tailed
    >>> from imbmargin.two_stage import MetaSampledRetraining
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> network = MaxMarginClassifier(loss="balanced_softmax", max_epochs=20, random_state=0)
    >>> MetaSampledRetraining(network, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        loss: str = "balanced_softmax",
        max_epochs: int = 30,
        lr: float = 0.1,
        rate_lr: float = 0.01,
        batch_norm: str = "eval",
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.loss = loss
        self.max_epochs = max_epochs
        self.lr = lr
        self.rate_lr = rate_lr
        self.batch_norm = batch_norm
        self.random_state = random_state

    def _second_stage(self, network: Any, **settings: Any) -> MaxMarginClassifier:
        return MetaSamplerClassifier(
            network, loss=self.loss, rate_lr=self.rate_lr, lr_schedule="cosine", **settings
        )


class LearnableWeightScaling(_TwoStage):
    """Learnable weight scaling (LWS): one factor a class for the logits of a trained network.

    Parameters
    ----------
    estimator, max_epochs, lr, resample, batch_norm, random_state
        As in `ClassifierRetraining`. The last layer may be of any kind.

    Attributes
    ----------
    estimator_, net_, classes_
        As in `ClassifierRetraining`.

    Raises
    ------
    ValueError, TypeError
        As in `ClassifierRetraining`.

    Notes
    -----
    The factors begin at 1 and multiply the whole logit, with its bias, as in the released code; the
    paper scales the weights only. Logits of a cosine head are taken times the scale of its loss.

    References
    ----------
    .. [1] Kang et al., ICLR 2020, section 4.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier, make_long_tailed
    >>> from imbmargin.two_stage import LearnableWeightScaling
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> network = MaxMarginClassifier(loss="cross_entropy", max_epochs=20, random_state=0)
    >>> LearnableWeightScaling(network, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    def _head_factory(self, net: Any, head: nn.Module) -> Callable[[], nn.Module]:
        return partial(_ScaledHead, head, len(self.classes_), getattr(net, "logit_scale_", 1.0))
