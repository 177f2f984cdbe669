"""What the tests of training in several processes run in each of them."""

import sys

import joblib
import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import TensorDataset

from imbmargin.distributed import DistributedClassifier, _processes
from tests.tables import three_classes

X, Y = three_classes(301)
# The first column names the row.
NUMBERED = np.column_stack([np.arange(301), X[:, 1:]]).astype(np.float32)
WEIGHTS = np.linspace(0.5, 2, 301)
FOLDER = "{}/checkpoints"
COMMON = {"max_epochs": 4, "batch_size": 64, "random_state": 0, "device": "cpu"}


class Rows(Callback):
    """Keep the rows of every epoch."""

    def on_epoch_begin(self, net, **kwargs):
        self.epochs = [*getattr(self, "epochs", []), []]

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        self.epochs[-1] += batch[0][:, 0].int().tolist()


class StopOne(Callback):
    """Stop, but in the last process only."""

    def on_epoch_end(self, net, **kwargs):
        processes = _processes()
        if len(net.history) == 2 and processes.process_index == processes.num_processes - 1:
            raise KeyboardInterrupt


class BreakOff(Callback):
    only_shows = True

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            raise RuntimeError("broken off")


class Normalized(nn.Module):
    """A network with batch normalisation and dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(x))


def found(net):
    return {
        "weights": {name: value.clone() for name, value in net.module_.state_dict().items()},
        "class_weight": net.criterion_.class_weight,
        "counts": net.class_counts_,
        "losses": [(row["train_loss"], row.get("valid_loss")) for row in net.history],
        "error": [float(np.mean(net.predict(X[c == Y]) != c)) for c in range(3)],
    }


def fitted(data=(X, Y), sample_weight=None, **parameters):
    return DistributedClassifier(**{**COMMON, **parameters}).fit(*data, sample_weight)


def weighted(out):
    settings = {"loss": "mm_ldam", "class_weight": "balanced", "drw_epoch": 2, "train_split": 0.2}
    return found(fitted(sample_weight=WEIGHTS, verbose=1, **settings))


def loaded(out):
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return found(fitted((data,), ema_decay=0.9))


def resampled(out):
    rows = Rows()
    settings = {"resample": "class_balanced", "drs_epoch": 2, "lr": 1e-5}
    fitted((NUMBERED, Y), callbacks=[("rows", rows)], **settings)
    return rows.epochs


def normalized(out):
    return found(fitted(module=Normalized, mixing="mixup", random_state=None))


def resumed(out):
    folder = FOLDER.format(out)
    with pytest.raises(RuntimeError, match="broken off"):
        fitted(checkpoint_dir=folder, callbacks=[BreakOff()])
    return found(fitted(checkpoint_dir=folder))


def stopped(out):
    return len(fitted(callbacks=[StopOne()], max_epochs=5).history)


def refused(out):
    """Return the errors that several processes raise, and one does not."""
    index = _processes().process_index
    errors = {}
    for name, data, parameters in (
        ("data", (X[index:], Y[index:]), {}),
        ("parameters", (X, Y), {"lr": 0.1 * (index + 1)}),
        ("batch_size", (X, Y), {"batch_size": 3}),
        ("device", (X, Y), {"device": "cpu:0"}),
    ):
        try:
            fitted(data, max_epochs=1, **parameters)
        except ValueError as error:
            errors[name] = str(error)
    return errors


SCENARIOS = (weighted, loaded, resampled, normalized, resumed, stopped, refused)


if __name__ == "__main__":
    torch.set_num_threads(1)
    results = {scenario.__name__: scenario(sys.argv[1]) for scenario in SCENARIOS}
    results["processes"] = _processes().num_processes
    joblib.dump(results, f"{sys.argv[1]}/{_processes().process_index}.joblib")
