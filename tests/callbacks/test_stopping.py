import logging
import math

import numpy as np
import pytest
import torch
from grouped_learner import record
from landings import N, learner
from scripted import scripted_learner
from torch.optim import lr_scheduler

from onecycle import (
    Callback,
    CancelValid,
    EarlyStopping,
    ParamScheduler,
    ReduceLROnPlateau,
    ScheduleConflictError,
    Stage,
    constant,
)
from onecycle.callbacks.monitor import Monitor
from onecycle.testing import toy_learner

NAN, INF = math.nan, math.inf


def epochs_run(learn, values, n_epoch=9, **options):
    """Fit until it stops; return the number of epochs."""
    stop = EarlyStopping("score", **options)
    before = len(learn.recorder.history.get("valid_loss", ()))
    learn.fit(n_epoch, cbs=[stop])
    return len(learn.recorder.history["valid_loss"]) - before


# EarlyStopping


@pytest.mark.parametrize(
    ("values", "options", "stops_after"),
    [
        ([3, 2, 1, 2], {"mode": "min"}, 4),
        ([1, 2, 3, 3], {"mode": "max"}, 4),  # equal is not better
        ([3, 2, 2, 1, 1, 1], {"mode": "min", "patience": 2}, 6),  # a better one begins anew
        ([1.0, 0.95, 0.9, 0.85], {"mode": "min", "min_delta": 0.5, "patience": 3}, 4),
        ([1.0, 0.75, 0.5, 0.25], {"mode": "min", "min_delta": 0.25}, 2),  # exactly min_delta
        ([NAN, NAN], {"mode": "min"}, 1),
        ([NAN, 5, 4, NAN, 6], {"mode": "min", "patience": 2}, 5),
        ([INF, 5, 5], {"mode": "min"}, 3),
    ],
)
def test_fit_ends_after_so_many_epochs_without_improvement(values, options, stops_after):
    learn = scripted_learner([*values, *[0] * 9])
    assert epochs_run(learn, values, **options) == stops_after
    assert learn.stop_reason.startswith("score ")


@pytest.mark.parametrize(
    ("values", "options", "stops_after", "why"),
    [
        ([3, 2, 1, 0], {"mode": "min", "target": 2.0}, 2, "score is 2, as good as the target of 2"),
        ([1, 2, 5], {"mode": "max", "target": 4}, 3, "score is 5, as good as the target of 4"),
        ([5, 9, 9.5], {"mode": "min", "limit": 9.0, "patience": 5}, 3, "past the limit of 9"),
        ([5, NAN, 4], {"mode": "min", "limit": 9, "patience": 5}, 2, "score is nan, past the"),
        ([5, INF, 4], {"mode": "min", "limit": 9, "patience": 5}, 2, "score is inf, past the"),
        ([5, 1, 0], {"mode": "max", "limit": 0.5, "patience": 5}, 3, "score is 0, past the limit"),
        ([3, 3, 3, 1], {"mode": "min", "target": 1, "patience": None}, 4, "as good as the target"),
        ([NAN, 3, 1], {"mode": "min", "target": 1, "patience": None}, 3, "as good as the target"),
        ([3, 3, 1], {"mode": "min", "target": 1, "patience": 1}, 2, "has not improved"),
        ([3, 2, 9], {"mode": "min", "target": 1, "limit": 8}, 3, "past the limit"),
    ],
)
def test_fit_ends_at_a_threshold(values, options, stops_after, why):
    learn = scripted_learner([*values, *[0] * 9])
    assert epochs_run(learn, values, **options) == stops_after
    assert why in learn.stop_reason


