"""Searches on a real cluster of two worker processes."""

import itertools
import os
import signal
import threading
import time

import joblib
import numpy as np
from distributed import Client
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from imbmargin import MaxMarginClassifier


def scores(search):
    results = search.cv_results_
    return [results[f"split{i}_test_score"].tolist() for i in range(search.n_splits_)]


def test_a_search_goes_on_without_a_worker_that_is_killed(cluster, table):
    net = MaxMarginClassifier(class_weight="balanced", max_epochs=30, random_state=0)
    folds = list(StratifiedKFold(2).split(*table))
    grid = {"delta_neg": [0.3, 0.6, 0.9, 1.2]}
    search = GridSearchCV(net, grid, cv=folds, scoring="balanced_accuracy")
    alone = clone(search).fit(*table)
    killed = {}

    with Client(cluster) as client:

        def kill():
            busy, seen = {}, set()
            # Until fits are done, more of them have come, and both workers are at one.
            while len(busy) < 2 or len(seen) <= 4:
                time.sleep(0.05)
                processing = client.processing().items()
                busy = {worker: fits for worker, fits in processing if fits}
                seen.update(key for _, fits in processing for key in fits if "fit_and" in key)
            worker, fits = busy.popitem()
            killed[client.run(os.getpid, workers=[worker])[worker]] = len(fits)
            os.kill(*killed, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        # What is not named lies on one worker only, and would be lost with it.
        with joblib.parallel_config("dask", scatter=[*table, *itertools.chain(*folds)]):
            search.fit(*table)
        thread.join()
        workers = client.run(os.getpid).values()
    # It had fits to do, is gone, and no result is.
    (pid,) = killed
    assert killed[pid] > 0
    assert pid not in workers
    assert scores(search) == scores(alone)
    assert search.best_params_ == alone.best_params_
    np.testing.assert_array_equal(search.predict_proba(table[0]), alone.predict_proba(table[0]))
