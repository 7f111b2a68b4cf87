"""Options that are switched on after the first update, as in loops by hand that make room."""

from functools import partial

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import OneCycleLR

from onecycle import ParamScheduler, TorchScheduler, linear
from onecycle.testing import toy_learner


def learner(opt_func):
    toy = toy_learner()
    learn = toy_learner(opt_func=opt_func, lr=1e-3)
    learn.dls.train = [*toy.dls.valid]
    return learn


def train(opt, model, batches):
    for xb, yb in batches:
        opt.zero_grad()
        mse_loss(model(xb), yb).backward()
        opt.step()


LATE = {
    "momentum": (RMSprop, "momentum", 0.9, "momentum_buffer"),
    "centered": (RMSprop, "centered", True, "grad_avg"),
    "amsgrad of Adam": (partial(Adam, fused=False), "amsgrad", True, "max_exp_avg_sq"),
    "amsgrad of AdamW": (
        partial(AdamW, fused=False, weight_decay=0),
        "amsgrad",
        True,
        "max_exp_avg_sq",
    ),
    "amsgrad, fused": (Adam, "amsgrad", True, "max_exp_avg_sq"),
    "momentum of SGD": (partial(SGD, fused=False), "momentum", 0.9, None),
    "momentum of SGD, fused": (SGD, "momentum", 0.9, None),
}


@pytest.mark.parametrize(("opt_func", "option", "value", "key"), LATE.values(), ids=LATE)
def test_an_option_switched_on_between_two_fits_begins_with_nothing(opt_func, option, value, key):
    learn, plain = learner(opt_func), toy_learner()
    batches = learn.dls.train
    opt = opt_func(plain.model.parameters(), lr=1e-3)
    train(opt, plain.model, batches)
    opt.param_groups[0][option] = value
    for p in plain.model.parameters() if key else ():
        opt.state[p][key] = torch.zeros_like(p)
    train(opt, plain.model, batches)
    learn.fit(1)
    learn.opt.param_groups[0][option] = value
    learn.fit(1)
    for ours, theirs in zip(learn.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


HOW = {
    "one cycle": lambda learn: learn.fit_one_cycle(1, 1e-3, moms=(0.9, 0.8, 0.9)),
    "a schedule that begins at 0": lambda learn: learn.fit(
        1, cbs=[ParamScheduler({"momentum": linear(0.0, 0.9)})]
    ),
    "by name": lambda learn: (learn.groups.set("momentum", 0.9), learn.fit(1)),
    "a scheduler of torch": lambda learn: learn.fit(
        1, cbs=[TorchScheduler(partial(OneCycleLR, max_lr=1e-3, total_steps=8))]
    ),
    "a range test": lambda learn: learn.lr_find(1e-5, 1e-3, 10, show_plot=False, moms=[0.5, 0.9]),
}


@pytest.mark.parametrize("ask", HOW.values(), ids=HOW)
def test_momentum_of_rmsprop_may_be_asked_for_later_in_every_way(ask):
    learn = learner(RMSprop)
    learn.fit(1)
    if ask is HOW["a scheduler of torch"]:  # it cycles the momentum of those that begin with one
        learn.opt.defaults["momentum"] = 0.9
    ask(learn)
    states = [state.get("momentum_buffer") for state in learn.opt.state.values()]
    if ask is HOW["a range test"]:
        assert states == [None] * 4  # it left nothing behind
    else:
        assert all(buffer.abs().max() > 0 for buffer in states)


def test_state_is_made_only_where_it_is_asked_for():
    learn = learner(RMSprop)
    learn.fit(2)
    assert {key for state in learn.opt.state.values() for key in state} == {"step", "square_avg"}
