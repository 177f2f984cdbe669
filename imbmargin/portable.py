"""Objects as plain values and names, for files that run nothing when they are read.

A class or function is in a file by its name only. A reader finds it among those that are known
here, or that the caller trusts, and nowhere else: nothing is imported because a file says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path, PurePath
from reprlib import repr as shortened
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch import callbacks as skorch_callbacks
from skorch.callbacks import Callback, ParamMapper
from skorch.dataset import ValidSplit
from skorch.history import History
from skorch.utils import freeze_parameter, noop, unfreeze_parameter
from torch import nn
from torch.utils.data import DataLoader

from imbmargin import callbacks, losses, modules
from imbmargin.data import augment, mixing
from imbmargin.data.batches import ArrayBatches, ArrayDataset
from imbmargin.data.inputs import Layout
from imbmargin.data.split import StratifiedSplit
from imbmargin.modules import heads, mlp, resnet

__all__ = ["Describer", "Restorer", "know", "name_of", "settings_of"]

_KNOWN: dict[str, Any] = {}

# Parameters are kept with their module; hooks are functions of the running process.
_MODULE_PARTS = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_CALLBACKS = (
    "BatchScoring",
    "EarlyStopping",
    "EpochScoring",
    "EpochTimer",
    "Freezer",
    "GradientNormClipping",
    "Initializer",
    "LRScheduler",
    "ParamMapper",
    "PassthroughScoring",
    "PrintLog",
    "ProgressBar",
    "Unfreezer",
    "WarmRestartLR",
)


def name_of(thing: Any) -> str:
    """Return the name by which a class or function is known, with its module."""
    return f"{thing.__module__}.{thing.__qualname__}"


def know(*things: Any) -> None:
    """Make classes and functions known: files may name them.

    Only what does no harm whatever arguments a file gives it: no access to files, no imports, no
    calls of what an argument names.
    """
    _KNOWN.update((name_of(thing), thing) for thing in things)


def _defined_in(module: ModuleType) -> list[Any]:
    found = vars(module).values()
    return [thing for thing in found if getattr(thing, "__module__", None) == module.__name__]


def _know_what_is_here() -> None:
    for module in (losses, nn, torch.optim, torch.optim.lr_scheduler, mlp, resnet, heads, modules):
        bases = (nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
        found = vars(module).values()
        know(*(thing for thing in found if isinstance(thing, type) and issubclass(thing, bases)))
    know(*(thing for thing in _defined_in(nn.functional) if isinstance(thing, FunctionType)))
    for module in (callbacks, augment, mixing):
        know(*(thing for thing in _defined_in(module) if isinstance(thing, (type, FunctionType))))
    know(*(getattr(skorch_callbacks, name) for name in _CALLBACKS))
    know(ArrayBatches, ArrayDataset, DataLoader, Layout, StratifiedSplit, ValidSplit, print)
    know(freeze_parameter, unfreeze_parameter, noop)


_know_what_is_here()


class Describer:
    """Tell `imbmargin.checkpoint.pack` how to write objects; one for each file.

    Attributes
    ----------
    unknown : dict of str to object
        Classes and functions, by name, that a reader will have to trust.

    Examples
    --------
    >>> from torch import nn
    >>> from imbmargin.checkpoint import pack, unpack
    >>> from imbmargin.portable import Describer, Restorer
    >>> skeleton, tensors = pack({"net": nn.Linear(2, 1), "loss": nn.MSELoss}, Describer())
    >>> unpack(skeleton, tensors, Restorer())
    {'net': Linear(in_features=2, out_features=1, bias=True),
     'loss': <class 'torch.nn.modules.loss.MSELoss'>}
    """

    def __init__(self) -> None:
        self.unknown: dict[str, Any] = {}
        # Objects that are written, with their numbers; they are kept so that no id comes twice.
        self._written: dict[int, tuple[Any, int]] = {}
        self._open: set[int] = set()

    def __call__(self, value: Any, walk: Callable[[Any], Any]) -> list[Any] | None:
        """Return the kind of a value and its description, or None for plain values."""
        if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
            return ["name", self._named(value)]
        found = _describe_small(value, walk)
        if found is not None or not hasattr(value, "__dict__") or _is_container(value):
            return found
        if id(value) in self._written:
            return ["same", self._written[id(value)][1]]
        if id(value) in self._open:
            raise TypeError(f"a file cannot hold a {type(value).__name__} that refers to itself")
        self._open.add(id(value))
        described = self._describe_object(value, walk)
        self._open.discard(id(value))
        self._written[id(value)] = (value, len(self._written))
        return described

    def _named(self, thing: Any) -> str:
        name = name_of(thing)
        if "<lambda>" in name:
            raise TypeError("a file cannot hold a lambda; write a function with a name instead")
        if _KNOWN.get(name) is not thing:
            other = self.unknown.setdefault(name, thing)
            if other is not thing or name in _KNOWN:
                raise TypeError(f"two different things are called {name}; give one another name")
        return name

    def _describe_object(self, value: Any, walk: Callable[[Any], Any]) -> list[Any]:
        if isinstance(value, nn.Parameter):
            return ["parameter", walk(value.data), value.requires_grad]
        if not _is_plain_object(value):
            raise TypeError(f"a file cannot hold a {name_of(type(value))}, got {shortened(value)}")
        name = self._named(type(value))
        return ["object", name, walk(_state_of(value))]


def _is_container(value: Any) -> bool:
    """Tell whether `pack` holds the value by its contents."""
    if isinstance(value, nn.Parameter):
        return False
    return isinstance(value, (Mapping, list, tuple, np.ndarray, np.generic, torch.Tensor))


def _describe_small(value: Any, walk: Callable[[Any], Any]) -> list[Any] | None:
    """Describe a value that is not changed by its users, so that copies do."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        return _describe_array(value, walk)
    if isinstance(value, np.random.RandomState):
        return ["random state", walk(value.get_state())]
    if isinstance(value, History):
        return ["history", [json.dumps(row, default=_number) for row in value]]
    if isinstance(value, partial):
        return ["partial", walk(value.func), walk(value.args), walk(value.keywords)]
    if isinstance(value, (set, frozenset)):
        return ["set", [walk(part) for part in value]]
    if isinstance(value, (torch.dtype, torch.device, PurePath)):
        kind = next(
            base for base in (torch.dtype, torch.device, PurePath) if isinstance(value, base)
        )
        return [kind.__name__, str(value)]
    return None


