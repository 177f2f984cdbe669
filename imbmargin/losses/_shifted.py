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

__all__ = ["moved_by_constants", "shifted_cross_entropy", "takes_shifted"]

Adjust = Callable[[Tensor, Tensor], Tensor]

# Below, the calls of such a function cost more than the passes that it saves.
_LEAST_LOGITS = 2**17


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
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
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
    if class_weight is None:
        share = logits.new_full((len(logits),), 1 / len(logits))
    else:
        share = class_weight.gather(0, target)
        share /= share.sum()
    loss: Tensor = _ShiftedCrossEntropy.apply(logits, adjusted, target, share, adjust, scale)
    return loss


class _ShiftedCrossEntropy(torch.autograd.Function):
    """The mean of the adjusted logits' cross-entropy, for derivatives by the logits of any order.

    On the CPU the buffer of the adjusted logits is taken over.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        adjusted: Tensor,
        target: Tensor,
        share: Tensor,
        adjust: Adjust,
        scale: float,
    ) -> Tensor:
        column = target.unsqueeze(1)
        own, highest = adjusted.gather(1, column), adjusted.amax(dim=1, keepdim=True)
        # The CPU's softmax goes row by row; elsewhere a kernel may read what another has written.
        buffer = adjusted if adjusted.device.type == "cpu" else torch.empty_like(adjusted)
        residual = torch.softmax(adjusted, dim=1, out=buffer)
        # The largest share is at least 1/K: its log is exact where that of the label's, which can
        # be 0 in float32, is not.
        losses = highest - own - residual.amax(dim=1, keepdim=True).log()
        residual.scatter_(1, column, residual.gather(1, column) - 1)
        ctx.save_for_backward(logits, target, share, residual)
        ctx.adjust, ctx.scale = adjust, scale
        return losses.squeeze(1) @ share

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, share, residual = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            minus = torch.full_like(target, -1, dtype=logits.dtype).unsqueeze(1)
            residual = torch.softmax(ctx.adjust(logits, target), dim=1)
            residual = residual.scatter_add(1, target.unsqueeze(1), minus)
        factor = share * (gradients[0] * ctx.scale)
        return residual * factor.unsqueeze(1), None, None, None, None, None
