"""A small learner of images and class labels, the same each time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from onecycle import Learner, Progress, TensorLoader


def image_learner(*, n: int = 32, batch_size: int = 4, size: int = 8, **options: Any) -> Learner:
    """Make a learner of random images, shuffled, which a model of any image size tells apart."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, size, size, generator=generator)
    labels = torch.arange(n) % 3
    train = TensorLoader(images, labels, batch_size=batch_size, shuffle=True)
    valid = TensorLoader(images, labels, batch_size=batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = nn.Conv2d(3, 4, 3)
        model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    given: dict[str, Any] = {"loss_func": nn.functional.cross_entropy, "device": "cpu", "seed": 0}
    learn = Learner((train, valid), model, **(given | options))
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn
