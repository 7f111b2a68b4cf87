"""What is done to an image file before a model sees it, of numbers that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageSteps:
    """What `onecycle.vision.image_folder` does to an image, to be done to another one.

    Attributes:
        size: Side of the images in pixels: the shorter side is resized to it, and the middle
            square is kept.
        mean: What is subtracted from each channel, on the scale of 0 to 255.
        std: What it is divided by then. One channel stands for grey images, three for RGB.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, source: Any) -> Tensor:
        """Return the pixels of an image, as they are before they are normalised.

        Args:
            source: An image file, or an image of PIL.

        Returns:
            uint8, of shape ``(channels, size, size)``.

        Raises:
            ValueError: If the file holds no image that can be read.
            OSError: If it cannot be opened.
        """
        from PIL import Image, UnidentifiedImageError

        if not isinstance(source, str | Path):
            return to_square(source, self.size, len(self.mean))
        with Path(source).open("rb") as file:
            try:
                with Image.open(file) as image:
                    return to_square(image, self.size, len(self.mean))
            except (UnidentifiedImageError, OSError, SyntaxError) as error:
                raise ValueError(f"{source} holds no image that can be read: {error}") from None

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return images as the model sees them.

        Args:
            pixels: uint8, of shape ``(..., channels, size, size)``.
        """
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return pixels.float().sub_(mean.to(pixels.device)).div_(std.to(pixels.device))


def to_square(image: Any, size: int, channels: int = 3) -> Tensor:
    """Resize the shorter side of an image, and keep its middle square.

    Args:
        image: An image of PIL.
        size: Side of the square, in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8, of shape ``(channels, size, size)``.
    """
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    steps = Compose([Resize(size), CenterCrop(size), PILToTensor()])
    pixels: Tensor = steps(image.convert("L" if channels == 1 else "RGB"))
    return pixels


def channel_counts(images: Tensor) -> Tensor:
    """Count the values of each channel, int64 of shape ``(channels, 256)``.

    Args:
        images: uint8, of shape ``(batch, channels, height, width)``.
    """
    return torch.stack([torch.bincount(each.flatten(), minlength=256) for each in images.unbind(1)])


def channel_statistics(counts: Tensor) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, in units of the full scale.

    Args:
        counts: What `channel_counts` returned: exact, and without a float copy of all images.

    Example:
        >>> channel_statistics(channel_counts(torch.tensor([0, 255]).byte().view(2, 1, 1, 1)))
        ([0.5], [0.5])
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in counts:
        share = channel / channel.sum()
        mean.append(float((share * values).sum()))
        std.append(float((share * (values - mean[-1]) ** 2).sum().sqrt()))
    return mean, std
