"""Margins inside the softmax: LDAM, a uniform margin, and the maximum margin (MM)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from imbmargin.losses._base import ClassCountLoss, check_number, positive_counts
from imbmargin.losses._shifted import is_eager, moved_by_constants

__all__ = [
    "LDAMLoss",
    "MaxMarginLDAMLoss",
    "MaxMarginLoss",
    "UniformMarginLoss",
    "ldam_loss",
    "ldam_margins",
    "max_margin",
    "max_margin_loss",
]


def ldam_margins(class_counts: Tensor, max_margin: float = 0.5, power: float = 0.25) -> Tensor:
    """Return the label-distribution-aware margin of each class, C / n^power.

    Parameters
    ----------
    class_counts : Tensor of shape (K,)
        Rows n of each class. A class without rows gets the largest margin.
    max_margin : float, default=0.5
        Largest margin, that of the rarest class; it fixes the constant C. In units of the logits
        before scaling.
    power : float, default=0.25
        1/4 in the paper; 0 gives every class ``max_margin``.

    Returns
    -------
    margins : Tensor of float64, shape (K,)

    References
    ----------
    .. [1] Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
       NeurIPS 2019, eq. 10-12.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import ldam_margins
    >>> ldam_margins(torch.tensor([100, 10, 1]))
    tensor([0.1581, 0.2812, 0.5000], dtype=torch.float64)
    """
    counts = positive_counts(class_counts)
    return max_margin * (counts.min() / counts) ** power


def ldam_loss(logits: Tensor, target: Tensor, margins: Tensor, scale: float = 30.0) -> Tensor:
    """Return the cross-entropy of s (z - m_y e_y) for each sample.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Cosine logits z, before scaling.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    margins : Tensor of shape (K,)
        Margin m of each class.
    scale : float, default=30.0
        s, applied after the margin.

    Returns
    -------
    losses : Tensor of shape (n,)

    References
    ----------
    .. [1] Cao et al., NeurIPS 2019, eq. 13.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import ldam_loss, ldam_margins
    >>> margins = ldam_margins(torch.tensor([100, 10, 1]))
    >>> ldam_loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]), margins, scale=10.0)
    tensor([6.8137])
    """
    adjusted = _ldam_logits(logits, target, margins, scale)
    return F.cross_entropy(adjusted, target, reduction="none")


def _ldam_logits(logits: Tensor, target: Tensor, margins: Tensor, scale: float) -> Tensor:
    """Return s (z - m_y e_y); s z is the only (n, K) buffer."""
    scaled, column = logits * scale, target.unsqueeze(1)
    shift = (margins.gather(0, target).unsqueeze(1) * -scale).to(scaled.dtype)
    if shift.requires_grad or torch._C._are_functorch_transforms_active():
        return scaled.scatter_add(1, column, shift)
    # For autograd, which does not follow the alias, this stays s z: a constant has no gradient.
    scaled.detach().scatter_add_(1, column, shift)
    return scaled


def max_margin(
    logits: Tensor,
    target: Tensor,
    delta_neg: float | Tensor = 0.6,
    beta: float | Tensor = 1.5,
) -> Tensor:
    """Return the maximum margin Δ of each sample; it carries no gradient.

    With the sample margin γ = z_y - max over j≠y of z_j,

        Δ = exp(-γ - δ⁺) if γ >= 0 (the row is classified right), exp(γ - δ⁻) otherwise,

    and δ⁺ = β δ⁻. Δ is largest at the decision boundary and decays with the distance from it.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Cosine logits z, before scaling.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    delta_neg : float or Tensor that broadcasts to (n,), default=0.6
        δ⁻. Larger means a smaller margin.
    beta : float or Tensor that broadcasts to (n,), default=1.5
        β. Above 1 a row that is right gets a smaller margin than one that is wrong.

    Returns
    -------
    margin : Tensor of shape (n,)
        Δ, above 0.

    Notes
    -----
    A tie counts as right. The released code of the paper differs from its equations: it takes the
    column of the batch's first label for z_y in every row, replaces the target by 0 instead of
    leaving it out of the maximum, and gives ties no margin.

    References
    ----------
    .. [1] Kang, Vu, Yoo, "Learning Imbalanced Datasets with Maximum Margin Loss", ICIP 2021.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import max_margin
    >>> z = torch.tensor([[0.6, 0.2, -0.1], [0.6, 0.2, -0.1]])
    >>> max_margin(z, torch.tensor([0, 1]))
    tensor([0.2725, 0.3679])
    """
    own, rival = _own_and_rival(logits.detach(), target.unsqueeze(1))
    constants = _Constants.of(logits, _as_column(delta_neg), _as_column(beta), 1.0)
    margin = _margin_between(own, rival, constants, 1.0)
    return margin.squeeze(1).to(logits.dtype)


class _Constants(NamedTuple):
    """What Δ takes besides the logits; all broadcast to (n, 1), and have the type of the logits."""

    half: Tensor
    """(δ⁻ - δ⁺) / 2."""
    middle: Tensor
    """-(δ⁻ + δ⁺) / 2."""
    scale: Tensor
    """s."""
    zero: Tensor
    one: Tensor

    @classmethod
    def of(
        cls, logits: Tensor, delta_neg: float | Tensor, beta: float | Tensor, scale: float
    ) -> _Constants:
        """Make them for logits, from δ⁻ and β, numbers or tensors that broadcast to (n, 1)."""
        right = beta * delta_neg
        values = (delta_neg - right) / 2, -(delta_neg + right) / 2, scale, 0.0, 1.0
        like: dict[str, Any] = {"dtype": logits.dtype, "device": logits.device}
        return cls(*(torch.as_tensor(value, **like) for value in values))


def _as_column(value: float | Tensor) -> float | Tensor:
    """Return what broadcasts to (n, 1), without gradient, from what broadcasts to (n,)."""
    return value.detach().unsqueeze(-1) if isinstance(value, Tensor) else value


def _own_and_rival(logits: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logit of the label and the largest other one, each of shape (n, 1)."""
    rival = logits.scatter(1, column, -torch.inf).amax(dim=1, keepdim=True)
    return logits.gather(1, column), rival


