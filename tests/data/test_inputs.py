import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from imbmargin import MaxMarginClassifier
from imbmargin.data.inputs import find_layout


@pytest.mark.parametrize(
    ("shape", "image_shape", "kind", "seen"),
    [
        ((9, 5), None, "rows", (5,)),
        ((9, 3, 32, 24), None, "nchw", (3, 32, 24)),
        ((9, 32, 24, 3), None, "nhwc", (3, 32, 24)),
        ((9, 1, 8, 8), None, "nchw", (1, 8, 8)),
        ((9, 64), (1, 8, 8), "flat", (1, 8, 8)),
        ((9, 2, 8, 8), (2, 8, 8), "nchw", (2, 8, 8)),
        ((9, 8, 8, 2), (2, 8, 8), "nhwc", (2, 8, 8)),
        ((9, 3, 3, 3), (3, 3, 3), "nchw", (3, 3, 3)),
        ((9, 1, 8, 3), (3, 1, 8), "nhwc", (3, 1, 8)),
    ],
)
def test_layout(shape, image_shape, kind, seen):
    layout = find_layout(shape, image_shape)
    assert (layout.kind, layout.shape) == (kind, seen)
    assert layout.sample_shape == shape[1:]
    batch = torch.arange(float(np.prod(shape))).reshape(shape)
    out = layout.to_module(batch)
    assert tuple(out.shape) == (9, *seen)
    # Bringing it into shape twice changes nothing.
    assert torch.equal(layout.to_module(out), out)


@pytest.mark.parametrize("kind", ["nchw", "nhwc", "flat"])
def test_pixels_arrive_where_they_belong(kind):
    images = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    lying = {
        "nchw": images,
        "nhwc": images.permute(0, 2, 3, 1).contiguous(),
        "flat": images.reshape(2, -1),
    }[kind]
    assert torch.equal(find_layout(tuple(lying.shape), (3, 4, 5)).to_module(lying), images)


@pytest.mark.parametrize(
    ("shape", "image_shape", "message"),
    [
        ((9, 3, 8, 3), None, r"is ambiguous.*pass image_shape=\(channels, height, width\)"),
        ((9, 8, 8, 8), None, "is ambiguous"),
        ((9, 8, 8), None, r"Found array with dim 3.*X\[:, None\]"),
        ((9,), None, "Found array with dim 1"),
        ((9, 60), (1, 8, 8), r"image_shape=\(1, 8, 8\) does not fit X of shape \(9, 60\)"),
        ((9, 64), (8, 8), r"image_shape must be \(channels, height, width\), got \(8, 8\)"),
        ((9, 64), (1, 0, 8), "image_shape must be"),
    ],
)
def test_impossible_layouts(shape, image_shape, message):
    with pytest.raises(ValueError, match=message):
        find_layout(shape, image_shape)


def small(**kwargs):
    return MaxMarginClassifier(
        "resnet20", **{"max_epochs": 2, "random_state": 0, "lr": 0.05, **kwargs}
    )


def test_all_forms_of_images_give_the_same_model(images):
    X, y = images
    expected = small().fit(X, y).predict_proba(X)
    nhwc = np.ascontiguousarray(X.transpose(0, 2, 3, 1))
    flat = X.reshape(len(X), -1)
    for data, arguments in [
        (nhwc, {}),
        (flat, {"image_shape": (1, 8, 8)}),
        (X.astype(np.float64), {}),
        (torch.from_numpy(X), {}),
        (nhwc, {"image_shape": (1, 8, 8)}),
    ]:
        got = small(**arguments).fit(data, y).predict_proba(data)
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_images_in_a_dataset(images):
    X, y = images
    data = TensorDataset(torch.from_numpy(X).float(), torch.from_numpy(y))
    clf = small().fit(data, None)
    assert clf.predict_proba(data).shape == (300, 10)
    np.testing.assert_allclose(clf.predict_proba(X), clf.predict_proba(data), atol=1e-6)


