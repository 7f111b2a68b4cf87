"""Augmentation of image batches on their device, decided for each sample on its own.

The transforms of torchvision make one decision for a whole batch. These draw one for each sample,
in a few operations on the whole batch, without making the device wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onecycle.arguments import check_count, check_fraction
from onecycle.core.callback import Callback, Stage
from onecycle.vision.images import reflected
from onecycle.vision.targets import Move, TargetPlans, Words, check_words, move_targets

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class Augmentation(Callback):
    """Base of callbacks that change training images at random, each sample on its own.

    A subclass defines `transform`. It works on the whole batch on its device, in fits and range
    tests; validation and inference see the images as they are, `Learner.tta` excepted. Random
    numbers come from torch's global generator of the images' device, which a resumed fit restores.

    A target that is a map of the images' pixels (masks, depths, heat maps, the images themselves)
    has to move as they do. If a subclass moves pixels, it defines `transform_target` beside
    `transform`, and keeps what `transform` drew; if it leaves every pixel in its place, it says
    ``target = "keep"``. One that says neither is refused for such targets.

    Attributes:
        target: What becomes of targets. ``"auto"`` moves maps, integers and floats of shape
            ``(batch, ..., height, width)``; leaves labels of shape ``(batch,)`` or ``(batch, k)``;
            and refuses, before the first update, what may say where something is (boxes, key
            points) or in which direction (several numbers for a pixel, some below 0, that are not
            the images themselves). ``"map"`` moves any of the images' size, and ``"keep"`` leaves
            whatever comes, also what happens to have their size and is no map. For targets of
            several parts it may be a tuple or dict of these.

    Example:
        >>> import torch
        >>> class Noise(Augmentation):
        ...     target = "keep"  # no pixel moves
        ...
        ...     def transform(self, images):
        ...         return images + 0.1 * torch.randn_like(images)
        >>> Noise().transform(torch.zeros(8, 3, 4, 4)).shape
        torch.Size([8, 3, 4, 4])
        >>> class UpsideDown(Augmentation):
        ...     def transform(self, images):
        ...         self.turned = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        ...         return self.transform_target(images)
        ...
        ...     def transform_target(self, target):
        ...         return torch.where(self.turned, target.flip(-2), target)
    """

    stage = Stage.PREPARE
    during = "train"
    target: Words = "auto"
    _plans: TargetPlans | None = None

    def transform(self, images: Tensor) -> Tensor:
        """Return changed images; those given may be the data set's own memory.

        Args:
            images: Of shape ``(batch, channels, height, width)``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transform(images)")

    def transform_target(self, target: Tensor) -> Tensor:
        """Return a target moved as `transform` has moved its images in its last call.

        Args:
            target: A map of the images' pixels, of shape ``(batch, channels, height, width)``,
                whatever the shape of the target itself, and of any dtype: labels have no means.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transform_target(target)")

    def transform_back(self, pred: Tensor) -> Tensor:
        """Turn predictions back that are maps of the images of the last `transform`.

        `Learner.tta` with ``n=`` needs it for such predictions, and nothing else does.

        Args:
            pred: Of shape ``(batch, channels, height, width)``, the grid of the images or a coarser
                or finer one, to be refused if that cannot be turned back.

        Returns:
            The same shape, each pixel where it was, and 0 where the moved images did not show it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define transform_back(pred)")

    def before_batch(self, learn: Loop) -> None:
        """Change what the model will see, and the targets that go with it."""
        if self._plans is None:
            self._plans = TargetPlans(type(self).__name__, self._require_target)
        plan = self._plans.plan(learn.xb, learn.yb, self.target)
        learn.xb = self.transform(learn.xb)
        if plan:
            move_targets(learn, plan, self._moved)

    def _require_target(self) -> None:
        require_method(self, "transform_target", "targets that are maps of the images (masks)")

    def _moved(self, target: Tensor, how: Move) -> Tensor:
        return self.transform_target(target)


def require_method(augmentation: Augmentation, method: str, why: str) -> None:
    """Refuse an augmentation that does not say how what belongs to its images goes along.

    Args:
        augmentation: Any.
        method: ``"transform_target"`` or ``"transform_back"``; to be defined where ``transform``
            is, or below: an inherited one would not know of a new ``transform``.
        why: What it is needed for.

    Raises:
        TypeError: If it is not defined there.
    """
    kinds = type(augmentation).__mro__
    owner, own = (next(c for c in kinds if name in vars(c)) for name in (method, "transform"))
    if owner is Augmentation or kinds.index(owner) > kinds.index(own):
        raise TypeError(
            f"{own.__name__} defines transform(images), and for {why} it must define {method} "
            'too; or, if it leaves every pixel in its place, say target = "keep"'
        )


