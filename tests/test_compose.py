"""The estimator inside scikit-learn's and imbalanced-learn's tools."""

from functools import partial

import numpy as np
import pandas as pd
import polars
import pytest
import sklearn
from imblearn.over_sampling import SMOTE, RandomOverSampler
from imblearn.pipeline import make_pipeline as make_imblearn_pipeline
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.fixes import parse_version

from imbmargin import LongTailedSampler, MaxMarginClassifier
from imbmargin.posthoc import LogitAdjustment
from imbmargin.prior import PriorCorrection
from imbmargin.two_stage import ClassifierRetraining

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


@pytest.mark.parametrize(
    "kind",
    [
        partial(PriorCorrection, trained_prior="uniform"),
        LogitAdjustment,
        partial(ClassifierRetraining, random_state=0),
    ],
)
def test_sample_weight_is_routed_through_what_wraps_a_classifier(table, kind):
    X, y = table
    weight = np.where(np.arange(300) % 2, 0.0, 1.0)
    direct = kind(classifier()).fit(X, y, sample_weight=weight)
    with sklearn.config_context(enable_metadata_routing=True):
        inner = classifier().set_fit_request(sample_weight="row_weight")
        wrapped = kind(inner).set_score_request(sample_weight="row_weight")
        found = GridSearchCV(wrapped, {}, cv=2).fit(X, y, row_weight=weight)
        with pytest.raises(TypeError, match="unexpected argument"):
            kind(inner).fit(X, y, group=weight)
    np.testing.assert_array_equal(found.predict_proba(X), direct.predict_proba(X))


def test_second_stages_take_weights_that_are_routed_into_a_pipeline(table):
    X, y = table
    weight = np.where(np.arange(300) % 2, 0.0, 1.0)
    pipeline = make_pipeline(StandardScaler(), classifier())
    named = {"maxmarginclassifier__sample_weight": weight}
    direct = ClassifierRetraining(pipeline, random_state=0).fit(X, y, **named)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline[-1].set_fit_request(sample_weight="row_weight")
        pipeline[0].set_fit_request(sample_weight=False)
        routed = ClassifierRetraining(pipeline, random_state=0).fit(X, y, row_weight=weight)
    np.testing.assert_array_equal(routed.predict_proba(X), direct.predict_proba(X))


def test_a_correction_sees_weights_that_come_by_another_name(table):
    X, y = table
    with sklearn.config_context(enable_metadata_routing=True):
        inner = classifier().set_fit_request(sample_weight="row_weight")
        with pytest.raises(ValueError, match="with sample_weight is not known; pass trained_prior"):
            PriorCorrection(inner).fit(X, y, row_weight=np.ones(300))


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


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.7"),
    reason="its sigmoid takes no weights of another type than the probabilities",
)
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


MIXED = {
    "age": [20.0, np.nan, 40.0, 50.0, 60.0] * 12,
    "city": ["a", "b", None, "c", "a"] * 12,
    "visits": [0, 3, 1, 7, 2] * 12,
}


def mixed_frame(**columns):
    return pd.DataFrame({**MIXED, **columns})


@pytest.fixture
def mixed_labels():
    return np.array(["yes", "no", "no", "no", "no"] * 12)


def test_a_frame_with_categories_missing_values_and_an_unseen_category(mixed_labels):
    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    categories = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (categories, make_column_selector(dtype_exclude="number")),
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    clf = make_pipeline(columns, classifier(max_epochs=40)).fit(mixed_frame(), mixed_labels)
    assert clf.score(mixed_frame(), mixed_labels) > 0.9
    names = ["age", "visits", "missingindicator_age", "city_a", "city_b", "city_c"]
    # A missing category is one of its own; its name depends on the version of pandas.
    assert clf[-1].feature_names_in_[:-1].tolist() == names
    assert clf[-1].feature_names_in_[-1] in ("city_None", "city_nan")
    assert clf[:-1].get_feature_names_out().tolist() == clf[-1].feature_names_in_.tolist()
    unseen = mixed_frame(city=["z"] * 60)
    assert set(clf.predict(unseen)) <= {"yes", "no"}


@pytest.mark.parametrize("values", [pd.Timestamp("2026-01-01"), pd.Timedelta("1h")])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("make", ["pandas", "polars"])
def test_dates_are_no_numbers(values, alone, make, mixed_labels):
    frame = mixed_frame(age=1, city=1).assign(when=values)
    if make == "polars":
        frame = polars.from_pandas(frame)
    with pytest.raises(
        ValueError, match=r"X has columns that are not numbers, \['when'\]\. A netw"
    ):
        classifier().fit(frame[["when"]] if alone else frame, mixed_labels)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"columns that are not numbers, \['city'\] and columns with missing .*\['age'\]\. A"),
        ({"city": 1}, r"X has columns with missing or infinite values, \['age'\]\. A network nee"),
        ({"age": 1}, r"X has columns that are not numbers, \['city'\]\. A network needs numbers"),
    ],
)
@pytest.mark.parametrize("make", ["pandas", "polars"])
def test_the_error_for_a_mixed_frame_names_the_columns_and_the_cure(
    columns, message, make, mixed_labels
):
    frame = mixed_frame(**columns)
    if make == "polars":
        frame = polars.from_pandas(frame)
    with pytest.raises(ValueError, match=message) as raised:
        classifier().fit(frame, mixed_labels)
    assert "OneHotEncoder(handle_unknown='ignore')" in str(raised.value)
    fitted = classifier().fit(mixed_frame(age=1, city=1), mixed_labels)
    if columns:
        with pytest.raises(ValueError, match=message):
            fitted.predict(frame)


def test_errors_about_names_and_labels_are_left_as_they_are(mixed_labels):
    fitted = classifier().fit(mixed_frame(age=1, city=1), mixed_labels)
    with pytest.raises(ValueError, match="The feature names should match"):
        fitted.predict(pd.DataFrame({"other": [1.0]}))


def test_costs_decide_by_a_threshold_on_corrected_probabilities(binary_table):
    """A missed positive costs 9, a false alarm 1: the threshold is 1 / 10."""
    X, y = binary_table
    corrected = PriorCorrection(classifier(loss="cross_entropy", class_weight="balanced"))
    clf = FixedThresholdClassifier(corrected, threshold=0.1).fit(X, y)
    expected = corrected.fit(X, y).predict_proba(X)[:, 1] >= 0.1
    np.testing.assert_array_equal(clf.predict(X), expected.astype(int))
    assert expected.sum() > (corrected.predict(X) == 1).sum()
