"""Losses for imbalanced classification: each a function of single samples, and a Module.

They work in any torch loop. ``loss(logits, target)`` is a weighted mean; ``set_class_counts`` and
``set_class_weight`` bind what a loss needs to know of the training part.
"""

from imbmargin.losses._base import ClassCountLoss, CrossEntropyLoss, weighted_mean
from imbmargin.losses.angular import LargeMarginSoftmaxLoss, large_margin_logits
from imbmargin.losses.focal import FocalLoss, focal_loss
from imbmargin.losses.hinge import HingeLoss, LDAMHingeLoss, hinge_loss
from imbmargin.losses.influence import InfluenceBalancedLoss, influence_balanced_loss
from imbmargin.losses.margin import (
    LDAMLoss,
    MaxMarginLDAMLoss,
    MaxMarginLoss,
    UniformMarginLoss,
    ldam_loss,
    ldam_margins,
    max_margin,
    max_margin_loss,
)
from imbmargin.losses.prior import (
    BalancedSoftmaxLoss,
    LogitAdjustedLoss,
    VectorScalingLoss,
    logit_adjusted_loss,
    logit_shift,
    vector_scaling_loss,
)

LOSSES: dict[str, type[ClassCountLoss]] = {
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "ldam": LDAMLoss,
    "uniform_margin": UniformMarginLoss,
    "mm": MaxMarginLoss,
    "mm_ldam": MaxMarginLDAMLoss,
    "hinge": HingeLoss,
    "ldam_hinge": LDAMHingeLoss,
    "balanced_softmax": BalancedSoftmaxLoss,
    "logit_adjusted": LogitAdjustedLoss,
    "vs": VectorScalingLoss,
    "large_margin_softmax": LargeMarginSoftmaxLoss,
    "influence_balanced": InfluenceBalancedLoss,
}
"""Name -> class: what ``MaxMarginClassifier(loss=...)`` accepts."""

__all__ = [
    "LOSSES",
    "BalancedSoftmaxLoss",
    "ClassCountLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "HingeLoss",
    "InfluenceBalancedLoss",
    "LDAMHingeLoss",
    "LDAMLoss",
    "LargeMarginSoftmaxLoss",
    "LogitAdjustedLoss",
    "MaxMarginLDAMLoss",
    "MaxMarginLoss",
    "UniformMarginLoss",
    "VectorScalingLoss",
    "focal_loss",
    "hinge_loss",
    "influence_balanced_loss",
    "large_margin_logits",
    "ldam_loss",
    "ldam_margins",
    "logit_adjusted_loss",
    "logit_shift",
    "max_margin",
    "max_margin_loss",
    "vector_scaling_loss",
    "weighted_mean",
]
