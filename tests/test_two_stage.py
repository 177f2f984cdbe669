import pickle
from functools import partial

import numpy as np
import pytest
import torch
from imblearn.pipeline import make_pipeline as make_sampling_pipeline
from imblearn.under_sampling import RandomUnderSampler
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from imbmargin import MaxMarginClassifier, make_long_tailed
from imbmargin.data.inputs import Layout
from imbmargin.parts import check_module
from imbmargin.two_stage import (
    ClassifierRetraining,
    LearnableWeightScaling,
    MetaSampledRetraining,
    _FrozenFeatures,
)

NETWORK = MaxMarginClassifier(loss="cross_entropy", max_epochs=15, random_state=0)
SECOND = {"max_epochs": 15, "random_state": 0}
every = pytest.mark.parametrize(
    "make", [ClassifierRetraining, LearnableWeightScaling, MetaSampledRetraining]
)


@pytest.fixture(scope="module")
def rare():
    X, y = make_classification(
        6000, 12, n_informative=6, n_classes=3, class_sep=0.8, random_state=0
    )
    X, labels = X.astype(np.float32), np.array(["a", "b", "c"])[y]
    train = make_long_tailed(X[:4000], labels[:4000], imbalance_ratio=30, random_state=0)
    return *train, X[4000:], labels[4000:]


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@every
def test_the_second_stage_finds_rare_classes_and_leaves_the_first_alone(make, rare):
    X, y, X_test, y_test = rare
    first = clone(NETWORK).fit(X, y)
    before = state(first.module_)
    clf = make(FrozenEstimator(first), **SECOND).fit(X, y)
    scores = [balanced_accuracy_score(y_test, c.predict(X_test)) for c in (first, clf)]
    assert scores[1] > scores[0] + 0.03
    after = state(first.module_)
    assert all(torch.equal(before[name], after[name]) for name in before)
    # Of its copy only the head has moved.
    frozen = state(clf.net_.module_.network)
    assert all(torch.equal(before[name], frozen[name]) for name in frozen)
    moving = {name for name, p in clf.net_.module_.named_parameters() if p.requires_grad}
    expected = {"head.factor"} if make is LearnableWeightScaling else {"head.weight", "head.bias"}
    assert moving == expected


def test_the_factors_of_lws_begin_at_1_and_end_above_it_for_rare_classes(rare):
    X, y = rare[:2]
    clf = LearnableWeightScaling(NETWORK, **SECOND).fit(X, y)
    factor = clf.net_.module_.head.factor
    assert factor[0] < 1 < factor[1] < factor[2]
    untouched = LearnableWeightScaling(clf.estimator, max_epochs=1, lr=1e-12, random_state=0)
    untouched.fit(X, y)
    np.testing.assert_allclose(
        untouched.decision_function(X), untouched.estimator_.decision_function(X), atol=1e-4
    )


def test_lws_begins_at_the_scaled_logits_of_a_cosine_head(rare):
    X, y = rare[:2]
    network = clone(NETWORK).set_params(loss="mm", max_epochs=2)
    clf = LearnableWeightScaling(network, max_epochs=1, lr=1e-12, random_state=0).fit(X, y)
    expected = clf.estimator_.logit_scale_ * clf.estimator_.decision_function(X)
    assert clf.estimator_.logit_scale_ == 30
    np.testing.assert_allclose(clf.decision_function(X), expected, atol=1e-4)


def test_the_second_stage_has_the_documented_settings(table):
    first = MaxMarginClassifier(loss="cross_entropy", max_epochs=1, batch_size=50, random_state=0)
    net = ClassifierRetraining(first, max_epochs=18, resample="square_root").fit(*table).net_
    rates = [1 / 30, 2 / 30, *[0.1] * 4, *[0.01] * 6, *[0.001] * 6]
    assert net.history_[:, "event_lr"] == pytest.approx(rates)
    group = net.optimizer_.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    assert (net.batch_size, net.resample) == (50, "square_root")
    meta = MetaSampledRetraining(first, max_epochs=1, rate_lr=0.5, loss="cross_entropy")
    meta.fit(*table)
    assert (meta.net_.rate_lr, meta.net_.loss) == (0.5, "cross_entropy")


@every
def test_the_same_seed_gives_the_same_result_and_touches_no_other(make, rare):
    X, y, X_test, _ = rare
    before = torch.get_rng_state()
    results = [make(NETWORK, **SECOND).fit(X, y).predict_proba(X_test) for _ in range(2)]
    np.testing.assert_array_equal(*results)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
