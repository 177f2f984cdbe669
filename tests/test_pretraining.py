import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import Dataset

from imbmargin import MaxMarginClassifier
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.meta_sampler import MetaSamplerClassifier
from imbmargin.pretraining import RotationPretrainer, rotate

SETTINGS = {
    "module": "resnet20",
    "image_shape": (1, 8, 8),
    "loss": "ldam",
    "batch_size": 32,
    "max_epochs": 2,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(n_class=3, return_X_y=True)
    return X[:160], y[:160]


def weights(module):
    return torch.cat([tensor.double().flatten() for tensor in module.state_dict().values()])


def test_every_turn_comes_equally_often_and_is_told_right():
    images = torch.arange(10 * 2 * 3 * 3).reshape(10, 2, 3, 3).float()
    rotated, turns = rotate(images)
    assert sorted(turns.bincount().tolist()) == [2, 2, 3, 3]
    for image, turned, turn in zip(images, rotated, turns, strict=True):
        torch.testing.assert_close(turned, torch.rot90(image, int(turn), (1, 2)))


def test_the_network_learns_rotations(digits):
    estimator = MaxMarginClassifier(**{**SETTINGS, "max_epochs": 25, "augment": None})
    pretrainer = RotationPretrainer(estimator).fit(digits[0])
    images = torch.from_numpy(digits[0]).float().reshape(-1, 1, 8, 8)
    rotated, turns = rotate(images)
    found = pretrainer.net_.predict(rotated.flatten(1).numpy())
    assert np.mean(found == turns.numpy()) > 0.6
    assert pretrainer.n_features_in_ == 64
    losses = [row["train_loss"] for row in pretrainer.history_]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "classifier",
    [
        MetaWeightNetClassifier(meta_lr=0.01),
        MetaSamplerClassifier(rate_lr=0.1),
        MaxMarginClassifier(mixing="remix", loss_epoch=1),
    ],
    ids=lambda classifier: type(classifier).__name__,
)
def test_what_is_about_labels_or_another_step_stays_out_of_it(classifier, digits):
    settings = {**SETTINGS, "loss": "balanced_softmax", "init_backbone": RotationPretrainer()}
    found = clone(classifier).set_params(**settings).fit(*digits)
    plain = MaxMarginClassifier(**settings).fit(*digits)
    losses = [clf.pretraining_history_[:, "train_loss"] for clf in (found, plain)]
    assert losses[0] == losses[1]


def test_the_turns_are_told_by_a_linear_head(digits):
    cosine = MaxMarginClassifier(**SETTINGS, module__head="cosine", ema_decay=0.9)
    found = RotationPretrainer(cosine).fit(digits[0])
    assert repr(found.net_.module_.head) == repr(nn.Linear(64, 4))
    plain = MaxMarginClassifier(**SETTINGS, ema_decay=0.9)
    assert repr(RotationPretrainer(plain).fit(digits[0]).net_.module_.head) == repr(
        nn.Linear(64, 4)
    )


def test_labels_are_not_looked_at(digits):
    X, y = digits
    first = RotationPretrainer(MaxMarginClassifier(**SETTINGS)).fit(X)
    second = RotationPretrainer(MaxMarginClassifier(**SETTINGS)).fit(X, y)
    torch.testing.assert_close(weights(first.backbone_), weights(second.backbone_), rtol=0, atol=0)


class Begin(Callback):
    """Keep the weights of the backbone as the first epoch finds them."""

    only_shows = True

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 1:
            self.weights_ = weights(net.module_.backbone).clone()


class Break(Callback):
    """Break training off after two epochs."""

    only_shows = True

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise RuntimeError("broken off")


def starts_from(classifier, backbone, X, y):
    classifier.set_params(callbacks=[Begin()]).fit(X, y)
    [begin] = [callback for _, callback in classifier.callbacks_ if isinstance(callback, Begin)]
    return torch.equal(begin.weights_, weights(backbone))


def test_a_classifier_starts_from_the_backbone_and_its_statistics(digits):
    X, y = digits
    pretrainer = RotationPretrainer(MaxMarginClassifier(**SETTINGS)).fit(X)
    before = weights(pretrainer.backbone_).clone()
    other = MaxMarginClassifier(**SETTINGS).fit(X, y)
    for source, backbone in [
        (pretrainer, pretrainer.backbone_),
        (pretrainer.backbone_, pretrainer.backbone_),
        (pretrainer.net_.module_, pretrainer.backbone_),
        (other, other.module_.backbone),
    ]:
        clf = MaxMarginClassifier(**SETTINGS, init_backbone=source)
        assert starts_from(clf, backbone, X, y)
        assert not torch.equal(weights(clf.module_.backbone), weights(backbone))
    assert torch.equal(before, weights(pretrainer.backbone_))


def test_an_unfitted_pretrainer_takes_the_settings_of_its_classifier(digits):
    X, y = digits
    pretrainer = RotationPretrainer()
    clf = MaxMarginClassifier(**SETTINGS, init_backbone=pretrainer)
    # The seed that a classifier draws from random_state is what its pre-trainer gets.
    plain = MaxMarginClassifier(**SETTINGS).fit(X, y)
    expected = RotationPretrainer(
        MaxMarginClassifier(**{**SETTINGS, "random_state": plain.seed_})
    ).fit(X)
    assert starts_from(clf, expected.backbone_, X, y)
    assert not hasattr(pretrainer, "net_")


