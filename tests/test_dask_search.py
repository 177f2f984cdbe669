"""Searches on a real cluster of two worker processes."""

import itertools
import os

import joblib
import numpy as np
from distributed import Client
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from imbmargin import MaxMarginClassifier
from tests.workers import KilledOnce


def scores(search):
    results = search.cv_results_
    return [results[f"split{i}_test_score"].tolist() for i in range(search.n_splits_)]


def test_a_search_goes_on_without_a_worker_that_is_killed(cluster, table, tmp_path):
    net = MaxMarginClassifier(class_weight="balanced", max_epochs=30, random_state=0)
    folds = list(StratifiedKFold(2).split(*table))
    grid = {"delta_neg": [0.3, 0.6, 0.9, 1.2]}
    search = GridSearchCV(net, grid, cv=folds, scoring="balanced_accuracy")
    alone = clone(search).fit(*table)

    with Client(cluster) as client:
        pids = client.run(os.getpid).values()
        client.register_plugin(KilledOnce(tmp_path / "killed"))
        # What is not named lies on one worker only, and would be lost with it.
        with joblib.parallel_config("dask", scatter=[*table, *itertools.chain(*folds)]):
            search.fit(*table)
        workers = client.run(os.getpid).values()
    # A worker had begun its second fit and is gone; no result is.
    pid = int((tmp_path / "killed").read_text())
    assert pid in pids
    assert pid not in workers
    assert scores(search) == scores(alone)
    assert search.best_params_ == alone.best_params_
    np.testing.assert_array_equal(search.predict_proba(table[0]), alone.predict_proba(table[0]))