def test_images_train_and_the_statistics_are_learned(images):
    X, y = images
    clf = small(max_epochs=12, loss="cross_entropy").fit(X, y)
    assert clf.score(X, y) > 0.8
    norm = clf.module_.input_norm
    assert norm.mean.item() == pytest.approx(X.mean(), rel=1e-4)
    assert norm.std.item() == pytest.approx(X.std(), rel=1e-3)
    given = small(module__mean=[1.0], module__std=[2.0]).fit(X, y)
    assert given.module_.input_norm.mean.item() == 1


def test_an_mlp_takes_images_too(images):
    X, y = images
    clf = MaxMarginClassifier("mlp", max_epochs=20, random_state=0).fit(X, y)
    assert clf.module_.backbone[0].in_features == 64
    assert clf.score(X, y) > 0.8


@pytest.mark.parametrize("shape", [(3, 1, 9, 8), (3, 3, 8, 8), (3, 64), (3, 8, 8)])
def test_images_of_another_shape_at_predict(images, shape):
    clf = small(max_epochs=1).fit(*images)
    with pytest.raises(ValueError, match=r"was fitted on samples of shape \(1, 8, 8\)"):
        clf.predict(np.zeros(shape, np.float32))


def test_datasets_of_another_shape_at_partial_fit(images):
    X, y = images
    clf = small(max_epochs=1).fit(X, y)
    wrong = TensorDataset(torch.zeros(4, 1, 9, 9), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"samples of shape \(1, 9, 9\).*\(1, 8, 8\)"):
        clf.partial_fit(wrong)


@pytest.mark.parametrize("targets", [[0.5, 1.0], [-1, 0]])
def test_dataset_targets_must_be_encoded(targets):
    data = TensorDataset(torch.zeros(2, 3), torch.tensor(targets))
    with pytest.raises(ValueError, match=r"must be the integers 0..K-1.*LabelEncoder"):
        MaxMarginClassifier().fit(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_memory_maps_are_checked_in_chunks(tmp_path, monkeypatch, value):
    monkeypatch.setattr("imbmargin.data.inputs._CHUNK_BYTES", 64)
    X = np.zeros((10, 4))
    X[7, 2] = value
    np.save(tmp_path / "X.npy", X)
    with pytest.raises(ValueError, match=r"NaN, infinity or a value too large.*rows 6 and 7"):
        MaxMarginClassifier().fit(np.load(tmp_path / "X.npy", mmap_mode="r"), [0, 1] * 5)


def test_memory_maps_of_text_or_without_columns(tmp_path):
    for name, array in {"text": np.array([["a"], ["b"]]), "flat": np.zeros(3)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match="X must be a memory map of numbers"):
            MaxMarginClassifier().fit(np.load(tmp_path / f"{name}.npy", mmap_mode="r"), [0, 1])


@pytest.mark.parametrize("flat", [True, False])
def test_pixels_on_another_scale_are_warned_of(images, flat):
    X, y = images[0][:40], images[1][:40]
    shape = X.shape[1:]
    X = X.reshape(40, -1) if flat else X
    settings = {"module": "resnet20", "max_epochs": 1, "random_state": 0, "image_shape": shape}
    of_bytes = MaxMarginClassifier(**settings).fit(X, y)
    of_floats = MaxMarginClassifier(**settings).fit(X / 255, y)
    with pytest.warns(UserWarning, match=r"go up to 0\.94.* mean of 73\.1; .* multiply X by 255"):
        of_bytes.predict(X / 255)
    with pytest.warns(UserWarning, match=r"go up to 240.* mean of 0\.287; .* divide X by 255"):
        of_floats.predict(X)
    # Floats of 0..255, black images and their own scale are as they should be.
    for clf, fine in ((of_bytes, X * 1.0), (of_bytes, 0.0 * X), (of_floats, X / 255)):
        clf.predict(fine)
