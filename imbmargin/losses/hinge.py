"""Multi-class hinge losses, with uniform or label-aware margins."""

from __future__ import annotations

import torch
from torch import Tensor

from imbmargin.losses._base import check_choice
from imbmargin.losses.margin import LDAMLoss

__all__ = ["HingeLoss", "LDAMHingeLoss", "hinge_loss"]


_FORMS = ("crammer_singer", "weston_watkins")


def hinge_loss(
    logits: Tensor,
    target: Tensor,
    margins: Tensor,
    scale: float = 3.0,
    form: str = "crammer_singer",
) -> Tensor:
    """Return the multi-class hinge loss of each sample.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Logits z, before scaling.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    margins : Tensor of shape (K,)
        Margin m of each class.
    scale : float, default=3.0
        s. The hinge is homogeneous: it multiplies the loss, like a learning rate.
    form : {"crammer_singer", "weston_watkins"}, default="crammer_singer"
        "crammer_singer": s max(max over j≠y of z_j - z_y + m_y, 0). "weston_watkins": the sum over
        j≠y of s max(z_j - z_y + m_y, 0); torch's multi-margin loss divides it by K.

    Returns
    -------
    losses : Tensor of shape (n,)

    Notes
    -----
    In the form of Crammer and Singer the gradient goes through z_y and one competitor, also in a
    tie, and is zero once the margin is met.

    References
    ----------
    .. [1] Crammer, Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector
       Machines", JMLR 2001. Its use here (HG): Cao et al., NeurIPS 2019.
    .. [2] Weston, Watkins, "Support Vector Machines for Multi-Class Pattern Recognition", ESANN
       1999.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import hinge_loss
    >>> margins = torch.full((3,), 0.5)
    >>> hinge_loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]), margins, scale=1.0)
    tensor([0.9000])
    """
    check_choice("form", form, _FORMS)
    column = target[:, None]
    own = logits.gather(1, column)
    others = logits.scatter(1, column, float("-inf"))
    if form == "crammer_singer":
        # Not amax, which would share the gradient among the competitors of a tie.
        others = others.max(dim=1, keepdim=True).values
    short = torch.relu(others - own + margins[target].unsqueeze(1).to(logits.dtype))
    return scale * short.sum(dim=1)


class HingeLoss(LDAMLoss):
    """Multi-class hinge loss (HG) with one margin for all classes.

    Parameters
    ----------
    max_margin : float, default=0.5
        The margin. The LDAM paper does not print the value that it tuned.
    scale : float, default=3.0
        s, which multiplies logits and margin, and so the loss: it acts like the learning rate. The
        paper does not print it. With the 30 of the other margin losses and a rate of 0.1, networks
        on cosine logits learn badly.
    power : float, default=0.0
        Exponent of 1 / n in the margins of `ldam_margins`; 0 needs no class counts.
    form : {"crammer_singer", "weston_watkins"}, default="crammer_singer"
        See `hinge_loss`. "crammer_singer" in the LDAM paper.

    Raises
    ------
    ValueError
        If an argument is out of range, or the form unknown.
    RuntimeError
        On the first batch, if ``power`` is not 0 and no class counts are bound.

    References
    ----------
    .. [1] Cao et al., NeurIPS 2019, rows HG-DRS and LDAM-HG-DRS.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import HingeLoss
    >>> HingeLoss(scale=1.0)(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(0.9000)
    """

    def __init__(
        self,
        max_margin: float = 0.5,
        scale: float = 3.0,
        power: float = 0.0,
        form: str = "crammer_singer",
    ) -> None:
        super().__init__(max_margin, scale, power)
        check_choice("form", form, _FORMS)
        self.form = form

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, shape (n,)."""
        return hinge_loss(logits, target, self._margin(logits), self.scale, self.form)


class LDAMHingeLoss(HingeLoss):
    """Multi-class hinge loss with label-distribution-aware margins (LDAM-HG).

    Parameters
    ----------
    max_margin : float, default=0.5
        Margin of the rarest class.
    scale : float, default=3.0
        s, see `HingeLoss`.
    power : float, default=0.25
        Exponent of 1 / n.
    form : {"crammer_singer", "weston_watkins"}, default="crammer_singer"
        See `hinge_loss`.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import LDAMHingeLoss
    >>> loss = LDAMHingeLoss(scale=1.0)
    >>> loss.set_class_counts([100, 10, 1])
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(0.6812)
    """

    def __init__(
        self,
        max_margin: float = 0.5,
        scale: float = 3.0,
        power: float = 0.25,
        form: str = "crammer_singer",
    ) -> None:
        super().__init__(max_margin, scale, power, form)
