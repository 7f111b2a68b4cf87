"""An optimizer that a stepper steps, and one like it that steps itself."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from onecycle.optim.fast import FastStepper
from onecycle.optim.stepper import Stepper

KINDS = {
    "SGD": partial(SGD, momentum=0.9),
    "SGD without momentum": SGD,
    "SGD with everything": partial(
        SGD, momentum=0.8, dampening=0.1, weight_decay=0.1, maximize=True
    ),
    "Nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "Adam": partial(Adam, weight_decay=0.1),
    "AdamW": AdamW,
}


def make(kind, **options):
    torch.manual_seed(0)
    first = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    groups = [{"params": first}, {"params": [nn.Parameter(torch.randn(2, 2))], "lr": 0.05}]
    return KINDS[kind](groups, lr=0.1, fused=True, **options)


def params(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def give_gradients(opt, seed, without=()):
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params(opt)):
        gradient = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = gradient if p.requires_grad and i not in without else None


def assert_same(opt, other):
    for p, q in zip(params(opt), params(other), strict=True):
        assert torch.equal(p, q)
        assert opt.state.get(p, {}).keys() == other.state.get(q, {}).keys()
        for key, value in other.state.get(q, {}).items():
            assert torch.equal(opt.state[p][key], value)


class Pair:
    """An optimizer that the fast stepper steps, and one like it that steps itself."""

    def __init__(self, kind, **options):
        self.ours, self.theirs = make(kind, **options), make(kind, **options)
        self.stepper = FastStepper(self.ours)
        self.own_steps = 0
        plain = Stepper.step
        self.seed = 0

        def counted(stepper):
            self.own_steps += 1
            return plain(stepper)

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(Stepper, "step", counted)

    def both(self, act):
        act(self.ours)
        act(self.theirs)

    def step(self, without=()):
        self.seed += 1
        self.both(lambda opt: give_gradients(opt, self.seed, without))
        assert self.stepper.step() is True
        self.theirs.step()
        assert_same(self.ours, self.theirs)