def test_target_may_be_reached_by_a_landing_and_a_limit_ends_at_once():
    learn = scripted_learner([3, 2, 2, 2, 2])
    land = {"action": "land", "land_updates": 4}
    stop = EarlyStopping("score", mode="min", patience=None, target=2.5, **land)
    learn.fit(9, cbs=[stop])
    assert learn.n_updates == 2 * 2 + 4
    learn = scripted_learner([3, 8, 2, 2, 2])
    learn.fit(9, cbs=[EarlyStopping("score", mode="min", limit=7, **land)])
    assert learn.n_updates == 2 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": None}, "needs target= or limit="),
        ({"target": math.inf}, "target"),
        ({"limit": "9"}, "limit"),
        ({"target": 3.0, "limit": 2.0, "mode": "min"}, "target must be better than limit"),
        ({"target": 1.0, "limit": 2.0, "mode": "max"}, "target must be better than limit"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(options, message):
    learn = scripted_learner([1, 2, 3])
    with pytest.raises((ValueError, TypeError), match=message):
        learn.fit(3, cbs=[EarlyStopping("score", **options)])
    assert learn.total_updates == 0


def test_fit_that_improves_runs_to_its_end():
    learn = scripted_learner(range(9))
    assert epochs_run(learn, range(9), mode="max") == 9
    assert learn.stop_reason is None


@pytest.mark.parametrize(
    "name", ["my_loss", "error_rate", "MSE", "rmse", "mae", "MeanAbsoluteError", "perplexity"]
)
def test_mode_auto_takes_less_as_better_by_the_name(name):
    learn = scripted_learner([3, 2, 1, 0, 1], name)
    learn.fit(9, cbs=[EarlyStopping(name)])
    assert len(learn.recorder.history[name]) == 5


def test_default_monitors_the_validation_loss():
    learn = toy_learner(n_batches=2)
    learn.fit(9, lr=0.0, cbs=[EarlyStopping()])  # nothing moves: the second epoch is no better
    losses = learn.recorder.history["valid_loss"].values
    assert len(losses) == 2
    assert learn.stop_reason == f"valid_loss has not improved on {losses[0]:.6g} for 1 epoch"


def test_train_loss_is_the_mean_over_the_epoch_and_needs_no_validation():
    # Batch losses by epoch: (1, 5), (4, 1), (0, 9): means 3, 2.5, 4.5.
    losses = iter([1.0, 5.0, 4.0, 1.0, 0.0, 9.0])
    learn = toy_learner(n_batches=2, loss_func=lambda pred, yb: pred.sum() * 0 + next(losses))
    learn.dls.valid = None
    learn.fit(3, cbs=[EarlyStopping("train_loss")])
    assert learn.stop_reason == "train_loss has not improved on 2.5 for 1 epoch"
    assert learn.total_updates == 6


def test_epoch_without_validation_does_not_count():
    def cancel(learn):
        if learn.epoch == 1:
            raise CancelValid("not this time")

    learn = scripted_learner([2, 1, 1])
    stop = EarlyStopping("score", mode="min")
    learn.fit(9, cbs=[stop, Callback(before_validate=cancel)])
    assert learn.n_updates == 8  # epochs 0, 2 and 3 have the values; 1 has none


def test_second_fit_begins_anew():
    learn = scripted_learner([1, 2, 8, 7, 6])  # 8, 7, 6 are worse than 1, and improve
    stop = EarlyStopping("score", mode="min")
    learn.fit(9, cbs=[stop])
    assert learn.n_updates == 4
    learn.fit(3, cbs=[stop])
    assert learn.n_updates == 6
    assert learn.stop_reason is None


def test_stopped_epoch_counts_in_the_learners_life():
    learn = scripted_learner([1, 2, 3])
    learn.fit(9, cbs=[EarlyStopping("score", mode="min")])
    assert learn.total_epochs == 2


def test_state_goes_on_after_a_restart():
    values = [5, 6, 7, 8, 9]
    whole = EarlyStopping("score", mode="min", patience=3)
    states = []
    save = Callback(after_epoch=lambda learn: states.append(whole.state_dict()))
    save.stage = Stage.SAVE
    scripted_learner(values).fit(9, cbs=[whole, save])
    assert states[1] == {"monitor": {"seen": 2, "best": 5.0}, "waited": 1}

    learn = scripted_learner([6, 7, 8, 9])
    stop = EarlyStopping("score", mode="min", patience=3)
    state = states[0] | {"monitor": {"seen": 0, "best": 5.0}}  # this learner's record is empty
    resume = Callback(before_train=lambda learn: learn.epoch or stop.load_state_dict(state))
    learn.fit(9, cbs=[stop, resume])
    assert learn.n_updates == 6  # 6, 7, 8: three epochs no better than the 5 before the restart


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (EarlyStopping, {"mode": "less"}, "mode must be"),
        (EarlyStopping, {"min_delta": -1.0}, "min_delta must not be negative"),
        (EarlyStopping, {"patience": 0}, "patience must be"),
        (EarlyStopping, {"patience": 1.5}, "patience must be an integer"),
        (EarlyStopping, {"patience": True}, "patience must be an integer"),
        (ReduceLROnPlateau, {"factor": 1.0}, "factor must be"),
        (ReduceLROnPlateau, {"factor": 0.0}, "factor must be"),
        (ReduceLROnPlateau, {"min_lr": -1e-3}, "min_lr must not be negative"),
        (ReduceLROnPlateau, {"cooldown": -1}, "cooldown must be at least 0"),
        (ReduceLROnPlateau, {"threshold": 5.0}, r"threshold is a fraction .* \(did you mean 0.05"),
    ],
)
def test_arguments_out_of_range_are_refused(kind, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        kind(**options)


@pytest.mark.parametrize("kind", [EarlyStopping, ReduceLROnPlateau])
def test_unknown_name_is_refused_before_the_first_batch_and_the_names_are_listed(kind):
    learn = toy_learner()
    with pytest.raises(ValueError, match=r"'acuracy' .* train_loss, valid_loss, mse\n"):
        learn.fit(1, cbs=[kind("acuracy")])
    assert learn.total_updates == 0


def test_validation_loss_without_a_validation_loader_is_refused():
    learn = toy_learner()
    learn.fit(1)  # the record has a valid_loss, of a fit that had a loader
    learn.dls.valid = None
    with pytest.raises(ValueError, match=r"records train_loss \(the learner has no validation"):
        learn.fit(1, cbs=[EarlyStopping()])


# ReduceLROnPlateau


def rates_by_epoch(learn):
    return learn.recorder.history["lr"].values[::2].tolist()  # two updates an epoch


def test_rate_falls_after_patience_epochs_and_counts_anew():
    learn = scripted_learner([5, 4, 4, 4, 4, 4, 3, 3])
    reduce = ReduceLROnPlateau("score", mode="min", patience=2, factor=0.5)
    learn.fit(8, lr=0.8, cbs=[reduce])
    # No better: epochs 2, 3 (the rate falls), 4, 5 (it falls), 7.
    assert rates_by_epoch(learn) == [0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert learn.groups.get("lr") == [0.2]


def test_rates_of_all_groups_fall_each_to_the_floor_and_not_beyond():
    def halves(model):
        return [list(model[0].parameters()), list(model[2].parameters())]

    learn = scripted_learner([1] * 4, splitter=halves)
    reduce = ReduceLROnPlateau("score", mode="max", factor=0.1, min_lr=0.05)
    learn.fit(4, lr=[0.01, 1.0], cbs=[reduce])
    assert rates_by_epoch(learn) == [[0.01, 1.0], [0.01, 1.0], [0.01, 0.1], [0.01, 0.05]]


def test_second_fit_has_its_own_rates_and_begins_anew():
    learn = scripted_learner([1, 1, 1, 1])
    reduce = ReduceLROnPlateau("score", mode="max", factor=0.5)
    learn.fit(2, lr=0.8, cbs=[reduce])
    assert learn.groups.get("lr") == [0.4]
    learn.fit(2, lr=0.8, cbs=[reduce])
    assert rates_by_epoch(learn) == [0.8, 0.8, 0.8, 0.8]


def test_lowered_rate_is_logged(caplog):
    caplog.set_level(logging.INFO, "onecycle")
    scripted_learner([1, 1]).fit(
        2, lr=0.8, cbs=[ReduceLROnPlateau("score", mode="max", factor=0.5)]
    )
    assert caplog.messages == [
        "ReduceLROnPlateau: score has not improved on 1 for 1 epoch: learning rate 0.4"
    ]


def test_schedule_of_the_rate_is_a_conflict_and_one_of_momentum_is_not():
    learn = scripted_learner([1, 1])
    reduce = ReduceLROnPlateau("score", mode="max", factor=0.5)
    with pytest.raises(
        ScheduleConflictError, match=r"ReduceLROnPlateau and ParamScheduler .* 'lr'"
    ):
        learn.fit(2, cbs=[reduce, ParamScheduler({"lr": constant(0.1)})])
    with pytest.raises(ScheduleConflictError, match="ReduceLROnPlateau and OneCycleSchedule"):
        learn.fit_one_cycle(2, 0.1, cbs=[reduce])
    assert learn.total_updates == 0
    learn.fit(2, lr=0.8, cbs=[reduce, ParamScheduler({"momentum": constant(0.9)})])
    assert learn.groups.get("lr") == [0.4]


def test_rate_of_the_next_epoch_goes_on_after_a_restart():
    learn = scripted_learner([6, 4, 4])
    reduce = ReduceLROnPlateau("score", mode="min", patience=2, factor=0.5)
    state = {"monitor": {"seen": 0, "best": 5.0}, "waited": 1, "resting": 0}
    resume = Callback(before_train=lambda learn: learn.epoch or reduce.load_state_dict(state))
    learn.fit(3, lr=0.8, cbs=[reduce, resume])
    assert rates_by_epoch(learn) == [0.8, 0.4, 0.4]


def test_early_stopping_lands_instead_of_stopping():
    learn = learner()
    stop = EarlyStopping(action="land", land_updates=10)
    learn.fit(9, lr=0.0, cbs=[stop])  # nothing moves: the second epoch is no better
    assert learn.n_updates == 2 * N + 10
    loss = record(learn, "valid_loss")[0]
    assert learn.stop_reason == (
        f"valid_loss has not improved on {loss:.6g} for 1 epoch; "
        "landed in 10 updates, from update 13"
    )


def test_early_stopping_lands_once_also_over_many_epochs():
    learn = learner()
    learn.fit(9, lr=0.0, cbs=[EarlyStopping(action="land", land_updates=5 * N)])
    assert learn.n_updates == 7 * N


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"action": "land"}, "go together"),
        ({"land_updates": 5}, "go together"),
        ({"action": "land", "land_updates": 0}, "land_updates must be"),
        ({"action": "fly"}, "action must be"),
    ],
)
def test_what_early_stopping_cannot_do_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        EarlyStopping(**options)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "options", [(1, 0.0, 0), (2, 0.0, 3), (1, 0.1, 0), (3, 0.05, 2), (1, 0.3, 1)]
)
def test_patience_threshold_and_cooldown_are_those_of_torch(mode, options):
    patience, threshold, cooldown = options
    values = np.random.default_rng(3).uniform(1, 2, 30) ** 2
    opt = torch.optim.SGD([torch.zeros(1)], lr=0.8)
    theirs = lr_scheduler.ReduceLROnPlateau(
        opt, mode, 0.5, patience - 1, threshold=threshold, cooldown=cooldown, eps=0.0
    )
    expected = []
    for value in values:
        expected.append(opt.param_groups[0]["lr"])
        theirs.step(value)
    learn = scripted_learner(values.tolist())
    reduce = ReduceLROnPlateau(
        "score", mode=mode, patience=patience, factor=0.5, threshold=threshold, cooldown=cooldown
    )
    learn.fit(30, lr=0.8, cbs=[reduce])
    assert rates_by_epoch(learn) == expected
    assert len(set(expected)) > 3


