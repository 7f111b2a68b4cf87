"""Test-time augmentation: the mean of predictions for several views of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onecycle.arguments import check_count, check_fraction
from onecycle.core.callback import Callback, Stage
from onecycle.core.restore import preserved_rng
from onecycle.data.passes import order_seed
from onecycle.training.predicting import predict_loader, valid_or
from onecycle.vision.augment import Augmentation, check_images, reflected

if TYPE_CHECKING:
    from onecycle.core.loop import Loop
    from onecycle.record.predictions import Predictions
    from onecycle.training.trainer import Trainer

#: What gives a view of a batch of inputs, each sample in its place.
Transform = Callable[[Any], Any]


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
    views = _views(learn, transforms, n)
    loader = valid_or(learn, dl)
    plain = predict_loader(learn, loader)
    _check_mean(plain.preds)
    total = torch.zeros_like(plain.preds)
    with preserved_rng():
        seed = int(torch.randint(2**62, ()))
        for i, view in enumerate(views):
            torch.manual_seed(order_seed(seed, i))  # each pass would begin with the same draws
            found = predict_loader(learn, loader, cbs=[_View(view)])
            _check_pair(plain, found)
            total += found.preds
    return replace(plain, preds=torch.lerp(total / len(views), plain.preds, beta))


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


def _views(
    learn: Trainer, transforms: Sequence[Transform] | None, n: int | None
) -> Sequence[Transform]:
    if n is None:
        views = _image_views() if transforms is None else list(transforms)
        if not views or not all(callable(view) for view in views):
            raise ValueError(
                f"transforms must be functions of a batch of inputs, one or more; got {views!r}"
            )
        return views
    if transforms is not None:
        raise ValueError("give transforms, or n for the learner's own augmentations, not both")
    own = [callback for callback in learn.cbs if isinstance(callback, Augmentation)]
    if not own:
        raise ValueError(
            "n= predicts with the training augmentations among the learner's cbs, and there are "
            "none: make the Learner with cbs=[RandomFlip(), ...], or leave n out"
        )
    return [partial(_augmented, own)] * check_count("n", n)


def _image_views() -> list[Transform]:
    """Return the mirror image, and two shifts by a pixel of both."""
    shifts = [partial(_shown, flip=flip, by=by) for by in (-1, 1) for flip in (False, True)]
    return [partial(_shown, flip=True, by=0), *shifts]


def _shown(xb: Any, *, flip: bool, by: int) -> Tensor:
    images = shifted(check_images(xb, "tta() without transforms"), by, by)
    return images.flip(-1) if flip else images


def _augmented(augmentations: Sequence[Augmentation], xb: Any) -> Tensor:
    images = check_images(xb, "tta(n=...)")
    for augmentation in augmentations:
        images = augmentation.transform(images)
    return images


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


class _View(Callback):
    """Show the model a view of each batch."""

    stage = Stage.PREPARE
    runs_in = frozenset(("inference",))

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def before_batch(self, learn: Loop) -> None:
        learn.xb = self.transform(learn.xb)
