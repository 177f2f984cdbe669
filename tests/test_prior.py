import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from imblearn.pipeline import make_pipeline as make_imblearn_pipeline
from scipy.special import softmax
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback
from torch import nn

from imbmargin import MaxMarginClassifier, NotFittedError, make_classifier
from imbmargin.bbn import BBNClassifier
from imbmargin.prior import PriorCorrection, trained_prior

SETTINGS = {
    "module": nn.Linear,
    "module__out_features": 2,
    "lr": 0.02,
    "optimizer__weight_decay": 0.0,  # the weights of the right network are not to be small
    "lr_schedule": "cosine",
    "max_epochs": 15,
    "random_state": 0,
}


def network(**kwargs):
    return MaxMarginClassifier(**{"loss": "cross_entropy", **SETTINGS, **kwargs})


def normals(n, share):
    """Two normal distributions, for which a linear network can be right."""
    rng = np.random.default_rng(0)
    y = (rng.random(n) < share).astype(int)
    X = rng.normal(size=(n, 4)) + 0.8 * y[:, None]
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def rare():
    """6 % are positive."""
    X, y = normals(12_000, 0.06)
    return train_test_split(X, y, stratify=y, random_state=0)


REBALANCED = {
    "weights": {"class_weight": "balanced"},
    "deferred weights": {"drw_epoch": 0.5},
    "dict": {"class_weight": {0: 1.0, 1: 5.0}},
    "sampling": {"resample": "class_balanced"},
    "balanced softmax": {"loss": "balanced_softmax"},
    "tau": {"loss": "logit_adjusted", "criterion__tau": 0.5},
    "both": {"resample": "square_root", "class_weight": {0: 1.0, 1: 2.0}},
}


@pytest.mark.parametrize("name", REBALANCED)
def test_the_prevalence_is_recovered_and_the_log_loss_is_that_of_erm(name, rare):
    X, X_test, y, y_test = rare
    erm = log_loss(y_test, network().fit(X, y).predict_proba(X_test))
    clf = PriorCorrection(network(**REBALANCED[name])).fit(X, y)
    plain = clf.estimator_.predict_proba(X_test)[:, 1].mean()
    corrected = clf.predict_proba(X_test)
    assert plain > 1.3 * y.mean()
    assert corrected[:, 1].mean() == pytest.approx(y_test.mean(), rel=0.12)
    assert log_loss(y_test, corrected) < 1.05 * erm


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss])
def test_weights_of_a_class_that_many_batches_do_not_have(loss):
    X, y = normals(20_000, 0.01)
    erm = network().fit(X, y).predict_proba(X)
    weighted = network(loss=loss, class_weight="balanced")
    clf = PriorCorrection(weighted).fit(X, y)
    assert 0.3 < trained_prior(clf.estimator_)[1] < 0.45
    corrected = clf.predict_proba(X)
    assert corrected[:, 1].mean() == pytest.approx(y.mean(), rel=0.1)
    assert log_loss(y, corrected) < 1.02 * log_loss(y, erm)


@pytest.mark.parametrize(
    ("counts", "rows"), [((9900, 100), 128), ((190, 10), 128), ((150, 30, 5), 64)]
)
@pytest.mark.parametrize("resample", [None, "square_root"])
def test_the_trained_prior_is_the_mean_share_of_drawn_batches(counts, rows, resample):
    y = np.repeat(np.arange(len(counts)), counts)
    X = np.zeros((len(y), 2), np.float32)
    clf = network(
        module__out_features=len(counts),
        class_weight="balanced",
        resample=resample,
        batch_size=rows,
        max_epochs=1,
    )
    rng = np.random.default_rng(0)
    if resample is None:
        drawn = rng.multivariate_hypergeometric(counts, rows, 50_000)
    else:
        drawn = rng.multinomial(rows, np.sqrt(counts) / np.sqrt(counts).sum(), 50_000)
    mass = drawn / np.array(counts)
    expected = (mass / mass.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(trained_prior(clf.fit(X, y)), expected, rtol=0.015)


def test_weights_that_never_switched_on_are_not_corrected(rare):
    X, _, y, _ = rare
    clf = network(class_weight="balanced", drw_epoch=2, max_epochs=3)
    stopped = clone(clf).set_params(drw_epoch=2, callbacks=[Stop()]).fit(X, y)
    assert len(stopped.history) == 1
    np.testing.assert_allclose(trained_prior(stopped)[1], y.mean())
    assert trained_prior(clf.fit(X, y))[1] > 0.4


class Stop(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_weights_of_rows_must_be_told(rare):
    X, _, y, _ = rare
    weight = np.where(y == 1, 10.0, 1.0)
    clf = PriorCorrection(network(max_epochs=1))
    with pytest.raises(ValueError, match="with sample_weight is not known; pass trained_prior, th"):
        clf.fit(X, y, sample_weight=weight)
    clf.set_params(trained_prior={0: (y == 0).sum(), 1: 10 * (y == 1).sum()})
    plain = clf.fit(X, y, sample_weight=weight).estimator_.predict_proba(X)
    assert clf.predict_proba(X)[:, 1].mean() < 0.7 * plain[:, 1].mean()


def test_an_over_sampled_pipeline(rare):
    X, X_test, y, y_test = rare
    pipeline = make_imblearn_pipeline(SMOTE(random_state=0), network())
    clf = PriorCorrection(pipeline).fit(X, y)
    np.testing.assert_allclose(trained_prior(clf.estimator_[-1]), [0.5, 0.5])
    np.testing.assert_allclose(clf.class_prior_, [1 - y.mean(), y.mean()])
    assert clf.estimator_.predict_proba(X_test)[:, 1].mean() > 2 * y_test.mean()
    assert clf.predict_proba(X_test)[:, 1].mean() == pytest.approx(y_test.mean(), rel=0.3)


def test_other_frequencies_at_prediction(rare):
    """The data of another world have another share of positives, which prior= says."""
    X, X_test, y, y_test = rare
    clf = PriorCorrection(network()).fit(X, y)
    chosen = np.flatnonzero((y_test == 1) | (np.arange(len(y_test)) % 10 == 0))
    world, share = X_test[chosen], y_test[chosen].mean()
    assert share > 0.3
    before = log_loss(y_test[chosen], clf.predict_proba(world))
    for prior in ({1: share, 0: 1 - share}, [1 - share, share]):
        clf.set_params(prior=prior)
        assert log_loss(y_test[chosen], clf.predict_proba(world)) < 0.8 * before
        assert clf.predict_proba(world)[:, 1].mean() == pytest.approx(share, rel=0.12)


def test_probabilities_are_those_of_bayes_rule():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 3)), np.repeat(["a", "b", "c"], [200, 80, 20])
    plain = LogisticRegression(class_weight="balanced").fit(X, y)
    clf = PriorCorrection(clone(plain), trained_prior="uniform").fit(X, y)
    expected = plain.predict_proba(X) * np.array([200, 80, 20])
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-12)
    np.testing.assert_array_equal(clf.predict(X), plain.classes_[expected.argmax(1)])
    none = clf.set_params(prior=[0.5, 0.5, 0]).predict_proba(X)
    assert (none[:, 2] == 0).all()
    np.testing.assert_allclose(none.sum(1), 1)


