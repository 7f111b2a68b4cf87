"""Data sets of torchvision that tell classes apart, by their names, whole in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from onecycle.data.loaders import DataLoaders
from onecycle.vision.datasets import Device, image_loaders
from onecycle.vision.steps import channel_counts, channel_statistics, to_square

#: Images that are decoded at once.
_FEW = 128


class NamedSet(NamedTuple):
    """How torchvision is asked for a data set.

    Attributes:
        train: The keywords of its part to train on.
        valid: Those of the part to validate on.
        side: The side of its images in pixels, or what suits them where they are of many sizes.
        is_files: Whether it has a file for each image.
    """

    train: dict[str, Any]
    valid: dict[str, Any]
    side: int
    is_files: bool = False


def _by_flag(side: int) -> NamedSet:
    return NamedSet({"train": True}, {"train": False}, side)


def _by_split(valid: str, side: int, *, train: str = "train", is_files: bool = True) -> NamedSet:
    return NamedSet({"split": train}, {"split": valid}, side, is_files)


#: By the name of its class in `torchvision.datasets`: those that fit into memory.
NAMED = {
    "MNIST": _by_flag(28),
    "FashionMNIST": _by_flag(28),
    "KMNIST": _by_flag(28),
    "USPS": _by_flag(16),
    "CIFAR10": _by_flag(32),
    "CIFAR100": _by_flag(32),
    "SVHN": _by_split("test", 32, is_files=False),
    "STL10": _by_split("test", 96, is_files=False),
    "GTSRB": _by_split("test", 48),
    "DTD": _by_split("val", 224),
    "FGVCAircraft": _by_split("test", 224, train="trainval"),
    "Flowers102": _by_split("val", 224),
    "Imagenette": _by_split("val", 224),
    "OxfordIIITPet": _by_split("test", 224, train="trainval"),
}


def named_images(
    name: str, root: Path, size: int, batch_size: int, device: Device = None
) -> DataLoaders:
    """Load a data set of torchvision into memory; download it where it is missing.

    Args:
        name: A key of `NAMED`.
        root: The folder that torchvision reads it from.
        size: Side of the images in pixels: the shorter side is resized to it, and the middle
            square is kept; grey images get three equal channels.
        batch_size: Samples in a batch, for training (shuffled) and for validation.
        device: Where each batch is put, as bytes, before it is normalised there.

    Returns:
        As `onecycle.vision.image_folder` does.

    Raises:
        FileNotFoundError: Files are missing, and could not be downloaded.
        ImportError: The data set needs a package that is missing.
    """
    known = NAMED[name]
    parts = [_open(name, root, part) for part in (known.train, known.valid)]
    tensors = [_decode(part, size, known.is_files) for part in parts]
    n = 1 + max(int(labels.max()) for _, labels in tensors)
    named = getattr(parts[0], "classes", None)
    classes = [_words(each) for each in named] if named and len(named) == n else range(n)
    statistics = channel_statistics(channel_counts(tensors[0][0]))
    dls = image_loaders(tensors, list(map(str, classes)), *statistics, batch_size, None)
    for loader in (dls.train, dls.valid):
        loader.transform.device = device  # type: ignore[union-attr]
    return dls


def _words(name: Any) -> str:
    """Return the name of a class; Imagenette has several for each."""
    return str(name[0] if isinstance(name, Sequence) and not isinstance(name, str) else name)


def _open(name: str, root: Path, part: dict[str, Any]) -> Any:
    from torchvision import datasets

    try:
        return getattr(datasets, name)(root, download=True, **part)
    except ImportError as error:
        raise ImportError(f"{name} needs a package beside torchvision: {error}") from error
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        reason = str(error).strip().splitlines()[-1]  # torchvision has one for each mirror
        raise FileNotFoundError(
            f"{name} is not complete in {root}, and could not be downloaded: {reason}\n"
            f"Put what torchvision.datasets.{name}({str(root)!r}) reads there, or run this once "
            "where there is a network"
        ) from error


def _decode(part: Any, size: int, is_files: bool) -> tuple[Tensor, Tensor]:
    loader = DataLoader(
        _Pixels(part, size),
        batch_size=_FEW,
        num_workers=min(os.cpu_count() or 1, 16) if is_files else 0,
        collate_fn=_stacked,
        generator=torch.Generator(),  # the seed of workers comes from it, not from the global one
    )
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def _stacked(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


class _Pixels(Dataset[tuple[Tensor, int]]):
    """The images of a data set as squares, with their labels."""

    def __init__(self, part: Any, size: int) -> None:
        self._part, self._size = part, size

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image, label = self._part[i]
        return to_square(image, self._size), int(label)
