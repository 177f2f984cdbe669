import pickle

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from skorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from imbmargin import BatchedGridSearchCV
from imbmargin.losses import logit_adjusted_loss
from imbmargin.meta_sampler import ClassRates, MetaSamplerClassifier, _noise_given_class
from imbmargin.metrics import balanced_accuracy
from tests.checks import expected_failures

SETTINGS = {"max_epochs": 4, "random_state": 0, "module__hidden_units": (8,)}


@parametrize_with_checks(
    [MetaSamplerClassifier(max_epochs=30, random_state=0)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.fixture
def rates():
    found = ClassRates(4)
    found.set_class_counts([60, 30, 9, 1])
    with torch.no_grad():
        found.psi.copy_(torch.tensor([-1.0, 0.0, 0.5, 2.0]))
    return found


def test_rates_are_those_of_rows_drawn_in_proportion_to_sigma_of_psi(rates):
    row = np.repeat(1 / (1 + np.exp(-rates.psi.detach().numpy())), [60, 30, 9, 1])
    classes = np.repeat(range(4), [60, 30, 9, 1])
    expected = np.bincount(classes, weights=row / row.sum())
    np.testing.assert_allclose(rates().exp().detach(), expected, rtol=1e-5)


def test_a_class_without_rows_has_no_rate_and_no_gradient():
    rates = ClassRates()
    rates.set_class_counts([3, 0, 5])
    weight = rates.sample_weight(torch.tensor([0, 2, 2]))
    (gradient,) = torch.autograd.grad((weight * torch.tensor([1.0, 2.0, 3.0])).sum(), rates.psi)
    assert rates()[1] == -torch.inf
    assert gradient.isfinite().all()
    assert gradient[1] == 0
    assert gradient[0] != 0


def test_noise_is_that_of_draws_in_which_the_class_came_out(rates):
    torch.manual_seed(0)
    log_rate = rates().detach()
    gumbel = -torch.empty(400_000, 4).exponential_().log()
    target = (log_rate + gumbel).argmax(1)
    noise = _noise_given_class(log_rate, target)
    assert torch.equal((log_rate + noise).argmax(1), target)
    for label in range(4):
        for quantile in (0.1, 0.5, 0.9):
            pair = [x[target == label].quantile(quantile, dim=0) for x in (noise, gumbel)]
            torch.testing.assert_close(*pair, atol=0.05, rtol=0.02)


def test_gradients_are_those_of_a_naive_straight_through_draw(rates):
    torch.manual_seed(1)
    value = torch.tensor([1.0, -2.0, 0.5, 3.0])

    def naive():
        gumbel = -torch.empty(200_000, 4).exponential_().log()
        soft = torch.softmax(rates() + gumbel, dim=1)
        hard = F.one_hot(soft.argmax(1), 4)
        # As in the released code, only the entry that was drawn carries a gradient.
        entries = (hard * (hard + soft - soft.detach())).sum(1)
        return (entries * value[soft.argmax(1)]).mean()

    def ours():
        target = torch.multinomial(rates().exp().detach(), 200_000, replacement=True)
        weight = rates.sample_weight(target)
        assert torch.equal(weight.detach(), torch.ones(200_000))
        return (weight * value[target]).mean()

    pair = [torch.autograd.grad(f(), rates.psi)[0] for f in (ours, naive)]
    torch.testing.assert_close(*pair, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("weighted", [False, True])
def test_rates_go_down_the_loss_after_a_virtual_step(weighted, table):
    """The gradient is that of finite differences of the meta loss, for each row's weight."""
    X, y = table
    clf = MetaSamplerClassifier(**SETTINGS).fit(X, y)
    x, target = torch.from_numpy(X[:20]), torch.from_numpy(y[:20])
    balanced = torch.from_numpy(X[60:90]), torch.from_numpy(y[60:90])
    head, lr = clf.module_.head, clf.optimizer_.param_groups[0]["lr"]
    with torch.no_grad():
        network = nn.Sequential(clf.module_.input_norm, clf.module_.backbone).eval()
        features, others = (network(rows).double() for rows in (x, balanced[0]))

    given, by_class = torch.linspace(0.1, 3, 20).double(), torch.tensor([0.2, 1.0, 5.0]).double()
    share = given * by_class[target] if weighted else torch.ones(20, dtype=torch.float64)
    share = share / share.sum()
    if weighted:
        clf.criterion_.set_class_weight(by_class)

    def meta_loss(row_weight):
        weight, bias = (p.detach().double().requires_grad_() for p in (head.weight, head.bias))
        losses = logit_adjusted_loss(features @ weight.T + bias, target, clf.class_counts_)
        steps = torch.autograd.grad((share * row_weight * losses).sum(), (weight, bias))
        logits = others @ (weight - lr * steps[0]).T + bias - lr * steps[1]
        return F.cross_entropy(logits, balanced[1]).item()

    ones, step = torch.ones(20, dtype=torch.float64), 1e-2
    of_weight = torch.tensor(
        [
            (meta_loss(ones + step * unit) - meta_loss(ones - step * unit)) / (2 * step)
            for unit in torch.eye(20, dtype=torch.float64)
        ]
    )
    torch.manual_seed(3)
    weight = clf.class_rates_.sample_weight(target)
    (expected,) = torch.autograd.grad((weight * of_weight).sum(), clf.class_rates_.psi)
    seen = []
    clf._draw_at_rates = lambda: None
    clf.rate_optimizer_.step = lambda: seen.append(clf.class_rates_.psi.grad.clone())
    clf._balanced_features = lambda _: (others.float(), balanced[1])
    torch.manual_seed(3)
    clf._change_rates(head, features.float(), target, given.float() if weighted else None)
    torch.testing.assert_close(seen[0], expected.float(), rtol=1e-3, atol=1e-8)
    assert clf.class_rates_.psi.grad is None


def test_batches_follow_the_rates_at_once(table, monkeypatch):
    X, y = table
    seen = []

    def change(self, head, features, target, row_weight):
        seen.append(set(target.tolist()))
        with torch.no_grad():
            self.class_rates_.psi[:2] = -200.0
        self._draw_at_rates()

    monkeypatch.setattr(MetaSamplerClassifier, "_change_rates", change)
    settings = {**SETTINGS, "max_epochs": 1, "batch_size": 32}
    MetaSamplerClassifier(**settings).fit(X, y)
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    batches = len(seen)
    MetaSamplerClassifier(**settings).fit(rows, None)
    for first in (0, batches):
        assert seen[first] == {0, 1, 2}
        assert all(labels == {2} for labels in seen[first + 1 : first + batches])


def test_rare_classes_are_drawn_more_often_and_found(binary_table):
    X, y = binary_table
    settings = {"max_epochs": 40, "random_state": 0}
    clf = MetaSamplerClassifier(**settings, loss="cross_entropy", rate_lr=0.1).fit(X, y)
    assert clf.class_rates_().exp()[1] > 2 * clf.class_counts_[1] / clf.class_counts_.sum()
    assert balanced_accuracy(y, clf.predict(X)) > 0.9


def test_virtual_steps_leave_statistics_alone(images):
    X, y = images
    clf = MetaSamplerClassifier("resnet20", max_epochs=1, random_state=0, batch_size=32)
    clf.fit(X[:64], y[:64])
    before = {name: value.clone() for name, value in clf.module_.state_dict().items()}
    clf.module_.train()
    clf._partner = torch.from_numpy(X[:16]), torch.from_numpy(y[:16])
    features, target = clf._balanced_features(clf.module_.head)
    assert features.shape == (16, 64)
    assert torch.equal(target, torch.from_numpy(y[:16]))
    after = clf.module_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert clf.rate_optimizer_.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpoints_pickles_weights_and_precisions(table, tmp_path, precision):
    X, y = table
    settings = {**SETTINGS, "precision": precision, "train_split": 0.2}
    weight = np.linspace(0.5, 1.5, len(y))
    whole = MetaSamplerClassifier(**settings).fit(X, y, sample_weight=weight)
    kept, again = (
        MetaSamplerClassifier(**settings, checkpoint_dir=tmp_path).fit(X, y, sample_weight=weight)
        for _ in range(2)
    )
    for clf in (kept, again, pickle.loads(pickle.dumps(whole))):
        np.testing.assert_array_equal(clf.predict_proba(X), whole.predict_proba(X))
        assert torch.equal(clf.class_rates_.psi, whole.class_rates_.psi)
    assert (whole.class_rates_.psi != 0).all()
    whole.partial_fit(X[y < 2], y[y < 2])
    assert whole.class_rates_.log_counts.exp()[2] < 2 * np.sum(y == 2)


def test_a_new_class_of_rows_between_calls_of_partial_fit(table):
    X, y = table
    clf = MetaSamplerClassifier(**SETTINGS)
    clf.partial_fit(X[y < 2], y[y < 2], classes=[0, 1, 2])
    assert clf.class_rates_().exp()[2] == 0
    clf.partial_fit(X, y)
    assert clf.class_rates_().exp()[2] > 0


def test_it_is_not_batched_with_others(table):
    with pytest.warns(UserWarning, match="one at a time"):
        BatchedGridSearchCV(MetaSamplerClassifier(**SETTINGS), {"lr": [0.01, 0.02]}, cv=2).fit(
            *table
        )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate_lr": 0}, ValueError, "rate_lr must be above 0, got 0"),
        ({"mixing": "mixup"}, ValueError, "mixing='mixup' and learned class rates cannot be had"),
        ({"resample": "square_root"}, ValueError, "resample='square_root' and learned class rates"),
        ({"drs_epoch": 2}, ValueError, "drs_epoch=2 and learned class rates cannot be had"),
        ({"loss": nn.CrossEntropyLoss}, ValueError, "does not give losses of single rows"),
        (
            {"iterator_train": lambda data, **kwargs: DataLoader(data, batch_size=32)},
            TypeError,
            "iterator must be an ArrayBatches or DataLoader with a ClassSampler, got DataLoader",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message, table):
    clf = MetaSamplerClassifier(**{**SETTINGS, **arguments})
    with pytest.raises(error, match=message):
        clf.fit(*table)


def test_a_run_that_broke_off_goes_on_to_the_same_rates(table, tmp_path):
    X, y = table
    whole = MetaSamplerClassifier(**SETTINGS).fit(X, y)

    class Break(Callback):
        only_shows = True

        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 3:
                raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        MetaSamplerClassifier(**SETTINGS, checkpoint_dir=tmp_path, callbacks=[Break()]).fit(X, y)
    resumed = MetaSamplerClassifier(**SETTINGS, checkpoint_dir=tmp_path).fit(X, y)
    assert torch.equal(resumed.class_rates_.psi, whole.class_rates_.psi)
    np.testing.assert_array_equal(resumed.predict_proba(X), whole.predict_proba(X))
