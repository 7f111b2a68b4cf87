"""Test-time augmentation: the mean of predictions for several views of each sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from onecycle.arguments import check_count, check_fraction, check_list, shown
from onecycle.core.callback import Callback, Stage
from onecycle.core.restore import preserved_rng
from onecycle.data.generators import order_seed
from onecycle.explanations import describe
from onecycle.training.predicting import predict_loader, valid_or
from onecycle.vision.augment import Augmentation, require_method
from onecycle.vision.images import check_images, reflected
from onecycle.vision.targets import (
    are_labels,
    has_directions,
    is_in_a_row,
    might_be_places,
    tensors_of,
)

if TYPE_CHECKING:
    from onecycle.core.loop import Loop
    from onecycle.record.predictions import Predictions
    from onecycle.training.trainer import Trainer

log = logging.getLogger("onecycle")

#: What gives a view of a batch of inputs, each sample in its place.
Show = Callable[[Any], Any]
#: What turns the predictions of a view back.
Back = Callable[[Tensor], Tensor]
#: A view, alone where predictions say nothing of places.
Transform = Show | tuple[Show, Back]

#: What predictions say of their images: scores of each as a whole, a number of scores for each
#: pixel, or such maps of another height and width.
Form = Literal["scores", "map", "other_map"]

_PAIRS = (
    "give transforms as pairs (view, back), such as "
    "(lambda xb: xb.flip(-1), lambda pred: pred.flip(-1)), where back turns predictions back, "
    "and returns them as they are if there is nothing to turn"
)


@dataclass(frozen=True)
class View:
    """One view of each batch.

    Attributes:
        show: Makes it of the inputs.
        back: Turns predictions of it back; ``None`` to take them as they are.
        is_partial: Whether ``back`` gives 0 for pixels that the view does not show.
    """

    show: Show
    back: Back | None = None
    is_partial: bool = False


def predict_views(
    learn: Trainer,
    dl: Iterable[Any] | None,
    transforms: Sequence[Transform] | None,
    *,
    n: int | None,
    beta: float,
) -> Predictions:
    """Predict with test-time augmentation: see `Learner.tta`."""
    beta = check_fraction("beta", beta)
    _check_choice(learn, transforms, n)
    look = _Look()
    plain = predict_loader(learn, valid_or(learn, dl), cbs=[look])
    _check_mean(plain.preds)
    views = _views(learn, transforms, n, _Answer(plain, look.shapes))
    mean = _mean(learn, dl, views, plain)
    return replace(plain, preds=torch.lerp(mean, plain.preds, beta))


def _mean(
    learn: Trainer, dl: Iterable[Any] | None, views: Sequence[View], plain: Predictions
) -> Tensor:
    """Return the mean over the views, each pixel over those that show it; else it is plain."""
    total, weight = torch.zeros_like(plain.preds), torch.zeros(())
    with preserved_rng():
        seed = int(torch.randint(2**62, ()))
        for i, view in enumerate(views):
            torch.manual_seed(order_seed(seed, i))  # each pass would begin with the same draws
            shown = _Shown(view)
            found = predict_loader(learn, valid_or(learn, dl), cbs=[shown])
            _check_pair(plain, found)
            total += found.preds
            weight = weight + shown.weight(found.preds)
    if not weight.ndim:
        return total / len(views)
    return torch.where(weight > 0, total / weight, plain.preds)


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Shift images of shape ``(..., height, width)``; their reflection comes into view.

    Args:
        images: Of any dtype.
        down: By how many pixels; negative for up.
        right: By how many pixels; negative for left.

    Example:
        >>> shifted(torch.arange(4).view(1, 4), 0, 1)
        tensor([[1, 0, 1, 2]])
    """
    for axis, shift in ((-2, down), (-1, right)):
        if shift:
            size = images.shape[axis]
            index = torch.arange(size, device=images.device) - shift
            images = images.index_select(axis, reflected(index, size))
    return images


