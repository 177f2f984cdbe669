"""Cross-entropy of logits that are moved by constants, for many classes.

There each pass over the logits costs memory traffic, and each new buffer its page faults: with
autograd's steps through scale, shift and cross-entropy a margin costs twice the cross-entropy
alone. Here one function takes all of it, in one buffer, and its way back is a single product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["is_eager", "moved_by_constants", "shifted_cross_entropy", "takes_shifted"]

Adjust = Callable[[Tensor, Tensor], Tensor]

# Below, the calls of such a function cost more than the passes that it saves.
_LEAST_LOGITS = 2**17


def is_eager() -> bool:
    """Return whether no transform or compiler follows; tensors made for one must not outlive it."""
    return not torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling()


def moved_by_constants(adjust: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Mark an ``adjust`` that returns s z plus what carries no gradient, s being ``scale`` or 1.

    The mark is on the function, so that one that overrides it does not inherit it.
    """
    adjust.moves_by_constants = True  # type: ignore[attr-defined]
    return adjust


def takes_shifted(adjust: Callable[..., Tensor], logits: Tensor) -> bool:
    """Return whether `shifted_cross_entropy` can be used here, and pays."""
    return (
        logits.numel() >= _LEAST_LOGITS
        and logits.requires_grad
        and getattr(adjust, "moves_by_constants", False)
        and torch.autograd.forward_ad._current_level < 0
        and is_eager()
    )


def shifted_cross_entropy(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, adjust: Adjust, scale: float
) -> Tensor:
    """Return the weighted mean of the cross-entropy of the adjusted logits.

    Parameters
    ----------
    logits : Tensor of shape (n, K)
        Before scaling.
    target : Tensor of int64, shape (n,)
        Encoded labels.
    class_weight : Tensor of shape (K,), or None
        Weight of each class in the mean, of the logits' type.
    adjust : callable
        Of logits and target; see `moved_by_constants`.
    scale : float
        s.

    Returns
    -------
    loss : Tensor, scalar
    """
    adjusted = adjust(logits.detach(), target)
    if adjusted.requires_grad:  # a margin that is learned is no constant
        return F.cross_entropy(adjust(logits, target), target, class_weight)
    share = None
    if class_weight is not None:
        share = class_weight.gather(0, target)
        share /= share.sum()
    loss: Tensor = _ShiftedCrossEntropy.apply(logits, adjusted, target, share, adjust, scale)
    return loss


class _ShiftedCrossEntropy(torch.autograd.Function):
    """The mean of the adjusted logits' cross-entropy, for derivatives by the logits of any order.

    ``share`` (n,) are the rows' weights in the mean, None: all equal. On the CPU the buffer of the
    adjusted logits is taken over.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        adjusted: Tensor,
        target: Tensor,
        share: Tensor | None,
        adjust: Adjust,
        scale: float,
    ) -> Tensor:
        column = target.unsqueeze(1)
        if adjusted.device.type == "cpu":
            # It goes row by row.
            residual = torch.softmax(adjusted, dim=1, out=adjusted)
            own = residual.gather(1, column)
            if own.amin().item() >= torch.finfo(own.dtype).tiny:
                losses = own.log().neg_().squeeze(1)
            else:  # a share that is 0, or has lost digits, does not tell the loss
                losses = F.cross_entropy(adjust(logits, target), target, reduction="none")
        else:
            # Another kernel may read what one has written, and a device would wait for the choice.
            losses = F.cross_entropy(adjusted, target, reduction="none")
            residual = torch.softmax(adjusted, dim=1)
            own = residual.gather(1, column)
        residual.scatter_(1, column, own.sub_(1))
        ctx.save_for_backward(logits, target, share, residual)
        ctx.adjust, ctx.scale = adjust, scale
        return losses.mean() if share is None else losses @ share

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, share, residual = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            minus = torch.full_like(target, -1, dtype=logits.dtype).unsqueeze(1)
            residual = torch.softmax(ctx.adjust(logits, target), dim=1)
            residual = residual.scatter_add(1, target.unsqueeze(1), minus)
        if share is None:
            factor = gradients[0] * (ctx.scale / len(target))
        else:
            factor = (share * (gradients[0] * ctx.scale)).unsqueeze(1)
        return residual * factor, None, None, None, None, None
