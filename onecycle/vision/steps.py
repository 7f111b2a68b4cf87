"""What is done to an image file before a model sees it, of numbers that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: The tag of EXIF data that says how the camera was held.
_ORIENTATION = 0x0112


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
        from PIL import Image

        if not isinstance(source, str | Path):
            return to_square(source, self.size, len(self.mean))
        with Path(source).open("rb") as file:
            try:
                with Image.open(file) as image:
                    return to_square(image, self.size, len(self.mean))
            except Exception as error:  # of a damaged file nearly anything
                raise ValueError(f"{source} holds no image that can be read: {error}") from error

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return images as the model sees them.

        Args:
            pixels: uint8, of shape ``(..., channels, size, size)``.
        """
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return pixels.float().sub_(mean.to(pixels.device)).div_(std.to(pixels.device))


def to_square(image: Any, size: int, channels: int = 3) -> Tensor:
    """Turn an image upright, resize its shorter side, and keep the middle square.

    Args:
        image: An image of PIL. What its EXIF data say of its orientation is done; transparency is
            left out; grey values of 16 bits have their upper 8.
        size: Side of the square, in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8, of shape ``(channels, size, size)``.

    Raises:
        ValueError: For pixels of 32 bits, whose scale the file does not say.
    """
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    steps = Compose([Resize(size), CenterCrop(size), PILToTensor()])
    pixels: Tensor = steps(_upright(image).convert("L" if channels == 1 else "RGB"))
    return pixels


def _upright(image: Any) -> Any:
    """Return an image as people see it, with 8 bits of each value."""
    import numpy as np
    from PIL import Image, ImageOps

    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    mode, is_16 = image.mode, image.mode.startswith("I;16")
    if is_16 or (mode == "I" and image.format == "PNG"):  # as some versions of PIL open 16 bits
        high = np.asarray(image).astype(np.int64) >> 8  # convert would take all above 255 for white
        return Image.fromarray(high.astype(np.uint8))
    if mode in ("I", "F"):
        raise ValueError(
            f"its pixels are of 32 bits (mode {mode}), and nothing says which value is white: "
            "save it with 8 or 16 bits"
        )
    if mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")  # without this detour PIL warns
    return image


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
