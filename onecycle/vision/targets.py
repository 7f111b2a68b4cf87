"""Which targets of a batch go with its images, where these are moved, cut or resized.

A map of the images' pixels (a mask, a depth, the images themselves) has to move with them. Labels
of a sample need not. What says where something is, or in which direction, cannot. Where that is
not certain, a word of the person decides.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onecycle.arguments import check_one_of, shown
from onecycle.data.nested import map_tensors
from onecycle.explanations import describe
from onecycle.vision.images import check_images

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

Word = Literal["auto", "map", "keep"]
#: A word for all targets, or a tuple or dict of words for targets of several parts.
Words = Word | tuple[Any, ...] | list[Any] | Mapping[str, Any]

#: What becomes of a target: it stays, or moves as a map of the pixels, or as images do; the two
#: differ in how they are resized.
Move = Literal["stay", "map", "image"]
#: One move for each tensor, in the order of `map_tensors`; empty if all stay.
Plan = tuple[Move, ...]

_PLAIN = (str, bytes, bool, int, float, type(None))


class TargetPlans:
    """Tells what becomes of the targets of each batch; asked once for each kind of batch.

    Batches are of one kind if shapes and dtypes are the same. Only for a new kind may numbers be
    read, which waits for the device.

    Args:
        who: The callback that moves the images, for messages.
        check: Called when targets are to move, to refuse what cannot move them.
    """

    def __init__(self, who: str, check: Callable[[], None] | None = None) -> None:
        self._who, self._check = who, check
        self._words: Words | None = None
        self._plans: dict[Any, Plan] = {}
        self._has_told = False

    def plan(self, xb: Any, yb: Any, words: Words) -> Plan:
        """Return what becomes of the targets, or refuse them.

        Args:
            xb: What should be images.
            yb: The targets, nested at will.
            words: What the person says of them.

        Raises:
            TypeError, ValueError: For inputs that are no images, targets of which it is not
                certain what becomes of them, or words that do not fit them.
        """
        if words is not self._words:
            check_words(words)
            self._words = words
            self._plans.clear()
        if isinstance(xb, Tensor) and isinstance(yb, Tensor):  # the usual kind: no call at all
            kind: Any = xb.shape, yb.shape, yb.dtype
        else:
            kind = _form(xb), _form(yb)
        plan = self._plans.get(kind)
        if plan is None:
            plan = self._plans[kind] = self._ask(check_images(xb, self._who), yb, words)
        return plan

    def _ask(self, images: Tensor, yb: Any, words: Words) -> Plan:
        asked = _Asked(self._who, images)
        plan = asked.plan(yb, words)
        if plan and self._check is not None:
            self._check()
        if asked.doubt is not None and not self._has_told:
            log.warning("%s", asked.doubt)
            self._has_told = True
        return plan


def check_words(words: Any) -> None:
    """Refuse what does not say what becomes of targets."""
    if isinstance(words, str):
        check_one_of("target", words, ("auto", "map", "keep"))
    elif isinstance(words, tuple | list | Mapping) and words:
        for part in words.values() if isinstance(words, Mapping) else words:
            check_words(part)
    else:
        raise TypeError(
            'target must be "auto", "map" or "keep", or a tuple or dict of these for targets of '
            f"several parts; got {shown(words)}"
        )


def move_targets(learn: Loop, plan: Plan, move: Callable[[Tensor, Move], Tensor]) -> None:
    """Move the targets of the batch at hand as its images, ``learn.xb``, were moved before.

    The batch itself is replaced too, so that whoever takes the targets out of it finds those that
    fit the images; it is a new one, and the loader's own stays as it is.

    Args:
        learn: The learner.
        plan: What becomes of the targets; some move.
        move: Moves a target, given in the shape ``(batch, channels, height, width)``.
    """
    moves = iter(plan)

    def moved(target: Tensor) -> Tensor:
        how = next(moves)
        if how == "stay":
            return target
        channels = math.prod(target.shape[1:-2])
        maps = move(target.reshape(len(target), channels, *target.shape[-2:]), how)
        return maps.reshape(*target.shape[:-2], *maps.shape[-2:])

    learn.yb = map_tensors(moved, learn.yb)
    if isinstance(learn.batch, tuple | list):
        # Two items are inputs and targets, whatever the targets are; else each is one of several.
        parts = (learn.yb,) if len(learn.batch) == 2 else learn.yb
        make = getattr(learn.batch, "_make", type(learn.batch))  # of a named tuple
        learn.batch = make((learn.xb, *parts))


def tensors_of(targets: Any) -> list[Tensor]:
    """List the tensors of nested targets, in the order of a `Plan`."""
    found: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(add, targets)
    return found


def are_labels(target: Tensor, images: torch.Size) -> bool:
    """Tell whether a target says what a sample is, and surely not where in its image.

    Args:
        target: Of any shape and dtype. Of shape ``(batch, k)``, floats are labels if they are 0 or
            1, or shares that add up to 1; integers are taken for labels or tokens.
        images: The shape of the images, ``(batch, channels, height, width)``.
    """
    n, pixels = images[0], images[-2:].numel()
    if target.ndim and len(target) != n:  # one for each object, or tokens of all samples in a row
        return target.ndim == 1 and not target.is_floating_point() and len(target) != n * pixels
    if target.shape[1:].numel() == 1:
        return True
    if target.ndim != 2 or is_in_a_row(target.shape[1], images):
        return False
    if not target.is_floating_point():
        return True
    values = target.float()
    binary = ((values == 0) | (values == 1)).all()
    shares = (values >= 0).all() & ((values.sum(1) - 1).abs() < 0.01).all()
    return bool(binary | shares)


def is_in_a_row(size: int, images: torch.Size) -> bool:
    """Tell whether numbers of a sample may be maps with all their pixels in a row.

    Args:
        size: How many numbers.
        images: The shape of the images, ``(..., height, width)``.
    """
    pixels = images[-2:].numel()
    return pixels > 1 and not size % pixels


def might_be_places(target: Tensor, n: int) -> bool:
    """Tell whether what is taken for labels might be positions after all: rows of integers.

    Args:
        target: What `are_labels` takes for labels.
        n: The number of samples.
    """
    if target.is_floating_point() or target.shape[1:].numel() == 1:
        return target.ndim > 0 and len(target) != n
    return bool(((target != 0) & (target != 1)).any())


def has_directions(maps: Tensor) -> bool:
    """Tell whether maps may say directions: several numbers for a pixel, some of them below 0.

    Args:
        maps: Of shape ``(batch, ..., height, width)``.
    """
    return maps.shape[1:-2].numel() > 1 and bool((maps < 0).any())


def is_per_sample(targets: Any) -> bool:
    """Tell whether targets are a sequence with a dict for each sample, as those of detectors."""
    if not isinstance(targets, tuple | list) or not targets:
        return False
    return all(isinstance(part, Mapping) for part in targets)


class _Asked:
    """One kind of batch, looked at; ``doubt`` is what the person should be told of it."""

    def __init__(self, who: str, images: Tensor) -> None:
        self._who, self._images = who, images
        self.doubt: str | None = None

    def plan(self, targets: Any, words: Words) -> Plan:
        moves = self._moves(targets, words)
        return () if all(move == "stay" for move in moves) else tuple(moves)

    def _moves(self, value: Any, words: Any) -> list[Move]:
        if isinstance(value, Tensor):
            if not isinstance(words, str):
                raise self._misfit(value, words)
            return [self._move(value, words)]
        if isinstance(value, _PLAIN):
            return []
        if isinstance(value, Mapping):
            parts = [(value[key], word) for key, word in self._by_key(value, words)]
        elif isinstance(value, tuple | list) and (words == "keep" or not self._is_listed(value)):
            parts = list(zip(value, self._in_order(value, words), strict=True))
        elif words == "keep":
            return []
        else:
            raise self._no_map(value)
        return [move for part, word in parts for move in self._moves(part, word)]

    def _is_listed(self, value: tuple[Any, ...] | list[Any]) -> bool:
        """Tell whether a sequence has a dict or a map for each sample, and is no list of parts."""
        size = self._images.shape[-2:]
        maps = [part for part in value if isinstance(part, Tensor) and part.shape == size]
        return is_per_sample(value) or len(maps) == len(value) == len(self._images)

    def _by_key(self, value: Mapping[Any, Any], words: Any) -> list[tuple[Any, Any]]:
        if isinstance(words, str):
            return [(key, words) for key in value]
        if not isinstance(words, Mapping) or set(words) - set(value):
            raise self._misfit(value, words)
        return [(key, words.get(key, "auto")) for key in value]

    def _in_order(self, value: tuple[Any, ...] | list[Any], words: Any) -> list[Any]:
        if isinstance(words, str):
            return [words] * len(value)
        if not isinstance(words, tuple | list) or len(words) != len(value):
            raise self._misfit(value, words)
        return list(words)

    def _move(self, target: Tensor, word: str) -> Move:
        if word == "keep":
            return "stay"
        n, size = len(self._images), self._images.shape[-2:]
        if target.ndim >= 3 and len(target) == n and target.shape[-2:] == size:
            return self._move_of_map(target, word)
        if word == "map":
            raise ValueError(
                f'{self._who} has target="map", and a map of images of {size[0]}x{size[1]} has the '
                f"shape ({n}, ..., {size[0]}, {size[1]}); got {describe(target)}: give each part "
                "its own word in a tuple or dict, or resize it in the loader"
            )
        if not are_labels(target, self._images.shape):
            raise self._no_map(target)
        if might_be_places(target, n):
            self.doubt = (
                f"{self._who} leaves the target of {describe(target)} as it is, taken for labels: "
                "if it says where in the image something is, move both in the loader; "
                'target="keep" says that it does not'
            )
        return "stay"

    def _move_of_map(self, target: Tensor, word: str) -> Move:
        images = self._images
        if target is images or (
            target.shape == images.shape
            and target.dtype == images.dtype
            and torch.equal(target, images)
        ):
            return "image"
        if word == "auto" and has_directions(target):
            raise ValueError(
                f"{self._who} cannot tell whether the target of {describe(target)} goes with its "
                "images: several numbers for a pixel, some below 0, may be directions (flow, "
                f'normals), which moved pixels would not turn. Give {self._who} target="map" to '
                'move it pixel by pixel, or target="keep" to leave it as it is'
            )
        # Whole numbers may be labels stored as floats, which have no means.
        is_smooth = target.shape == images.shape and target.is_floating_point()
        return "image" if is_smooth and bool((target != target.round()).any()) else "map"

    def _no_map(self, target: Any) -> ValueError:
        height, width = self._images.shape[-2:]
        return ValueError(
            f"{self._who} cannot tell what becomes of the target of {describe(target)}: it is no "
            f"map of its images (batch, ..., {height}, {width}), and may say where in them "
            f'something is (boxes, key points). Give {self._who} target="keep" if it does not; '
            "else move both in the loader, as torchvision.transforms.v2 does"
        )

    def _misfit(self, value: Any, words: Any) -> ValueError:
        return ValueError(
            f"{self._who} has target={words!r}, which does not fit targets of "
            f"{describe(value)}: give one word for all, or one for each part"
        )


def _form(value: Any) -> Any:
    """Return what tells the kind of a batch: types, shapes and dtypes, but no numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, Mapping):
        return tuple((key, _form(part)) for key, part in value.items())
    if isinstance(value, tuple | list):
        return type(value), *map(_form, value)
    return type(value)
