"""The margin as the released code of the MM paper computes it, for comparison.

    python -m tests.reference.released benchmark table1 --data cifar10/ --methods MM-DRW --jobs 1

runs the command line with this margin in the place of the equations'.
"""

import sys

import torch

from imbmargin.benchmark.cli import main
from imbmargin.losses import LOSSES
from imbmargin.losses._base import ClassCountLoss

NAME = "mm_released"


def released_margin(logits, target, delta_neg, beta):
    """Return Δ: own logits from the column of the batch's first label, the target as 0, no ties."""
    z = logits.detach()
    own = z[:, target[0]]
    others = z.scatter(1, target.unsqueeze(1), 0.0)
    gap = own - others.amax(dim=1)
    right = torch.exp(-gap - beta * delta_neg) * (gap > 0)
    wrong = torch.exp(gap - delta_neg) * (gap < 0)
    return right + wrong


class ReleasedMaxMarginLoss(ClassCountLoss):
    normalized_logits = True
    head = "cosine"

    def __init__(self, delta_neg=0.6, beta=1.5, scale=30.0):
        super().__init__()
        self.delta_neg, self.beta, self.scale = delta_neg, beta, scale

    def adjust(self, logits, target):
        margin = released_margin(logits, target, self.delta_neg, self.beta)
        column = target.unsqueeze(1)
        return self.scale * logits.scatter_add(1, column, -margin.unsqueeze(1))


if __name__ == "__main__":
    LOSSES[NAME] = ReleasedMaxMarginLoss
    sys.exit(main([*sys.argv[1:], "--set", f"loss={NAME}"]))
