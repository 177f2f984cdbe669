"""Models in files of skops, which executes nothing either."""

import io
import pickle
import zipfile

import numpy as np
import pytest
import skops.io
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skops.io.exceptions import UntrustedTypesFoundException

from imbmargin import MaxMarginClassifier, save_model
from imbmargin._wrapper import Wrapper
from imbmargin.persistence import _ESTIMATORS, TRUSTED_TYPES
from imbmargin.posthoc import LogitAdjustment
from imbmargin.prior import PriorCorrection
from tests.test_persistence import Hostile, Net

SHORT = {"max_epochs": 2, "random_state": 0}


@pytest.mark.parametrize("kind", [k for k in _ESTIMATORS if not issubclass(k, Wrapper)])
def test_classifiers_and_pipelines(table, kind):
    X, y = table
    for model in (kind(**SHORT), make_pipeline(StandardScaler(), kind(**SHORT))):
        labels = np.array(["a", "b", "c"])[y]
        content = skops.io.dumps(model.fit(X, labels))
        assert set(skops.io.get_untrusted_types(data=content)) <= set(TRUSTED_TYPES)
        loaded = skops.io.loads(content, trusted=TRUSTED_TYPES)
        assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
        assert np.array_equal(loaded.predict(X), model.predict(X))


@pytest.mark.parametrize("kind", [kind for kind in _ESTIMATORS if issubclass(kind, Wrapper)])
def test_classifiers_around_pipelines(table, kind):
    X, y = table
    inner = make_pipeline(
        StandardScaler(), MaxMarginClassifier(loss="cross_entropy", train_split=None, **SHORT)
    )
    model = kind(inner).fit(X, y)
    loaded = skops.io.loads(skops.io.dumps(model), trusted=TRUSTED_TYPES)
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize("kind", [LogitAdjustment, PriorCorrection])
def test_save_model_names_skops_where_a_pipeline_inside_cannot_be_held(table, kind, tmp_path):
    X, y = table
    network = MaxMarginClassifier(loss="cross_entropy", **SHORT)
    pipeline = make_pipeline(SimpleImputer(), network).fit(X, y)
    for inner in (pipeline, FrozenEstimator(pipeline)):
        model = kind(inner).fit(X, y)
        message = rf"got a {kind.__name__} around a Pipeline .*; save it with skops\.io\.dump"
        with pytest.raises(TypeError, match=message):
            save_model(model, tmp_path / "model.safetensors")
    # The imputer keeps the type of its numbers.
    loaded = skops.io.loads(skops.io.dumps(model), trusted=[*TRUSTED_TYPES, "numpy.dtype"])
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))


def test_save_model_names_skops_where_a_search_inside_cannot_be_held(table, tmp_path):
    X, y = table
    search = GridSearchCV(make_pipeline(SimpleImputer(), LogisticRegression()), {}, cv=2)
    model = LogitAdjustment(search).fit(X, y)
    with pytest.raises(TypeError, match=r"around a GridSearchCV .*; save it with skops\.io\.dump"):
        save_model(model, tmp_path / "model.safetensors")


def test_save_model_names_the_parameter_of_a_network_in_a_wrapper(table, tmp_path):
    X, y = table
    network = MaxMarginClassifier(loss="cross_entropy", callbacks__print_log__sink=lambda _: 0)
    model = LogitAdjustment(network.set_params(**SHORT)).fit(X, y)
    with pytest.raises(TypeError, match=r"lambda.* Set the parameter that holds it"):
        save_model(model, tmp_path / "model.safetensors")


def test_an_unfitted_classifier():
    clf = MaxMarginClassifier(loss="ldam", drw_epoch=0.5)
    loaded = skops.io.loads(skops.io.dumps(clf), trusted=TRUSTED_TYPES)
    assert loaded.get_params(deep=False) == clf.get_params(deep=False)


def test_an_own_network_is_seen_by_the_audit(table):
    X, y = table
    clf = MaxMarginClassifier(Net, **SHORT).fit(X, y)
    content = skops.io.dumps(clf)
    own = f"{Net.__module__}.Net"
    assert own in skops.io.get_untrusted_types(data=content)
    with pytest.raises(UntrustedTypesFoundException, match="Net"):
        skops.io.loads(content, trusted=TRUSTED_TYPES)
    loaded = skops.io.loads(content, trusted=[*TRUSTED_TYPES, own])
    assert np.array_equal(loaded.predict_proba(X), clf.predict_proba(X))


def dumped_with(monkeypatch, state):
    with monkeypatch.context() as patch:
        patch.setattr(MaxMarginClassifier, "__getstate__", lambda _: state)
        return skops.io.dumps(MaxMarginClassifier())


def test_a_pickle_inside_is_not_read(tmp_path, monkeypatch):
    sentinel = tmp_path / "ran"
    parts = {"__cuda_dependent_attributes__": pickle.dumps(Hostile(sentinel)), "device": "cpu"}
    content = dumped_with(monkeypatch, parts)
    with pytest.raises(ValueError, match="no state of a MaxMarginClassifier"):
        skops.io.loads(content, trusted=TRUSTED_TYPES)
    assert not sentinel.exists()


def test_the_state_of_a_pickle_is_not_trusted(tmp_path, monkeypatch):
    sentinel = tmp_path / "ran"
    reduced = MaxMarginClassifier().__reduce_ex__(4)[2]
    reduced["__cuda_dependent_attributes__"] = pickle.dumps(Hostile(sentinel))
    content = dumped_with(monkeypatch, reduced)
    with pytest.raises(UntrustedTypesFoundException, match="_Pickled"):
        skops.io.loads(content, trusted=TRUSTED_TYPES)
    assert not sentinel.exists()


def test_content_that_is_a_pickle_is_damage(tmp_path, monkeypatch):
    sentinel = tmp_path / "ran"
    content = dumped_with(monkeypatch, {"model": pickle.dumps(Hostile(sentinel)), "named": []})
    with pytest.raises(ValueError, match="is damaged"):
        skops.io.loads(content, trusted=TRUSTED_TYPES)
    assert not sentinel.exists()


def test_names_are_looked_up_by_skops_audit_only(tmp_path):
    content = skops.io.dumps(MaxMarginClassifier(Net))
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            text = old.read(name)
            if name == "schema.json":
                text = text.replace(Net.__module__.encode(), b"posix").replace(b"Net", b"system")
            new.writestr(name, text)
    with pytest.raises(UntrustedTypesFoundException, match=r"posix\.system"):
        skops.io.loads(changed.getvalue(), trusted=TRUSTED_TYPES)
