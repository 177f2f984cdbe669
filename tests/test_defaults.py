"""What the defaults of the estimator stand for."""

import pytest
import torch

from imbmargin import MaxMarginClassifier


def fit(X, y, **kwargs):
    return MaxMarginClassifier(**{"max_epochs": 1, "random_state": 0, **kwargs}).fit(X, y)


def test_auto_is_the_protocol_of_the_papers_for_images_and_adamw_for_tables(table, images):
    clf = fit(*images, module="mlp")
    assert type(clf.optimizer_) is torch.optim.SGD
    group = clf.optimizer_.param_groups[0]
    # The first epoch of a training of one is no warm-up.
    assert clf.history[0, "event_lr"] == 0.1
    assert (group["momentum"], group["weight_decay"]) == (0.9, 2e-4)
    assert dict(clf.callbacks_)["lr_schedule"].schedule == "step"
    clf = fit(*table)
    assert type(clf.optimizer_) is torch.optim.AdamW
    group = clf.optimizer_.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (2e-3, 0.1)
    assert dict(clf.callbacks_)["lr_schedule"].schedule is None


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_layers_compute_in_the_precision(table, precision, dtype):
    clf, seen = fit(*table, precision=precision, device="cpu"), set()
    clf.module_.backbone[0].register_forward_hook(lambda layer, x, out: seen.add(out.dtype))
    clf.partial_fit(*table)
    assert seen == {dtype}
    seen.clear()
    clf.predict(table[0])
    assert seen == {dtype}
