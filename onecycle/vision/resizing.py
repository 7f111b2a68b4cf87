"""`ProgressiveResizing`: small images at the start of a fit, full size at its end."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from onecycle.arguments import check_count, check_is, shown
from onecycle.core.callback import Callback, Stage
from onecycle.schedules.shapes import Schedule
from onecycle.vision.targets import Move, TargetPlans, Words, check_words, move_targets

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class ProgressiveResizing(Callback):
    """Train on smaller images first, which cost less, and let their size grow during the fit.

    Training images are resized on their device, with antialiasing; validation, inference and range
    tests see them at full size. The model must take images of any size, as one does that ends in
    ``AdaptiveAvgPool2d(1)``. The number of updates stays what it is, and the cycle with it.

    Targets that are maps of the images' pixels (masks, depths) get the size of their images: each
    small pixel has the value that is in its middle, so that no label is made up. Those that are
    images, floats of the same shape that are no whole numbers, are resized as the images are.

    Args:
        sizes: The shorter side of the images in pixels, as a schedule of the position in the fit:
            ``linear(16, 32)`` grows evenly, ``join([(0.5, constant(16)), (0.5, constant(32))])``
            in steps.
        multiple: Sides are rounded to a multiple of it, so that sizes are few and suit the
            model's strides. At the images' own size they are left as they are.
        target: What becomes of targets: see `Augmentation`.

    Raises:
        TypeError, ValueError: If ``sizes`` is no schedule or falls below ``multiple``; in the fit,
            for batches that are no images of floats, targets of which it is not certain what
            becomes of them, and before the first update if any size is larger than the images.

    Source:
        Howard's fast.ai entry to DAWNBench, 2018: fast.ai/posts/2018-04-30-dawnbench-fastai.html.

    Example:
        >>> from onecycle import ProgressiveResizing, linear
        >>> resizing = ProgressiveResizing(linear(16, 32))
        >>> [resizing.side(pos) for pos in (0.0, 0.3, 0.6, 1.0)]
        [16, 20, 24, 32]
    """

    stage = Stage.PREPARE
    during = "train"
    runs_in = frozenset(("fit",))

    def __init__(self, sizes: Schedule, *, multiple: int = 4, target: Words = "auto") -> None:
        check_is("sizes", sizes, Schedule, "linear(16, 32)")
        check_words(target)
        self.sizes, self.multiple = sizes, check_count("multiple", multiple)
        self.target, self._plans = target, TargetPlans(type(self).__name__)
        planned = sizes(np.linspace(0.0, 1.0, 1001))
        self._largest = float(planned.max())
        if planned.min() < self.multiple:
            raise ValueError(
                f"the smallest size is {planned.min():g} pixels, less than multiple={multiple}: "
                f"let sizes begin higher; got {shown(sizes)}"
            )

    def side(self, pos: float) -> int:
        """Return the shorter side at a position in the fit, in pixels.

        Args:
            pos: In [0, 1].
        """
        return self._rounded(self.sizes(pos))

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the sizes, and what becomes of targets."""
        return {"sizes": self.sizes, "multiple": self.multiple, "target": self.target}

    def before_fit(self, learn: Loop) -> None:
        """Refuse a fit of unknown length."""
        learn.pos  # noqa: B018 - raises where the number of updates cannot be known

    def before_batch(self, learn: Loop) -> None:
        """Resize what the model will see, and the targets that go with it."""
        plan, images = self._plans.plan(learn.xb, learn.yb, self.target), learn.xb
        full = min(images.shape[2:])
        if self._largest > full:
            raise ValueError(
                f"the largest size is {self._largest:g} pixels, and the images have "
                f"{images.shape[2]}x{images.shape[3]}: it must be at most {full}, or the loader "
                "must give larger images"
            )
        if not images.is_floating_point():
            raise TypeError(
                f"ProgressiveResizing needs images of floats; got {images.dtype}: normalise them "
                "in the loader"
            )
        side = self.side(learn.pos)
        if side < full:
            sides = [self._rounded(old * side / full) for old in images.shape[2:]]
            learn.xb = resized(images, "image", sides)
            if plan:
                move_targets(learn, plan, partial(resized, sides=sides))

    def _rounded(self, size: float) -> int:
        return self.multiple * round(size / self.multiple)


def resized(maps: Tensor, how: Move, sides: list[int]) -> Tensor:
    """Resize images with antialiasing, or other maps to the values in the middle of new pixels.

    Args:
        maps: Of shape ``(batch, channels, height, width)``; images must be floats.
        how: ``"image"`` or ``"map"``.
        sides: Height and width.

    Example:
        >>> import torch
        >>> resized(torch.arange(9).view(1, 1, 3, 3), "map", [1, 3])
        tensor([[[[3, 4, 5]]]])
    """
    if how == "image":
        return interpolate(maps, sides, mode="bilinear", antialias=True)
    for axis, side in zip((-2, -1), sides, strict=True):
        middles = 2 * torch.arange(side, device=maps.device) + 1
        maps = maps.index_select(axis, middles * maps.shape[axis] // (2 * side))
    return maps
