"""The estimator inside scikit-learn's and imbalanced-learn's tools."""

import numpy as np
import pytest
import sklearn
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.pipeline import make_pipeline as make_imblearn_pipeline
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from imbmargin import LongTailedSampler, MaxMarginClassifier

GRID = {
    "maxmarginclassifier__delta_neg": [0.4, 0.8],
    "maxmarginclassifier__beta": [1.0, 1.5],
}


def classifier(**kwargs):
    return MaxMarginClassifier(**{"max_epochs": 6, "random_state": 0, **kwargs})


def search(n_jobs, **fit_params):
    pipeline = make_pipeline(StandardScaler(), classifier(drw_epoch=0.5))
    return GridSearchCV(pipeline, GRID, scoring="balanced_accuracy", cv=2, n_jobs=n_jobs)


@pytest.mark.parametrize("routing", [False, True])
def test_grid_search_in_a_pipeline_with_jobs(table, routing):
    X, y = table
    with sklearn.config_context(enable_metadata_routing=routing):
        two = search(2).fit(X, y)
        one = search(1).fit(X, y)
    np.testing.assert_array_equal(
        one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"]
    )
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))
    assert set(two.best_params_) == set(GRID)
    assert len({str(p) for p in two.cv_results_["params"]}) == 4


def test_sample_weight_is_routed(table):
    X, y = table
    weight = np.where(np.arange(300) % 2, 0.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        inner = (
            classifier().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        )
        found = GridSearchCV(inner, {"delta_neg": [0.6]}, cv=2).fit(X, y, sample_weight=weight)
        direct = classifier().fit(X, y, sample_weight=weight)
    np.testing.assert_array_equal(found.predict_proba(X), direct.predict_proba(X))


def test_probabilities_have_the_same_bits_with_one_and_two_jobs(table):
    X, y = table
    one, two = (
        cross_val_predict(classifier(), X, y, cv=2, n_jobs=jobs, method="predict_proba")
        for jobs in (1, 2)
    )
    np.testing.assert_array_equal(one, two)


def test_smote_in_an_imblearn_pipeline(table):
    X, y = table
    model = make_imblearn_pipeline(
        StandardScaler(), SMOTE(random_state=0), classifier(loss="cross_entropy")
    )
    assert model.fit(X, y)[-1].class_counts_.tolist() == [np.bincount(y).max()] * 3
    assert cross_val_score(model, X, y, cv=2, scoring="balanced_accuracy").mean() > 0.6


def test_resampled_images_reach_the_network_flattened(images):
    X, y = images
    model = make_imblearn_pipeline(
        RandomOverSampler(random_state=0),
        classifier(module="resnet20", image_shape=(1, 8, 8), max_epochs=2),
    ).fit(X.reshape(len(X), -1), y)
    assert model[-1].module_.input_norm.num_channels == 1
    assert model.predict(X.reshape(len(X), -1)).shape == (300,)


def test_long_tailed_sampler_in_a_pipeline(table):
    X, y = table
    model = make_imblearn_pipeline(
        LongTailedSampler(imbalance_ratio=10, n_max=150, random_state=0), classifier()
    ).fit(X, y)
    counts = model[-1].class_counts_
    assert counts.max() / counts.min() >= 10
    assert model.predict(X).shape == (300,)


def test_calibration(binary_table):
    X, y = binary_table
    model = CalibratedClassifierCV(classifier(), cv=2).fit(X, y, sample_weight=np.ones(300))
    assert model.predict_proba(X).shape == (300, 2)
    assert model.score(X, y) > 0.9


def test_boosting_passes_sample_weights(table):
    X, y = table
    boosted = AdaBoostClassifier(
        classifier(max_epochs=3, loss="cross_entropy", lr=1e-3), n_estimators=4, random_state=0
    ).fit(X, y)
    assert len(boosted.estimators_) > 1
    assert boosted.score(X, y) > boosted.estimators_[0].score(X, y) - 0.02


def test_tuned_threshold(binary_table):
    X, y = binary_table
    model = TunedThresholdClassifierCV(classifier(), scoring="balanced_accuracy", cv=2)
    model.fit(X, y)
    assert balanced_accuracy_score(y, model.predict(X)) > 0.85


def test_bagging_on_features(table):
    X, y = table
    model = BaggingClassifier(classifier(), n_estimators=2, max_features=0.5, random_state=0)
    assert model.fit(X, y).score(X, y) > 0.6
