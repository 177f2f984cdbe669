"""What the meta-estimators share: a classifier around another one, and a look into its network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags, column_or_1d, get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.validation import check_is_fitted
from skorch.utils import is_dataset
from torch import nn

from imbmargin.data.batches import targets_of
from imbmargin.data.inputs import encode
from imbmargin.modules import find_head
from imbmargin.weights import class_counts

__all__ = ["LogitClassifier", "Wrapper", "find_network", "look_into"]


class LogitClassifier(ClassifierMixin, BaseEstimator):
    """Predictions from logits, which a subclass computes."""

    classes_: NDArray[Any]

    def _logits(self, X: Any) -> NDArray[Any]:
        raise NotImplementedError

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return the logits (n, K), or for two classes their difference (n,)."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the probabilities of the classes (n, K): the softmax of the logits."""
        return softmax(self._logits(X), axis=1)

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Return the logarithm of the probabilities (n, K)."""
        return log_softmax(self._logits(X), axis=1)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the labels (n,) with the largest logits."""
        index = self._logits(X).argmax(axis=1)
        return self.classes_[index]


class Wrapper(MetaEstimatorMixin, LogitClassifier):
    """A classifier around another one, which is fitted first unless it is frozen."""

    estimator: Any
    estimator_: Any

    def _fit_estimator(self, X: Any, y: Any, fit_params: dict[str, Any]) -> dict[str, Any]:
        """Fit a copy of the classifier; return the parameters of fit by its own names."""
        if get_config()["enable_metadata_routing"]:
            fit_params = process_routing(self, "fit", **fit_params).estimator.fit
        self.estimator_ = clone(self.estimator).fit(X, y, **fit_params)
        self.classes_ = np.asarray(self.estimator_.classes_)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        return fit_params

    def _pipeline(self) -> Any:
        """Return the Pipeline that ends with the network, or None."""
        inner = getattr(self.estimator_, "estimator", self.estimator_)
        return inner if hasattr(inner, "steps") else None

    def _sample_weight(self, fit_params: dict[str, Any]) -> Any:
        """Return the weights of the rows, by whatever name a Pipeline has taken them."""
        pipeline = self._pipeline()
        if pipeline is None:
            return fit_params.get("sample_weight")
        last = pipeline.steps[-1][0]
        if get_config()["enable_metadata_routing"]:
            return process_routing(pipeline, "fit", **fit_params)[last].fit.get("sample_weight")
        return fit_params.get(f"{last}__sample_weight")

    def get_metadata_routing(self) -> MetadataRouter:
        """Return what goes where with metadata routing: all that fit gets, to the classifier."""
        fit = MethodMapping().add(caller="fit", callee="fit")
        router = MetadataRouter(owner=self).add_self_request(self)
        return router.add(estimator=self.estimator, method_mapping=fit)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimator_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.classifier_tags = inner.classifier_tags
        tags.non_deterministic = inner.non_deterministic
        return tags


def training_counts(estimator: Any, X: Any, y: Any, classes: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows of each class that a classifier learned from: its own count, else y's.

    That of a network at the end of a Pipeline is taken after the Pipeline's samplers.
    """
    own = getattr(last_step(estimator), "class_counts_", None)
    if own is not None:
        return np.asarray(own)
    labels = targets_of(X) if y is None and is_dataset(X) else column_or_1d(y)
    return class_counts(encode(labels, classes), len(classes))


def log_proba(estimator: Any, X: Any) -> NDArray[Any]:
    """Return the logarithm of a classifier's probabilities (n, K)."""
    if hasattr(estimator, "predict_log_proba"):
        return np.asarray(estimator.predict_log_proba(X), dtype=float)
    proba = np.asarray(estimator.predict_proba(X), dtype=float)
    return np.log(np.maximum(proba, np.finfo(float).tiny))


def last_step(estimator: Any) -> Any:
    """Return what is inside FrozenEstimators and at the end of Pipelines."""
    while True:
        if isinstance(estimator, FrozenEstimator):
            estimator = estimator.estimator
        elif hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        else:
            return estimator


def find_network(estimator: Any) -> Any:
    """Return the fitted skorch net inside a FrozenEstimator or at the end of a Pipeline.

    Raises
    ------
    TypeError
        If there is none.
    """
    net = last_step(estimator)
    if not hasattr(net, "module_"):
        raise TypeError(
            f"estimator must be a skorch classifier such as MaxMarginClassifier (or a Pipeline "
            f"that ends with one), got {type(net).__name__}"
        )
    return net


@contextmanager
def look_into(layer: nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collect what goes into a layer and what comes out of it, batch by batch, on the CPU."""
    seen: dict[str, list[torch.Tensor]] = {"inputs": [], "outputs": []}

    def look(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen["inputs"].append(inputs[0].detach().float().cpu())
        seen["outputs"].append(output.detach().float().cpu())

    hook = layer.register_forward_hook(look)
    try:
        # A compiled network would be compiled anew for the hook.
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        hook.remove()


def head_pass(estimator: Any, X: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Predict X; return what goes into the head of the network and what comes out of it.

    Raises
    ------
    TypeError, ValueError
        If the estimator has no network, or the network no head.
    """
    check_is_fitted(estimator)
    _, head = find_head(find_network(estimator).module_)
    with look_into(head) as seen:
        estimator.predict(X)
    features, logits = (torch.cat(seen[key]).numpy() for key in ("inputs", "outputs"))
    return features, logits
