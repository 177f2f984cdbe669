"""Models in files: what comes back, and what a file cannot do."""

import importlib
import json
import os
import pickle
import pkgutil
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import imbmargin
from imbmargin import MaxMarginClassifier, load_model, persistence, save_model, stored
from imbmargin._paired import PairedBatches
from imbmargin._wrapper import Wrapper
from imbmargin.bbn import BBNClassifier
from imbmargin.callbacks import EarlyStopping
from imbmargin.checkpoint import CheckpointFolder, pack, seal, unseal
from imbmargin.losses import CrossEntropyLoss
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.meta_sampler import MetaSamplerClassifier
from imbmargin.pretraining import RotationPretrainer

SHORT = {"max_epochs": 2, "random_state": 0}


class Net(nn.Sequential):
    def __init__(self, in_features, num_classes):
        super().__init__(nn.Linear(in_features, 6), nn.ReLU(), nn.Linear(6, num_classes))


class Loss(CrossEntropyLoss):
    pass


def weights_of(counts):
    return 1 / counts


class Other(MaxMarginClassifier):
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(table, path):
    clf = MaxMarginClassifier(**SHORT).fit(*table)
    save_model(clf, path)
    return clf


def back(model, path, trusted=()):
    save_model(model, path)
    return load_model(path, trusted=trusted)


def rows_of(history):
    return [{key: row[key] for key in row if key != "dur"} for row in history]


def text_of(parameters):
    return re.sub("0x[0-9a-f]+", "", str(parameters))


def assert_same(clf, loaded, X):
    assert type(loaded) is type(clf)
    assert np.array_equal(loaded.predict_proba(X), clf.predict_proba(X))
    assert loaded.classes_.dtype == clf.classes_.dtype
    assert np.array_equal(loaded.predict(X), clf.predict(X))


