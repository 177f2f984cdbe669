"""scikit-learn's own checks, on several configurations."""

import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from imbmargin import MaxMarginClassifier
from tests.checks import expected_failures


class LazyNet(nn.Module):
    """A user's network: takes rows of any width, and the head can be replaced.

    All of it is lazy, since scikit-learn compares an instance before and after fit by a hash, and
    torch's initialised parameters have another hash in every copy.
    """

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.LazyLinear(32), nn.ReLU())
        self.head = nn.LazyLinear(2)

    def forward(self, x):
        return self.head(self.backbone(x))


# Fewer epochs than the default: the checks fit each configuration about a hundred times.
COMMON = {"max_epochs": 30, "random_state": 0}
CONFIGURATIONS = [
    MaxMarginClassifier(),
    MaxMarginClassifier(loss="cross_entropy", **COMMON),
    # Half of the epochs, so that the weights have the steps that a check of their effect needs.
    MaxMarginClassifier(loss="mm_ldam", drw_epoch=0.5, max_epochs=60, random_state=0),
    MaxMarginClassifier(resample="class_balanced", **COMMON),
    MaxMarginClassifier(train_split=0.2, **COMMON),
    MaxMarginClassifier(LazyNet(), **COMMON),
]


@parametrize_with_checks(CONFIGURATIONS, expected_failed_checks=expected_failures)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture(autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
