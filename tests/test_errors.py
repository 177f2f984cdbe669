"""Bad input: the error names the argument, the value and the cure."""

import numpy as np
import pytest
import torch

from imbmargin import MaxMarginClassifier, make_classifier

X = np.random.RandomState(0).randn(40, 3).astype(np.float32)
Y = np.array(["a", "b"] * 20)
NAN, INF = X.copy(), X.copy()
NAN[3, 1], INF[3, 1] = np.nan, np.inf


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((NAN, Y), "Input X contains NaN"),
        ((INF, Y), "Input X contains infinity"),
        ((X.astype(np.float64) * 1e300, Y), "Input X contains infinity or a value too large"),
        ((X, np.full(40, "a")), r"y has one class only, \['a'\]; .* at least two classes"),
        ((X.astype("M8[s]"), Y), r"X holds dates or durations \(datetime64\[s\]\), not numbers"),
        ((X[:, :, None], Y), r"Found array with dim 3, shape \(40, 3, 1\).*image_shape"),
        ((X, Y[:30]), "X has 40 rows and y has 30 labels; they must be the same"),
        ((X, None), "requires y to be passed, but the target y is None"),
        ((X, np.linspace(0, 1, 40)), "Unknown label type: continuous"),
        ((X, np.array([1, "a"] * 20, dtype=object)), r"objects, \['int', 'str'\]; pass strings or"),
        ((X, np.array(["a", 1] * 20, dtype=object)), r"objects, \['int', 'str'\]; pass strings or"),
        ((X, np.array([None, "a"] * 20)), r"\['NoneType', 'str'\].* no rows without a label"),
        ((X[:0], Y[:0]), "Found array with 0 sample"),
        ((X, np.r_[[np.nan], np.ones(39)]), "Input y contains NaN or infinity"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        MaxMarginClassifier(max_epochs=1).fit(*data)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "mmm"}, r"loss must be one of \['balanced_softmax'.*got 'mmm'"),
        ({"loss": 3}, "loss must be one of .* got 3"),
        ({"loss": torch.nn.NLLLoss}, "NLLLoss.* give logits here; pass loss='cross_entropy'"),
        ({"loss": torch.nn.NLLLoss()}, "NLLLoss.* give logits here; pass loss='cross_entropy'"),
        ({"delta_neg": -0.1}, "delta_neg must be .*got -0.1"),
        ({"beta": 0}, "beta must be .*got 0"),
        ({"class_weight": {"a": 1, "z": 2}}, r"class_weight.*'z'.*\['a', 'b'\]"),
        ({"class_weight": "equal"}, "class_weight must be .*'equal'"),
        ({"resample": "often"}, "resample must be .*'often'"),
        ({"resample": {"z": 2}}, r"resample.*'z'"),
        ({"drw_epoch": 10}, "drw_epoch=10 is never reached.*max_epochs is 5.*lower drw_epoch"),
        ({"drw_epoch": 1.0}, "drw_epoch=1.0 is never reached"),
        ({"drs_epoch": 5}, "drs_epoch=5 is never reached"),
        ({"drw_epoch": "late"}, "drw_epoch must be None, a number of epochs"),
        ({"device": "cuda:99"}, "device='cuda:99' is not there: torch sees .* device='cpu'"),
        ({"device": "gpu"}, "device must be 'auto' or a torch device.* got 'gpu'"),
        ({"precision": "float64"}, "precision must be one of .* got 'float64'"),
        ({"precision": "float16", "device": "cpu"}, "needs a CUDA device, got device='cpu'"),
        ({"module": "vgg"}, r"module must be one of \['auto', 'mlp'.* got 'vgg'"),
        ({"module": "resnet32"}, "takes images, but X has rows of 3 columns; pass image_shape"),
        ({"augment": "crop"}, "augment"),
        ({"image_shape": (1, 2, 2)}, r"image_shape=\(1, 2, 2\) does not fit X of shape \(40, 3\)"),
        ({"max_epochs": 0}, "max_epochs must be an integer of at least 1, got 0"),
        ({"max_epochs": 2.5}, "max_epochs must be an integer of at least 1, got 2.5"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"train_split": 1.5}, "train_split must be a fraction between 0 and 1, got 1.5"),
        ({"lr_schedule": "linear"}, "lr_schedule must be one of"),
        ({"optimizer": "sgd"}, "optimizer must be 'auto' or a class such as .* got 'sgd'"),
        ({"random_state": "seed"}, "random_state must be None, an int or a numpy"),
        ({"random_state": -1}, "random_state must be 0 or more, got -1"),
        ({"modul__head": 1}, "unexpected argument.*modul__head"),
        ({"criterion_scale": 1}, "did you mean criterion__scale"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        MaxMarginClassifier(**{"max_epochs": 5, **parameters}).fit(X, Y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "cross_entropy", "criterion__scale": 10}, "criterion__scale is no.* takes none;"),
        (
            {"criterion__scales": 10},
            "criterion__scales is no argument of MaxMarginLoss.* beta, scale,",
        ),
        ({"loss": torch.nn.CrossEntropyLoss(), "criterion__s": 1}, "criterion__s is no .* weight,"),
        ({"module__hidden": 10}, "module__hidden is no argument of MLP, which .* hidden_units,"),
        ({"optimizer": torch.optim.SGD, "optimizer__m": 1}, "optimizer__m is no .*SGD.* momentum,"),
        ({"delta_neg": "a"}, "delta_neg must be a number, at least 0, got 'a'"),
        ({"beta": None}, "beta must be a number, above 0, got None"),
    ],
)
def test_arguments_that_a_part_does_not_take(parameters, message):
    with pytest.raises(TypeError, match=message):
        MaxMarginClassifier(max_epochs=1, **parameters).fit(X, Y)


