import logging
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from grouped_learner import record, two_groups
from refused import refused
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from onecycle import (
    Callback,
    CancelStep,
    Learner,
    MomentumCycler,
    OneCycleSchedule,
    ParamScheduler,
    PlannedScheduler,
    Schedule,
    ScheduleConflictError,
    constant,
    join,
    join_steps,
    linear,
    one_cycle,
)
from onecycle.callbacks.param_scheduler import BLOCK
from onecycle.testing import toy_learner

U = 10
POS = np.arange(U) / (U - 1)


def test_a_planned_scheduler_is_told_the_number_of_updates():
    def warm_up(n):
        told.append(n)
        return {"lr": join_steps(n, [(3, linear(0.0, 0.3)), (n, constant(0.3))])}

    told, learn = [], toy_learner(6)
    learn.fit(2, cbs=[PlannedScheduler(warm_up)])
    assert set(told) == {12}
    assert record(learn, "lr") == pytest.approx([0, 0.1, 0.2] + [0.3] * 9)


def test_what_a_planned_scheduler_makes_is_checked():
    callback = PlannedScheduler(lambda n: {"lr": 0.1})
    refused(TypeError, "expected a Schedule of lr", callback)


@pytest.mark.parametrize("n_epoch", [1, 2, 5])
def test_the_cut_into_epochs_does_not_matter(n_epoch):
    learn = toy_learner(20 // n_epoch)
    learn.fit_one_cycle(n_epoch, 0.1)
    assert record(learn, "lr").tolist() == one_cycle(0.1)(np.arange(20) / 19).tolist()


def test_a_schedule_class_of_ones_own_drives_the_rate():
    @dataclass(frozen=True)
    class Triangle(Schedule):
        def _values(self, p):
            return 1 - abs(2 * p - 1)

    learn = toy_learner(5)
    learn.fit(1, cbs=[ParamScheduler({"lr": Triangle()})])
    assert record(learn, "lr").tolist() == [0.0, 0.5, 1.0, 0.5, 0.0]


def test_a_fit_longer_than_a_block_has_exactly_the_values_of_the_schedule():
    n = BLOCK + 50
    learn = toy_learner(n, batch_size=1)
    learn.dls.valid = None
    learn.fit_one_cycle(1, 0.01)
    assert record(learn, "lr").tolist() == one_cycle(0.01)(np.arange(n) / (n - 1)).tolist()


def test_the_value_in_force_is_there_before_any_other_callback_looks():
    early = Callback(before_batch=lambda learn: seen.append(learn.groups.get("lr")[0]))
    early.during, seen = "train", []
    learn = toy_learner(4)
    learn.fit_one_cycle(1, 0.1, cbs=[early])
    assert seen == record(learn, "lr").tolist()


def test_after_the_fit_rate_and_momentum_stay_and_the_next_fit_sets_its_own():
    learn = toy_learner(4, lr=0.02)
    learn.fit_one_cycle(1, 0.1, moms=(0.95, 0.85, 0.9))
    assert learn.groups.get("lr") == [0.1 / 1e5]
    assert learn.groups.get("momentum") == [0.9]
    learn.fit(1)
    assert record(learn, "lr")[4:].tolist() == [0.02] * 4


def test_a_scheduler_can_be_used_for_several_fits():
    cycle = OneCycleSchedule(0.1)
    learn = toy_learner(4, cbs=(cycle,))
    learn.fit(1)
    learn.fit(2)
    lrs = record(learn, "lr")
    assert lrs[:4].tolist() == one_cycle(0.1)(np.arange(4) / 3).tolist()
    assert lrs[4:].tolist() == one_cycle(0.1)(np.arange(8) / 7).tolist()


def test_a_plan_that_changes_after_the_scheduler_heard_of_the_fit_is_followed():
    def accumulate(learn):
        learn.batches_per_update = 2
        learn.plan_updates()

    def last_of_two(learn):
        if learn.batches_in_window < 2:
            raise CancelStep

    learn = toy_learner(10)
    cbs = [Callback(before_fit=accumulate, after_backward=last_of_two)]
    learn.fit_one_cycle(1, 0.1, cbs=cbs)
    assert record(learn, "lr").tolist() == one_cycle(0.1)(np.arange(5) / 4).tolist()


# Any hyperparameter -----------------------------------------------------------------------


def test_any_hyperparameter_can_be_scheduled_by_name():
    seen = {"beta2": [], "eps": [], "weight_decay": []}

    def look(learn):
        for name, values in seen.items():
            values.append(learn.groups.get(name)[0])

    schedules = {
        "beta2": linear(0.9, 0.99),
        "eps": constant(1e-6),
        "weight_decay": linear(0.2, 0.1),
    }
    learn = toy_learner(U)
    learn.fit(1, cbs=[ParamScheduler(schedules), Callback(after_step=look)])
    for name, schedule in schedules.items():
        assert seen[name] == schedule(POS).tolist()


def test_a_schedule_of_the_decay_leaves_norms_and_biases_alone():
    learn = toy_learner(3, wd=0.3)
    learn.fit(1, cbs=[ParamScheduler({"weight_decay": linear(0.3, 0.1)})])
    decay = {
        tuple(p.shape): group["weight_decay"]
        for group in learn.opt.param_groups
        for p in group["params"]
    }
    assert decay == {(8, 4): 0.1, (1, 8): 0.1, (8,): 0.0, (1,): 0.0}


def test_a_rate_schedule_drives_norms_and_biases_too():
    learn = toy_learner(3, wd=0.3)
    learn.fit_one_cycle(1, 0.1)
    assert [group["lr"] for group in learn.opt.param_groups] == [0.1 / 1e5] * 2


def test_none_leaves_a_group_alone():
    learn = toy_learner(3, lr=0.05, splitter=two_groups)
    learn.fit(1, cbs=[ParamScheduler({"lr": [None, linear(0.3, 0.1)]})])
    lrs = record(learn, "lr")
    assert lrs[:, 0].tolist() == [0.05] * 3
    assert lrs[:, 1] == pytest.approx([0.3, 0.2, 0.1])


def test_a_tensor_rate_is_driven_in_place():
    rate = torch.tensor(0.1, dtype=torch.float64)
    toy = toy_learner(4)
    opt = AdamW(toy.model.parameters(), lr=rate)
    learn = Learner(toy.dls, toy.model, F.mse_loss, opt=opt, device="cpu", seed=0)
    with learn.no_bar():
        learn.fit_one_cycle(1, 0.1)
    assert opt.param_groups[0]["lr"] is rate
    assert float(rate) == 0.1 / 1e5
    assert record(learn, "lr").tolist() == one_cycle(0.1)(np.arange(4) / 3).tolist()


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("lr", (OneCycleSchedule(0.1), ParamScheduler({"lr": constant(0.1)}))),
        ("lr", (OneCycleSchedule(0.1), OneCycleSchedule(0.1))),
        ("momentum", (MomentumCycler(), ParamScheduler({"momentum": constant(0.9)}))),
        ("lr", (ParamScheduler({"lr": [None, constant(0.1)]}), OneCycleSchedule(0.1))),
    ],
)
def test_two_schedules_of_one_hyperparameter_conflict(name, pair, order):
    learn = toy_learner(4, splitter=two_groups)
    words = f"both schedule '{name}' of parameter group [01]: remove one"
    refused(ScheduleConflictError, words, *pair[::order], learn=learn)


