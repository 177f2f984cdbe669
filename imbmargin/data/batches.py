"""Whole-batch iteration over data held in memory (or memory-mapped)."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from skorch.dataset import Dataset as SkorchDataset
from torch.utils.data import Dataset, Subset

from imbmargin.data.transfer import send

__all__ = ["ArrayBatches", "ArrayDataset", "rows_of_a_batch", "targets_of"]

Batch = tuple[Any, Any]


# Rows are gathered for several batches at once up to this size; it fits into a processor's cache.
_BLOCK_BYTES = 2**18

# What torch can index as NumPy stores it.
_SHARED_DTYPES = {np.dtype(name) for name in ("?", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")}


class ArrayDataset(SkorchDataset):
    """Rows of arrays, fetched a batch at a time.

    Parameters
    ----------
    X : ndarray, memory map, tensor or CSR matrix, shape (n, ...)
        The inputs. They are never copied as a whole: sparse rows are made dense and float64 rows
        are converted to float32 only for the rows of a batch.
    y : array-like of int, shape (n,), optional
        Encoded targets 0..K-1.
    sample_weight : array-like of float, shape (n,), optional
        Weight of each row; a batch then is ``(x, (target, weight))``.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from imbmargin.data.batches import ArrayDataset
    >>> data = ArrayDataset(np.eye(3), [0, 1, 1])
    >>> x, target = data.fetch(torch.tensor([2, 0]))
    >>> x.dtype, target
    (torch.float32, tensor([1, 0]))
    """

    def __init__(self, X: Any, y: Any = None, sample_weight: Any = None) -> None:
        self.X = X
        # skorch marks a missing target with zeros, so that batches stay pairs.
        target = np.zeros(X.shape[0]) if y is None else np.asarray(y)
        self.targets = torch.as_tensor(target, dtype=torch.int64)
        # skorch's scoring callbacks look for X and y in a Dataset of skorch's.
        self.y = target
        self.sample_weight = (
            None
            if sample_weight is None
            # A copy: what pandas gives may not be written to, of which torch would warn.
            else torch.tensor(np.asarray(sample_weight), dtype=torch.float32)
        )
        self._shared = _share(X)

    def __getstate__(self) -> dict[str, Any]:
        # A view would be stored as a second copy of X.
        return {**self.__dict__, "_shared": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._shared = _share(self.X)

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def fetch(self, index: torch.Tensor | slice) -> Batch:
        """Return a copy of the given rows: an int64 tensor of row numbers, or a slice."""
        rows = (
            _fetch_with_numpy(self.X, index) if self._shared is None else _take(self._shared, index)
        )
        if rows.dtype == torch.float64:
            rows = rows.float()
        target = _take(self.targets, index)
        if self.sample_weight is None:
            return rows, target
        return rows, (target, _take(self.sample_weight, index))

    def resident_on(self, device: torch.device) -> ArrayDataset:
        """Return a copy whose rows lie on a CUDA device, or self if they do not fit there.

        Half of the device's free memory stays free for the training itself.
        """
        if self._shared is None or not _fits(self._shared, device):
            return self
        moved = copy(self)
        moved._shared = self._shared.to(device)
        moved.targets = self.targets.to(device)
        if self.sample_weight is not None:
            moved.sample_weight = self.sample_weight.to(device)
        return moved

    @property
    def row_bytes(self) -> int:
        """What a row takes in a batch; that of objects or of sparse rows as float32."""
        return max(prod(self.X.shape[1:]) * 4, 1)

    @property
    def device(self) -> torch.device:
        """Where batches come from."""
        return self.targets.device

    def __getitem__(self, index: int) -> Batch:
        x, y = self.fetch(torch.tensor([index]))
        return x[0], (y[0] if isinstance(y, torch.Tensor) else (y[0][0], y[1][0]))


def _take(data: torch.Tensor, index: torch.Tensor | slice) -> torch.Tensor:
    # Not a view: a module that changes its input would write into the caller's data.
    return data[index].clone() if isinstance(index, slice) else data.index_select(0, index)


def _share(X: Any) -> torch.Tensor | None:
    """Return a tensor over the memory of X, or None where torch cannot have one."""
    if isinstance(X, torch.Tensor):
        return X
    if not isinstance(X, np.ndarray) or X.dtype not in _SHARED_DTYPES:
        return None
    if min(X.strides, default=0) < 0:
        return None
    with warnings.catch_warnings():
        # A read-only array (a memory map, or one that joblib shares) is only read here.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(X)


def _fetch_with_numpy(X: Any, index: torch.Tensor | slice) -> torch.Tensor:
    rows = X[index if isinstance(index, slice) else index.numpy()]
    if sp.issparse(rows):
        rows = rows.toarray()
    if rows.dtype not in _SHARED_DTYPES:
        rows = rows.astype(np.float32)
    return torch.from_numpy(np.array(rows))


def _fits(tensor: torch.Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * tensor.numel() * tensor.element_size() <= free


class ArrayBatches:
    """Iterate over an `ArrayDataset`, indexing one whole batch at a time.

    A DataLoader fetches rows one by one and stacks them; on tables that costs several times the
    training step itself.

    Parameters
    ----------
    dataset : ArrayDataset, or a Subset of one
        The rows.
    batch_size : int, default=128
        Rows of a batch. The last batch holds the rest; in training a rest of one row joins the
        batch before it, since batch normalisation is not defined on a single row.
    sampler : ClassSampler, optional
        Draws the rows of a training epoch. Without it they come in order.
    device : str or torch.device, default="cpu"
        Where the batches are needed; None is the CPU too. On a CUDA device training data lie as a
        whole, if they fit; other batches are copied from pinned memory while the device computes.

    Raises
    ------
    ValueError
        If ``batch_size`` is below 1.
    TypeError
        If the dataset holds no arrays.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin.data.batches import ArrayBatches, ArrayDataset
    >>> data = ArrayDataset(np.arange(10.0)[:, None], np.zeros(10))
    >>> [len(x) for x, _ in ArrayBatches(data, batch_size=4)]
    [4, 4, 2]
    """

    def __init__(
        self, dataset: Dataset, batch_size: int = 128, sampler: Any = None, device: Any = "cpu"
    ) -> None:
        if batch_size < 1:
            raise ValueError(
                f"batch_size must be at least 1, got {batch_size}; pass len(dataset) for all rows"
            )
        self.dataset, self.rows = as_arrays(dataset)
        self.batch_size = batch_size
        self.sampler = sampler
        self.device = torch.device(device or "cpu")
        if sampler is not None:
            # Only what is read again in every epoch is worth moving as a whole.
            self.dataset = self.dataset.resident_on(self.device)

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def _bounds(self) -> list[int]:
        n = len(self.dataset) if self.rows is None else len(self.rows)
        return batch_bounds(n, self.batch_size, least=1 if self.sampler is None else 2)

    def __iter__(self) -> Iterator[Batch]:
        if self.sampler is not None and self.sampler.by_batch:
            for start, stop in pairwise(self._bounds()):
                yield self.fetch(self.sampler.draw(stop - start))
            return
        order = self.rows if self.sampler is None else self._located(self.sampler.draw())
        for bounds in self._blocks():
            part = slice(bounds[0], bounds[-1])
            block = self._move(self.dataset.fetch(part if order is None else order[part]))
            sizes = [stop - start for start, stop in pairwise(bounds)]
            yield from zip(*(_split(of_rows, sizes) for of_rows in block), strict=True)

    def _blocks(self) -> Iterator[list[int]]:
        """Yield the bounds of batches that are fetched together."""
        bounds, most = self._bounds(), max(_BLOCK_BYTES // self.dataset.row_bytes, self.batch_size)
        first = 0
        while first < len(bounds) - 1:
            last = max(bisect_right(bounds, bounds[first] + most) - 1, first + 1)
            yield bounds[first : last + 1]
            first = last

    def fetch(self, rows: torch.Tensor) -> Batch:
        """Return the batch of the given rows: an int64 tensor of numbers within the dataset."""
        return self._move(self.dataset.fetch(self._located(rows)))

    def _located(self, rows: torch.Tensor) -> torch.Tensor:
        rows = rows if self.rows is None else self.rows[rows]
        return send(rows, self.dataset.device)

    def _move(self, batch: Any) -> Any:
        if self.device.type != "cuda" or self.dataset.device.type == "cuda":
            return batch
        if isinstance(batch, tuple):
            return tuple(self._move(part) for part in batch)
        return send(batch, self.device)


def _split(of_rows: Any, sizes: list[int]) -> Iterable[Any]:
    """Return the parts of what belongs to rows: a tensor, or targets and weights."""
    if isinstance(of_rows, torch.Tensor):
        return of_rows.split(sizes)
    return zip(*(part.split(sizes) for part in of_rows), strict=True)


def batch_bounds(rows: int, batch_size: int, least: int) -> list[int]:
    """Return where batches begin, and the end; a rest of fewer rows joins the batch before it."""
    bounds = [*range(0, rows, batch_size), rows]
    if len(bounds) > 2 and bounds[-1] - bounds[-2] < least:
        del bounds[-2]
    return bounds


def as_arrays(dataset: Dataset) -> tuple[ArrayDataset, torch.Tensor | None]:
    """Unwrap (nested) Subsets of an ArrayDataset into the dataset and its row numbers."""
    rows: torch.Tensor | None = None
    while isinstance(dataset, Subset):
        indices = torch.as_tensor(np.asarray(dataset.indices), dtype=torch.int64)
        rows = indices if rows is None else indices[rows]
        dataset = dataset.dataset
    if not isinstance(dataset, ArrayDataset):
        raise TypeError(f"dataset must be an ArrayDataset or a Subset of one, got {dataset!r}")
    return dataset, rows


def is_array_dataset(dataset: Any) -> bool:
    """Tell whether the dataset is an `ArrayDataset` or a (nested) Subset of one."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return isinstance(dataset, ArrayDataset)


