"""A skorch classifier that keeps scikit-learn's contract."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError as SklearnNotFittedError
from sklearn.utils import Tags
from skorch.callbacks import BatchScoring, EpochScoring
from skorch.dataset import Dataset
from skorch.exceptions import NotInitializedError
from skorch.history import History
from skorch.utils import is_dataset, to_numpy
from torch.utils.data import Subset

from imbmargin.data import inputs
from imbmargin.data.batches import ArrayDataset
from imbmargin.parameters import ParameterClassifier
from imbmargin.randomness import draw_seed, isolated_random_state

__all__ = ["ContractClassifier", "NotFittedError"]


class NotFittedError(NotInitializedError, SklearnNotFittedError):
    """The estimator is not fitted: skorch's and scikit-learn's error in one."""


class ContractClassifier(ParameterClassifier):
    """Checks, label encoding, seeds and predictions, as scikit-learn has them.

    A subclass brings the constructor (with ``image_shape``, ``init_backbone`` and
    ``random_state``) and the parts:
    module, loss, optimizer, iterators.
    """

    layout_: inputs.Layout | None
    class_counts_: np.ndarray
    open_ended_ = False
    _scores_labels = False

    @property
    def _layout(self) -> inputs.Layout | None:
        return getattr(self, "layout_", None)

    @property
    def _num_classes(self) -> int | None:
        classes = getattr(self, "classes_", None)
        return None if classes is None else len(classes)

    @property
    def classes_(self) -> np.ndarray:  # noqa: D102 (numpydoc would link to a page of its own)
        # Sorted: scikit-learn's scorers take the last of two for positive.
        labels = np.unique(super().classes_)
        # skorch's BatchScoring holds predictions, which it puts there as a cache, against the
        # targets of the training's batches, which are encoded.
        coded = "forward_iter" in self.__dict__ and not self._scores_labels
        return np.arange(len(labels)) if coded else labels

    @property
    def _labels_are_codes(self) -> bool:
        return np.array_equal(self.classes_, np.arange(len(self.classes_)))

    def check_data(self, X: Any, y: Any) -> None:
        """Do nothing: fit has checked the data before it changed anything."""

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Wrap arrays, with labels encoded to 0..K-1; a Dataset stays what it is."""
        if is_dataset(X):
            return X
        return super().get_dataset(X, None if y is None else inputs.encode(y, self.classes_))

    def _check_training_data(
        self, X: Any, y: Any, sample_weight: Any, classes: Any, reset: bool
    ) -> tuple[Any, Any, Any]:
        if is_dataset(X):
            X, labels = self._check_dataset(X, y, sample_weight, reset)
            found = np.arange(labels.max() + 1)
        else:
            X = self._check_array(X, reset=reset)
            labels = inputs.check_labels(y, X.shape[0])
            found = np.unique(labels)
        if reset and self.classes is None:
            self.classes_inferred_ = found if classes is None else np.unique(classes)
        if not (reset or classes is None or np.array_equal(np.unique(classes), self.classes_)):
            raise ValueError(
                f"classes={np.unique(classes).tolist()} is not the same as on the first call of "
                f"partial_fit, {self.classes_.tolist()}; leave it out, or fit anew"
            )
        if self.classes is not None and len(self.classes_) < len(self.classes):
            raise ValueError(f"classes={self.classes!r} has a label twice; pass each label once")
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only, {self.classes_.tolist()}; "
                "a classifier needs rows of at least two classes"
            )
        target = inputs.encode(labels, self.classes_)
        self._check_targets(target)
        if sample_weight is not None:
            known = not reset or classes is not None or self.classes is not None
            sample_weight = inputs.check_weights(sample_weight, X, target, classes_known=known)
        return X, None if is_dataset(X) else labels, sample_weight

    def _check_parameters(self) -> None:
        """Raise an error for a parameter that cannot work, before anything is changed."""

    def _check_targets(self, target: np.ndarray) -> None:
        """Raise an error for a parameter that does not fit the encoded targets."""

    def _check_array(self, X: Any, *, reset: bool) -> Any:
        layout = None if reset else self._layout
        shape = getattr(X, "shape", ())
        if layout is not None and shape and max(len(shape), len(layout.sample_shape) + 1) > 2:
            self._check_shape(shape, layout)
        X = inputs.check_inputs(self, X, reset=reset)
        if reset:
            self.layout_ = inputs.find_layout(X.shape, self.image_shape)
        elif self._layout is not None:
            self._check_shape(X.shape, self._layout)
        return X

    def _check_shape(self, shape: tuple[int, ...], layout: inputs.Layout) -> None:
        expected = layout.sample_shape
        if shape[1:] != expected:
            raise ValueError(
                f"X has samples of shape {shape[1:]}, but {type(self).__name__} was fitted on "
                f"samples of shape {expected}; bring X into the shape (n, {str(expected)[1:]}"
            )

    def _check_dataset(
        self, X: Any, y: Any, sample_weight: Any, reset: bool
    ) -> tuple[Any, np.ndarray]:
        if sample_weight is not None:
            raise ValueError(
                "sample_weight needs X and y as arrays, got a torch Dataset; pass arrays, or leave "
                "sample_weight out"
            )
        target = inputs.check_dataset_targets(X, y)
        sample = X[0][0]
        inputs.check_dataset_sample(sample)
        shaped = isinstance(sample, (torch.Tensor, np.ndarray))
        if reset:
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
            shape = (1, *sample.shape) if shaped else None
            self.layout_ = None if shape is None else inputs.find_layout(shape, self.image_shape)
        elif shaped and self._layout is not None:
            self._check_shape((1, *sample.shape), self._layout)
        # Reading the targets may cost a walk over the rows: once is enough.
        part = Subset(X, range(len(X)))
        part.targets = target  # type: ignore[attr-defined]
        return part, target

    def initialize(self) -> ContractClassifier:
        """Make all parts anew, as skorch does, from the seed of ``random_state``."""
        self.seed_ = self._draw_seed()
        return self._make_parts()

    def _make_parts(self) -> ContractClassifier:
        self.__dict__.pop("_changed", None)
        super().initialize()
        return self

    def _draw_seed(self) -> int:
        return draw_seed(self.random_state)

    def initialize_history(self) -> ContractClassifier:
        """Start a new history; the old one is not emptied, a failed fit puts it back."""
        self.history_ = History()
        return self

    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, **fit_params: Any
    ) -> ContractClassifier:
        """Fit the network to the data.

        Parameters
        ----------
        X : array-like of shape (n, features), (n, C, H, W) or (n, H, W, C), or torch Dataset
            The inputs, see the notes of the class.
        y : array-like of shape (n,)
            Class labels of any type. With a Dataset None, or its own targets, 0..K-1, which are
            then not looked up in all its rows.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows in the loss; they multiply the class weights. Class counts count
            rows.
        **fit_params
            Passed to the module's ``forward``, as in skorch.

        Returns
        -------
        self : ContractClassifier
            The fitted estimator.

        Raises
        ------
        ValueError
            If the data or a parameter are not usable; what was fitted before is kept.
        TypeError
            If a part cannot do what it is asked for, such as a loss that cannot be deferred.
        imbmargin.loop.DivergenceError
            If the loss or a weight becomes NaN or infinite.
        """
        return self._train("fit", X, y, sample_weight, None, fit_params)

    def partial_fit(
        self,
        X: Any,
        y: Any = None,
        classes: Any = None,
        sample_weight: Any = None,
        **fit_params: Any,
    ) -> ContractClassifier:
        """Train for ``max_epochs`` on these rows, going on from what is there, as in skorch.

        Parameters
        ----------
        X, y, sample_weight, **fit_params
            As in `fit`.
        classes : array-like of shape (K,), default=None
            All classes that will ever come, on the first call; by default those of its ``y``.

        Returns
        -------
        self : ContractClassifier
            The estimator.
        """
        return self._train("partial_fit", X, y, sample_weight, classes, fit_params)

    def _train(
        self,
        method: str,
        X: Any,
        y: Any,
        sample_weight: Any,
        classes: Any,
        fit_params: dict[str, Any],
    ) -> ContractClassifier:
        goes_on = self.initialized_ and (method == "partial_fit" or self.warm_start)
        with self._restored_on_error(goes_on):
            self.open_ended_ = method == "partial_fit"
            self._check_parameters()
            known = goes_on and hasattr(self, "class_counts_")
            X, y, weight = self._check_training_data(X, y, sample_weight, classes, not known)
            self._prepare_run(X, y, weight, fit_params)
            if goes_on:
                self._renew_parts()
            else:
                self.initialize()
            with isolated_random_state(self.seed_, 1, len(self.history), device=self.device):
                super().partial_fit(
                    X, y, sample_weight=weight, _routing_method=method, **fit_params
                )
        return self

    def _prepare_run(self, X: Any, y: Any, sample_weight: Any, fit_params: Any) -> None:
        """Do what must be done before the parts are made; the data have been checked."""

    @contextmanager
    def _restored_on_error(self, goes_on: bool) -> Iterator[None]:
        """Leave what was there before as it was; parts that go on training are copied for that."""
        before = self.__dict__.copy()
        parts = copy.deepcopy(self._part_states()) if goes_on else {}
        epochs = len(self.history) if goes_on else 0
        drawn = self.random_state
        state = drawn.get_state() if isinstance(drawn, np.random.RandomState) else None
        try:
            yield
        except BaseException:
            if state is not None:
                drawn.set_state(state)
            self.__dict__.clear()
            self.__dict__.update(before)
            if goes_on:
                del self.history[epochs:]
            for name, state in parts.items():
                getattr(self, name).load_state_dict(state)
            raise

    def _part_states(self) -> dict[str, Any]:
        names = [f"{name}_" for name in (*self._modules, *self._criteria, *self._optimizers)]
        parts = {name: getattr(self, name) for name in names}
        return {n: part.state_dict() for n, part in parts.items() if hasattr(part, "state_dict")}

    def fit_loop(
        self,
        X: Any,
        y: Any = None,
        epochs: int | None = None,
        sample_weight: Any = None,
        **fit_params: Any,
    ) -> ContractClassifier:
        """Run the epochs of skorch's loop over the data, with the weights of the rows."""
        dataset = self._make_dataset(X, y, sample_weight)
        return super().fit_loop(dataset, None, epochs, **fit_params)

    def _make_dataset(self, X: Any, y: Any, sample_weight: Any) -> Any:
        dataset = self.get_dataset(X, y)
        if sample_weight is not None:
            if not isinstance(dataset, ArrayDataset):
                raise ValueError(
                    f"sample_weight needs dataset=ArrayDataset, got dataset={self.dataset!r}; "
                    "leave dataset as it is"
                )
            dataset = ArrayDataset(dataset.X, dataset.targets, sample_weight)
        if isinstance(dataset, ArrayDataset) and y is not None:
            # For scoring callbacks that predict anew.
            dataset.y = y
        return dataset

    def _check_validation_part(self, valid: Any) -> Any:
        """Return a validation part; that of `predefined_split` has labels as y has them."""
        if valid is not _predefined(self.train_split):
            return valid
        rows: Any = slice(None)
        whole = valid
        while isinstance(whole, Subset):
            rows, whole = np.asarray(whole.indices)[rows], whole.dataset
        if type(whole) is Dataset:
            X = self._check_array(whole.X, reset=False)
            labels = inputs.check_labels(whole.y, X.shape[0])
            return self._make_dataset(X[rows], labels[rows], None)
        if not self._labels_are_codes:
            raise ValueError(
                f"predefined_split holds a {type(whole).__name__}, whose targets are 0..K-1, but y "
                f"has labels such as {self.classes_[0]!r}; pass predefined_split(Dataset(X, y)) "
                "with skorch.dataset.Dataset and labels as those of y"
            )
        return valid

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks; they see batches of (input, target), without sample weights."""
        if method_name == "on_train_begin":
            self._check_batch_scoring()
        batch = cb_kwargs.get("batch")
        if batch is not None and isinstance(batch[1], (tuple, list)):
            cb_kwargs["batch"] = (batch[0], batch[1][0])
        if method_name != "on_epoch_end":
            super().notify(method_name, **cb_kwargs)
            return
        self._scores_labels = self._decode_scored_targets()
        try:
            super().notify(method_name, **cb_kwargs)
        finally:
            del self._scores_labels

    def _decode_scored_targets(self) -> bool:
        """Turn the targets that skorch's EpochScoring has collected into names, as in y."""
        # Asked after every epoch, for which they need not be sorted.
        if np.asarray(super().classes_).dtype.kind not in "OSU":
            # Of two numbers the second stays the positive one, whichever they are.
            return False
        labels = self.classes_
        for _, callback in self.callbacks_:
            if isinstance(callback, EpochScoring):
                callback.y_trues_ = [labels[to_numpy(y)] for y in callback.y_trues_]
        return True

    def _check_batch_scoring(self) -> None:
        coded = self._labels_are_codes
        for name, callback in self.callbacks_:
            if coded or not isinstance(callback, BatchScoring):
                continue
            chosen = self.use_caching
            if not (callback.use_caching if chosen == "auto" else chosen):
                raise ValueError(
                    f"{name} with use_caching=False would hold predictions, which are labels such "
                    f"as {self.classes_[0]!r}, against the targets of a batch, which are 0..K-1; "
                    "leave use_caching as it is, or use EpochScoring"
                )

    def _to_module(self, x: Any) -> Any:
        x = self._on_device(x)
        if self._layout is None or not isinstance(x, torch.Tensor):
            return x
        return self._layout.to_module(x)

    def _logits(self, X: Any) -> torch.Tensor:
        self.check_is_fitted()
        if not is_dataset(X):
            X = self._check_array(X, reset=False)
            norm = getattr(self.module_, "input_norm", None)
            if norm is not None and self._layout is not None and self._layout.image_shape:
                inputs.warn_of_other_pixels(X, norm.mean, norm.std)
        # They stay on the device until the last of them: a copy of each would make it wait.
        found = self.forward_iter(X, device=self.device)
        outputs = (part[0] if isinstance(part, tuple) else part for part in found)
        if "forward_iter" in self.__dict__:
            # What skorch's scoring callbacks kept of the batches: any number of rows, with a graph.
            return torch.cat([part.detach().float().cpu() for part in outputs])
        rows = len(X) if is_dataset(X) else X.shape[0]
        logits, start = torch.empty(0), 0
        for part in outputs:
            if start == 0:
                # Filled in place: small outputs kept among large freed ones would scatter memory.
                dtype = torch.promote_types(part.dtype, torch.float32)
                logits = torch.empty(rows, *part.shape[1:], dtype=dtype, device=part.device)
            logits[start : start + len(part)] = part
            start += len(part)
        return logits[:start].cpu()

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits, before the scale of the loss.

        Parameters
        ----------
        X : array-like or Dataset
            The inputs, of the shape seen in fit.

        Returns
        -------
        logits : ndarray of shape (n, K), or (n,) for two classes
            For two classes the logit of ``classes_[1]`` less that of ``classes_[0]``.
        """
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes: softmax of scale times logits.

        Parameters
        ----------
        X : array-like or Dataset
            The inputs, of the shape seen in fit.

        Returns
        -------
        probability : ndarray of shape (n, K)
            Columns in the order of ``classes_``. With ``predict_nonlinearity`` (skorch's) set to
            a function of the logits or None, what that gives.
        """
        logits = self._logits(X)
        if self.predict_nonlinearity is None:
            return logits.numpy()
        if callable(self.predict_nonlinearity):
            with torch.no_grad():
                return np.asarray(self.predict_nonlinearity(logits))
        return torch.softmax(self.logit_scale_ * logits.double(), dim=1).numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithm of the softmax of scale times logits.

        Parameters
        ----------
        X : array-like or Dataset
            The inputs, of the shape seen in fit.

        Returns
        -------
        log_probability : ndarray of shape (n, K)
            Computed from the logits, so that small probabilities keep their digits.
            ``predict_nonlinearity`` is not applied.
        """
        logits = self._logits(X).double()
        return torch.log_softmax(self.logit_scale_ * logits, dim=1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Return the class labels.

        Parameters
        ----------
        X : array-like or Dataset
            The inputs, of the shape seen in fit.

        Returns
        -------
        label : ndarray of shape (n,)
            The class with the largest logit.
        """
        index = self._logits(X).argmax(dim=1).numpy()
        return self.classes_[index]

    def check_is_fitted(self, attributes: Any = None, *args: Any, **kwargs: Any) -> None:
        """Raise NotFittedError, of both scikit-learn and skorch, unless there is a network."""
        if not all(hasattr(self, name) for name in attributes or ["module_"]):
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with "
                "appropriate arguments before using this estimator."
            )

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _predefined(train_split: Any) -> Any:
    """Return the data of skorch's `predefined_split`, None for another split."""
    return getattr(train_split, "keywords", {}).get("valid_ds")
