"""Imbalanced subsets of balanced data: long-tailed and step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from imblearn.base import BaseSampler
from imblearn.utils import check_target_type
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import validate_data

from imbmargin.data.selection import ImbalanceProfile, choose_rows, take_rows, to_numpy

__all__ = [
    "LongTailedSampler",
    "StepSampler",
    "long_tailed_counts",
    "long_tailed_indices",
    "make_long_tailed",
    "make_step",
    "step_counts",
    "step_indices",
]


def long_tailed_counts(n_max: int, n_classes: int, imbalance_ratio: float) -> NDArray[np.int64]:
    """Return class counts that fall exponentially from the first class to the last.

    Parameters
    ----------
    n_max : int
        Rows of the first (head) class.
    n_classes : int
        Number of classes K, 2 or more.
    imbalance_ratio : float
        ρ = n_max / n_min, 1 or more; 10, 50 or 100 in the papers, whose code takes 1/ρ.

    Returns
    -------
    counts : ndarray of int64, shape (K,)
        n_max (1/ρ)^(c / (K-1)) for c = 0..K-1, cut (not rounded) to whole rows.

    Raises
    ------
    ValueError
        If an argument is out of range, or a class would be left without rows.

    References
    ----------
    .. [1] Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.

    Examples
    --------
    >>> from imbmargin import long_tailed_counts
    >>> long_tailed_counts(5000, 10, imbalance_ratio=100)
    array([5000, 2997, 1796, 1077,  645,  387,  232,  139,   83,   50])
    """
    return ImbalanceProfile(imbalance_ratio).public_counts(n_max, n_classes)


def step_counts(
    n_max: int, n_classes: int, imbalance_ratio: float, minority_fraction: float = 0.5
) -> NDArray[np.int64]:
    """Return class counts with two levels: frequent classes first, then rare ones.

    Parameters
    ----------
    n_max : int
        Rows of a frequent class.
    n_classes : int
        Number of classes K, 2 or more.
    imbalance_ratio : float
        ρ = n_max / n_min, 1 or more.
    minority_fraction : float, default=0.5
        μ in (0, 1): the last ⌊μK⌋ classes are rare.

    Returns
    -------
    counts : ndarray of int64, shape (K,)
        n_max, then ⌊n_max / ρ⌋ for the rare classes.

    Raises
    ------
    ValueError
        If an argument is out of range, no class is rare, or a class would be left without rows.

    References
    ----------
    .. [1] Buda et al., "A systematic study of the class imbalance problem", Neural Networks 2018.

    Examples
    --------
    >>> from imbmargin import step_counts
    >>> step_counts(5000, 10, imbalance_ratio=100)
    array([5000, 5000, 5000, 5000, 5000,   50,   50,   50,   50,   50])
    """
    profile = ImbalanceProfile(imbalance_ratio, minority_fraction)
    return profile.public_counts(n_max, n_classes)


def long_tailed_indices(
    y: ArrayLike,
    *,
    imbalance_ratio: float,
    n_max: int | None = None,
    class_order: Sequence[Any] | None = None,
    protocol: str = "random",
    random_state: Any = None,
) -> NDArray[np.int64]:
    """Return the rows of a long-tailed subset, for a torch ``Subset`` or any other container.

    Parameters
    ----------
    y, imbalance_ratio, n_max, class_order, protocol, random_state
        As in `make_long_tailed`.

    Returns
    -------
    indices : ndarray of int64
        Row numbers.

    Examples
    --------
    >>> from imbmargin import long_tailed_indices
    >>> y = ["cat"] * 100 + ["dog"] * 100
    >>> len(long_tailed_indices(y, imbalance_ratio=10, random_state=0))
    110
    """
    profile = ImbalanceProfile(imbalance_ratio)
    return choose_rows(y, profile, n_max, class_order, protocol, random_state)


def step_indices(
    y: ArrayLike,
    *,
    imbalance_ratio: float,
    minority_fraction: float = 0.5,
    n_max: int | None = None,
    class_order: Sequence[Any] | None = None,
    protocol: str = "random",
    random_state: Any = None,
) -> NDArray[np.int64]:
    """Return the rows of a step-imbalanced subset.

    Parameters
    ----------
    y, imbalance_ratio, minority_fraction, n_max, class_order, protocol, random_state
        As in `make_step`.

    Returns
    -------
    indices : ndarray of int64
        Row numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin import step_indices
    >>> y = np.repeat([0, 1, 2, 3], 50)
    >>> np.bincount(y[step_indices(y, imbalance_ratio=10, random_state=0)])
    array([50, 50,  5,  5])
    """
    profile = ImbalanceProfile(imbalance_ratio, minority_fraction)
    return choose_rows(y, profile, n_max, class_order, protocol, random_state)


def make_long_tailed(
    X: Any,
    y: Any,
    *,
    imbalance_ratio: float,
    n_max: int | None = None,
    class_order: Sequence[Any] | None = None,
    protocol: str = "random",
    random_state: Any = None,
    return_indices: bool = False,
) -> tuple[Any, ...]:
    """Take a long-tailed subset of the rows.

    Parameters
    ----------
    X : array, DataFrame, sparse matrix, tensor or list, n rows
        Its type is kept.
    y : array-like of shape (n,)
        Labels of any type.
    imbalance_ratio : float
        ρ: how many times more rows the first class has than the last, 1 or more.
    n_max : int, default=None
        Rows of the first class; by default all that it has.
    class_order : sequence of labels, default=None
        Classes from the most to the least frequent; by default sorted.
    protocol : {"random", "ldam"}, default="random"
        "random" draws rows and keeps their order. "ldam" is the selection of the LDAM paper's
        code [1]_, bit for bit, class by class: it gives the CIFAR subsets that papers report on.
        With either, a seed's subset at a larger ratio lies within the one at a smaller ratio.
    random_state : int, RandomState, Generator ("random" only) or None, default=None
        Seed. None draws anew for "random"; for "ldam" it is 0, as in the paper's code.
    return_indices : bool, default=False
        Whether the row numbers are returned too.

    Returns
    -------
    X_subset, y_subset : same types as X and y
        The rows.
    indices : ndarray of int64
        Only with ``return_indices``.

    Raises
    ------
    ValueError
        If a class has fewer rows than asked for, or an argument is out of range.

    References
    ----------
    .. [1] Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
       NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from imbmargin import make_long_tailed
    >>> X, y = load_digits(return_X_y=True)
    >>> X_lt, y_lt = make_long_tailed(X, y, imbalance_ratio=50, n_max=150, random_state=0)
    >>> np.bincount(y_lt)
    array([150,  97,  62,  40,  26,  17,  11,   7,   4,   3])
    """
    profile = ImbalanceProfile(imbalance_ratio)
    indices = choose_rows(y, profile, n_max, class_order, protocol, random_state)
    return take_rows(X, y, indices, return_indices)


def make_step(
    X: Any,
    y: Any,
    *,
    imbalance_ratio: float,
    minority_fraction: float = 0.5,
    n_max: int | None = None,
    class_order: Sequence[Any] | None = None,
    protocol: str = "random",
    random_state: Any = None,
    return_indices: bool = False,
) -> tuple[Any, ...]:
    """Take a subset of the rows in which some classes are frequent and the others rare.

    Parameters
    ----------
    X, y, n_max, class_order, protocol, random_state, return_indices
        As in `make_long_tailed`.
    imbalance_ratio : float
        ρ: how many times more rows a frequent class has than a rare one, 1 or more.
    minority_fraction : float, default=0.5
        μ in (0, 1): the last ⌊μK⌋ classes are rare.

    Returns
    -------
    X_subset, y_subset : same types as X and y
        The rows.
    indices : ndarray of int64
        Only with ``return_indices``.

    Raises
    ------
    ValueError
        As in `make_long_tailed`.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin import make_step
    >>> X, y = np.arange(80).reshape(40, 2), np.repeat(["fine", "fraud"], 20)
    >>> X_step, y_step = make_step(X, y, imbalance_ratio=10, random_state=0)
    >>> len(X_step), int((y_step == "fraud").sum())
    (22, 2)
    """
    profile = ImbalanceProfile(imbalance_ratio, minority_fraction)
    indices = choose_rows(y, profile, n_max, class_order, protocol, random_state)
    return take_rows(X, y, indices, return_indices)


class _ImbalanceSampler(BaseSampler):
    """What the samplers share: imbalanced-learn's interface around the choice of rows."""

    _sampling_type = "bypass"
    _parameter_constraints: ClassVar[dict[str, Any]] = {}  # our own checks name the cure
    minority_fraction: float | None = None

    def __init__(
        self,
        imbalance_ratio: float = 100,
        n_max: int | None = None,
        class_order: Sequence[Any] | None = None,
        protocol: str = "random",
        random_state: Any = None,
    ) -> None:
        self.imbalance_ratio = imbalance_ratio
        self.n_max = n_max
        self.class_order = class_order
        self.protocol = protocol
        self.random_state = random_state

    def fit(self, X: Any, y: Any, **params: Any) -> _ImbalanceSampler:
        """Choose the rows."""
        self.fit_resample(X, y)
        return self

    def fit_resample(self, X: Any, y: Any, **params: Any) -> tuple[Any, ...]:
        """Return the rows of the subset, X and y in the types that they came in."""
        labels, _ = check_target_type(to_numpy(y), indicate_one_vs_all=True)
        # Rows are only picked, so X may hold anything: strings, NaN, images.
        validate_data(self, X=X, skip_check_array=True)
        self.sample_indices_ = self._fit_resample(X, labels)
        classes, counts = np.unique(labels[self.sample_indices_], return_counts=True)
        self.sampling_strategy_ = dict(zip(classes.tolist(), counts.tolist(), strict=True))
        return take_rows(X, y, self.sample_indices_)

    def _fit_resample(self, X: Any, y: Any, **params: Any) -> NDArray[np.int64]:
        profile = ImbalanceProfile(self.imbalance_ratio, self.minority_fraction)
        return choose_rows(
            y, profile, self.n_max, self.class_order, self.protocol, self.random_state
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.sampler_tags.sample_indices = True
        return tags


class LongTailedSampler(_ImbalanceSampler):
    """`make_long_tailed` with the interface of imbalanced-learn's samplers.

    It makes the training data of a pipeline long-tailed, for experiments; predictions see all rows.

    Parameters
    ----------
    imbalance_ratio : float, default=100
        ρ, see `make_long_tailed`.
    n_max, class_order, protocol, random_state
        As in `make_long_tailed`.

    Attributes
    ----------
    sample_indices_ : ndarray of int64
        The rows taken.
    sampling_strategy_ : dict
        How many rows of each label.
    n_features_in_ : int
        Columns of X; their names are ``feature_names_in_``.

    Raises
    ------
    ValueError
        In ``fit_resample``, as in `make_long_tailed`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from imbmargin import LongTailedSampler
    >>> X, y = load_digits(return_X_y=True)
    >>> sampler = LongTailedSampler(imbalance_ratio=10, n_max=170, random_state=0)
    >>> X_lt, y_lt = sampler.fit_resample(X, y)
    >>> np.bincount(y_lt)[[0, 9]]
    array([170,  17])
    """


class StepSampler(_ImbalanceSampler):
    """`make_step` with the interface of imbalanced-learn's samplers.

    Parameters
    ----------
    imbalance_ratio : float, default=100
        ρ, see `make_step`.
    minority_fraction, n_max, class_order, protocol, random_state
        As in `make_step`.

    Attributes
    ----------
    sample_indices_, sampling_strategy_, n_features_in_
        As in `LongTailedSampler`.

    Raises
    ------
    ValueError
        In ``fit_resample``, as in `make_step`.

    Examples
    --------
    >>> import numpy as np
    >>> from imbmargin import StepSampler
    >>> X, y = np.arange(40).reshape(20, 2), np.repeat([0, 1], 10)
    >>> X_step, y_step = StepSampler(imbalance_ratio=5, random_state=0).fit_resample(X, y)
    >>> np.bincount(y_step)
    array([10,  2])
    """

    def __init__(
        self,
        imbalance_ratio: float = 100,
        minority_fraction: float = 0.5,
        n_max: int | None = None,
        class_order: Sequence[Any] | None = None,
        protocol: str = "random",
        random_state: Any = None,
    ) -> None:
        super().__init__(imbalance_ratio, n_max, class_order, protocol, random_state)
        self.minority_fraction = minority_fraction
