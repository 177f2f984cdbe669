"""Parameters, targets and batches that a user brings along: losses, classes, samplers, Datasets."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.metrics import average_precision_score, get_scorer, make_scorer
from skorch.callbacks import BatchScoring, EpochScoring, InputShapeSetter, LRScheduler
from skorch.dataset import Dataset as SkorchDataset
from skorch.helper import predefined_split
from torch import nn
from torch.utils.data import (
    Dataset,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from imbmargin import MaxMarginClassifier, load_model, save_model
from imbmargin.callbacks import EarlyStopping
from imbmargin.data.batches import ArrayDataset
from imbmargin.losses import FocalLoss, LDAMLoss
from imbmargin.metrics import balanced_accuracy
from imbmargin.samplers import ClassSampler


def fit(X, y, **kwargs):
    return MaxMarginClassifier(**{"max_epochs": 2, "random_state": 0, **kwargs}).fit(X, y)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_a_device_nothing_is_moved(table, precision, tmp_path):
    common = {"precision": precision, "max_epochs": 2, "resample": "class_balanced"}
    clf = fit(*table, device=None, checkpoint_dir=tmp_path / "run", **common)
    expected = fit(*table, device="cpu", **common).predict_proba(table[0])
    assert clf.device is None
    np.testing.assert_array_equal(clf.predict_proba(table[0]), expected)
    save_model(clf, tmp_path / "model")
    again = load_model(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(table[0]), expected)


@pytest.mark.parametrize("loss", [LDAMLoss(scale=3), nn.CrossEntropyLoss(torch.ones(3))])
def test_of_a_loss_instance_a_copy_is_used(table, loss):
    before = {name: copy.copy(value) for name, value in loss.named_buffers()}
    clf = fit(*table, loss=loss, class_weight="balanced")
    other = fit(*table, loss=loss)
    assert clf.loss is loss
    assert clf.criterion_ is not loss
    assert clf.criterion_ is not other.criterion_
    assert getattr(loss, "class_counts", None) is None
    assert dict(loss.named_buffers()).keys() == before.keys()
    assert all(torch.equal(before[name], value) for name, value in loss.named_buffers())


def test_classes_are_sorted_however_they_are_given(binary_table):
    X, y = binary_table
    plain, given = (fit(X, y, classes=classes, max_epochs=10) for classes in (None, [1, 0]))
    assert given.classes_.tolist() == [0, 1]
    np.testing.assert_array_equal(given.predict_proba(X), plain.predict_proba(X))
    for scoring in ("roc_auc", "average_precision", "neg_log_loss", "accuracy"):
        assert get_scorer(scoring)(given, X, y) == get_scorer(scoring)(plain, X, y)


def test_a_class_given_twice_is_refused(binary_table):
    with pytest.raises(ValueError, match=r"classes=\[0, 1, 1\] has a label twice"):
        fit(*binary_table, classes=[0, 1, 1])


@pytest.mark.parametrize("goes_on", ["partial_fit", "warm_start"])
def test_what_is_set_after_fit_holds_when_training_goes_on(table, goes_on):
    clf = fit(*table, warm_start=True, drw_epoch=1, loss_epoch=1, lr_schedule="step")
    stop = EarlyStopping("train_loss", lower_is_better=True)
    clf.set_params(loss="focal", drw_epoch=None, class_weight={0: 1, 1: 2, 2: 5}, loss_epoch=None)
    clf.set_params(lr_schedule="cosine", callbacks=[stop], resample="class_balanced")
    clf.partial_fit(*table) if goes_on == "partial_fit" else clf.fit(*table)
    assert isinstance(clf.criterion_, FocalLoss)
    assert clf.criterion_.active
    assert clf.criterion_.class_weight.tolist() == [1, 2, 5]
    callbacks = dict(clf.callbacks_)
    assert callbacks["lr_schedule"].schedule == "cosine"
    assert callbacks["resampling"].resample == "class_balanced"
    assert callbacks["EarlyStopping"] is stop
    assert len(clf.history) == 4


def test_class_weights_that_are_taken_away_are_gone_when_training_goes_on(table):
    clf = fit(*table, class_weight="balanced", delta_neg=0.3)
    clf.set_params(class_weight=None, delta_neg=0.9).partial_fit(*table)
    assert clf.criterion_.class_weight is None
    assert clf.criterion_.delta_neg == 0.9


def test_training_that_goes_on_as_it_was_keeps_its_parts(table):
    clf = fit(*table)
    parts = clf.criterion_, clf.optimizer_, dict(clf.callbacks_)
    clf.set_params(max_epochs=1, batch_size=64, lr=0.1).partial_fit(*table)
    assert (clf.criterion_, clf.optimizer_, dict(clf.callbacks_)) == parts


def test_a_wrong_parameter_set_after_fit_is_refused_by_every_training(table):
    clf = fit(*table).set_params(class_weight="balanced", delta_neg=-1)
    criterion, before = clf.criterion_, clf.predict_proba(table[0])
    for _ in range(2):
        with pytest.raises(ValueError, match="delta_neg must be"):
            clf.partial_fit(*table)
        assert clf.criterion_ is criterion
        np.testing.assert_array_equal(clf.predict_proba(table[0]), before)
    assert clf.set_params(delta_neg=0.6).partial_fit(*table).criterion_.class_weight is not None


def test_arguments_of_the_optimizer_that_are_set_after_fit_stay(table):
    clf = fit(*table).set_params(optimizer=torch.optim.SGD, optimizer__momentum=0.5)
    clf.set_params(optimizer__weight_decay=0.25)
    for net in (clf, clf.partial_fit(*table), clf.fit(*table), clone(clf).fit(*table)):
        assert type(net.optimizer_) is torch.optim.SGD
        group = net.optimizer_.param_groups[0]
        assert (group["momentum"], group["weight_decay"]) == (0.5, 0.25)


def score(scoring, kind=EpochScoring, **kwargs):
    return kind(scoring, lower_is_better=False, **{"name": "score", **kwargs})


@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "roc_auc_ovr"])
@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("kind", [EpochScoring, BatchScoring])
def test_training_batches_are_scored_as_they_were_trained_on(table, kind, members, scoring):
    X, y = table
    # Without steps the outputs of training are those of prediction.
    clf = fit(
        X,
        np.array(["b", "c", "a"])[y],
        lr=0.0,
        optimizer=torch.optim.SGD,
        module__members=members,
        batch_size=-1,
        callbacks=[score(scoring, kind, on_train=True)],
    )
    expected = get_scorer(scoring)(clf, X, np.array(["b", "c", "a"])[y])
    assert clf.history[-1]["score"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 2], ["b", "c", "a"], [1, 2, 3]])
@pytest.mark.parametrize("scoring", ["accuracy", "neg_log_loss", "f1_macro"])
def test_scores_of_predictions_made_anew_are_those_of_scikit_learn(table, scoring, labels):
    X, y = table[0], np.array(labels)[table[1]]
    anew = score(scoring, use_caching=False)
    clf = fit(X, y, callbacks=[score(scoring, use_caching=False, on_train=True)])
    assert clf.history[-1]["score"] == pytest.approx(get_scorer(scoring)(clf, X, y))
    # Of the validation part: as from the cache.
    clf = fit(X, y, callbacks=[anew, score(scoring, name="cached")], train_split=0.5)
    assert clf.history[-1]["score"] == pytest.approx(clf.history[-1]["cached"])


def test_use_caching_false_of_the_classifier(table):
    X, y = table[0], np.array(["b", "c", "a"])[table[1]]
    plain, anew = (fit(X, y, train_split=0.5, use_caching=caching) for caching in ("auto", False))
    column = slice(None), "valid_balanced_accuracy"
    assert anew.history[column] == pytest.approx(plain.history[column])
    data = TensorDataset(*map(torch.as_tensor, table))
    assert 0 < fit(data, None, train_split=0.5, use_caching=False).history[-1][column[1]] <= 1
    with pytest.raises(ValueError, match=r"score with use_caching=False .* leave use_caching"):
        fit(X, y, use_caching=False, callbacks=[("score", score("accuracy", BatchScoring))])


def test_scores_of_the_second_of_two_classes_that_is_not_called_1(binary_table):
    X, y = binary_table
    one, two = (
        fit(X, y + first, train_split=0.5, callbacks=[score("average_precision")])
        for first in (0, 1)
    )
    assert one.history[-1]["score"] == two.history[-1]["score"]


def test_labels_of_an_array_dataset_are_predicted_as_labels(table):
    X, y = table[0], np.array(["b", "c", "a"])[table[1]]
    clf = fit(X, y)
    np.testing.assert_array_equal(clf.predict(ArrayDataset(X)), clf.predict(X))


@pytest.mark.parametrize("sampler", [SequentialSampler(range(300)), ClassSampler([0] * 300)])
def test_a_sampler_of_the_users_own_draws_the_rows(table, sampler):
    clf = fit(*table, iterator_train__sampler=sampler)
    assert sum(clf.history[-1, "batches", :, "train_batch_size"]) == 300
    part = WeightedRandomSampler(np.ones(300), 500)
    clf = fit(*table, iterator_train__sampler=part, callbacks=[score("accuracy", on_train=True)])
    assert sum(clf.history[-1, "batches", :, "train_batch_size"]) == 500
    assert 0 < clf.history[-1]["score"] <= 1


def normalised(in_features, num_classes):
    return nn.Sequential(nn.BatchNorm1d(in_features), nn.Linear(in_features, num_classes))


@pytest.mark.parametrize("loader", [{}, {"iterator_train__num_workers": 0}])
def test_no_batch_of_one_row_is_trained_on(table, loader):
    X, y = table
    data = TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    data, y = (X, y) if loader else (data, None)
    clf = fit(data, y, module=normalised, batch_size=13, **loader)
    assert [row["train_batch_size"] for row in clf.history[-1, "batches"]] == [13] * 23


def test_batches_that_drop_all_rows_are_refused(table):
    with pytest.raises(ValueError, match=r"no batch to train on.*batch_size=301 must not be above"):
        fit(*table, batch_size=301, iterator_train__drop_last=True)


def test_rows_of_one_class_with_weights_go_on_with_known_classes(table):
    X, y = table
    one = y == 2
    clf = MaxMarginClassifier(max_epochs=2, random_state=0)
    clf.partial_fit(X[one], y[one], classes=[0, 1, 2], sample_weight=np.ones(one.sum()))
    clf.partial_fit(X[one], y[one], sample_weight=np.ones(one.sum()))
    assert clf.class_counts_.tolist() == [0, 0, 2 * one.sum()]
    with pytest.raises(ValueError, match="sample_weight is above zero for fewer than two classes"):
        clf.fit(X, y, sample_weight=one)
    with pytest.raises(ValueError, match="at least one non-zero"):
        clf.partial_fit(X, y, sample_weight=np.zeros(300))
    clf.set_params(classes=[0, 1, 2]).fit(X, y, sample_weight=one)
    assert (clf.predict(X[one]) == 2).mean() > 0.9


class Brighten(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.clamp(max=200) + 5


def test_augmentation_mixing_and_nonlinearity_may_be_torch_modules(images):
    X, y = images
    sharper = nn.Sequential(nn.Linear(10, 10), nn.Softmax(dim=1))
    augment = Brighten()
    clf = MaxMarginClassifier(
        "mlp", max_epochs=1, random_state=0, augment=augment, predict_nonlinearity=sharper
    )
    assert "Brighten" in repr(clf)
    for net in (clf.fit(X, y), clone(clf).fit(X, y), pickle.loads(pickle.dumps(clf))):
        np.testing.assert_allclose(net.predict_proba(X).sum(1), 1, atol=1e-5)
        assert not {"augment", "predict_nonlinearity"} & set(net.prefixes_)
    assert augment.calls == 3
    fit(X, y, module="mlp", max_epochs=1, augment=["flip", augment])
    assert augment.calls == 6


class Decoded(Dataset):
    def __init__(self, X, y, convert=torch.as_tensor):
        self.rows, self.codes, self.convert, self.decoded = X, y, convert, 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.decoded += 1
        return self.convert(self.rows[index]), int(self.codes[index])


def test_rows_of_a_dataset_are_decoded_no_more_than_needed(table):
    X, y = table
    found = []
    for given, walks in ((None, 1), (y, 0)):
        data = Decoded(X, y)
        clf = fit(data, given)
        # Two epochs, the statistics of the input, one row to see its shape; the targets.
        assert data.decoded == 3 * 300 + 1 + walks * 300
        np.testing.assert_array_equal(clf.class_counts_, np.bincount(y))
        found.append(clf.predict_proba(X))
    np.testing.assert_array_equal(*found)


def test_counts_are_of_the_y_that_is_given_with_a_dataset(table):
    X, y = table
    clf = fit(Decoded(X, y), y, train_split=0.5, loss="ldam", resample="class_balanced")
    np.testing.assert_allclose(clf.class_counts_, np.bincount(y) / 2, atol=0.5)
    with pytest.raises(ValueError, match=r"Dataset must be the integers 0..K-1, got \['a', 'b'\]"):
        fit(Decoded(X, y), np.where(y, "a", "b"))


def test_pictures_that_nobody_has_decoded_are_refused(images):
    X, y = images
    data = Decoded(X, y, lambda row: Image.fromarray(row[0]))
    with pytest.raises(ValueError, match=r"images of PIL \(Image\).*give the dataset a transform"):
        fit(data, None)


def test_what_initialize_needs_before_fit_is_named():
    with pytest.raises(TypeError, match=r"'MLP' needs num_classes, in_features.*call fit, or pass"):
        MaxMarginClassifier().initialize()
    sizes = {"module__num_classes": 3, "module__in_features": 8}
    assert MaxMarginClassifier(**sizes).initialize().initialized_


class Masked(Dataset):
    """Rows that are dicts, as networks with several inputs take them."""

    def __init__(self, X, y):
        self.X, self.y = torch.from_numpy(X), y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return {"x": self.X[i], "mask": torch.ones_like(self.X[i])}, int(self.y[i])


class TwoInputs(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(8, num_classes)

    def forward(self, x, mask):
        return self.head(x * mask)


@pytest.mark.parametrize("goes_on", ["partial_fit", "warm_start"])
def test_classes_of_rows_that_are_dicts_stay_when_training_goes_on(table, goes_on):
    X, y = table
    data, few = Masked(X, y), Masked(X[y < 2], y[y < 2])
    clf = MaxMarginClassifier(TwoInputs, max_epochs=1, random_state=0, warm_start=True)
    getattr(clf, "fit" if goes_on == "warm_start" else "partial_fit")(data)
    getattr(clf, "fit" if goes_on == "warm_start" else "partial_fit")(few)
    assert clf.classes_.tolist() == [0, 1, 2]
    assert clf.predict_proba(few).shape == (len(few), 3)
    # A fit that begins anew has new classes.
    assert clf.set_params(warm_start=False).fit(few).classes_.tolist() == [0, 1]


@pytest.mark.parametrize("names", [np.array([1, 2, 4]), np.array(["a", "b", "c"])])
def test_the_labels_of_a_predefined_split_are_those_of_y(table, names):
    X, y = table
    X = X.astype(np.float64)
    labels, part = names[y], slice(0, 90)
    split = predefined_split(SkorchDataset(X[part], labels[part]))
    clf = fit(X, labels, train_split=split, max_epochs=8)
    found = clf.history[-1]["valid_balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy(labels[part], clf.predict(X[part])))
    assert found > 0.6
    assert clf.history[-1]["valid_loss"] < 4
    with pytest.raises(ValueError, match="9"):
        fit(X, labels, train_split=predefined_split(SkorchDataset(X[:4], np.array([9, 9, 1, 2]))))


def test_a_part_of_a_predefined_split_has_the_labels_of_y(table):
    X, y = table
    names = np.array(["b", "c", "a"])[y]
    rows = np.arange(0, 300, 2)
    whole = SkorchDataset(X, names)
    expected = fit(X, names, train_split=predefined_split(SkorchDataset(X[rows], names[rows])))
    part = Subset(Subset(whole, range(0, 300)), rows.tolist())
    found = fit(X, names, train_split=predefined_split(part))
    for key in ("valid_loss", "valid_balanced_accuracy"):
        assert found.history_[-1][key] == pytest.approx(expected.history_[-1][key], rel=1e-6)
    coded = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    assert "valid_loss" in fit(X, y, train_split=predefined_split(coded)).history_[-1]
    with pytest.raises(ValueError, match="a TensorDataset, whose targets are 0"):
        fit(X, names, train_split=predefined_split(coded))


def test_a_dataset_does_not_inherit_columns_from_a_fit_before(table):
    X, y = table
    clf = fit(pd.DataFrame(X, columns=list("abcdefgh")), y)
    narrow = TensorDataset(torch.from_numpy(X[:, :4]), torch.from_numpy(y))
    assert clf.fit(narrow).predict(X[:, :4]).shape == y.shape
    assert not hasattr(clf, "feature_names_in_")


def test_what_is_set_between_two_trainings_leaves_the_rest_as_it_is(table):
    X, y = table
    clf = fit(X, y)
    optimizer = clf.optimizer_
    clf.set_params(beta=1.0).partial_fit(X, y)
    assert clf.optimizer_ is optimizer
    clf.set_params(lr=1e-4)
    assert clf.set_params(lr="auto").optimizer_.param_groups[0]["lr"] == 2e-3
    assert clf.partial_fit(X, y).get_params()["lr"] == "auto"
    scheduled = fit(X, y, callbacks=[LRScheduler("StepLR", step_size=1)])
    assert len(scheduled.set_params(beta=1.0).partial_fit(X, y).history_) == 4


class Sized(nn.Module):
    def __init__(self, input_dim=1, num_classes=2):
        super().__init__()
        self.head = nn.Linear(input_dim, num_classes)

    def forward(self, x):
        return self.head(x)


def test_skorch_may_set_the_size_of_a_module(table):
    X, y = table
    clf = fit(X, y, module=Sized, callbacks=[InputShapeSetter(param_name="input_dim")])
    assert clf.module_.head.in_features == X.shape[1]
    with pytest.raises(ValueError, match="Sized"):
        fit(X, y, module=Sized)


@pytest.mark.parametrize("vary", [lambda x: x.permute(0, 2, 3, 1), lambda x: x[:, :, :4]])
def test_an_augmentation_that_changes_the_shape_is_refused(vary, images):
    settings = {"module": "resnet20", "max_epochs": 1}
    with pytest.raises(ValueError, match="augment must return images of the shape that it gets"):
        fit(*images, augment=vary, **settings)


@pytest.mark.parametrize("use_caching", ["auto", False])
def test_epochs_are_scored_with_labels_as_they_are(binary_table, use_caching):
    X, y = binary_table
    labels = np.array(["z ok", "fraud"])[y]
    scorer = make_scorer(
        average_precision_score, response_method="predict_proba", pos_label="fraud"
    )
    scoring = EpochScoring(scorer, name="ap", lower_is_better=False)
    split = predefined_split(SkorchDataset(X, labels))
    settings = {"callbacks": [scoring], "train_split": split, "use_caching": use_caching}
    clf = fit(X, labels, **settings)
    expected = scorer(clf, X, labels)
    assert clf.history_[-1]["ap"] == pytest.approx(expected, abs=1e-6)
    # scikit-learn does not know which of the two is meant.
    with pytest.raises(ValueError, match="pos_label"):
        fit(X, labels, **{**settings, "callbacks": [EpochScoring("average_precision")]})


def test_other_classes_in_a_later_call_of_partial_fit_are_refused(table):
    X, y = table
    clf = MaxMarginClassifier(max_epochs=1, random_state=0)
    clf.partial_fit(X, y, classes=[2, 1, 0]).partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="is not the same as on the first call of partial_fit"):
        clf.partial_fit(X, y, classes=[0, 1, 2, 3])
    assert len(clf.partial_fit(X, y).history_) == 3


def test_a_column_that_is_constant_at_first_is_standardised_when_it_varies(table):
    X, y = table
    late = np.where(np.arange(len(X)) < 100, 0.0, np.random.default_rng(0).lognormal(9, 1, 300))
    X = np.column_stack([X, late]).astype(np.float32)
    clf = MaxMarginClassifier(max_epochs=2, random_state=0)
    clf.partial_fit(X[:100], y[:100], classes=[0, 1, 2])
    first = clf.module_.input_norm.mean.clone()
    clf.partial_fit(X[100:200], y[100:200])
    norm = clf.module_.input_norm
    assert norm.std[-1] == pytest.approx(X[100:200, -1].std(), rel=1e-4)
    assert torch.equal(norm.mean[:-1], first[:-1])
    known = norm.mean.clone()
    clf.partial_fit(X[200:], y[200:])
    assert torch.equal(norm.mean, known)
    given = {"module__mean": [0.0] * 9, "module__std": [1.0] * 9}
    clf = MaxMarginClassifier(**given, max_epochs=1, random_state=0)
    clf.partial_fit(X[:100], y[:100], classes=[0, 1, 2]).partial_fit(X[100:], y[100:])
    assert clf.module_.input_norm.std.tolist() == [1.0] * 9


@pytest.mark.parametrize("as_frame", [False, True])
def test_columns_that_float32_cannot_tell_apart_are_noticed(table, as_frame):
    X, y = table
    wide = X.astype(np.float64)
    wide[:, 3] = 1.7e9 + wide[:, 3]
    data, name = (pd.DataFrame(wide, columns=list("abcdefgh")), "'d'") if as_frame else (wide, "3")
    with pytest.warns(UserWarning, match=rf"values of columns \[{name}\] of X differ by less than"):
        fit(data, y)
    wide[:, 3] = X[:, 3] + 1000
    fit(wide, y)


def test_weights_of_rows_may_be_a_series_that_is_not_written_to(table):
    X, y = table
    # Of pandas 3 the values are not writable.
    weight = pd.Series(np.linspace(1, 2, len(y)))
    found = MaxMarginClassifier(max_epochs=1, random_state=0).fit(X, y, sample_weight=weight)
    assert found.predict(X).shape == y.shape


def test_hidden_units_that_are_one_number_are_refused(table):
    with pytest.raises(ValueError, match="hidden_units must hold one size"):
        fit(*table, module__hidden_units=64)
