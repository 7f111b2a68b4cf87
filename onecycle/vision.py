"""Small vision models, and data sets that are ready to be trained on.

The models are the ones of the papers and of the speed records that 1cycle is measured by. The
data sets come as `DataLoaders` of `TensorLoader`: whole in memory, normalised batch by batch on
the device they live on. `digits` ships with the package; torchvision downloads the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.data import DataLoaders, TensorLoader

Device = torch.device | str | None

# --- models -----------------------------------------------------------------------------------


def lenet(n_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Build Caffe's LeNet, the MNIST model of Smith's papers.

    Unlike LeCun's, it has no nonlinearity after its convolutions; weights start as Caffe's
    "xavier" filler has them (uniform, variance 1/fan_in), biases at 0.

    Args:
        n_classes: Classes to tell apart.
        in_channels: Channels of the images.

    Returns:
        A model from ``(batch, in_channels, 28, 28)`` to ``(batch, n_classes)``, with 431,080
        parameters as MNIST needs it.

    Source:
        BVLC/caffe, examples/mnist/lenet_train_test.prototxt; trained with 1cycle in Smith,
        "A disciplined approach to neural network hyper-parameters", arXiv 1803.09820, table 2.

    Example:
        >>> lenet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    model = nn.Sequential(
        nn.Conv2d(in_channels, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * 4 * 4, 500),
        nn.ReLU(),
        nn.Linear(500, n_classes),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(cast(Tensor, layer.bias))
    return model


def digits_cnn(n_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """Build a small convolutional network with batch normalisation for `digits`.

    Five epochs of AdamW with one cycle up to 0.01, in batches of 64, take it to 99.5 %.

    Args:
        n_classes: Classes to tell apart.
        in_channels: Channels of the images.

    Returns:
        A model from ``(batch, in_channels, 8, 8)`` to ``(batch, n_classes)``; sides may be any
        size from 2 on. It has 56,554 parameters for ten classes of grey images.

    Example:
        >>> digits_cnn()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        *_conv_bn_relu(in_channels, 32),
        *_conv_bn_relu(32, 64),
        nn.MaxPool2d(2),
        *_conv_bn_relu(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, n_classes),
    )


def resnet9(n_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Build the nine-layer residual network of the CIFAR-10 speed records.

    Args:
        n_classes: Classes to tell apart.
        in_channels: Channels of the images.

    Returns:
        A model from ``(batch, in_channels, 32, 32)`` to ``(batch, n_classes)``, with 6,573,120
        parameters for CIFAR-10. Sides may be any size from 8 on.

    Source:
        David Page, "How to train your ResNet", 2018: davidcpage/cifar10-fast.

    Example:
        >>> resnet9()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        *_conv_bn_relu(in_channels, 64),
        *_conv_bn_relu(64, 128),
        nn.MaxPool2d(2),
        _Residual(128),
        *_conv_bn_relu(128, 256),
        nn.MaxPool2d(2),
        *_conv_bn_relu(256, 512),
        nn.MaxPool2d(2),
        _Residual(512),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, n_classes, bias=False),
        _Scale(0.125),
    )


def resnet56(n_classes: int = 10) -> nn.Sequential:
    """Build the 56-layer CIFAR residual network, the model of the super-convergence paper.

    Shortcuts have no parameters: where a block halves the image, its input is subsampled and
    padded with channels of zeros.

    Args:
        n_classes: Classes to tell apart.

    Returns:
        A model from ``(batch, 3, 32, 32)`` to ``(batch, n_classes)``, with 853,018 parameters
        for ten classes.

    Source:
        He, Zhang, Ren, Sun, "Deep residual learning for image recognition", arXiv 1512.03385,
        section 4.2, option A; Smith and Topin, "Super-convergence", arXiv 1708.07120.

    Example:
        >>> resnet56()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return _resnet_cifar(9, n_classes)


def _resnet_cifar(n: int, n_classes: int) -> nn.Sequential:
    """Build the CIFAR residual network of depth 6n + 2: three stages of n two-layer blocks."""
    layers: list[nn.Module] = list(_conv_bn_relu(3, 16))
    channels = 16
    for width in (16, 32, 64):
        for _ in range(n):
            layers.append(_Block(channels, width))
            channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_classes)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _conv_bn_relu(c_in: int, c_out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)


class _Residual(nn.Module):
    """Page's residual: two convolutions beside the identity, no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_bn_relu(channels, channels), *_conv_bn_relu(channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.body(x))


class _Block(nn.Module):
    """He's basic block with a shortcut that has no parameters."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.stride = 1 if c_in == c_out else 2
        self.padding = c_out - c_in
        self.body = nn.Sequential(
            *_conv_bn_relu(c_in, c_out, self.stride), *_conv_bn_relu(c_out, c_out)[:-1]
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.padding:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(shortcut + self.body(x))


class _Scale(nn.Module):
    """Page's constant factor on the logits: it makes the first steps of training gentle."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


