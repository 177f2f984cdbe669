"""Candidates of one architecture, trained side by side as one batched network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import groupby
from typing import Any

import torch
from skorch.callbacks import PassthroughScoring
from skorch.history import History
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from imbmargin._memory import note, read_notes
from imbmargin.callbacks import bind_class_weight
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.loop import has_finite_weights
from imbmargin.losses import MaxMarginLDAMLoss, MaxMarginLoss, max_margin_loss
from imbmargin.losses._base import moved
from imbmargin.randomness import draw_seed, isolated_random_state

__all__ = ["NotBatchedError", "train_together"]

# A fused step rounds the numbers at the end of a tensor that do not fill a vector register in
# another way; such tensors are not stacked. 16 numbers are the longest register's.
_VECTOR = 16
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NotBatchedError(ValueError):
    """Classifiers cannot be trained together."""


def train_together(
    nets: Sequence[MaxMarginClassifier], X: Any, y: Any
) -> list[MaxMarginClassifier | None]:
    """Fit classifiers of one architecture and one schedule, as one batched network.

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
    if getattr(net.criterion_, "needs", ()):
        raise NotBatchedError(
            f"the loss {type(net.criterion_).__name__} needs more than the logits"
        )
    if any(True for _ in net.criterion_.parameters()):
        raise NotBatchedError(f"the loss {type(net.criterion_).__name__} has weights to learn")


class _Networks(nn.Module):
    """Networks of one architecture side by side: the logits (C, n, K) of a batch.

    Their weights are copied, those of a run together: the optimizer treats its networks alike.
    ``seed_index`` tells which of stacked batches each sees; None: all see the same batch.
    """

    def __init__(
        self, nets: Sequence[MaxMarginClassifier], runs: Sequence[range], seed_index: Tensor | None
    ) -> None:
        super().__init__()
        weights, self.stacked_buffers = stack_module_state([net.module_ for net in nets])
        fused = any(group.get("fused") for group in nets[0].optimizer_.param_groups)
        # A run is a parameter of its own, so that it can be in an optimizer group of its own.
        self.pieces: dict[str, list[tuple[range, Tensor]]] = {}
        for name, stack in weights.items():
            alone = fused and stack[0].numel() % _VECTOR != 0
            parts = [range(i, i + 1) for i in range(len(nets))] if alone else runs
            self.pieces[name] = [
                (part, nn.Parameter(stack.detach()[list(part)], stack.requires_grad))
                for part in parts
            ]
        self.all_pieces = nn.ParameterList(p for own in self.pieces.values() for _, p in own)
        self.seed_index = seed_index
        network = nets[0].module_
        self.call = vmap(
            lambda weights, buffers, x: functional_call(network, (weights, buffers), (x,)),
            in_dims=(0, 0, None if seed_index is None else 1),
            randomness="same",
        )

    def forward(self, x: Tensor) -> Tensor:
        weights: dict[str, Tensor] = {}
        for name, pieces in self.pieces.items():
            parts = [piece for _, piece in pieces]
            weights[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
        if self.seed_index is not None:
            x = x[:, self.seed_index]
        before = torch.get_rng_state()
        with _ExactLinear():
            logits = self.call(weights, self.stacked_buffers, x)
        if self.seed_index is not None and not torch.equal(before, torch.get_rng_state()):
            raise NotBatchedError("the network draws random numbers, and there are several seeds")
        return logits

    def pieces_of(self, name: str, run: range) -> list[Tensor]:
        """Return the parameters that hold a weight for a run of networks."""
        return [piece for part, piece in self.pieces[name] if part[0] in run]

    def place_of(self, name: str, index: int) -> tuple[Tensor, int]:
        """Return the parameter that holds a weight of one network, and where in it."""
        part, piece = next(item for item in self.pieces[name] if index in item[0])
        return piece, index - part.start


class _ExactLinear(TorchFunctionMode):
    """Let linear layers inside vmap round as single ones do.

    vmap takes the gradient of a weight as the transpose of another product than `linear` does. The
    last bits then differ, and a few hundred steps with a loss that jumps make other networks of
    them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[0].ndim == 2 and not kwargs:
            device = args[0].device.type
            if torch.is_autocast_enabled(device):
                args = [arg.to(torch.get_autocast_dtype(device)) for arg in args if arg is not None]
            return _Linear.apply(*args, *[None] * (3 - len(args)))
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """`linear` inside vmap, on contiguous rows as a single network has; others round otherwise."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(*_: Any) -> None:
        """Do nothing: autograd sees what `vmap` returns."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *parts: Tensor | None) -> tuple[Tensor, int]:
        def stacked(part: Tensor, dim: int | None) -> Tensor:
            if dim is None:
                return part.expand(info.batch_size, *part.shape)
            return part.movedim(dim, 0).contiguous()

        pairs = zip(parts, in_dims, strict=True)
        return _StackedLinear.apply(*(p if p is None else stacked(p, dim) for p, dim in pairs)), 0


class _StackedLinear(torch.autograd.Function):
    """Linear layers side by side: x (C, n, in), weight (C, out, in), bias (C, out) or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rest = () if bias is None else (bias,)
        return _side_by_side(_stacked_linear, F.linear, x, weight, *rest)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _side_by_side(torch.bmm, torch.mm, grad, weight) if of_x else None,
            _side_by_side(torch.bmm, torch.mm, grad.mT, x) if of_weight else None,
            grad.sum(1) if of_bias else None,
        )