def _check_choice(learn: Trainer, transforms: Sequence[Transform] | None, n: int | None) -> None:
    """Refuse views that are none, before anything runs."""
    if n is not None:
        check_count("n", n)
        if transforms is not None:
            raise ValueError(
                f"give transforms, or n for the learner's own augmentations, not both; got n={n}"
            )
        if not _augmentations(learn):
            raise ValueError(
                "n= predicts with the training augmentations among the learner's cbs, and there "
                "are none: make the Learner with cbs=[RandomFlip(), ...], or leave n out"
            )
    if transforms is None:
        return
    given = check_list("transforms", transforms, "functions of a batch of inputs, or pairs")
    if not (given and all(map(_is_transform, given))):
        raise ValueError(
            "transforms must be functions of a batch of inputs, or pairs of one and of what turns "
            f"predictions back, one or more; got {shown(transforms)}"
        )


def _is_transform(value: Any) -> bool:
    return callable(value) or (
        isinstance(value, tuple) and len(value) == 2 and all(map(callable, value))
    )


def _augmentations(learn: Trainer) -> list[Augmentation]:
    return [callback for callback in learn.cbs if isinstance(callback, Augmentation)]


def _views(
    learn: Trainer, transforms: Sequence[Transform] | None, n: int | None, answer: _Answer
) -> list[View]:
    if transforms is not None:
        if all(isinstance(transform, tuple) for transform in transforms):
            return [View(*transform) for transform in transforms if isinstance(transform, tuple)]
        if answer.form() != "scores":
            raise ValueError(
                f"tta cannot tell how predictions of {describe(answer.preds)} go with what the "
                f"transforms do to their inputs: {_PAIRS}"
            )
        return [
            View(*transform) if isinstance(transform, tuple) else View(transform)
            for transform in transforms
        ]
    form = answer.form()
    if n is None:
        return _image_views(form)
    own = [copy(each) for each in _augmentations(learn)]  # which keep what they draw
    show = partial(_augmented, own)
    if form == "scores":
        return [View(show)] * n
    moving = [each for each in own if each.target != "keep"]
    for each in moving:
        require_method(each, "transform_back", "tta(n=...) of predictions that are maps")
    return [View(show, partial(_unaugmented, moving), is_partial=True)] * n


def _image_views(form: Form) -> list[View]:
    """Return the mirror image, and two shifts by a pixel of both; the latter for whole pixels."""
    shifts = [] if form == "other_map" else [(flip, by) for by in (-1, 1) for flip in (False, True)]
    if not shifts:
        log.warning(
            "tta(): the predictions have another height and width than the images, so that shifts "
            "by a pixel cannot be turned back: the mirror image is the one view"
        )
    views = []
    for flip, by in [(True, 0), *shifts]:
        back = None if form == "scores" else partial(_unshown, flip=flip, by=by)
        views.append(View(partial(_shown, flip=flip, by=by), back, is_partial=back is not None))
    return views


def _shown(xb: Any, *, flip: bool, by: int) -> Tensor:
    images = shifted(check_images(xb, "tta() without transforms"), by, by)
    return images.flip(-1) if flip else images


def _unshown(pred: Tensor, *, flip: bool, by: int) -> Tensor:
    """Turn predictions back; the edge that was shifted out of view is 0."""
    return pad(pred.flip(-1) if flip else pred, (-by, by, -by, by))


def _augmented(augmentations: Sequence[Augmentation], xb: Any) -> Tensor:
    images = check_images(xb, "tta(n=...)")
    for augmentation in augmentations:
        images = augmentation.transform(images)
    return images


def _unaugmented(augmentations: Sequence[Augmentation], pred: Tensor) -> Tensor:
    for augmentation in reversed(augmentations):
        pred = augmentation.transform_back(pred)
    return pred


