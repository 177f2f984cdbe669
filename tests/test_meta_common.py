"""scikit-learn's own checks on the meta-estimators."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from imbmargin import MaxMarginClassifier
from imbmargin.posthoc import LogitAdjustment, NearestClassMean, TauNormalization
from imbmargin.prior import PriorCorrection
from imbmargin.two_stage import (
    ClassifierRetraining,
    LearnableWeightScaling,
    MetaSampledRetraining,
)
from tests.checks import expected_failures

# Short sums: float64 that is computed from float32 logits must agree to seven digits with itself,
# whether a row is predicted alone or among others, on any processor.
NETWORK = MaxMarginClassifier(
    loss="cross_entropy", module__hidden_units=(16, 16), lr=5e-3, max_epochs=20, random_state=0
)
SECOND = {"max_epochs": 20, "random_state": 0}


def expected_of_the_inner(estimator):
    """Only what the network inside is expected to fail."""
    inner = estimator.estimator
    return {} if isinstance(inner, LogisticRegression) else expected_failures(inner)


@parametrize_with_checks(
    [
        LogitAdjustment(LogisticRegression()),
        LogitAdjustment(LogisticRegression(), tau="cv", cv=2),
        LogitAdjustment(NETWORK, tau=0.5),
        TauNormalization(NETWORK, tau=0.5),
        PriorCorrection(LogisticRegression(), trained_prior="uniform"),
        PriorCorrection(NETWORK),
        NearestClassMean(NETWORK),
        ClassifierRetraining(NETWORK, **SECOND),
        LearnableWeightScaling(NETWORK, **SECOND),
        MetaSampledRetraining(NETWORK, **SECOND),
    ],
    expected_failed_checks=expected_of_the_inner,
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture(autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
