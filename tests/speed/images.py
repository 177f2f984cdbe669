"""Training a ResNet-32 on images: images a second."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from skorch import NeuralNetClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from imbmargin import MaxMarginClassifier
from imbmargin.modules import ResNet32
from tests.speed.epochs import EpochStamps, Stamps, time_epochs, train_bare, train_by_hand
from tests.speed.measure import Comparison, run_rounds

CLASSES = 10
MEAN, STD = (0.5, 0.5, 0.5), (0.289, 0.289, 0.289)
NOTE = (
    "Epochs after the first; crop and flip, SGD (momentum 0.9, weight decay 2e-4), cross-entropy. "
    "bound: steps on one fixed batch, channels last, fused SGD. published: PIL images, torchvision "
    "transforms and a DataLoader with 0 or 2 workers, float32; skorch has the same data set."
)


@dataclass(frozen=True)
class Work:
    """Number of images and of epochs."""

    images: int
    batch: int
    epochs: int
    device: str = "cpu"

    def make_data(self) -> tuple[np.ndarray, np.ndarray]:
        """Return random uint8 images (n, 32, 32, 3), as CIFAR's arrays are, and labels."""
        generator = np.random.default_rng(0)
        X = generator.integers(256, size=(self.images, 32, 32, 3), dtype=np.uint8)
        return X, generator.integers(CLASSES, size=self.images)


class PublishedImages(Dataset):
    """Images decoded and transformed one by one, as in the field's scripts."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.data, self.targets = X, y.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def make_network() -> nn.Module:
    """Return the network of all but imbmargin: its input comes normalised."""
    network = ResNet32(num_classes=CLASSES)
    network.input_norm = nn.Identity()
    return network


def make_optimizer(network: nn.Module, fused: bool | None = None) -> torch.optim.SGD:
    """Return the optimizer of the field."""
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4}
    return torch.optim.SGD(network.parameters(), **settings, fused=fused)


def fit_bound(X: np.ndarray, y: np.ndarray, work: Work, dtype: torch.dtype | None = None) -> Stamps:
    """Bare steps on the first batch, normalised."""
    x = torch.from_numpy(X[: work.batch]).permute(0, 3, 1, 2).float()
    # Of a permuted array the memory is channels-last already; that stays so.
    x = (x / 255 - MEAN[0]) / STD[0]
    network = make_network().to(work.device, memory_format=torch.channels_last)
    target = torch.from_numpy(y[: work.batch]).to(work.device)
    batch = x.to(work.device).contiguous(memory_format=torch.channels_last), target
    steps = work.images // work.batch
    return train_bare(network, make_optimizer(network, True), batch, work.epochs, steps, dtype)


def fit_published(X: np.ndarray, y: np.ndarray, work: Work, workers: int) -> Stamps:
    """Train as the field's scripts do."""
    network = make_network().to(work.device)
    with warnings.catch_warnings():
        # Newer Pythons warn of the fork that a DataLoader makes, and it of more workers than cores.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        loader = DataLoader(PublishedImages(X, y), work.batch, shuffle=True, num_workers=workers)
        optimizer = make_optimizer(network)
        return train_by_hand(network, optimizer, lambda: loader, work.epochs, work.device)


def fit_skorch(X: np.ndarray, y: np.ndarray, work: Work) -> Stamps:
    """Train skorch's own classifier on the same data set."""
    stamps: Stamps = []
    NeuralNetClassifier(
        make_network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        optimizer__weight_decay=2e-4,
        lr=0.1,
        batch_size=work.batch,
        max_epochs=work.epochs,
        iterator_train__shuffle=True,
        train_split=None,
        device=work.device,
        verbose=0,
        callbacks=[EpochStamps(stamps)],
    ).fit(PublishedImages(X, y), None)
    return stamps


def fit_imbmargin(X: np.ndarray, y: np.ndarray, work: Work, precision: str) -> Stamps:
    """Train this package's classifier on the array, with its defaults for images."""
    stamps: Stamps = []
    MaxMarginClassifier(
        loss="cross_entropy",
        precision=precision,
        batch_size=work.batch,
        max_epochs=work.epochs,
        device=work.device,
        callbacks=[EpochStamps(stamps)],
    ).fit(X, y)
    return stamps


FITS = {
    "bound float32": fit_bound,
    "bound bfloat16": partial(fit_bound, dtype=torch.bfloat16),
    "published, 0 workers": partial(fit_published, workers=0),
    "published, 2 workers": partial(fit_published, workers=2),
    "skorch": fit_skorch,
    "imbmargin float32": partial(fit_imbmargin, precision="float32"),
    "imbmargin bfloat16": partial(fit_imbmargin, precision="bfloat16"),
}


def run(
    rounds: int | None = None, quick: bool = False, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Run the case, and yield the result of each comparison."""
    # A device that is so much faster needs more to do.
    images = 2_560 if device == "cpu" else 6_400
    work = Work(16, 8, 2, device) if quick else Work(images, 128, 2, device)
    X, y = work.make_data()
    fits = dict(FITS)
    if device != "cpu":
        fits["published, 8 workers"] = partial(fit_published, workers=8)
    runs = {fit: time_epochs(partial(fits[fit], X, y, work), work.images) for fit in fits}
    references = ["bound float32", "bound bfloat16", "published, 0 workers"]
    comparison = Comparison(
        title=f"images: ResNet-32, {work.images:,} images of 32x32x3, batch {work.batch}",
        unit="images a second",
        contenders=runs,
        references={reference: list(runs) for reference in references},
        note=NOTE,
    )
    yield run_rounds(comparison, rounds or 3, warm_up=not quick)
