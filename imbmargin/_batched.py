"""Candidates of one architecture, trained side by side as one batched network."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any

import joblib
import torch
from skorch.callbacks import PassthroughScoring
from skorch.history import History
from torch import Tensor, nn, optim
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from imbmargin.callbacks import bind_class_weight
from imbmargin.data.batches import ArrayDataset
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.randomness import draw_seed, isolated_random_state

__all__ = ["NotBatchedError", "identify", "train_together", "varies_freely", "why_alone"]

# Their steps treat every number by itself, so stacked weights move as separate ones do.
_ELEMENTWISE: tuple[Any, ...] = (
    "auto",
    *(optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax),
    *(optim.Adagrad, optim.Adadelta, optim.RMSprop, optim.Rprop, optim.ASGD),
)
# What reaches into the training of a single network, and must be left as it is here.
_DEFAULTS = {
    "train_split": None,
    "warm_start": False,
    "compile": False,
    "checkpoint_dir": None,
    "dataset": ArrayDataset,
    "iterator_train": "auto",
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NotBatchedError(ValueError):
    """Classifiers cannot be trained together."""


def why_alone(net: MaxMarginClassifier) -> str | None:
    """Return why a classifier must be trained by itself, or None if it can be batched.

    Parameters
    ----------
    net : MaxMarginClassifier
        Not fitted.

    Returns
    -------
    cause : str or None
        The parameter, its value, and what would be batched.
    """
    for name, default in _DEFAULTS.items():
        value = getattr(net, name)
        if value is not default and value != default:
            return f"{name}={value!r} (batched: {name}={default!r})"
    if net.callbacks not in (None, [], "disable"):
        return f"callbacks={net.callbacks!r}, which look at one network (batched: callbacks=None)"
    if net.precision == "float16":
        return "precision='float16', which scales gradients (batched: 'bfloat16' or 'float32')"
    if net.optimizer not in _ELEMENTWISE:
        names = ", ".join(getattr(known, "__name__", repr(known)) for known in _ELEMENTWISE)
        return f"optimizer={net.optimizer!r} (batched, because elementwise: {names})"
    loader = [name for name in net.get_params(deep=False) if name.startswith("iterator_train__")]
    return f"{loader[0]}, which asks for a DataLoader" if loader else None


def varies_freely(name: str, is_table: bool) -> bool:
    """Tell whether candidates that differ in this parameter can be trained together."""
    if name == "random_state":
        # Batches of several seeds have one axis more, which images have no room for.
        return is_table
    part, _, argument = name.partition("__")
    if argument:
        return part in ("criterion", "optimizer") and argument != "param_groups"
    return name in ("lr", "delta_neg", "beta")


def identify(value: Any) -> Hashable:
    """Return what tells a parameter's value from others, the same for a copy of it."""
    try:
        hash(value)
    except TypeError:
        return joblib.hash(value)
    # 1 and 1.0 are equal, but not as a number of epochs.
    return type(value), value


def train_together(
    nets: Sequence[MaxMarginClassifier], X: Any, y: Any
) -> list[MaxMarginClassifier | None]:
    """Fit classifiers that differ only in what `varies_freely`, as one batched network.

    Parameters
    ----------
    nets : list of MaxMarginClassifier
        Fitted in place. Those without a ``random_state`` share one seed.
    X, y : array-like
        As in `MaxMarginClassifier.fit`.

    Returns
    -------
    fitted : list of MaxMarginClassifier or None
        None for one that cannot be fitted, or diverged: fitted alone it raises the error.

    Raises
    ------
    NotBatchedError
        If their network or their loss must be trained alone.
    """
    seed = draw_seed(None)
    ready = [net for net in nets if _initialize(net, X, y, seed)]
    if ready:
        _check_parts(ready[0])
        _keep_freed_memory()
        together = _Together.of(ready)
        together.fit(X, y)
        ready = together.hand_back()
    return [net if any(net is other for other in ready) else None for net in nets]


def _initialize(net: MaxMarginClassifier, X: Any, y: Any, seed: int) -> bool:
    random_state = net.random_state
    try:
        net.random_state = seed if random_state is None else random_state
        # All that a fit does before its first epoch.
        net.fit(X, y, epochs=0)
    except Exception:
        return False
    finally:
        net.random_state = random_state
    net.module_.train()
    return True


