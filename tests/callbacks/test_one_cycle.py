"""The cycle of every policy: its values at every update, a second way."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from grouped_learner import record, two_groups
from refused import refused
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from onecycle import (
    Callback,
    MomentumCycler,
    OneCycleSchedule,
    constant,
    cosine,
    join,
    linear,
    momentum_cycle,
    one_cycle,
    three_phase,
    torch_one_cycle,
)
from onecycle.testing import toy_learner

POLICIES = ["cosine", "linear", "three_phase", "smith", "torch"]
U = 10
POS = np.arange(U) / (U - 1)


def hand_made(start, peak, end, anneal, p, pct_start=0.25):
    """Compute a cycle once more, in plain Python."""
    if p < pct_start:
        a, b, t = start, peak, p / pct_start
    else:
        a, b, t = peak, end, (p - pct_start) / (1 - pct_start)
    w = (1 + math.cos(math.pi * t)) / 2 if anneal == "cosine" else 1 - t
    return a * w + b * (1 - w)


@pytest.mark.parametrize("policy", ["cosine", "linear"])
def test_one_cycle_on_ten_updates_has_exactly_the_values_of_the_schedule(policy):
    learn = toy_learner(5)
    learn.fit_one_cycle(2, 0.3, policy=policy)
    lrs, momenta = record(learn, "lr"), record(learn, "momentum")
    assert lrs.tolist() == one_cycle(0.3, anneal=policy)(POS).tolist()
    assert momenta.tolist() == momentum_cycle(anneal=policy)(POS).tolist()
    assert lrs == pytest.approx(
        [hand_made(0.3 / 25, 0.3, 0.3 / 1e5, policy, p) for p in POS], rel=1e-12
    )
    assert momenta == pytest.approx(
        [hand_made(0.95, 0.85, 0.95, policy, p) for p in POS], rel=1e-12
    )
    assert (lrs[0], lrs[-1]) == (0.3 / 25, 0.3 / 1e5)  # to the last bit
    assert (momenta[0], momenta[-1]) == (0.95, 0.95)


@pytest.mark.parametrize(
    ("given", "theirs"),
    [({}, {}), ({"div_final": 1e3, "pct_start": 0.6}, {"final_div_factor": 1e3, "pct_start": 0.6})],
    ids=["by default", "as told"],
)
def test_the_torch_policy_equals_torchs_scheduler(given, theirs):
    opt = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = OneCycleLR(opt, 0.3, total_steps=U, **theirs)
    expected = []
    for _ in range(U):
        group = opt.param_groups[0]
        expected.append((group["lr"], group["momentum"]))
        opt.step()
        if len(expected) < U:
            scheduler.step()
    learn = toy_learner(5)
    learn.fit_one_cycle(2, 0.3, policy="torch", **given)
    assert record(learn, "lr") == pytest.approx([lr for lr, _ in expected], rel=1e-12)
    assert record(learn, "momentum") == pytest.approx([m for _, m in expected], rel=1e-12)
    assert record(learn, "lr")[-1] == 0.3 / 25 / given.get("div_final", 1e4)


def lines(corners, p):
    """Interpolate in straight lines, with NumPy."""
    return np.interp(p, *np.array(corners).T)


def test_the_three_phase_policy_rises_falls_and_goes_far_below_its_start():
    learn = toy_learner(5)
    learn.fit_one_cycle(2, 0.3, policy="three_phase", moms=(0.95, 0.8, 0.9))
    rates = [(0, 0.03), (0.45, 0.3), (0.9, 0.03), (1, 0.0003)]
    assert record(learn, "lr") == pytest.approx(lines(rates, POS), rel=1e-12)
    momenta = [(0, 0.95), (0.45, 0.8), (0.9, 0.9), (1, 0.9)]
    assert record(learn, "momentum") == pytest.approx(lines(momenta, POS), rel=1e-12)


def test_the_smith_policy_falls_towards_zero_and_its_momentum_cycles_on():
    learn = toy_learner(5)
    learn.fit_one_cycle(2, 0.3, policy="smith", moms=(0.95, 0.8, 0.95))
    falling = 0.3 * (1 - (POS - 0.45) / 0.45)
    expected = np.where(POS < 0.45, 0.03 + 0.27 * POS / 0.45, np.maximum(falling, 0.03 / 1000))
    assert record(learn, "lr") == pytest.approx(expected, rel=1e-9)
    momenta = [(0, 0.95), (0.45, 0.8), (0.9, 0.95), (1, 0.95 - 0.075 * 0.1 / 0.45)]
    assert record(learn, "momentum") == pytest.approx(lines(momenta, POS), rel=1e-12)


def test_div_div_final_and_pct_start_shape_every_policy():
    shape = {"div": 5.0, "div_final": 500.0, "pct_start": 0.25}
    for policy, last in {"three_phase": 0.002, "smith": 0.002, "linear": 0.002}.items():
        learn = toy_learner(9)
        learn.fit_one_cycle(1, 1.0, **shape, policy=policy)
        lrs, momenta = record(learn, "lr"), record(learn, "momentum")
        assert (lrs[0], lrs[2], lrs[-1]) == pytest.approx((0.2, 1.0, last), rel=1e-12)
        assert (momenta[0], momenta[2]) == pytest.approx((0.95, 0.85), rel=1e-12)
        if policy != "linear":
            assert momenta[4] == pytest.approx(0.95, rel=1e-12)


def test_any_three_phases_come_by_a_schedule():
    learn = toy_learner(U)
    phases = three_phase(0.1, fraction_up=0.2, fraction_down=0.7)
    learn.fit_one_cycle(1, 0.1, policy=phases)
    expected = lines([(0, 0.01), (0.2, 0.1), (0.9, 0.01), (1, 0.0001)], POS)
    assert record(learn, "lr") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pct_start", [0.0, 0.5, 1.0])
def test_zero_length_phases_are_skipped_and_the_ends_exact(pct_start):
    learn = toy_learner(U)
    learn.fit_one_cycle(1, 0.1, pct_start=pct_start)
    lrs = record(learn, "lr")
    assert lrs[0] == (0.1 if pct_start == 0 else 0.1 / 25)
    assert lrs[-1] == (0.1 if pct_start == 1 else 0.1 / 1e5)


def test_an_own_schedule_gives_the_last_groups_rate_and_the_others_keep_their_ratios():
    own = join([(0.5, linear(0.01, 0.2)), (0.5, cosine(0.2, 0.0))])
    learn = toy_learner(U, splitter=two_groups)
    learn.fit_one_cycle(1, slice(0.01, 0.1), policy=own)
    lrs, expected = record(learn, "lr"), own(POS)
    assert lrs[:, 1].tolist() == expected.tolist()
    assert lrs[:, 0] == pytest.approx(expected / 10, rel=1e-12)


def test_an_own_schedule_leaves_momentum_alone_unless_asked():
    learn = toy_learner(U)
    learn.fit_one_cycle(1, 0.1, policy=constant(0.1))
    assert set(record(learn, "momentum")) == {0.9}
    learn = toy_learner(U)
    learn.fit_one_cycle(1, 0.1, policy=constant(0.1), moms=(0.9, 0.8, 0.9))
    assert record(learn, "momentum").tolist() == momentum_cycle((0.9, 0.8, 0.9))(POS).tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_slices_give_each_group_its_own_cycle(policy):
    learn = toy_learner(U, splitter=two_groups)
    learn.fit_one_cycle(1, slice(0.001, 0.1), policy=policy)
    lrs = record(learn, "lr")
    for g, peak in enumerate((0.001, 0.1)):
        one = toy_learner(U)
        one.fit_one_cycle(1, peak, policy=policy)
        assert lrs[:, g].tolist() == record(one, "lr").tolist()
    assert record(learn, "momentum").shape == (U, 2)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_update_in_all_has_the_first_value(policy):
    learn, positions = toy_learner(1), []
    spy = Callback(before_batch=lambda learn: positions.append(learn.pos))
    spy.during = "train"
    learn.fit_one_cycle(1, 0.1, policy=policy, cbs=[spy])
    assert positions == [0.0]
    first = {"torch": torch_one_cycle(1, max_lr=0.1, pct_start=0.3, final_div_factor=1e4)(0.0)}
    div = 10 if policy in ("three_phase", "smith") else 25
    assert record(learn, "lr").tolist() == [first.get(policy, 0.1 / div)]


def test_two_updates_have_both_ends():
    learn = toy_learner(2)
    learn.fit_one_cycle(1, 0.1)
    assert record(learn, "lr").tolist() == [0.1 / 25, 0.1 / 1e5]


def test_a_peak_of_zero_with_an_own_schedule_is_refused():
    callback = OneCycleSchedule(0.0, policy=linear(0.1, 0.0))
    refused(ValueError, "lr_max of the last group must be above 0", callback)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(OneCycleSchedule, 0.1, div=0), "div must be positive"),
        (partial(OneCycleSchedule, 0.1, div_final=-1), "div_final must be positive"),
        (partial(OneCycleSchedule, 0.1, pct_start=30), r"did you mean 0.3\?"),
        (partial(OneCycleSchedule, 0.1, pct_start=-0.1), "pct_start is a fraction"),
        (partial(OneCycleSchedule, 0.1, policy="cos"), "policy must be 'cosine'"),
        (partial(MomentumCycler, (0.9, 0.8)), "three numbers"),
        (partial(MomentumCycler, (0.9, -0.1, 0.9)), "three numbers"),
        (partial(MomentumCycler, (0.9, 0.8, math.nan)), "three numbers"),
        (partial(MomentumCycler, (0.9, 0.8, 0.7), policy="torch"), "momentum it began with"),
        (partial(MomentumCycler, (0.9, 0.8, 0.7), policy="smith"), "momentum it began with"),
        (partial(MomentumCycler, policy="sine"), "policy must be"),
        (partial(MomentumCycler, pct_start=0.6, policy="smith"), "pct_start is at most 0.5"),
        (partial(MomentumCycler, pct_start=1e-6, policy="smith"), "pct_start is at least 0.001"),
        (partial(OneCycleSchedule, 0.1, pct_start=0.6, policy="three_phase"), "at most 0.5"),
        (partial(OneCycleSchedule, 0.1, pct_start=30, policy="three_phase"), r"did you mean 0.3"),
    ],
)
def test_bad_arguments_are_refused_where_they_are_written(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("make", [lambda: MomentumCycler(0.9), lambda: MomentumCycler("abc")])
def test_moms_that_are_no_three_numbers_are_refused_in_words(make):
    with pytest.raises((TypeError, ValueError), match="three numbers"):
        make()
