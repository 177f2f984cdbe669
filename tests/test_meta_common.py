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

NETWORK = MaxMarginClassifier(loss="cross_entropy", max_epochs=20, random_state=0)
SECOND = {"max_epochs": 20, "random_state": 0}


def expected_failures(estimator):
    """Only what the network inside is expected to fail, see test_common."""
    reason = "a row of weight 2 and the same row twice are drawn into other batches"
    if isinstance(estimator.estimator, LogisticRegression):
        return {}
    return {
        "check_sample_weight_equivalence_on_dense_data": reason,
        "check_sample_weight_equivalence_on_sparse_data": reason,
    }


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
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture(autouse=True)
def _single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
