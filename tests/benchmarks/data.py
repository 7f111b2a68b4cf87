"""The time of an epoch over 60,000 images in memory: `TensorLoader` against a DataLoader.

Nothing is trained; every batch of 256 is drawn, shuffled. The images of the second row are
uint8, as they come from a file: `TensorLoader` normalises and flips them batch by batch on the
device they live on, the DataLoader's data set sample by sample with torchvision. The other rows are
one DataLoader over a `TensorDataset`, read by a fit and by torch.

    python tests/benchmarks/data.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from pairs import Row, arguments, clock, compare
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from onecycle import TensorLoader
from onecycle.data.passes import start_pass
from onecycle.optim.heap import kept_heap

N, BATCH = 60_000, 256
MEAN, STD = 0.1307, 0.3081


def epoch(loader: Iterable[Any]) -> float:
    """Draw every batch once; return the seconds."""
    start = clock()
    n = sum(len(x) for x, _ in loader)
    seconds = clock() - start
    if n != N:
        raise RuntimeError(f"an epoch has {N} samples, and {n} came")
    return seconds


def fit_epoch(loader: DataLoader[Any]) -> float:
    """Draw every batch once, as a fit does."""
    with kept_heap():
        return epoch(start_pass(loader, seed=0, epoch=0))


def normalize_and_flip(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Normalise a batch, and flip about every second image from left to right."""
    x, y = batch
    x = x.float().div_(255).sub_(MEAN).div_(STD)
    flipped = torch.rand(len(x), device=x.device).lt(0.5).view(-1, 1, 1, 1)
    return torch.where(flipped, x.flip(3), x), y


class Images(Dataset[Any]):
    """Images in memory that are transformed one by one, as torchvision's data sets do."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        from torchvision.transforms import v2

        self.x, self.y = x, y
        self.transform = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([MEAN], [STD]),
            ]
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.x[i]), self.y[i]


def rows() -> Iterator[Row]:
    """Give the rows of the table."""
    torch.manual_seed(0)
    x, y = torch.randn(N, 784), torch.randint(0, 10, (N,))
    yield Row(
        "60,000 x 784 float32",
        partial(epoch, TensorLoader(x, y, batch_size=BATCH, shuffle=True)),
        partial(epoch, DataLoader(TensorDataset(x, y), BATCH, shuffle=True)),
        0.12,
    )
    for width in (784, 10):
        loader = DataLoader(TensorDataset(x[:, :width].contiguous(), y), BATCH, shuffle=True)
        yield Row(
            f"60,000 x {width} float32, a DataLoader in a fit",
            partial(fit_epoch, loader),
            partial(epoch, loader),
            0.2,
        )
    images = torch.randint(0, 256, (N, 1, 28, 28), dtype=torch.uint8)
    ours = TensorLoader(images, y, batch_size=BATCH, shuffle=True, transform=normalize_and_flip)
    yield Row(
        "60,000 x 28 x 28 uint8, normalised, flipped",
        partial(epoch, ours),
        partial(epoch, DataLoader(Images(images, y), BATCH, shuffle=True)),
        0.15,
    )


if __name__ == "__main__":
    compare(rows(), arguments(__doc__, pairs=5))