def _margin_between(own: Tensor, rival: Tensor, constants: _Constants, scale: float) -> Tensor:
    """Return Δ from both logits times s.

    log Δ = ±(half - γ) + middle, + where γ >= 0 and - elsewhere. On a small batch an operation
    costs more the first time than again with other tensors: this takes few different ones, and
    differences are sums too.
    """
    gap = torch.add(own, rival, alpha=-1)
    # Of a tie, which is right, it is 1: the sum makes 0 of -0.
    side = torch.copysign(constants.one, torch.add(constants.zero, gap))
    from_half = torch.add(constants.half, gap, alpha=-1 / scale)
    return torch.addcmul(constants.middle, side, from_half).exp_()


def max_margin_loss(
    logits: Tensor,
    target: Tensor,
    delta_neg: float | Tensor = 0.6,
    beta: float | Tensor = 1.5,
    scale: float = 30.0,
) -> Tensor:
    """Return the cross-entropy of s (z - Δ e_y) for each sample, with the maximum margin Δ.

    Parameters
    ----------
    logits, target, delta_neg, beta
        As in `max_margin`.
    scale : float, default=30.0
        s, applied after the margin. The paper does not print its value.

    Returns
    -------
    losses : Tensor of shape (n,)

    References
    ----------
    .. [1] Kang, Vu, Yoo, ICIP 2021.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import max_margin_loss
    >>> max_margin_loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]), scale=10.0)
    tensor([7.6802])
    """
    constants = _Constants.of(logits, _as_column(delta_neg), _as_column(beta), scale)
    adjusted = _max_margin_logits(logits, target.unsqueeze(1), constants, scale)
    return F.cross_entropy(adjusted, target, reduction="none")