def _describe_array(value: np.ndarray, walk: Callable[[Any], Any]) -> list[Any]:
    shape = list(value.shape)
    if value.dtype == object:
        return ["array", "O", shape, [walk(part) for part in value.ravel().tolist()]]
    if value.dtype.kind not in "USMmc":
        raise TypeError(f"a file cannot hold an array of dtype {value.dtype}")
    raw = np.frombuffer(value.tobytes(), dtype=np.uint8)
    return ["array", value.dtype.str, shape, walk(raw)]


def _number(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return value.tolist()
    raise TypeError(f"a file cannot hold the {type(value).__name__} {value!r} of a history")


def _is_plain_object(value: Any) -> bool:
    """Tell whether an object is its attributes."""
    if isinstance(value, (nn.Module, Callback, BaseEstimator)):
        return True
    kind: Any = type(value)
    names = ("__reduce__", "__reduce_ex__", "__getstate__")
    return all(getattr(kind, name) is getattr(object, name) for name in names)


def _state_of(value: Any) -> Any:
    # Of the type: a FrozenEstimator passes on what its estimator has.
    if hasattr(type(value), "_get_portable_state"):
        return value._get_portable_state()
    if isinstance(value, nn.Module):
        return _module_state(value)
    if not isinstance(value, Callback):
        return dict(vars(value))
    # What ends so is set when training begins.
    state = {name: part for name, part in vars(value).items() if not name.endswith("_")}
    return {**state, **settings_of(value)}


def settings_of(callback: Callback) -> dict[str, Any]:
    """Return the parameters of a callback, as they were given."""
    settings = callback.get_params(deep=False)
    if isinstance(callback, ParamMapper):
        # These replace theirs when training begins.
        if isinstance(callback.at, partial) and callback.at.func == callback._epoch_at:
            settings["at"] = callback.at.keywords["epoch"]
        if callback.schedule == callback._default_schedule:
            settings["schedule"] = None
        if not isinstance(callback.patterns, (list, tuple)):
            settings["patterns"] = [callback.patterns]
    return settings


def _module_state(module: nn.Module) -> dict[str, Any]:
    general = vars(nn.Module()).keys() - _MODULE_PARTS
    state: Any = module.__getstate__()
    hooks = [name for name in general if name.endswith("hooks") and state.get(name)]
    if hooks:
        raise TypeError(
            f"a file cannot hold the {hooks[0].strip('_')} of a {type(module).__name__}, which are "
            "functions of this process"
        )
    return {name: part for name, part in state.items() if name not in general}


class Restorer:
    """Tell `imbmargin.checkpoint.unpack` how to make again what a `Describer` wrote.

    Parameters
    ----------
    trusted : iterable of classes and functions, default=()
        Those that may be named besides the known ones.
    """

    def __init__(self, trusted: Iterable[Any] = ()) -> None:
        self._trusted = {name_of(thing): thing for thing in trusted}
        self._made: list[Any] = []

    def find(self, name: str) -> Any:
        """Return the class or function of a name, or None if it is neither known nor trusted."""
        return _KNOWN.get(name, self._trusted.get(name))

    def unknown_names(self, skeleton: Any) -> list[str]:
        """Return the names in a description that are neither known nor trusted."""
        found: set[str] = set()
        remaining = [skeleton]
        while remaining:
            part = remaining.pop()
            if isinstance(part, dict):
                remaining.extend(part.values())
                other = part.get("other")
                if isinstance(other, list) and other[:1] in (["name"], ["object"]):
                    found.add(str(other[1]))
            elif isinstance(part, list):
                remaining.extend(part)
        return sorted(name for name in found if self.find(name) is None)

    def __call__(self, described: list[Any], walk: Callable[[Any], Any]) -> Any:
        """Return the value of a description."""
        kind, *parts = described
        if kind == "name":
            return self._find(parts[0])
        if kind == "same":
            return self._made[parts[0]]
        if kind == "parameter":
            made: Any = nn.Parameter(walk(parts[0]), requires_grad=bool(parts[1]))
        elif kind == "object":
            made = _make_object(self._find(parts[0]), walk(parts[1]))
        else:
            return _SMALL[kind](*(walk(part) for part in parts))
        self._made.append(made)
        return made

    def _find(self, name: str) -> Any:
        found = self.find(name)
        if found is None:
            raise ValueError(f"{name} is not known")
        return found


def _make_object(kind: Any, state: Any) -> Any:
    made = kind.__new__(kind)
    if hasattr(kind, "_set_portable_state"):
        made._set_portable_state(state)
    elif isinstance(made, nn.Module):
        nn.Module.__init__(made)
        made.__setstate__({**vars(made), **state})
    else:
        vars(made).update(state)
    return made


def _make_array(dtype: str, shape: list[int], content: Any) -> np.ndarray:
    if dtype == "O":
        made = np.empty(len(content), dtype=object)
        made[:] = content
        return made.reshape(shape)
    # Bytes are never taken for addresses of objects.
    if np.dtype(dtype).kind not in "USMmc":
        raise ValueError(f"an array of dtype {dtype}")
    return np.frombuffer(content.tobytes(), dtype=dtype).reshape(shape).copy()


def _make_random_state(state: Any) -> np.random.RandomState:
    if not 0 <= state[2] <= len(state[1]):
        # NumPy does not look.
        raise ValueError(f"a random state at position {state[2]}")
    made = np.random.RandomState()
    made.set_state(state)
    return made


def _make_partial(function: Any, args: Any, keywords: Any) -> Any:
    return partial(function, *args, **keywords)


def _make_dtype(name: str) -> torch.dtype:
    found = (value for value in vars(torch).values() if isinstance(value, torch.dtype))
    return next(value for value in found if str(value) == name)


_SMALL: dict[str, Callable[..., Any]] = {
    "array": _make_array,
    "random state": _make_random_state,
    "history": lambda rows: History(json.loads(row) for row in rows),
    "partial": _make_partial,
    "set": set,
    "dtype": _make_dtype,
    "device": torch.device,
    "PurePath": Path,
}
