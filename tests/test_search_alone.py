"""What the batched grid search trains one at a time, and the warning that says why."""

from functools import partial

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import GradientNormClipping
from torch import nn

from imbmargin import BatchedGridSearchCV, search
from imbmargin.callbacks import EarlyStopping
from imbmargin.data.batches import ArrayDataset
from imbmargin.losses import FocalLoss, LDAMLoss
from tests.searching import MARGINS, assert_same_results, classifier


class Convolutions(nn.Module):
    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.Flatten())
        self.head = nn.Linear(4 * 36, num_classes)

    def forward(self, x):
        return self.head(self.backbone(x / 255))


class DataDependent(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.head = nn.Linear(in_features, num_classes)

    def forward(self, x):
        logits = self.head(x)
        return logits if logits.sum() > 1e9 else 2 * logits


class LearnedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, logits, target):
        return nn.functional.cross_entropy(logits * self.temperature, target)


ALONE = {
    "train_split": ({"train_split": 0.2}, "train_split=0.2"),
    "callbacks": ({"callbacks": [GradientNormClipping(1.0)]}, "callbacks=.*GradientNormClipping"),
    "early stopping": ({"callbacks": [EarlyStopping()], "train_split": 0.2}, "train_split"),
    "warm_start": ({"warm_start": True}, "warm_start=True"),
    "dataset": ({"dataset": type("Own", (ArrayDataset,), {})}, "dataset=.*Own"),
    "loader": ({"iterator_train__num_workers": 0}, "iterator_train__num_workers"),
    "optimizer": ({"optimizer": torch.optim.Adafactor}, "optimizer=.*Adafactor"),
    "not to be batched": ({"module": DataDependent}, "vmap"),
    "loss with weights": ({"loss": LearnedLoss}, "LearnedLoss has weights"),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_is_trained_one_at_a_time_warns_with_the_cause(name, table):
    arguments, cause = ALONE[name]
    arguments = {"loss": "cross_entropy", "max_epochs": 2, **arguments}
    plain = GridSearchCV(classifier(**arguments), {"lr": [0.001, 0.01]}, cv=2).fit(*table)
    search = BatchedGridSearchCV(classifier(**arguments), {"lr": [0.001, 0.01]}, cv=2)
    with pytest.warns(UserWarning, match=f"one at a time: .*{cause}") as caught:
        search.fit(*table)
    assert len([w for w in caught if "one at a time" in str(w.message)]) == 1
    assert_same_results(plain, search, atol=0)
    np.testing.assert_array_equal(plain.predict_proba(table[0]), search.predict_proba(table[0]))


def test_dropout_with_several_seeds_is_trained_one_at_a_time(table):
    estimator = classifier(module__dropout=0.3)
    plain = GridSearchCV(estimator, {"random_state": [0, 1]}, cv=2).fit(*table)
    search = BatchedGridSearchCV(estimator, {"random_state": [0, 1]}, cv=2)
    with pytest.warns(UserWarning, match="draws random numbers, and there are several seeds"):
        search.fit(*table)
    assert_same_results(plain, search, atol=0)


def test_convolutions_are_trained_one_at_a_time(images):
    search = BatchedGridSearchCV(
        classifier(module=Convolutions, max_epochs=1), {"lr": [0.001, 0.01]}, cv=2
    )
    with pytest.warns(UserWarning, match="Convolutions has convolutions"):
        assert search.fit(*images).best_score_ > 0


def test_some_candidates_are_batched_and_others_are_not(table):
    grid = [MARGINS, {"optimizer": [torch.optim.Adafactor], "delta_neg": [0.4, 0.8]}]
    estimator = classifier()
    plain = GridSearchCV(estimator, grid, cv=2, scoring="neg_log_loss").fit(*table)
    search = BatchedGridSearchCV(estimator, grid, cv=2, scoring="neg_log_loss")
    with pytest.warns(UserWarning, match="one at a time: optimizer=.*Adafactor"):
        search.fit(*table)
    assert_same_results(plain, search)


def test_nothing_in_common_warns_and_one_candidate_does_not(table):
    grid = {"module__hidden_units": [(4,), (8,)]}
    with pytest.warns(UserWarning, match=r"searched are \['module__hidden_units'\]"):
        BatchedGridSearchCV(classifier(max_epochs=1), grid, cv=2).fit(*table)
    BatchedGridSearchCV(classifier(max_epochs=1), {"delta_neg": [0.4]}, cv=2).fit(*table)


def test_a_pipeline_warns_with_the_cure(table):
    pipeline = make_pipeline(StandardScaler(), classifier(max_epochs=1))
    grid = {"maxmarginclassifier__delta_neg": [0.4, 0.8]}
    with pytest.warns(UserWarning, match=r"is a Pipeline.*its last step"):
        BatchedGridSearchCV(pipeline, grid, cv=2).fit(*table)
    cured = make_pipeline(StandardScaler(), BatchedGridSearchCV(classifier(), MARGINS, cv=2))
    assert cured.fit(*table).score(*table) > 0.6


def test_fit_parameters_and_routing_warn(table):
    weight = np.ones(300)
    search = BatchedGridSearchCV(classifier(max_epochs=1), MARGINS, cv=2)
    with sklearn.config_context(enable_metadata_routing=True):
        search.fit(*table)
        routed = clone(search).set_params(
            estimator=classifier(max_epochs=1).set_fit_request(sample_weight=True), scoring=None
        )
        routed.estimator.set_score_request(sample_weight=True)
        with pytest.warns(UserWarning, match="fit got sample_weight"):
            routed.fit(*table, sample_weight=weight)
    with pytest.warns(UserWarning, match="fit got sample_weight, which is passed on"):
        plain, batched = (
            kind(classifier(), {"lr": [0.01, 0.02]}, cv=2).fit(*table, sample_weight=weight)
            for kind in (GridSearchCV, BatchedGridSearchCV)
        )
    assert_same_results(plain, batched, atol=0)
    with (
        pytest.warns(UserWarning, match="fit got other"),
        pytest.raises(ValueError, match="All the 8 fits failed"),
    ):
        search.fit(*table, other=1)


def constant(epoch, max_epochs, rate=1.0):
    return rate


# Name -> grid, and how many candidates are trained together in each fold.
OBJECTS = {
    "losses": ({"loss": [FocalLoss(), LDAMLoss(), "mm"]}, [2, 2, 2]),
    "tensors": (
        {
            "loss": [nn.CrossEntropyLoss],
            "criterion__weight": [torch.ones(3), torch.tensor([1.0, 2.0, 9.0]), None],
        },
        [6],
    ),
    "schedules": ({"lr_schedule": [partial(constant, rate=0.5), constant]}, [2, 2]),
    "modules": ({"module": [nn.Linear(8, 3), nn.Linear(8, 3)]}, [2, 2]),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_as_values_are_told_apart_and_not_trained_twice(name, table, monkeypatch):
    grid, together = OBJECTS[name]
    grid = {**grid, "lr": [1e-3, 1e-2]}
    plain = GridSearchCV(classifier(module="auto"), grid, cv=2).fit(*table)
    trainings, train = [], search.train_together

    def counted(nets, *args, **kwargs):
        trainings.append(len(nets))
        return train(nets, *args, **kwargs)

    monkeypatch.setattr(search, "train_together", counted)
    batched = BatchedGridSearchCV(classifier(module="auto"), grid, cv=2).fit(*table)
    np.testing.assert_allclose(
        batched.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"], atol=0.01
    )
    assert trainings == together * 2
