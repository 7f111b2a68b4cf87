"""Images whose pixels hold their own numbers, from which can be read where each of them went."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onecycle import Callback, Learner, Progress, Stage


def numbered_images(n: int = 8, *, channels: int = 3, size: tuple[int, int] = (6, 9)) -> Tensor:
    """Make images: the number of a pixel among all of them is its value, in every channel."""
    numbers = torch.arange(n * size[0] * size[1]).float().view(n, 1, *size)
    return numbers.expand(-1, channels, -1, -1).contiguous()


def at_pixels(target: Tensor, images: Tensor) -> Tensor:
    """Return what a target says of the pixels that moved images show, looked up one by one.

    Args:
        target: The target of all images as they were, ``(samples, ..., height, width)``.
        images: Moved `numbered_images`.
    """
    by_pixel = target.movedim((-2, -1), (1, 2)).flatten(0, 2)
    numbers = images[:, 0].long()
    found = [by_pixel[number] for number in numbers.flatten().tolist()]
    return torch.stack(found).view(*numbers.shape, *by_pixel.shape[1:]).movedim((1, 2), (-2, -1))


class ReadsPixels(nn.Module):
    """Predicts of each pixel its own values: right on whatever view of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def any_loss(pred: Tensor, *targets: Any) -> Tensor:
    """Return a loss, whatever the targets are."""
    return pred.mean()


class Seen(Callback):
    """Keeps what the model and the loss are given in training."""

    stage = Stage.RECORD
    during = "train"

    def __init__(self) -> None:
        self.xb, self.yb, self.batch = [], [], []

    def after_pred(self, learn: Learner) -> None:
        for name in vars(self):
            getattr(self, name).append(getattr(learn, name))


def pixel_learner(
    batches: Any, loss_func: Any = any_loss, kind: type[Learner] = Learner, **options: Any
) -> Learner:
    """Make a learner that reads pixels, of these batches in training and in validation."""
    given = {"device": "cpu", "seed": 0, "opt_func": torch.optim.SGD, "lr": 0.0}
    given["check"] = False  # the loss reaches nothing, and the model counts its calls
    learn = kind((batches, batches), ReadsPixels(), loss_func, **(given | options))
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn
