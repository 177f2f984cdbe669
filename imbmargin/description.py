"""Parameters as text and numbers that are the same in every process, to tell runs apart."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from copyreg import __newobj__, dispatch_table  # type: ignore[attr-defined]
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import nn

from imbmargin.portable import name_of, settings_of

__all__ = ["checksum", "describe_value", "digest"]

# Their state is where they stand, which is no setting.
_RANDOM = (np.random.RandomState, np.random.Generator, np.random.BitGenerator, torch.Generator)
# Hooks, and what is looked at by itself.
_GENERAL = vars(nn.Module()).keys()
_LONGEST = 400


def describe_value(value: Any) -> Any:
    """Describe a parameter so that another value of it can be told from it.

    Parameters
    ----------
    value : object
        Anything. Objects are described by their class and what pickle would keep of them, as deep
        as that goes; arrays and weights by a checksum; functions by their name and what is bound
        to them. Of random generators, and of what pickle refuses, only the class is looked at.

    Returns
    -------
    description : object
        Plain values for JSON, the same in every process; a checksum where they would be long.

    Examples
    --------
    >>> from functools import partial
    >>> from imbmargin.data.split import StratifiedSplit
    >>> from imbmargin.description import describe_value
    >>> describe_value(StratifiedSplit(0.2))
    {'imbmargin.data.split.StratifiedSplit': {'fraction': 0.2}}
    >>> describe_value(partial(round, ndigits=1))
    {'functools.partial': ['builtins.round', [], {'ndigits': 1}]}
    """
    described = _Walk()(value)
    text = _text(described)
    if len(text) <= _LONGEST:
        return described
    return f"{type(value).__name__} {digest(described)}"


def checksum(array: Any) -> str:
    """Return a checksum of an array or tensor, with its type and shape."""
    if isinstance(array, torch.Tensor):
        tensor = array.detach().cpu().contiguous()
        kind, raw = str(tensor.dtype), tensor.flatten().view(torch.uint8).numpy().tobytes()
    elif array.dtype.hasobject:
        # The bytes of such an array are addresses.
        kind, raw = "object", _text(_Walk()(array.tolist())).encode()
    else:
        kind, raw = array.dtype.str, np.ascontiguousarray(array).tobytes()
    return _digest(f"{kind} {tuple(array.shape)} ".encode() + raw)


def digest(description: Any) -> str:
    """Return twelve letters and digits that stand for a description from `describe_value`."""
    return _digest(_text(description).encode())


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:12]


def _text(described: Any) -> str:
    return json.dumps(described, sort_keys=True)


class _Walk:
    """One walk through a value, which meets each object once, so that cycles end."""

    def __init__(self) -> None:
        # Objects with their numbers; they are kept so that no id comes twice.
        self._met: dict[int, tuple[Any, int]] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
            value = value.item()
        if value is None or type(value) in (bool, int, float, str):
            # NaN differs from itself.
            return str(value) if isinstance(value, float) and math.isnan(value) else value
        if isinstance(value, np.memmap):
            # Not read as a whole.
            return [str(value.filename), value.offset, value.dtype.str, list(value.shape)]
        if isinstance(value, (np.ndarray, torch.Tensor)):
            return f"array {checksum(value)}"
        if isinstance(value, (bytes, bytearray)):
            return f"bytes {_digest(bytes(value))}"
        if isinstance(value, Mapping):
            return {str(key): self(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [self(part) for part in value]
        if isinstance(value, (set, frozenset)):
            return sorted((self(part) for part in value), key=_text)
        if isinstance(value, (type, BuiltinFunctionType)):
            return name_of(value)
        if id(value) in self._met:
            return f"object {self._met[id(value)][1]}"
        self._met[id(value)] = (value, len(self._met))
        return self._inside(value)

    def _inside(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return {name_of(value): self(value.__self__)}
        if isinstance(value, ModuleType):
            return value.__name__
        if isinstance(value, CodeType):
            return self([value.co_code, value.co_names, value.co_consts])
        if isinstance(value, partial):
            return {"functools.partial": self([value.func, value.args, value.keywords])}
        if isinstance(value, nn.Module):
            return self._module(getattr(value, "_orig_mod", value))
        if isinstance(value, Callback):
            return {name_of(type(value)): self(settings_of(value))}
        if isinstance(value, BaseEstimator):
            return {name_of(type(value)): self(value.get_params(deep=False))}
        return self._object(value)

    def _function(self, function: FunctionType) -> Any:
        name = name_of(function)
        closure = [_contents(cell) for cell in function.__closure__ or ()]
        bound: list[Any] = [function.__defaults__, function.__kwdefaults__, closure]
        if name.endswith("<lambda>"):
            # All have this name.
            bound.append(function.__code__)
        return {name: self(bound)} if any(bound) else name

    def _module(self, module: nn.Module) -> str:
        found = []
        for name, part in module.named_modules():
            settings = {key: held for key, held in vars(part).items() if key not in _GENERAL}
            found.append([name, name_of(type(part)), self(settings)])
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not nn.parameter.is_lazy(tensor):
                found.append([name, checksum(tensor)])
        return f"{type(module).__name__} {digest(found)}"

    def _object(self, value: Any) -> Any:
        name = name_of(type(value))
        if isinstance(value, _RANDOM):
            return name
        reduce = dispatch_table.get(type(value))
        try:
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        except Exception:
            # Whatever its class raises where it cannot be pickled.
            return name
        if isinstance(reduced, str):
            return f"{name} {reduced}"
        make, arguments, *rest = reduced
        if make is __newobj__ and len(arguments) == 1 and not any(rest[1:]):
            # Most objects: a class, and its attributes if it has any.
            return {name: self(rest[0])} if any(rest) else name
        # After the state come iterators over items.
        items = [None if part is None else list(part) for part in rest[1:3]]
        return {name: self([make, arguments, *rest[:1], *items])}


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        # It is not filled yet.
        return None
