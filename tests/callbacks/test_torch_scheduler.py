from copy import deepcopy
from functools import partial

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from onecycle import (
    Callback,
    CancelStep,
    GradientAccumulation,
    MomentumCycler,
    OneCycleSchedule,
    ReduceLROnPlateau,
    ScheduleConflictError,
    TorchScheduler,
)
from onecycle.testing import toy_learner

sgd = partial(SGD, momentum=0.9)

SCHEDULERS = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5]),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda k: 1 / (1 + k)),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 10),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 4),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.3, total_steps=12),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.3, 5, mode="triangular2"),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, 0.1, total_iters=4), lr_scheduler.ExponentialLR(opt, 0.9)],
        milestones=[4],
    ),
}
EACH = pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)


def bare_rates(make, n, lr=0.05):
    """The rate and the momentum of n steps, from a loop without us."""
    opt = SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler, found = make(opt), []
    for k in range(n):
        found.append((opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]))
        opt.step()
        if k < n - 1:
            scheduler.step()
    return found


def recorded(learn):
    history = learn.recorder.history
    return list(zip(history["lr"].values, history["momentum"].values, strict=True))


def toy(n_batches=6, **options):
    return toy_learner(n_batches, opt_func=sgd, lr=0.05, **options)


@EACH
def test_every_update_has_the_values_of_a_bare_loop(make):
    learn = toy(6)
    learn.fit(2, cbs=[TorchScheduler(make)])
    assert recorded(learn) == bare_rates(make, 12)


@EACH
def test_by_epoch_every_update_of_an_epoch_has_its_value(make):
    learn = toy(3)
    learn.fit(4, cbs=[TorchScheduler(make, every="epoch")])
    assert recorded(learn) == [values for values in bare_rates(make, 4) for _ in range(3)]


def test_a_skipped_update_does_not_advance_the_scheduler():
    def skip(learn):
        if learn.iter in (0, 3):
            raise CancelStep

    make = SCHEDULERS["OneCycleLR"]
    learn = toy(8)
    learn.fit(1, cbs=[TorchScheduler(make), Callback(before_step=skip)])
    assert recorded(learn) == bare_rates(make, 6)


def test_accumulated_batches_advance_it_once():
    make = SCHEDULERS["StepLR"]
    learn = toy(8)
    learn.fit(1, cbs=[GradientAccumulation(2), TorchScheduler(make)])
    assert recorded(learn) == bare_rates(make, 4)


def test_each_fit_begins_anew_from_its_own_rate():
    make, learn = SCHEDULERS["StepLR"], toy(6)
    callback = TorchScheduler(make)
    learn.fit(1, lr=0.1, cbs=[callback])
    learn.fit(1, lr=0.02, cbs=[callback])
    assert recorded(learn) == bare_rates(make, 6, lr=0.1) + bare_rates(make, 6, lr=0.02)


@EACH
def test_the_optimizer_is_left_as_it_was_but_for_the_values(make):
    learn = toy(3)
    keys, step = [set(group) for group in learn.opt.param_groups], learn.opt.step
    learn.fit(1, cbs=[TorchScheduler(make)])
    assert [set(group) for group in learn.opt.param_groups] == keys
    assert learn.opt.step == step


def test_the_rate_of_the_fit_counts_not_that_of_an_earlier_scheduler_of_somebody_else():
    make, learn = SCHEDULERS["StepLR"], toy(6)
    learn.opt.param_groups[0]["initial_lr"] = 0.7
    learn.fit(1, lr=0.1, cbs=[TorchScheduler(make)])
    assert recorded(learn) == bare_rates(make, 6, lr=0.1)
    assert learn.opt.param_groups[0]["initial_lr"] == 0.7


def test_every_group_is_driven_those_without_decay_too():
    def two_groups(model):
        return [model[0].parameters(), model[2].parameters()]

    learn = toy(4, splitter=two_groups, wd=0.1)
    learn.fit(1, lr=[0.01, 0.1], cbs=[TorchScheduler(SCHEDULERS["StepLR"])])
    assert learn.recorder.history["lr"].values[-1].tolist() == [0.005, 0.05]
    assert [group["lr"] for group in learn.opt.param_groups] == [0.005, 0.05, 0.005, 0.05]


