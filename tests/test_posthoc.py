import pickle
from functools import partial

import numpy as np
import pytest
import torch
from imblearn.pipeline import make_pipeline as make_sampled
from imblearn.under_sampling import RandomUnderSampler
from scipy.special import log_softmax
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, get_scorer, recall_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from imbmargin import MaxMarginClassifier, load_model, make_long_tailed, save_model
from imbmargin.posthoc import LogitAdjustment, NearestClassMean, TauNormalization
from imbmargin.two_stage import ClassifierRetraining

NETWORK = MaxMarginClassifier(loss="cross_entropy", max_epochs=15, random_state=0)
RETRAINING = partial(ClassifierRetraining, max_epochs=2, random_state=0)


@pytest.fixture(scope="module")
def rare():
    """Three overlapping classes, the last one rare, and a balanced test part."""
    X, y = make_classification(
        6000, 12, n_informative=6, n_classes=3, class_sep=0.8, random_state=0
    )
    labels = np.array(["a", "b", "c"])[y]
    train = make_long_tailed(X[:4000], labels[:4000], imbalance_ratio=30, random_state=0)
    return *train, X[4000:], labels[4000:]


def skorch_net(*layers):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3), *layers)
    return NeuralNetClassifier(
        network, criterion=nn.CrossEntropyLoss, max_epochs=5, lr=0.1, verbose=0, train_split=None
    )


def test_logits_are_moved_by_the_prior(rare):
    X, y, X_test, _ = rare
    plain = LogisticRegression().fit(X, y)
    prior = np.array([(y == label).mean() for label in plain.classes_])
    for tau in (0.0, 1.0, 1.5):
        moved = LogitAdjustment(LogisticRegression(), tau).fit(X, y)
        expected = plain.predict_log_proba(X_test) - tau * np.log(prior)
        np.testing.assert_allclose(
            moved.predict_log_proba(X_test), log_softmax(expected, axis=1), atol=1e-10
        )
        labels = plain.classes_[expected.argmax(axis=1)]
        np.testing.assert_array_equal(moved.predict(X_test), labels)


@pytest.mark.parametrize(("make", "gain"), [(LogitAdjustment, 0.1), (TauNormalization, 0.02)])
def test_rare_classes_are_found_more_often(make, gain, rare):
    X, y, X_test, y_test = rare
    plain = clone(NETWORK).fit(X, y)
    moved = make(FrozenEstimator(plain)).fit(X, y)
    before, after = (recall_score(y_test, c.predict(X_test), average=None) for c in (plain, moved))
    assert after[2] > before[2] + gain
    assert after.mean() > before.mean()


def test_counts_are_those_of_the_training_part(rare):
    X, y, X_test, _ = rare
    network = clone(NETWORK).set_params(train_split=0.3).fit(X, y)
    counts = network.class_counts_
    frozen = FrozenEstimator(network)
    # A calibration part with other frequencies does not count.
    found = LogitAdjustment(frozen).fit(X_test, rare[3]).decision_function(X_test)
    expected = network.predict_log_proba(X_test) - np.log(counts / counts.sum())
    np.testing.assert_allclose(found, expected, atol=1e-6)
    given = LogitAdjustment(frozen, class_counts=[8, 4, 1]).fit(X, y).decision_function(X_test)
    expected = network.predict_log_proba(X_test) - np.log(np.array([8, 4, 1]) / 13)
    np.testing.assert_allclose(given, expected, atol=1e-6)


def test_counts_are_those_of_a_network_behind_a_sampler(rare):
    X, y, X_test, _ = rare
    sampled = make_sampled(StandardScaler(), RandomUnderSampler(random_state=0), clone(NETWORK))
    adjusted = LogitAdjustment(sampled).fit(X, y)
    assert len(set(adjusted.estimator_[-1].class_counts_)) == 1
    # Equal shares move nothing.
    plain = adjusted.estimator_.predict_log_proba(X_test)
    np.testing.assert_allclose(adjusted.predict_log_proba(X_test), plain, atol=1e-6)
    frozen = FrozenEstimator(make_pipeline(StandardScaler(), clone(NETWORK)).fit(X, y))
    held_out = LogitAdjustment(frozen).fit(X_test, rare[3])
    expected = LogitAdjustment(frozen).fit(X, y).predict_proba(X_test)
    np.testing.assert_array_equal(held_out.predict_proba(X_test), expected)


def test_tau_by_cross_validation_is_the_best_of_the_grid(rare):
    X, y = rare[:2]
    taus, folds = [0.0, 0.5, 1.0, 3.0], StratifiedKFold(3)
    chosen = LogitAdjustment(LogisticRegression(), "cv", taus=taus, cv=folds).fit(X, y)
    scores = {
        tau: np.mean(
            [
                balanced_accuracy_score(
                    y[valid],
                    LogitAdjustment(LogisticRegression(), tau)
                    .fit(X[train], y[train])
                    .predict(X[valid]),
                )
                for train, valid in folds.split(X, y)
            ]
        )
        for tau in taus
    }
    assert chosen.cv_scores_ == pytest.approx(scores)
    assert chosen.tau_ == max(scores, key=scores.get)
    assert chosen.tau_ > 0
    accuracy = LogitAdjustment(
        LogisticRegression(), "cv", taus=taus, cv=folds, scoring="accuracy"
    ).fit(X, y)
    assert accuracy.tau_ < chosen.tau_


