"""Callbacks: deferred losses, re-weighting and re-sampling, learning-rate schedule, early stopping.

They speak to any `skorch.NeuralNetClassifier`, not only to `MaxMarginClassifier`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback
from skorch.callbacks import EarlyStopping as SkorchEarlyStopping
from skorch.callbacks import PrintLog as SkorchPrintLog
from skorch.utils import to_device

from imbmargin._epochs import resolve_epoch, step_epochs
from imbmargin.data.batches import rows_of_a_batch, targets_of
from imbmargin.weights import class_counts, class_rates, class_weights

__all__ = [
    "LR_SCHEDULES",
    "DeferredLoss",
    "DeferredResampling",
    "DeferredReweighting",
    "EarlyStopping",
    "LearningRateSchedule",
    "PrintLog",
    "bind_class_weight",
    "resolve_epoch",
]

Schedule = Callable[[int, int], float]


def resolve_scheme(scheme: Any, start: Any) -> Any:
    """Return a scheme of weights or rates; one that is deferred has the paper's for None."""
    return "effective_number" if scheme is None and start is not None else scheme


def bind_class_weight(criterion: Any, weight: Any) -> None:
    """Give a criterion class weights in place, so that the optimizer keeps its state.

    Parameters
    ----------
    criterion : Module
        A loss of this package, or one of torch's own that hold a ``weight`` buffer.
    weight : Tensor of shape (K,), or None
        Weight of each class; None takes the weights away.

    Raises
    ------
    TypeError
        If the criterion has neither ``set_class_weight`` nor a ``weight`` buffer.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.callbacks import bind_class_weight
    >>> criterion = torch.nn.CrossEntropyLoss()
    >>> bind_class_weight(criterion, torch.tensor([1.0, 9.0]))
    >>> criterion.weight
    tensor([1., 9.])
    """
    if hasattr(criterion, "set_class_weight"):
        criterion.set_class_weight(weight)
    elif "weight" in getattr(criterion, "_buffers", {}):
        criterion.weight = None if weight is None else torch.as_tensor(weight).float()
    else:
        raise TypeError(
            f"class_weight needs a loss with set_class_weight or a `weight` buffer, "
            f"{type(criterion).__name__} has neither; use a loss of imbmargin.losses"
        )


class _Deferred(Callback):
    """What the two deferred callbacks share: when they start."""

    start: Any
    _name = "start"

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Work out the start in epochs."""
        self.goes_on_ = getattr(net, "open_ended_", False) or len(net.history) > 0
        self.start_epoch_ = resolve_epoch(self.start, net.max_epochs, self._name, self.goes_on_)

    def _is_on(self, net: Any) -> bool:
        # skorch has opened the history's row of this epoch already.
        return len(net.history) - 1 >= self.start_epoch_


class DeferredLoss(_Deferred):
    """Train with plain cross-entropy first, and with the loss after a number of epochs.

    A loss that changes with the batches, such as `imbmargin.losses.LargeMarginSoftmaxLoss`, is told
    how many there will be.

    Parameters
    ----------
    start : int, float or None, default=None
        As in `DeferredReweighting`; None: from the first epoch.

    Raises
    ------
    ValueError
        At the begin of training, if the start is never reached.
    TypeError
        If a start is given, and the loss is not one of `imbmargin.losses`.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import MaxMarginClassifier
    >>> clf = MaxMarginClassifier(loss="vs", loss_epoch=2, max_epochs=4, random_state=0)
    >>> clf.fit(*load_wine(return_X_y=True)).criterion_.active
    True
    """

    _name = "loss_epoch"

    def __init__(self, start: Any = None) -> None:
        self.start = start

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Tell the loss whether its time has come, and how long it will be."""
        # Nobody knows how often partial_fit will be called.
        if hasattr(net.criterion_, "planned_batches") and not self.goes_on_:
            rows = len(dataset_train)
            batches = math.ceil(rows / rows_of_a_batch(net, rows))
            net.criterion_.planned_batches = batches * (net.max_epochs - self.start_epoch_)
        if self.start is None:
            return
        if not hasattr(net.criterion_, "active"):
            raise TypeError(
                f"loss_epoch={self.start} needs a loss of imbmargin.losses, got "
                f"{type(net.criterion_).__name__}"
            )
        net.criterion_.active = self._is_on(net)


