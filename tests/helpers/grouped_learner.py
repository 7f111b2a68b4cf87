"""A small learner of two parameter groups, whose momentum is cycled too."""

import torch

from onecycle.testing import toy_learner

MOMS = (0.95, 0.85, 0.9)


def sgd(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def two_groups(model):
    return [model[0].parameters(), model[2].parameters()]


def grouped_learner(n_batches, **options):
    return toy_learner(n_batches, opt_func=sgd, splitter=two_groups, moms=MOMS, **options)


def record(learn, name="lr"):
    return learn.recorder.history[name].values
