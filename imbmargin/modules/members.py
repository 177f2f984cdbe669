"""Networks that share their matrices and are trained together as one: the parts of TabM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MemberHeads", "MemberLinear", "SpreadMembers", "rows_per_target"]


class SpreadMembers(nn.Module):
    """Give each member of an ensemble the row: m rows that follow one another, for each.

    Parameters
    ----------
    members : int
        Members of the ensemble, m.
    """

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = members

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows (n · m, in) of rows (n, in)."""
        return x.unsqueeze(1).expand(-1, self.members, -1).flatten(0, 1)


class MemberLinear(nn.Module):
    """Linear layer whose matrix is shared, between factors that are a member's own.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the layer.
    members : int
        Members of the ensemble, m.
    random_signs : bool, default=False
        Whether the factors of the inputs start as -1 or 1 at random, which makes the members
        different, as in the first layer of a network. False: as 1.

    References
    ----------
    .. [1] Gorishniy et al., "TabM: Advancing Tabular Deep Learning with Parameter-Efficient
       Ensembling", ICLR 2025, section 3.
    """

    def __init__(
        self, in_features: int, out_features: int, members: int, random_signs: bool = False
    ) -> None:
        super().__init__()
        self.members = members
        self.random_signs = random_signs
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.input_factor = nn.Parameter(torch.empty(members, in_features))
        self.output_factor = nn.Parameter(torch.empty(members, out_features))
        self.bias = nn.Parameter(torch.empty(members, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, weight and bias as torch's Linear does."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        with torch.no_grad():
            self.weight.uniform_(-bound, bound)
            self.bias.uniform_(-bound, bound)
            self.output_factor.fill_(1)
            self.input_factor.fill_(1)
            if self.random_signs:
                self.input_factor.copy_(torch.randint_like(self.input_factor, 2) * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows (n · m, out) of rows (n · m, in), members next to one another."""
        x = (x.unflatten(0, (-1, self.members)) * self.input_factor).flatten(0, 1)
        x = F.linear(x, self.weight).unflatten(0, (-1, self.members))
        return torch.addcmul(self.bias, x, self.output_factor).flatten(0, 1)

    def extra_repr(self) -> str:
        """Return the sizes, for repr."""
        rows, columns = self.weight.shape
        return f"in_features={columns}, out_features={rows}, members={self.members}"


class MemberHeads(nn.Module):
    """A head for each member; what they say together is the mean of their probabilities.

    Parameters
    ----------
    heads : sequence of Module
        One for each of the m members, of one kind: from features (n, d) to logits (n, K).
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    @property
    def out_features(self) -> int:
        """Number of classes."""
        return int(self._first.out_features)

    @property
    def normalized(self) -> bool:
        """Whether the logits are cosines."""
        return bool(getattr(self._first, "normalized", False))

    @property
    def _first(self) -> Any:
        return self.heads[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (n · m, K) of each member, or those of all together (n, K).

        In training each member has rows of its own, and so a loss. In prediction the logits are
        the logarithms of the mean probabilities, or with cosine heads the mean cosines.
        """
        features = x.unflatten(0, (-1, len(self.heads))).unbind(1)
        pairs = zip(self.heads, features, strict=True)
        logits = torch.stack([head(part) for head, part in pairs], dim=1).flatten(0, 1)
        return logits if self.training else self.together(logits)

    def together(self, logits: Tensor) -> Tensor:
        """Return the logits of all members together (n, K), from those of each (n · m, K)."""
        logits = logits.unflatten(0, (-1, len(self.heads)))
        if self.normalized:
            return logits.mean(1)
        return logits.log_softmax(2).logsumexp(1) - math.log(len(self.heads))


def rows_per_target(module: nn.Module) -> int:
    """Return how many rows of logits a network gives for a row of the batch, as it is now.

    Parameters
    ----------
    module : Module
        The network.

    Returns
    -------
    rows : int
        The members of an ensemble in training, else 1.

    Examples
    --------
    >>> from imbmargin.modules import MLP
    >>> from imbmargin.modules.members import rows_per_target
    >>> network = MLP(in_features=4, num_classes=3, members=8)
    >>> rows_per_target(network), rows_per_target(network.eval())
    (8, 1)
    """
    head = getattr(module, "head", None)
    return len(head.heads) if isinstance(head, MemberHeads) and head.training else 1
