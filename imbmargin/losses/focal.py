"""Focal loss, in its softmax and its sigmoid form."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbmargin.losses._base import ClassCountLoss, check_choice, check_number

__all__ = ["FocalLoss", "focal_loss"]

_FORMS = ("softmax", "sigmoid")


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 1.0, form: str = "softmax") -> Tensor:
    """Return the focal loss of each sample.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Logits z.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    gamma : float, default=1.0
        γ, 0 or more; 0 is cross-entropy.
    form : {"softmax", "sigmoid"}, default="softmax"
        "softmax": (1 - p_y)^γ (-log p_y). "sigmoid": the sum over classes i, with t_i = 1 for
        the label and -1 otherwise, of (1 - σ(t_i z_i))^γ (-log σ(t_i z_i)).

    Returns
    -------
    losses : Tensor of shape (n,)

    References
    ----------
    .. [1] Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017. The softmax form is that
       of the LDAM code, the sigmoid form that of Cui et al., CVPR 2019.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import focal_loss
    >>> focal_loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor([0.8103])
    """
    check_choice("form", form, _FORMS)
    column = target[:, None]
    # The modulator is built from log(1 - p), whose gradient is bounded: as a power of 1 - p its
    # derivative is infinite at p = 1 for γ < 1.
    if form == "softmax":
        total = torch.logsumexp(logits, dim=1)
        others = torch.logsumexp(logits.scatter(1, column, float("-inf")), dim=1)
        cross_entropy = total - logits.gather(1, column).squeeze(1)
        return torch.exp(gamma * (others - total)) * cross_entropy
    sign = torch.full_like(logits, -1.0).scatter(1, column, 1.0)
    signed = sign * logits
    return (torch.exp(-gamma * F.softplus(signed)) * F.softplus(-signed)).sum(dim=1)


class FocalLoss(ClassCountLoss):
    """Focal loss; class weights stay outside the modulator.

    Parameters
    ----------
    gamma : float, default=1.0
        γ, 0 or more. 1 in the LDAM code; the class-balanced paper chose among 0.5, 1 and 2.
    form : {"softmax", "sigmoid"}, default="softmax"
        See `focal_loss`.

    Raises
    ------
    ValueError
        If ``gamma`` is negative or the form unknown.

    Notes
    -----
    In the sigmoid form the classes are K yes-or-no questions. ``predict_proba`` of the classifier
    is the softmax of their logits all the same: the same ranking, but not what was fitted, which
    ``predict_nonlinearity=torch.sigmoid`` gives. The code of Cui et al. starts the bias of the last
    layer at -log(K - 1) and lets no decay act on it, so that the K - 1 answers "no" do not make up
    the first losses; here the layer starts as it is.

    The released LDAM code multiplies the cross-entropy by the weight first and builds the
    modulator from the product, (1 - p^w)^γ; the equation has w (1 - p)^γ, as here.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import FocalLoss
    >>> FocalLoss(gamma=2.0)(torch.tensor([[3.0, 0.0]]), torch.tensor([0])) < 0.001
    tensor(True)
    """

    def __init__(self, gamma: float = 1.0, form: str = "softmax") -> None:
        super().__init__()
        check_number("gamma", gamma, 0)
        check_choice("form", form, _FORMS)
        self.gamma = gamma
        self.form = form

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the focal loss of each sample, shape (n,)."""
        return focal_loss(logits, target, self.gamma, self.form)
