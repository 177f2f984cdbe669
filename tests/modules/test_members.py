"""Ensembles whose members share their matrices: TabM."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV
from torch.nn import functional as F

from imbmargin import BatchedGridSearchCV, MaxMarginClassifier, export_model, make_classifier
from imbmargin.modules import MLP, TabM, find_head, replace_head
from imbmargin.modules.members import MemberLinear, rows_per_target

ROWS, COLUMNS, CLASSES, MEMBERS = 6, 5, 3, 4


def ensemble(**kwargs):
    torch.manual_seed(0)
    network = MLP(COLUMNS, CLASSES, hidden_units=(7, 8), members=MEMBERS, **kwargs).double()
    with torch.no_grad():
        for layer in network.backbone:
            if isinstance(layer, MemberLinear):
                layer.output_factor.uniform_(0.5, 1.5)
    return network


def member_logits(network, x, member):
    """Compute the logits of one member of an ensemble, layer by layer."""
    for layer in network.backbone:
        if isinstance(layer, MemberLinear):
            x = (x * layer.input_factor[member]) @ layer.weight.T
            x = (x * layer.output_factor[member] + layer.bias[member]).clamp_min(0)
    return network.head.heads[member](x)


@pytest.fixture
def x():
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_each_member_has_rows_of_its_own_in_training(x, head):
    network = ensemble(head=head)
    logits = network(x)
    assert logits.shape == (ROWS * MEMBERS, CLASSES)
    for member in range(MEMBERS):
        expected = member_logits(network, x, member)
        torch.testing.assert_close(logits[member::MEMBERS], expected)


def test_together_they_have_the_mean_probability(x):
    network = ensemble().eval()
    expected = sum(member_logits(network, x, m).softmax(1) for m in range(MEMBERS)) / MEMBERS
    torch.testing.assert_close(network(x).softmax(1), expected)


def test_with_cosine_heads_the_mean_cosine(x):
    network = ensemble(head="cosine").eval()
    expected = sum(member_logits(network, x, m) for m in range(MEMBERS)) / MEMBERS
    torch.testing.assert_close(network(x), expected)
    assert network.head.normalized


def test_members_differ_from_the_first_step_on(x):
    logits = MLP(COLUMNS, CLASSES, members=MEMBERS)(x.float()).unflatten(0, (-1, MEMBERS))
    assert (logits[:, :1] - logits[:, 1:]).abs().amax((0, 2)).min() > 1e-3


def test_one_member_is_the_network_without_any():
    assert "members" not in repr(MLP(COLUMNS, CLASSES))
    with pytest.raises(ValueError, match="members must be at least 1"):
        MLP(COLUMNS, CLASSES, members=0)


def test_the_loss_is_the_mean_over_rows_and_members(table):
    X, y = table
    weight = np.linspace(0.5, 2, len(X))
    net = MaxMarginClassifier(
        module="tabm", module__dropout=0.0, loss="cross_entropy", class_weight="balanced",
        batch_size=-1, max_epochs=1, random_state=0,
    )  # fmt: skip
    net.fit(X, y, sample_weight=weight, epochs=0)
    network = net.module_.train()
    rows, target = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
    losses = F.cross_entropy(network(rows), target.repeat_interleave(8), reduction="none").detach()
    net.partial_fit(X, y, sample_weight=weight)
    own = net.criterion_.class_weight.float()[target] * torch.as_tensor(weight).float()
    expected = (own.repeat_interleave(8) * losses).sum() / (8 * own.sum())
    assert net.history[-1, "train_loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": "mm_ldam", "drw_epoch": 0.5},
        {"mixing": "mixup", "class_weight": "balanced"},
        {"resample": "class_balanced", "ema_decay": 0.9, "train_split": 0.2},
        {"loss": "ldam", "drw_epoch": 0.5},
    ],
)
def test_it_trains_with_every_kind_of_method(table, arguments):
    X, y = table
    net = MaxMarginClassifier(module="tabm", max_epochs=20, batch_size=32, random_state=0)
    net.set_params(**arguments).fit(X, y)
    assert balanced_accuracy_score(y, net.predict(X)) > 0.8
    again = clone(net).fit(X, y)
    np.testing.assert_array_equal(again.predict_proba(X), net.predict_proba(X))


@pytest.mark.parametrize(
    "method", ["cRT", "LWS", "tau-norm", "NCM", "IB", "BBN", "MW-Net", "BALMS"]
)
def test_methods_that_need_one_head_say_so(table, method):
    with pytest.raises(ValueError, match=r"members=1|for tables use"):
        make_classifier(method, module="tabm", max_epochs=1).fit(*table)


def test_logit_adjustment_takes_it(table):
    X, y = table
    net = make_classifier("LA-post-hoc", module="tabm", max_epochs=10, batch_size=32)
    assert balanced_accuracy_score(y, net.fit(X, y).predict(X)) > 0.8


def test_a_search_side_by_side_gives_what_one_at_a_time_does(table):
    net = MaxMarginClassifier(
        module="tabm", module__dropout=0.0, max_epochs=3, batch_size=32, random_state=0
    )
    grid = {"delta_neg": [0.4, 0.8], "lr": [1e-3, 4e-3]}
    together, alone = (
        kind(net, grid, scoring="neg_log_loss", cv=2).fit(*table).cv_results_["mean_test_score"]
        for kind in (BatchedGridSearchCV, GridSearchCV)
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_an_exported_program_has_the_mean_probability(table, tmp_path):
    X, y = table
    net = MaxMarginClassifier(module="tabm", max_epochs=2, random_state=0).fit(X, y)
    export_model(net, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    probability, _ = program(torch.as_tensor(X, dtype=torch.float32))
    np.testing.assert_allclose(probability.detach(), net.predict_proba(X), atol=1e-5)


def test_an_instance_gets_heads_for_the_classes(table):
    network = TabM(table[0].shape[1], 7)
    net = MaxMarginClassifier(module=network, max_epochs=1, random_state=0).fit(*table)
    assert net.module_.head.out_features == len(np.unique(table[1]))
    assert network.head.out_features == 7
    replace_head(network, 2)
    assert rows_per_target(network) == 8
    with pytest.raises(ValueError, match="8 members of TabM"):
        find_head(network)
