"""Heads compute in the type of their weights, also where autocast takes a shorter one."""

import numpy as np
import pytest
import torch
from torch import nn

from imbmargin import MaxMarginClassifier
from imbmargin.modules import HEADS, MLP, make_head, replace_head


@pytest.fixture(params=sorted(HEADS))
def head(request):
    torch.manual_seed(0)
    return make_head(request.param, 64, 10)


def test_autocast_does_not_round_the_logits(head):
    features = torch.randn(256, 64).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
        rounded = nn.functional.linear(features, head.weight)
    assert rounded.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    assert torch.equal(logits, head(features.float()))
    logits[:, 0].sum().backward()
    assert features.grad.dtype == torch.bfloat16
    assert head.weight.grad.dtype == torch.float32


def test_autocast_goes_on_around_a_head(head):
    network = nn.Sequential(head, nn.Linear(10, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(4, 64)).dtype == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")


def test_a_head_in_bfloat16_stays_so(head):
    features = torch.randn(4, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert head.bfloat16()(features).dtype == torch.bfloat16


def test_a_replaced_head_does_not_round_either():
    network = MLP(in_features=4, num_classes=5)
    replace_head(network, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.randn(8, 4)).dtype == torch.float32


@pytest.mark.parametrize("loss", ["cross_entropy", "mm"])
def test_classes_do_not_tie_in_bfloat16(loss, images):
    X, y = images
    clf = MaxMarginClassifier(
        "resnet20", loss=loss, max_epochs=1, random_state=0, precision="bfloat16"
    ).fit(X[:128], y[:128])
    scores = np.sort(clf.decision_function(X), axis=1)
    assert (scores[:, -1] > scores[:, -2]).all()