def rows_of_a_batch(net: Any, rows: int) -> int:
    """Return the rows of a full training batch of a skorch net.

    Parameters
    ----------
    net : skorch net
        Its ``iterator_train__batch_size`` comes before its ``batch_size``; -1 is all rows.
    rows : int
        Rows of the training part.

    Returns
    -------
    size : int
        At most ``rows``.

    Examples
    --------
    >>> from imbmargin import MaxMarginClassifier
    >>> from imbmargin.data.batches import rows_of_a_batch
    >>> rows_of_a_batch(MaxMarginClassifier(batch_size=32), 100)
    32
    >>> rows_of_a_batch(MaxMarginClassifier(batch_size=-1), 100)
    100
    """
    size: int = net.get_params_for("iterator_train").get("batch_size", net.batch_size)
    return rows if size == -1 else min(size, rows)


def targets_of(dataset: Any) -> np.ndarray:
    """Return the integer targets of a dataset without fetching its inputs where it can be helped.

    Looks for ``targets`` (torchvision), ``labels``, ``y`` (skorch) and a TensorDataset's last
    tensor, through Subsets; otherwise walks over the rows.

    Parameters
    ----------
    dataset : torch Dataset
        A dataset of ``(input, target)`` pairs, or a (nested) Subset of one.

    Returns
    -------
    targets : ndarray of shape (n,)
        The targets, as they are.

    Raises
    ------
    TypeError
        If the dataset has no length, or its rows are not pairs.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import Subset, TensorDataset
    >>> from imbmargin.data.batches import targets_of
    >>> data = TensorDataset(torch.zeros(4, 2), torch.tensor([3, 1, 2, 0]))
    >>> targets_of(Subset(data, [0, 2]))
    array([3, 2])
    """
    if isinstance(dataset, Subset) and not hasattr(dataset, "targets"):
        return targets_of(dataset.dataset)[np.asarray(dataset.indices)]
    candidates: Sequence[Any] = [getattr(dataset, k, None) for k in ("targets", "labels", "y")]
    tensors = getattr(dataset, "tensors", None)
    if isinstance(tensors, tuple) and len(tensors) > 1:
        candidates = [*candidates, tensors[-1]]
    for found in candidates:
        # An attribute of this name may hold something else, such as the names of the classes.
        if hasattr(found, "__len__") and len(found) == len(dataset):
            stored = np.asarray(found.cpu() if isinstance(found, torch.Tensor) else found)
            return _transformed(dataset, stored)
    try:
        rows = (dataset[i] for i in range(len(dataset)))
        return np.array([int(target) for _, target in map(_as_pair, rows)])
    except (TypeError, IndexError, ValueError) as error:
        raise TypeError(
            "X must be a torch Dataset with a length whose rows are (input, target) pairs, got "
            f"{type(dataset).__name__}; give it an attribute `targets` with all labels"
        ) from error


def _transformed(dataset: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """Return the targets of the rows; torchvision's datasets store them before a transform."""
    transform = getattr(dataset, "target_transform", None)
    if not callable(transform):
        return stored
    found = np.array([int(transform(target)) for target in stored.tolist()])
    changed = np.flatnonzero(found != stored)
    if not len(changed):
        return stored
    # A row tells whether a dataset of the user's own stores them transformed.
    row = int(changed[0])
    return found if int(_as_pair(dataset[row])[1]) == found[row] else stored


def _as_pair(row: Any) -> Batch:
    if not isinstance(row, (tuple, list)) or len(row) != 2:
        raise TypeError(f"not an (input, target) pair: {type(row).__name__}")
    return row[0], row[1]
