"""Influence-balanced loss: rows that move the decision boundary most count less."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from imbmargin.losses._base import ClassCountLoss, check_number, positive_counts

__all__ = ["InfluenceBalancedLoss", "influence_balanced_loss"]


def influence_balanced_loss(
    logits: Tensor,
    target: Tensor,
    features: Tensor,
    factors: Tensor,
    epsilon: float = 1e-3,
    detach: bool = False,
) -> Tensor:
    """Return λ_y CE / (‖p - e_y‖₁ ‖h‖₁ + ε) for each sample.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Logits z; p is their softmax.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    features : Tensor of shape (n, d)
        h, what goes into the last layer.
    factors : Tensor of shape (K,)
        λ of each class.
    epsilon : float, default=1e-3
        ε, above 0; it bounds the factor where p is e_y.
    detach : bool, default=False
        Whether the denominator is a constant, as the paper derives it. In the released code the
        gradient goes through it.

    Returns
    -------
    losses : Tensor of shape (n,)

    References
    ----------
    .. [1] Park et al., "Influence-Balanced Loss for Imbalanced Visual Classification", ICCV 2021,
       eq. 8-10.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import influence_balanced_loss
    >>> z, h = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([[1.0, -2.0, 0.5]])
    >>> factors = torch.tensor([1 / 111, 10 / 111, 100 / 111])
    >>> influence_balanced_loss(z, torch.tensor([1]), h, factors)
    tensor([0.0219])
    """
    distance = F.softmax(logits, dim=1).sub(F.one_hot(target, logits.shape[1])).abs().sum(dim=1)
    influence = distance * features.abs().sum(dim=1)
    if detach:
        influence = influence.detach()
    losses = F.cross_entropy(logits, target, reduction="none")
    return factors.to(logits.dtype)[target] * losses / (influence + epsilon)


class InfluenceBalancedLoss(ClassCountLoss):
    """Influence-balanced loss (IB), for the end of a training: see ``loss_epoch``.

    Parameters
    ----------
    alpha : float, default=1000.0
        α, above 0, of the factors λ = α K n^-1 / Σ n^-1. It acts like a learning rate.
    epsilon : float, default=1e-3
        ε, above 0.
    by_class : bool, default=True
        Whether the factors are the classes'; else λ = α for all.
    detach : bool, default=False
        See `influence_balanced_loss`.

    Raises
    ------
    ValueError
        If an argument is out of range.
    RuntimeError
        If it is called without features, or without class counts where it needs them.

    Notes
    -----
    `MaxMarginClassifier` passes the features: what goes into the module's ``head``, or its last
    Linear layer. In a loop of your own, call ``loss(logits, target, features=features)``.

    References
    ----------
    .. [1] Park et al., ICCV 2021. The factor K is that of the released code.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import InfluenceBalancedLoss
    >>> loss = InfluenceBalancedLoss(alpha=1 / 3)
    >>> loss.set_class_counts([100, 10, 1])
    >>> z, h = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([[1.0, -2.0, 0.5]])
    >>> loss(z, torch.tensor([1]), features=h)
    tensor(0.0219)
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)
    factors: Tensor | None

    def __init__(
        self,
        alpha: float = 1000.0,
        epsilon: float = 1e-3,
        by_class: bool = True,
        detach: bool = False,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, 0, above=True)
        check_number("epsilon", epsilon, 0, above=True)
        self.alpha = alpha
        self.epsilon = epsilon
        self.by_class = by_class
        self.detach = detach
        self.register_buffer("factors", None, persistent=False)

    def _counts_changed(self) -> None:
        rarity = 1 / positive_counts(self._need_counts())
        self.factors = self.alpha * len(rarity) * rarity / rarity.sum()

    def per_sample(self, logits: Tensor, target: Tensor, *, features: Tensor) -> Tensor:
        """Return the loss of each sample, shape (n,)."""
        if self.by_class:
            self._need_counts()
            assert self.factors is not None
            factors = self.factors
        else:
            factors = torch.full((logits.shape[1],), self.alpha, device=logits.device)
        features = features.to(logits.dtype)
        return influence_balanced_loss(logits, target, features, factors, self.epsilon, self.detach)