class RandomFlip(Augmentation):
    """Mirror each training image from left to right with a probability.

    Args:
        p: The probability, in [0, 1].
        target: What becomes of targets: see `Augmentation`. Maps are mirrored with their images.

    Raises:
        TypeError, ValueError: For what is no probability; in the fit, for batches that are no
            images, or targets of which it is not certain what becomes of them.

    Example:
        >>> from onecycle import RandomFlip
        >>> RandomFlip(p=1.0).transform(torch.arange(3).view(1, 1, 1, 3)).tolist()
        [[[[2, 1, 0]]]]
    """

    _flipped: Tensor

    def __init__(self, p: float = 0.5, *, target: Words = "auto") -> None:
        check_words(target)
        self.p, self.target = check_fraction("p", p), target

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the probability, and what becomes of targets."""
        return {"p": self.p, "target": self.target}

    def transform(self, images: Tensor) -> Tensor:
        """Return the images, some of them mirrored."""
        self._flipped = torch.rand(len(images), device=images.device) < self.p
        return self._mirrored(images)

    def transform_target(self, target: Tensor) -> Tensor:
        """Return the maps of the last images, those of mirrored images mirrored."""
        return self._mirrored(target)

    def transform_back(self, pred: Tensor) -> Tensor:
        """Mirror the predictions of mirrored images; of any height and width."""
        return self._mirrored(pred)

    def _mirrored(self, maps: Tensor) -> Tensor:
        return torch.where(self._flipped.view(-1, 1, 1, 1), maps.flip(-1), maps)


class RandomCrop(Augmentation):
    """Shift each training image at random; what comes into view is its own reflection.

    As if each side were padded by reflection, and a piece of the old size cut out: the images
    keep their size.

    Args:
        padding: The largest shift in each direction, in pixels; less than the sides.
        target: What becomes of targets: see `Augmentation`. Maps are shifted and reflected with
            their images, so that no pixel is without a label.

    Raises:
        TypeError, ValueError: For what is no number of pixels; in the fit, for batches that are
            no images, or too small for the padding, or targets of which it is not certain what
            becomes of them.

    Example:
        >>> from onecycle import RandomCrop
        >>> RandomCrop(padding=4).transform(torch.zeros(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])
    """

    _shifts: tuple[Tensor, ...]
    _size: tuple[int, int]

    def __init__(self, padding: int = 4, *, target: Words = "auto") -> None:
        check_words(target)
        self.padding, self.target = check_count("padding", padding), target

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the largest shift, and what becomes of targets."""
        return {"padding": self.padding, "target": self.target}

    def transform(self, images: Tensor) -> Tensor:
        """Return the images, each of them shifted."""
        n, _, height, width = images.shape
        if self.padding >= min(height, width):
            raise ValueError(
                f"RandomCrop cannot reflect {self.padding} pixels of images of {height}x{width}: "
                f"padding must be at most {min(height, width) - 1}"
            )
        self._size = height, width
        self._shifts = torch.randint(
            -self.padding, self.padding + 1, (2, n, 1), device=images.device
        ).unbind(0)
        return self._shifted(images)

    def transform_target(self, target: Tensor) -> Tensor:
        """Return the maps of the last images, each of them shifted."""
        return self._shifted(target)

    def transform_back(self, pred: Tensor) -> Tensor:
        """Shift the predictions back; pixels that were out of view are 0."""
        height, width = self._size
        if pred.shape[-2:] != self._size:
            raise ValueError(
                f"RandomCrop shifts images of {height}x{width} by single pixels, and cannot turn "
                f"back predictions of {pred.shape[-2]}x{pred.shape[-1]}: predict without it, in a "
                "block `with learn.removed_cbs(RandomCrop):`"
            )
        axes = [
            torch.arange(size, device=pred.device) - shift
            for size, shift in zip(self._size, self._shifts, strict=True)
        ]
        rows, columns = (
            (index >= 0) & (index < size) for index, size in zip(axes, self._size, strict=True)
        )
        seen = rows.view(-1, 1, height, 1) & columns.view(-1, 1, 1, width)
        inside = (index.clamp(0, size - 1) for index, size in zip(axes, self._size, strict=True))
        return torch.where(seen, _gathered(pred, *inside), 0)

    def _shifted(self, maps: Tensor) -> Tensor:
        rows, columns = (
            reflected(torch.arange(size, device=maps.device) + shift, size)
            for size, shift in zip(maps.shape[2:], self._shifts, strict=True)
        )
        return _gathered(maps, rows, columns)


def _gathered(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Take from each sample the pixels of its rows and columns, of shape ``(batch, side)``."""
    n, channels, _, width = maps.shape
    pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(n, 1, -1)
    chosen = maps.reshape(n, channels, -1).gather(2, pixels.expand(-1, channels, -1))
    return chosen.view(maps.shape)


class Cutout(Augmentation):
    """Set a square of each training image to 0, which is the mean of normalised images.

    The middle of the square may be any pixel, so that it can reach over the edge and hide less:
    that matters more than its shape. Targets stay as they are, whatever they are: a mask still
    says what is behind the square.

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

    target = "keep"

    def __init__(self, size: int) -> None:
        self.size = check_count("size", size)

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the side of the square."""
        return {"size": self.size}

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
