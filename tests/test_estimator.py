"""The estimator: inputs, labels, parameters, skorch's contract, determinism."""

import copy
import pickle
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import sklearn
import skorch
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.fixes import parse_version
from skorch.callbacks import BatchScoring, Checkpoint, EpochScoring
from skorch.helper import predefined_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from imbmargin import MaxMarginClassifier
from imbmargin.modules import MLP, CosineLinear


def fit(X, y, **kwargs):
    return MaxMarginClassifier(**{"max_epochs": 8, "random_state": 0, **kwargs}).fit(X, y)


@pytest.fixture(scope="module")
def probabilities(table):
    return fit(*table).predict_proba(table[0])


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X.astype(np.float64),
        lambda X: X.tolist(),
        lambda X: np.asfortranarray(X),
        torch.from_numpy,
        lambda X: torch.from_numpy(X).double(),
        sp.csr_matrix,
        sp.csc_array,
        sp.coo_matrix,
        lambda X: pd.DataFrame(X, columns=[f"c{i}" for i in range(8)]),
        lambda X: pl.DataFrame(X, schema=[f"c{i}" for i in range(8)]),
    ],
    ids=[
        "float64",
        "list",
        "fortran",
        "tensor",
        "tensor64",
        "csr",
        "csc",
        "coo",
        "pandas",
        "polars",
    ],
)
def test_every_form_of_a_table_gives_the_same_model(table, probabilities, convert):
    X, y = table
    clf = fit(convert(X), y)
    np.testing.assert_array_equal(clf.predict_proba(convert(X)), probabilities)
    assert clf.n_features_in_ == 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_memory_maps_give_the_same_model(table, probabilities, tmp_path, dtype):
    X, y = table
    np.save(tmp_path / "X.npy", X.astype(dtype))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    clf = fit(mapped, y)
    np.testing.assert_array_equal(clf.predict_proba(mapped), probabilities)


def test_feature_names_are_kept_and_held_to(table):
    X, y = table
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    clf = fit(frame, y)
    assert clf.feature_names_in_.tolist() == list("abcdefgh")
    with pytest.raises(ValueError, match="feature names should match"):
        clf.predict(frame[list("hgfedcba")])


@pytest.mark.parametrize(
    "names",
    [[5, 7, 9], ["rare", "common", "usual"], [2.0, 4.0, 8.0], ["a", None, 3]],
    ids=["ints", "strings", "floats", "object"],
)
def test_labels_of_any_type(table, names):
    X, y = table
    dtype = object if None in names else None
    if None in names:
        names = ["a", "b", "c"]
    labels = np.array(names, dtype=dtype)[y]
    clf = fit(
        X,
        labels,
        train_split=0.3,
        max_epochs=20,
        callbacks=[
            EpochScoring("accuracy", name="epoch", lower_is_better=False),
            BatchScoring("accuracy", name="batch", lower_is_better=False),
        ],
    )
    assert set(clf.predict(X)) <= set(names)
    assert clf.score(X, labels) > 0.85
    plain = fit(X, y, train_split=0.3, max_epochs=20)
    # Sorted labels are another order of classes, hence another network; the scores agree.
    for column in ("epoch", "batch", "valid_balanced_accuracy"):
        assert clf.history[-1, column] > 0.7, column
    assert plain.history[-1, "valid_balanced_accuracy"] > 0.7


@pytest.mark.parametrize(
    "labels", [np.array([False, True]), np.array([-1, 1]), np.array(["n", "p"])]
)
def test_binary_labels_and_their_scores(binary_table, labels):
    X, y = binary_table
    clf = fit(
        X,
        labels[y],
        train_split=0.3,
        max_epochs=30,
        callbacks=[
            EpochScoring("roc_auc", name="auc", lower_is_better=False),
            EpochScoring("balanced_accuracy", name="bac", lower_is_better=False),
        ],
    )
    assert clf.predict(X).dtype == labels.dtype
    assert clf.decision_function(X).shape == (300,)
    np.testing.assert_array_equal(clf.predict(X) == labels[1], clf.decision_function(X) > 0)
    assert clf.history[-1, "auc"] > 0.9
    assert clf.history[-1, "bac"] == clf.history[-1, "valid_balanced_accuracy"]