class _Answer:
    """What predictions say of their images, from shapes and targets.

    Args:
        plain: The predictions without a view.
        shapes: Those of the images in each batch; none if the inputs are no images.
    """

    def __init__(self, plain: Predictions, shapes: Sequence[torch.Size]) -> None:
        self.preds: Tensor = plain.preds
        self._targets, self._images = plain.targets, {shape[1:] for shape in shapes}
        self._n = sum(shape[0] for shape in shapes)

    def form(self) -> Form:
        """Return the form, or refuse what is none.

        Raises:
            ValueError: If predictions or targets may say where in an image something is.
        """
        preds = self.preds
        if self._images:
            for target in tensors_of(self._targets):
                if not self._is_known(target):
                    raise ValueError(
                        f"tta cannot tell how targets of {describe(target)} go with the views of "
                        "their images: they may say where something is (boxes, key points) or in "
                        f"which direction (flow, normals). For other predictions {_PAIRS}"
                    )
        if self._are_scores():
            return "scores"
        size = preds.shape[-2:]
        sizes = {image[-2:] for image in self._images}
        if preds.ndim > 2 and len(preds) == self._n and sizes == {size}:
            return "map"
        if preds.ndim == 4 and len(preds) == self._n and all(_is_scaled(size, s) for s in sizes):
            return "other_map"
        raise ValueError(
            f"tta cannot tell how predictions of {describe(preds)} go with views of their inputs: "
            "expected (samples, classes), or maps of images, (samples, ..., height, width). For "
            f"others {_PAIRS}"
        )

    def _are_scores(self) -> bool:
        preds, images = self.preds, self._images
        if images and len(preds) != self._n:
            return False
        if preds.ndim == 2 and any(is_in_a_row(preds.shape[1], image) for image in images):
            return False
        return preds.ndim < 3 or preds.shape[2:].numel() == 1

    def _is_known(self, target: Tensor) -> bool:
        sizes = {self.preds.shape[-2:], *(image[-2:] for image in self._images)}
        if target.ndim > 2 and target.shape[-2:] in sizes:
            return not has_directions(target)
        if target.shape == self.preds.shape and might_be_places(target, self._n):
            return False  # numbers that the model predicts, and no classes
        return all(are_labels(target, torch.Size((self._n, *image))) for image in self._images)


def _is_scaled(size: torch.Size, image: torch.Size) -> bool:
    """Tell whether maps are on a coarser or finer grid than their images, by a whole number."""
    (height, width), (full_height, full_width) = size, image
    large, small = max(height, full_height), min(height, full_height)
    return height * full_width == width * full_height and not large % small


def _check_mean(preds: Any) -> None:
    if not isinstance(preds, Tensor) or not preds.is_floating_point():
        came = preds.dtype if isinstance(preds, Tensor) else type(preds).__name__
        raise TypeError(
            f"tta takes the mean of predictions that are one tensor of floats; got {came}: call "
            "get_preds for each view, and put them together"
        )


def _check_pair(plain: Predictions, found: Predictions) -> None:
    """Refuse predictions that do not belong to the same samples."""
    if found.preds.shape != plain.preds.shape:
        raise ValueError(
            f"a transform changed the shape of the predictions: expected "
            f"{tuple(plain.preds.shape)}, as without it; got {tuple(found.preds.shape)}"
        )
    plain.require_same_targets(found)


class _Look(Callback):
    """Notes the shapes of images."""

    stage = Stage.PREPARE
    runs_in = frozenset(("inference",))

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []

    def before_batch(self, learn: Loop) -> None:
        if isinstance(learn.xb, Tensor) and learn.xb.ndim == 4:
            self.shapes.append(learn.xb.shape)


class _Shown(Callback):
    """Shows the model a view of each batch, and turns its predictions back."""

    stage = Stage.PREPARE
    runs_in = frozenset(("inference",))

    def __init__(self, view: View) -> None:
        self.view = view
        self._weights: list[Tensor] = []

    def before_batch(self, learn: Loop) -> None:
        learn.xb = self.view.show(learn.xb)

    def after_pred(self, learn: Loop) -> None:
        back = self.view.back
        if back is None:
            return
        if not self.view.is_partial:
            learn.pred = back(learn.pred)
            return
        pred: Tensor = learn.pred
        maps = pred.reshape(len(pred), pred.shape[1:-2].numel(), *pred.shape[-2:])
        learn.pred = back(maps).reshape(pred.shape)
        self._weights.append(back(torch.ones_like(maps[:, :1])).cpu())

    def weight(self, preds: Tensor) -> Tensor:
        """Return how much each prediction counts, in a shape that goes with all of them."""
        if not self._weights:
            return torch.ones(())
        weights = torch.cat(self._weights)
        middle = (1,) * (preds.ndim - 3)
        return weights.reshape(len(preds), *middle, *weights.shape[-2:])