class DeferredReweighting(_Deferred):
    """Switch class weights on after a number of epochs (DRW).

    The weights change in place: module, optimizer and its momentum go on as they are. With
    ``start=None`` they are on from the first epoch. The class counts of the training part are
    bound to the loss too, if nobody has done so.

    Parameters
    ----------
    start : int, float or None, default=None
        Epochs completed before the weights switch on: 160 acts first in the 161st epoch. A float
        is a fraction of ``max_epochs``. In the paper 160 of 200.
    class_weight : str, dict, callable or None, default="effective_number"
        A scheme of `imbmargin.weights.class_weights`.
    beta : float, default=0.9999
        β of the effective number.

    Attributes
    ----------
    start_epoch_ : int
        The start, in completed epochs.

    Raises
    ------
    ValueError
        At the begin of training, if the start is never reached.

    References
    ----------
    .. [1] Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
       NeurIPS 2019, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from imbmargin.callbacks import DeferredReweighting
    >>> from imbmargin.losses import LDAMLoss
    >>> X = np.random.RandomState(0).randn(60, 2).astype("float32")
    >>> net = NeuralNetClassifier(
    ...     nn.Linear(2, 2), criterion=LDAMLoss, train_split=None, max_epochs=4, verbose=0,
    ...     callbacks=[DeferredReweighting(start=2)])
    >>> net = net.fit(X, (X[:, 0] > 1).astype(int))
    >>> bool(net.criterion_.class_weight[1] > net.criterion_.class_weight[0])
    True
    """

    _name = "drw_epoch"

    def __init__(
        self, start: Any = None, class_weight: Any = "effective_number", beta: float = 0.9999
    ) -> None:
        self.start = start
        self.class_weight = class_weight
        self.beta = beta

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Work out the start; the weights are computed anew from the counts of this training."""
        super().on_train_begin(net, **kwargs)
        self.is_bound_ = False

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Bind the class counts once, and the weights when their time has come."""
        criterion = net.criterion_
        if getattr(criterion, "class_counts", self) is None:
            criterion.set_class_counts(_training_counts(net, dataset_train))
        if self.class_weight is None or self.is_bound_ or not self._is_on(net):
            return
        weight = class_weights(
            _training_counts(net, dataset_train),
            self.class_weight,
            classes=getattr(net, "classes_", None),
            beta=self.beta,
        )
        bind_class_weight(criterion, torch.as_tensor(weight))
        if isinstance(criterion, torch.nn.Module):
            to_device(criterion, net.device)
        self.is_bound_ = True


class DeferredResampling(_Deferred):
    """Switch the sampling of the training part after a number of epochs (DRS).

    Until then an epoch is a permutation of all rows. `MaxMarginClassifier` brings the sampler; a
    plain skorch net needs ``iterator_train=imbmargin.samplers.ClassSampledLoader``.

    Parameters
    ----------
    start : int, float or None, default=None
        As in `DeferredReweighting`.
    resample : str, dict, callable or None, default="class_balanced"
        A scheme of `imbmargin.weights.class_rates`. "progressive" moves from the data's own rates
        to class-balanced ones between the start and the last epoch.
    beta : float, default=0.9999
        β of the effective number.

    Raises
    ------
    ValueError
        At the begin of training, if the start is never reached.
    TypeError
        If the training iterator has no `ClassSampler`.

    References
    ----------
    .. [1] Cao et al., NeurIPS 2019 (deferred re-sampling); Kang et al., "Decoupling
       Representation and Classifier for Long-Tailed Recognition", ICLR 2020 (progressive).

    Examples
    --------
    >>> import numpy as np
    >>> from skorch import NeuralNetClassifier
    >>> from torch import nn
    >>> from imbmargin.callbacks import DeferredResampling
    >>> from imbmargin.samplers import ClassSampledLoader
    >>> X = np.random.RandomState(0).randn(60, 2).astype("float32")
    >>> net = NeuralNetClassifier(
    ...     nn.Linear(2, 2), criterion=nn.CrossEntropyLoss, train_split=None, max_epochs=4,
    ...     verbose=0, iterator_train=ClassSampledLoader,
    ...     callbacks=[DeferredResampling(start=2)])
    >>> net = net.fit(X, (X[:, 0] > 1).astype(int))
    """

    _name = "drs_epoch"

    def __init__(
        self, start: Any = None, resample: Any = "class_balanced", beta: float = 0.9999
    ) -> None:
        self.start = start
        self.resample = resample
        self.beta = beta

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, **kwargs: Any) -> None:
        """Set the class rates of the epoch."""
        if self.resample is None or not self._is_on(net):
            return
        sampler = getattr(dataset_train, "class_sampler", None)
        if sampler is None:
            raise TypeError(
                "re-sampling needs a training iterator that draws with a ClassSampler, got "
                f"iterator_train={net.iterator_train!r}; pass "
                "iterator_train=imbmargin.samplers.ClassSampledLoader"
            )
        last = max(net.max_epochs - 1 - self.start_epoch_, 1)
        done = len(net.history) - 1 - self.start_epoch_
        rates = class_rates(
            sampler.class_counts,
            self.resample,
            classes=getattr(net, "classes_", None),
            progress=min(done / last, 1.0),
            beta=self.beta,
        )
        sampler.set_rates(rates)