def test_probabilities_are_the_softmax_of_scaled_logits(table):
    X, y = table
    clf = fit(X, y, criterion__scale=12.0)
    logits = torch.from_numpy(clf.decision_function(X)).double()
    assert float(logits.abs().max()) <= 1 + 1e-6
    np.testing.assert_allclose(clf.predict_proba(X), torch.softmax(12 * logits, 1), rtol=1e-12)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), clf.predict_proba(X), rtol=1e-9)


def test_scale_is_one_with_a_head_that_is_not_normalised(table):
    assert fit(*table).logit_scale_ == 30
    assert fit(*table, module__head="linear").logit_scale_ == 1
    assert fit(*table, module__head="linear", criterion__scale=5.0).logit_scale_ == 5
    assert fit(*table, loss="cross_entropy").logit_scale_ == 1


def test_the_head_follows_the_loss(table):
    assert isinstance(fit(*table).module_.head, CosineLinear)
    assert isinstance(fit(*table, loss="cross_entropy").module_.head, nn.Linear)


def test_it_is_a_skorch_classifier(table, tmp_path):
    X, y = table
    checkpoint = Checkpoint(dirname=str(tmp_path), monitor="train_loss_best")
    clf = fit(X, y, callbacks=[("checkpoint", checkpoint)], module__hidden_units=(16,))
    assert isinstance(clf, skorch.NeuralNetClassifier)
    assert len(clf.history) == 8
    assert set(clf.history[-1]) >= {"epoch", "train_loss", "dur", "event_lr", "batches"}
    assert (tmp_path / "params.pt").exists()
    assert clf.module_.head.in_features == 16
    clf.set_params(callbacks__print_log=None, criterion__scale=10.0, lr=0.01)
    assert clf.criterion_.scale == 10
    assert clf.optimizer_.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("safe", [False, True])
def test_save_params_and_load_params(table, tmp_path, safe):
    X, y = table
    clf = fit(X, y, loss="ldam", class_weight="balanced")
    files = {"f_params": tmp_path / "module", "f_criterion": tmp_path / "criterion"}
    clf.save_params(**files, use_safetensors=safe)
    other = fit(X[::-1], y[::-1], loss="ldam", random_state=1, max_epochs=1)
    assert np.abs(other.predict_proba(X) - clf.predict_proba(X)).max() > 1e-3
    other.load_params(**files, use_safetensors=safe)
    np.testing.assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
    assert torch.equal(other.criterion_.class_weight, clf.criterion_.class_weight)


def test_loading_into_an_initialized_net(table, tmp_path):
    X, y = table
    clf = fit(X, y)
    clf.save_params(f_params=tmp_path / "module")
    sizes = {"module__in_features": 8, "module__num_classes": 3}
    other = MaxMarginClassifier(**sizes, classes=[0, 1, 2]).initialize()
    other.load_params(f_params=tmp_path / "module")
    np.testing.assert_array_equal(other.predict(X), clf.predict(X))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clf: pickle.loads(pickle.dumps(clf))])
def test_copies_predict_the_same_and_train_on(table, copied):
    X, y = table
    clf = fit(X, y, train_split=0.2)
    other = copied(clf)
    np.testing.assert_array_equal(other.predict_proba(X), clf.predict_proba(X))
    assert other.get_params(deep=False).keys() == clf.get_params(deep=False).keys()
    np.testing.assert_array_equal(
        other.partial_fit(X, y).predict_proba(X), clf.partial_fit(X, y).predict_proba(X)
    )


def test_a_clone_of_a_fitted_estimator_refits_on_another_width(table, binary_table):
    clf = fit(*table, module__hidden_units=(16,), criterion__scale=20.0)
    other = clone(clf)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        other.predict(table[0])
    other.fit(*binary_table)
    assert other.n_features_in_ == 6
    assert other.module_.head.in_features == 16
    assert other.criterion_.scale == 20
    assert clf.predict(table[0]).shape == (300,)
    assert clf.fit(*binary_table).n_features_in_ == 6


