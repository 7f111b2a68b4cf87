"""The time of an epoch over image files: `image_folder` with a cache against torchvision's loader.

CIFAR-10 as files, of the folder in ONECYCLE_DATA. Nothing is trained; every batch of 512 is drawn,
shuffled and normalised. The other side is `ImageFolder` and a DataLoader with two workers, which
stay alive between epochs. In the second row both sides flip and crop: ours batch by batch, the
other sample by sample. Then the seconds that a second run takes to open the cache, beyond imports,
with the files and folders in the system's memory. Always the time on the wall: workers are other
processes. Let nothing else run.

    ONECYCLE_DATA=data python tests/benchmarks/images.py
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pairs import Row, arguments, clock, compare
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from onecycle import RandomCrop, RandomFlip
from onecycle.data.passes import start_pass
from onecycle.vision import image_folder
from onecycle.vision.datasets import image_steps

SIZE, BATCH, N = 32, 512, 50_000


def epoch(batches: Iterable[Any], change: Callable[[Tensor], Tensor]) -> float:
    """Draw every batch once; return the seconds."""
    start = clock()
    n = sum(len(change(x)) for x, _ in batches)
    seconds = clock() - start
    if n != N:
        raise RuntimeError(f"an epoch has {N} images, and {n} came")
    return seconds


def as_they_are(images: Tensor) -> Tensor:
    """Change nothing."""
    return images


def flip_and_crop(images: Tensor) -> Tensor:
    """Flip and crop each image on its own, as in a fit."""
    return _crop.transform(_flip.transform(images))


_flip, _crop = RandomFlip(), RandomCrop(4)


def rows(folder: Path, place: Path) -> Iterator[Row]:
    """Give the rows of the table."""
    dls = image_folder(folder, SIZE, BATCH, cache=place)
    steps = image_steps(dls)
    mean, std = ([value / 255 for value in each] for each in (steps.mean, steps.std))
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    moved = [v2.RandomHorizontalFlip(), v2.RandomCrop(SIZE, padding=4, padding_mode="reflect")]
    for name, before, change, target in (
        ("as they are", [], as_they_are, 0.05),
        ("flipped and cropped", moved, flip_and_crop, None),
    ):
        data = ImageFolder(folder / "train", transform=v2.Compose([*before, *end]))
        options = {"num_workers": 2, "persistent_workers": True}
        loader = DataLoader(data, BATCH, shuffle=True, **options)
        yield Row(
            f"50,000 image files, {name}",
            lambda change=change: epoch(start_pass(dls.train, seed=0, epoch=0), change),
            partial(epoch, loader, as_they_are),
            target,
        )


def opening(folder: Path, place: Path) -> float:
    """Return the seconds in which a cache is opened."""
    start = time.perf_counter()
    image_folder(folder, SIZE, BATCH, cache=place)
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    folder = Path(os.environ.get("ONECYCLE_DATA", "data")) / "cifar10"
    options = arguments(__doc__, pairs=3)
    options.wall = clock.wall = True
    with TemporaryDirectory() as place:
        print(f"decoded and written in {opening(folder, Path(place)):.1f} s")
        compare(rows(folder, Path(place)), options)
        seconds = statistics.median(opening(folder, Path(place)) for _ in range(5))
        print(f"a second run opens the cache of 60,000 images in {seconds:.2f} s")


if __name__ == "__main__":
    main()