def _training_counts(net: Any, dataset: Any) -> np.ndarray:
    """Class counts of the training part: the net's own, else counted from its dataset."""
    counts = getattr(net, "class_counts_", None)
    if counts is not None:
        return np.asarray(counts)
    return class_counts(targets_of(dataset), len(net.classes_))


def _step(
    epoch: int, max_epochs: int, parts: tuple[float, ...] = (0.8, 0.9), drop: float = 0.01
) -> float:
    warm_up, drops = step_epochs(max_epochs, parts)
    if epoch < warm_up:
        return (epoch + 1) / warm_up
    return float(drop ** sum(epoch >= start for start in drops))


def _early_step(epoch: int, max_epochs: int) -> float:
    return _step(epoch, max_epochs, (0.6, 0.8))


def _half_step(epoch: int, max_epochs: int) -> float:
    return _step(epoch, max_epochs, (0.5, 0.8, 0.9))


def _tenth_step(epoch: int, max_epochs: int) -> float:
    return _step(epoch, max_epochs, drop=0.1)


def _cosine(epoch: int, max_epochs: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / max_epochs))


LR_SCHEDULES: dict[str, Schedule] = {
    "step": _step,
    "early_step": _early_step,
    "half_step": _half_step,
    "tenth_step": _tenth_step,
    "cosine": _cosine,
}
"""Name -> function of the epoch and the number of epochs; see `LearningRateSchedule`."""


class LearningRateSchedule(Callback):
    """Set the learning rate of every epoch as a factor of its initial value.

    Parameters
    ----------
    schedule : {"step", "early_step", "half_step", "tenth_step", "cosine"}, callable or None, \
default="step"
        "step" is the protocol of the LDAM and MM papers scaled to ``max_epochs``: linear warm-up
        over the first 2.5 % (5 of 200 epochs; none below 60), and a drop to a hundredth at 80 %
        and again at 90 % (160 and 180). "early_step" drops at 60 and 80 %, as BBN does,
        "half_step" at 50, 80 and 90 %, as the released code of the influence-balanced loss does.
        "tenth_step" drops as "step" does, but to a tenth. "cosine" falls from 1 to almost 0. A
        callable gets the epoch (0-based, within this training) and ``max_epochs``, and returns the
        factor. None keeps it constant.

    Raises
    ------
    ValueError
        If the schedule is unknown.

    Examples
    --------
    >>> from imbmargin.callbacks import LR_SCHEDULES
    >>> [LR_SCHEDULES["step"](epoch, 200) for epoch in (0, 4, 159, 160, 180)]
    [0.2, 1.0, 1.0, 0.01, 0.0001]
    """

    def __init__(self, schedule: Any = "step") -> None:
        self.schedule = schedule

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Look the schedule up; a training that goes on starts it anew."""
        self.factor_: Schedule | None = self.schedule
        if self.schedule is not None and not callable(self.schedule):
            if self.schedule not in LR_SCHEDULES:
                raise ValueError(
                    f"lr_schedule must be one of {sorted(LR_SCHEDULES)}, a callable or None, "
                    f"got {self.schedule!r}"
                )
            self.factor_ = LR_SCHEDULES[self.schedule]
        self.epoch_ = 0

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Set the rate of each parameter group and record the first one."""
        groups = list(_parameter_groups(net))
        for group in groups:
            # A rate that is not the one set last was changed by the user: a new start.
            is_mine = group["lr"] == group.pop("scheduled_lr", None)
            if self.factor_ is not None:
                initial = group["initial_lr"] if is_mine else group["lr"]
                factor = self.factor_(self.epoch_, net.max_epochs)
                group["lr"] = group["scheduled_lr"] = initial * factor
                group["initial_lr"] = initial
            elif is_mine:
                # An earlier training had a schedule.
                group["lr"] = group["initial_lr"]
        net.history.record("event_lr", groups[0]["lr"])
        self.epoch_ += 1