def test_refit_gives_the_same_bits_and_leaves_global_states(table):
    X, y = table
    torch.manual_seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    clf = fit(X, y, module__dropout=0.2, train_split=0.2, resample="class_balanced")
    first = clf.predict_proba(X)
    np.testing.assert_array_equal(clf.fit(X, y).predict_proba(X), first)
    clf.set_params(module__dropout=0.1)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
    torch.manual_seed(2)
    np.random.seed(2)
    clf.set_params(module__dropout=0.2)
    np.testing.assert_array_equal(clf.fit(X, y).predict_proba(X), first)
    assert np.abs(clf.set_params(random_state=1).fit(X, y).predict_proba(X) - first).max() > 1e-4


def test_random_state_may_be_an_instance(table):
    one = fit(*table, random_state=np.random.RandomState(3)).predict_proba(table[0])
    other = fit(*table, random_state=np.random.RandomState(3)).predict_proba(table[0])
    np.testing.assert_array_equal(one, other)


def test_unseeded_fits_differ(table):
    one = fit(*table, random_state=None, max_epochs=1).predict_proba(table[0])
    other = fit(*table, random_state=None, max_epochs=1).predict_proba(table[0])
    assert np.abs(one - other).max() > 0


def test_class_weight_by_label_and_by_function(table):
    X, y = table
    names = np.array(["c", "b", "a"])[y]
    clf = fit(X, names, loss="cross_entropy", class_weight={"a": 4.0, "b": 2.0})
    assert clf.criterion_.class_weight.tolist() == [4, 2, 1]
    clf = fit(X, names, loss="cross_entropy", class_weight=lambda counts: 1 / counts)
    np.testing.assert_allclose(clf.criterion_.class_weight, 1 / clf.class_counts_, rtol=1e-6)


def test_class_counts_are_those_of_the_training_part(table):
    X, y = table
    clf = fit(X, y, train_split=0.5, loss="ldam")
    assert (np.abs(clf.class_counts_ - np.bincount(y) / 2) <= 0.5).all()
    np.testing.assert_array_equal(clf.criterion_.class_counts, clf.class_counts_)


def test_sample_weight_zero_removes_a_row(table):
    X, y = table
    odd = np.arange(300) % 2
    flipped = np.where(odd, (y + 1) % 3, y)
    clf = MaxMarginClassifier(loss="cross_entropy", max_epochs=40, random_state=0)
    weighted = clf.fit(X, flipped, sample_weight=1 - odd).score(X[::2], y[::2])
    plain = clf.fit(X, flipped).score(X[::2], y[::2])
    assert weighted > 0.9
    assert weighted > plain + 0.1


def test_sample_weight_multiplies_class_weight(table):
    X, y = table
    kwargs = {"loss": "cross_entropy", "max_epochs": 5, "batch_size": -1}
    weight = np.array([1.0, 3.0, 7.0])
    by_class = fit(X, y, class_weight=dict(enumerate(weight)), **kwargs)
    by_row = MaxMarginClassifier(random_state=0, **kwargs).fit(X, y, sample_weight=weight[y])
    np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), atol=1e-5)


def test_partial_fit_takes_all_classes_first_and_adds_counts(table):
    X, y = table
    clf = MaxMarginClassifier(max_epochs=3, random_state=0, loss="ldam", drw_epoch=5)
    two = y < 2
    clf.partial_fit(X[two], y[two], classes=[0, 1, 2])
    assert clf.predict_proba(X).shape == (300, 3)
    assert clf.criterion_.class_weight is None
    clf.partial_fit(X[~two], y[~two])
    np.testing.assert_array_equal(clf.class_counts_, np.bincount(y))
    assert len(clf.history) == 6
    assert clf.criterion_.class_weight is not None
    with pytest.raises(ValueError, match=r"y has labels \[9\] that are not among the classes"):
        clf.partial_fit(X, np.full(300, 9))


