"""Derivatives forward through batch normalisation, in two passes over the data instead of twenty.

torch's own rule is made of elementwise steps. In bfloat16 each of them converts, and all of them
together cost more than the convolutions of a ResNet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["QuickBatchNorm"]


class QuickBatchNorm(TorchFunctionMode):
    """Within it, `torch.nn.functional.batch_norm` of dual numbers takes a short way.

    What normalisation does to a change of its input is a symmetric matrix: the kernel that takes
    gradients back takes changes forward as well. What a change of its weight and bias does is
    normalisation with these for weight and bias.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, or what stands for it."""
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    (primal, dx), (weight, d_weight), (bias, d_bias) = map(_unpacked, (x, weight, bias))
    # The statistics move once: the passes after the first one get those of before.
    kept = [part if part is None else part.clone() for part in (running_mean, running_var)]
    normalize: Any = torch.native_batch_norm
    output, *own = normalize(
        primal, weight, bias, running_mean, running_var, training, momentum, eps
    )
    change = None
    if dx is not None:
        change, _, _ = torch.ops.aten.native_batch_norm_backward(
            dx, primal, weight, *kept, *own, training, eps, [True, False, False]
        )
    if d_weight is not None or d_bias is not None:
        changes = [
            torch.zeros_like(part) if d_part is None else d_part
            for part, d_part in ((weight, d_weight), (bias, d_bias))
        ]
        scaled, _, _ = normalize(primal, *changes, *kept, training, momentum, eps)
        change = scaled if change is None else change.add_(scaled)
    return output if change is None else forward_ad.make_dual(output, change)


def _unpacked(part: Tensor | None) -> tuple[Any, Any]:
    return (None, None) if part is None else tuple(forward_ad.unpack_dual(part))