def test_the_validation_part_is_not_seen(digits, monkeypatch):
    X, y = digits
    seen = []
    original = RotationPretrainer.pretrain_for

    def look(self, net, train):
        seen.append(len(train))
        return original(self, net, train)

    monkeypatch.setattr(RotationPretrainer, "pretrain_for", look)
    MaxMarginClassifier(**SETTINGS, train_split=0.25, init_backbone=RotationPretrainer()).fit(X, y)
    assert seen == [120]


def test_copies_and_frozen_pretrainers(digits):
    X, y = digits
    fitted = RotationPretrainer(MaxMarginClassifier(**SETTINGS)).fit(X)
    clf = MaxMarginClassifier(**SETTINGS, init_backbone=fitted)
    assert not hasattr(clone(clf).init_backbone, "net_")
    frozen = clone(MaxMarginClassifier(**SETTINGS, init_backbone=FrozenEstimator(fitted)))
    assert starts_from(frozen, fitted.backbone_, X, y)
    again = pickle.loads(pickle.dumps(frozen))
    np.testing.assert_array_equal(again.predict(X), frozen.predict(X))
    params = clf.get_params()
    assert params["init_backbone__estimator__max_epochs"] == 2
    clf.set_params(init_backbone__estimator__max_epochs=1)
    assert clf.init_backbone.estimator.max_epochs == 1
    MaxMarginClassifier().set_params(**params)


def test_a_torch_dataset(digits):
    class Images(Dataset):
        def __init__(self):
            self.targets = digits[1]

        def __len__(self):
            return len(digits[1])

        def __getitem__(self, i):
            return torch.from_numpy(digits[0][i].reshape(1, 8, 8)).float(), int(digits[1][i])

    settings = {**SETTINGS, "image_shape": None, "max_epochs": 1}
    clf = MaxMarginClassifier(**settings, init_backbone=RotationPretrainer()).fit(Images())
    assert clf.predict(Images()).shape == (160,)


def test_warm_starts_do_not_begin_again(digits, monkeypatch):
    X, y = digits
    calls = []
    original = RotationPretrainer.pretrain_for
    monkeypatch.setattr(
        RotationPretrainer,
        "pretrain_for",
        lambda self, *args: calls.append(1) or original(self, *args),
    )
    clf = MaxMarginClassifier(**SETTINGS, init_backbone=RotationPretrainer(), warm_start=True)
    clf.fit(X, y).fit(X, y)
    assert calls == [1]


def test_the_folder_of_a_run_holds_its_pretraining(digits, tmp_path):
    X, y = digits
    settings = {**SETTINGS, "init_backbone": RotationPretrainer()}
    MaxMarginClassifier(**settings, checkpoint_dir=tmp_path / "{run}").fit(X, y)
    (run,) = tmp_path.iterdir()
    assert (run / "pretraining").is_dir()


def test_a_run_that_is_broken_off_in_its_pretraining_goes_on(digits, tmp_path):
    X, y = digits
    settings = {**SETTINGS, "max_epochs": 3}
    whole = MaxMarginClassifier(**settings, init_backbone=RotationPretrainer()).fit(X, y)
    for callbacks in ({"init_backbone__callbacks": [Break()]}, {"callbacks": [Break()]}):
        clf = MaxMarginClassifier(
            **settings, init_backbone=RotationPretrainer(), checkpoint_dir=tmp_path
        )
        with pytest.raises(RuntimeError, match="broken off"):
            clf.set_params(**callbacks).fit(X, y)
    assert (tmp_path / "pretraining").is_dir()
    clf = MaxMarginClassifier(
        **settings, init_backbone=RotationPretrainer(), checkpoint_dir=tmp_path
    ).fit(X, y)
    assert torch.equal(weights(clf.module_), weights(whole.module_))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("resnet32", TypeError, "init_backbone must be a Module, a fitted classifier or a pre-tra"),
        (
            nn.Linear(2, 2),
            ValueError,
            r"init_backbone does not fit the network: weight is \(2, 2\)",
        ),
    ],
)
def test_a_backbone_that_does_not_fit_is_an_error(digits, source, error, message):
    with pytest.raises(error, match=message):
        MaxMarginClassifier(**SETTINGS, init_backbone=source).fit(*digits)


def test_a_module_without_backbone_is_an_error(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    settings = {**SETTINGS, "module": network}
    with pytest.raises(ValueError, match="a module with an attribute `backbone`, Sequential has n"):
        MaxMarginClassifier(**settings, init_backbone=nn.Linear(2, 2)).fit(*digits)


def test_images_that_cannot_be_turned_are_an_error(digits):
    settings = {**SETTINGS, "image_shape": (1, 4, 16)}
    with pytest.raises(ValueError, match=r"rotation needs square images, got samples of shape \(1"):
        RotationPretrainer(MaxMarginClassifier(**settings)).fit(digits[0])
    with pytest.raises(ValueError, match="at least 4 images, got 3"):
        RotationPretrainer(MaxMarginClassifier(**SETTINGS)).fit(digits[0][:3])


def test_nothing_is_trained_for_a_module_without_backbone(digits, monkeypatch):
    monkeypatch.setattr(RotationPretrainer, "_fit", lambda *args: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="init_backbone needs a module with an attribute `backbo"):
        MaxMarginClassifier(
            torch.nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
            image_shape=(1, 8, 8),
            max_epochs=1,
            init_backbone=RotationPretrainer(),
        ).fit(*digits)
