"""Batches of images: what is refused as none, and reflection at their edges."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