def _max_margin_logits(
    logits: Tensor,
    column: Tensor,
    constants: _Constants,
    scale: float,
    lowest: Any = -torch.inf,
) -> Tensor:
    """Return s (z - Δ e_y); s z is the only (n, K) buffer.

    ``lowest`` is what is below all logits; as a tensor (n, 1) it costs less.
    """
    # On the way back a tensor costs less than a number, of which torch makes one each time.
    scaled = logits * constants.scale
    # In torch.func, vmap cannot write what is batched into what is not.
    if torch._C._are_functorch_transforms_active() or not scale > 0:
        margin = _margin_between(*_own_and_rival(logits.detach(), column), constants, 1.0)
        return scaled.scatter_add(1, column, (margin * -scale).to(scaled.dtype))
    # The buffer also serves to find the best other class. For autograd, which does not follow the
    # alias, it stays s z: what the label's entry is changed by is a constant.
    plain = scaled.detach()
    own = plain.gather(1, column)
    rival = plain.scatter_(1, column, lowest).amax(dim=1, keepdim=True)
    margin = _margin_between(own, rival, constants, scale)
    plain.scatter_(1, column, torch.add(own, margin, alpha=-scale))
    return scaled


class LDAMLoss(ClassCountLoss):
    """Label-distribution-aware margin loss: rarer classes get larger margins.

    Parameters
    ----------
    max_margin : float, default=0.5
        Margin of the rarest class, in units of the cosine logits. 0.5 in the paper, 0.3 on
        iNaturalist.
    scale : float, default=30.0
        s, which multiplies the logits after the margin is taken off.
    power : float, default=0.25
        Exponent of 1 / n; 0 gives every class the same margin and needs no counts.

    Attributes
    ----------
    margins : Tensor of float64, shape (K,), or None
        Margin m of each class, once the class counts are bound.

    Raises
    ------
    ValueError
        If an argument is out of range.
    RuntimeError
        On the first batch, if no class counts are bound.

    References
    ----------
    .. [1] Cao et al., NeurIPS 2019, eq. 13.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import LDAMLoss
    >>> loss = LDAMLoss(scale=10.0)
    >>> loss.set_class_counts([100, 10, 1])
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(6.8137)
    """

    normalized_logits = True
    head = "cosine"
    margins: Tensor | None

    def __init__(self, max_margin: float = 0.5, scale: float = 30.0, power: float = 0.25) -> None:
        super().__init__()
        check_number("max_margin", max_margin, 0)
        check_number("scale", scale, 0, above=True)
        check_number("power", power, 0)
        self.max_margin = max_margin
        self.scale = scale
        self.power = power
        self.register_buffer("margins", None, persistent=False)

    def _counts_changed(self) -> None:
        self.margins = ldam_margins(self._need_counts(), self.max_margin, self.power)

    def _margin(self, logits: Tensor) -> Tensor:
        if self.power == 0:
            return logits.new_full((logits.shape[1],), self.max_margin)
        self._need_counts()
        assert self.margins is not None
        return self.margins

    @moved_by_constants
    def adjust(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return s (z - m_y e_y), shape (n, K)."""
        return _ldam_logits(logits, target, self._margin(logits), self.scale)


class UniformMarginLoss(LDAMLoss):
    """One margin for all classes (M, additive-margin softmax): LDAM with power 0.

    Parameters
    ----------
    max_margin : float, default=0.5
        The margin. The LDAM paper does not print the value that it tuned.
    scale : float, default=30.0
        s.
    power : float, default=0.0
        As in `LDAMLoss`.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import LDAMLoss, UniformMarginLoss
    >>> z, y = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1])
    >>> UniformMarginLoss()(z, y) == LDAMLoss(power=0.0)(z, y)
    tensor(True)
    """

    def __init__(self, max_margin: float = 0.5, scale: float = 30.0, power: float = 0.0) -> None:
        super().__init__(max_margin, scale, power)


class MaxMarginLoss(ClassCountLoss):
    """Maximum-margin loss (MM): a margin for each sample, largest at the decision boundary.

    Parameters
    ----------
    delta_neg : float, default=0.6
        δ⁻ of rows that are classified wrong, 0 or more. Larger means a smaller margin.
    beta : float, default=1.5
        β, above 0; δ⁺ = β δ⁻ for rows that are classified right.
    scale : float, default=30.0
        s, which multiplies the logits after the margin is taken off. The paper does not print it.
    label_aware : bool, default=False
        Whether δ⁻ is lowered by the LDAM margin of the row's class, which gives rarer classes
        larger margins (MM-LDAM). Needs class counts.
    max_margin : float, default=0.5
        Largest LDAM margin, used if ``label_aware``.

    Raises
    ------
    ValueError
        If an argument is out of range.
    RuntimeError
        On the first batch, if ``label_aware`` and no class counts are bound.

    References
    ----------
    .. [1] Kang, Vu, Yoo, "Learning Imbalanced Datasets with Maximum Margin Loss", ICIP 2021.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import MaxMarginLoss
    >>> loss = MaxMarginLoss(delta_neg=0.6, beta=1.5, scale=10.0)
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(7.6802)
    """

    normalized_logits = True
    head = "cosine"
    margins: Tensor | None

    def __init__(
        self,
        delta_neg: float = 0.6,
        beta: float = 1.5,
        scale: float = 30.0,
        label_aware: bool = False,
        max_margin: float = 0.5,
    ) -> None:
        super().__init__()
        check_number("delta_neg", delta_neg, 0)
        check_number("beta", beta, 0, above=True)
        check_number("scale", scale, 0, above=True)
        check_number("max_margin", max_margin, 0)
        self.delta_neg = delta_neg
        self.beta = beta
        self.scale = scale
        self.label_aware = label_aware
        self.max_margin = max_margin
        self.register_buffer("margins", None, persistent=False)

    def _counts_changed(self) -> None:
        self.margins = ldam_margins(self._need_counts(), self.max_margin)

    def _constants(self, logits: Tensor) -> tuple[_Constants, Tensor]:
        """Return what holds for all batches like this one; the second are rows of -inf.

        Made for each batch they would cost a tenth of the loss. If ``label_aware``, they have a row
        for each class.
        """
        key = logits.shape, logits.dtype, logits.device
        kept = self._kept
        if kept is not None and kept[0] == key:
            known: tuple[_Constants, Tensor] = kept[1]
            return known
        delta_neg: float | Tensor = self.delta_neg
        if self.label_aware:
            self._need_counts()
            assert self.margins is not None
            delta_neg = (self.delta_neg - self.margins).unsqueeze(1)
        found = (
            _Constants.of(logits, delta_neg, self.beta, self.scale),
            logits.new_full((len(logits), 1), -torch.inf),
        )
        if is_eager():
            self._kept = key, found
        return found

    @moved_by_constants
    def adjust(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return s (z - Δ e_y), shape (n, K)."""
        column = target.unsqueeze(1)
        constants, lowest = self._constants(logits)
        if self.label_aware:
            half, middle, scale, zero, one = constants
            half, middle = half.gather(0, column), middle.gather(0, column)
            constants = _Constants(half, middle, scale, zero, one)
        return _max_margin_logits(logits, column, constants, self.scale, lowest)


class MaxMarginLDAMLoss(MaxMarginLoss):
    """Maximum-margin loss with label-aware margins (MM-LDAM): δ⁻ - m_y in place of δ⁻.

    Parameters
    ----------
    delta_neg, beta, scale, max_margin
        As in `MaxMarginLoss`.
    label_aware : bool, default=True
        As in `MaxMarginLoss`.

    Notes
    -----
    The paper gives no equation for the combination; its released code does. Where δ⁻ is below the
    LDAM margin of a class, its margins can exceed 1.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import MaxMarginLDAMLoss
    >>> loss = MaxMarginLDAMLoss(scale=10.0)
    >>> loss.set_class_counts([100, 10, 1])
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(8.8743)
    """

    def __init__(
        self,
        delta_neg: float = 0.6,
        beta: float = 1.5,
        scale: float = 30.0,
        label_aware: bool = True,
        max_margin: float = 0.5,
    ) -> None:
        super().__init__(delta_neg, beta, scale, label_aware, max_margin)
