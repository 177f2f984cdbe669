"""What happens to a batch: device, augmentation, mixing, precision and loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from imbmargin.data.batches import ArrayBatches, is_array_dataset
from imbmargin.data.transfer import send
from imbmargin.loop import CheckpointedLoop
from imbmargin.modules import WeightAverage, channel_statistics, find_head, watch_input
from imbmargin.modules.heads import class_vectors
from imbmargin.modules.members import MemberHeads, rows_per_target
from imbmargin.parts import check_row_weights, resolve_loss, resolve_precision

__all__ = ["BatchSteps"]

_STATISTICS_ROWS = 10_000
_STATISTICS_BATCH = 1024


@dataclass(frozen=True)
class _TwoLabels:
    """Targets of mixed rows: two labels each, and the weights of both."""

    target: Tensor
    weight: Tensor


class BatchSteps(CheckpointedLoop):
    """The steps of a batch, from the rows to the loss.

    A subclass brings the constructor (with ``loss``, ``precision`` and ``ema_decay``), sets
    ``augment_`` and ``mixing_``, and calls `_begin_average` where it makes the network.
    """

    loss: Any
    augment_: Any
    mixing_: Any
    ema_decay: float | None
    average_: WeightAverage | None = None
    _context: dict[str, Tensor] = {}  # noqa: RUF012 (replaced, never changed)

    def _begin_average(self) -> None:
        # Training may have compiled the network already; its weights are enough.
        network: Any = getattr(self.module_, "_orig_mod", self.module_)
        decay = self.ema_decay
        self.average_ = None if decay is None else WeightAverage(network, decay)

    def torch_compile(self, module: Any, name: str) -> Any:
        """Compile a part; the average holds weights only, and is never run."""
        return module if name == "average" else super().torch_compile(module, name)

    def get_all_learnable_params(self) -> Iterator[tuple[str, Any]]:
        """Yield the parameters of all parts; those of the average do not learn."""
        averages = set() if self.average_ is None else set(self.average_.parameters())
        for name, parameter in super().get_all_learnable_params():
            if parameter not in averages:
                yield name, parameter

    def _set_statistics(self, train: Any) -> None:
        """Let the input layer of the package's networks learn the data's means and deviations."""
        norm = getattr(self.module_, "input_norm", None)
        if norm is None or (norm.is_fitted and not (self.open_ended_ and norm.lacks_spread)):
            return
        found = channel_statistics(self._statistics_batches(train, norm.num_channels))
        (norm.update_constant if norm.is_fitted else norm.set_statistics)(*found)

    def _statistics_batches(self, train: Any, num_channels: int) -> Iterator[torch.Tensor]:
        if is_array_dataset(train):
            batches: Any = ArrayBatches(train, _STATISTICS_BATCH)
        else:
            rows = np.linspace(0, len(train) - 1, min(len(train), _STATISTICS_ROWS)).astype(int)
            batches = self.get_iterator(Subset(train, rows.tolist()))
        for x, _ in batches:
            x = x if self._layout is None else self._layout.to_module(x)
            # An MLP on images takes each pixel for a column.
            yield x if x.shape[1] == num_channels else x.flatten(1)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one optimization step, and move the average of the weights."""
        step = super().train_step(batch, **fit_params)
        if self.average_ is not None:
            self.average_.update(self.module_)
        return step

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin or end the average where ``ema_decay`` was set since the last training."""
        super().on_train_begin(*args, **kwargs)
        if self.average_ is None:
            if self.ema_decay is not None:
                with self._current_init_context("module"):
                    self._begin_average()
        elif self.ema_decay is None:
            self.average_.take_back(self.module_)
            self.average_ = None
        else:
            self.average_.decay = self.ema_decay

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """Put the weights that learn into the network."""
        super().on_epoch_begin(*args, **kwargs)
        if self.average_ is not None:
            self.average_.take_back(self.module_)

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run the batches of one epoch; those of validation, and callbacks then, see the average.

        So what a callback keeps as the best state is the one that was judged.
        """
        if not training:
            self._lend_average()
        super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Leave the average in the network, also where an epoch was broken off."""
        super().on_train_end(*args, **kwargs)
        self._lend_average()

    def _lend_average(self) -> None:
        if self.average_ is not None:
            self.average_.lend(self.module_)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Augment and mix the batch on the device, then forward and backward."""
        batch = self._augmented(batch)
        if self.mixing_ is not None:
            batch = self._mixed(batch)
        return super().train_step_single(batch, **fit_params)

    def _augmented(self, batch: Any) -> Any:
        if self.augment_ is None:
            return batch
        x, y = batch
        return self._varied(self._to_module(x)), y

    def _varied(self, x: Any) -> Any:
        """Return what the augmentation makes of images, or rows."""
        if self.augment_ is None:
            return x
        varied = self.augment_(x)
        if varied.shape != x.shape:
            raise ValueError(
                f"augment must return images of the shape that it gets, {tuple(x.shape)}, got "
                f"{tuple(varied.shape)}; cut and resize the data instead"
            )
        return varied

    def _target_and_weight(self, y: Any) -> tuple[Tensor, Tensor | None]:
        """Return the targets of a batch, and the weights of its rows if there are any."""
        y = self._on_device(y)
        return tuple(y) if isinstance(y, (tuple, list)) else (y, None)

    def _repeated(
        self, logits: Any, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return targets and weights once for each row of logits that the network gives."""
        alike = logits.shape[0] == target.shape[0]
        times = 1 if alike else rows_per_target(self.module_)
        if times == 1:
            return target, weight
        target = target.repeat_interleave(times)
        return target, weight if weight is None else weight.repeat_interleave(times)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks; they see one row of logits for each row of the batch."""
        logits = cb_kwargs.get("y_pred")
        if cb_kwargs.get("training") and isinstance(logits, Tensor):
            head = getattr(self.module_, "head", None)
            if isinstance(head, MemberHeads):
                cb_kwargs["y_pred"] = head.together(logits.detach())
        super().notify(method_name, **cb_kwargs)

    def _check_training_data(
        self, X: Any, y: Any, sample_weight: Any, classes: Any, reset: bool
    ) -> tuple[Any, Any, Any]:
        if sample_weight is not None:
            check_row_weights(resolve_loss(self.loss), "sample_weight")
        return super()._check_training_data(X, y, sample_weight, classes, reset)

    def _mixed(self, batch: Any) -> Any:
        x, (target, weight) = self._to_module(batch[0]), self._target_and_weight(batch[1])
        counts = send(torch.as_tensor(self.class_counts_), target.device)
        x, partner, share = self.mixing_(x, target, counts)
        weights = torch.cat([share, 1 - share])
        if weight is not None:
            weights = weights * torch.cat([weight, weight[partner]])
        return x, _TwoLabels(torch.cat([target, target[partner]]), weights)

    def infer(self, x: Any, **fit_params: Any) -> Any:
        """Run the network on a batch, in its shape, device and precision."""
        x = self._network_input(x)
        needs = getattr(self.criterion_, "needs", ())
        if not needs:
            return self._run_network(x, **fit_params)
        _, head = find_head(self.module_)
        with watch_input(head) as seen:
            output = self._run_network(x, **fit_params)
        known = {"features": lambda: seen[0], "head_weight": lambda: class_vectors(head)}
        self._context = {name: known[name]() for name in needs}
        return output

    def _network_input(self, x: Any) -> Any:
        x = self._to_module(x)
        whole_numbers = isinstance(x, Tensor) and not x.is_floating_point()
        # The input layer of the package's networks takes them as they are.
        return x.float() if whole_numbers and not hasattr(self.module_, "input_norm") else x

    def _run_network(self, x: Any, **fit_params: Any) -> Any:
        with self._autocast():
            if isinstance(x, Tensor):  # on the device already, for which skorch would ask again
                return self.module_(x, **fit_params)
            return super().infer(x, **fit_params)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self._autocast_dtype()
        if dtype is None:
            return nullcontext()
        return torch.autocast(torch.device(self.device or "cpu").type, dtype=dtype)

    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        """Run the network on a batch."""
        output = super().evaluation_step(batch, training=training)
        if self._context:
            # No loss will ask for it, and it would keep the batch in memory.
            self._context = {}
        return output

    def _autocast_dtype(self) -> torch.dtype | None:
        images = self._layout is not None and self._layout.image_shape is not None
        return resolve_precision(self.precision, self.device, images)

    def _initialize_grad_scaler(self) -> None:
        half = self._autocast_dtype() == torch.float16
        self.grad_scaler_ = torch.amp.GradScaler() if half else None

    def _renew_parts(self) -> None:
        if "precision" in self._changed:
            self._initialize_grad_scaler()
        super()._renew_parts()

    def get_loss(
        self, y_pred: Any, y_true: Any, X: Any = None, training: bool = False
    ) -> torch.Tensor:
        """Return the loss of a batch; with sample weights ``y_true`` is (target, weight)."""
        context = self._context
        if context:
            self._context = {}
        if isinstance(y_true, _TwoLabels):
            # Each label is a row of its own, so that it has its own margin and class weight.
            if "features" in context:
                context["features"] = torch.cat([context["features"]] * 2)
            logits = torch.cat([y_pred, y_pred])
            both = self._repeated(logits, y_true.target, y_true.weight)
            return self.criterion_(logits, *both, **context)
        target, weight = self._repeated(y_pred, *self._target_and_weight(y_true))
        # Some losses, such as torch's, take none.
        weights = () if weight is None else (weight,)
        return self.criterion_(y_pred, target, *weights, **context)
