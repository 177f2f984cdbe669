import pickle

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.history import History
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from imbmargin.bbn import BBNClassifier, BilateralNetwork
from imbmargin.metrics import balanced_accuracy
from imbmargin.modules import MLP, CosineLinear, ResNet20
from imbmargin.modules.heads import Linear
from imbmargin.samplers import batches_at_rates
from tests.checks import expected_failures

SETTINGS = {"max_epochs": 4, "random_state": 0}


@parametrize_with_checks(
    [BBNClassifier(max_epochs=40, random_state=0)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


def test_the_logits_are_those_of_the_papers_equation():
    torch.manual_seed(0)
    network = BilateralNetwork(MLP(4, 3, hidden_units=(8, 6)), branch_layers=2)
    x, rare, alpha = torch.rand(5, 4), torch.rand(5, 4), 0.3
    shared = [network.shared(network.input_norm(rows)) for rows in (x, rare)]
    first, second = network.conventional(shared[0]), network.rebalancing(shared[1])
    weight, bias = network.head.weight, network.head.bias
    expected = 2 * (alpha * first @ weight[:, :6].T + (1 - alpha) * second @ weight[:, 6:].T)
    torch.testing.assert_close(network(x, rare, alpha), expected + bias)
    torch.testing.assert_close(network(x), network(x, x, 0.5))


def test_branches_have_weights_of_their_own_and_the_rest_is_shared():
    torch.manual_seed(0)
    whole = ResNet20(num_classes=3)
    network = BilateralNetwork(whole, whole.branch_layers)
    first, second = (b[0].conv1.weight for b in (network.conventional, network.rebalancing))
    assert first.shape == second.shape == (64, 64, 3, 3)
    assert not torch.equal(first, second)
    assert len(network.shared) == len(whole.backbone) - 3
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_a_step_weighs_two_batches_by_alpha(table, monkeypatch):
    X, y = table
    clf = BBNClassifier(**SETTINGS).fit(X, y)
    seen, whole = [], clf.history_
    forward = BilateralNetwork.forward

    def look(self, x, rare=None, alpha=0.5):
        logits = forward(self, x, rare, alpha)
        seen.append((x, rare, alpha, logits))
        return logits

    monkeypatch.setattr(BilateralNetwork, "forward", look)
    batch = torch.from_numpy(X[:8]), torch.from_numpy(y[:8])
    other = torch.from_numpy(X[8:16]), torch.from_numpy(y[8:16])
    for done in range(4):
        clf.history_ = History(list(whole)[: done + 1])
        clf._partner = other
        step = clf.train_step_single(batch)
        _, rare, alpha, logits = seen[-1]
        assert alpha == pytest.approx(1 - (done / 4) ** 2)
        torch.testing.assert_close(rare, other[0])
        losses = [F.cross_entropy(logits, labels) for labels in (batch[1], other[1])]
        torch.testing.assert_close(step["loss"], alpha * losses[0] + (1 - alpha) * losses[1])
    del clf._partner
    clf.predict(X)
    assert seen[-1][1:3] == (None, 0.5)


def test_the_head_is_of_the_kind_that_the_loss_is_for(table):
    clf = BBNClassifier(loss="ldam", **SETTINGS).fit(*table)
    assert isinstance(clf.module_.head, CosineLinear)
    assert clf.module_.head.in_features == 256
    assert clf.logit_scale_ == 30
    head = BBNClassifier(module__head="unbiased", **SETTINGS).fit(*table).module_.head
    assert (type(head), head.in_features, head.bias) == (Linear, 256, None)


def test_rare_classes_are_drawn_at_the_inverse_of_their_rows(table):
    X, y = table
    counts = np.bincount(y)
    clf = BBNClassifier(max_epochs=1, random_state=0).fit(X, y)
    others = batches_at_rates(
        clf.get_iterator(clf.get_dataset(X, y), training=True), clf._partner_rates
    )
    labels = torch.cat([target for _ in range(60) for _, target in others])
    found = labels.bincount() / len(labels)
    np.testing.assert_allclose(found, (1 / counts) / (1 / counts).sum(), atol=0.02)
    sizes = [len(target) for _, target in others]
    iterator = clf.get_iterator(clf.get_dataset(X, y), training=True)
    assert sizes == [len(target) for _, target in iterator]


def test_rare_classes_are_found(binary_table):
    X, y = binary_table
    clf = BBNClassifier(max_epochs=60, random_state=0).fit(X, y)
    assert balanced_accuracy(y, clf.predict(X)) > 0.9


def test_images_datasets_checkpoints_and_pickles(images, table, tmp_path):
    X, y = images
    clf = BBNClassifier("resnet20", max_epochs=1, random_state=0).fit(X, y)
    assert clf.predict(X).shape == y.shape
    X, y = table
    whole = BBNClassifier(**SETTINGS).fit(X, y)
    kept = BBNClassifier(**SETTINGS, checkpoint_dir=tmp_path).fit(X, y)
    again = BBNClassifier(**SETTINGS, checkpoint_dir=tmp_path).fit(X, y)
    for other in (kept, again, pickle.loads(pickle.dumps(whole))):
        np.testing.assert_array_equal(other.predict_proba(X), whole.predict_proba(X))
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    settings = {**SETTINGS, "train_split": 0.2}
    assert BBNClassifier(**settings).fit(rows, None).predict(X).shape == y.shape
    weighted = BBNClassifier(**SETTINGS).fit(X, y, sample_weight=np.linspace(1, 2, len(y)))
    assert not np.array_equal(weighted.predict_proba(X), whole.predict_proba(X))


class NoBackbone(nn.Module):
    def __init__(self, num_classes, in_features):
        super().__init__()
        self.head = nn.Linear(in_features, num_classes)

    def forward(self, x):
        return self.head(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"module": NoBackbone}, ValueError, "BBN needs a module with a Sequential as `backbone`"),
        ({"branch_layers": 9}, ValueError, "branch_layers must be between 1 and 3 for this back"),
        (
            {"module__hidden_units": (8,)},
            ValueError,
            "the branches would have no weights: the last 1 of the backbone's 2 layers have none",
        ),
        (
            {"loss": "influence_balanced"},
            ValueError,
            r"loss='influence_balanced' needs \['features'\] of each row, but BBN has logits of",
        ),
        (
            {"mixing": "mixup"},
            ValueError,
            "mixing='mixup' and BBN cannot be had together; leave mixing out",
        ),
        (
            {"iterator_train": torch.utils.data.DataLoader, "iterator_train__shuffle": True},
            TypeError,
            "iterator must be an ArrayBatches or DataLoader with a ClassSampler, got DataLoader",
        ),
    ],
)
def test_what_cannot_be_done(arguments, error, message, table):
    with pytest.raises(error, match=message):
        BBNClassifier(**{**SETTINGS, **arguments}).fit(*table)
