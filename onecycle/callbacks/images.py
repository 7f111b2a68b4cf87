"""`Augmentation`, the base of what changes training images, and what all of those share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from onecycle.core.callback import Callback, Stage

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


def check_images(xb: Any, who: str) -> Tensor:
    """Return what the model gets, if it is images, or refuse it.

    Args:
        xb: What should have the shape ``(batch, channels, height, width)``.
        who: What cannot work with anything else.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has another number of dimensions.
    """
    if not isinstance(xb, Tensor):
        raise TypeError(
            f"{who} changes one tensor of images in learn.xb; got a {type(xb).__name__}: transform "
            "such batches in the loader"
        )
    if xb.ndim != 4:
        raise ValueError(
            f"{who} expects images of shape (batch, channels, height, width); got "
            f"{tuple(xb.shape)}: reshape them in the loader (grey images need a dimension for "
            "their one channel)"
        )
    return xb


def reflected(index: Tensor, size: int) -> Tensor:
    """Reflect indices that lie outside of an axis at its ends, without repeating the end.

    Args:
        index: Integers in ``[-(size - 1), 2 * (size - 1)]``.
        size: The length of the axis.

    Example:
        >>> import torch
        >>> reflected(torch.tensor([-2, -1, 0, 3, 4]), 4)
        tensor([2, 1, 0, 3, 2])
    """
    last = size - 1
    return last - (last - index.abs()).abs()
