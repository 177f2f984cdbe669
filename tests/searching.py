"""Searches on small tables, for the tests of the batched grid search."""

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from imbmargin import BatchedGridSearchCV, MaxMarginClassifier

MARGINS = {"delta_neg": [0.4, 0.8], "beta": [1.0, 1.5]}


def classifier(**kwargs):
    arguments = {
        "max_epochs": 4,
        "batch_size": 64,
        "random_state": 0,
        "module__hidden_units": (16,),
        "lr": 0.01,
        **kwargs,
    }
    if "module" in kwargs:
        del arguments["module__hidden_units"]
    return MaxMarginClassifier(**arguments)


def both(estimator, grid, X, y, fit_params=None, **kwargs):
    """Fit scikit-learn's search and the batched one; the batched one must not warn."""
    kwargs = {"scoring": "neg_log_loss", "cv": 2, "return_train_score": True, **kwargs}
    plain = GridSearchCV(clone(estimator), grid, **kwargs).fit(X, y, **fit_params or {})
    batched = BatchedGridSearchCV(estimator, grid, **kwargs).fit(X, y, **fit_params or {})
    return plain, batched


def assert_same_results(plain, batched, atol=1e-5):
    assert list(plain.cv_results_) == list(batched.cv_results_)
    assert plain.cv_results_["params"] == batched.cv_results_["params"]
    for name, values in plain.cv_results_.items():
        assert batched.cv_results_[name].__class__ is values.__class__
        if "score" in name and "time" not in name and not name.startswith("rank"):
            np.testing.assert_allclose(batched.cv_results_[name], values, atol=atol, err_msg=name)
        elif name.startswith("param_"):
            assert batched.cv_results_[name].tolist() == values.tolist()
            assert batched.cv_results_[name].dtype == values.dtype
    for name in ("best_index_", "best_params_", "n_splits_", "multimetric_"):
        assert getattr(plain, name, None) == getattr(batched, name, None)