def test_warm_start_goes_on_and_cold_start_does_not(table):
    X, y = table
    warm = fit(X, y, warm_start=True, max_epochs=4)
    state = copy.deepcopy(warm.module_.state_dict())
    warm.set_params(lr=0.0, max_epochs=2).fit(X, y)
    assert len(warm.history) == 6
    for name, value in warm.module_.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert len(fit(X, y, max_epochs=4).fit(X, y).history) == 4


def test_a_failed_fit_keeps_what_was_there(table, binary_table):
    X, y = table
    clf = fit(X, y)
    before = clf.predict_proba(X)
    for wrong in (
        lambda: clf.fit(X[:, :3] * np.nan, y),
        lambda: clf.fit(X[:, :3], np.zeros(300)),
        lambda: clf.set_params(delta_neg=-1).fit(*binary_table),
        lambda: clf.set_params(delta_neg=0.6, class_weight={"x": 1}).fit(*binary_table),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 (the texts have tests of their own)
            wrong()
        np.testing.assert_array_equal(clf.predict_proba(X), before)
        assert len(clf.history) == 8


def test_a_module_class_gets_the_sizes_that_it_takes(table):
    X, y = table

    class Net(nn.Module):
        def __init__(self, in_features, num_classes, width=4):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, num_classes)
            )

        def forward(self, x):
            return self.layers(x)

    clf = fit(X, y, module=Net, module__width=32)
    assert clf.module_.layers[0].weight.shape == (32, 8)
    assert clf.predict_proba(X).shape == (300, 3)


def test_an_instance_is_copied_with_its_weights_and_its_head_replaced(table):
    X, y = table
    module = MLP(8, 5)
    before = copy.deepcopy(module.state_dict())
    clf = MaxMarginClassifier(module, max_epochs=1, lr=0.0, random_state=0).fit(X, y)
    assert clf.module_.head.out_features == 3
    assert torch.equal(clf.module_.backbone[0].weight, module.backbone[0].weight)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_module_that_does_not_fit_is_an_error(table):
    with pytest.raises(ValueError, match=r"one logit for each of the 3 classes.*\(2, 4\)"):
        fit(*table, module=nn.Linear(8, 4))
    with pytest.raises(ValueError, match=r"Linear does not take samples of shape \(8,\)"):
        fit(*table, module=nn.Linear(5, 3))


def test_a_custom_loss_class(table):
    clf = fit(*table, loss=nn.CrossEntropyLoss, class_weight="balanced", max_epochs=30)
    assert clf.criterion_.weight is not None
    assert clf.score(*table) > 0.85
    with pytest.raises(TypeError, match=r"criterion is called `loss` here"):
        MaxMarginClassifier(criterion=nn.CrossEntropyLoss)


def test_predict_nonlinearity_of_skorch(table):
    X, y = table
    clf = fit(X, y, predict_nonlinearity=None)
    np.testing.assert_array_equal(clf.predict_proba(X), clf.decision_function(X))


def test_trimmed_for_prediction(table):
    X, y = table
    clf = fit(X, y)
    before = clf.predict_proba(X)
    clf.trim_for_prediction()
    np.testing.assert_array_equal(clf.predict_proba(X), before)
    with pytest.raises(skorch.exceptions.SkorchTrainingImpossibleError):
        clf.fit(X, y)


def dataset(X, y):
    return TensorDataset(torch.from_numpy(X), torch.from_numpy(y).long())


def test_a_torch_dataset_trains_like_arrays(table):
    X, y = table
    data = dataset(X, y)
    clf = fit(data, None, resample="class_balanced", drw_epoch=4, train_split=0.2, max_epochs=20)
    assert clf.predict(data).shape == (300,)
    assert clf.score(X, y) > 0.8
    np.testing.assert_array_equal(clf.classes_, [0, 1, 2])
    assert clf.class_counts_.sum() == 240
    assert clf.module_.input_norm.is_fitted
    assert clf.history[-1, "valid_balanced_accuracy"] > 0.7


