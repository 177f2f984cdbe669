"""BBN: two branches, one for the data as they are and one for rare classes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imbmargin._paired import PairedBatches
from imbmargin.modules import CosineLinear
from imbmargin.modules.heads import fresh_head
from imbmargin.randomness import isolated_random_state

__all__ = ["BBNClassifier", "BilateralNetwork"]


class BilateralNetwork(nn.Module):
    """A network whose last layers exist twice, and one head on the features of both.

    Parameters
    ----------
    network : Module
        With ``backbone`` (a Sequential) and ``head``, and perhaps ``input_norm``, such as those of
        `imbmargin.modules`. Its weights are taken over; the second branch draws its own.
    branch_layers : int
        Layers at the end of the backbone that exist twice, fewer than it has.

    Attributes
    ----------
    shared, conventional, rebalancing, head : Module
        Common layers; the branch for the data as they are, and that for rare classes; last layer.

    Raises
    ------
    ValueError
        If the backbone cannot be split.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.bbn import BilateralNetwork
    >>> from imbmargin.modules import MLP
    >>> network = BilateralNetwork(MLP(4, 3), branch_layers=2)
    >>> network(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(self, network: Any, branch_layers: int) -> None:
        super().__init__()
        backbone: Any = getattr(network, "backbone", None)
        head: Any = getattr(network, "head", None)
        if not isinstance(backbone, nn.Sequential) or not isinstance(
            head, (nn.Linear, CosineLinear)
        ):
            raise ValueError(
                "BBN needs a module with a Sequential as `backbone` and a Linear or CosineLinear "
                f"as `head`, got {type(network).__name__}; for tables use 'mlp'"
            )
        if not 1 <= branch_layers < len(backbone):
            raise ValueError(
                f"branch_layers must be between 1 and {len(backbone) - 1} for this backbone, got "
                f"{branch_layers!r}"
            )
        if not any(True for _ in backbone[-branch_layers:].parameters()):
            raise ValueError(
                f"the branches would have no weights: the last {branch_layers} of the backbone's "
                f"{len(backbone)} layers have none; give it more layers, as "
                "module__hidden_units=(128, 128), or choose branch_layers"
            )
        if hasattr(network, "input_norm"):
            self.input_norm = network.input_norm
        self.flattens = any(isinstance(layer, nn.Linear) for layer in backbone[:1])
        self.shared = backbone[:-branch_layers]
        self.conventional = backbone[-branch_layers:]
        self.rebalancing = copy.deepcopy(self.conventional)
        for layer in self.rebalancing.modules():
            reset: Any = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        self.head = fresh_head(head, int(head.out_features), parts=2)

    def forward(self, x: Tensor, rare: Tensor | None = None, alpha: float = 0.5) -> Tensor:
        """Return the logits (n, K).

        Parameters
        ----------
        x : Tensor of shape (n, ...)
            Rows for the conventional branch.
        rare : Tensor of shape (n, ...), default=None
            Rows for the re-balancing branch; None: the same.
        alpha : float, default=0.5
            α, share of the conventional branch.
        """
        first = self.conventional(self._common(x))
        second = self.rebalancing(self._common(x if rare is None else rare))
        return self.head(torch.cat([2 * alpha * first, 2 * (1 - alpha) * second], dim=1))

    def _common(self, x: Tensor) -> Tensor:
        x = x.flatten(1) if self.flattens else x
        return self.shared(self.input_norm(x) if hasattr(self, "input_norm") else x)


class BBNClassifier(PairedBatches):
    """Bilateral-branch network (BBN): learns the data first, and rare classes more and more.

    A step takes a batch as the data are and one in which a class is drawn at a rate of 1 / n. Each
    goes through a branch of its own; features and losses of the two have the shares α and 1 - α.
    α falls from 1 with the square of the epochs; at prediction it is 1/2.

    Parameters
    ----------
    module : str, Module class or instance, default="auto"
        As in `MaxMarginClassifier`, with a Sequential as ``backbone``.
    loss : str or Module class, default="cross_entropy"
        As in `MaxMarginClassifier`; one that needs the logits only.
    branch_layers : int, default=None
        Layers at the end of the backbone that exist twice. None: those that the network names in
        ``branch_layers`` (for a ResNet the last block and the pooling, for an MLP its last hidden
        layer).
    **kwargs
        As in `MaxMarginClassifier`, but for ``mixing`` and ``init_backbone``.

    Raises
    ------
    ValueError
        In fit, if the network cannot be split, the loss cannot be used, or ``mixing`` or
        ``init_backbone`` is given.
    TypeError
        In fit, if ``iterator_train`` is one of your own.

    Notes
    -----
    The paper lets the rate fall after 60 and 80 % of the epochs, ``lr_schedule="early_step"``. That
    matters: where the rate is still large when α is small, the common layers move away from the
    conventional branch, which no longer learns. It also trains with Nesterov's momentum,
    ``optimizer__nesterov=True``.

    References
    ----------
    .. [1] Zhou et al., "BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed
       Visual Recognition", CVPR 2020. The factor 2 of the features is that of the released code.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from imbmargin import make_long_tailed
    >>> from imbmargin.bbn import BBNClassifier
    >>> X, y = make_long_tailed(*load_wine(return_X_y=True), imbalance_ratio=8, random_state=0)
    >>> clf = BBNClassifier(max_epochs=60, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.9
    True
    """

    # The two branches learn from different shares.
    has_known_prior = False

    def __init__(
        self,
        module: Any = "auto",
        *,
        loss: Any = "cross_entropy",
        branch_layers: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(module, loss=loss, **kwargs)
        self.branch_layers = branch_layers

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("mixing", "init_backbone"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} and BBN cannot be had together; leave {name} "
                    "out, or use MaxMarginClassifier"
                )

    def initialize_module(self) -> BBNClassifier:
        """Make the network, and split it."""
        super().initialize_module()
        layers = self.branch_layers
        if layers is None:
            layers = getattr(self.module_, "branch_layers", 1)
        with isolated_random_state(self.seed_, 4, device=self.device):
            self.module_ = BilateralNetwork(self.module_, layers)
        self._begin_average()
        return self

    def initialize_criterion(self) -> BBNClassifier:
        """Make the loss, which must need the logits only: two batches share them."""
        super().initialize_criterion()
        needs = getattr(self.criterion_, "needs", ())
        if needs:
            raise ValueError(
                f"loss={self.loss!r} needs {list(needs)} of each row, but BBN has logits of two "
                "rows at once; use a loss of the logits alone, such as 'cross_entropy'"
            )
        return self

    def _partner_rates(self, class_counts: np.ndarray) -> np.ndarray:
        # No rate for classes without rows.
        return np.divide(1.0, class_counts, out=np.zeros(len(class_counts)), where=class_counts > 0)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Run forward and backward on a batch and its counterpart."""
        self._set_training(True)
        done = (len(self.history) - 1) / self.max_epochs
        alpha = max(0.0, 1 - done**2)
        (x, y), (other, y_other) = self._augmented(batch), self._augmented(self._partner)
        rare = self._network_input(other)
        logits = self.infer(x, rare=rare, alpha=alpha, **fit_params)
        loss = alpha * self.get_loss(logits, y) + (1 - alpha) * self.get_loss(logits, y_other)
        self._backward(loss)
        return {"loss": loss, "y_pred": logits}
