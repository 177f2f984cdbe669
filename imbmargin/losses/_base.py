"""What all losses share: class counts and weights as buffers, and one weighted mean."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbmargin.losses._shifted import is_eager, shifted_cross_entropy, takes_shifted

__all__ = ["ClassCountLoss", "CrossEntropyLoss", "weighted_mean"]


def weighted_mean(losses: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean of per-sample losses, divided by the sum of their weights.

    This is what torch's weighted cross-entropy and the published code of LDAM and MM do; the scale
    of the weights cancels.

    Parameters
    ----------
    losses : Tensor of shape (n,)
        Loss of each sample.
    weight : Tensor of shape (n,), default=None
        Weight of each sample, 0 or more.

    Returns
    -------
    mean : Tensor, scalar
        0, with a graph, for an empty batch or when all weights are 0.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import weighted_mean
    >>> weighted_mean(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0]))
    tensor(2.)
    """
    if weight is None:
        return losses.sum() / max(losses.numel(), 1)
    total = weight.sum()
    return (weight * losses).sum() / torch.where(total > 0, total, 1.0)


def _widest(tensor: Tensor) -> Tensor:
    """Return the tensor as float64, or as float32 on a device that has none, like Apple's GPUs."""
    try:
        return tensor.double()
    except TypeError:
        return tensor.float()


