"""Parameters, targets and batches that a user brings along: losses, classes, samplers, Datasets."""

import copy

import numpy as np
import pytest
import torch
from sklearn.metrics import get_scorer
from torch import nn

from imbmargin import MaxMarginClassifier
from imbmargin.losses import LDAMLoss


def fit(X, y, **kwargs):
    return MaxMarginClassifier(**{"max_epochs": 2, "random_state": 0, **kwargs}).fit(X, y)


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