def test_a_schedule_of_the_learner_and_one_of_the_fit_conflict():
    learn = toy_learner(4, cbs=(OneCycleSchedule(0.1),))
    with pytest.raises(ScheduleConflictError, match="OneCycleSchedule and OneCycleSchedule"):
        learn.fit_one_cycle(1, 0.1)


def test_momentum_and_beta1_of_adam_are_the_same_hyperparameter():
    pair = ParamScheduler({"momentum": constant(0.9)}), ParamScheduler({"beta1": constant(0.8)})
    refused(ScheduleConflictError, "both schedule", *pair)


def test_different_groups_and_different_hyperparameters_do_not_conflict():
    learn = toy_learner(4, splitter=two_groups)
    learn.fit(
        1,
        cbs=[
            ParamScheduler({"lr": [linear(0.1, 0.2), None]}),
            ParamScheduler({"lr": [None, linear(0.3, 0.4)]}),
            ParamScheduler({"eps": constant(1e-7)}),
            MomentumCycler(),
        ],
    )
    assert record(learn, "lr")[[0, -1]].tolist() == [[0.1, 0.3], [0.2, 0.4]]


@pytest.mark.parametrize(
    ("name", "opt_func"),
    [("nonsense", AdamW), ("betas", AdamW), ("beta3", AdamW), ("beta1", SGD), ("foreach", SGD)],
)
def test_an_unknown_hyperparameter_is_refused(name, opt_func):
    words = f"{opt_func.__name__} has no hyperparameter '{name}'; it has lr"
    learn = toy_learner(4, opt_func=opt_func)
    refused(ValueError, words, ParamScheduler({name: constant(0.1)}), learn=learn)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_wrong_number_of_schedules_shows_the_groups(n):
    callback = ParamScheduler({"lr": [constant(0.1)] * n})
    words = rf"expected one schedule of lr, or 2.*got {n}(?s:.*)trainable"
    refused(ValueError, words, callback, learn=toy_learner(4, splitter=two_groups))


@pytest.mark.parametrize("given", [0.1, None, "cosine", [0.1], abs, lambda p: p])
def test_what_is_no_schedule_is_refused_when_the_callback_is_made(given):
    with pytest.raises(TypeError, match="expected a Schedule of lr"):
        ParamScheduler({"lr": given})


@dataclass(frozen=True)
class Late(Schedule):
    """Bad only in the last hundredth."""

    bad: float

    def _values(self, p):
        return np.where(p > 0.99, self.bad, 0.1)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay"])
def test_a_bad_value_is_refused_before_the_first_batch(name, bad):
    learn = toy_learner(3)
    words = rf"{name} must be finite and not negative.*Late\(bad={bad}\)"
    callback = ParamScheduler({name: Late(bad)})
    refused(ValueError, words, callback, learn=learn, max_updates=3)
    learn.dls.train = [next(iter(learn.dls.train))] * (4 * BLOCK)
    refused(ValueError, words, callback, learn=learn)


def test_a_momentum_that_reaches_one_is_refused_before_the_first_batch():
    callback = ParamScheduler({"momentum": linear(0.9, 1.0)})
    refused(ValueError, "momentum must be below 1; got 1.0", callback)


def test_a_dip_between_the_updates_that_are_made_harms_nobody():
    dip = join([(0.5, linear(0.1, 0.0)), (0.1, linear(-1.0, -1.0)), (0.4, linear(0.0, 0.1))])
    learn = toy_learner(2)
    learn.fit(1, cbs=[ParamScheduler({"lr": dip})])
    assert record(learn, "lr").tolist() == [0.1, 0.1]


def test_schedules_take_no_part_in_a_range_test(caplog):
    learn = toy_learner(8, cbs=(OneCycleSchedule(0.5),))
    with caplog.at_level(logging.WARNING):
        result = learn.lr_find(1e-5, 1e-2, num_it=5, show_plot=False)
    assert result.lrs[-1] == 1e-2
    assert "lr" not in learn.recorder.history