def test_vectors_are_divided_by_their_length_to_the_tau(rare):
    X, y, X_test, _ = rare
    network = clone(NETWORK).fit(X, y)
    head = network.module_.head
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    for tau in (0.0, 0.5, 1.0):
        found = TauNormalization(FrozenEstimator(network), tau).fit(X, y)
        base = network.decision_function(X_test) - bias
        expected = base / np.linalg.norm(weight, axis=1) ** tau
        np.testing.assert_allclose(found.decision_function(X_test), expected, rtol=1e-4, atol=1e-5)


def test_a_frozen_classifier_is_not_fitted_again(rare):
    X, y, X_test, _ = rare
    network = clone(NETWORK).fit(X, y)
    before = network.module_.head.weight.clone()
    for make in (LogitAdjustment, TauNormalization, NearestClassMean):
        make(FrozenEstimator(network)).fit(X, y).predict(X_test)
        assert torch.equal(network.module_.head.weight, before)
        fresh = make(network).fit(X, y)
        assert fresh.estimator_ is not network


@pytest.mark.parametrize("normalize", [True, False])
def test_the_nearest_mean(normalize, rare):
    X, y, X_test, _ = rare
    clf = NearestClassMean(NETWORK, normalize=normalize).fit(X, y)
    network = clf.estimator_.module_.eval()

    def features(rows):
        with torch.no_grad():
            x = network.input_norm(torch.from_numpy(rows).float())
            return network.backbone(x).double().numpy()

    train, test = features(X), features(X_test)
    if normalize:
        center = train.mean(axis=0)
        train, test = train - center, test - center
        train /= np.linalg.norm(train, axis=1, keepdims=True)
        test /= np.linalg.norm(test, axis=1, keepdims=True)
    means = [train[y == label].mean(axis=0) for label in ("a", "b", "c")]
    distances = np.array([[((row - mean) ** 2).sum() for mean in means] for row in test])
    np.testing.assert_allclose(-clf.decision_function(X_test), distances, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_row_of_weight_2_counts_twice_in_its_mean_and_one_of_0_not(normalize, rare):
    X, y = rare[:2]
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    network = FrozenEstimator(clone(NETWORK).fit(X, y))
    repeated = np.repeat(np.arange(len(y)), weight)
    expected = NearestClassMean(network, normalize=normalize).fit(X[repeated], y[repeated])
    clf = NearestClassMean(network, normalize=normalize).fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(clf.means_, expected.means_, rtol=1e-4, atol=1e-5)
    pipeline = FrozenEstimator(make_pipeline(NETWORK).fit(X, y))
    clf = NearestClassMean(pipeline, normalize=normalize)
    clf.fit(X, y, maxmarginclassifier__sample_weight=weight)
    np.testing.assert_allclose(clf.means_, expected.means_, rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_class_of_weight_0_is_never_nearest(rare):
    X, y = rare[:2]
    network = FrozenEstimator(clone(NETWORK).fit(X, y))
    clf = NearestClassMean(network).fit(X, y, sample_weight=(y != "b").astype(float))
    assert set(clf.predict(X)) == {"a", "c"}


@pytest.mark.parametrize("classes", [["c", "none", "a", "b"], ["a", "b", "c", "last"]])
def test_the_mean_of_a_class_without_rows_is_never_nearest(classes, rare):
    X, y, X_test, y_test = rare
    network = MaxMarginClassifier(
        loss="cross_entropy", classes=classes, max_epochs=15, random_state=0
    )
    clf = NearestClassMean(network).fit(X, y)
    assert set(clf.predict(X_test)) == {"a", "b", "c"}
    assert balanced_accuracy_score(y_test, clf.predict(X_test)) > 0.5
    empty = sorted(classes).index("none" if "none" in classes else "last")
    assert (clf.predict_proba(X_test)[:, empty] == 0).all()
    assert np.isnan(clf.means_[empty]).all()


# torch's tracer looks at attributes that warn.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_network_is_not_compiled_anew_to_be_looked_into(rare):
    X, y, *_ = rare
    compiled = clone(NETWORK).set_params(compile=True, compile__backend="aot_eager").fit(X, y)
    torch._dynamo.utils.counters.clear()
    clf = NearestClassMean(FrozenEstimator(compiled)).fit(X, y)
    found = clf.predict_proba(X)
    assert not torch._dynamo.utils.counters["stats"]
    plain = NearestClassMean(NETWORK).fit(X, y)
    np.testing.assert_allclose(found, plain.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("make", [LogitAdjustment, TauNormalization, NearestClassMean])
def test_around_plain_skorch_nets_and_pipelines(make, rare):
    X, y, X_test, y_test = rare
    codes, X, X_test = np.searchsorted(["a", "b", "c"], y), *(np.float32(p) for p in (X, X_test))
    clf = make(skorch_net()).fit(X, codes)
    assert clf.score(X_test, np.searchsorted(["a", "b", "c"], y_test)) > 0.4
    pipeline = make(make_pipeline(StandardScaler(), NETWORK)).fit(X, y)
    assert balanced_accuracy_score(y_test, pipeline.predict(X_test)) > 0.5
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict(X_test), pipeline.predict(X_test))


def test_a_softmax_after_the_last_layer_is_looked_behind(rare):
    X, y = np.float32(rare[0]), np.searchsorted(["a", "b", "c"], rare[1])
    net = skorch_net(nn.Softmax(dim=1)).fit(X, y)
    layer = net.module_[2]
    found = TauNormalization(FrozenEstimator(net), 0.0).fit(X, y).decision_function(X)
    with torch.no_grad():
        expected = layer(net.module_[:2](torch.from_numpy(X))) - layer.bias
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LogitAdjustment(NETWORK, tau="best"), ValueError, "tau must be a number or 'cv'"),
        (lambda: LogitAdjustment(NETWORK, tau=np.nan), ValueError, "tau must be a number or 'cv'"),
        (
            lambda: LogitAdjustment(NETWORK, class_counts=[1, 0, 2]),
            ValueError,
            r"class_counts must be above 0 for each of the 3 classes, got \[1, 0, 2\]",
        ),
        (
            lambda: LogitAdjustment(NETWORK, class_counts=[[1], [4], [2]]),
            ValueError,
            r"class_counts must be above 0 for each of the 3 classes, got \[\[1\], \[4\], \[2\]\]",
        ),
        (
            lambda: LogitAdjustment(NETWORK, class_counts=[1, np.nan, 2]),
            ValueError,
            r"class_counts must be above 0 for each of the 3 classes, got \[1.0, nan, 2.0\]",
        ),
        (
            lambda: LogitAdjustment(NETWORK, "cv", taus=[]),
            ValueError,
            r"taus must be numbers, at least one, got \[\]",
        ),
        (
            lambda: TauNormalization(NETWORK, "cv", taus=[0.5, np.nan]),
            ValueError,
            r"taus must be numbers, at least one, got \[0.5, nan\]",
        ),
        (
            lambda: TauNormalization(LogisticRegression()),
            TypeError,
            "estimator must be a skorch classifier .* got LogisticRegression",
        ),
        (
            lambda: TauNormalization(MaxMarginClassifier(max_epochs=1)),
            ValueError,
            "needs a Linear layer at the end, head is a CosineLinear; a cosine head has vectors of",
        ),
    ],
)
def test_what_cannot_be_done(make, error, message, rare):
    with pytest.raises(error, match=message):
        make().fit(*rare[:2])