def _check_parts(net: MaxMarginClassifier) -> None:
    if any(isinstance(layer, _CONVOLUTIONS) for layer in net.module_.modules()):
        # Measured on 2 cores: 8 ResNet-20 took 2.7 times as long together as one after another.
        raise NotBatchedError(
            f"the network {type(net.module_).__name__} has convolutions, which are slower batched"
        )
    if any(True for _ in net.criterion_.parameters()):
        raise NotBatchedError(f"the loss {type(net.criterion_).__name__} has weights to learn")


def _keep_freed_memory() -> None:
    """Let the C library keep freed tensors of some MB for the next ones.

    glibc hands large blocks back to the system, which maps them anew page by page: a fifth of the
    time of a batched step. It does so above the size of the largest block that was ever freed, up
    to 32 MiB; so one of 31 MiB is freed, without being touched.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


class _Networks(nn.Module):
    """Networks of one architecture side by side: the logits (C, n, K) of a batch.

    Parameters
    ----------
    networks : list of Module, of length C
        Their weights and buffers are copied.
    sizes : list of int
        Lengths of the runs of networks whose weights the optimizer treats alike.
    seed_index : Tensor of shape (C,), or None
        Which of the stacked batches each network sees. None: all see the same batch.
    """

    def __init__(
        self, networks: Sequence[nn.Module], sizes: Sequence[int], seed_index: Tensor | None
    ) -> None:
        super().__init__()
        weights, self.stacked_buffers = stack_module_state(list(networks))
        self.names = list(weights)
        self.num_runs = len(sizes)
        # A run is a parameter of its own, so that it can be in an optimizer group of its own.
        self.runs = nn.ParameterList(
            nn.Parameter(run.clone(), stacked.requires_grad)
            for stacked in weights.values()
            for run in stacked.detach().split(list(sizes))
        )
        self.seed_index = seed_index
        network = networks[0]
        self.call = vmap(
            lambda weights, buffers, x: functional_call(network, (weights, buffers), (x,)),
            in_dims=(0, 0, None if seed_index is None else 1),
            randomness="same",
        )

    def runs_of(self, name: str) -> list[Tensor]:
        """Return the runs of a weight."""
        start = self.names.index(name) * self.num_runs
        return [self.runs[start + run] for run in range(self.num_runs)]

    def forward(self, x: Tensor) -> Tensor:
        weights: dict[str, Tensor] = {}
        for name in self.names:
            runs = self.runs_of(name)
            weights[name] = runs[0] if len(runs) == 1 else torch.cat(runs)
        if self.seed_index is not None:
            x = x[:, self.seed_index]
        with _ExactLinear():
            return self.call(weights, self.stacked_buffers, x)


class _ExactLinear(TorchFunctionMode):
    """Let linear layers inside vmap have the gradients of single ones, bit for bit.

    vmap takes the gradient of a weight as the transpose of another product than `linear` does. The
    last bits then differ, and a few hundred steps with a loss that jumps make other networks of
    them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        takes_rows = func is F.linear and args[0].ndim == 2 and not kwargs
        # With autocast the products are of another type than their inputs.
        if takes_rows and not torch.is_autocast_enabled(args[0].device.type):
            return _Linear.apply(*args, *[None] * (3 - len(args)))
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """`torch.nn.functional.linear` inside vmap."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(*_: Any) -> None:
        """Do nothing: autograd sees what `vmap` returns."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *parts: Tensor | None) -> tuple[Tensor, int]:
        stacked = [
            part if part is None else _stack_first(part, dim, info.batch_size)
            for part, dim in zip(parts, in_dims, strict=True)
        ]
        return _StackedLinear.apply(*stacked), 0


def _stack_first(part: Tensor, dim: int | None, size: int) -> Tensor:
    return part.expand(size, *part.shape) if dim is None else part.movedim(dim, 0)


