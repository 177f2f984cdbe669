"""Training in several processes, on one machine or more, with Hugging Face Accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from imbmargin.data.batches import ArrayBatches
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.randomness import derive_seed, isolated_random_state
from imbmargin.resume import describe_run, differences
from imbmargin.samplers import BatchParts, ClassSampler

__all__ = ["DistributedClassifier"]

# The argument of a DataLoader that BatchParts takes the place of.
_REPLACED = ("batch_size", "drop_last")
_DATA_PARALLEL = ("NO", "MULTI_CPU", "MULTI_GPU")


class DistributedClassifier(MaxMarginClassifier):
    """`MaxMarginClassifier` whose training the processes of ``accelerate launch`` share.

    Every process runs the same script, and calls ``fit`` with all rows. An optimization step is
    the one that a single process would take: of each batch of ``batch_size`` rows a process
    computes its part, and gradients and losses are averaged over all rows of the batch, with their
    class weights and sample weights. Class counts, class rates and the order of rows are those of
    the whole training part. So ``lr`` and ``batch_size`` stay what they are for one process, and
    the number of processes changes how long training takes, not what it gives. To give each of w
    processes as many rows as one had, multiply ``batch_size`` by w; ``lr`` must then be chosen
    anew, as for any larger batch.

    Parameters
    ----------
    module, **kwargs
        All parameters are those of `MaxMarginClassifier`.

    Raises
    ------
    ImportError
        In ``fit``, if Accelerate is not installed: ``pip install "imbmargin[distributed]"``.
    ValueError
        In ``fit`` with several processes: if they have other parameters or data; if ``device`` is
        not that of Accelerate, or Accelerate is set up for other processes than were launched; if a
        process would be left with fewer than two rows of a batch; if ``init_backbone`` is a
        pre-trainer that is not fitted; if the loss is not a mean.
    TypeError
        In ``fit``, if ``iterator_train`` brings batches of its own.

    See Also
    --------
    MaxMarginClassifier : The parameters and attributes.

    Notes
    -----
    Weights, history and predictions are the same in all processes, and any of them can predict and
    save. ``predict`` does not divide its rows. The first process prints, and writes into
    ``checkpoint_dir``; after an interruption the same script goes on from there, also with another
    number of processes.

    Batch normalisation and mixing see the part of a process: the statistics with which a network
    predicts are averaged over processes after every epoch. Random draws of augmentation, mixing
    and dropout differ between processes. All the rest equals training in one process, but for
    rounding.

    Processes and devices are those of Accelerate; of its settings, mixed precision is not used
    (``precision`` is), nor is anything that divides a network over processes.

    One call sums up the gradients after the backward pass, without overlapping it, so that the
    network stays the plain module which callbacks, files and predictions expect.

    Examples
    --------
    One process, where nothing is launched; the script is the same for many.

    >>> from sklearn.datasets import load_wine
    >>> from imbmargin.distributed import DistributedClassifier
    >>> from imbmargin.methods import METHODS
    >>> X, y = load_wine(return_X_y=True)
    >>> clf = DistributedClassifier(**METHODS["MM-DRW"], max_epochs=20, random_state=0)
    >>> clf.fit(X, y).score(X, y) > 0.9
    True
    """

    verbose: int
    _weight: Tensor | None = None
    _stop_is_known = False

    def _train(self, *args: Any, **kwargs: Any) -> DistributedClassifier:
        # Accelerate sets the processes up once, for CPUs or for GPUs.
        processes = _processes(cpu=torch.device(self.device or "cpu").type == "cpu")
        verbose = self.verbose
        if not processes.is_main_process:
            self.verbose = 0
        self._stop_is_known = False
        try:
            super()._train(*args, **kwargs)
        finally:
            self.verbose = verbose
            # Removed, not set anew: they are no part of what is saved.
            for name in ("_weight", "_stop_is_known"):
                self.__dict__.pop(name, None)
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        processes = _processes()
        kind = processes.distributed_type.value
        if kind not in _DATA_PARALLEL:
            raise ValueError(
                f"DistributedClassifier shares batches among CPUs or GPUs, but Accelerate was "
                f"configured for {kind}; start with accelerate launch --multi_gpu"
            )
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        if launched != processes.num_processes:
            raise ValueError(
                f"{launched} processes were launched, but Accelerate was set up for "
                f"{processes.num_processes}; start the script with accelerate launch, and leave it "
                "to fit to set Accelerate up"
            )
        if processes.num_processes == 1:
            return
        device = torch.device(self.device or "cpu")
        if device.index is not None or device.type != processes.device.type:
            raise ValueError(
                f"device={self.__dict__['device']!r} is not {str(processes.device)!r}, which "
                f"Accelerate gave to this process; pass device={processes.device.type!r}"
            )
        source = self.init_backbone
        if hasattr(source, "pretrain_for") and not hasattr(source, "backbone_"):
            raise ValueError(
                f"init_backbone={source!r} would be fitted by each of {processes.num_processes} "
                "processes; fit it before, in one process, and pass it fitted"
            )

    def initialize_criterion(self) -> DistributedClassifier:
        """Make the loss, which must be a mean: only such are averaged over processes."""
        super().initialize_criterion()
        reduction = getattr(self.criterion_, "reduction", "mean")
        if reduction != "mean":
            raise ValueError(
                f"DistributedClassifier needs a loss with reduction='mean', got {reduction!r}"
            )
        return self

    def _draw_seed(self) -> int:
        # Without a seed given, each process would draw its own.
        return int(_from_first(super()._draw_seed()))

    def _prepare_run(self, X: Any, y: Any, sample_weight: Any, fit_params: Any) -> None:
        own = describe_run(self, self._make_dataset(X, y, sample_weight), fit_params)
        first, *others = _from_all(own)
        for index, other in enumerate(others, start=1):
            if found := differences(first, other):
                raise ValueError(
                    f"process {index} calls fit with other parameters or data than process 0 "
                    f"({'; '.join(found)}); pass all rows and the same parameters in every "
                    "process, batches are shared among them"
                )
        super()._prepare_run(X, y, sample_weight, fit_params)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:
        """Split off the validation part; all processes start from the weights of the first."""
        parts = super().get_split_datasets(X, y, **fit_params)
        state = {name: value.cpu() for name, value in self.module_.state_dict().items()}
        self.module_.load_state_dict(_from_first(state))
        return parts

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches, and in training this process's part of each."""
        iterator = super().get_iterator(dataset, training)
        if not training:
            return iterator
        sampler = getattr(iterator, "sampler", None)
        if not isinstance(iterator, (ArrayBatches, DataLoader)) or not isinstance(
            sampler, ClassSampler
        ):
            raise TypeError(
                "DistributedClassifier shares batches of its own, got "
                f"{type(iterator).__name__} with {type(sampler).__name__}; leave iterator_train, "
                "its sampler and its shuffle as they are"
            )
        processes = _processes()
        batch_size: Any = iterator.batch_size
        parts = BatchParts(sampler, batch_size, processes.process_index, processes.num_processes)
        if isinstance(iterator, ArrayBatches):
            return _ArrayParts(iterator, parts)
        kwargs = self.get_params_for("iterator_train")
        kwargs = {name: value for name, value in kwargs.items() if name not in _REPLACED}
        return DataLoader(dataset, batch_sampler=parts, **kwargs)

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run the batches of one epoch; in training each process its part of them."""
        if not training:
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
            return
        epoch, parts = len(self.history), iterator.batch_sampler
        parts.start_epoch(derive_seed(self.seed_, 2, epoch))
        hook = self.criterion_.register_forward_pre_hook(self._note_weight)
        stream = (3, epoch, parts.process_index)
        try:
            # The stream outside stays the same in all processes, whatever a batch draws here.
            with isolated_random_state(self.seed_, *stream, device=self.device):
                super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        except KeyboardInterrupt:
            # skorch would take it for the end of training, for which the others do not wait.
            raise RuntimeError(
                "one process was interrupted within an epoch, and the others cannot go on without "
                "it; with checkpoint_dir the same script goes on from the last epoch"
            ) from None
        finally:
            hook.remove()
        for row, size in zip(self.history[-1]["batches"], parts.sizes, strict=True):
            row[f"{prefix}_batch_size"] = size
        self._average_statistics()

    def _note_weight(self, criterion: Any, args: Any) -> None:
        """Note the sum of the weights by which the loss of a batch is divided."""
        _, target, *sample_weight = args
        weight = torch.ones_like(target, dtype=torch.float32)
        by_class = getattr(criterion, "class_weight", getattr(criterion, "weight", None))
        if by_class is not None:
            weight = by_class.to(weight)[target]
        if sample_weight and sample_weight[0] is not None:
            weight = weight * sample_weight[0]
        self._weight = weight.sum()

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Run forward and backward; loss and gradients are then those of the whole batch."""
        step = super().train_step_single(batch, **fit_params)
        weight, loss = self._weight, step["loss"].detach()
        assert weight is not None
        gradients = [weights.grad for weights in self._trained() if weights.grad is not None]
        flat = torch.cat([loss.reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
        total = _reduce(torch.cat([flat * weight, weight.reshape(1)]), "sum")
        # As in weighted_mean: 0 if all weights are.
        mean = total[:-1] / torch.where(total[-1] > 0, total[-1], 1.0)
        sizes = [gradient.numel() for gradient in gradients]
        step["loss"], *pieces = mean.split([1, *sizes])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))
        step["loss"] = step["loss"].reshape(())
        return step

    def _trained(self) -> Iterator[Tensor]:
        for name in self._optimizers:
            for group in getattr(self, f"{name}_").param_groups:
                yield from group["params"]

    def _average_statistics(self) -> None:
        networks = [self.module_] + ([] if self.average_ is None else [self.average_.network])
        for network in networks:
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(_reduce(buffer.contiguous(), "mean"))

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the callbacks; where one of them stops training, it stops in all processes."""
        if method_name == "on_epoch_begin" and self._any_stopped(False):
            raise KeyboardInterrupt
        if method_name == "on_train_end" and not self._stop_is_known:
            self._any_stopped(True)
        super().notify(method_name, **cb_kwargs)

    def _any_stopped(self, own: bool) -> bool:
        stopped = torch.tensor([float(own)], device=self.device)
        self._stop_is_known = bool(_reduce(stopped, "sum") > 0)
        return self._stop_is_known

    def _read_checkpoint(self) -> Any:
        # The others may not see the first one's files, or not the newest yet.
        processes = _processes()
        return _from_first(super()._read_checkpoint() if processes.is_main_process else None)

    def _write_checkpoint(self, finished: bool) -> None:
        if _processes().is_main_process:
            super()._write_checkpoint(finished)


class _ArrayParts:
    """Batches of arrays, and of each the part of this process."""

    def __init__(self, batches: ArrayBatches, parts: BatchParts) -> None:
        self.batches = batches
        self.batch_sampler = parts

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        return (self.batches.fetch(rows) for rows in self.batch_sampler.draw())


def _processes(cpu: bool = False) -> Any:
    """Return Accelerate's state of the processes, which the first call sets up."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            'training in several processes needs accelerate: pip install "imbmargin[distributed]"'
        ) from error
    return PartialState(cpu)


def _reduce(tensor: Tensor, reduction: str) -> Tensor:
    from accelerate.utils import reduce

    return reduce(tensor, reduction)


def _from_first(value: Any) -> Any:
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def _from_all(value: Any) -> list[Any]:
    from accelerate.utils import gather_object

    return gather_object([value])