def _stacked_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is None:
        return torch.bmm(x, weight.mT)
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


# Whether a product of stacks rounds as single products do, for shapes that have been tried.
_ROUNDS_ALIKE: dict[Any, bool] = {}


def _side_by_side(together: Any, single: Any, *stacks: Tensor) -> Tensor:
    """Return the products of stacked matrices; on the CPU they round as single ones do.

    Some thin ones do not: another order of the sums, or another division among threads. They are
    taken one after another.
    """
    if stacks[0].is_cuda:
        return together(*stacks)
    shapes = tuple((stack.shape, stack.stride()) for stack in stacks)
    key = single, shapes, stacks[0].dtype, torch.get_num_threads()
    if key not in _ROUNDS_ALIKE:
        trial = [_random_like(stack) for stack in stacks]
        _ROUNDS_ALIKE[key] = torch.equal(together(*trial), _one_by_one(single, trial))
    return together(*stacks) if _ROUNDS_ALIKE[key] else _one_by_one(single, stacks)


def _one_by_one(single: Any, stacks: Sequence[Tensor]) -> Tensor:
    return torch.stack([single(*parts) for parts in zip(*stacks, strict=True)])


def _random_like(stack: Tensor) -> Tensor:
    """Return numbers that lie in memory as those of the stack do."""
    last = sum((size - 1) * step for size, step in zip(stack.shape, stack.stride(), strict=True))
    numbers = torch.randn(last + 1, generator=torch.Generator().manual_seed(0))
    return numbers.to(stack.dtype).as_strided(stack.shape, stack.stride())


