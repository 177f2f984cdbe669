"""Parameters of a skorch classifier, as scikit-learn has them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from sklearn.base import BaseEstimator
from skorch import NeuralNetClassifier
from skorch.utils import to_tensor
from torch import Tensor

from imbmargin.parts import resolve_device

__all__ = ["ParameterClassifier"]

# Parameters that are read when the loss, or the callbacks, are made.
_OF_LOSS = {"loss", "delta_neg", "beta", "loss_epoch", "class_weight", "drw_epoch"}
_OF_CALLBACKS = {"callbacks", "lr_schedule", "resample", "drs_epoch", *_OF_LOSS}
# What may hold a torch module, and is no part of the net.
_NO_PARTS = {"module", "loss", "init_backbone", "predict_nonlinearity"}
_NO_PARTS |= {"augment", "augment_", "mixing", "mixing_"}


def _is_simple(name: str, value: Any) -> bool:
    """Tell whether a parameter is only looked up when it is used, or the optimizer is made."""
    if name == "lr":
        return isinstance(value, str)
    part = name.partition("__")[0]
    return name == "optimizer" or part in ("dataset", "iterator_train", "iterator_valid")


def _is_optimizer_argument(name: str) -> bool:
    groups = "optimizer__param_groups__"
    return name.startswith("optimizer__") and not name.startswith(groups)


class ParameterClassifier(NeuralNetClassifier):
    """Parameters that the constructor only keeps, and that may be set at any time.

    A subclass brings the constructor, with ``init_backbone`` and what the loss and the callbacks
    are made from.
    """

    # skorch sets these three in __init__; scikit-learn wants nothing but parameters there.
    history_: Any = None
    initialized_ = False
    virtual_params_: dict[str, Any] = {}  # noqa: RUF012 (replaced, never changed)
    init_backbone: Any
    _changed: frozenset[str] = frozenset()

    def __init__(self, module: Any, **kwargs: Any) -> None:
        super().__init__(module, **kwargs)
        # The loss is a parameter of the subclass.
        for name in ("criterion", "history_", "initialized_", "virtual_params_"):
            del self.__dict__[name]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Show the inherited parameters in the signature of a subclass that passes them on.

        scikit-learn's repr, and help, look there for the defaults.
        """
        super().__init_subclass__(**kwargs)
        constructor: Any = cls.__dict__.get("__init__")
        if constructor is None:
            return
        own = inspect.signature(constructor)
        *named, rest = own.parameters.values()
        if rest.kind is not inspect.Parameter.VAR_KEYWORD:
            return
        # Past mixins that have none.
        above: Any = next(base for base in cls.__mro__[1:] if "__init__" in base.__dict__)
        inherited = [
            parameter
            for name, parameter in inspect.signature(above.__init__).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in own.parameters
        ]
        constructor.__signature__ = own.replace(parameters=[*named, *inherited, rest])

    def __setattr__(self, name: str, value: Any) -> None:
        # skorch takes any torch module that is assigned for a part of the net; as a parameter it
        # is only what a part will be made from, or a function.
        if name in _NO_PARTS:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        return BaseEstimator.__repr__(self)

    def _get_params_html(self, deep: bool = True, **kwargs: Any) -> Any:
        # The deep ones are those of skorch's callbacks, which nobody has set.
        return super()._get_params_html(deep=False, **kwargs)

    @property
    def device(self) -> Any:
        """The device in use; ``get_params`` has the constructor's value."""
        return resolve_device(self.__dict__["device"])

    @device.setter
    def device(self, value: Any) -> None:
        self.__dict__["device"] = value

    def _on_device(self, batch: Any) -> Any:
        """Return a batch as tensors on the device in use."""
        device = self.device
        # skorch would take longer to find that there is nothing to do.
        if (
            isinstance(batch, Tensor)
            and device is not None
            and batch.device == torch.device(device)
        ):
            return batch
        return to_tensor(batch, device=device)

    def _get_param_names(self) -> list[str]:
        # skorch lists the instance's attributes; its private ones are not parameters, and
        # get_params adds the device, which may not be there, as it was given.
        names = super()._get_param_names()
        return [name for name in names if not name.startswith("_") and name != "device"]

    def get_params(self, deep: bool = True, **kwargs: Any) -> dict[str, Any]:
        """Return the constructor's parameters, as scikit-learn and skorch do."""
        return {**super().get_params(deep=deep, **kwargs), "device": self.__dict__["device"]}

    def set_params(self, **kwargs: Any) -> ParameterClassifier:
        """Set parameters, as scikit-learn and skorch do; what they hold is checked in fit.

        The loss and the callbacks are made anew from them when training begins, or goes on.
        """
        for name in [name for name in kwargs if name.startswith("init_backbone__")]:
            # skorch knows parts of its own only.
            inner = name.removeprefix("init_backbone__")
            kwargs.get("init_backbone", self.init_backbone).set_params(**{inner: kwargs.pop(name)})
        if self.initialized_:
            self._changed = self._changed | kwargs.keys()
        if "callbacks" in kwargs:
            # skorch would make them at once, or on a net that is initialized those from before.
            self.callbacks = kwargs.pop("callbacks")
        # For these skorch has an internal error on a net that is initialized.
        simple = {k for k, v in kwargs.items() if self.initialized_ and _is_simple(k, v)}
        super().set_params(**{k: v for k, v in kwargs.items() if k not in simple})
        for name, value in kwargs.items():
            # skorch hands arguments to the optimizer that is there, and would forget them.
            if name in simple or (self.initialized_ and _is_optimizer_argument(name)):
                setattr(self, name, value)
        if simple & {"optimizer", "lr"}:
            self._initialize_optimizer()
        return self

    def _renew_parts(self) -> None:
        """Make anew what was made from parameters that have been set since."""
        changed = self.__dict__.pop("_changed", set())
        if changed & _OF_LOSS:
            before = list(self.criterion_.parameters())
            self._initialize_criterion()
            if before or list(self.criterion_.parameters()):
                # It trains weights of the loss.
                self._initialize_optimizer()
        if changed & _OF_CALLBACKS:
            self._initialize_callbacks()