def test_arguments_of_any_name():
    def network(**sizes):
        return torch.nn.Linear(sizes["columns"], 2)

    MaxMarginClassifier(network, module__columns=3, max_epochs=1).fit(X, Y)
    with pytest.raises(TypeError, match="optimizer__lrr is no argument of SGD"):
        MaxMarginClassifier(
            network, module__columns=3, optimizer=torch.optim.SGD, optimizer__lrr=1, max_epochs=1
        ).fit(X, Y)


def test_bad_sample_weights():
    clf = MaxMarginClassifier(max_epochs=1)
    with pytest.raises(ValueError, match="above zero for fewer than two classes"):
        clf.fit(X, Y, sample_weight=(Y == "a").astype(float))
    with pytest.raises(ValueError, match=r"[Nn]egative values in data"):
        clf.fit(X, Y, sample_weight=np.full(40, -1.0))
    with pytest.raises(ValueError, match=r"sample_weight.shape"):
        clf.fit(X, Y, sample_weight=np.ones(3))


@pytest.mark.parametrize("width", [2, 4])
def test_another_width_at_predict(width):
    clf = MaxMarginClassifier(max_epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match=f"X has {width} features, but MaxMarginClassifier is"):
        clf.predict(np.zeros((5, width), np.float32))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        clf.predict_proba(NAN)


def test_unknown_method_and_setting():
    with pytest.raises(ValueError, match=r"name must be one of \['ERM', .*got 'mm-drw'"):
        make_classifier("mm-drw")
    with pytest.raises(ValueError, match=r"setting must be one of \['cifar10_lt_100'.*'mnist'"):
        make_classifier("MM-DRW", setting="mnist")


def test_images_whose_channels_cannot_be_told():
    with pytest.raises(ValueError, match="is ambiguous"):
        MaxMarginClassifier().fit(np.zeros((4, 5, 5, 5), np.float32), [0, 1, 0, 1])


def test_sample_weight_with_a_dataset():
    data = torch.utils.data.TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="sample_weight needs X and y as arrays"):
        MaxMarginClassifier().fit(data, sample_weight=np.ones(4))
