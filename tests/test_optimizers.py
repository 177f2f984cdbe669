"""Quick steps of fused optimizers are those of torch, to the bit, or left to torch."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, LRScheduler
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook

from imbmargin import MaxMarginClassifier
from imbmargin._optimizers import QuickSteps

X = torch.linspace(-1, 1, 60).reshape(10, 6)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))


def take_steps(net, step, times):
    for _ in range(times):
        for parameter in net.parameters():
            parameter.grad = None
        net(X).square().sum().backward()
        step()


def weights(net):
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def two_groups(kind, net, **settings):
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.2}]
    return kind(groups, fused=True, **settings)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}])
@pytest.mark.parametrize("maximize", [False, True])
def test_they_are_the_steps_of_torch(kind, settings, maximize):
    nets, taken = [network(), network()], []
    for net, quickly in zip(nets, (True, False), strict=True):
        optimizer = two_groups(kind, net, maximize=maximize, **settings)
        quick = QuickSteps(optimizer)
        step = quick.step if quickly else optimizer.step
        take_steps(net, step, 3)
        assert quick.is_quick is quickly
        for group in optimizer.param_groups:
            group["lr"] /= 2
            group["weight_decay"] = 0.05
        take_steps(net, step, 2)
        state = optimizer.state_dict()["state"]
        taken.append([value for own in state.values() for value in own.values()])
    assert torch.equal(*map(weights, nets))
    assert all(torch.equal(*pair) for pair in zip(*taken, strict=True))


def test_of_an_optimizer_that_has_stepped_before_all_are_quick():
    nets = [network(), network()]
    for net, quickly in zip(nets, (True, False), strict=True):
        optimizer = two_groups(AdamW, net)
        take_steps(net, optimizer.step, 2)
        quick = QuickSteps(optimizer)
        assert quick.is_quick
        take_steps(net, quick.step if quickly else optimizer.step, 2)
    assert torch.equal(*map(weights, nets))


def test_a_loaded_state_and_a_new_group_are_followed():
    nets = [network(), network()]
    for net, quickly in zip(nets, (True, False), strict=True):
        optimizer = AdamW(net[0].parameters(), lr=0.1, fused=True)
        step = QuickSteps(optimizer).step if quickly else optimizer.step
        take_steps(net, step, 2)
        kept = optimizer.state_dict()
        take_steps(net, step, 2)
        optimizer.load_state_dict(kept)
        take_steps(net, step, 2)
        optimizer.add_param_group({"params": net[2].parameters()})
        take_steps(net, step, 3)
    assert torch.equal(*map(weights, nets))


def test_a_parameter_without_a_gradient_is_left_out():
    nets = [network(), network()]
    for net, quickly in zip(nets, (True, False), strict=True):
        optimizer = AdamW(net.parameters(), lr=0.1, fused=True)
        step = QuickSteps(optimizer).step if quickly else optimizer.step
        for learns in (True, True, False, True):
            net[0].requires_grad_(learns)
            take_steps(net, step, 2)
    assert torch.equal(*map(weights, nets))


def with_schedule(net):
    optimizer = AdamW(net.parameters(), fused=True)
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return optimizer


def with_two_types(net):
    net[0].double()
    net[0].register_forward_pre_hook(lambda _, inputs: inputs[0].double())
    net[0].register_forward_hook(lambda _, inputs, output: output.float())
    return AdamW(net.parameters(), fused=True)


def with_hook(net):
    optimizer = AdamW(net.parameters(), fused=True)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def frozen(net):
    net[0].requires_grad_(False)
    return AdamW(net.parameters(), fused=True)


class Own(AdamW):
    """An optimizer with a step of its own."""


OTHERS = {
    "another": lambda net: SGD(net.parameters(), lr=0.1),
    "a subclass": lambda net: Own(net.parameters(), fused=True),
    "not fused": lambda net: AdamW(net.parameters()),
    "amsgrad": lambda net: AdamW(net.parameters(), fused=True, amsgrad=True),
    "a rate in a tensor": lambda net: AdamW(net.parameters(), lr=torch.tensor(0.1), fused=True),
    "two types": with_two_types,
    "a schedule": with_schedule,
    "a hook": with_hook,
    "a frozen layer": frozen,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_step_by_themselves(name):
    nets = [network(), network()]
    for net, quickly in zip(nets, (True, False), strict=True):
        optimizer = OTHERS[name](net)
        quick = QuickSteps(optimizer)
        take_steps(net, quick.step if quickly else optimizer.step, 3)
        assert not quick.is_quick
    assert torch.equal(*map(weights, nets))


def test_a_hook_of_all_optimizers_is_called():
    seen = []
    with ExitStack() as stack:
        stack.callback(register_optimizer_step_post_hook(lambda *_: seen.append(1)).remove)
        net = network()
        take_steps(net, QuickSteps(AdamW(net.parameters(), fused=True)).step, 3)
    assert len(seen) == 3


class Watch(Callback):
    """Looks at batches, so that they are run as skorch does."""

    def on_batch_end(self, net, **_):
        self.seen_ = len(net.history)


def test_a_fit_takes_them_unless_batches_are_watched(table, monkeypatch):
    calls = []
    inner = AdamW.step

    def counted(self, *args, **kwargs):
        calls.append(self)
        return inner(self, *args, **kwargs)

    # Marked as torch marks its own, so that it is not wrapped again.
    counted.hooked = True
    monkeypatch.setattr(AdamW, "step", counted)
    settings = {"max_epochs": 3, "batch_size": 100, "random_state": 0}
    quick = MaxMarginClassifier(**settings).fit(*table)
    assert len(calls) == 1  # the first of all
    watched = MaxMarginClassifier(callbacks=[Watch()], **settings).fit(*table)
    assert len(calls) == 1 + 9
    np.testing.assert_array_equal(quick.predict_proba(table[0]), watched.predict_proba(table[0]))


def test_a_schedule_of_torch_counts_the_steps(table):
    # It warns if a step was not counted, and warnings are errors here.
    clf = MaxMarginClassifier(
        max_epochs=3, callbacks=[LRScheduler("ExponentialLR", gamma=0.5)], random_state=0
    ).fit(*table)
    rates = clf.history[:, "event_lr"]
    assert rates[1] == pytest.approx(rates[0] / 2)


@pytest.mark.cuda
def test_they_are_the_steps_of_torch_on_a_cuda_device():
    nets = [network().cuda(), network().cuda()]
    for net, quickly in zip(nets, (True, False), strict=True):
        optimizer = AdamW(net.parameters(), lr=0.1, fused=True)
        quick = QuickSteps(optimizer)
        for _ in range(3):
            net(X.cuda()).square().sum().backward()
            (quick if quickly else optimizer).step()
        assert quick.is_quick is quickly
    assert torch.equal(*map(weights, nets))
