"""Exported programs give the probabilities of the classifier."""

import builtins
import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from imbmargin import MaxMarginClassifier, export_model
from imbmargin.bbn import BBNClassifier
from imbmargin.two_stage import ClassifierRetraining


def run_torch(path, X):
    extra = {"classes": ""}
    program = torch.export.load(path, extra_files=extra).module()
    probability, logits = program(torch.from_numpy(X))
    return probability.numpy(), logits.numpy(), extra["classes"]


def run_onnx(path, X):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["probability", "logits"]
    classes = session.get_modelmeta().custom_metadata_map["classes"]
    return *session.run(None, {"X": X}), classes


RUNNERS = {".pt2": run_torch, ".onnx": run_onnx}


def assert_exported(clf, X, tmp_path, dtype, suffixes=(".pt2", ".onnx")):
    expected = clf.predict_proba(X)
    for suffix in suffixes:
        path = tmp_path / f"model{suffix}"
        export_model(clf, path, dtype=dtype)
        for n in (1, 2, 60):
            probability, logits, classes = RUNNERS[suffix](path, np.asarray(X[:n], dtype=dtype))
            np.testing.assert_allclose(probability, expected[:n], atol=1e-5)
            assert np.array_equal(logits.argmax(axis=1), expected[:n].argmax(axis=1))
        assert json.loads(classes) == clf.classes_.tolist()
    assert sorted(tmp_path.iterdir()) == sorted(tmp_path / f"model{end}" for end in suffixes)


def test_a_table(table, tmp_path):
    X, y = table
    clf = MaxMarginClassifier(loss="ldam", ema_decay=0.9, max_epochs=3, random_state=0)
    assert_exported(clf.fit(X, np.array(["a", "b", "c"])[y]), X, tmp_path, "float32")


def test_flattened_images(images, tmp_path):
    X, y = images[0][:100].reshape(100, -1), images[1][:100]
    clf = MaxMarginClassifier(image_shape=(1, 8, 8), loss="mm_ldam", max_epochs=1, random_state=0)
    assert_exported(clf.fit(X, y), X, tmp_path, "float32")


def test_uint8_images_with_channels_last(images, tmp_path):
    X, y = images[0][:100].transpose(0, 2, 3, 1), images[1][:100]
    clf = MaxMarginClassifier("resnet20", max_epochs=1, random_state=0, precision="bfloat16")
    clf.fit(X, y).set_params(precision="float32")
    assert_exported(clf, X, tmp_path, "uint8", suffixes=[".pt2"])


def test_other_networks(table, tmp_path):
    X, y = table
    bbn = BBNClassifier(max_epochs=2, random_state=0).fit(X, y)
    assert_exported(bbn, X, tmp_path, "float32", suffixes=[".pt2"])
    own = MaxMarginClassifier(torch.nn.Linear(8, 3), max_epochs=2, random_state=0).fit(X, y)
    assert_exported(own, X, tmp_path, "float32", suffixes=[".pt2"])
    first = MaxMarginClassifier(max_epochs=2, random_state=0)
    two = ClassifierRetraining(first, max_epochs=2, random_state=0).fit(X, y)
    assert_exported(two.net_, X, tmp_path, "float32", suffixes=[".pt2"])


def test_the_program_needs_torch_only(table, tmp_path):
    X, y = table
    export_model(MaxMarginClassifier(max_epochs=1, random_state=0).fit(X, y), tmp_path / "m.pt2")
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module(); "
        "assert program(torch.zeros(7, 8))[0].shape == (7, 3); assert 'skorch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.pt2")], check=True)


def test_errors(table, tmp_path, monkeypatch):
    X, y = table
    clf = MaxMarginClassifier(max_epochs=1, random_state=0)
    with pytest.raises(NotFittedError):
        export_model(clf, tmp_path / "m.pt2")
    clf.fit(X, y)
    with pytest.raises(ValueError, match=r"must end with '\.pt2' or '\.onnx', got .*m\.pt'"):
        export_model(clf, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"dtype must be one of .*got 'int64'"):
        export_model(clf, tmp_path / "m.pt2", dtype="int64")
    with pytest.raises(TypeError, match="got a Pipeline"):
        export_model(make_pipeline(clf), tmp_path / "m.pt2")
    clf.predict_nonlinearity = None
    with pytest.raises(ValueError, match="predict_nonlinearity=None"):
        export_model(clf, tmp_path / "m.pt2")
    clf.predict_nonlinearity = "auto"
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxscript":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"imbmargin\[onnx\]"):
        export_model(clf, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
