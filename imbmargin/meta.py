"""Weights of single rows that are learned from a balanced set (Meta-Weight-Net)."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional as F

from imbmargin._tangents import QuickBatchNorm
from imbmargin.data import inputs
from imbmargin.data.batches import ArrayDataset, as_arrays, is_array_dataset, targets_of
from imbmargin.data.transfer import send
from imbmargin.estimator import MaxMarginClassifier
from imbmargin.modules.members import rows_per_target
from imbmargin.randomness import get_torch_states, isolated_random_state, set_torch_states

__all__ = ["MetaWeightNetClassifier"]


def check_row_losses(net: Any) -> None:
    """Raise an error unless the loss of an estimator gives those of single rows from logits."""
    if not hasattr(net.criterion_, "row_losses") or net.criterion_.needs:
        raise ValueError(
            f"loss={net.loss!r} does not give losses of single rows from the logits; use one "
            "of imbmargin.losses that does, such as 'cross_entropy'"
        )
    members = rows_per_target(net.module_)
    if members > 1:
        raise ValueError(
            f"{type(net).__name__} needs one row of logits for each row of the data, but the "
            f"network has {members} members; set module__members=1"
        )


def virtual_step(
    loss: Tensor, weights: dict[str, Any], lr: float, *, differentiable: bool = True
) -> dict[str, Any]:
    """Return the weights after a step down the loss, as functions of what the loss depends on.

    If they need not be differentiable, they are functions of the weights before alone. The graph of
    the loss stays for another pass back.
    """
    moving = {name: weight for name, weight in weights.items() if weight.requires_grad}
    gradients = torch.autograd.grad(
        loss, list(moving.values()), create_graph=differentiable, retain_graph=True
    )
    pairs = zip(moving.items(), gradients, strict=True)
    return {**weights, **{name: weight - lr * gradient for (name, weight), gradient in pairs}}


def copied_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copy buffers for a virtual pass, so that statistics of normalisation layers do not see it."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


class InnerOptimizer:
    """Mixin of a classifier whose ``train_step_single`` itself steps all optimizers but the first.

    skorch would run it once for each of them.
    """

    optimizer_: Any

    def _step_optimizer(self, step_fn: Any) -> None:
        self.optimizer_.step(step_fn)


@cache
def _load_forward_rules() -> None:
    """Take torch's first forward derivative, at which it warns of a part of its own."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
        forward_ad.make_dual(torch.zeros(1), torch.ones(1))