class _Losses(nn.Module):
    """The losses of networks side by side: their sum, so that each keeps its own gradient.

    ``means`` keeps the losses (C,) of each batch.
    """

    criteria: Any

    def __init__(self, criteria: Sequence[nn.Module], seed_index: Tensor | None) -> None:
        super().__init__()
        self.criteria = nn.ModuleList(criteria)
        self.seed_index = seed_index
        self.means: list[Any] = []
        self.margins = _MarginRows.of(criteria)

    def set_class_weight(self, weight: Any) -> None:
        """Give all losses the same class weights."""
        for criterion in self.criteria:
            bind_class_weight(criterion, weight)
        if not bool((weight.float() > 0).all()):
            # A batch may then have no weight at all, which the single losses know how to treat.
            self.margins = None

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        shared = self.seed_index is None
        targets = target.expand(len(logits), -1) if shared else target.T[self.seed_index]
        if (members := logits.shape[1] // targets.shape[1]) > 1:
            targets = targets.repeat_interleave(members, dim=1)
        if self.margins is not None:
            means = self.margins(logits, targets)
        else:
            calls = zip(self.criteria, logits.unbind(), targets.unbind(), strict=True)
            means = torch.stack([criterion(*batch) for criterion, *batch in calls])
        self.means.append(note(means))
        # A candidate that diverges must not end the training of the others.
        return torch.where(torch.isfinite(means), means, 0).sum()


class _MarginRows:
    """Maximum-margin losses that differ in δ⁻ and β, in one call: these may differ by row.

    It rounds where the single losses do. Their calls one after another give the same, and take a
    sixth of the time of a step.
    """

    def __init__(self, criteria: Sequence[Any]) -> None:
        self.criterion = criteria[0]
        self.values = torch.tensor([[c.delta_neg, c.beta] for c in criteria], dtype=torch.float64)

    @classmethod
    def of(cls, criteria: Sequence[Any]) -> _MarginRows | None:
        """Return it for maximum-margin losses that are alike in all else, None for others."""
        if type(criteria[0]) not in (MaxMarginLoss, MaxMarginLDAMLoss):
            return None
        kinds = {(c.scale, c.label_aware, c.max_margin) for c in criteria}
        return cls(criteria) if len(kinds) == 1 else None

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean losses (C,) of logits (C, n, K) and targets (C, n)."""
        if logits.dtype == torch.bfloat16:
            logits = logits.float()
        scale, labels = self.criterion.scale, target.flatten()
        delta, beta = self._delta_and_beta(target)
        rows = logits.flatten(0, 1)
        losses = max_margin_loss(rows, labels, delta.flatten(), beta.flatten(), scale)
        losses = losses.view(target.shape)
        if self.criterion.class_weight is None:
            return losses.mean(1)
        weight = self.criterion.class_weight.to(logits.dtype)
        # The weights add up as in torch's weighted cross-entropy: another order rounds otherwise.
        ones = -torch.ones_like(logits[0])
        totals = [F.nll_loss(ones, own, weight, reduction="sum") for own in target.unbind()]
        return (losses * weight[target]).sum(1) / torch.stack(totals)

    def _delta_and_beta(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return δ⁻ and β of each row, as wide as the single losses have them."""
        if self.values.device != target.device:
            self.values = moved(self.values, lambda tensor: tensor.to(target.device))
        delta, beta = (part.unsqueeze(1).expand(target.shape) for part in self.values.unbind(1))
        return delta - self.criterion.margins[target] if self.criterion.label_aware else delta, beta


def _optimizer_options(net: MaxMarginClassifier) -> list[dict[str, Any]]:
    groups = net.optimizer_.param_groups
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


class _SeedBatches:
    """The batches of several seeds, stacked along axis 1: an iterator draws as in a single fit."""

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

    Data, sampling, epochs and deferral are the estimator's own: what one gets, all get.
    """

    module_: Any
    criterion_: Any
    history_: Any
    nets_: list[MaxMarginClassifier]
    _checks_weights = False  # one network may diverge, and not the others
    runs_: list[range]
    seeds_: list[int]
    rates_: list[list[float]]

    @classmethod
    def of(cls, nets: Sequence[MaxMarginClassifier]) -> _Together:
        """Make it from initialized classifiers."""
        options = [_optimizer_options(net) for net in nets]
        alike = [options.index(own) for own in options]
        order = sorted(range(len(nets)), key=alike.__getitem__)
        together = cls(**nets[0].get_params(deep=False))
        together.nets_ = [nets[i] for i in order]
        runs = [list(run) for _, run in groupby(range(len(nets)), lambda i: alike[order[i]])]
        together.runs_ = [range(run[0], run[-1] + 1) for run in runs]
        together.seeds_ = list(dict.fromkeys(net.seed_ for net in together.nets_))
        together.rates_ = []
        # Its log would show the sum of the losses.
        return together.set_params(random_state=together.seeds_[0], verbose=0)

    def _seed_index(self) -> Tensor | None:
        if len(self.seeds_) == 1:
            return None
        return torch.tensor([self.seeds_.index(n.seed_) for n in self.nets_], device=self.device)

    def initialize_module(self) -> _Together:
        self.module_ = _Networks(self.nets_, self.runs_, self._seed_index())
        return self

    def initialize_criterion(self) -> _Together:
        self.criterion_ = _Losses([net.criterion_ for net in self.nets_], self._seed_index())
        return self

    def initialize_optimizer(self, *_: Any) -> _Together:
        """Make one optimizer, with the groups of each run of networks."""
        groups = []
        for run in self.runs_:
            net = self.nets_[run[0]]
            names = {id(weight): name for name, weight in net.module_.named_parameters()}
            own = (group["params"] for group in net.optimizer_.param_groups)
            for options, weights in zip(_optimizer_options(net), own, strict=True):
                pieces = [self.module_.pieces_of(names[id(weight)], run) for weight in weights]
                groups.append({**options, "params": [p for part in pieces for p in part]})
        kind: Any = type(self.nets_[0].optimizer_)
        self.optimizer_ = kind(groups)
        self.grad_scaler_ = None
        return self

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
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
        """Give each classifier what is its own, and return those that stayed finite."""
        losses = torch.tensor(read_notes(self.criterion_.means), dtype=torch.float64)
        finite = []
        for number, run in enumerate(self.runs_):
            for index in run:
                net, own_losses = self.nets_[index], losses[:, index]
                first_group = number * len(net.optimizer_.param_groups)
                self._hand_back_weights(net, index)
                if not (torch.isfinite(own_losses).all() and has_finite_weights(net.optimizer_)):
                    continue
                self._hand_back_rates(net, first_group)
                self._hand_back_history(net, first_group, own_losses.tolist())
                finite.append(net)
        return finite

    @torch.no_grad()
    def _hand_back_weights(self, net: MaxMarginClassifier, index: int) -> None:
        for name, buffer in net.module_.named_buffers():
            buffer.copy_(self.module_.stacked_buffers[name][index])
        for name, weight in net.module_.named_parameters():
            piece, place = self.module_.place_of(name, index)
            weight.copy_(piece[place])
            net.optimizer_.state[weight] = {
                # A fused step needs its state in the memory format of the weight.
                key: torch.empty_like(weight).copy_(value[place])
                if isinstance(value, Tensor) and value.shape == piece.shape
                else deepcopy(value)
                for key, value in self.optimizer_.state[piece].items()
            }

    def _hand_back_rates(self, net: MaxMarginClassifier, first_group: int) -> None:
        for number, group in enumerate(net.optimizer_.param_groups, first_group):
            own = self.optimizer_.param_groups[number]
            group.update({key: value for key, value in own.items() if key != "params"})

    def _hand_back_history(
        self, net: MaxMarginClassifier, first_group: int, losses: list[float]
    ) -> None:
        """Write the history that a fit of this network alone would have written."""
        of_batch = iter(losses)
        net.history_ = History()
        for row, rates in zip(self.history_, self.rates_, strict=True):
            batches = [{**batch, "train_loss": next(of_batch)} for batch in row["batches"]]
            duration = row.get("dur", 0.0) / len(self.nets_)
            own = {"batches": batches, "event_lr": rates[first_group], "dur": duration}
            net.history_.append({**row, **{key: own[key] for key in own.keys() & row.keys()}})
            for _, callback in net.callbacks_:
                if isinstance(callback, PassthroughScoring):
                    callback.on_epoch_end(net)
