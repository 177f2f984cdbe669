"""Mixing of samples: mixup and remix, a whole batch at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from imbmargin.data.transfer import send

__all__ = ["MIXINGS", "Mixed", "Mixup", "Remix", "make_mixing"]


class Mixed(NamedTuple):
    """A mixed batch.

    Parameters
    ----------
    x : Tensor of shape (n, ...)
        λ x_i + (1 - λ) x_j.
    partner : Tensor of int64, shape (n,)
        j: which row each row was mixed with.
    share : Tensor of shape (n,)
        Share of the row's own label; its partner's label has the rest.
    """

    x: Tensor
    partner: Tensor
    share: Tensor


class Mixup(BaseEstimator):
    """Mix each row with another one of the batch: λ of it, 1 - λ of the other, labels alike.

    λ is drawn once a batch from Beta(α, α).

    Parameters
    ----------
    alpha : float, default=1.0
        α, above 0; 1 is uniform.

    Raises
    ------
    ValueError
        At the first batch, if an argument is out of range.

    References
    ----------
    .. [1] Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.data.mixing import Mixup
    >>> x, y = torch.rand(8, 3), torch.arange(8) % 2
    >>> mixed = Mixup()(x, y, torch.tensor([4, 4]))
    >>> lam = mixed.share[0]
    >>> torch.allclose(mixed.x, lam * x + (1 - lam) * x[mixed.partner])
    True
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def __call__(self, x: Tensor, target: Tensor, class_counts: Tensor) -> Mixed:
        """Mix a batch.

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            Inputs; integers become float32.
        target : Tensor of int64, shape (n,)
            Encoded labels.
        class_counts : Tensor of shape (K,)
            Training rows of each class.

        Returns
        -------
        mixed : Mixed
        """
        self._check()
        lam = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        partner = send(torch.randperm(len(x)), x.device)
        x = x if x.is_floating_point() else x.float()
        mixed = torch.lerp(x[partner], x, lam)
        return Mixed(mixed, partner, self._share(lam, target, target[partner], class_counts))

    def _check(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha!r}")

    def _share(self, lam: float, own: Tensor, other: Tensor, class_counts: Tensor) -> Tensor:
        return torch.full((len(own),), lam, device=own.device)


class Remix(Mixup):
    """Mix as mixup does, but give the label to the rarer class where it is much rarer.

    Parameters
    ----------
    alpha : float, default=1.0
        α of Beta(α, α), above 0.
    kappa : float, default=3.0
        κ: how many times rarer a class must be, 1 or more.
    tau : float, default=0.5
        τ: the rarer class gets the whole label if the frequent one has less than τ of the input;
        0 is mixup.

    Raises
    ------
    ValueError
        With the first batch, if an argument is out of range.

    References
    ----------
    .. [1] Chou et al., "Remix: Rebalanced Mixup", ECCV Workshops 2020, eq. 4.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.data.mixing import Remix
    >>> x, y = torch.rand(8, 3), torch.arange(8) % 2
    >>> mixed = Remix()(x, y, torch.tensor([100, 1]))
    >>> bool(((mixed.share >= 0) & (mixed.share <= 1)).all())
    True
    """

    def __init__(self, alpha: float = 1.0, kappa: float = 3.0, tau: float = 0.5) -> None:
        super().__init__(alpha)
        self.kappa = kappa
        self.tau = tau

    def _check(self) -> None:
        super()._check()
        if not self.kappa >= 1:
            raise ValueError(f"kappa must be at least 1, got {self.kappa!r}")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"tau must be between 0 and 1, got {self.tau!r}")

    def _share(self, lam: float, own: Tensor, other: Tensor, class_counts: Tensor) -> Tensor:
        ratio = class_counts[own] / class_counts[other]
        share = super()._share(lam, own, other, class_counts)
        if lam < self.tau:
            share = share.masked_fill(ratio >= self.kappa, 0.0)
        if 1 - lam < self.tau:
            share = share.masked_fill(ratio <= 1 / self.kappa, 1.0)
        return share


MIXINGS: dict[str, type[Mixup]] = {"mixup": Mixup, "remix": Remix}
"""Name -> class: what ``MaxMarginClassifier(mixing=...)`` accepts."""


def make_mixing(mixing: Any) -> Any:
    """Return the mixing that a name stands for.

    Parameters
    ----------
    mixing : {"mixup", "remix"}, callable or None
        A callable gets ``(x, target, class_counts)`` and returns a `Mixed`.

    Returns
    -------
    mixing : callable or None

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> from imbmargin.data.mixing import make_mixing
    >>> make_mixing("remix")
    Remix()
    """
    if mixing is None or callable(mixing):
        return mixing
    if mixing not in MIXINGS:
        raise ValueError(
            f"mixing must be one of {list(MIXINGS)}, a callable or None, got {mixing!r}"
        )
    return MIXINGS[mixing]()
