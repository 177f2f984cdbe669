"""What a run is and where it stands: its description, its state, and requests to stop it."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from skorch.callbacks import EpochTimer, PrintLog, ProgressBar
from skorch.history import History
from skorch.utils import to_device
from torch import nn

from imbmargin.checkpoint import is_plain
from imbmargin.data.batches import ArrayDataset, targets_of
from imbmargin.description import checksum, describe_value, digest
from imbmargin.randomness import get_random_states, set_random_states

__all__ = [
    "StopRequest",
    "collect_parts",
    "collect_state",
    "describe_run",
    "differences",
    "name_run",
    "restore_parts",
    "restore_state",
]

# They may change between the two halves of a run without changing its result.
_FREE = {"checkpoint_dir", "device", "verbose", "random_state", "callbacks", "torch_load_kwargs"}
_SHOWS = ("callbacks__epoch_timer", "callbacks__print_log")
_ROWS_AT_ONCE = 256


def describe_run(net: Any, dataset: Any, fit_params: Any = None) -> dict[str, dict[str, Any]]:
    """Describe the configuration and the data of a run, so that another one can be told from it.

    Parameters
    ----------
    net : MaxMarginClassifier
        The estimator.
    dataset : Dataset
        Its whole data, before the validation part is taken off. Arrays are read once as a whole;
        of other datasets only the targets are looked at.
    fit_params : dict, default=None
        What fit passes on to the module.

    Returns
    -------
    description : dict of dict
        "configuration" and "data", plain values.
    """
    parameters = {
        name: describe_value(value)
        for name, value in net.get_params(deep=False).items()
        if name not in _FREE and not name.startswith(_SHOWS)
    }
    parameters["estimator"] = describe_value(type(net))
    callbacks = net.callbacks or []
    if callbacks == "disable":
        parameters["callbacks"] = callbacks
    else:
        parameters["callbacks"] = [describe_value(cb) for cb in callbacks if not _only_shows(cb)]
    state = net.random_state
    if isinstance(state, np.random.RandomState):
        state = list(state.get_state())
    parameters["random_state"] = describe_value(state)
    if fit_params:
        parameters["fit parameters"] = describe_value(dict(sorted(fit_params.items())))
    source = net.init_backbone
    if source is not None:
        # Of one that is fitted the weights are what counts, as in `parts.load_backbone`.
        source = getattr(source, "backbone_", getattr(source, "module_", source))
        parameters["init_backbone"] = describe_value(source)
    targets = targets_of(dataset)
    data = {
        "rows": len(targets),
        "classes": describe_value(net.classes_.tolist()),
        "targets": checksum(targets),
    }
    if isinstance(dataset, ArrayDataset):
        data |= _describe_inputs(dataset)
        if dataset.sample_weight is not None:
            data["sample_weight"] = checksum(dataset.sample_weight.numpy())
    return {"configuration": parameters, "data": data}


def _describe_inputs(dataset: ArrayDataset) -> dict[str, Any]:
    # All rows: those that an imputer or a selection fills in another way may be few.
    starts = range(0, len(dataset), _ROWS_AT_ONCE)
    parts = (dataset.fetch(slice(start, start + _ROWS_AT_ONCE))[0] for start in starts)
    found = [checksum(part) for part in parts]
    shape = list(dataset.fetch(slice(0, 1))[0].shape[1:])
    return {"sample shape": shape, "inputs": digest(found)}


def _only_shows(callback: Any) -> bool:
    """Tell whether a callback is known to change nothing: it may come and go between sessions."""
    if isinstance(callback, tuple):
        callback = callback[1]
    return isinstance(callback, (EpochTimer, PrintLog, ProgressBar)) or getattr(
        callback, "only_shows", False
    )


def name_run(checkpoint_dir: Any, run: dict[str, dict[str, Any]]) -> str:
    """Return the folder of a run: ``{run}`` in the path becomes a name for its description.

    Parameters
    ----------
    checkpoint_dir : str or Path
        The parameter of the estimator.
    run : dict of dict
        From `describe_run`.

    Examples
    --------
    >>> from imbmargin.resume import name_run
    >>> name_run("runs/{run}", {"configuration": {"beta": 1.5}, "data": {"rows": 100}})
    'runs/f10cca7eefb4'
    >>> name_run("runs/ldam", {"configuration": {}, "data": {}})
    'runs/ldam'
    """
    return str(checkpoint_dir).replace("{run}", digest(run))


def differences(old: Any, new: Any) -> list[str]:
    """Say in words where two descriptions of runs differ."""
    found = []
    for part, words in (("configuration", "{} was {!r}, now {!r}"), ("data", "{} {!r}, now {!r}")):
        for key in sorted({*old[part], *new[part]}):
            values = old[part].get(key), new[part].get(key)
            if values[0] != values[1]:
                label = key if part == "configuration" else f"data: {key} were"
                found.append(words.format(label, *values))
    return found


def collect_state(net: Any, texts: list[str]) -> dict[str, Any]:
    """Collect all that the next epoch depends on.

    Parameters
    ----------
    net : MaxMarginClassifier
        An estimator at the end of an epoch.
    texts : list of str
        JSON of the rows of its history that have been written already; the new ones are added, so
        that each is written once.

    Returns
    -------
    state : dict
        Plain values and tensors.
    """
    texts += [json.dumps(row, default=_plain) for row in list(net.history)[len(texts) :]]
    return {
        **collect_parts(net),
        "history": texts,
        "random": get_random_states(net.device),
    }


def collect_parts(net: Any) -> dict[str, Any]:
    """Collect the states of an estimator's parts and callbacks, without history."""
    state = {
        "parts": {name: getattr(net, f"{name}_").state_dict() for name in _part_names(net)},
        "callbacks": {name: _callback_state(callback) for name, callback in net.callbacks_},
        "frozen": [name for name, weights in _weights(net) if not weights.requires_grad],
    }
    if net.grad_scaler_ is not None:
        state["grad_scaler"] = net.grad_scaler_.state_dict()
    return state


