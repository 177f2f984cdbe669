"""A classifier as the bytes of a file, which run nothing when they are read."""

from __future__ import annotations

import copyreg
import json
import re
import warnings
from collections.abc import Iterable
from typing import Any, SupportsIndex

import sklearn
import torch
from sklearn.frozen import FrozenEstimator
from skorch import NeuralNet

from imbmargin._version import __version__
from imbmargin.checkpoint import pack, seal, unpack, unseal
from imbmargin.contract import ContractClassifier
from imbmargin.parts import resolve_device
from imbmargin.portable import Describer, Restorer
from imbmargin.resume import collect_parts, restore_parts

__all__ = ["StoredClassifier", "from_bytes", "to_bytes"]

_FORMAT = "imbmargin model 1"
_VERSIONS = {
    "imbmargin": __version__,
    "torch": str(torch.__version__),
    "scikit-learn": sklearn.__version__,
}
# They are made again from the parameters, or restored by themselves.
_NOT_STORED = {
    "augment_",
    "callbacks_",
    "cuda_dependent_attributes_",
    "grad_scaler_",
    "init_context_",
    "initialized_",
    "mixing_",
    "prefixes_",
    "virtual_params_",
}
# They choose what torch runs on the machine that loads, or whether it reads pickles there.
_UNSAFE = ("compile__options", "compile__backend", "torch_load_kwargs")


WITH_SKOPS = (
    "save it with skops.io.dump(model, file), and load it with "
    "skops.io.load(file, trusted=imbmargin.persistence.TRUSTED_TYPES)"
)
"""What to do with models that hold others than this package's."""


def to_bytes(model: Any, describer: Describer) -> bytes:
    """Return the content of a file that holds a model.

    Parameters
    ----------
    model : object
        A classifier, or anything else that `imbmargin.portable` can describe.
    describer : Describer
        A new one; it notes what a reader will have to trust.

    Returns
    -------
    content : bytes

    Raises
    ------
    TypeError
        If the model holds something that cannot be described.
    """
    try:
        skeleton, tensors = pack(model, describer)
    except TypeError as error:
        raise TypeError(_refusal(model, error)) from error
    return seal(tensors, {"format": _FORMAT, **_VERSIONS, "model": json.dumps(skeleton)})


def _refusal(model: Any, error: TypeError) -> str:
    name, inner = type(model).__name__, model
    while isinstance(inner, FrozenEstimator) or _is_wrapper(inner):
        inner = inner.estimator
    if inner is not model and not isinstance(inner, NeuralNet):
        # What a scaler or a search has learned is no parameter that could be set.
        return (
            f"save_model saves the classifiers of imbmargin, got a {name} around a "
            f"{type(inner).__name__} that its files cannot hold; {WITH_SKOPS}"
        )
    return (
        f"{name} cannot be saved: {error}. Set the parameter that holds it to another value first "
        "(set_params), or use pickle or joblib if nobody but you can change the file"
    )


def _is_wrapper(model: Any) -> bool:
    return type(model).__module__.startswith("imbmargin.") and hasattr(model, "estimator")


def from_bytes(content: bytes, trusted: Iterable[Any], source: str) -> Any:
    """Make a model again from the content of a file.

    Parameters
    ----------
    content : bytes
        From `to_bytes`.
    trusted : iterable of classes and functions
        What it may name besides what the package knows.
    source : str
        What errors call the file.

    Returns
    -------
    model : object

    Raises
    ------
    ValueError
        If the content is damaged, of an unknown format, or names what is not trusted.
    """
    restorer = Restorer(trusted)
    try:
        tensors, metadata = unseal(content)
        if metadata["format"] != _FORMAT:
            raise ValueError(f"its format is {metadata['format']!r}, not {_FORMAT!r}")
        skeleton = json.loads(metadata["model"])
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{source} is damaged, or no file of save_model that this version of imbmargin "
            f"({__version__}) can read: {error}"
        ) from error
    unknown = restorer.unknown_names(skeleton)
    if unknown:
        raise ValueError(
            f"{source} names {', '.join(unknown)}, which imbmargin does not know. If the file "
            "comes from somebody you trust, import them and pass them: "
            f"trusted=[{', '.join(name.rpartition('.')[2] for name in unknown)}]"
        )
    _warn_of_newer(metadata, source)
    try:
        return unpack(skeleton, tensors, restorer)
    except Exception as error:
        raise ValueError(
            f"{source} does not describe a model that can be made again: "
            f"{type(error).__name__}: {error}"
        ) from error


def _warn_of_newer(metadata: dict[str, str], source: str) -> None:
    for name, installed in _VERSIONS.items():
        written = metadata.get(name, "")
        if _minor(written) > _minor(installed):
            warnings.warn(
                f"{source} was written with {name} {written}, and {installed} is installed; "
                f"update {name} if the model does not behave as it did",
                RuntimeWarning,
                stacklevel=4,
            )


