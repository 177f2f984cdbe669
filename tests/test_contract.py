"""Parameters, targets and batches that a user brings along: losses, classes, samplers, Datasets."""

import copy

import pytest
import torch
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