def test_a_frozen_classifier_and_the_scale_of_a_cosine_head(rare):
    X, X_test, y, _ = rare
    clf = make_classifier("LDAM-DRW", max_epochs=3, random_state=0).fit(X, y)
    corrected = PriorCorrection(FrozenEstimator(clf)).fit(X, y)
    shift = np.log(corrected.class_prior_) - np.log(trained_prior(clf))
    logits = np.log(clf.predict_proba(X_test))
    np.testing.assert_allclose(
        corrected.predict_proba(X_test), softmax(logits + shift, axis=1), atol=1e-6
    )


@pytest.mark.parametrize("name", ["BBN", "MW-Net"])
def test_what_is_not_known_must_be_told(name, table):
    X, y = table
    clf = make_classifier(name, max_epochs=1, random_state=0)
    with pytest.raises(ValueError, match=r"what (BBN|MetaW).*Classifier has learned from is not k"):
        PriorCorrection(clf).fit(X, y)
    told = PriorCorrection(clf, trained_prior="uniform").fit(X, y)
    assert told.predict_proba(X).shape == (300, 3)


def test_of_a_plain_classifier_it_must_be_told_too(table):
    with pytest.raises(ValueError, match="LogisticRegression has learned from is not known; pass"):
        PriorCorrection(LogisticRegression()).fit(*table)


@pytest.mark.parametrize(
    "wrong", [[0.5, 0.5], [0.5, -0.1, 0.6], [np.nan, 1, 1], "balanced", {0: 1.0}, [0, 0, 0]]
)
def test_wrong_priors(wrong, table):
    X, y = table
    word = r"must (be 'uniform', a dict by label, or a freq|have the labels \[0, 1, 2\], got)"
    with pytest.raises(ValueError, match=f"trained_prior {word}"):
        PriorCorrection(LogisticRegression(), trained_prior=wrong).fit(X, y)
    with pytest.raises(ValueError, match=f"prior {word}"):
        PriorCorrection(LogisticRegression(), wrong, trained_prior="uniform").fit(X, y)


def test_remix_gives_the_rare_classes_more_than_their_share(binary_table):
    network = MaxMarginClassifier(loss="cross_entropy", max_epochs=1, random_state=0)
    PriorCorrection(clone(network).set_params(mixing="mixup")).fit(*binary_table)
    network.set_params(mixing="remix")
    with pytest.raises(ValueError, match="has learned from is not known; pass trained_prior"):
        PriorCorrection(network).fit(*binary_table)
    PriorCorrection(network, trained_prior=[0.8, 0.2]).fit(*binary_table)


def test_the_prior_of_a_network_that_is_not_fitted_is_not_known():
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        trained_prior(MaxMarginClassifier())
    with pytest.raises(ValueError, match="what BBNClassifier has learned from is not known"):
        trained_prior(BBNClassifier())


@pytest.mark.parametrize("deferral", ["drw_epoch", "drs_epoch"])
def test_weights_that_begin_when_the_rate_has_fallen_have_not_been_learned(deferral, table):
    X, y = table
    settings = {"loss": "cross_entropy", "max_epochs": 20, "random_state": 0, deferral: 0.8}
    assert trained_prior(MaxMarginClassifier(**settings).fit(X, y)).sum() == pytest.approx(1)
    for schedule in ("cosine", "step"):
        clf = MaxMarginClassifier(**settings, lr_schedule=schedule).fit(X, y)
        with pytest.raises(ValueError, match="began in epoch 17 is not known, since the learning"):
            trained_prior(clf)
        from_the_start = {**settings, deferral: None, "class_weight": "balanced"}
        clf = MaxMarginClassifier(**from_the_start, lr_schedule=schedule).fit(X, y)
        assert trained_prior(clf).sum() == pytest.approx(1)