def test_statistics_of_normalisation_layers_drift_only_if_asked(batch_norm):
    X, y = load_digits(n_class=3, return_X_y=True)
    network = MaxMarginClassifier(
        "resnet20", image_shape=(1, 8, 8), loss="cross_entropy", max_epochs=1, random_state=0
    )
    second = {"max_epochs": 1, "random_state": 0, "batch_norm": batch_norm}
    clf = ClassifierRetraining(network, **second).fit(X[:120], y[:120])
    first = dict(clf.estimator_.module_.named_buffers())
    now = dict(clf.net_.module_.network.named_buffers())
    same = all(torch.equal(first[name], now[name]) for name in first if "running" in name)
    assert same == (batch_norm == "eval")


@every
def test_around_plain_skorch_nets_and_pipelines(make, rare):
    X, y, X_test, y_test = rare
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    net = NeuralNetClassifier(
        network, criterion=nn.CrossEntropyLoss, max_epochs=5, lr=0.1, verbose=0, train_split=None
    )
    codes = np.searchsorted(["a", "b", "c"], y)
    clf = make(net, **SECOND).fit(X, codes)
    found = balanced_accuracy_score(np.searchsorted(["a", "b", "c"], y_test), clf.predict(X_test))
    assert found > 0.4
    pipeline = make(make_pipeline(StandardScaler(), NETWORK), **SECOND).fit(X, y)
    assert balanced_accuracy_score(y_test, pipeline.predict(X_test)) > 0.6
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict_proba(X_test), pipeline.predict_proba(X_test))


@every
def test_a_pipeline_of_a_network_alone_is_the_network(make, rare):
    X, y = rare[:2]
    alone = make(make_pipeline(NETWORK), **SECOND).fit(X, y)
    np.testing.assert_array_equal(
        alone.predict_proba(X), make(NETWORK, **SECOND).fit(X, y).predict_proba(X)
    )


@every
def test_a_sampler_before_the_network_is_for_its_training_alone(make, rare):
    X, y, X_test, y_test = rare
    steps = [StandardScaler(), RandomUnderSampler(random_state=0), clone(NETWORK)]
    clf = make(make_sampling_pipeline(*steps), **SECOND).fit(X, y)
    assert balanced_accuracy_score(y_test, clf.predict(X_test)) > 0.5
    assert clf.net_.class_counts_.sum() == len(y)
    assert clf.estimator_[-1].class_counts_.sum() < len(y)


@every
def test_weights_of_rows_are_those_of_both_stages(make, rare):
    X, y = rare[:2]
    weight = np.where(y == "a", 0.01, 1.0)
    first = clone(NETWORK).fit(X, y)
    plain = make(FrozenEstimator(first), **SECOND).fit(X, y).predict_proba(X)
    weighted = make(FrozenEstimator(first), **SECOND).fit(X, y, sample_weight=weight)
    assert weighted.predict_proba(X)[:, 0].mean() < plain[:, 0].mean() - 0.05
    pipeline = FrozenEstimator(make_pipeline(StandardScaler(), NETWORK).fit(X, y))
    routed = {"maxmarginclassifier__sample_weight": weight}
    plain = make(pipeline, **SECOND).fit(X, y).predict_proba(X)
    weighted = make(pipeline, **SECOND).fit(X, y, **routed).predict_proba(X)
    assert weighted[:, 0].mean() < plain[:, 0].mean() - 0.05


@every
def test_classes_without_rows_and_in_another_order(make, rare):
    X, y, X_test, y_test = rare
    network = MaxMarginClassifier(loss="cross_entropy", max_epochs=15, random_state=0)
    network.set_params(classes=["c", "none", "a", "b"])
    clf = make(network, **SECOND).fit(X, y)
    assert clf.predict_proba(X_test).shape == (len(X_test), 4)
    assert balanced_accuracy_score(y_test, clf.predict(X_test)) > 0.6
    assert (clf.predict(X_test) != "none").all()


def test_crt_after_the_maximum_margin_loss(rare):
    X, y, X_test, y_test = rare
    margin = MaxMarginClassifier(loss="mm", max_epochs=15, random_state=0)
    clf = ClassifierRetraining(margin, **SECOND).fit(X, y)
    assert isinstance(clf.net_.module_.head, nn.Linear)
    first = balanced_accuracy_score(y_test, clf.estimator_.predict(X_test))
    assert balanced_accuracy_score(y_test, clf.predict(X_test)) > first


