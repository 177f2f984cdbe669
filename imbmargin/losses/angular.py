"""Large-margin softmax: the angle to the label's weight vector counts m times."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from imbmargin.losses._base import ClassCountLoss, check_choice, check_number

__all__ = ["LargeMarginSoftmaxLoss", "large_margin_logits"]

_MULTIPLES = (1, 2, 3, 4)
# Those of the published example for CIFAR-10.
_BATCHES = 30_000


def large_margin_logits(
    logits: Tensor,
    target: Tensor,
    features: Tensor,
    head_weight: Tensor,
    multiple: int = 2,
    blend: float | Tensor = 0.0,
) -> Tensor:
    """Return the logits with ‖w_y‖ ‖x‖ (λ cos θ_y + ψ(θ_y)) / (1 + λ) in the place of the label's.

    ψ(θ) = (-1)^k cos(m θ) - 2 k for θ between k π / m and (k + 1) π / m; k is a constant.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Logits x·w, of a last layer without bias.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    features : Tensor of shape (n, d)
        x, what goes into the last layer.
    head_weight : Tensor of shape (K, d)
        w of each class.
    multiple : {1, 2, 3, 4}, default=2
        m; 1 changes nothing.
    blend : float or Tensor, scalar, default=0.0
        λ, 0 or more: share of the plain logit.

    Returns
    -------
    adjusted : Tensor of shape (n, K)

    References
    ----------
    .. [1] Liu et al., "Large-Margin Softmax Loss for Convolutional Neural Networks", ICML 2016,
       eq. 4-6.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import large_margin_logits
    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> large_margin_logits(x @ w.T, torch.tensor([0]), x, w)
    tensor([[-1.,  1.]])
    """
    check_choice("multiple", multiple, _MULTIPLES)
    column = target.unsqueeze(1)
    own = logits.gather(1, column)
    length = features.norm(dim=1, keepdim=True) * head_weight.norm(dim=1)[target].unsqueeze(1)
    length = length.clamp_min(1e-12)
    cosine = (own / length).clamp(-1, 1)
    # cos(m θ) as a polynomial of cos θ: the derivative of the angle itself is infinite at 0 and π.
    powers = {
        1: lambda c: c,
        2: lambda c: 2 * c**2 - 1,
        3: lambda c: 4 * c**3 - 3 * c,
        4: lambda c: 8 * c**4 - 8 * c**2 + 1,
    }
    k = (multiple * cosine.detach().acos() / torch.pi).floor().clamp(max=multiple - 1)
    psi = (1 - 2 * (k % 2)) * powers[multiple](cosine) - 2 * k
    moved = length * (blend * cosine + psi) / (1 + blend)
    return logits.scatter(1, column, moved.to(logits.dtype))


class LargeMarginSoftmaxLoss(ClassCountLoss):
    """Large-margin softmax (L-Softmax): the angle to the label must be m times smaller.

    Parameters
    ----------
    multiple : {1, 2, 3, 4}, default=2
        m; 1 is cross-entropy.
    blend : float, default=1000.0
        λ at the first batch; it falls as λ (1 + γ t)^-p, since the loss does not train from scratch
        without. t goes from 0 to 30,000, the batches of the published example for CIFAR-10.
    gamma, power : float, default=1e-5, 45.0
        γ and p of the fall; those of the example.
    least_blend : float, default=0.0
        Where the fall of λ ends; 5 to 10 for large problems.

    Attributes
    ----------
    planned_batches : int
        Training batches within which t goes its way. `MaxMarginClassifier` sets those of its fit;
        elsewhere they are 30,000 until you set them.

    Raises
    ------
    ValueError
        If an argument is out of range.
    RuntimeError
        If it is called without features and weights of the last layer.

    Notes
    -----
    The last layer must have no bias; `MaxMarginClassifier` makes it so, and passes features and
    weights. In a loop of your own, call
    ``loss(logits, target, features=features, head_weight=head.weight)``. Predict with the plain
    logits.

    On a long tail ``least_blend=5`` keeps rare classes: without it the loss of a class that is not
    learned yet falls when its weight vector becomes short, and it may never be predicted.

    References
    ----------
    .. [1] Liu et al., ICML 2016.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import LargeMarginSoftmaxLoss
    >>> x, w = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> loss = LargeMarginSoftmaxLoss(blend=0.0)
    >>> loss(x @ w.T, torch.tensor([0]), features=x, head_weight=w)
    tensor(2.1269)
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "head_weight")
    head: ClassVar[str] = "unbiased"
    batches: Tensor

    def __init__(
        self,
        multiple: int = 2,
        blend: float = 1000.0,
        gamma: float = 1e-5,
        power: float = 45.0,
        least_blend: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("multiple", multiple, _MULTIPLES)
        for name, value in (("blend", blend), ("gamma", gamma), ("power", power)):
            check_number(name, value, 0)
        check_number("least_blend", least_blend, 0)
        self.multiple = multiple
        self.blend = blend
        self.gamma = gamma
        self.power = power
        self.least_blend = least_blend
        self.planned_batches = _BATCHES
        # Counted on the device, so that no batch waits; a checkpoint holds it.
        self.register_buffer("batches", torch.zeros((), dtype=torch.float64))

    def get_extra_state(self) -> Tensor:
        """Return ``planned_batches``: a training that goes on goes the same way."""
        return torch.tensor(self.planned_batches)

    def set_extra_state(self, state: Tensor) -> None:
        """Take ``planned_batches`` over."""
        self.planned_batches = int(state)

    def adjust(
        self, logits: Tensor, target: Tensor, *, features: Tensor, head_weight: Tensor
    ) -> Tensor:
        """Return the logits with the label's moved, shape (n, K)."""
        t = self.batches * (_BATCHES / self.planned_batches)
        fallen = self.blend * (1 + self.gamma * t) ** -self.power
        blend = fallen.clamp_min(self.least_blend).to(logits.dtype)
        if self.training:
            self.batches += 1
        features, head_weight = features.to(logits.dtype), head_weight.to(logits.dtype)
        return large_margin_logits(logits, target, features, head_weight, self.multiple, blend)
