"""Losses and batches that are not finite."""

import math

import torch
from torch import nn

from onecycle import Learner, TensorLoader
from onecycle.testing import toy_learner

NAN, INF = math.nan, math.inf


class BreaksAt:
    """A loss that is not finite from the given call on."""

    def __init__(self, call, value):
        self.call, self.value, self.calls = call, value, 0

    def __call__(self, pred, yb):
        loss = nn.functional.mse_loss(pred, yb)
        if not pred.requires_grad:  # validation
            return loss
        self.calls += 1
        return loss * self.value if self.calls >= self.call else loss


def toy_learner_of(model, **options):
    toy = toy_learner()
    learn = Learner(toy.dls, model, nn.functional.mse_loss, device="cpu", seed=0, **options)
    learn.cbs = [cb for cb in learn.cbs if type(cb).__name__ != "Progress"]
    return learn


def data_with_nan_in_batch(k, n_batches=8):
    x = torch.randn(8 * n_batches, 4, generator=torch.Generator().manual_seed(0))
    y = x.sum(1, keepdim=True)
    x[8 * k + 3, 1:3] = NAN
    return TensorLoader(x, y, batch_size=8)
