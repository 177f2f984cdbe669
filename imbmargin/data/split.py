"""A validation split that keeps rare classes in the training part."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from imbmargin.data.batches import targets_of

__all__ = ["StratifiedSplit"]


class StratifiedSplit:
    """Hold out a fraction of every class, but at least one row; another stays for training.

    scikit-learn's stratified splitters refuse a class with a single row, which a long tail has;
    here it stays in the training part.

    Parameters
    ----------
    fraction : float
        Fraction of each class that is held out, in (0, 1), rounded to the nearest row.

    Raises
    ------
    ValueError
        If the fraction is out of range, or less than half a row of every class.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from imbmargin.data.split import StratifiedSplit
    >>> data = TensorDataset(torch.zeros(12, 1), torch.tensor([0] * 10 + [1] * 2))
    >>> train, valid = StratifiedSplit(0.5)(data)
    >>> len(train), len(valid)
    (6, 6)
    """

    def __init__(self, fraction: float) -> None:
        if not 0 < fraction < 1:
            raise ValueError(f"train_split must be a fraction between 0 and 1, got {fraction}")
        self.fraction = fraction

    def __call__(self, dataset: Dataset, y: Any = None, **_: Any) -> tuple[Subset, Subset]:
        """Split a dataset; the rows are drawn with torch's generator, which fit seeds."""
        target = targets_of(dataset) if y is None else np.asarray(y)
        labels, counts = np.unique(target, return_counts=True)
        # One is left for training.
        sizes = np.minimum(np.rint(self.fraction * counts).astype(int), counts - 1)
        if not sizes.any():
            raise ValueError(
                f"train_split={self.fraction} holds out no row of {len(target)}; "
                "pass a larger fraction or None"
            )
        # At least one, where there are two: scores would pass over the class.
        sizes = np.maximum(sizes, np.minimum(counts - 1, 1))
        held = []
        for label, size in zip(labels, sizes, strict=True):
            rows = np.flatnonzero(target == label)
            held.append(rows[torch.randperm(len(rows)).numpy()][:size])
        valid = np.sort(np.concatenate(held))
        train = np.setdiff1d(np.arange(len(target)), valid, assume_unique=True)
        return Subset(dataset, train.tolist()), Subset(dataset, valid.tolist())