@pytest.mark.parametrize("make", [LogitAdjustment, TauNormalization, NearestClassMean, RETRAINING])
def test_around_a_frozen_classifier_it_is_saved_whole(make, rare, tmp_path):
    X, y, X_test, _ = rare
    frozen = FrozenEstimator(clone(NETWORK).set_params(max_epochs=2).fit(X, y))
    fitted = make(frozen).fit(X, y)
    save_model(fitted, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    expected = fitted.predict_proba(X_test)
    np.testing.assert_array_equal(loaded.predict_proba(X_test), expected)
    np.testing.assert_array_equal(loaded.fit(X, y).predict_proba(X_test), expected)


def test_fit_parameters_do_not_go_with_folds(rare):
    X, y = rare[:2]
    weight = np.ones(len(y))
    LogitAdjustment(NETWORK).fit(X, y, sample_weight=weight)
    with pytest.raises(ValueError, match=r"tau='cv' does not pass \['sample_weight'\]"):
        LogitAdjustment(NETWORK, "cv").fit(X, y, sample_weight=weight)


@pytest.mark.parametrize("make", [LogitAdjustment, TauNormalization])
@pytest.mark.parametrize("scoring", ["accuracy", "balanced_accuracy"])
def test_a_class_that_a_fold_lacks_keeps_the_others_in_place(make, scoring):
    X, y = load_iris(return_X_y=True)
    rows = np.r_[0:51, 100:150]
    X, y = X[rows].astype(np.float32), y[rows]
    folds = list(KFold(3, shuffle=True, random_state=0).split(X))
    clf = make(NETWORK, tau="cv", taus=[0.0, 0.5], scoring=scoring, cv=folds).fit(X, y)
    score, expected = get_scorer(scoring), []
    for train, test in folds:
        network = clone(NETWORK).fit(X[train], y[train])
        expected.append(score(network, X[test], y[test]))
    assert any(len(np.unique(y[train])) == 2 for train, _ in folds)
    plain = np.mean(expected)
    assert clf.cv_scores_[0.0] == pytest.approx(plain, abs=0.03 if make is TauNormalization else 0)
    assert clf.classes_.tolist() == [0, 1, 2]
    if make is LogitAdjustment:
        given = make(NETWORK, tau="cv", taus=[0.0, 0.5], scoring=scoring, cv=folds)
        given.set_params(class_counts=np.bincount(y)).fit(X, y)
        assert given.cv_scores_[0.0] == clf.cv_scores_[0.0]