# --- data sets --------------------------------------------------------------------------------


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
    return _on_device(DataLoaders(train, valid), device)


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
    return _image_loaders(tensors, [0.1307], [0.3081], batch_size, device)


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
        tensors = _decode_tree(tree, 32)
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
    return _image_loaders(tensors, mean, std, batch_size, device)


def image_folder(
    path: str | Path, size: int, batch_size: int = 64, device: Device = None
) -> DataLoaders:
    """Load a tree of image files, one folder for each class, into memory.

    Class i is the i-th folder name in sorted order. Images are decoded once, as RGB; the shorter
    side is resized to ``size`` and the middle square is kept. All of them take
    ``3 * size**2`` bytes each.

    Args:
        path: Folder with ``train/<class>/*`` and ``valid/<class>/*``, or ``test`` for ``valid``.
        size: Side of the images, in pixels.
        batch_size: Samples in a batch, for training (shuffled) and for validation.
        device: Where the data live; None for the CPU.

    Returns:
        Batches of images, float32 of shape ``(batch, 3, size, size)``, normalised by mean and
        standard deviation of the training pixels of each channel, and int64 labels.

    Raises:
        FileNotFoundError: A folder is missing or has no images.
        ValueError: Training and validation have different classes.

    Example:
        >>> dls = image_folder("flowers", size=64)  # doctest: +SKIP
    """
    tensors = _decode_tree(Path(path), size)
    mean, std = _channel_statistics(tensors[0][0])
    return _image_loaders(tensors, mean, std, batch_size, device)


class _Normalize:
    """Turn batches of uint8 images into float32 of mean 0 and standard deviation 1."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean).view(-1, 1, 1) * 255
        self.std = torch.tensor(std).view(-1, 1, 1) * 255

    def __call__(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = batch
        if self.mean.device != x.device:  # once: a copy for each batch would wait for the device
            self.mean, self.std = self.mean.to(x.device), self.std.to(x.device)
        return (x.float().sub_(self.mean).div_(self.std), *rest)


def _image_loaders(
    tensors: Sequence[tuple[Tensor, Tensor]],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: Device,
) -> DataLoaders:
    """Make loaders from uint8 images and labels: the first pair trains, the second validates."""
    train, valid = (
        TensorLoader(*pair, batch_size=batch_size, shuffle=shuffle, transform=_Normalize(mean, std))
        for pair, shuffle in zip(tensors, (True, False), strict=True)
    )
    return _on_device(DataLoaders(train, valid), device)


def _on_device(dls: DataLoaders, device: Device) -> DataLoaders:
    if device is None:
        return dls
    train, valid = cast(TensorLoader, dls.train), cast(TensorLoader, dls.valid)
    return DataLoaders(train.to(device), valid.to(device))


def _decode_tree(path: Path, size: int) -> list[tuple[Tensor, Tensor]]:
    valid = next((path / n for n in ("valid", "test") if (path / n).is_dir()), path / "valid")
    train_data, valid_data = _open_folder(path / "train", size), _open_folder(valid, size)
    different = set(train_data.classes) ^ set(valid_data.classes)
    if different:
        raise ValueError(
            f"expected the same classes in train and {valid.name}; "
            f"got some in only one of them: {sorted(different)}"
        )
    return [_decode(data, size) for data in (train_data, valid_data)]


def _open_folder(folder: Path, size: int) -> Any:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; expected images in train/<class>/ and in "
            f"valid/<class>/ or test/<class>/ under {folder.parent}"
        )
    to_square = Compose([Resize(size), CenterCrop(size), PILToTensor()])
    try:
        return ImageFolder(folder, transform=to_square)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: {error}") from None


def _decode(data: Any, size: int) -> tuple[Tensor, Tensor]:
    images = torch.empty((len(data), 3, size, size), dtype=torch.uint8)
    for i, (image, _) in enumerate(data):
        images[i] = image
    return images, torch.tensor(data.targets)


def _channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, in units of the full scale."""
    # From counts of the 256 values: exact, and without a float copy of all images.
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256) / channel.numel()
        mean.append(float((share * values).sum()))
        std.append(float((share * (values - mean[-1]) ** 2).sum().sqrt()))
    return mean, std


def _raise_missing(
    name: str, folder: Path, urls: Sequence[str], by_hand: str, error: Exception
) -> NoReturn:
    tried = f"could not be downloaded from {' or '.join(urls)}" if urls else "download=False"
    reason = str(error).strip().splitlines()[-1]  # torchvision has one for each mirror
    raise FileNotFoundError(
        f"{name} is not complete in {folder}, and {tried}: {reason}\n"
        f"To add it by hand, put {by_hand} into {folder}"
    ) from error