def _parameter_groups(net: Any) -> Iterator[dict[str, Any]]:
    for name in net._optimizers:
        groups = getattr(net, name + "_").param_groups
        yield from (group for group in groups if not group.get("constant_lr"))


class PrintLog(SkorchPrintLog):
    """skorch's table of the epochs, which is not made where nobody sees it.

    Parameters
    ----------
    keys_ignored, sink, tablefmt, floatfmt, stralign
        As in `skorch.callbacks.PrintLog`.
    """

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Print a line, if the net is verbose or the sink is the user's."""
        if net.verbose or self.sink is not print:
            super().on_epoch_end(net, **kwargs)


class EarlyStopping(SkorchEarlyStopping):
    """Stop when balanced accuracy on the validation part no longer rises; restore the best.

    Needs a validation part (``train_split=0.2``). Nothing is stopped before a deferred loss,
    re-weighting and re-sampling have begun, which is when rare classes improve; a loss, which then
    becomes another one, has its best value looked for from there on.

    Parameters
    ----------
    monitor : str, default="valid_balanced_accuracy"
        Column of the history.
    patience : int, default=20
        Epochs without a better value.
    lower_is_better : bool, default=False
        Whether less is better, for a loss.
    load_best : bool, default=True
        Whether the weights of the best epoch are restored at the end.
    threshold, threshold_mode, sink
        As in `skorch.callbacks.EarlyStopping`.

    Raises
    ------
    ValueError
        If the history has no column ``monitor``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from imbmargin import MaxMarginClassifier
    >>> from imbmargin.callbacks import EarlyStopping
    >>> clf = MaxMarginClassifier(
    ...     train_split=0.3, callbacks=[EarlyStopping(patience=5)], random_state=0)
    >>> clf = clf.fit(*load_iris(return_X_y=True))
    >>> len(clf.history_) < 200
    True
    """

    def __init__(
        self,
        monitor: str = "valid_balanced_accuracy",
        patience: int = 20,
        lower_is_better: bool = False,
        load_best: bool = True,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        sink: Callable[..., Any] = print,
    ) -> None:
        super().__init__(
            monitor=monitor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            lower_is_better=lower_is_better,
            sink=sink,
            load_best=load_best,
        )

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Count the epochs without progress."""
        if self.monitor not in net.history[-1]:
            raise ValueError(
                f"EarlyStopping needs {self.monitor!r} in the history, which has "
                f"{sorted(k for k in net.history[-1] if k != 'batches')}; set train_split, for "
                "instance to 0.2, and put what makes the column before it in callbacks"
            )
        starts = [cb.start_epoch_ for _, cb in net.callbacks_ if isinstance(cb, _Deferred)]
        before = max(starts, default=0)
        if len(net.history) <= before:
            # skorch counts a miss of this epoch on top.
            self.misses_ = -1
        elif self.lower_is_better and len(net.history) == before + 1:
            self.dynamic_threshold_ = np.inf
        super().on_epoch_end(net, **kwargs)
