"""Index samplers whose class rates can change in place between epochs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imbmargin.data.batches import ArrayBatches, batch_bounds, targets_of

__all__ = ["BatchParts", "ClassSampledLoader", "ClassSampler", "batches_at_rates"]

# What another loader over the same dataset takes over.
_LOADER_ARGUMENTS = (
    *("num_workers", "collate_fn", "pin_memory", "drop_last", "timeout", "worker_init_fn"),
    *("multiprocessing_context", "generator", "prefetch_factor"),
)


class ClassSampler(Sampler[int]):
    """Draw the rows of one epoch, uniformly or at given class rates.

    Without rates every epoch is a permutation of all rows. With rates an epoch has as many draws
    as there are rows; each draw picks a class at its rate, then one of its rows, with replacement.
    The rates can be switched between epochs (deferred re-sampling) without building the sampler
    or the loader around it again.

    Parameters
    ----------
    targets : array-like of int, shape (n,)
        Encoded label (0..K-1) of each row of the training part.
    num_classes : int, optional
        Number of classes K; by default the largest target + 1.
    generator : torch.Generator, optional
        Source of randomness, on the CPU; by default torch's global one.

    Attributes
    ----------
    class_counts : ndarray of int64, shape (K,)
        Rows of each class.
    rates : tensor of float64, shape (K,), or None
        Probability that a draw is of class c; None while rows are permuted.
    by_batch : bool
        Whether the rows of a batch are drawn when it is their turn, see `set_rates`.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.samplers import ClassSampler
    >>> sampler = ClassSampler([0] * 90 + [1] * 10, generator=torch.Generator().manual_seed(0))
    >>> sorted(sampler) == list(range(100))
    True
    >>> sampler.set_rates([0.5, 0.5])
    >>> rare = sum(index >= 90 for index in sampler)
    >>> 35 < rare < 65
    True
    """

    def __init__(
        self,
        targets: Any,
        num_classes: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        target = torch.as_tensor(np.asarray(targets), dtype=torch.int64)
        counts = torch.bincount(target, minlength=num_classes or 0)
        self.class_counts = counts.numpy()
        self.generator = generator
        self.rates: torch.Tensor | None = None
        self.by_batch = False
        # Rows sorted by class: a draw is then an offset into its class's run.
        self._order = torch.argsort(target, stable=True)
        self._start = torch.cumsum(counts, 0) - counts
        self._count = counts

    def set_rates(self, rates: Any, by_batch: bool = False) -> None:
        """Switch the class rates from the next epoch on.

        Parameters
        ----------
        rates : array-like of shape (K,), or None
            Relative rate of each class (normalised to sum 1); None goes back to permutations.
        by_batch : bool, default=False
            Draw the rows of a batch when it is their turn, so that rates which change within the
            epoch count at once. (The workers of a DataLoader are some batches ahead.)

        Raises
        ------
        ValueError
            If the length is wrong, a rate is negative or not finite, or a class without a
            training row has a rate above zero.
        """
        self.by_batch = by_batch and rates is not None
        if rates is None:
            self.rates = None
            return
        rate = torch.as_tensor(np.asarray(rates, dtype=np.float64))
        if rate.shape != self._count.shape:
            raise ValueError(
                f"rates must have one entry for each of the {len(self._count)} classes, "
                f"got shape {tuple(rate.shape)}"
            )
        if not bool(torch.isfinite(rate).all()) or bool((rate < 0).any()) or not rate.sum() > 0:
            raise ValueError(
                f"rates must be finite, not negative and not all zero, got {rate.tolist()}"
            )
        empty = (rate > 0) & (self._count == 0)
        if bool(empty.any()):
            raise ValueError(
                f"rates must be 0 for classes without a training row, got {rate[empty].tolist()} "
                f"for the encoded classes {torch.nonzero(empty).flatten().tolist()}"
            )
        self.rates = rate / rate.sum()

    def draw(self, n: int | None = None) -> torch.Tensor:
        """Return row indices as an int64 tensor of shape (n,); by default those of one epoch.

        Without rates there are no others than those of one epoch.
        """
        if self.rates is None:
            return torch.randperm(len(self._order), generator=self.generator)
        n = len(self._order) if n is None else n
        # Inverse transform sampling: torch.multinomial is limited in precision and categories.
        uniform = torch.rand(2, n, generator=self.generator, dtype=torch.float64)
        edges = torch.cumsum(self.rates, 0)
        drawn = torch.searchsorted(edges, uniform[0] * edges[-1], right=True)
        drawn.clamp_(max=int(torch.nonzero(self.rates)[-1]))
        within = (uniform[1] * self._count[drawn]).long()
        return self._order[self._start[drawn] + within]

    def __iter__(self) -> Iterator[int]:
        if self.by_batch:
            return (int(self.draw(1)) for _ in range(len(self)))
        return iter(self.draw().tolist())

    def __len__(self) -> int:
        return len(self._order)


class BatchParts(Sampler[list[int]]):
    """The part of every batch that is one process's, where several train together.

    All processes draw the same rows of an epoch, from the same seed, and each takes its own part of
    every batch. Together they see what one process would.

    Parameters
    ----------
    sampler : ClassSampler
        Over the whole training part. It gets a generator of its own.
    batch_size : int
        Rows of a batch, of all processes together; at least 2 for each. A rest of fewer rows joins
        the batch before it, since batch normalisation is not defined on a single row.
    process_index, num_processes : int
        Which of how many.

    Raises
    ------
    ValueError
        If a process would be left with fewer than two rows.

    Examples
    --------
    >>> from imbmargin.samplers import BatchParts, ClassSampler
    >>> drawn = []
    >>> for index in range(2):
    ...     parts = BatchParts(ClassSampler([0, 1] * 5), 6, index, 2)
    ...     parts.start_epoch(seed=0)
    ...     drawn += [row for part in parts for row in part]
    >>> sorted(drawn)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    def __init__(
        self, sampler: ClassSampler, batch_size: int, process_index: int, num_processes: int
    ) -> None:
        least = 2 * num_processes
        for name, rows in (("batch_size", batch_size), ("the training part", len(sampler))):
            if rows < least:
                raise ValueError(
                    f"{num_processes} processes need at least {least} rows, two for each, but "
                    f"{name} has {rows}; start fewer processes, or raise it"
                )
        self.sampler = sampler
        self.sampler.generator = torch.Generator()
        self.bounds = batch_bounds(len(sampler), batch_size, least)
        self.process_index = process_index
        self.num_processes = num_processes

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch, of all processes together."""
        return [stop - start for start, stop in pairwise(self.bounds)]

    def start_epoch(self, seed: int) -> None:
        """Seed the draws of the epoch that follows: with the same in all processes."""
        assert self.sampler.generator is not None
        self.sampler.generator.manual_seed(seed)

    def draw(self) -> Iterator[torch.Tensor]:
        """Yield the rows of this process in each batch, as int64 tensors."""
        order = None if self.sampler.by_batch else self.sampler.draw()
        for start, stop in pairwise(self.bounds):
            n = stop - start
            rows = self.sampler.draw(n) if order is None else order[start:stop]
            first, end = (n * (self.process_index + i) // self.num_processes for i in (0, 1))
            yield rows[first:end]

    def __iter__(self) -> Iterator[list[int]]:
        return (rows.tolist() for rows in self.draw())

    def __len__(self) -> int:
        return len(self.bounds) - 1


class ClassSampledLoader(DataLoader):
    """A DataLoader that draws rows with a `ClassSampler` over its own dataset's targets.

    Give it to a plain skorch net as ``iterator_train`` and add the callback
    `imbmargin.callbacks.DeferredResampling`: skorch builds the loader from the training part, so
    validation rows are never drawn. `MaxMarginClassifier` does this by itself.

    Parameters
    ----------
    dataset : torch Dataset
        The training part. Its targets are read once.
    generator : torch.Generator, optional
        Source of randomness.
    **kwargs
        Further arguments of `torch.utils.data.DataLoader`, without sampler and shuffle.

    Attributes
    ----------
    sampler : ClassSampler
        Also reachable as ``dataset.class_sampler``, which is where callbacks look for it.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from imbmargin.samplers import ClassSampledLoader
    >>> data = TensorDataset(torch.zeros(100, 3), torch.arange(100) // 90)
    >>> loader = ClassSampledLoader(data, batch_size=50)
    >>> data.class_sampler.set_rates([0, 1])
    >>> {int(label) for _, labels in loader for label in labels}
    {1}
    """

    def __init__(
        self, dataset: Dataset, generator: torch.Generator | None = None, **kwargs: Any
    ) -> None:
        sampler = ClassSampler(targets_of(dataset), generator=generator)
        super().__init__(dataset, sampler=sampler, generator=generator, **kwargs)
        # The callbacks are handed the dataset, not the loader.
        dataset.class_sampler = sampler  # type: ignore[attr-defined]


def batches_at_rates(iterator: Any, rates: Any) -> Any:
    """Return batches of the rows of an iterator, drawn at class rates of their own.

    Parameters
    ----------
    iterator : ArrayBatches or DataLoader
        With a `ClassSampler`, such as those that `MaxMarginClassifier` makes.
    rates : callable
        From the class counts (K,) to the relative rates (K,).

    Returns
    -------
    batches : ArrayBatches or DataLoader
        Of the same size and number, made in the same way.

    Raises
    ------
    TypeError
        If the iterator is of another kind.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from imbmargin.samplers import ClassSampledLoader, batches_at_rates
    >>> data = TensorDataset(torch.zeros(100, 3), torch.arange(100) // 90)
    >>> loader = ClassSampledLoader(data, batch_size=50)
    >>> rare = batches_at_rates(loader, lambda counts: [0, 1])
    >>> {int(label) for _, labels in rare for label in labels}
    {1}
    """
    sampler: Any = getattr(iterator, "sampler", None)
    known = isinstance(iterator, (ArrayBatches, DataLoader)) and isinstance(sampler, ClassSampler)
    if not known:
        raise TypeError(
            "iterator must be an ArrayBatches or DataLoader with a ClassSampler, got "
            f"{type(iterator).__name__}; leave iterator_train as it is"
        )
    sampler = copy.copy(sampler)
    sampler.set_rates(rates(sampler.class_counts))
    if isinstance(iterator, DataLoader):
        same = {name: getattr(iterator, name) for name in _LOADER_ARGUMENTS}
        return DataLoader(iterator.dataset, iterator.batch_size, sampler=sampler, **same)
    others = copy.copy(iterator)
    others.sampler = sampler
    return others
