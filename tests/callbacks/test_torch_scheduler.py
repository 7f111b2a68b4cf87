from copy import deepcopy
from functools import partial

import pytest
import torch
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.swa_utils import SWALR

from onecycle import (
    Callback,
    CancelStep,
    GradientAccumulation,
    MomentumCycler,
    OneCycleSchedule,
    ParamScheduler,
    ReduceLROnPlateau,
    ScheduleConflictError,
    TorchScheduler,
    linear,
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
    learn = toy(2)
    learn.fit(12, cbs=[TorchScheduler(make, every="epoch")])
    assert recorded(learn) == [values for values in bare_rates(make, 12) for _ in range(2)]


def test_a_skipped_update_does_not_advance_the_scheduler():
    def skip(learn):
        if learn.iter in (0, 3):
            raise CancelStep

    make = SCHEDULERS["OneCycleLR"]
    learn = toy(12)
    learn.fit(1, cbs=[TorchScheduler(make), Callback(before_step=skip)])
    assert recorded(learn) == bare_rates(make, 10)


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
    learn.fit(4, cbs=[TorchScheduler(make)])
    assert [set(group) for group in learn.opt.param_groups] == keys
    assert learn.opt.step == step


def test_the_rate_of_the_fit_counts_not_that_of_an_earlier_scheduler_of_somebody_else():
    make, learn = SCHEDULERS["StepLR"], toy(6)
    learn.opt.param_groups[0]["initial_lr"] = 0.7
    learn.fit(1, lr=0.1, cbs=[TorchScheduler(make)])
    assert recorded(learn) == bare_rates(make, 6, lr=0.1)
    assert learn.opt.param_groups[0]["initial_lr"] == 0.7


def body_and_head(model):
    return [model[0].parameters(), model[2].parameters()]


def test_every_group_is_driven_those_without_decay_too():
    learn = toy(4, splitter=body_and_head, wd=0.1)
    learn.fit(1, lr=[0.01, 0.1], cbs=[TorchScheduler(SCHEDULERS["StepLR"])])
    assert learn.recorder.history["lr"].values[-1].tolist() == [0.005, 0.05]
    assert [group["lr"] for group in learn.opt.param_groups] == [0.005, 0.05, 0.005, 0.05]


#: Schedulers that take a list, with a value for each of two groups.
LISTS = {
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, [0.1, 0.3], total_steps=6),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, [0.01, 0.02], [0.1, 0.2], 3),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, [lambda k: 1 / (1 + k), lambda k: 0.5**k]),
    "SWALR": lambda opt: SWALR(opt, swa_lr=[0.01, 0.02], anneal_epochs=4),
}


