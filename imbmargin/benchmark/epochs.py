"""Callbacks of a job: the error on the test part epoch by epoch, and progress."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skorch.callbacks import Callback
from tqdm.auto import tqdm

__all__ = ["EpochBar", "TestErrors", "watch"]


def watch(model: Any, title: str | None, errors: TestErrors | None = None) -> None:
    """Give a network callbacks that watch its training.

    Parameters
    ----------
    model : MaxMarginClassifier
        Not fitted.
    title : str or None
        Stands before a bar of the epochs, also of those of a pre-training. None: no bar.
    errors : TestErrors, default=None
        Looks at the test part.
    """
    bars = [] if title is None else [EpochBar(title)]
    model.set_params(callbacks=[*([] if errors is None else [errors]), *bars])
    if bars and "init_backbone__callbacks" in model.get_params():
        model.set_params(init_backbone__callbacks=[EpochBar(f"{title}, pre-training")])


class TestErrors(Callback):
    """Record the error on the test part after every epoch from one on, as ``test_error``.

    The papers report the best of these epochs. Nothing in the training depends on it.

    Parameters
    ----------
    X, y : ndarray
        The test part.
    start : int
        Epochs completed before the first that is looked at.

    Attributes
    ----------
    spent_ : float
        Seconds of the training in this process, once it has ended.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from imbmargin import MaxMarginClassifier
    >>> from imbmargin.benchmark.epochs import TestErrors
    >>> X, y = load_iris(return_X_y=True)
    >>> errors = TestErrors(X, y, start=3)
    >>> clf = MaxMarginClassifier(max_epochs=4, callbacks=[errors], random_state=0).fit(X, y)
    >>> ["test_error" in row for row in clf.history_]
    [False, False, False, True]
    """

    __test__ = False  # for pytest the name looks like that of a test
    only_shows = True

    def __init__(self, X: NDArray[Any], y: NDArray[Any], start: int) -> None:
        self.X = X
        self.y = y
        self.start = start

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self._begun = time.perf_counter()

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Look at the clock again."""
        self.spent_ = time.perf_counter() - self._begun

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Predict the test part."""
        if len(net.history) > self.start:
            error = float(np.mean(net.predict(self.X) != self.y))
            net.history.record("test_error", error)


class EpochBar(Callback):
    """Show the epochs of a job that runs in this process.

    Parameters
    ----------
    text : str
        Stands before the bar.
    """

    only_shows = True

    def __init__(self, text: str) -> None:
        self.text = text

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Open the bar."""
        self.bar_ = tqdm(
            total=net.max_epochs, desc=self.text, unit="epoch", leave=False, position=1
        )

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Set the bar to where the training is: one that goes on does not begin with the first."""
        if self.bar_.n == 0:
            self.bar_.initial = self.bar_.n = len(net.history) - 1

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Move the bar on."""
        self.bar_.set_postfix_str(f"loss {net.history[-1]['train_loss']:.3f}", refresh=False)
        self.bar_.update()

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar_.close()
