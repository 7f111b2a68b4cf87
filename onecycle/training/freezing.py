"""What is more than one fit or one schedule: the plans behind the learner's verbs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from onecycle.arguments import check_count, check_positive
from onecycle.callbacks.landing import land_running, landing_plan
from onecycle.callbacks.param_scheduler import OneCycleSchedule, ParamScheduler, PlannedScheduler
from onecycle.callbacks.replan import Extend
from onecycle.core.callback import Callback, Stage
from onecycle.core.checks import check_budget, check_callbacks
from onecycle.optim.build import norm_parameters, ready_state
from onecycle.optim.groups import GroupValues
from onecycle.schedules.policies import clr_beta, clr_beta_momentum, flat_cos, sgdr
from onecycle.schedules.shapes import Schedule

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer


def fit_clr_beta(
    learn: Trainer,
    n_epoch: int,
    lr: GroupValues,
    use_clr_beta: Sequence[float],
    *,
    wd: float | None,
    cbs: Sequence[Callback] | None,
    resume: str | Path | None,
    extend: Extend | None,
) -> None:
    """Train by fastai 0.7's 1cycle policy: see `Learner.fit_clr_beta`."""
    if len(use_clr_beta) not in (2, 4):
        raise ValueError(
            "expected (div, pct) or (div, pct, max_mom, min_mom), with pct in percent; "
            f"got {use_clr_beta!r}"
        )
    div, pct, *moms = use_clr_beta
    peaks = learn.groups.expand("lr", lr)

    def plan(n: int) -> dict[str, Schedule | Sequence[Schedule | None]]:
        rates = [clr_beta(n, lr_max=peak, div=div, pct=pct) for peak in peaks]
        if not moms:
            return {"lr": rates}
        momentum = clr_beta_momentum(n, pct=pct, max_mom=moms[0], min_mom=moms[1])
        return {"lr": rates, "momentum": momentum}

    cycles = PlannedScheduler(plan)
    _fit_with(learn, n_epoch, cycles, wd=wd, cbs=cbs, resume=resume, extend=extend)


def fit_flat_cos(
    learn: Trainer,
    n_epoch: int,
    lr: GroupValues | None,
    div_final: float,
    pct_start: float,
    *,
    wd: float | None,
    cbs: Sequence[Callback] | None,
    resume: str | Path | None,
    extend: Extend | None,
) -> None:
    """Train with a constant rate that falls at the end: see `Learner.fit_flat_cos`."""
    rates = learn.groups.expand("lr", learn.lr if lr is None else lr)
    each = [flat_cos(rate, div_final=div_final, pct_start=pct_start) for rate in rates]
    flat = ParamScheduler({"lr": each})
    _fit_with(learn, n_epoch, flat, wd=wd, cbs=cbs, resume=resume, extend=extend)


def fit_sgdr(
    learn: Trainer,
    n_cycles: int,
    cycle_len: int,
    lr_max: GroupValues | None,
    cycle_mult: int,
    *,
    wd: float | None,
    cbs: Sequence[Callback] | None,
    resume: str | Path | None,
    extend: Extend | None,
) -> None:
    """Train in cycles that each end at a rate of 0: see `Learner.fit_sgdr`."""
    check_count("n_cycles", n_cycles)
    check_count("cycle_len", cycle_len)
    check_count("cycle_mult", cycle_mult)
    peaks = learn.groups.expand("lr_max", learn.lr if lr_max is None else lr_max)

    def plan(n: int) -> dict[str, Sequence[Schedule | None]]:
        options = {"n_cycles": n_cycles, "cycle_mult": cycle_mult}
        return {"lr": [sgdr(n, lr_max=peak, **options) for peak in peaks]}

    n_epoch = sum(cycle_len * cycle_mult**k for k in range(n_cycles))
    cycles = PlannedScheduler(plan)
    _fit_with(learn, n_epoch, cycles, wd=wd, cbs=cbs, resume=resume, extend=extend)


def fine_tune(
    learn: Trainer,
    epochs: int,
    base_lr: float,
    freeze_epochs: int,
    lr_mult: float,
    pct_start: float,
    div: float,
    *,
    wd: float | None,
    cbs: Sequence[Callback] | None,
) -> None:
    """Train the last group, then all of them: see `Learner.fine_tune`."""
    check_budget(epochs, None, None)
    check_count("freeze_epochs", freeze_epochs, least=0)
    half = check_positive("base_lr", base_lr) / 2
    rates = slice(half / check_positive("lr_mult", lr_mult), half)
    OneCycleSchedule(rates, div, pct_start=pct_start)  # refuses before the first stage has run
    check_callbacks(cbs or ())
    freeze_to(learn, -1, train_bn=True)
    if freeze_epochs:
        learn.fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99, wd=wd, cbs=cbs)
    freeze_to(learn, 0, train_bn=True)
    learn.fit_one_cycle(epochs, rates, div, pct_start=pct_start, wd=wd, cbs=cbs)


def freeze_to(learn: Trainer, n: int, *, train_bn: bool) -> None:
    """Freeze the groups before one of them: see `Learner.freeze_to`."""
    count = len(learn.groups)
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"freeze_to takes the number of a parameter group; got {n!r}")
    if not -count <= n < count:
        raise ValueError(
            f"cannot freeze to parameter group {n}: expected {-count} to {count - 1}, since the "
            f"splitter made {count} (Learner's splitter= makes more)\n{learn.groups.table()}"
        )
    norms = norm_parameters(learn.model) if train_bn else set()
    for g in range(count):
        for parameter in learn.groups.params(g):
            parameter.requires_grad_(g >= n % count or id(parameter) in norms)
    learn.freeze_norms([] if train_bn else _frozen_norms(learn.model))
    ready_state(learn.opt)  # a callback may thaw groups in the middle of a fit


def _frozen_norms(model: nn.Module) -> list[nn.Module]:
    """List the layers with running statistics of which no parameter trains.

    One that has no parameters goes with the smallest module around it that has some.
    """
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            around, parameters = name, list(module.parameters())
            while not parameters:
                around = around.rpartition(".")[0]
                parameters = list(model.get_submodule(around).parameters())
            if not any(parameter.requires_grad for parameter in parameters):
                found.append(module)
    return found


def _fit_with(
    learn: Trainer,
    n_epoch: int,
    scheduler: ParamScheduler,
    *,
    wd: float | None,
    cbs: Sequence[Callback] | None,
    resume: str | Path | None,
    extend: Extend | None,
) -> None:
    check_callbacks(cbs or ())
    learn.fit(n_epoch, wd=wd, cbs=[scheduler, *(cbs or ())], resume=resume, extend=extend)


def land(
    learn: Trainer,
    updates: int,
    *,
    reason: str | None,
    cbs: Sequence[Callback] | None,
    resume: str | Path | None,
) -> None:
    """Land the fit that is running, or fit to land: see `Learner.land`."""
    check_count("updates", updates)
    if learn.running is None:
        start = Callback(before_fit=landing_plan(learn, 0, updates, reason).join)
        start.stage = Stage.SAVE
        learn.fit(None, cbs=[*(cbs or ()), start], max_updates=updates, resume=resume)
        return
    if learn.running != "fit":
        raise RuntimeError(f"a {learn.running} is running: there is no fit that could land")
    if cbs is not None or resume is not None:
        raise ValueError(
            "cbs and resume are for a landing that is a fit of its own: one is running"
        )
    land_running(learn, updates, reason)
