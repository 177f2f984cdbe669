"""A step of each kind of training is taken once for a batch, whoever looks on."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from skorch.callbacks import GradientNormClipping

from imbmargin import MaxMarginClassifier
from imbmargin.bbn import BBNClassifier
from imbmargin.meta import MetaWeightNetClassifier
from imbmargin.meta_sampler import MetaSamplerClassifier

KINDS = [MaxMarginClassifier, BBNClassifier, MetaWeightNetClassifier, MetaSamplerClassifier]
SETTINGS = {"batch_size": 16, "max_epochs": 3, "random_state": 0}


class OwnAdamW(torch.optim.AdamW):
    """An optimizer that may ask for its closure, for all that is known of it."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"callbacks": [GradientNormClipping(1e9)]},
        {
            "optimizer": OwnAdamW,
            "optimizer__weight_decay": 0.1,
            "optimizer__fused": True,
            "lr": 2e-3,
        },
    ],
    ids=["clipping", "optimizer"],
)
def test_what_does_not_act_changes_nothing(kind, settings, table, monkeypatch):
    X, y = table
    plain = kind(**SETTINGS).fit(X, y)
    calls = []
    step = kind.train_step_single
    monkeypatch.setattr(
        kind, "train_step_single", lambda *args, **kw: calls.append(1) or step(*args, **kw)
    )
    watched = kind(**SETTINGS, **settings).fit(X, y)
    assert len(calls) == sum(len(row["batches"]) for row in watched.history_)
    np.testing.assert_array_equal(watched.predict_proba(X), plain.predict_proba(X))


@pytest.mark.parametrize("kind", [BBNClassifier, MetaSamplerClassifier])
def test_all_calls_of_a_step_have_the_same_second_batch(kind, table, monkeypatch):
    X, y = table
    clf = kind(**SETTINGS, optimizer=torch.optim.LBFGS, optimizer__max_iter=3, lr=0.01)
    calls = []
    step = kind.train_step_single

    def look(self, batch, **kwargs):
        calls.append((batch, self._partner))
        return step(self, batch, **kwargs)

    monkeypatch.setattr(kind, "train_step_single", look)
    clf.fit(X, y)
    assert len(calls) > sum(len(row["batches"]) for row in clf.history_)
    again = [(first, second) for first, second in pairwise(calls) if first[0] is second[0]]
    assert all(first[1] is second[1] for first, second in again)
    assert not hasattr(clf, "_partner")
