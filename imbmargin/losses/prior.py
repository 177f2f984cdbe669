"""Logits moved by the class prior: balanced softmax, logit adjustment, vector scaling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imbmargin.losses._base import ClassCountLoss, check_number, positive_counts

__all__ = [
    "BalancedSoftmaxLoss",
    "LogitAdjustedLoss",
    "VectorScalingLoss",
    "logit_adjusted_loss",
    "logit_shift",
    "vector_scaling_loss",
]


def logit_shift(class_counts: Any, tau: float = 1.0) -> Tensor:
    """Return τ log π of each class, by which logit adjustment moves the logits.

    Parameters
    ----------
    class_counts : array-like of shape (K,)
        Rows n of each class; π is their share. A class without rows counts as the rarest one.
    tau : float, default=1.0
        τ; 1 is consistent for the balanced error.

    Returns
    -------
    shift : Tensor of float64, shape (K,)

    References
    ----------
    .. [1] Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 9-10.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import logit_shift
    >>> logit_shift(torch.tensor([90, 10]))
    tensor([-0.1054, -2.3026], dtype=torch.float64)
    """
    counts = positive_counts(class_counts)
    return tau * (counts / counts.sum()).log()


def _temperature(class_counts: Any, gamma: float) -> Tensor:
    """Return (n / n_max)^γ of each class."""
    counts = positive_counts(class_counts)
    return (counts / counts.max()) ** gamma


def logit_adjusted_loss(
    logits: Tensor, target: Tensor, class_counts: Any, tau: float = 1.0
) -> Tensor:
    """Return the cross-entropy of z + τ log π for each sample.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Logits z, by which one predicts as they are.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    class_counts, tau
        As in `logit_shift`. τ = 1 is balanced softmax.

    Returns
    -------
    losses : Tensor of shape (n,)

    References
    ----------
    .. [1] Menon et al., ICLR 2021, eq. 10; Ren et al., "Balanced Meta-Softmax for Long-Tailed
       Visual Recognition", NeurIPS 2020, eq. 4.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import logit_adjusted_loss
    >>> z, y = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1])
    >>> logit_adjusted_loss(z, y, torch.tensor([100, 10, 1]))
    tensor([2.7721])
    """
    return vector_scaling_loss(logits, target, class_counts, gamma=0.0, tau=tau)


def vector_scaling_loss(
    logits: Tensor, target: Tensor, class_counts: Any, gamma: float = 0.3, tau: float = 1.0
) -> Tensor:
    """Return the cross-entropy of (n / n_max)^γ z + τ log π for each sample (VS).

    Parameters
    ----------
    logits, target, class_counts, tau
        As in `logit_adjusted_loss`.
    gamma : float, default=0.3
        γ; 0 is logit adjustment. With τ = 0 the loss is that of class-dependent temperatures (CDT).

    Returns
    -------
    losses : Tensor of shape (n,)

    References
    ----------
    .. [1] Kini et al., "Label-Imbalanced and Group-Sensitive Classification under
       Overparameterization", NeurIPS 2021, eq. 3.
    .. [2] Ye et al., "Identifying and Compensating for Feature Deviation in Imbalanced Deep
       Learning", arXiv 2001.01385 (CDT).

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import vector_scaling_loss
    >>> z, y = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1])
    >>> vector_scaling_loss(z, y, torch.tensor([100, 10, 1]), gamma=0.2, tau=1.5)
    tensor([3.9477])
    """
    factor, shift = _temperature(class_counts, gamma), logit_shift(class_counts, tau)
    adjusted = _scale_and_shift(logits, factor if gamma else None, shift)
    return F.cross_entropy(adjusted, target, reduction="none")


def _scale_and_shift(logits: Tensor, factor: Tensor | None, shift: Tensor) -> Tensor:
    shift = shift.to(logits)
    return logits + shift if factor is None else torch.addcmul(shift, factor.to(logits), logits)


class VectorScalingLoss(ClassCountLoss):
    """Vector-scaling loss (VS): logits scaled and shifted by class, before cross-entropy.

    Parameters
    ----------
    gamma : float, default=0.3
        γ, 0 or more, of the factor (n / n_max)^γ. 0.3 in the released code; on CIFAR-10 0.15
        (long-tailed) and 0.2 (step) were tuned, on CIFAR-100 0.05.
    tau : float, default=1.0
        τ, 0 or more, of the shift τ log π. Tuned: 1.25 and 1.5 on CIFAR-10, 0.75 and 0.5 on
        CIFAR-100. 0 is the loss of class-dependent temperatures (CDT).

    Attributes
    ----------
    shift : Tensor of float64, shape (K,), or None
        τ log π, which is added to the logits, once the class counts are bound.
    factor : Tensor of float64, shape (K,), or None
        (n / n_max)^γ, by which they are multiplied; None also if γ is 0.

    Raises
    ------
    ValueError
        If an argument is negative.
    RuntimeError
        On the first batch, if no class counts are bound.

    References
    ----------
    .. [1] Kini et al., NeurIPS 2021, eq. 3.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import VectorScalingLoss
    >>> loss = VectorScalingLoss(gamma=0.2, tau=1.5)
    >>> loss.set_class_counts([100, 10, 1])
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(3.9477)
    """

    shift: Tensor | None
    factor: Tensor | None

    def __init__(self, gamma: float = 0.3, tau: float = 1.0) -> None:
        super().__init__()
        check_number("gamma", gamma, 0)
        check_number("tau", tau, 0)
        self.gamma = gamma
        self.tau = tau
        self.register_buffer("shift", None, persistent=False)
        self.register_buffer("factor", None, persistent=False)

    def _counts_changed(self) -> None:
        counts = self._need_counts()
        self.shift = logit_shift(counts, self.tau)
        self.factor = _temperature(counts, self.gamma) if self.gamma else None

    def trained_prior(self, prior: Tensor) -> Tensor:
        """Return the shares without the shift, which logits do not have (the factor is left)."""
        self._need_counts()
        assert self.shift is not None
        return prior / self.shift.to(prior).exp()

    def adjust(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return (n / n_max)^γ z + τ log π, shape (n, K)."""
        self._need_counts()
        assert self.shift is not None
        return _scale_and_shift(logits, self.factor, self.shift)


class LogitAdjustedLoss(VectorScalingLoss):
    """Logit-adjusted cross-entropy (LA): VS without the factor.

    Predict with the logits as they are: adjusting them again after training would do it twice.

    Parameters
    ----------
    tau : float, default=1.0
        τ; 1 is consistent for the balanced error.

    References
    ----------
    .. [1] Menon et al., ICLR 2021, eq. 10.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import LogitAdjustedLoss
    >>> loss = LogitAdjustedLoss(tau=1.5)
    >>> loss.set_class_counts([100, 10, 1])
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(3.8753)
    """

    def __init__(self, tau: float = 1.0) -> None:
        super().__init__(gamma=0.0, tau=tau)


class BalancedSoftmaxLoss(LogitAdjustedLoss):
    """Balanced softmax: the cross-entropy of z + log n, which is logit adjustment with τ = 1.

    References
    ----------
    .. [1] Ren et al., NeurIPS 2020, eq. 4.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import BalancedSoftmaxLoss
    >>> loss = BalancedSoftmaxLoss()
    >>> loss.set_class_counts([100, 10, 1])
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(2.7721)
    """

    def __init__(self) -> None:
        super().__init__(tau=1.0)
