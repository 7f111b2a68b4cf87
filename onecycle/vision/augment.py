"""Augmentation of image batches on their device, decided for each sample on its own.

The transforms of torchvision make one decision for a whole batch. These draw one for each sample,
in a few operations on the whole batch, without making the device wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onecycle.arguments import check_count, check_fraction
from onecycle.core.callback import Callback, Stage
from onecycle.vision.images import check_images, reflected

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class Augmentation(Callback):
    """Base of callbacks that change training images at random, each sample on its own.

    A subclass defines `transform`. It works on the whole batch on its device, in fits and range
    tests; validation and inference see the images as they are, `Learner.tta` excepted. Random
    numbers come from torch's global generator of the images' device, which a resumed fit restores.

    Example:
        >>> import torch
        >>> class Noise(Augmentation):
        ...     def transform(self, images):
        ...         return images + 0.1 * torch.randn_like(images)
        >>> Noise().transform(torch.zeros(8, 3, 4, 4)).shape
        torch.Size([8, 3, 4, 4])
    """

    stage = Stage.PREPARE
    during = "train"

    def transform(self, images: Tensor) -> Tensor:
        """Return changed images; those given may be the data set's own memory.

        Args:
            images: Of shape ``(batch, channels, height, width)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transform(images)")

    def before_batch(self, learn: Loop) -> None:
        """Change what the model will see."""
        learn.xb = self.transform(check_images(learn.xb, type(self).__name__))


class RandomFlip(Augmentation):
    """Mirror each training image from left to right with a probability.

    Args:
        p: The probability, in [0, 1].

    Raises:
        TypeError, ValueError: For what is no probability; in the fit, for batches that are no
            images.

    Example:
        >>> from onecycle import RandomFlip
        >>> RandomFlip(p=1.0).transform(torch.arange(3).view(1, 1, 1, 3)).tolist()
        [[[[2, 1, 0]]]]
    """

    def __init__(self, p: float = 0.5) -> None:
        self.p = check_fraction("p", p)

    def transform(self, images: Tensor) -> Tensor:
        """Return the images, some of them mirrored."""
        flipped = torch.rand(len(images), device=images.device) < self.p
        return torch.where(flipped.view(-1, 1, 1, 1), images.flip(-1), images)


class RandomCrop(Augmentation):
    """Shift each training image at random; what comes into view is its own reflection.

    As if each side were padded by reflection, and a piece of the old size cut out: the images
    keep their size.

    Args:
        padding: The largest shift in each direction, in pixels; less than the sides.

    Raises:
        TypeError, ValueError: For what is no number of pixels; in the fit, for batches that are
            no images, or too small for the padding.

    Example:
        >>> from onecycle import RandomCrop
        >>> RandomCrop(padding=4).transform(torch.zeros(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(self, padding: int = 4) -> None:
        self.padding = check_count("padding", padding)

    def transform(self, images: Tensor) -> Tensor:
        """Return the images, each of them shifted."""
        n, channels, height, width = images.shape
        if self.padding >= min(height, width):
            raise ValueError(
                f"RandomCrop cannot reflect {self.padding} pixels of images of {height}x{width}: "
                f"padding must be at most {min(height, width) - 1}"
            )
        shifts = torch.randint(
            -self.padding, self.padding + 1, (2, n, 1), device=images.device
        ).unbind(0)
        rows, columns = (
            reflected(torch.arange(size, device=images.device) + shift, size)
            for size, shift in zip((height, width), shifts, strict=True)
        )
        pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(n, 1, -1)
        chosen = images.reshape(n, channels, -1).gather(2, pixels.expand(-1, channels, -1))
        return chosen.view(images.shape)


class Cutout(Augmentation):
    """Set a square of each training image to 0, which is the mean of normalised images.

    The middle of the square may be any pixel, so that it can reach over the edge and hide less:
    that matters more than its shape.

    Args:
        size: The side of the square in pixels, at most the shorter side of the images.

    Raises:
        TypeError, ValueError: For what is no number of pixels; in the fit, for batches that are
            no images, or smaller than the square.

    Source:
        DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
        arXiv:1708.04552, section 3.2.

    Example:
        >>> from onecycle import Cutout
        >>> Cutout(8).transform(torch.ones(4, 3, 32, 32)).min()
        tensor(0.)
    """

    def __init__(self, size: int) -> None:
        self.size = check_count("size", size)

    def transform(self, images: Tensor) -> Tensor:
        """Return the images, each of them with a hole."""
        height, width = images.shape[2:]
        if self.size > min(height, width):
            raise ValueError(
                f"Cutout cannot hide a square of {self.size} pixels in images of "
                f"{height}x{width}: size must be at most {min(height, width)}"
            )
        rows, columns = (self._hidden(len(images), side, images.device) for side in (height, width))
        hidden = rows.view(-1, 1, height, 1) & columns.view(-1, 1, 1, width)
        return images.masked_fill(hidden, 0)

    def _hidden(self, n: int, side: int, device: torch.device) -> Tensor:
        """Draw for each sample where along one side the square is, shape ``(n, side)``."""
        first = torch.randint(side, (n, 1), device=device) - self.size // 2
        distance = torch.arange(side, device=device) - first
        return (distance >= 0) & (distance < self.size)
