"""Heads: the last layer, from features to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbmargin.modules.members import MemberHeads

__all__ = ["HEADS", "CosineLinear", "find_head", "make_head", "replace_head", "watch_input"]

Head = str | Callable[[int, int], nn.Module]


def _in_own_precision(forward: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """Let a head compute in the type of its weights where autocast would take a shorter one.

    Of a logit, bfloat16 keeps eight bits: classes tie in some rows, which then go to the more
    frequent one, and the margins, which are differences of logits, are rounded most.
    """

    @wraps(forward)
    def exact(self: Any, features: Tensor) -> Tensor:
        device = features.device.type
        if not torch.is_autocast_enabled(device):
            return forward(self, features)
        with torch.autocast(device, enabled=False):
            return forward(self, features.to(self.weight.dtype))

    return exact


class Linear(nn.Linear):
    """torch's Linear as a head: inside autocast too it computes in the type of its weights."""

    @_in_own_precision
    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (n, K) of features (n, in_features)."""
        return super().forward(input)


class CosineLinear(nn.Module):
    """Normalised head: the cosine between the features and each class's weight vector.

    Parameters
    ----------
    in_features : int
        Size of the features.
    out_features : int
        Number of classes K.

    Notes
    -----
    No bias and no scale: the margin losses scale the logits, after taking the margin off. Weights
    start uniform in (-1, 1), each vector brought to length 1. Their length has no influence on the
    logits.

    References
    ----------
    .. [1] Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
       NeurIPS 2019, section 3.2.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.modules import CosineLinear
    >>> head = CosineLinear(4, 3)
    >>> bool((head(torch.randn(10, 4)).abs() <= 1.0001).all())
    True
    """

    #: The logits are cosines in [-1, 1].
    normalized = True

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        with torch.no_grad():
            self.weight.uniform_(-1, 1)
            self.weight.copy_(F.normalize(self.weight, dim=1))

    @_in_own_precision
    def forward(self, features: Tensor) -> Tensor:
        """Return the cosines (n, K) of features (n, in_features)."""
        return F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def extra_repr(self) -> str:
        """Return the sizes, for repr."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": Linear,
    "unbiased": partial(Linear, bias=False),
    "cosine": CosineLinear,
}
"""Name -> what makes the last layer, from the number of features and of classes."""


def make_head(head: Head, in_features: int, out_features: int) -> nn.Module:
    """Make a head by name, or by a function of the two sizes.

    Parameters
    ----------
    head : {"linear", "unbiased", "cosine"} or callable
        Kind of head. A callable gets ``(in_features, out_features)``.
    in_features, out_features : int
        Size of the features, and number of classes.

    Returns
    -------
    head : Module

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> from imbmargin.modules import make_head
    >>> make_head("cosine", 64, 10)
    CosineLinear(in_features=64, out_features=10)
    """
    if callable(head):
        return head(in_features, out_features)
    if head not in HEADS:
        raise ValueError(f"head must be one of {list(HEADS)} or a callable, got {head!r}")
    return HEADS[head](in_features, out_features)


def find_head(module: nn.Module) -> tuple[str, nn.Module]:
    """Return name and layer of a network's last layer: ``head``, or else the last Linear.

    Parameters
    ----------
    module : Module
        The network.

    Returns
    -------
    name : str
        Name of the layer, as in ``module.named_modules()``.
    layer : Module
        The layer.

    Raises
    ------
    ValueError
        If there is neither, or the members of an ensemble have a head each.

    Examples
    --------
    >>> from torch import nn
    >>> from imbmargin.modules import find_head
    >>> find_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))[0]
    '2'
    """
    head = getattr(module, "head", None)
    if isinstance(head, MemberHeads):
        raise ValueError(
            f"each of the {len(head.heads)} members of {type(module).__name__} has a head of its "
            "own, and one last layer is needed here; set module__members=1"
        )
    if isinstance(head, nn.Module):
        return "head", head
    found = [pair for pair in module.named_modules() if isinstance(pair[1], nn.Linear)]
    if not found or not found[-1][0]:
        raise ValueError(
            f"module {type(module).__name__} has neither an attribute `head` nor a Linear layer "
            "inside; give it a head"
        )
    return found[-1]


def class_vectors(head: nn.Module) -> Tensor:
    """Return the weights (K, d) of a head whose logits are their products with the features.

    Raises
    ------
    ValueError
        If they are not: the head has a bias, gives cosines, or is something else.
    """
    if isinstance(head, nn.Linear) and head.bias is None:
        return head.weight
    raise ValueError(
        f"the loss needs a head without a bias, whose logits are products of weights and features, "
        f"got {head}; leave module__head out, or make the head nn.Linear(..., bias=False)"
    )


@contextmanager
def watch_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what goes into a layer, call by call, with its graph.

    Parameters
    ----------
    layer : Module
        The layer that is watched inside the ``with`` block.

    Yields
    ------
    seen : list of Tensor
        Its first argument, of each call so far.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.modules import MLP, watch_input
    >>> network = MLP(in_features=4, num_classes=3)
    >>> with watch_input(network.head) as seen:
    ...     logits = network(torch.zeros(5, 4))
    >>> seen[0].shape
    torch.Size([5, 128])
    """
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def replace_head(module: nn.Module, num_classes: int) -> None:
    """Give a network a fresh head of the same kind for another number of classes, in place.

    Parameters
    ----------
    module : Module
        A network with an attribute ``head``.
    num_classes : int
        Number of outputs of the new head.

    Raises
    ------
    TypeError
        If the head is neither a Linear nor a `CosineLinear`.

    Examples
    --------
    >>> from imbmargin.modules import MLP, replace_head
    >>> network = MLP(in_features=4, num_classes=5)
    >>> replace_head(network, 3)
    >>> network.head
    Linear(in_features=128, out_features=3, bias=True)
    """
    module.head = fresh_head(module.head, num_classes)


def fresh_head(head: Any, num_classes: int, parts: int = 1) -> nn.Module:
    """Return a new head of the same kind for so many classes, and so many times the features."""
    if isinstance(head, MemberHeads):
        return MemberHeads([fresh_head(own, num_classes, parts) for own in head.heads])
    if isinstance(head, nn.LazyLinear):
        return nn.LazyLinear(num_classes, bias=head.bias is not None)
    if isinstance(head, CosineLinear):
        return CosineLinear(parts * head.in_features, num_classes)
    if isinstance(head, nn.Linear):
        kind = Linear if isinstance(head, Linear) else nn.Linear
        return kind(parts * head.in_features, num_classes, bias=head.bias is not None)
    raise TypeError(
        f"the head is a {type(head).__name__} for another number of classes than {num_classes}; "
        "only Linear and CosineLinear can be replaced, so give the module a head with "
        f"{num_classes} outputs"
    )
