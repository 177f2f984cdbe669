"""Which rows make an imbalanced subset: counts by class, then rows of each class."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.multiclass import check_classification_targets

__all__ = ["ImbalanceProfile", "choose_rows", "take_rows", "to_numpy"]

PROTOCOLS = ("random", "ldam")


@dataclass(frozen=True)
class ImbalanceProfile:
    """How class counts fall from the first class to the last; every count grows with n_max."""

    ratio: float
    minority_fraction: float | None = None  # None: long-tailed

    def __post_init__(self) -> None:
        ratio, part = self.ratio, self.minority_fraction
        if not isinstance(ratio, Real) or not isfinite(ratio) or ratio < 1:
            inverse = isinstance(ratio, Real) and 0 < ratio < 1
            cure = f"; it is n_max / n_min, so pass {1 / ratio:g}" if inverse else ""
            raise ValueError(f"imbalance_ratio must be a number of at least 1, got {ratio!r}{cure}")
        if part is not None and not (isinstance(part, Real) and 0 < part < 1):
            raise ValueError(
                f"minority_fraction must be a number between 0 and 1, got {part!r}; 0.5 makes half "
                "of the classes rare"
            )

    def counts(self, n_max: int, n_classes: int) -> NDArray[np.int64]:
        """Return counts, which may be 0; this order of operations gives the published ones."""
        fraction = 1 / float(self.ratio)
        if self.minority_fraction is None:
            falling = [n_max * fraction ** (c / (n_classes - 1.0)) for c in range(n_classes)]
            return np.array([int(n) for n in falling], dtype=np.int64)
        # Rounded first, since 0.29 * 100 is a little below 29.
        rare = int(round(n_classes * float(self.minority_fraction), 9))
        if rare < 1:
            raise ValueError(
                f"minority_fraction={self.minority_fraction:g} of {n_classes} classes leaves no "
                f"rare class; pass 1/{n_classes} or more"
            )
        rare = min(rare, n_classes - 1)
        return np.repeat([n_max, int(n_max * fraction)], [n_classes - rare, rare])

    def public_counts(self, n_max: int, n_classes: int) -> NDArray[np.int64]:
        """Return counts for classes without names."""
        _check_integer("n_classes", n_classes, 2)
        return self.filled_counts(n_max, range(n_classes))

    def filled_counts(
        self, n_max: int, labels: Sequence[Any], most: int | None = None
    ) -> NDArray[np.int64]:
        """Return counts of at least 1, where n_max cannot be raised above ``most``."""
        _check_integer("n_max", n_max, 1)
        counts = self.counts(int(n_max), len(labels))
        empty = np.flatnonzero(counts == 0)
        if not len(empty):
            return counts
        # 49 * (1 / 49) is a little below 1, so the bounds are tried, not divided.
        ratio = next(r for r in (n_max, n_max - 1) if int(n_max * (1 / r)) > 0)
        need = bisect_left(range(2**53), 1, key=lambda n: self.counts(n, len(labels)).min())
        cure = "" if most is not None and need > most else f", or n_max={need} or more"
        raise ValueError(
            f"imbalance_ratio={self.ratio:g} with n_max={n_max} leaves class {labels[empty[0]]!r} "
            f"without rows ({len(empty)} of {len(labels)} classes); pass imbalance_ratio={ratio} "
            f"or less{cure}"
        )


def _check_integer(name: str, value: Any, least: int) -> None:
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def choose_rows(
    y: ArrayLike,
    profile: ImbalanceProfile,
    n_max: int | None,
    class_order: Sequence[Any] | None,
    protocol: str,
    random_state: Any,
) -> NDArray[np.int64]:
    """Draw the rows: each class is shuffled as a whole, so that subsets of one seed are nested."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {list(PROTOCOLS)}, got {protocol!r}")
    labels, rows = _rows_by_class(to_numpy(y), class_order)
    counts = _available_counts(profile, len(rows[0]) if n_max is None else n_max, labels, rows)
    rng = _random_stream(protocol, random_state)
    for part in rows:
        rng.shuffle(part)
    chosen = np.concatenate([part[:n] for part, n in zip(rows, counts, strict=True)])
    return chosen if protocol == "ldam" else np.sort(chosen)


def _random_stream(protocol: str, random_state: Any) -> np.random.Generator | np.random.RandomState:
    if protocol == "ldam":
        return check_random_state(0 if random_state is None else random_state)
    if isinstance(random_state, np.random.RandomState):
        random_state = random_state.randint(2**31 - 1)
    return np.random.default_rng(random_state)


def _rows_by_class(
    y: NDArray[Any], class_order: Sequence[Any] | None
) -> tuple[list[Any], list[NDArray[np.int64]]]:
    """Labels from head to tail, and the rows of each in the order of the data."""
    if y.ndim != 1:
        raise ValueError(f"y must be 1-D, got shape {y.shape}")
    check_classification_targets(y)
    known, code, count = np.unique(y, return_inverse=True, return_counts=True)
    if len(known) < 2:
        raise ValueError(f"y must have at least 2 classes, got {known.tolist()}")
    rows = np.split(np.argsort(code, kind="stable"), np.cumsum(count)[:-1])
    by_label = dict(zip(known.tolist(), rows, strict=True))
    order = list(by_label) if class_order is None else np.asarray(class_order).tolist()
    faults = {
        "unknown": [label for label in order if label not in by_label],
        "missing": [label for label in by_label if label not in order],
        "repeated": [label for label, n in Counter(order).items() if n > 1],
    }
    if any(faults.values()):
        text = ", ".join(f"{fault} {found}" for fault, found in faults.items() if found)
        raise ValueError(f"class_order must hold each label of y once; {text}")
    return order, [by_label[label] for label in order]


def _available_counts(
    profile: ImbalanceProfile, n_max: int, labels: list[Any], rows: list[NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return counts that every class has rows for."""
    available = np.array([len(part) for part in rows])

    def too_many(n: int) -> bool:
        return bool((profile.counts(n, len(rows)) > available).any())

    most = bisect_left(range(1, len(rows[0]) + 1), True, key=too_many)
    counts = profile.filled_counts(n_max, labels, most)
    short = np.flatnonzero(counts > available)
    if len(short):
        works = most > 0 and profile.counts(most, len(rows)).min() > 0
        cure = f"n_max={most} is the most that works" if works else "no n_max works"
        raise ValueError(
            f"class {labels[short[0]]!r} has {available[short[0]]} rows, n_max={n_max} asks for "
            f"{counts[short[0]]}; {cure}, or give class_order from the most to the least frequent "
            "class"
        )
    return counts


def to_numpy(y: Any) -> NDArray[Any]:
    """Return labels as an array, from a tensor on any device too."""
    return np.asarray(y.cpu() if hasattr(y, "cpu") else y)


def take_rows(
    X: Any, y: Any, indices: NDArray[np.int64], return_indices: bool = False
) -> tuple[Any, ...]:
    """Return the rows of X and y, both in the type that they came in."""
    n_rows, n_labels = (part.shape[0] if hasattr(part, "shape") else len(part) for part in (X, y))
    if n_rows != n_labels:
        raise ValueError(f"X has {n_rows} rows and y has {n_labels} labels; they must be the same")
    taken = tuple(_take(part, indices) for part in (X, y))
    return (*taken, indices) if return_indices else taken


def _take(data: Any, indices: NDArray[np.int64]) -> Any:
    if issparse(data):
        return data.tocsr()[indices].asformat(data.format)
    return data[indices] if hasattr(data, "detach") else _safe_indexing(data, indices)