LABELS = {
    "str": np.array(["a", "bb", "ccc"]),
    "object": np.array(["a", "bb", "ccc"], dtype=object),
    "bool": np.array([False, True, True]),
    "float": np.array([1.0, 2.0, -3.0]),
    "int8": np.array([-1, 0, 7], dtype=np.int8),
    "datetime": np.array(["2024-01", "2025-01", "2026-01"], dtype="datetime64[D]"),
    "int": np.arange(3),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_type(table, path, kind):
    X, y = table
    clf = MaxMarginClassifier(**SHORT).fit(X, LABELS[kind][y])
    assert_same(clf, back(clf, path), X)


def test_attributes_and_parameters(table, path):
    X, y = table
    frame = pd.DataFrame(X, columns=list("abcdefgh"))
    clf = MaxMarginClassifier(**SHORT, class_weight={0: 1, 1: 2, 2: 3.5}, lr=0.01).fit(frame, y)
    loaded = back(clf, path)
    assert list(loaded.feature_names_in_) == list("abcdefgh")
    assert loaded.n_features_in_ == 8
    assert loaded.history_ == clf.history_
    assert text_of(loaded.get_params()) == text_of(clf.get_params())
    again = clone(loaded).fit(frame, y)
    assert np.array_equal(again.predict_proba(frame), clf.predict_proba(frame))


CLASSIFIERS = {
    "plain": MaxMarginClassifier(**SHORT),
    "many options": MaxMarginClassifier(
        max_epochs=4,
        random_state=np.random.RandomState(3),
        loss="ldam",
        ema_decay=0.9,
        drw_epoch=0.5,
        resample="square_root",
        mixing="remix",
        train_split=0.2,
        lr_schedule="cosine",
        callbacks=[EarlyStopping(patience=2)],
    ),
    "instance": MaxMarginClassifier(
        nn.Sequential(nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), **SHORT
    ),
    "meta-weight-net": MetaWeightNetClassifier(**SHORT),
    "meta sampler": MetaSamplerClassifier(**SHORT),
    "bbn": BBNClassifier(**SHORT),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_training_goes_on_as_if_nothing_had_been(table, path, name):
    X, y = table
    clf = clone(CLASSIFIERS[name]).fit(X, y)
    loaded = back(clf, path)
    assert_same(clf, loaded, X)
    for model in (clf, loaded):
        model.partial_fit(X[:200], y[:200])
        model.set_params(warm_start=True).fit(X, y)
    assert_same(clf, loaded, X)
    assert rows_of(loaded.history) == rows_of(clf.history)


def test_images_and_what_they_started_from(images, path):
    X, y = images[0][:100], images[1][:100]
    first = MaxMarginClassifier("resnet20", max_epochs=1, random_state=0, loss="ldam")
    pretrainer = RotationPretrainer(first.fit(X, y)).fit(X)
    second = clone(first).set_params(init_backbone=FrozenEstimator(pretrainer)).fit(X, y)
    for clf in (first, second):
        loaded = back(clf, path)
        assert_same(clf, loaded, X)
        strides = [weight.stride() for weight in loaded.module_.parameters()]
        assert strides == [weight.stride() for weight in clf.module_.parameters()]
    assert np.array_equal(clone(loaded).fit(X, y).predict_proba(X), second.predict_proba(X))


@pytest.mark.parametrize(
    "kind", [kind for kind in persistence._ESTIMATORS if issubclass(kind, Wrapper)]
)
def test_classifiers_around_classifiers(table, path, kind):
    X, y = table
    model = kind(MaxMarginClassifier(loss="cross_entropy", **SHORT)).fit(X, y)
    assert_same(model, back(model, path), X)


def test_every_classifier_of_the_package_is_known():
    found = set()
    for module in pkgutil.iter_modules(imbmargin.__path__, "imbmargin."):
        for name in getattr(importlib.import_module(module.name), "__all__", ()):
            thing = getattr(sys.modules[module.name], name)
            if isinstance(thing, type) and issubclass(thing, (MaxMarginClassifier, Wrapper)):
                found.add(thing)
    assert found - {Wrapper, PairedBatches} == set(persistence._ESTIMATORS)


def test_an_own_network_loss_function_and_subclass_are_trusted_by_the_reader(table, path):
    X, y = table
    clf = Other(Net, loss=Loss, class_weight=weights_of, **SHORT).fit(X, y)
    save_model(clf, path)
    here = __name__.replace(".", r"\.")
    with pytest.raises(
        ValueError, match=rf"names {here}\.Loss, {here}\.Net, .*trusted=\[Loss, Net"
    ):
        load_model(path)
    with pytest.raises(ValueError, match=rf"names {here}\.Loss, which"):
        load_model(path, trusted=[Net, weights_of, Other])
    assert_same(clf, load_model(path, trusted=[Net, Loss, weights_of, Other]), X)


def test_another_process_predicts_the_same(saved, table, path, tmp_path):
    np.save(tmp_path / "X.npy", table[0])
    code = (
        "import sys, numpy as np, torch, imbmargin; folder = sys.argv[1]; "
        "torch.set_num_threads(1); "
        "clf = imbmargin.load_model(folder + '/model.safetensors'); "
        "np.save(folder + '/p.npy', clf.predict_proba(np.load(folder + '/X.npy')))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert np.array_equal(np.load(tmp_path / "p.npy"), saved.predict_proba(table[0]))


def test_loading_leaves_the_global_random_states_alone(saved, path):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load_model(path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_a_model_of_a_cuda_device_loads_on_the_cpu(saved, table, path):
    saved.__dict__.update(device="cuda:1", precision="float16")
    save_model(saved, path)
    with pytest.warns(RuntimeWarning, match=r"'cuda:1'.*goes on with .*'cpu'.*'float32'"):
        loaded = load_model(path)
    saved.__dict__.update(device="auto", precision="float32")
    assert_same(saved, loaded, table[0])
    assert loaded.get_params()["device"] == "cpu"


@pytest.mark.cuda
def test_weights_on_a_cuda_device(table, path):
    X, y = table
    clf = MaxMarginClassifier(**SHORT, device="cuda").fit(X, y)
    loaded = back(clf, path)
    assert_same(clf, loaded, X)
    assert next(loaded.module_.parameters()).is_cuda


def test_requests_for_metadata(table, path):
    with sklearn.config_context(enable_metadata_routing=True):
        clf = MaxMarginClassifier(**SHORT).set_fit_request(sample_weight="w").fit(*table)
        loaded = back(clf, path)
        wanted = loaded.get_metadata_routing()._serialize()
        assert wanted == clf.get_metadata_routing()._serialize()
        assert wanted["$self_request"]["fit"] == {"sample_weight": "w"}


def test_what_cannot_be_saved(table, path):
    X, y = table
    with pytest.raises(NotFittedError):
        save_model(MaxMarginClassifier(), path)
    pipeline = make_pipeline(StandardScaler(), MaxMarginClassifier(**SHORT)).fit(X, y)
    with pytest.raises(TypeError, match=r"got a Pipeline; .*skops\.io\.dump"):
        save_model(pipeline, path)
    clf = MaxMarginClassifier(class_weight=lambda counts: 1 / counts, **SHORT).fit(X, y)
    with pytest.raises(TypeError, match=r"cannot be saved: .* lambda.*set_params"):
        save_model(clf, path)
    clf = MaxMarginClassifier(torch_load_kwargs={"weights_only": False}, **SHORT).fit(X, y)
    with pytest.raises(TypeError, match=r"torch_load_kwargs=.* set it to None"):
        save_model(clf, path)
    net = Net(8, 3)
    net.register_forward_hook(print)
    with pytest.raises(TypeError, match="forward_hooks of a Net"):
        save_model(MaxMarginClassifier(net, **SHORT).fit(X, y), path)
    nets = [Net(8, 3)]
    nets[0].mirror = [nets[0]]
    with pytest.raises(TypeError, match="Net that refers to itself"):
        pack(nets, stored.Describer())
    assert not path.exists()


def test_a_failed_save_leaves_what_was_there(saved, path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_model(saved, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_shared_weights_stay_shared(path):
    one = nn.Linear(3, 3)
    skeleton, tensors = pack([nn.Sequential(one, nn.ReLU(), one), one], stored.Describer())
    network, alone = stored.unpack(skeleton, tensors, stored.Restorer())
    assert network[0] is network[2] is alone
    assert torch.equal(alone.weight, one.weight)
    lstm = stored.unpack(*pack(nn.LSTM(2, 3), stored.Describer()), stored.Restorer())
    assert lstm(torch.zeros(1, 1, 2))[0].shape == (1, 1, 3)


def test_versions(saved, path, monkeypatch):
    tensors, metadata = unseal(path.read_bytes())
    assert metadata["torch"] == torch.__version__
    assert metadata["scikit-learn"] == sklearn.__version__
    path.write_bytes(seal(tensors, {**metadata, "torch": "99.0.1"}))
    with pytest.warns(RuntimeWarning, match=r"written with torch 99\.0\.1, and .* is installed"):
        load_model(path)
    path.write_bytes(seal(tensors, {**metadata, "torch": "1.13"}))
    load_model(path)
    path.write_bytes(seal(tensors, {**metadata, "format": "imbmargin model 2"}))
    with pytest.raises(ValueError, match="its format is 'imbmargin model 2'"):
        load_model(path)


class Hostile:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def cut(content):
    return content[:-5]


def flip(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def flip_header(content):
    return content[:30] + bytes([content[30] ^ 1]) + content[31:]


def other_checksum(content):
    return re.sub(rb'"checksum":"[0-9a-f]{8}"', b'"checksum":"01234567"', content)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        flip_header,
        other_checksum,
        lambda content: b"",
        lambda content: content[:4],
        lambda content: b"\xff" * 64,
        lambda content: seal({}, {}),
        lambda content: seal({}, {"format": "imbmargin model 1", "model": "[" * 10**6}),
        lambda content: seal({}, {"format": "imbmargin model 1", "model": "{nothing"}),
    ],
)
def test_a_damaged_or_foreign_file_is_one_error(saved, path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"model\.safetensors is damaged, or no file of save_model"
    ):
        load_model(path)


def test_a_pickle_and_a_checkpoint_are_no_models(path, tmp_path):
    path.write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(ValueError, match="is damaged, or no file of save_model"):
        load_model(path)
    assert not (tmp_path / "ran").exists()
    CheckpointFolder(tmp_path / "run").write(1, {"epoch": 1})
    (checkpoint,) = (tmp_path / "run").iterdir()
    with pytest.raises(ValueError, match="its format is '1'"):
        load_model(checkpoint)


def rewritten(path, change):
    """Change the description in a file, with a checksum that holds."""
    tensors, metadata = unseal(path.read_bytes())
    text = change(metadata["model"])
    assert text != metadata["model"]
    path.write_bytes(seal(tensors, {**metadata, "model": text}))


def named(name):
    return json.dumps({"other": ["name", name]})


def called(name, *args):
    arguments = {"tuple": list(args)}
    return json.dumps({"other": ["partial", {"other": ["name", name]}, arguments, {"dict": []}]})


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ('"auto"', named("posix.mkdir"), "posix.mkdir"),
        ('"auto"', named("os.system"), "os.system"),
        ('"auto"', named("builtins.eval"), "builtins.eval"),
        ('"auto"', called("posix.mkdir", "{sentinel}"), "posix.mkdir"),
        ('"auto"', named("imbmargin.datasets.load_image_folder"), "load_image_folder"),
        ('"auto"', named("skorch.callbacks.training.LoadInitState"), "LoadInitState"),
        ("imbmargin.estimator.MaxMarginClassifier", "subprocess.Popen", "subprocess.Popen"),
        ("imbmargin.estimator.MaxMarginClassifier", "os", "os"),
    ],
)
def test_a_name_that_is_not_known_is_refused(saved, path, tmp_path, old, new, name):
    sentinel = tmp_path / "ran"
    rewritten(path, lambda text: text.replace(old, new.replace("{sentinel}", str(sentinel)), 1))
    with pytest.raises(
        ValueError, match=rf"names .*{name}, which imbmargin does not know.*trusted"
    ):
        load_model(path)
    assert not sentinel.exists()


def test_no_module_is_imported_because_a_file_says_so(saved, path, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(path, lambda text: text.replace('"auto"', named("evil.Net"), 1))
    with pytest.raises(ValueError, match=r"names evil\.Net, which"):
        load_model(path)
    assert not (tmp_path / "ran").exists()


def deep(text):
    return '{"tuple": [' * 20_000 + "1" + "]}" * 20_000


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"auto"', named("torch.nn.functional.relu"), 1),
        lambda text: text.replace('"auto"', '{"other": ["eval", "1"]}', 1),
        lambda text: text.replace('"auto"', '{"other": ["same", 99]}', 1),
        lambda text: text.replace('"auto"', '{"other": ["array", "O8", [1], {"array": "t0"}]}', 1),
        lambda text: text.replace('"t0"', '"t999"', 1),
        lambda text: "7",
    ],
)
def test_a_description_that_makes_no_sense_is_an_error(saved, path, change):
    rewritten(path, change)
    with pytest.raises(ValueError, match=r"does not describe a model|not a classifier"):
        load_model(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["compile", false]', '["compile__options", {"dict": [["cpp.cxx", "/bin/sh"]]}]'),
        ('["compile", false]', '["compile__backend", "inductor"]'),
        ('["torch_load_kwargs", null]', '["torch_load_kwargs", {"dict": []}]'),
    ],
)
def test_a_file_does_not_choose_what_torch_runs(saved, path, old, new):
    rewritten(path, lambda text: text.replace(old, new))
    with pytest.raises(ValueError, match=r"(compile__|torch_load_kwargs).*not kept in files"):
        load_model(path)


def test_attributes_cannot_stand_for_parameters(saved, path):
    def change(text):
        return text.replace('["seed_", 0]', '["seed_", 0], ["compile__options", 1]')

    rewritten(path, change)
    with pytest.raises(ValueError, match="are no attributes"):
        load_model(path)


def test_huge_nesting_is_an_error(saved, path):
    rewritten(path, deep)
    with pytest.raises(ValueError, match=r"model\.safetensors (is damaged|does not describe)"):
        load_model(path)


def test_a_state_of_the_optimizer_must_fit_its_weights(saved, path):
    weights = next(iter(saved.optimizer_.state))
    saved.optimizer_.state[weights]["exp_avg"] = torch.zeros(1, 1)
    save_model(saved, path)
    with pytest.raises(ValueError, match="the optimizer has"):
        load_model(path)


def test_random_states_are_looked_at():
    state = np.random.RandomState(0)
    skeleton, tensors = pack(state, stored.Describer())
    assert stored.unpack(skeleton, tensors, stored.Restorer()).rand() == state.rand()
    skeleton["other"][1]["tuple"][2] = 10**6
    with pytest.raises(ValueError, match="random state"):
        stored.unpack(skeleton, tensors, stored.Restorer())


def test_partials_sets_types_and_paths_come_back(tmp_path):
    value = {
        "partial": partial(nn.Linear, 2, out_features=1),
        "set": {1, 2},
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "path": tmp_path,
        "complex": np.array([[1 + 2j]]),
    }
    found = stored.unpack(*pack(value, stored.Describer()), stored.Restorer())
    assert found.pop("partial")(bias=False).weight.shape == (1, 2)
    assert found == {name: part for name, part in value.items() if name != "partial"}