class MetaWeightNetClassifier(InnerOptimizer, MaxMarginClassifier):
    """Classifier whose rows are weighted by a small network of their losses (MW-Net).

    Before each step a virtual one is taken with the weights that the small network gives, and the
    small network is changed so that after it the loss on a balanced meta set would be lower. Then
    comes the real step, with the new weights. Class counts are not looked at.

    Parameters
    ----------
    module : str, Module class or instance, default="auto"
        As in `MaxMarginClassifier`.
    loss : str or Module class, default="cross_entropy"
        A loss of the package that needs the logits only.
    meta_set : tuple of (X, y), default=None
        Balanced rows that are not in the training data. None takes some of those.
    meta_per_class : int, default=10
        Rows of each class that are taken from the training data for the meta set, where they
        stay; of a class with fewer all, drawn again until it has as many.
    meta_hidden : int, default=100
        Hidden units of the small network.
    meta_lr : float, default=1e-5
        Its learning rate, for plain steps with Nesterov momentum 0.9 and weight decay 5e-4. The
        weights tell rows apart the more, the larger this is; the training follows the hardest rows
        alone, and fails, if it is too large. The gradient grows with ``lr``: with rates far below
        0.1, as those of tables are, 1e-5 leaves the weights nearly as they begin.
    **kwargs
        As in `MaxMarginClassifier`, but for ``mixing``.

    Attributes
    ----------
    weight_net_ : Module
        The small network: from losses (n, 1) to weights (n, 1) between 0 and 1.
    meta_targets_ : Tensor of int64, shape (m,)
        Encoded labels of the meta set.

    Raises
    ------
    ValueError
        In fit, if an argument is out of range, the meta set lacks a class or has another shape, or
        the loss, ``mixing``, float16 or a network of several members (TabM) cannot be used.

    Notes
    -----
    A row's share of the loss is its weight over the sum of those of the batch, and the small
    network takes plain steps, as in the released code for class imbalance. That for label noise
    divides by the number of rows and takes Adam's steps, which are as long however small the
    gradient is; with shares they lead to weights that grow exponentially with the loss. The losses
    that go into the small network carry no gradient, as in the latter, and the virtual step leaves
    the statistics of normalisation layers alone. A step costs nearly four plain ones. The network
    needs operations that torch can take forward derivatives of, as nearly all have.

    References
    ----------
    .. [1] Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting",
       NeurIPS 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import make_long_tailed
    >>> from imbmargin.meta import MetaWeightNetClassifier
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> clf = MetaWeightNetClassifier(max_epochs=20, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    has_known_prior = False

    def __init__(
        self,
        module: Any = "auto",
        *,
        loss: Any = "cross_entropy",
        meta_set: Any = None,
        meta_per_class: int = 10,
        meta_hidden: int = 100,
        meta_lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, loss=loss, **kwargs)
        self.meta_set = meta_set
        self.meta_per_class = meta_per_class
        self.meta_hidden = meta_hidden
        self.meta_lr = meta_lr

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("meta_per_class", "meta_hidden"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if not self.meta_lr > 0:
            raise ValueError(f"meta_lr must be above 0, got {self.meta_lr!r}")
        if self.mixing is not None:
            raise ValueError(
                f"mixing={self.mixing!r} and weights of single rows cannot be had together; use "
                "MaxMarginClassifier to mix"
            )

    def initialize_module(self) -> MetaWeightNetClassifier:
        """Make the network, and the small one."""
        super().initialize_module()
        with isolated_random_state(self.seed_, 3, device=self.device):
            self.weight_net_ = nn.Sequential(
                nn.Linear(1, self.meta_hidden),
                nn.ReLU(),
                nn.Linear(self.meta_hidden, 1),
                nn.Sigmoid(),
            )
        return self

    def initialize_criterion(self) -> MetaWeightNetClassifier:
        """Make the loss, which must give the losses of single rows from the logits."""
        super().initialize_criterion()
        check_row_losses(self)
        return self

    def initialize_optimizer(self, *args: Any) -> MetaWeightNetClassifier:
        """Make the optimizer, and that of the small network, whose rate stays as it is."""
        super().initialize_optimizer(*args)
        if self.grad_scaler_ is not None:
            raise ValueError(
                f"precision={self.precision!r} means float16 here, in which gradients of a virtual "
                "step are lost; use 'bfloat16' or 'float32'"
            )
        groups = [{"params": list(self.weight_net_.parameters()), "constant_lr": True}]
        self.weight_optimizer_ = torch.optim.SGD(
            groups, lr=self.meta_lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        return self

    def _bind_training_part(self, train: Any) -> None:
        super()._bind_training_part(train)
        x, target = self._given_meta_set() if self.meta_set is not None else self._drawn(train)
        self.meta_rows_ = self._on_device(x)
        self.meta_targets_ = torch.as_tensor(target, device=self.device)

    def _given_meta_set(self) -> tuple[Any, Any]:
        X, y = self.meta_set
        X = self._check_array(X, reset=False)
        target = inputs.encode(inputs.check_labels(y, X.shape[0]), self.classes_)
        missing = np.setdiff1d(np.arange(len(self.classes_)), target)
        if len(missing):
            raise ValueError(
                f"meta_set has no rows of {self.classes_[missing].tolist()}; it needs some of each "
                "class"
            )
        return ArrayDataset(X, target).fetch(slice(None))

    def _drawn(self, train: Any) -> tuple[Tensor, Tensor]:
        target = targets_of(train)
        generator = np.random.default_rng([self.seed_, 3])
        rows = []
        for label in np.unique(target):
            own = generator.permutation(np.flatnonzero(target == label))
            rows.append(np.resize(own, self.meta_per_class))
        chosen = torch.from_numpy(np.concatenate(rows))
        if is_array_dataset(train):
            arrays, order = as_arrays(train)
            x, _ = arrays.fetch(chosen if order is None else order[chosen])
        else:
            x = torch.stack([torch.as_tensor(train[int(row)][0]) for row in chosen])
        return x, torch.as_tensor(target)[chosen]

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Change the small network, then run forward and backward with its weights."""
        x, y = self._augmented(batch)
        target, row_weight = self._target_and_weight(y)
        self._set_training(True)
        x = self._network_input(x)
        states = get_torch_states(self.device)
        logits = self.infer(x, **fit_params)
        losses = self.criterion_.row_losses(logits.float(), target)
        self._change_weights(x, target, losses, row_weight, states)
        with torch.no_grad():
            weight = self._row_weights(losses, row_weight)
        loss = self.criterion_(logits, target, weight)
        self._backward(loss)
        return {"loss": loss, "y_pred": logits}

    def _row_weights(self, losses: Tensor, given: Tensor | None) -> Tensor:
        found = self.weight_net_(losses.detach().float().unsqueeze(1)).squeeze(1)
        return found if given is None else found * given

    def _change_weights(
        self,
        x: Tensor,
        target: Tensor,
        losses: Tensor,
        row_weight: Tensor | None = None,
        states: dict[str, Any] | None = None,
    ) -> None:
        """Take a virtual step, and one of the small network towards a lower loss after it.

        The step is linear in the rows' shares of the loss. What a share does to the meta loss is
        therefore the slope of its row's loss in the direction of the meta loss's gradient: one pass
        forward, where second derivatives of the whole network would take several passes back. The
        losses keep their graph, for the real step. ``states`` are those of the random generators
        before the pass that gave the losses, which the pass forward must repeat.
        """
        weights: dict[str, Any] = dict(self.module_.named_parameters())
        by_row = self._row_weights(losses, row_weight)
        by_row = self.criterion_.row_weight(losses, target, by_row)
        share = by_row / by_row.sum().clamp_min(1e-12)
        lr = self.optimizer_.param_groups[0]["lr"]
        total = (share.detach() * losses).sum()
        moved = virtual_step(total, weights, lr, differentiable=False)
        names = [name for name, weight in weights.items() if weight.requires_grad]
        steepest = torch.autograd.grad(self._meta_loss(moved), [moved[name] for name in names])
        now = get_torch_states(self.device)
        set_torch_states(now if states is None else states, self.device)
        slopes = self._slopes(weights, dict(zip(names, steepest, strict=True)), x, target)
        set_torch_states(now, self.device)
        parameters = list(self.weight_net_.parameters())
        found = torch.autograd.grad(-lr * (share * slopes).sum(), parameters)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        self.weight_optimizer_.step()
        self.weight_optimizer_.zero_grad()

    def _meta_loss(self, weights: dict[str, Any]) -> Tensor:
        size = len(self.meta_targets_) if self.batch_size == -1 else self.batch_size
        rows = send(torch.randperm(len(self.meta_targets_))[:size], self.meta_targets_.device)
        logits = self._virtual(weights, self._network_input(self.meta_rows_[rows]))
        return F.cross_entropy(self.logit_scale_ * logits, self.meta_targets_[rows])

    def _slopes(
        self, weights: dict[str, Any], direction: dict[str, Tensor], x: Tensor, target: Tensor
    ) -> Tensor:
        """Return by how much the loss of each row rises if the weights go in a direction."""
        _load_forward_rules()
        with torch.no_grad(), forward_ad.dual_level(), QuickBatchNorm():
            dual = {
                name: forward_ad.make_dual(weights[name].detach(), tangent)
                for name, tangent in direction.items()
            }
            losses = self.criterion_.row_losses(self._virtual({**weights, **dual}, x), target)
            return forward_ad.unpack_dual(losses).tangent

    def _virtual(self, weights: dict[str, Any], x: Tensor) -> Tensor:
        with self._autocast():
            buffers = copied_buffers(self.module_)
            return functional_call(self.module_, (weights, buffers), (x,)).float()
