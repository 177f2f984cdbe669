"""The epochs of a fit: skorch's loop without its cost per batch, and with checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import get_len
from skorch.utils import TeeGenerator, to_device

from imbmargin._memory import kept_memory, note, read_notes
from imbmargin._optimizers import QuickSteps
from imbmargin.checkpoint import CheckpointFolder
from imbmargin.resume import (
    StopRequest,
    collect_state,
    describe_run,
    differences,
    name_run,
    restore_state,
)
from imbmargin.stored import StoredClassifier

__all__ = ["CheckpointedLoop", "DivergenceError", "has_finite_weights"]


@dataclass(frozen=True)
class _Epoch:
    """What holds for all batches of the epoch that runs."""

    training: bool
    plain_steps: bool
    #: Of each optimizer, while nobody looks at single batches.
    quick_steps: list[QuickSteps]


class DivergenceError(FloatingPointError):
    """The training loss of a batch, or a weight after an epoch's last one, is NaN or infinite.

    The message names epoch, batch and learning rate, which is the likely cause.
    """


def has_finite_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether no weight that an optimizer moves is infinite or NaN."""
    weights = [weight.detach() for group in optimizer.param_groups for weight in group["params"]]
    filled = [weight for weight in weights if weight.numel()]
    if len({(weight.device, weight.dtype) for weight in filled}) == 1:
        # A sum with one that is not finite is not finite either; an exact answer takes longer.
        total = torch.stack([weight.sum() for weight in filled]).sum()
        if math.isfinite(float(total)):
            return True
    return math.isfinite(float(torch.nn.utils.get_total_norm(filled, norm_type=math.inf)))


# What a copy that is made during a training must not go on with.
_OF_A_TRAINING = ("_run", "_folder", "_checkpoint", "_stop", "_texts", "_epoch", "_scores_labels")


class _Stopped(BaseException):
    """A signal asked training to stop; skorch would take a KeyboardInterrupt for its end."""