@EACH
def test_a_fit_that_takes_back_its_state_goes_on_where_it_was(make):
    def save(learn):
        if learn.n_updates == 5:
            groups = [{**group, "params": None} for group in learn.opt.param_groups]
            states.append(deepcopy((callback.state_dict(), groups)))

    def load(learn):
        other.load_state_dict(states[0][0])
        for group, values in zip(again.opt.param_groups, states[0][1], strict=True):
            group.update(values | {"params": group["params"]})
        learn.n_updates = 5

    states, callback, other = [], TorchScheduler(make), TorchScheduler(make)
    learn, again = toy(12), toy(7)
    learn.fit(1, cbs=[callback, Callback(after_step=save)])
    again.fit(1, cbs=[other, Callback(before_train=load)])
    assert recorded(again) == recorded(learn)[5:]


# Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "other",
    [OneCycleSchedule(0.1), TorchScheduler(SCHEDULERS["StepLR"]), ReduceLROnPlateau()],
    ids=lambda other: type(other).__name__,
)
def test_another_schedule_of_the_rate_is_refused(other, order):
    learn = toy()
    pair = [TorchScheduler(SCHEDULERS["OneCycleLR"]), other][::order]
    with pytest.raises(ScheduleConflictError, match=r"both (schedule|drive) 'lr' of"):
        learn.fit(1, cbs=pair)
    assert learn.total_updates == 0


def test_a_schedule_of_momentum_conflicts_only_where_the_scheduler_cycles_it():
    learn = toy(4)
    learn.fit(1, cbs=[TorchScheduler(SCHEDULERS["StepLR"]), MomentumCycler()])
    before = [dict(group) for group in learn.opt.param_groups]
    with pytest.raises(ScheduleConflictError, match="both schedule 'momentum'"):
        learn.fit(
            1, lr=before[0]["lr"], cbs=[TorchScheduler(SCHEDULERS["OneCycleLR"]), MomentumCycler()]
        )
    for group, values in zip(learn.opt.param_groups, before, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in values.items() if k != "params"
        }


def drives_another(opt):
    return lr_scheduler.StepLR(SGD([torch.zeros(1)], lr=0.1), 3)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lr_scheduler.ReduceLROnPlateau, TypeError, "use the callback ReduceLROnPlateau"),
        (lambda opt: None, TypeError, "to return a scheduler of torch.optim.lr_scheduler; got No"),
        (drives_another, ValueError, "StepLR drives another optimizer"),
        (lambda opt: lr_scheduler.StepLR(opt, "3" / 2), TypeError, "unsupported operand"),
    ],
)
def test_what_makes_no_scheduler_of_this_optimizer_is_refused_before_the_first_batch(
    make, error, words
):
    learn = toy()
    with pytest.raises(error, match=words):
        learn.fit(1, cbs=[TorchScheduler(make)])
    assert learn.total_updates == 0
    learn.fit(1)
    assert set(learn.recorder.history["lr"].values) == {0.05}


def test_a_scheduler_instead_of_a_function_is_refused_at_once():
    opt = SGD([torch.zeros(1)], lr=0.1)
    for wrong in (lr_scheduler.StepLR(opt, 3), None, "StepLR"):
        with pytest.raises(TypeError, match="takes a function that makes the scheduler"):
            TorchScheduler(wrong)
    with pytest.raises(ValueError, match="every must be one of"):
        TorchScheduler(SCHEDULERS["StepLR"], every="batch")


def test_it_takes_no_part_in_a_range_test():
    learn = toy(8, cbs=(TorchScheduler(SCHEDULERS["StepLR"]),))
    result = learn.lr_find(1e-5, 1e-2, num_it=7, show_plot=False)
    assert result.lrs[-1] == 1e-2
