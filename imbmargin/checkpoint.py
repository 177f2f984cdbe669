"""Checkpoints: the state of a run in one file, without anything that runs code when it is read."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

__all__ = ["CheckpointFolder", "is_plain", "pack", "seal", "unpack", "unseal", "write_file"]

_FORMAT = 1
_KEPT = 2
_AN_HOUR = 3600
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{8})"')

Describe = Callable[[Any, Callable[[Any], Any]], Any]


def pack(state: Any, describe: Describe | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a state into what JSON can hold and tensors.

    Parameters
    ----------
    state : dict, list, tuple, tensor, ndarray, number, str, bool or None
        Nested as deep as you like. Keys of dicts may be ints.
    describe : callable, default=None
        For further types: ``describe(value, walk)`` returns what `unpack` hands to its ``restore``,
        made for JSON with ``walk(part)``, or None for values that it leaves to this function.

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
        described = None if describe is None else describe(value, walk)
        if described is not None:
            return {"other": described}
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


def unpack(
    skeleton: Any,
    tensors: Mapping[str, torch.Tensor],
    restore: Callable[[Any, Callable[[Any], Any]], Any] | None = None,
) -> Any:
    """Put a state together again that `pack` has split.

    ``restore(described, walk)`` makes the further types.
    """

    def walk(part: Any) -> Any:
        return unpack(part, tensors, restore)

    if isinstance(skeleton, list):
        return [walk(part) for part in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    if "other" in skeleton and restore is not None:
        return restore(skeleton["other"], walk)
    if "tensor" in skeleton:
        tensor = tensors[skeleton["tensor"]]
        last = skeleton["channels_last"]
        return tensor.contiguous(memory_format=torch.channels_last) if last else tensor
    if "array" in skeleton:
        return tensors[skeleton["array"]].numpy()
    if "tuple" in skeleton:
        return tuple(walk(part) for part in skeleton["tuple"])
    return {walk(key): walk(part) for key, part in skeleton["dict"]}


def is_plain(value: Any) -> bool:
    """Tell whether `pack` can hold a value."""
    try:
        pack(value)
    except TypeError:
        return False
    return True


def seal(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file, with a checksum of all its bytes in its metadata.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Contiguous, on the CPU.
    metadata : dict of str to str
        What else the file says.

    Returns
    -------
    content : bytes

    Examples
    --------
    >>> import torch
    >>> from imbmargin.checkpoint import seal, unseal
    >>> content = seal({"a": torch.ones(2)}, {"format": "1"})
    >>> unseal(content)
    ({'a': tensor([1., 1.])}, {'format': '1'})
    """
    content = save(tensors, {**metadata, "checksum": "0" * 8})
    # Quotes within other metadata are escaped, so the first match is the field.
    written = f'"checksum":"{zlib.crc32(content):08x}"'.encode()
    return _CHECKSUM.sub(written, content, count=1)


def unseal(content: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file that `seal` made.

    Raises
    ------
    ValueError
        If it is no such file, or not as it was written.
    """
    size = int.from_bytes(content[:8], "little")
    found = _CHECKSUM.search(content, 8, min(8 + size, len(content)))
    if found is None:
        raise ValueError("it has no checksum")
    view = memoryview(content)
    actual = zlib.crc32(
        view[found.end(1) :], zlib.crc32(b"0" * 8, zlib.crc32(view[: found.start(1)]))
    )
    if f"{actual:08x}".encode() != found[1]:
        raise ValueError("its checksum differs")
    try:
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        tensors = load(content)
    except (SafetensorError, RecursionError) as error:
        raise ValueError(str(error)) from error
    metadata.pop("checksum", None)
    return tensors, metadata


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it: what was there stays whole until it is done.

    Raises
    ------
    OSError
        If it cannot be written; nothing of it is left.
    """
    # Another process may write the same file.
    beside = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise


class CheckpointFolder:
    """The checkpoints of one run: the two newest are kept.

    A run that is killed leaves no half of a file, and damage is seen by a checksum.

    Parameters
    ----------
    folder : str or Path
        Where they lie; made with the first checkpoint, or by `prepare`.

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
        self._seen: tuple[int, str] | None = None

    def __str__(self) -> str:
        return str(self.folder)

    def prepare(self) -> None:
        """Make the folder, so that a long run does not find out at its end that there is none.

        Raises
        ------
        ValueError
            If it cannot be made, or not be written into.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError("it may not be written into")
        except OSError as error:
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} cannot hold checkpoints: {error}; pass "
                "another folder, or None"
            ) from error

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
        content = seal(tensors, {"format": str(_FORMAT), "state": json.dumps(skeleton)})
        path = self.folder / f"epoch-{epoch:06d}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, content)
        except OSError as error:
            warnings.warn(
                f"the checkpoint of epoch {epoch} could not be written into {self.folder}: "
                f"{error}; training goes on, and the last good checkpoint is kept. Free some "
                "space there",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._seen = self._newest()
        self._remove_old(path)

    def _remove_old(self, newest: Path) -> None:
        others = [path for path in self._files() if path != newest]
        for path in (*others[_KEPT - 1 :], *self._left_behind()):
            # What cannot be removed does no harm.
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _left_behind(self) -> list[Path]:
        """Return what processes that were killed have not finished; a new one may be at work."""
        found = []
        for path in self.folder.glob("epoch-*.part"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _AN_HOUR:
                    found.append(path)
        return found

    def _files(self) -> list[Path]:
        """Return the checkpoints, the newest first."""
        return [self.folder / name for _, name in self._stamps()]

    def _stamps(self) -> list[tuple[int, str]]:
        """Return times and names of the checkpoints, the newest first: by time, then by epoch."""
        found = []
        for path in self.folder.glob("epoch-*.safetensors"):
            # Another process that uses the folder may have removed it.
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.name))
        return sorted(found, reverse=True)

    def _newest(self) -> tuple[int, str] | None:
        return next(iter(self._stamps()), None)

    def is_changed(self) -> bool:
        """Tell whether the newest checkpoint is not the one that was last read or written here."""
        return self._newest() not in (None, self._seen)

    def epochs(self) -> int:
        """Return the completed epochs of the newest checkpoint, by its name, or 0."""
        names = [path.stem for path in self.folder.glob("epoch-*.safetensors")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def read(self) -> Any:
        """Return the newest state that is whole, or None if there is none.

        A damaged file is passed over with a warning.
        """
        self._seen = self._newest()
        for path in self._files():
            try:
                return _read(path)
            except (OSError, ValueError) as error:
                warnings.warn(
                    f"checkpoint {path} is damaged ({error}); going on from the one before it, or "
                    "from the start if there is none",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return None


def _read(path: Path) -> Any:
    tensors, metadata = unseal(path.read_bytes())
    if metadata.get("format") != str(_FORMAT):
        raise ValueError(f"its format is {metadata.get('format')}, not {_FORMAT}")
    return unpack(json.loads(metadata["state"]), tensors)
