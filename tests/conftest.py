import os

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits, make_classification

from tests.tables import three_classes

matplotlib.use("Agg")
# The same examples in every run, however busy the machine is.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.load_profile("suite")
# The estimators of the suite are small: more threads would only wait for one another.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--cuda", action="store_true", help="run the tests for CUDA devices alone")


def pytest_configure(config):
    if not config.getoption("--cuda"):
        # The other tests hold bits and look into tensors with NumPy, also in processes that they
        # start: with device="auto" that is for the CPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    wanted = config.getoption("--cuda")
    groups = {True: [], False: []}
    for item in items:
        groups[(item.get_closest_marker("cuda") is not None) == wanted].append(item)
    items[:] = groups[True]
    config.hook.pytest_deselected(items=groups[False])


@pytest.fixture(scope="session")
def table():
    """An imbalanced table with three classes: X (300, 8), y (300,) of counts about 210/60/30."""
    return three_classes(300)


@pytest.fixture(scope="session")
def binary_table():
    """A binary table, 10 % positive."""
    X, y = make_classification(
        n_samples=300, n_features=6, weights=[0.9], class_sep=2.0, flip_y=0, random_state=1
    )
    return X.astype(np.float32), y


@pytest.fixture(scope="session")
def images():
    """300 grey images of digits, uint8 (300, 1, 8, 8), and their labels."""
    X, y = load_digits(return_X_y=True)
    return X[:300].reshape(-1, 1, 8, 8).astype(np.uint8) * 15, y[:300]


@pytest.fixture
def cluster():
    """A Dask cluster of two worker processes, which a test may kill."""
    import dask
    from distributed import LocalCluster
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        # Workers are forks of one process that has loaded what they need.
        get_mp_context().set_forkserver_preload(["distributed", "imbmargin.benchmark.jobs"])
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            yield cluster


@pytest.fixture
def float16(monkeypatch):
    """Steps as CUDA takes them in float16, on the CPU, where torch has a gradient scaler too."""
    monkeypatch.setattr("imbmargin.steps.resolve_precision", lambda *_: torch.float16)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda: torch.amp.grad_scaler.GradScaler("cpu"))
