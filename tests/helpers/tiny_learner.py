"""The smallest learner that has all that a fit can spoil."""

from __future__ import annotations

from typing import Any

import torch
from exported_callbacks import FOR_IMAGES
from torch import nn

from onecycle import Callback, Learner, Recorder, TensorLoader, accuracy, mse

generator = torch.Generator().manual_seed(0)
X = torch.randn(8, 4, generator=generator)
Y = X.sum(1, keepdim=True)
IMAGES = torch.randn(8, 2, 8, 8, generator=generator)
LABELS = torch.arange(8) % 2


def tiny(loader: Any = None, model: nn.Module | None = None, **options: Any) -> Learner:
    """Make the smallest learner with batch norm, dropout, momentum, validation and a metric."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.2), nn.Linear(3, 1)
        model = nn.Sequential(*layers) if model is None else model
    train = TensorLoader(X, Y, batch_size=4, shuffle=True) if loader is None else loader
    options = {"loss_func": nn.functional.mse_loss, "opt_func": sgd, "metrics": [mse]} | options
    valid = TensorLoader(X, Y, batch_size=8)
    learn = Learner((train, valid), model, lr=0.01, device="cpu", seed=0, **options)
    learn.cbs = [callback for callback in learn.cbs if isinstance(callback, Recorder)]
    return learn


def tiny_for(callback: Callback | None) -> Learner:
    """Make the smallest learner that a callback can work with: some need images of classes."""
    if not isinstance(callback, FOR_IMAGES):
        return tiny()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution, pool = nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1)
        head = (pool, nn.Flatten(), nn.Dropout(0.2), nn.Linear(3, 2))
        model = nn.Sequential(convolution, nn.BatchNorm2d(3), *head)
    train = TensorLoader(IMAGES, LABELS, batch_size=4, shuffle=True)
    learn = tiny(train, model=model, loss_func=nn.functional.cross_entropy, metrics=[accuracy])
    learn.dls.valid = TensorLoader(IMAGES, LABELS, batch_size=8)
    return learn


def sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9)