@pytest.mark.parametrize("opt_func", [sgd, AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("wd", [0.0, 0.1])
@pytest.mark.parametrize("make", LISTS.values(), ids=LISTS)
def test_a_list_has_a_value_for_each_of_the_splitters_groups(make, wd, opt_func):
    learn = toy_learner(6, opt_func=opt_func, lr=[0.05, 0.2], splitter=body_and_head, wd=wd)
    assert len(learn.opt.param_groups) == (4 if wd else 2)  # what torch would ask a value for
    each = []
    note = Callback(after_step=lambda learn: each.append(in_force(learn.opt)))
    learn.fit(1, cbs=[TorchScheduler(make), note])
    bare = opt_func([{"params": [torch.zeros(1)], "lr": rate} for rate in (0.05, 0.2)])
    scheduler = make(bare)
    for found in each:
        assert found == in_force(bare) * (2 if wd else 1)
        bare.step()
        scheduler.step()
    assert len({tuple(found) for found in each}) > 2


def in_force(opt):
    """The rate and the momentum of every group of an optimizer."""
    return [(g["lr"], g["betas"][0] if "betas" in g else g["momentum"]) for g in opt.param_groups]


def test_a_group_that_decay_splits_off_in_the_fit_is_driven_too_and_left_clean():
    learn = toy(4, splitter=body_and_head)
    keys = {*learn.opt.param_groups[0], "no_decay"}
    decay = ParamScheduler({"weight_decay": linear(0.0, 0.1)})
    learn.fit(1, lr=[0.01, 0.1], cbs=[TorchScheduler(SCHEDULERS["StepLR"]), decay])
    assert [group["lr"] for group in learn.opt.param_groups] == [0.005, 0.05, 0.005, 0.05]
    assert all(group.keys() <= keys for group in learn.opt.param_groups)


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
        learn.n_updates = learn.iter = 5

    states, callback, other = [], TorchScheduler(make), TorchScheduler(make)
    learn, again = toy(12), toy(12)
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


def test_of_two_schedulers_of_torch_one_is_to_be_made():
    pair = [TorchScheduler(SCHEDULERS[name]) for name in ("StepLR", "LambdaLR")]
    with pytest.raises(ScheduleConflictError, match=r"returns ChainedScheduler\(\[\.\.\.\]\)"):
        toy().fit(1, cbs=pair)

    def chained(opt):
        return lr_scheduler.ChainedScheduler([SCHEDULERS[n](opt) for n in ("StepLR", "LambdaLR")])

    learn = toy(6)
    learn.fit(1, cbs=[TorchScheduler(chained)])
    assert recorded(learn) == bare_rates(chained, 6)


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
def test_a_cycle_within_a_chain_drives_the_momentum_too(name):
    def chained(opt):
        return lr_scheduler.ChainedScheduler([SCHEDULERS[name](opt)])

    with pytest.raises(ScheduleConflictError, match="both schedule 'momentum'"):
        toy(12).fit(1, cbs=[TorchScheduler(chained), MomentumCycler()])
    learn = toy(12)
    learn.fit(1, cbs=[TorchScheduler(chained)])
    assert recorded(learn) == bare_rates(chained, 12)


# The length -------------------------------------------------------------------------------


def cycle_of(total_steps, opt):
    return lr_scheduler.OneCycleLR(opt, 0.3, total_steps=total_steps)


def two_phases(total_steps, opt):
    first = lr_scheduler.ConstantLR(opt, 0.5, total_iters=2)
    second = cycle_of(total_steps - 2, opt)
    return lr_scheduler.SequentialLR(opt, [first, second], milestones=[2])


def within(kind):
    def make(total_steps, opt):
        return kind([cycle_of(total_steps, opt), lr_scheduler.ExponentialLR(opt, 0.9)])

    return make


@pytest.mark.parametrize("make", [cycle_of, two_phases, within(lr_scheduler.ChainedScheduler)])
@pytest.mark.parametrize(
    ("options", "every", "right"),
    [
        ({"n_epoch": 3}, "update", 18),
        ({"n_epoch": 3}, "epoch", 3),
        ({"n_epoch": 9, "max_updates": 8}, "update", 8),
        ({"n_epoch": 9, "max_updates": 15}, "epoch", 3),  # the third is cut short
        ({"n_epoch": None, "max_updates": 15}, "epoch", 3),
        ({"n_epoch": 3, "steps_per_epoch": 5}, "update", 15),
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_a_cycle_of_torch_in_a_fit_of_another_length_is_refused_before_the_first_update(
    make, options, every, right
):
    for wrong in (right - 1, right + 1):
        learn = toy(6)
        before = in_force(learn.opt), [set(group) for group in learn.opt.param_groups]
        if make is two_phases and wrong < 3:
            continue  # no cycle at all
        with pytest.raises(ValueError, match=rf"OneCycleLR\(total_steps=\d+\) has \d+ {every}s in"):
            learn.fit(**options, cbs=[TorchScheduler(partial(make, wrong), every=every)])
        assert learn.total_updates == 0
        assert before == (in_force(learn.opt), [set(group) for group in learn.opt.param_groups])
    learn = toy(6)
    learn.fit(**options, cbs=[TorchScheduler(partial(make, right), every=every)])
    rates = [rate for rate, _ in bare_rates(partial(make, right), right)]
    assert learn.recorder.history["lr"].values[-1] == rates[-1]


@pytest.mark.parametrize("first", [True, False])
def test_accumulation_counts_whichever_comes_first(first):
    callbacks = [TorchScheduler(partial(cycle_of, 4)), GradientAccumulation(2)]
    learn = toy(8)
    learn.fit(1, cbs=callbacks if first else callbacks[::-1])
    assert recorded(learn) == bare_rates(partial(cycle_of, 4), 4)
    with pytest.raises(ValueError, match="has 8 updates in this fit"):
        learn.fit(1, cbs=[TorchScheduler(partial(cycle_of, 4))])


def test_a_cycle_of_torch_needs_a_fit_whose_length_is_known():
    learn = toy(6)
    learn.dls.train = (batch for batch in list(learn.dls.train))
    cycle = TorchScheduler(partial(cycle_of, 5))
    with pytest.raises(ValueError, match="cannot be known: give max_updates= or steps_per_epoch="):
        learn.fit(1, cbs=[cycle])
    learn.fit(1, max_updates=5, cbs=[cycle])
    assert recorded(learn) == bare_rates(partial(cycle_of, 5), 5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4), "rises again after them"),
        (lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5), None),  # the lowest rate comes last
        (lambda opt: lr_scheduler.CosineAnnealingLR(opt, 6), None),  # it would be the next
        (lambda opt: lr_scheduler.CosineAnnealingLR(opt, 7), "does not come to its end"),
        (lambda opt: lr_scheduler.PolynomialLR(opt, 4), "is 0 after them"),
        (lambda opt: lr_scheduler.PolynomialLR(opt, 6), None),
        (lambda opt: lr_scheduler.PolynomialLR(opt, 60), "does not come to its end"),
        (lambda opt: lr_scheduler.LinearLR(opt, total_iters=2), None),
        (lambda opt: lr_scheduler.LinearLR(opt, total_iters=7), "does not come to its end"),
        (lambda opt: lr_scheduler.StepLR(opt, 100), None),
    ],
)
def test_a_scheduler_that_turns_or_stops_elsewhere_than_the_fit_is_told(make, said, caplog):
    toy(6).fit(1, cbs=[TorchScheduler(make)])
    told = [r.message for r in caplog.records if "TorchScheduler" in r.message]
    assert len(told) == (said is not None)
    assert all(said in message and "has 6 updates" in message for message in told)


# Refusals of conflicts --------------------------------------------------------------------


def test_a_schedule_of_momentum_conflicts_only_where_the_scheduler_cycles_it():
    learn = toy(4)
    learn.fit(1, cbs=[TorchScheduler(SCHEDULERS["StepLR"]), MomentumCycler()])
    before = [dict(group) for group in learn.opt.param_groups]
    with pytest.raises(ScheduleConflictError, match="both schedule 'momentum'"):
        learn.fit(
            1, lr=before[0]["lr"], cbs=[TorchScheduler(SCHEDULERS["OneCycleLR"]), MomentumCycler()]
        )
    for group, values in zip(learn.opt.param_groups, before, strict=True):
        kept = values | {"momentum": 0.9}  # a fit begins with the one that the optimizer was given
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in kept.items() if k != "params"
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
