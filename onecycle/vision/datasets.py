"""Data sets that are ready to be trained on.

They come as `DataLoaders` of `TensorLoader`: whole in memory, normalised batch by batch on the
device they live on. `digits` ships with the package; torchvision downloads the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from onecycle.arguments import check_count, check_path
from onecycle.data.loaders import DataLoaders, TensorLoader
from onecycle.elsewhere import says_our_keywords
from onecycle.vision.cache import list_images, open_cache
from onecycle.vision.steps import ImageSteps, channel_counts, channel_statistics

Device = torch.device | str | None

_DIGITS = tuple("0123456789")
_CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def digits(batch_size: int = 64, seed: int = 42, device: Device = None) -> DataLoaders:
    """Load 1,797 handwritten digits of 8x8 pixels; they ship with the package.

    Every fifth image of each class, in an order drawn from ``seed``, is for validation: 1,437
    images to train on and 360 to validate.

    Args:
        batch_size: Samples in a batch, for training (shuffled) and for validation.
        seed: Seed of the split, and of nothing else.
        device: Where the data live; None for the CPU.

    Returns:
        Batches of images, float32 of shape ``(batch, 1, 8, 8)`` with mean 0 and standard
        deviation 1 over the training pixels, and int64 labels.

    Source:
        Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning
        Repository, doi 10.24432/C50P49, CC BY 4.0.

    Example:
        >>> digits()
        DataLoaders(train=23 batches, valid=6 batches)
    """
    with (files("onecycle") / "assets" / "digits.npz").open("rb") as file, np.load(file) as data:
        images, labels = torch.tensor(data["images"]), torch.tensor(data["labels"]).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    held_out = torch.arange(len(order)) % 5 == 0
    x = images.float().unsqueeze(1)
    std, mean = torch.std_mean(x[order[~held_out]])
    x = (x - mean) / std
    train, valid = (
        TensorLoader(x[part], labels[part], batch_size=batch_size, shuffle=shuffle)
        for part, shuffle in ((order[~held_out], True), (order[held_out], False))
    )
    return _on_device(DataLoaders(train, valid, classes=_DIGITS), device)


def mnist(
    data_dir: str | Path, batch_size: int = 512, download: bool = True, device: Device = None
) -> DataLoaders:
    """Load MNIST: 60,000 images to train on and 10,000 to validate, 28x28 grey.

    Args:
        data_dir: Folder that has, or will have, the four files in ``MNIST/raw``.
        batch_size: Samples in a batch, for training (shuffled) and for validation.
        download: Let torchvision download what is missing (11 MB).
        device: Where the data live; None for the CPU.

    Returns:
        Batches of images, float32 of shape ``(batch, 1, 28, 28)``, normalised, and int64 labels.

    Raises:
        FileNotFoundError: The files are not there and could not be downloaded.

    Example:
        >>> dls = mnist("data")  # doctest: +SKIP
    """
    from torchvision.datasets import MNIST

    try:
        parts = [MNIST(data_dir, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:  # URLError is an OSError
        names = ", ".join(Path(name).stem for name, _ in MNIST.resources)
        _raise_missing(
            "MNIST",
            Path(data_dir) / "MNIST" / "raw",
            MNIST.mirrors if download else [],
            f"{names}, unpacked,",
            error,
        )
    tensors = [(part.data.unsqueeze(1), part.targets) for part in parts]
    return image_loaders(tensors, _DIGITS, [0.1307], [0.3081], batch_size, device)


def cifar10(
    data_dir: str | Path, batch_size: int = 512, download: bool = True, device: Device = None
) -> DataLoaders:
    """Load CIFAR-10: 50,000 images to train on and 10,000 to validate, 32x32 RGB.

    Args:
        data_dir: Folder that has, or will have, the original in ``cifar-10-batches-py``. If it
            has image files in ``cifar10/{train,test}/<class>/`` instead, those are decoded.
        batch_size: Samples in a batch, for training (shuffled) and for validation.
        download: Let torchvision download what is missing (170 MB).
        device: Where the data live; None for the CPU.

    Returns:
        Batches of images, float32 of shape ``(batch, 3, 32, 32)``, normalised, and int64 labels.

    Raises:
        FileNotFoundError: The files are not there and could not be downloaded.

    Example:
        >>> dls = cifar10("data")  # doctest: +SKIP
    """
    from torchvision.datasets import CIFAR10

    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    tree = Path(data_dir) / "cifar10"
    if (tree / "train").is_dir() and (tree / "test").is_dir():
        tensors, folders = _decode_tree(tree, 32)
        classes: Sequence[str] = folders
    else:
        try:
            parts = [CIFAR10(data_dir, train=train, download=download) for train in (True, False)]
        except (RuntimeError, OSError) as error:  # URLError is an OSError
            _raise_missing(
                "CIFAR-10",
                Path(data_dir),
                [CIFAR10.url] if download else [],
                f"the folder {CIFAR10.base_folder} out of {CIFAR10.filename}",
                error,
            )
        tensors = [
            (torch.tensor(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
            for part in parts
        ]
        classes = _CIFAR10
    return image_loaders(tensors, classes, mean, std, batch_size, device)


@says_our_keywords
def image_folder(
    path: str | Path,
    size: int,
    batch_size: int = 64,
    device: Device = None,
    *,
    cache: bool | str | Path = False,
) -> DataLoaders:
    """Load a tree of image files, one folder for each class, into memory.

    Class i is the i-th folder name in sorted order. Images are decoded once, as RGB, and turned
    upright as their EXIF data say; the shorter side is resized to ``size`` and the middle square
    is kept. Transparency is left out; of grey values of 16 bits the upper 8 are taken. Each image
    takes ``3 * size**2`` bytes.

    With ``cache`` these bytes are kept in a file, which is read as memory: a second run decodes
    nothing, and there may be more of them than memory. The batches are the same. A file whose size
    or time is another than it was is decoded again, and so are all if the cache is damaged: its
    checksums are compared when it is opened, up to 256 MiB of them. Augmentation is done batch by
    batch, by callbacks such as `RandomFlip`.

    Args:
        path: Folder with ``train/<class>/*`` and ``valid/<class>/*``, or ``test`` for ``valid``.
        size: Side of the images, in pixels.
        batch_size: Samples in a batch, for training (shuffled) and for validation.
        device: Where the data live; None for the CPU. With ``cache`` each batch is put there as
            bytes, and normalised there.
        cache: A folder to keep the decoded images in; True for ``.onecycle`` in ``path``.

    Returns:
        Batches of images, float32 of shape ``(batch, 3, size, size)``, normalised by mean and
        standard deviation of the training pixels of each channel, and int64 labels. The names of
        the folders are their ``classes``.

    Raises:
        FileNotFoundError: A folder is missing or has no images.
        ValueError: Training and validation have different classes, or a file holds no image that
            can be read.

    Example:
        >>> dls = image_folder("flowers", size=64, cache=True)  # doctest: +SKIP
    """
    path = check_path("path", path)
    check_count("size", size)
    check_count("batch_size", batch_size)
    if cache is not False:
        place = path / ".onecycle" if cache is True else check_path("cache", cache)
        return _cached_loaders(path, place, size, batch_size, device)
    tensors, classes = _decode_tree(path, size)
    statistics = channel_statistics(channel_counts(tensors[0][0]))
    return image_loaders(tensors, classes, *statistics, batch_size, device)


def _cached_loaders(
    path: Path, place: Path, size: int, batch_size: int, device: Device
) -> DataLoaders:
    listed: list[tuple[list[str], Tensor, list[str]]] = []
    for folder in _parts(path):
        files, labels, classes = list_images(folder) if folder.is_dir() else ([], [], [])
        if len(set(labels)) < max(1, len(classes)):
            _open_folder(folder, size)  # says what is missing
        listed.append((files, torch.tensor(labels), classes))
    _check_classes(path, *(classes for *_, classes in listed))
    opened = open_cache(path, place, [listed[0][0], listed[1][0]], size)
    tensors = [(x, y) for x, (_, y, _) in zip(opened.images, listed, strict=True)]
    dls = image_loaders(tensors, listed[0][2], *channel_statistics(opened.counts), batch_size, None)
    for loader in (dls.train, dls.valid):
        cast(Any, loader).transform.device = device
    return dls


class _Normalize:
    """Turn batches of uint8 images into float32 of mean 0 and standard deviation 1."""

    device: Device = None  # where a batch is put before it is normalised

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean).view(-1, 1, 1) * 255
        self.std = torch.tensor(std).view(-1, 1, 1) * 255

    def __call__(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.device is not None:
            batch = tuple(part.to(self.device, non_blocking=True) for part in batch)
        x, *rest = batch
        if self.mean.device != x.device:  # once: a copy for each batch would wait for the device
            self.mean, self.std = self.mean.to(x.device), self.std.to(x.device)
        return (x.float().sub_(self.mean).div_(self.std), *rest)

    def undo(self, images: Tensor) -> Tensor:
        """Return normalised images with values in [0, 1], as they can be shown."""
        mean, std = self.mean.to(images.device), self.std.to(images.device)
        return (images * std + mean) / 255


def image_steps(dls: DataLoaders) -> ImageSteps | None:
    """Return what these data sets do to an image; ``None`` for loaders of another kind.

    Args:
        dls: Any loaders.

    Example:
        >>> image_steps(digits()) is None  # numbers of another scale, which are no image file
        True
    """
    loader = dls.train if dls.valid is None else dls.valid
    done = getattr(loader, "transform", None)
    if not isinstance(done, _Normalize) or not isinstance(loader, TensorLoader):
        return None
    mean, std = (tuple(each.flatten().tolist()) for each in (done.mean, done.std))
    return ImageSteps(loader.tensors[0].shape[-1], mean, std)


def image_loaders(
    tensors: Sequence[tuple[Tensor, Tensor]],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: Device,
) -> DataLoaders:
    """Make loaders from uint8 images and labels, normalised batch by batch.

    Args:
        tensors: Images of shape ``(samples, channels, height, width)`` and labels; the first pair
            trains, shuffled, the second validates.
        classes: The names of the classes.
        mean: Of each channel, in units of the full scale.
        std: Likewise.
        batch_size: Samples in a batch.
        device: Where the data live; None for where they are.
    """
    train, valid = (
        TensorLoader(*pair, batch_size=batch_size, shuffle=shuffle, transform=_Normalize(mean, std))
        for pair, shuffle in zip(tensors, (True, False), strict=True)
    )
    return _on_device(DataLoaders(train, valid, classes=classes), device)


def _on_device(dls: DataLoaders, device: Device) -> DataLoaders:
    if device is None:
        return dls
    train, valid = cast(TensorLoader, dls.train), cast(TensorLoader, dls.valid)
    return DataLoaders(train.to(device), valid.to(device), classes=dls.classes)


def _decode_tree(path: Path, size: int) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """Return the images and labels to train on and to validate, and the names of the classes."""
    train_data, valid_data = (_open_folder(folder, size) for folder in _parts(path))
    _check_classes(path, train_data.classes, valid_data.classes)
    return [_decode(data, size) for data in (train_data, valid_data)], train_data.classes


def _parts(path: Path) -> tuple[Path, Path]:
    valid = next((path / n for n in ("valid", "test") if (path / n).is_dir()), path / "valid")
    return path / "train", valid


def _check_classes(path: Path, train: Sequence[str], valid: Sequence[str]) -> None:
    if different := set(train) ^ set(valid):
        raise ValueError(
            f"expected the same classes in train and {_parts(path)[1].name}; "
            f"got some in only one of them: {sorted(different)}"
        )


def _open_folder(folder: Path, size: int) -> Any:
    from torchvision.datasets import ImageFolder

    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; expected images in train/<class>/ and in "
            f"valid/<class>/ or test/<class>/ under {folder.parent}"
        )
    try:
        return ImageFolder(folder, loader=ImageSteps(size, (0.0,) * 3, (1.0,) * 3).pixels)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: {error}") from None


def _decode(data: Any, size: int) -> tuple[Tensor, Tensor]:
    images = torch.empty((len(data), 3, size, size), dtype=torch.uint8)
    for i, (image, _) in enumerate(data):
        images[i] = image
    return images, torch.tensor(data.targets)


def _raise_missing(
    name: str, folder: Path, urls: Sequence[str], by_hand: str, error: Exception
) -> NoReturn:
    tried = f"could not be downloaded from {' or '.join(urls)}" if urls else "download=False"
    reason = str(error).strip().splitlines()[-1]  # torchvision has one for each mirror
    raise FileNotFoundError(
        f"{name} is not complete in {folder}, and {tried}: {reason}\n"
        f"To add it by hand, put {by_hand} into {folder}"
    ) from error