def test_a_network_that_goes_on_after_its_head_is_an_error(rare):
    X, y = rare[0], np.searchsorted(["a", "b", "c"], rare[1])
    network = nn.Sequential(nn.Linear(12, 3), nn.Softmax(dim=1))
    net = NeuralNetClassifier(network, max_epochs=1, verbose=0, train_split=None)
    with pytest.raises(ValueError, match="does something to the outputs of its last layer, such"):
        ClassifierRetraining(net).fit(X, y)


@every
@pytest.mark.parametrize("folder", ["first", "{run}"])
def test_a_second_stage_that_is_killed_goes_on(make, folder, rare, tmp_path, monkeypatch):
    X, y, X_test, _ = rare
    network = clone(NETWORK).set_params(max_epochs=2, checkpoint_dir=tmp_path / folder)
    clf = make(network, max_epochs=4, random_state=0)
    written, write_checkpoint = [], MaxMarginClassifier._write_checkpoint

    def write(net, finished):
        write_checkpoint(net, finished)
        written.append((net.max_epochs, len(net.history)))
        if written == [(2, 1), (2, 2), (2, 2), (4, 1), (4, 2), (4, 3)]:
            raise RuntimeError("killed")

    monkeypatch.setattr(MaxMarginClassifier, "_write_checkpoint", write)
    with pytest.raises(RuntimeError, match="killed"):
        clf.fit(X, y)
    clf.fit(X, y)
    # The first stage was read, and so were three epochs of the second.
    assert written[6:] == [(4, 4), (4, 4)]
    network.set_params(checkpoint_dir=None)
    whole = make(network, max_epochs=4, random_state=0).fit(X, y)
    assert np.array_equal(clf.predict_proba(X_test), whole.predict_proba(X_test))
    assert len(written) == 8


def test_processes_that_share_a_training_do_not_write_each_other_s_second_stage(
    rare, tmp_path, monkeypatch
):
    X, y, *_ = rare
    first = clone(NETWORK).set_params(max_epochs=1, checkpoint_dir=tmp_path).fit(X, y)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    clf = ClassifierRetraining(FrozenEstimator(first), max_epochs=1, random_state=0).fit(X, y)
    assert clf.net_.checkpoint_dir is None
    assert not list(tmp_path.glob("second_stage-*"))


def test_several_second_stages_keep_their_states_beside_one_first(rare, tmp_path):
    X, y, *_ = rare
    first = clone(NETWORK).set_params(max_epochs=2, checkpoint_dir=tmp_path).fit(X, y)
    for make in (ClassifierRetraining, LearnableWeightScaling):
        for lr in (0.1, 0.2):
            clf = make(FrozenEstimator(first), max_epochs=1, lr=lr, random_state=0).fit(X, y)
            assert len(clf.net_.history_) == 1
    assert len(list(tmp_path.glob("second_stage-*/*.safetensors"))) == 4


def test_a_network_that_is_on_its_device_gets_a_new_head_there():
    # Without a second device at hand, one that only knows shapes.
    network = _FrozenFeatures(
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).to("meta"),
        "1",
        partial(nn.Linear, 5, 3),
        True,
    )
    assert network.head.weight.device.type == "cpu"
    check_module(network, Layout("rows", (4,)), 3, "meta")
    assert network.head.weight.device.type == "meta"


def test_an_unknown_mode_is_an_error_before_training(rare):
    with pytest.raises(ValueError, match=r"batch_norm must be one of \['train', 'eval'\], got 'of"):
        ClassifierRetraining(None, batch_norm="off").fit(*rare[:2])


@every
def test_images_on_another_scale_are_noticed(make, images):
    X, y = images
    network = MaxMarginClassifier("resnet20", loss="cross_entropy", max_epochs=1, random_state=0)
    clf = make(network, max_epochs=1, random_state=0).fit(X, y)
    assert clf.predict(X).shape == y.shape
    with pytest.warns(UserWarning, match="multiply X by 255"):
        clf.predict((X / 255).astype(np.float32))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ClassifierRetraining, {"max_epochs": 0}, "max_epochs must be an integer of at least 1"),
        (LearnableWeightScaling, {"resample": "equal"}, "equal"),
        (MetaSampledRetraining, {"loss": "no"}, "loss"),
        (MetaSampledRetraining, {"rate_lr": 0}, "rate_lr must be above 0"),
    ],
)
def test_the_second_stage_is_checked_before_the_first(make, settings, message, rare, monkeypatch):
    monkeypatch.setattr(MaxMarginClassifier, "fit", lambda *args: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match=message):
        make(clone(NETWORK), **settings).fit(*rare[:2])