def restore_state(net: Any, state: dict[str, Any]) -> None:
    """Put an initialized estimator into a state, so that its next epoch is the one that followed.

    Parameters
    ----------
    net : MaxMarginClassifier
        An estimator whose training has been set up.
    state : dict
        From `collect_state`.
    """
    restore_parts(net, state)
    net.history_ = History(json.loads(text) for text in state["history"])
    set_random_states(state["random"], net.device)


def restore_parts(net: Any, state: dict[str, Any]) -> None:
    """Put an estimator's parts and callbacks into the states from `collect_parts`."""
    for name in _part_names(net):
        # A model that was saved after set_params(ema_decay=...) and before fit has no average yet.
        if name != "average" or name in state["parts"]:
            part = getattr(net, f"{name}_")
            part.load_state_dict(state["parts"][name])
            if isinstance(part, nn.Module):
                # Buffers that a loss has not made yet come from the file, in the host's memory.
                to_device(part, net.device)
    # A callback such as Freezer acts in one epoch only, and no state_dict holds what it did.
    for name, weights in _weights(net):
        weights.requires_grad_(name not in state["frozen"])
    for name, callback in net.callbacks_:
        for key, value in state["callbacks"].get(name, {}).items():
            if not (isinstance(value, dict) and value.keys() == {"state_dict"}):
                setattr(callback, key, value)
            elif getattr(callback, key, None) is not None:
                # Else it is made when training begins.
                getattr(callback, key).load_state_dict(value["state_dict"])
    if net.grad_scaler_ is not None and "grad_scaler" in state:
        net.grad_scaler_.load_state_dict(state["grad_scaler"])


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return value.tolist()
    raise TypeError(
        f"a checkpoint cannot hold the {type(value).__name__} {value!r} that a callback recorded "
        "in the history; record numbers or text"
    )


def _part_names(net: Any) -> list[str]:
    parts = [*net._modules, *net._criteria, *net._optimizers]
    return [name for name in parts if hasattr(getattr(net, f"{name}_"), "state_dict")]


def _weights(net: Any) -> Iterator[tuple[str, nn.Parameter]]:
    for name in (*net._modules, *net._criteria):
        part = getattr(net, f"{name}_")
        if isinstance(part, nn.Module):
            yield from part.named_parameters(prefix=name)


def _callback_state(callback: Any) -> dict[str, Any]:
    """Return the plain attributes that end in an underscore, as skorch names what changes."""
    state = {}
    for key, value in vars(callback).items():
        if not key.endswith("_"):
            continue
        if hasattr(value, "state_dict") and not isinstance(value, type):
            value = {"state_dict": value.state_dict()}
        if is_plain(value):
            state[key] = value
    return state


class StopRequest:
    """Take note of Ctrl-C and SIGTERM inside the block, instead of breaking off a batch.

    A second signal acts at once. Outside the main thread signals cannot be caught, and nothing
    changes.

    Attributes
    ----------
    signal_number : int or None
        The signal that has come.

    Examples
    --------
    >>> import signal
    >>> from imbmargin.resume import StopRequest
    >>> with StopRequest() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     stop.signal_number == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def deliver(self) -> None:
        """Do what the signal would have done, now that the work is in order."""
        self._restore()
        number = self.signal_number
        if number == signal.SIGTERM and signal.getsignal(number) is signal.SIG_DFL:
            # Unlike the default action, this lets `finally` blocks and exit handlers run.
            raise SystemExit(128 + number)
        if number is not None:
            signal.raise_signal(number)
