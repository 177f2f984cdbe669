"""Class rates that are learned from class-balanced batches (the meta sampler of BALMS)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from imbmargin._paired import PairedBatches
from imbmargin.data.transfer import send
from imbmargin.losses._base import weighted_mean
from imbmargin.meta import InnerOptimizer, check_row_losses, copied_buffers, virtual_step
from imbmargin.modules import find_head, watch_input
from imbmargin.samplers import ClassSampler
from imbmargin.weights import class_rates

__all__ = ["ClassRates", "MetaSamplerClassifier"]


class ClassRates(nn.Module):
    """Rates at which classes are drawn, learned through draws that have been made.

    A row of class c is drawn with a probability in proportion to σ(ψ_c), so that class c comes at
    the rate n_c σ(ψ_c) / Σ n σ(ψ).

    Parameters
    ----------
    num_classes : int, default=0
        K, if it is known before the class counts are bound.

    Attributes
    ----------
    psi : Parameter of shape (K,)
        ψ; zero at first, which draws rows uniformly.

    Examples
    --------
    >>> from imbmargin.meta_sampler import ClassRates
    >>> rates = ClassRates()
    >>> rates.set_class_counts([90, 10])
    >>> rates().exp()
    tensor([0.9000, 0.1000], grad_fn=<ExpBackward0>)
    """

    log_counts: Tensor

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.psi = nn.Parameter(torch.zeros(num_classes))
        self.register_buffer("log_counts", torch.zeros(num_classes))

    def set_class_counts(self, class_counts: Any) -> None:
        """Bind the rows n of each class, shape (K,); ψ keeps its values if there are K."""
        counts = torch.as_tensor(class_counts, device=self.psi.device)
        self.log_counts = counts.float().log()
        if len(self.psi) != len(counts):
            self.psi.data = torch.zeros_like(self.log_counts)

    def forward(self) -> Tensor:
        """Return the logarithm of the rates (K,)."""
        return torch.log_softmax(self.log_counts + F.logsigmoid(self.psi), dim=0)

    def sample_weight(self, target: Tensor) -> Tensor:
        """Return weights of 1 for drawn rows, whose gradients are those of how they were drawn.

        Parameters
        ----------
        target : Tensor of int64, shape (n,)
            Classes that were drawn at these rates.

        Returns
        -------
        weight : Tensor of shape (n,)
            Ones; backwards, the entry of each row's class in a Gumbel-softmax of the rates. Its
            noise is drawn given the class that came out, so that any sampler may have drawn.
        """
        log_rate = self()
        noise = _noise_given_class(log_rate.detach(), target)
        chosen = target.unsqueeze(1)
        soft = torch.softmax(log_rate + noise, dim=1).gather(1, chosen).squeeze(1)
        return 1 + (soft - soft.detach())


def _noise_given_class(log_rate: Tensor, target: Tensor) -> Tensor:
    """Draw Gumbel noise (n, K) for which log_rate + noise is largest at the target.

    The largest sum of all is a Gumbel variable of its own, and the others are Gumbel variables cut
    off there: G = -log(E / rate + exp(-largest)) with E exponential.
    """
    shape = (len(target), len(log_rate))
    exponential = send(torch.empty(shape).exponential_(), target.device)
    of_target = exponential.gather(1, target.unsqueeze(1))
    others = exponential / log_rate.exp() + of_target
    scattered = others.scatter(1, target.unsqueeze(1), of_target)
    # A class without rows has the rate 0, and no noise changes that.
    return torch.where(log_rate.isfinite(), -scattered.log() - log_rate, 0.0)


class MetaSamplerClassifier(InnerOptimizer, PairedBatches):
    """Classifier that learns at which rates classes should be drawn (the meta sampler of BALMS).

    Before each step the head takes a virtual one on the batch, and the rates are changed so that
    after it the cross-entropy of a class-balanced batch would be lower. Then comes the real step
    on the same batch. `imbmargin.two_stage.MetaSampledRetraining` does so for a new head on frozen
    features, as the paper does.

    Parameters
    ----------
    module : str, Module class or instance, default="auto"
        As in `MaxMarginClassifier`, with a last layer that `imbmargin.modules.find_head` finds.
    loss : str or Module class, default="balanced_softmax"
        A loss of the package that needs the logits only.
    rate_lr : float, default=0.01
        Learning rate of the class rates, for Adam.
    **kwargs
        As in `MaxMarginClassifier`, but for ``mixing``, ``resample`` and ``drs_epoch``.

    Attributes
    ----------
    class_rates_ : ClassRates
        The learned rates; ``class_rates_().exp()`` are those of the next draw.

    Raises
    ------
    ValueError
        In fit, if an argument is out of range or cannot be had together with learned rates, or
        the loss cannot be used.
    TypeError
        In fit, if ``iterator_train`` is one of your own.

    Notes
    -----
    The paper draws rows by a Gumbel-softmax over all rows of the training data, a matrix of batch
    times rows. Here it is over the classes, and rows are uniform within their class: rows come with
    the same probabilities, and the memory is that of a batch times the classes. The virtual step
    moves the head only, on features that carry no gradient, as in the paper. The released code
    moves ψ with Adam's default β₂, so does this; the paper states 0.99.

    References
    ----------
    .. [1] Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020,
       section 3.3 and algorithm 1.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import make_long_tailed
    >>> from imbmargin.meta_sampler import MetaSamplerClassifier
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> clf = MetaSamplerClassifier(max_epochs=20, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    has_known_prior = False
    _sampler: Any

    def __init__(
        self,
        module: Any = "auto",
        *,
        loss: Any = "balanced_softmax",
        rate_lr: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, loss=loss, **kwargs)
        self.rate_lr = rate_lr

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not self.rate_lr > 0:
            raise ValueError(f"rate_lr must be above 0, got {self.rate_lr!r}")
        for name in ("mixing", "resample", "drs_epoch"):
            value = getattr(self, name)
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} and learned class rates cannot be had together; leave "
                    f"{name} out, or use MaxMarginClassifier"
                )

    def initialize_module(self) -> MetaSamplerClassifier:
        """Make the network, and the rates."""
        super().initialize_module()
        self.class_rates_ = ClassRates(self._num_classes or 0)
        return self

    def initialize_criterion(self) -> MetaSamplerClassifier:
        """Make the loss, which must give the losses of single rows from the logits."""
        super().initialize_criterion()
        check_row_losses(self)
        return self

    def initialize_optimizer(self, *args: Any) -> MetaSamplerClassifier:
        """Make the optimizer, and that of the rates, whose own rate stays as it is."""
        super().initialize_optimizer(*args)
        groups = [{"params": list(self.class_rates_.parameters()), "constant_lr": True}]
        self.rate_optimizer_ = torch.optim.Adam(groups, lr=self.rate_lr)
        return self

    def _partner_rates(self, class_counts: np.ndarray) -> np.ndarray:
        return class_rates(class_counts, "class_balanced")

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run the batches of one epoch, in training drawn at the learned rates."""
        sampler = getattr(iterator, "sampler", None)
        if training and isinstance(sampler, ClassSampler):
            self._sampler = sampler
            # Not class_counts_: calls of partial_fit add up there, and only present rows are drawn.
            self.class_rates_.set_class_counts(sampler.class_counts)
            self._draw_at_rates()
        super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        self.__dict__.pop("_sampler", None)

    def _draw_at_rates(self) -> None:
        with torch.no_grad():
            rates = self.class_rates_().cpu().double().exp()
        self._sampler.set_rates(rates.numpy(), by_batch=True)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Change the rates, then run forward and backward on the batch."""
        self._set_training(True)
        x, y = self._augmented(batch)
        target, row_weight = self._target_and_weight(y)
        _, head = find_head(self.module_)
        with watch_input(head) as seen:
            logits = self.infer(x, **fit_params)
        self._change_rates(head, seen[0].detach().float(), target, row_weight)
        loss = self.get_loss(logits, y)
        self._backward(loss)
        return {"loss": loss, "y_pred": logits}

    def _change_rates(
        self, head: nn.Module, features: Tensor, target: Tensor, row_weight: Tensor | None
    ) -> None:
        """Take a virtual step of the head, and one of the rates to a lower loss after it."""
        weights: dict[str, Any] = dict(head.named_parameters())
        losses = self.criterion_.row_losses(functional_call(head, weights, (features,)), target)
        # The mean of the real step, times ones whose gradient is that of the draws.
        drawn = losses * self.class_rates_.sample_weight(target)
        total = weighted_mean(drawn, self.criterion_.row_weight(losses, target, row_weight))
        moved = virtual_step(total, weights, self.optimizer_.param_groups[0]["lr"])
        balanced, balanced_target = self._balanced_features(head)
        logits = functional_call(head, moved, (balanced,))
        meta_loss = F.cross_entropy(self.logit_scale_ * logits, balanced_target)
        (self.class_rates_.psi.grad,) = torch.autograd.grad(meta_loss, self.class_rates_.psi)
        self.rate_optimizer_.step()
        self.rate_optimizer_.zero_grad()
        self._draw_at_rates()

    def _balanced_features(self, head: nn.Module) -> tuple[Tensor, Tensor]:
        x, y = self._augmented(self._partner)
        target, _ = self._target_and_weight(y)
        with torch.no_grad(), self._autocast(), watch_input(head) as seen:
            functional_call(self.module_, copied_buffers(self.module_), (self._network_input(x),))
        return seen[0].float(), target
