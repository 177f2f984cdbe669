"""Deep learning on imbalanced data for people who use scikit-learn."""

from imbmargin._version import __version__
from imbmargin.contract import NotFittedError
from imbmargin.data.imbalance import (
    LongTailedSampler,
    StepSampler,
    long_tailed_counts,
    long_tailed_indices,
    make_long_tailed,
    make_step,
    step_counts,
    step_indices,
)
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.export import export_model
from imbmargin.losses import LOSSES
from imbmargin.methods import METHODS, make_classifier
from imbmargin.metrics import balanced_accuracy, group_accuracy, per_class_error, sample_margins
from imbmargin.persistence import load_model, save_model
from imbmargin.search import BatchedGridSearchCV
from imbmargin.weights import class_rates, class_weights, effective_number

__all__ = [
    "LOSSES",
    "METHODS",
    "BatchedGridSearchCV",
    "LongTailedSampler",
    "MaxMarginClassifier",
    "NotFittedError",
    "StepSampler",
    "__version__",
    "balanced_accuracy",
    "class_rates",
    "class_weights",
    "effective_number",
    "export_model",
    "group_accuracy",
    "load_model",
    "long_tailed_counts",
    "long_tailed_indices",
    "make_classifier",
    "make_long_tailed",
    "make_step",
    "per_class_error",
    "sample_margins",
    "save_model",
    "step_counts",
    "step_indices",
]