def test_a_threshold_is_a_part_of_the_size_of_the_best_below_zero_too():
    monitor = Monitor("score", "max", threshold=0.1)
    monitor.best = -10.0
    assert [monitor.is_better(value) for value in (-9.5, -9.0, -8.9)] == [False, False, True]
    monitor.best = -INF
    assert monitor.is_better(-1e9)


def test_the_cooldown_goes_on_after_a_restart():
    learn = scripted_learner([6, 7, 8, 9])
    reduce = ReduceLROnPlateau("score", mode="min", factor=0.5, cooldown=9)
    state = {"monitor": {"seen": 0, "best": 5.0}, "waited": 0, "resting": 2}
    resume = Callback(before_train=lambda learn: learn.epoch or reduce.load_state_dict(state))
    learn.fit(4, lr=0.8, cbs=[reduce, resume])
    assert rates_by_epoch(learn) == [0.8, 0.8, 0.8, 0.4]
    assert reduce.state_dict()["resting"] == 8


# Which way is better


@pytest.mark.parametrize("name", ["my_loss", "error_rate", "perplexity"])
def test_nan_is_never_the_best_whatever_came_before(name):
    learn = scripted_learner([NAN, 3, NAN, 2, 1, NAN], name)
    best = []
    stop = EarlyStopping(name, patience=9)
    keep = Callback(after_epoch=lambda learn: best.append(stop.state_dict()["monitor"]["best"]))
    learn.fit(6, cbs=[stop, keep])
    assert best == [None, 3, 3, 2, 1, 1]