def moved(tensor: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Move a tensor to a device, as float32 if that has no float64, like Apple's GPUs."""
    try:
        return move(tensor)
    except TypeError:
        if tensor.dtype != torch.float64:
            raise
        return move(tensor.float())


def check_number(name: str, value: float, least: float, *, above: bool = False) -> None:
    """Raise an error unless value >= least, or > least with ``above``."""
    word = "above" if above else "at least"
    try:
        fits = value > least if above else value >= least
    except TypeError as error:
        raise TypeError(f"{name} must be a number, {word} {least:g}, got {value!r}") from error
    if not fits:
        raise ValueError(f"{name} must be {word} {least:g}, got {value!r}; pass a larger {name}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise an error for a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")


def positive_counts(class_counts: Any) -> Tensor:
    """Return the counts as float64; a class without rows counts as many as the rarest class."""
    counts = _widest(torch.as_tensor(class_counts))
    return counts.clamp_min(torch.where(counts > 0, counts, torch.inf).min())


_FOLLOWING = "_device", "_kept", "_kept_weight"


class ClassCountLoss(nn.Module):
    """Base of the losses: weighted mean of a per-sample loss.

    A loss defines `per_sample`, or `adjust` where it is the cross-entropy of adjusted logits.
    Class counts and class weights are buffers. They are bound after construction, by the estimator
    or by you, and can be switched in place at any time.

    Attributes
    ----------
    class_counts : Tensor of int64, shape (K,), or None
        Rows of each class in the training part.
    class_weight : Tensor of float64, shape (K,), or None
        Weight of each class in the mean.
    active : bool
        False makes it plain cross-entropy (of the scaled logits), until it is set to True.
    """

    #: Whether the logits are expected to be cosines, from a normalised head.
    normalized_logits: ClassVar[bool] = False
    #: Kind of the last layer, see `imbmargin.modules.HEADS`.
    head: ClassVar[str] = "linear"
    #: What `forward` needs besides the logits: "features", "head_weight".
    needs: ClassVar[tuple[str, ...]] = ()

    class_counts: Tensor | None
    class_weight: Tensor | None
    # What holds until an attribute is set: where the buffers lie, what follows from all, and the
    # class weights in the type of the logits.
    _device: torch.device | None = None
    _kept: tuple[Any, ...] | None = None
    _kept_weight: tuple[Any, ...] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_counts", None)
        self.register_buffer("class_weight", None)
        self.active = True
        self._weight_changed()

    def set_class_counts(self, class_counts: Any) -> None:
        """Bind the class counts.

        Parameters
        ----------
        class_counts : array-like of int, shape (K,)
            Rows of each class, 0 or more, not all 0.

        Raises
        ------
        ValueError
            If they are not such counts.
        """
        counts = torch.as_tensor(class_counts)
        if counts.ndim != 1 or bool((counts < 0).any()) or not bool(counts.sum() > 0):
            raise ValueError(
                "class_counts must be a 1-D array of counts of 0 or more, not all 0, got "
                f"{counts.tolist()}"
            )
        self.class_counts = counts.detach().to(torch.int64).clone()
        self._counts_changed()

    def set_class_weight(self, class_weight: Any) -> None:
        """Bind the class weights, or take them away with None.

        Parameters
        ----------
        class_weight : array-like of float, shape (K,), or None
            Weight of each class, finite and 0 or more.

        Raises
        ------
        ValueError
            If they are not such weights, or of another length than the class counts.
        """
        if class_weight is None:
            self.class_weight = None
            self._weight_changed()
            return
        if not isinstance(class_weight, Tensor):
            class_weight = torch.as_tensor(class_weight, dtype=torch.float64)
        weight = _widest(class_weight.detach()).clone()
        if weight.ndim != 1 or not bool((torch.isfinite(weight) & (weight >= 0)).all()):
            raise ValueError(
                "class_weight must be a 1-D array of finite weights of 0 or more, got "
                f"{weight.tolist()}"
            )
        if self.class_counts is not None and len(weight) != len(self.class_counts):
            raise ValueError(
                f"class_weight must have one weight for each of the {len(self.class_counts)} "
                f"classes, got {len(weight)}"
            )
        self.class_weight = weight
        self._weight_changed()

    def trained_prior(self, prior: Tensor) -> Tensor:
        """Return the class shares for which logits hold that have learned from such shares (K,)."""
        return prior

    def per_sample(self, logits: Tensor, target: Tensor, *_: Any, **context: Any) -> Tensor:
        """Return the loss of each sample, shape (n,), without class weights."""
        adjusted = self.adjust(logits, target, **context)
        return F.cross_entropy(adjusted, target, reduction="none")

    def adjust(self, logits: Tensor, target: Tensor, *_: Any, **context: Any) -> Tensor:
        """Return the logits whose cross-entropy is the loss, shape (n, K), if there are such."""
        raise TypeError(
            f"{type(self).__name__} does not define per_sample(logits, target), or "
            "adjust(logits, target) if it is a cross-entropy"
        )

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        **context: Tensor,
    ) -> Tensor:
        """Return the weighted mean of the loss over a batch.

        Parameters
        ----------
        logits : Tensor of shape (n, K)
            Before scaling. float16 and bfloat16 are computed in float32.
        target : Tensor of int64, shape (n,)
            Encoded labels 0..K-1.
        sample_weight : Tensor of shape (n,), default=None
            Weights of the rows; they multiply the class weights.
        **context : Tensor
            What the loss `needs`: ``features`` (n, d), ``head_weight`` (K, d).

        Returns
        -------
        loss : Tensor, scalar

        Raises
        ------
        ValueError
            If the shapes do not fit.
        RuntimeError
            If something that it needs is not there.
        """
        shape = logits.shape
        if len(shape) != 2 or shape[1] < 2 or target.shape != shape[:1]:
            raise ValueError(
                "logits must have shape (n, K) with K >= 2 and target shape (n,), got "
                f"{tuple(shape)} and {tuple(target.shape)}"
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if len(context) != len(self.needs):
            self._need_context(context)
        if self._device != logits.device:
            self._follow(logits.device)
        if self._torch_takes_mean and self.active and sample_weight is None and shape[0] > 0:
            class_weight = self._class_weight_like(logits)
            if takes_shifted(self.adjust, logits):
                scale = getattr(self, "scale", 1.0)
                return shifted_cross_entropy(logits, target, class_weight, self.adjust, scale)
            return F.cross_entropy(self.adjust(logits, target, **context), target, class_weight)
        losses = self.row_losses(logits, target, **context)
        return weighted_mean(losses, self.row_weight(losses, target, sample_weight))

    def row_losses(self, logits: Tensor, target: Tensor, **context: Tensor) -> Tensor:
        """Return the losses of which `forward` takes the mean, shape (n,); see ``active``."""
        if self.active:
            return self.per_sample(logits, target, **context)
        plain = logits * getattr(self, "scale", 1.0)
        return F.cross_entropy(plain, target, reduction="none")

    def row_weight(
        self, losses: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor | None:
        """Return the weights in that mean, of classes times rows, shape (n,); None: all equal."""
        if self.class_weight is None:
            return sample_weight
        by_class = self.class_weight[target].to(losses.dtype)
        return by_class if sample_weight is None else sample_weight * by_class

    def _counts_changed(self) -> None:
        """Derive what follows from the class counts."""

    def _class_weight_like(self, logits: Tensor) -> Tensor | None:
        """Return the class weights in the type of the logits, converted once."""
        weight, kept = self._buffers["class_weight"], self._kept_weight
        if weight is None or weight.dtype == logits.dtype:
            return weight
        if not is_eager() or weight.is_inference():
            return weight.to(logits.dtype)
        # A tensor counts how often it is written into.
        key = weight._version, logits.dtype
        if kept is None or kept[0] is not weight or kept[1] != key:
            kept = self._kept_weight = weight, key, weight.to(logits.dtype)
        found: Tensor = kept[2]
        return found

    def _weight_changed(self) -> None:
        """Note whether torch can take the weighted mean, in one step with the cross-entropy."""
        self._torch_takes_mean = type(self).per_sample is ClassCountLoss.per_sample
        if self.class_weight is not None and self._torch_takes_mean:
            # If the weights of a batch add up to 0, also in float32, torch's mean is not a number.
            least = torch.finfo(torch.float32).tiny
            self._torch_takes_mean = bool((self.class_weight >= least).all())

    def _need_context(self, context: dict[str, Tensor]) -> None:
        missing = [name for name in self.needs if name not in context]
        if missing:
            raise RuntimeError(
                f"{type(self).__name__} needs {missing}: call loss(logits, target, "
                f"{', '.join(f'{name}=...' for name in self.needs)}); MaxMarginClassifier does so"
            )

    def _need_counts(self) -> Tensor:
        if self.class_counts is None:
            raise RuntimeError(
                f"{type(self).__name__} needs the class counts of the training part: call "
                "set_class_counts(counts) before the first batch (MaxMarginClassifier does so, "
                "and on a plain skorch net the callback DeferredReweighting)"
            )
        return self.class_counts

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in _FOLLOWING:
            self._forget()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **dict.fromkeys(_FOLLOWING)}

    def _forget(self) -> None:
        self._device = self._kept = self._kept_weight = None

    def _follow(self, device: torch.device) -> None:
        """Move the buffers once, if they were bound on another device than the logits'."""
        self._device = device
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.device != device:
                self._buffers[name] = moved(buffer, lambda tensor: tensor.to(device))

    def _apply(self, fn: Any, *args: Any) -> Any:
        self._forget()
        return super()._apply(lambda tensor: moved(tensor, fn), *args)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # A fresh loss has no buffers yet: they take the shape of what is loaded.
        for name in ("class_counts", "class_weight"):
            loaded = state_dict.get(prefix + name)
            setattr(self, name, None if loaded is None else torch.empty_like(loaded))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.class_counts is not None:
            self._counts_changed()
        self._weight_changed()


class CrossEntropyLoss(ClassCountLoss):
    """Cross-entropy, -log softmax(z)_y: empirical risk minimisation (ERM).

    Examples
    --------
    >>> import torch
    >>> from imbmargin.losses import CrossEntropyLoss
    >>> loss = CrossEntropyLoss()
    >>> loss(torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([1]))
    tensor(1.1733)
    """

    def adjust(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the logits as they are."""
        return logits
