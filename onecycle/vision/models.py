"""Small vision models: those of the papers and of the speed records that 1cycle is measured by."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from onecycle.arguments import check_count


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
    _check_counts(n_classes=n_classes, in_channels=in_channels)
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
            nn.init.zeros_(cast(torch.Tensor, layer.bias))
    return _channels_last(model)


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
    _check_counts(n_classes=n_classes, in_channels=in_channels)
    model = nn.Sequential(
        *_conv_bn_relu(in_channels, 32),
        *_conv_bn_relu(32, 64),
        nn.MaxPool2d(2),
        *_conv_bn_relu(64, 64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, n_classes),
    )
    return _channels_last(model)


def resnet9(n_classes: int = 10, in_channels: int = 3, width: int = 64) -> nn.Sequential:
    """Build the nine-layer residual network of the CIFAR-10 speed records.

    Args:
        n_classes: Classes to tell apart.
        in_channels: Channels of the images.
        width: Channels of the first layer, at least 1; the following stages have 2, 4 and 8 times
            as many. Work and parameters grow with its square: 16 suits a CPU.

    Returns:
        A model from ``(batch, in_channels, 32, 32)`` to ``(batch, n_classes)``, with 6,573,120
        parameters for CIFAR-10 as it is in the records. Sides may be any size from 8 on.

    Raises:
        TypeError, ValueError: For a ``width`` that is no number of channels.

    Source:
        David Page, "How to train your ResNet", 2018: davidcpage/cifar10-fast.

    Example:
        >>> resnet9()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    _check_counts(n_classes=n_classes, in_channels=in_channels, width=width)
    model = nn.Sequential(
        *_conv_bn_relu(in_channels, width),
        *_conv_bn_relu(width, 2 * width),
        nn.MaxPool2d(2),
        _Residual(2 * width),
        *_conv_bn_relu(2 * width, 4 * width),
        nn.MaxPool2d(2),
        *_conv_bn_relu(4 * width, 8 * width),
        nn.MaxPool2d(2),
        _Residual(8 * width),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, n_classes, bias=False),
        _Scale(0.125),
    )
    return _channels_last(model)


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
    _check_counts(n_classes=n_classes)
    return _resnet_cifar(9, n_classes)


def _check_counts(**given: int) -> None:
    for name, value in given.items():
        check_count(name, value)


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
    return _channels_last(model)


def _channels_last(model: nn.Sequential) -> nn.Sequential:
    """Lay out the filters as the faster convolutions want them, on CPUs and on tensor cores.

    The layout goes from the filters to whatever passes through the model: images may come in
    either one.
    """
    return model.to(memory_format=torch.channels_last)


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + cast(torch.Tensor, self.body(x))


class _Block(nn.Module):
    """He's basic block with a shortcut that has no parameters."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.stride = 1 if c_in == c_out else 2
        self.padding = c_out - c_in
        self.body = nn.Sequential(
            *_conv_bn_relu(c_in, c_out, self.stride), *_conv_bn_relu(c_out, c_out)[:-1]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        if self.padding:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(shortcut + self.body(x))


class _Scale(nn.Module):
    """Page's constant factor on the logits: it makes the first steps of training gentle."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor
