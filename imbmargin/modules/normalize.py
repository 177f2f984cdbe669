"""Input normalisation inside the network, learned from the training part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["InputNorm", "channel_statistics"]


class InputNorm(nn.Module):
    """Standardise the columns of a table or the channels of images: (x - mean) / std.

    Parameters
    ----------
    num_channels : int
        Columns of a table, or channels of images.
    mean, std : sequence of float, shape (num_channels,), default=None
        In the unit of the data (0..255 for uint8 images). Without them the layer is the identity
        until `set_statistics`; `MaxMarginClassifier` learns them from the training part.

    Attributes
    ----------
    mean, std : Tensor of shape (num_channels,)
        Buffers, saved with the network.
    is_fitted : bool
        Whether the statistics are set.

    Raises
    ------
    ValueError
        If only one of ``mean`` and ``std`` is given, or they do not fit.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.modules import InputNorm
    >>> norm = InputNorm(2, mean=[0.0, 100.0], std=[1.0, 50.0])
    >>> norm(torch.tensor([[1.0, 200.0]]))
    tensor([[1., 2.]])
    """

    mean: Tensor
    std: Tensor
    fitted: Tensor
    # A model that was loaded does not know it, and keeps the statistics that it has.
    _constant: Sequence[bool] = ()

    def __init__(
        self,
        num_channels: int,
        mean: Sequence[float] | Tensor | None = None,
        std: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.register_buffer("mean", torch.zeros(num_channels))
        self.register_buffer("std", torch.ones(num_channels))
        self.register_buffer("fitted", torch.tensor(False))
        if (mean is None) != (std is None):
            raise ValueError("mean and std must be given together, got only one of them")
        if mean is not None and std is not None:
            self.set_statistics(mean, std)

    @property
    def is_fitted(self) -> bool:
        """Whether the statistics are set."""
        return bool(self.fitted)

    def set_statistics(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Set the statistics; a channel with std 0 is only centred.

        Raises
        ------
        ValueError
            If the shape is wrong, or a value is not finite, or a std is negative.
        """
        values = [torch.as_tensor(value, dtype=torch.float64).flatten() for value in (mean, std)]
        for name, value in zip(("mean", "std"), values, strict=True):
            if value.shape != self.mean.shape or not bool(torch.isfinite(value).all()):
                raise ValueError(
                    f"{name} must have a finite value for each of the {self.num_channels} "
                    f"channels, got {value.tolist()}"
                )
        if bool((values[1] < 0).any()):
            raise ValueError(f"std must be 0 or more, got {values[1].tolist()}")
        # Rounding leaves a constant column of large values with a tiny std instead of 0.
        constant = values[1] <= 1e-6 * values[0].abs()
        self.mean.copy_(values[0])
        self.std.copy_(torch.where(constant, 1.0, values[1]))
        # A column of denormal scale has a std that float32 cannot hold.
        self.std[self.std == 0] = 1.0
        self._constant = constant.tolist()
        self.fitted.fill_(True)

    @property
    def lacks_spread(self) -> bool:
        """Whether a channel was constant in the rows that the statistics are from."""
        return any(self._constant)

    def update_constant(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics of channels that were constant, from rows in which they may vary."""
        other = InputNorm(self.num_channels, mean, std).to(self.mean)
        new = torch.tensor(self._constant, device=self.mean.device)
        self.mean.copy_(torch.where(new, other.mean, self.mean))
        self.std.copy_(torch.where(new, other.std, self.std))
        self._constant = [a and b for a, b in zip(self._constant, other._constant, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """Standardise x of shape (n, C) or (n, C, H, W), of any number type."""
        if not x.is_floating_point():
            x = x.float()
        if x.ndim == 2:
            # Without views: on tables they would cost as much as the arithmetic.
            return (x - self.mean).div_(self.std)
        shape = (-1, *[1] * (x.ndim - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)


def channel_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel over batches, in one pass.

    Parameters
    ----------
    batches : iterable of Tensor, shape (n, C) or (n, C, H, W)
        At least one row in all.

    Returns
    -------
    mean, std : Tensor of float64, shape (C,)

    Notes
    -----
    Means and sums of squares of batches are merged as in Chan, Golub, LeVeque (1979): the plain
    sum of squares loses all digits for columns with a large mean.

    Examples
    --------
    >>> import torch
    >>> from imbmargin.modules import channel_statistics
    >>> mean, std = channel_statistics([torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0]])])
    >>> mean.item(), round(std.item(), 4)
    (4.0, 2.9439)
    """
    count = 0
    mean = squares = torch.zeros(1, dtype=torch.float64)
    for batch in batches:
        x = batch.double().transpose(0, 1).flatten(1)
        n = x.shape[1]
        if n == 0:
            continue
        var, own = torch.var_mean(x, dim=1, correction=0)
        gap = own - mean
        total = count + n
        squares = squares + n * var + gap**2 * (count * n / total)
        mean = mean + gap * (n / total)
        count = total
    return mean, (squares / max(count, 1)).sqrt()