def test_a_predefined_validation_set(table):
    X, y = table
    valid = dataset(X[200:], y[200:])
    clf = fit(dataset(X[:200], y[:200]), None, train_split=predefined_split(valid))
    assert clf.class_counts_.sum() == 200
    assert (
        sum(
            batch["valid_batch_size"]
            for batch in clf.history[-1, "batches"]
            if "valid_batch_size" in batch
        )
        == 100
    )


def test_iterator_arguments_choose_a_data_loader(table):
    X, y = table
    clf = MaxMarginClassifier(max_epochs=2, random_state=0, iterator_train__drop_last=True)
    clf.fit(X, y)
    assert clf.history[-1, "train_batch_count"] == 2
    explicit = fit(X, y, iterator_train=DataLoader, iterator_train__shuffle=True, max_epochs=2)
    assert explicit.history[-1, "train_batch_count"] == 3


def test_forward_in_training_mode_keeps_the_order(table):
    X, y = table
    clf = fit(X, y)
    np.testing.assert_array_equal(clf.forward(X, training=True).detach(), clf.forward(X))


def test_unscaled_columns_train_as_well_as_scaled_ones(table):
    X, y = table
    scales = np.array([1e-4, 1e4, 1, 100, 1e-2, 1, 1e6, 10], dtype=np.float32)
    shifted = X * scales + 100 * scales
    score = fit(shifted, y, max_epochs=40).score(shifted, y)
    assert score > fit(X, y, max_epochs=40).score(X, y) - 0.02


@pytest.mark.parametrize("precision", ["bfloat16", "auto"])
def test_precision(table, precision):
    clf = fit(*table, precision=precision, max_epochs=30)
    assert clf.score(*table) > 0.85
    assert clf.predict_proba(table[0]).dtype == np.float64
    assert all(p.dtype == torch.float32 for p in clf.module_.parameters())


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_for_images_where_it_is_faster(table, images, monkeypatch, has):
    from imbmargin import parts

    monkeypatch.setattr(parts, "has_fast_bfloat16", lambda: has)
    common = {"precision": "auto", "device": "cpu", "max_epochs": 1}
    of_images = fit(*images, module="resnet20", **common)._autocast_dtype()
    assert of_images is (torch.bfloat16 if has else None)
    assert fit(*table, **common)._autocast_dtype() is None


def test_float16_scales_the_gradients(table, float16):
    clf = fit(*table, loss="cross_entropy", max_epochs=30)
    assert clf.grad_scaler_.get_scale() > 0
    assert clf.score(*table) > 0.85


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda(table, precision):
    X, y = table
    clf = fit(X, y, precision=precision, drw_epoch=4, max_epochs=30, resample="class_balanced")
    assert next(clf.module_.parameters()).is_cuda
    assert clf.criterion_.class_weight.is_cuda
    assert clf.score(X, y) > 0.85
    assert pickle.loads(pickle.dumps(clf)).score(X, y) > 0.85


def test_device_auto_survives_clone_and_pickle(table):
    clf = fit(*table, max_epochs=1)
    for other in (clone(clf), pickle.loads(pickle.dumps(clf))):
        assert other.get_params()["device"] == "auto"
    assert clf.device in ("cpu", "cuda")


def test_repr_shows_what_was_set():
    assert repr(MaxMarginClassifier(loss="ldam", drw_epoch=0.8)) == (
        "MaxMarginClassifier(drw_epoch=0.8, loss='ldam')"
    )


@pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.7"), reason="shows no parameters"
)
def test_html_repr_shows_what_was_set_first_and_no_callbacks():
    clf = MaxMarginClassifier(max_epochs=3, module__hidden_sizes=(8,))
    shown = re.findall(r'<td class="param">(.*?)</td>', clf._repr_html_())
    assert shown[:2] == ["max_epochs", "module__hidden_sizes"]
    assert not any(name.startswith("callbacks__") for name in shown)