class _StackedLinear(torch.autograd.Function):
    """Linear layers side by side: x (C, n, in), weight (C, out, in), bias (C, out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if bias is None:
            return torch.bmm(x, weight.mT)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if of_x else None,
            torch.bmm(grad.mT, x) if of_weight else None,
            grad.sum(1) if of_bias else None,
        )


class _Losses(nn.Module):
    """The losses of networks side by side: their sum, so that each keeps its own gradient.

    Parameters
    ----------
    criteria : list of Module, of length C
        The losses.
    seed_index : Tensor of shape (C,), or None
        As in `_Networks`.

    Attributes
    ----------
    means : list of Tensor, shape (C,)
        The losses of each batch.
    """

    criteria: Any

    def __init__(self, criteria: Sequence[nn.Module], seed_index: Tensor | None) -> None:
        super().__init__()
        self.criteria = nn.ModuleList(criteria)
        self.seeds = None if seed_index is None else seed_index.tolist()
        self.means: list[Tensor] = []

    def set_class_weight(self, weight: Any) -> None:
        """Give all losses the same class weights."""
        for criterion in self.criteria:
            bind_class_weight(criterion, weight)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        targets = [target] * len(logits)
        if self.seeds is not None:
            targets = [target[:, seed] for seed in self.seeds]
        # One call of all would round otherwise than the calls of single fits do.
        calls = zip(self.criteria, logits.unbind(), targets, strict=True)
        means = torch.stack([criterion(z, t) for criterion, z, t in calls])
        self.means.append(means.detach())
        # A candidate that diverges must not end the training of the others.
        return torch.where(torch.isfinite(means), means, 0).sum()


def _optimizer_options(net: MaxMarginClassifier) -> list[dict[str, Any]]:
    groups = net.optimizer_.param_groups
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


class _SeedBatches:
    """The batches of several seeds, stacked along axis 1.

    Parameters
    ----------
    iterators : list of ArrayBatches, of length S
        One for each seed.
    seeds : list of int
        Each iterator draws what it draws in a fit with its seed.
    """

    def __init__(self, iterators: Sequence[Any], seeds: Sequence[int]) -> None:
        self.iterators = iterators
        self.class_counts = iterators[0].sampler.class_counts
        self.states = []
        for seed in seeds:
            with isolated_random_state(seed, 1, 0):
                self.states.append(torch.get_rng_state())

    def set_rates(self, rates: Any) -> None:
        """Switch the class rates of all seeds, as `ClassSampler.set_rates` does."""
        for iterator in self.iterators:
            iterator.sampler.set_rates(rates)

    def __len__(self) -> int:
        return len(self.iterators[0])

    def __iter__(self) -> Iterator[Any]:
        running = [iter(iterator) for iterator in self.iterators]
        for _ in range(len(self)):
            batches = [self._next(seed, iterator) for seed, iterator in enumerate(running)]
            yield tuple(torch.stack(parts, dim=1) for parts in zip(*batches, strict=True))

    def _next(self, seed: int, iterator: Iterator[Any]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.states[seed])
            batch = next(iterator)
            self.states[seed] = torch.get_rng_state()
        return batch


class _Together(MaxMarginClassifier):
    """A classifier whose network, loss and optimizer are those of several, side by side.

    Data, sampling, epochs and deferral are the estimator's own, so that what it does to one
    network it does to all.
    """

    module_: Any
    criterion_: Any
    history_: Any
    nets_: list[MaxMarginClassifier]
    sizes_: list[int]
    seeds_: list[int]
    rates_: list[list[float]]

    @classmethod
    def of(cls, nets: Sequence[MaxMarginClassifier]) -> _Together:
        """Make it from initialized classifiers that differ in what `varies_freely`."""
        options = [_optimizer_options(net) for net in nets]
        alike = [options.index(own) for own in options]
        order = sorted(range(len(nets)), key=alike.__getitem__)
        together = cls(**nets[0].get_params(deep=False))
        together.nets_ = [nets[i] for i in order]
        together.sizes_ = [len(list(run)) for _, run in groupby(order, alike.__getitem__)]
        together.seeds_ = list(dict.fromkeys(net.seed_ for net in together.nets_))
        together.rates_ = []
        # Its log would show the sum of the losses.
        return together.set_params(random_state=together.seeds_[0], verbose=0)

    def _seed_index(self) -> Tensor | None:
        if len(self.seeds_) == 1:
            return None
        return torch.tensor([self.seeds_.index(n.seed_) for n in self.nets_], device=self.device)

    def initialize_module(self) -> _Together:
        """Stack the networks."""
        networks = [net.module_ for net in self.nets_]
        self.module_ = _Networks(networks, self.sizes_, self._seed_index())
        return self

    def initialize_criterion(self) -> _Together:
        """Put the losses side by side."""
        self.criterion_ = _Losses([net.criterion_ for net in self.nets_], self._seed_index())
        return self

    def initialize_optimizer(self, *_: Any) -> _Together:
        """Make one optimizer, with the groups of each run of networks."""
        groups, start = [], 0
        for run, size in enumerate(self.sizes_):
            net, start = self.nets_[start], start + size
            names = {id(weight): name for name, weight in net.module_.named_parameters()}
            own = (group["params"] for group in net.optimizer_.param_groups)
            for options, weights in zip(_optimizer_options(net), own, strict=True):
                runs = [self.module_.runs_of(names[id(weight)])[run] for weight in weights]
                groups.append({**options, "params": runs})
        kind: Any = type(self.nets_[0].optimizer_)
        self.optimizer_ = kind(groups)
        self.grad_scaler_ = None
        return self

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches; those of several seeds are stacked."""
        if len(self.seeds_) == 1:
            return super().get_iterator(dataset, training)
        iterators = [super(_Together, self).get_iterator(dataset, training) for _ in self.seeds_]
        dataset.class_sampler = _SeedBatches(iterators, self.seeds_)
        return dataset.class_sampler

    def on_epoch_end(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Take down the learning rates of all groups."""
        super().on_epoch_end(net, *args, **kwargs)
        self.rates_.append([group["lr"] for group in self.optimizer_.param_groups])

    def hand_back(self) -> list[MaxMarginClassifier]:
        """Give each classifier what is its own, and return those whose loss stayed finite."""
        losses = torch.stack(self.criterion_.means).double().cpu()
        index, finite = 0, []
        for run, size in enumerate(self.sizes_):
            for offset in range(size):
                net, own_losses = self.nets_[index], losses[:, index]
                if bool(torch.isfinite(own_losses).all()):
                    self._hand_back_network(net, run, offset, index)
                    self._hand_back_optimizer(net, run, offset)
                    self._hand_back_history(net, run, own_losses.tolist())
                    finite.append(net)
                index += 1
        return finite

    @torch.no_grad()
    def _hand_back_network(
        self, net: MaxMarginClassifier, run: int, offset: int, index: int
    ) -> None:
        for name, weight in net.module_.named_parameters():
            weight.copy_(self.module_.runs_of(name)[run][offset])
        for name, buffer in net.module_.named_buffers():
            buffer.copy_(self.module_.stacked_buffers[name][index])

    def _hand_back_optimizer(self, net: MaxMarginClassifier, run: int, offset: int) -> None:
        for name, weight in net.module_.named_parameters():
            stacked = self.module_.runs_of(name)[run]
            state = self.optimizer_.state[stacked]
            net.optimizer_.state[weight] = {
                # A fused step needs its state in the memory format of the weight.
                key: torch.empty_like(weight).copy_(value[offset])
                if isinstance(value, Tensor) and value.shape == stacked.shape
                else deepcopy(value)
                for key, value in state.items()
            }
        groups = net.optimizer_.param_groups
        ours = self.optimizer_.param_groups[run * len(groups) : (run + 1) * len(groups)]
        for group, our in zip(groups, ours, strict=True):
            group.update({key: value for key, value in our.items() if key != "params"})

    def _hand_back_history(self, net: MaxMarginClassifier, run: int, losses: list[float]) -> None:
        """Write the history that a fit of this network alone would have written."""
        first_group = run * len(net.optimizer_.param_groups)
        of_batch = iter(losses)
        net.history_ = History()
        for row, rates in zip(self.history_, self.rates_, strict=True):
            batches = [{**batch, "train_loss": next(of_batch)} for batch in row["batches"]]
            own = {"batches": batches, "event_lr": rates[first_group]}
            if "dur" in row:
                own["dur"] = row["dur"] / len(self.nets_)
            net.history_.append({**row, **{key: own[key] for key in own.keys() & row.keys()}})
            for _, callback in net.callbacks_:
                if isinstance(callback, PassthroughScoring):
                    callback.on_epoch_end(net)