class CheckpointedLoop(StoredClassifier):
    """skorch's training loop, made fast, safe from interruptions, and stopped by divergence.

    skorch calls every callback and writes its history for every batch, and waits for the device to
    do so. Here that happens only if a callback looks at batches; else the losses of an epoch are
    written at its end, in the same form.

    A subclass brings the constructor (with ``checkpoint_dir``) and the parts.
    """

    checkpoint_dir: Any
    precision: str
    grad_scaler_: Any
    _epoch: _Epoch | None = None
    _mode_is_set = False
    _checks_weights = True
    _stop: StopRequest | None = None
    _checkpoint: dict[str, Any] | None = None
    _run: dict[str, Any] | None = None
    _folder: CheckpointFolder | None = None
    _texts: list[str]

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run the batches of one epoch; a loss that is no number ends the training.

        Raises
        ------
        DivergenceError
            If the training loss of a batch, or a weight after the last one, is NaN or infinite.
        ValueError
            If there is no batch to train on.
        """
        if iterator is None:
            return
        batches = self._until_stopped(iterator)
        self._set_training(training)
        # What holds for all batches is asked once.
        plain, watched = self._has_plain_steps(), self._is_watched(training)
        stepped = self._optimizers if training and not watched else []
        quick = [QuickSteps(getattr(self, f"{name}_")) for name in stepped]
        self._epoch = _Epoch(training, plain, quick)
        try:
            if watched:
                super().run_single_epoch(batches, training, prefix, step_fn, **fit_params)
            else:
                self._run_unwatched(batches, prefix, step_fn, **fit_params)
        finally:
            self._epoch = None
        if training:
            self._check_losses(prefix)

    def _run_unwatched(self, batches: Any, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        losses, sizes = [], []
        for batch in batches:
            losses.append(note(step_fn(batch, **fit_params)["loss"]))
            x = batch[0] if isinstance(batch, (tuple, list)) else batch
            sizes.append(x.shape[0] if isinstance(x, torch.Tensor) else get_len(x))
        rows = self.history[-1]["batches"]
        for value, size in zip(read_notes(losses), sizes, strict=True):
            rows.append({f"{prefix}_loss": value, f"{prefix}_batch_size": size})
        self.history.record(f"{prefix}_batch_count", len(losses))

    def _is_watched(self, training: bool) -> bool:
        """Tell whether anything but the loop itself acts on single batches."""
        if _overrides(self, NeuralNet, "on_batch_begin", "on_batch_end"):
            return True
        return any(
            _overrides(callback, Callback, "on_batch_begin", "on_batch_end")
            # It looks at the batches of one kind only.
            and not (isinstance(callback, EpochScoring) and callback.on_train != training)
            for _, callback in self.callbacks_
        )

    def _check_losses(self, prefix: str) -> None:
        losses = [row[f"{prefix}_loss"] for row in self.history[-1]["batches"]]
        if not losses:
            raise ValueError(
                "an epoch has no batch to train on: with iterator_train__drop_last=True, "
                f"batch_size={self.batch_size} must not be above the rows of the training part"
            )
        optimizer = getattr(self, f"{self._optimizers[0]}_")
        wrong = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if wrong is not None:
            what = f"the training loss became {losses[wrong]} in batch {wrong + 1} of {len(losses)}"
        elif not self._checks_weights or has_finite_weights(optimizer):
            return
        else:
            # No loss shows what the last step did.
            what = "the weights are not finite any more after the last batch"
        rates = {group["lr"] for group in optimizer.param_groups}
        kept = f" The last checkpoint in {self._folder} is kept." if self._run else ""
        raise DivergenceError(
            f"{what} of epoch {len(self.history)}. The likely cause is a learning rate that is too "
            f"high (lr={', '.join(f'{rate:g}' for rate in rates)}, "
            f"precision={self.precision!r}): lower lr, or add "
            f"skorch.callbacks.GradientNormClipping to callbacks.{kept}"
        )

    def _set_training(self, training: bool = True) -> None:
        # Walking through all layers for every batch is for nothing; but a callback may predict.
        known = self._epoch is not None and self._epoch.training == training
        if self._mode_is_set or (known and self.module_.training == training):
            return
        for name in (*self._modules, *self._criteria):
            part = getattr(self, f"{name}_")
            # To look takes a quarter of the time, and a loss keeps what it has made.
            if isinstance(part, torch.nn.Module) and any(
                layer.training != training for layer in part.modules()
            ):
                part.train(training)

    def forward_iter(self, X: Any, training: bool = False, device: Any = "cpu") -> Iterator[Any]:
        """Yield the network's output of each batch, in the order of X."""
        for i, batch in enumerate(self.get_iterator(self.get_dataset(X), training=False)):
            # Between two batches the network may have been trained.
            if i > 0 and self.module_.training == training:
                self._mode_is_set = True
            try:
                output = self.evaluation_step(batch, training=training)
            finally:
                # Removed, not set to False: predicting leaves an estimator as it was.
                self.__dict__.pop("_mode_is_set", None)
            yield to_device(output, device=device)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one optimization step; in float16 the gradients are scaled."""
        if self.grad_scaler_ is not None:
            return self._scaled_step(batch, **fit_params)
        if not (self._has_plain_steps() if self._epoch is None else self._epoch.plain_steps):
            return super().train_step(batch, **fit_params)
        # As the optimizer's zero_grad, whose profiling hooks cost more than the work on tables.
        for name in self._optimizers:
            for group in getattr(self, f"{name}_").param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        step = self.train_step_single(batch, **fit_params)
        self._step_optimizer(None)
        return step

    def _step_optimizer(self, step_fn: Any) -> None:
        quick = self._epoch.quick_steps if step_fn is None and self._epoch is not None else []
        if not quick:
            super()._step_optimizer(step_fn)
        for steps in quick:
            steps.step()

    def _has_plain_steps(self) -> bool:
        """Tell whether a step needs no closure, and nobody looks at the gradients."""
        optimizers = [getattr(self, f"{name}_") for name in self._optimizers]
        known = all(
            type(optimizer).__module__.startswith("torch.optim.")
            and not isinstance(optimizer, torch.optim.LBFGS)
            for optimizer in optimizers
        )
        return known and not self._watches_gradients()

    def _watches_gradients(self) -> bool:
        watchers = (callback for _, callback in self.callbacks_)
        return _overrides(self, NeuralNet, "on_grad_computed") or any(
            _overrides(callback, Callback, "on_grad_computed") for callback in watchers
        )

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Run forward and backward; in float16 from the scaled loss."""
        if self.grad_scaler_ is None:
            return super().train_step_single(batch, **fit_params)
        self._set_training(True)
        x, y = batch
        y_pred = self.infer(x, **fit_params)
        loss = self.get_loss(y_pred, y, X=x, training=True)
        self._backward(loss)
        return {"loss": loss, "y_pred": y_pred}

    def _backward(self, loss: Any) -> None:
        scaler = self.grad_scaler_
        (loss if scaler is None else scaler.scale(loss)).backward()

    def _scaled_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        optimizer = getattr(self, f"{self._optimizers[0]}_")
        optimizer.zero_grad()
        step = self.train_step_single(batch, **fit_params)
        self.grad_scaler_.unscale_(optimizer)
        if self._watches_gradients():
            named = TeeGenerator(self.get_all_learnable_params())
            self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
        self.grad_scaler_.step(optimizer)
        self.grad_scaler_.update()
        return step

    def _until_stopped(self, iterator: Any) -> Iterator[Any]:
        """Yield the batches; after one, do as a signal that came during it asks."""
        for batch in iterator:
            yield batch
            if self._stop is not None and self._stop.signal_number is not None:
                raise _Stopped

    def _prepare_run(self, X: Any, y: Any, sample_weight: Any, fit_params: Any) -> None:
        """Read the last checkpoint of this run.

        Raises
        ------
        ValueError
            If the folder holds another run, or cannot hold one.
        """
        if self.checkpoint_dir is None:
            return
        self._texts = []
        self._run = describe_run(self, self._make_dataset(X, y, sample_weight), fit_params)
        self._folder = CheckpointFolder(name_run(self.checkpoint_dir, self._run))
        found = self._read_checkpoint()
        self._check_run(found)
        self._checkpoint = found
        if found is not None and found["finished"]:
            # Nothing will be added to it.
            self._run = None
        else:
            self._folder.prepare()

    def _check_run(self, found: Any) -> None:
        """Raise an error if a checkpoint is one of another run."""
        assert self._run is not None
        changed = [] if found is None else differences(found["run"], self._run)
        if changed:
            raise ValueError(
                f"checkpoint_dir={str(self._folder)!r} holds a run with another configuration or "
                f"data ({'; '.join(changed)}); pass another folder, or empty this one to start "
                "anew; for several runs, as in a search, put {run} into the path"
            )

    def _draw_seed(self) -> int:
        return super()._draw_seed() if self._checkpoint is None else int(self._checkpoint["seed"])

    def fit_loop(
        self,
        X: Any,
        y: Any = None,
        epochs: int | None = None,
        sample_weight: Any = None,
        **fit_params: Any,
    ) -> CheckpointedLoop:
        """Run the epochs; those that a checkpoint holds are not run again."""
        if self._checkpoint is not None:
            done = len(self._checkpoint["state"]["history"])
            epochs = 0 if self._checkpoint["finished"] else self.max_epochs - done
        try:
            with kept_memory():
                super().fit_loop(X, y, epochs, sample_weight, **fit_params)
        except KeyboardInterrupt:
            # skorch takes it for the end of training, as a callback may mean it; a second signal,
            # which breaks off a batch, is none.
            if self._stop is not None and self._stop.signal_number is not None:
                raise _Stopped from None
            raise
        # Where no epoch was left, nobody has done so.
        self._resume()
        return self

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks, and keep the checkpoints at the borders of epochs."""
        if method_name == "on_epoch_begin":
            self._resume()
        super().notify(method_name, **cb_kwargs)
        if method_name in ("on_epoch_end", "on_train_end") and self._run is not None:
            self._write_checkpoint(finished=method_name == "on_train_end")

    def _resume(self) -> None:
        if self._checkpoint is not None:
            restore_state(self, self._checkpoint["state"])
            self._texts = list(self._checkpoint["state"]["history"])
            self._checkpoint = None

    def _read_checkpoint(self) -> Any:
        assert self._folder is not None
        return self._folder.read()

    def _write_checkpoint(self, finished: bool) -> None:
        content = {
            "run": self._run,
            "seed": self.seed_,
            "finished": finished,
            "state": collect_state(self, self._texts),
        }
        assert self._folder is not None
        if self._folder.is_changed():
            # A run that began at the same time: each would remove what the other has written.
            self._check_run(self._folder.read())
        self._folder.write(len(self.history), content)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        made, arguments, state = super().__reduce_ex__(protocol)
        for name in _OF_A_TRAINING:
            state.pop(name, None)
        return made, arguments, state

    def _train(self, *args: Any, **kwargs: Any) -> CheckpointedLoop:
        if self.checkpoint_dir is None:
            super()._train(*args, **kwargs)
            return self
        with StopRequest() as stop:
            self._stop = stop
            try:
                super()._train(*args, **kwargs)
            except _Stopped:
                stop.deliver()
                raise KeyboardInterrupt("training was stopped by a signal") from None
            finally:
                self._stop = self._run = self._folder = self._checkpoint = None
            # It came after the last batch: all is done and written.
            stop.deliver()
        return self


def _overrides(thing: Any, base: type, *names: str) -> bool:
    return any(getattr(type(thing), name) is not getattr(base, name) for name in names)
