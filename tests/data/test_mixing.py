import numpy as np
import pytest
import torch

from imbmargin import MaxMarginClassifier, make_classifier
from imbmargin.data.mixing import Mixed, Mixup, Remix, make_mixing
from imbmargin.losses import MaxMarginLDAMLoss
from imbmargin.metrics import balanced_accuracy
from tests.reference import losses as naive

COUNTS = torch.tensor([90, 25, 10])


@pytest.fixture(autouse=True)
def _seed():
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)


def draw(mixing, n=60):
    x, y = torch.rand(n, 2, 4, 4), torch.arange(n) % 3
    return x, y, mixing(x, y, COUNTS)


@pytest.mark.parametrize("mixing", [Mixup(), Remix(), Mixup(0.2)])
def test_inputs_are_mixed_with_one_share_and_partners_are_a_permutation(mixing):
    for _ in range(5):
        x, y, mixed = draw(mixing)
        assert sorted(mixed.partner.tolist()) == list(range(60))
        difference = x - x[mixed.partner]
        row = int(difference.abs().flatten(1).sum(1).argmax())
        lam = ((mixed.x - x[mixed.partner])[row].sum() / difference[row].sum()).item()
        torch.testing.assert_close(mixed.x, lam * x + (1 - lam) * x[mixed.partner])
        if type(mixing) is Mixup:
            torch.testing.assert_close(mixed.share, torch.full((60,), lam))
        if type(mixing) is Remix:
            pairs = zip(COUNTS[y].tolist(), COUNTS[y[mixed.partner]].tolist(), strict=True)
            expected = [share_of_remix(lam, own, other) for own, other in pairs]
            torch.testing.assert_close(mixed.share, torch.tensor(expected))


@pytest.mark.parametrize(("kappa", "tau"), [(2.0, 0.9), (9.5, 0.2), (3.0, 0.0)])
def test_remix_with_its_arguments(kappa, tau):
    for _ in range(20):
        _, y, mixed = draw(Remix(kappa=kappa, tau=tau))
        # Pairs of one class keep the share of their inputs.
        lam = mixed.share[y == y[mixed.partner]][0].item()
        pairs = zip(COUNTS[y].tolist(), COUNTS[y[mixed.partner]].tolist(), strict=True)
        expected = [share_of_remix(lam, own, other, kappa, tau) for own, other in pairs]
        torch.testing.assert_close(mixed.share, torch.tensor(expected))


def share_of_remix(lam, own, other, kappa=3.0, tau=0.5):
    """Equation 4 of the remix paper, for one pair."""
    if own / other >= kappa and lam < tau:
        return 0.0
    if own / other <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam


def test_shares_follow_beta():
    shares = [draw(Mixup(0.2), 4)[2].share[0].item() for _ in range(400)]
    assert np.mean(np.abs(np.array(shares) - 0.5) > 0.4) > 0.5
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)


def test_integers_become_floats():
    x = torch.randint(255, (4, 3, 2, 2), dtype=torch.uint8)
    assert Mixup()(x, torch.arange(4) % 2, COUNTS).x.dtype == torch.float32


class Fixed:
    """The next row is the partner, with shares that differ by row."""

    def __call__(self, x, target, class_counts):
        partner = torch.arange(len(x)).roll(-1)
        share = torch.linspace(0.2, 0.9, len(x))
        return Mixed(0.5 * x + 0.5 * x[partner], partner, share)


@pytest.mark.parametrize("weighted", [False, True])
def test_each_label_has_its_own_margin_and_weight(weighted, table):
    X, y = table
    clf = MaxMarginClassifier(
        loss="mm_ldam", class_weight="inverse", mixing=Fixed(), max_epochs=1, random_state=0
    ).fit(X, y)
    x, target = torch.from_numpy(X[:6]), torch.from_numpy(y[:6])
    rows = torch.linspace(1, 2, 6) if weighted else torch.ones(6)
    clf.module_.eval()
    x_mixed, labels = clf._mixed((x, (target, rows) if weighted else target))
    logits = clf.infer(x_mixed)
    found = clf.get_loss(logits, labels).item()
    criterion: MaxMarginLDAMLoss = clf.criterion_
    counts, class_weight = clf.class_counts_.tolist(), criterion.class_weight.tolist()
    losses, weights = [], []
    for i, z in enumerate(logits.detach().double().tolist()):
        j = (i + 1) % 6
        share = float(torch.linspace(0.2, 0.9, 6)[i])
        for label, part, row in ((y[i], share, rows[i]), (y[j], 1 - share, rows[j])):
            delta = 0.6 - naive.ldam_margin(counts, label)
            margin = naive.maximum_margin(z, label, delta, 1.5)
            losses.append(naive.shifted(z, label, margin, criterion.scale))
            weights.append(part * class_weight[label] * float(row))
    assert found == pytest.approx(naive.weighted_mean(losses, weights), rel=1e-4)


@pytest.mark.parametrize("mixing", ["mixup", "remix"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mm", "hinge", "vs"])
def test_classifiers_train_with_mixing(mixing, loss, table):
    X, y = table
    settings = {"loss": loss, "mixing": mixing, "max_epochs": 30, "random_state": 0}
    first, second = (MaxMarginClassifier(**settings).fit(X, y) for _ in range(2))
    assert balanced_accuracy(y, first.predict(X)) > 0.8
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    plain = MaxMarginClassifier(**{**settings, "mixing": None}).fit(X, y)
    assert not np.allclose(first.predict_proba(X), plain.predict_proba(X))


def test_images_are_mixed_after_their_augmentation(images):
    X, y = images
    clf = make_classifier("MM-DRW+remix", module="resnet20", max_epochs=2, random_state=0)
    assert clf.fit(X, y).predict(X).shape == y.shape


@pytest.mark.parametrize(
    ("mixing", "message"),
    [
        ("cutmix", r"mixing must be one of \['mixup', 'remix'\], a callable or None, got 'cutmix'"),
        (Mixup(0), "alpha must be above 0, got 0"),
        (Remix(kappa=0.5), "kappa must be at least 1, got 0.5"),
        (Remix(tau=2), "tau must be between 0 and 1, got 2"),
    ],
)
def test_wrong_arguments(mixing, message, table):
    with pytest.raises(ValueError, match=message):
        MaxMarginClassifier(mixing=mixing, max_epochs=1).fit(*table)


def test_a_loss_without_row_weights_is_an_error(table):
    with pytest.raises(ValueError, match="mixing='mixup' needs a loss that takes weights of rows"):
        MaxMarginClassifier(loss=torch.nn.CrossEntropyLoss, mixing="mixup").fit(*table)


def test_a_callable_stays_what_it_is():
    mixing = Fixed()
    assert make_mixing(mixing) is mixing
    assert make_mixing(None) is None