def _minor(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(int(part) for part in found.groups()) if found else ()


class _Pickled(dict[str, Any]):
    """A state that pickle wrote; its parts are pickles too, as skorch has them."""


class StoredClassifier(ContractClassifier):
    """A classifier whose state is plain values, but for pickle, which keeps skorch's.

    A subclass brings the constructor (with ``precision``), and ``grad_scaler_``.
    """

    precision: str

    def _get_portable_state(self) -> dict[str, Any]:
        """Return parameters, attributes and the states of the parts."""
        state: dict[str, Any] = {"parameters": self.get_params(deep=False)}
        _refuse_unsafe(state["parameters"])
        if "_metadata_request" in self.__dict__:
            state["requests"] = self._get_metadata_request()._serialize()
        if self.initialized_:
            parts = {f"{name}_" for name in (*self._modules, *self._criteria, *self._optimizers)}
            state["attributes"] = {
                name: value
                for name, value in self.__dict__.items()
                if name.endswith("_") and "__" not in name and name not in _NOT_STORED | parts
            }
            state["fitted"] = collect_parts(self)
        return state

    def _set_portable_state(self, state: dict[str, Any]) -> None:
        """Make the parts from the parameters, and put them into their states."""
        _refuse_unsafe(state["parameters"])
        constructor: Any = type(self).__init__
        constructor(self, **_for_this_machine(state["parameters"]))
        if "requests" in state:
            self._metadata_request = self._get_metadata_request()
            for method, wanted in state["requests"].items():
                for name, alias in wanted.items():
                    getattr(self._metadata_request, method).add_request(param=name, alias=alias)
        if "fitted" not in state:
            return
        attributes = dict(state["attributes"])
        history = attributes.pop("history_")
        wrong = [name for name in attributes if not name.endswith("_") or "__" in name]
        if wrong:
            raise ValueError(f"{wrong} are no attributes of a fitted classifier")
        self.__dict__.update(attributes)
        self._make_parts()
        if hasattr(self.criterion_, "set_class_counts") and hasattr(self, "class_counts_"):
            self.criterion_.set_class_counts(torch.as_tensor(self.class_counts_))
        restore_parts(self, state["fitted"])
        for name in self._optimizers:
            _check_fused(getattr(self, f"{name}_"))
        self.history_ = history
        for name, value in attributes.items():
            if isinstance(value, torch.Tensor):
                self.__dict__[name] = value.to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        # For skops. What must be trusted is named beside the content, so that its audit sees it.
        describer = Describer()
        content = to_bytes(self._get_portable_state(), describer)
        return {"model": content, "named": list(describer.unknown.values())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state, _Pickled):
            self._set_pickled_state(state)
            return
        if state.keys() != {"model", "named"}:
            raise ValueError(
                f"this is no state of a {type(self).__name__}; it has {sorted(state)} where "
                "'model' and 'named' are expected"
            )
        self._set_portable_state(from_bytes(state["model"], state["named"], "the file"))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # Only pickle and copy come here. Their state has a type of its own, which skops does not
        # trust: it holds a pickle, and a file of skops must not be able to bring one.
        state = _Pickled(super().__getstate__())
        return copyreg.__newobj__, (type(self),), state  # type: ignore[attr-defined]

    def _set_pickled_state(self, state: dict[str, Any]) -> None:
        # "auto" means the device of the machine that loads, not of the one that saved.
        requested = state["device"]
        super().__setstate__({**state, "device": resolve_device(requested)})
        if requested == "auto":
            self.device = requested


def _refuse_unsafe(parameters: dict[str, Any]) -> None:
    for name in _UNSAFE:
        if parameters.get(name) is not None:
            raise TypeError(
                f"{name}={parameters[name]!r} is for the machine that it was set on, and is not "
                "kept in files; set it to None, and again after loading"
            )


def _check_fused(optimizer: Any) -> None:
    """Raise an error for a state of another shape than the weights: torch does not look."""
    if not any(group.get("fused") for group in optimizer.param_groups):
        return
    for weights, state in optimizer.state.items():
        shapes = {tuple(part.shape) for part in state.values() if isinstance(part, torch.Tensor)}
        if shapes - {(), tuple(weights.shape)}:
            raise ValueError(f"the optimizer has {shapes} for weights of {tuple(weights.shape)}")


def _for_this_machine(parameters: dict[str, Any]) -> dict[str, Any]:
    """Replace a device that this machine lacks, and a precision that needs it."""
    changed = {}
    try:
        device = resolve_device(parameters["device"])
    except ValueError:
        device = changed["device"] = "cpu"
    if parameters["precision"] == "float16" and torch.device(device or "cpu").type != "cuda":
        changed["precision"] = "float32"
    if changed:
        before = {name: parameters[name] for name in changed}
        warnings.warn(
            f"the model was saved with {before}, which needs a CUDA device that is not here; it "
            f"goes on with {changed}",
            RuntimeWarning,
            stacklevel=2,
        )
    return {**parameters, **changed}
