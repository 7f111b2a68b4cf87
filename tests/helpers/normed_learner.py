"""A learner of a body with a batch norm and a head, which can be frozen."""

from functools import partial

import torch
from torch import nn
from torch.optim import SGD

from onecycle.testing import toy_learner

HEAD = ["1.weight", "1.bias"]
NORM = ["0.1.weight", "0.1.bias"]
BODY = ["0.0.weight"]

sgd = partial(SGD, momentum=0.9)


def body_and_head():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(body, nn.Linear(8, 1))


def split_body_and_head(model):
    return [model[0].parameters(), model[1].parameters()]


def normed_learner(**options):
    toy = toy_learner()
    options = {"splitter": split_body_and_head, "opt_func": sgd, "lr": 0.01} | options
    learn = type(toy)(
        toy.dls, body_and_head(), nn.functional.mse_loss, device="cpu", seed=0, **options
    )
    learn.cbs = toy.cbs
    return learn


def trainable(learn):
    return [name for name, p in learn.model.named_parameters() if p.requires_grad]
