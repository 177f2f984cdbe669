"""Checkpoints: the state of a run in one file, without anything that runs code when it is read."""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

__all__ = ["CheckpointFolder", "is_plain", "pack", "unpack"]

_FORMAT = 1
_KEPT = 2


def pack(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a state into what JSON can hold and tensors.

    Parameters
    ----------
    state : dict, list, tuple, tensor, ndarray, number, str, bool or None
        Nested as deep as you like. Keys of dicts may be ints.

    Returns
    -------
    skeleton : object
        For JSON, with marks where tensors and tuples stood.
    tensors : dict of str to Tensor
        The tensors, contiguous and on the CPU.

    Raises
    ------
    TypeError
        If the state holds anything else.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.checkpoint import pack, unpack
    >>> skeleton, tensors = pack({"step": 3, "weights": (torch.ones(2), 0.5)})
    >>> unpack(skeleton, tensors)
    {'step': 3, 'weights': (tensor([1., 1.]), 0.5)}
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return _pack_tensor(value, tensors)
        if isinstance(value, Mapping):
            return {"dict": [[walk(key), walk(part)] for key, part in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [walk(part) for part in value]}
        if isinstance(value, list):
            return [walk(part) for part in value]
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}, got {value!r}")

    return walk(state), tensors


def _pack_tensor(value: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    name = f"t{len(tensors)}"
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise TypeError(f"a checkpoint cannot hold an array of dtype {value.dtype}")
        tensors[name] = torch.from_numpy(value.copy())
        return {"array": name}
    tensor = value.detach().cpu()
    # Fused optimizer steps need the state in the memory format of the weights.
    last = tensor.ndim == 4 and not tensor.is_contiguous()
    last = last and tensor.is_contiguous(memory_format=torch.channels_last)
    tensors[name] = tensor.contiguous().clone()
    return {"tensor": name, "channels_last": last}


def unpack(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put a state together again that `pack` has split."""
    if isinstance(skeleton, list):
        return [unpack(part, tensors) for part in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "tensor" in skeleton:
        tensor = tensors[skeleton["tensor"]]
        last = skeleton["channels_last"]
        return tensor.contiguous(memory_format=torch.channels_last) if last else tensor
    if "array" in skeleton:
        return tensors[skeleton["array"]].numpy()
    if "tuple" in skeleton:
        return tuple(unpack(part, tensors) for part in skeleton["tuple"])
    return {unpack(key, tensors): unpack(part, tensors) for key, part in skeleton["dict"]}


def is_plain(value: Any) -> bool:
    """Tell whether `pack` can hold a value."""
    try:
        pack(value)
    except TypeError:
        return False
    return True


class CheckpointFolder:
    """The checkpoints of one run: the two newest are kept.

    A file is written beside its place and renamed, so a run that is killed leaves no half of one;
    its name holds a checksum, so damage is seen.

    Parameters
    ----------
    folder : str or Path
        Where they lie; made with the first checkpoint.

    Examples
    --------
    >>> import tempfile
    >>> from imbmargin.checkpoint import CheckpointFolder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = CheckpointFolder(folder)
    ...     checkpoints.write(7, {"loss": 0.5})
    ...     checkpoints.read()
    {'loss': 0.5}
    """

    def __init__(self, folder: Any) -> None:
        self.folder = Path(folder)

    def write(self, epoch: int, state: Any) -> None:
        """Write the state after an epoch; where that fails, warn and leave the last good one.

        Parameters
        ----------
        epoch : int
            Completed epochs.
        state : object
            See `pack`.
        """
        skeleton, tensors = pack(state)
        metadata = {"format": str(_FORMAT), "state": json.dumps(skeleton)}
        content = save(tensors, metadata)
        name = f"epoch-{epoch:06d}-{zlib.crc32(content):08x}.safetensors"
        beside = self.folder / f"{name}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.folder / name)
        except OSError as error:
            beside.unlink(missing_ok=True)
            warnings.warn(
                f"the checkpoint of epoch {epoch} could not be written into {self.folder}: "
                f"{error}; training goes on, and the last good checkpoint is kept. Free some "
                "space there",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._remove_old(self.folder / name)

    def _remove_old(self, newest: Path) -> None:
        others = [path for path in self._files() if path != newest]
        for path in others[_KEPT - 1 :]:
            path.unlink(missing_ok=True)
        for path in self.folder.glob("epoch-*.part"):
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Return the checkpoints, the newest first: by time, then by epoch."""
        found = self.folder.glob("epoch-*.safetensors")
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def epochs(self) -> int:
        """Return the completed epochs of the newest checkpoint, by its name, or 0."""
        names = [path.name for path in self.folder.glob("epoch-*.safetensors")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def read(self) -> Any:
        """Return the newest state that is whole, or None if there is none.

        A damaged file is passed over with a warning.
        """
        for path in self._files():
            try:
                return _read(path)
            except (OSError, ValueError, SafetensorError) as error:
                warnings.warn(
                    f"checkpoint {path} is damaged ({error}); going on from the one before it, or "
                    "from the start if there is none",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return None


def _read(path: Path) -> Any:
    written = path.stem.rpartition("-")[2]
    if f"{zlib.crc32(path.read_bytes()):08x}" != written:
        raise ValueError("its checksum differs")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != str(_FORMAT):
            raise ValueError(f"its format is {metadata.get('format')}, not {_FORMAT}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return unpack(json.loads(metadata["state"]), tensors)
