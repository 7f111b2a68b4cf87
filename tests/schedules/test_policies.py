"""Each policy of the literature against its formula, update by update."""

import math
from functools import partial

import numpy as np
import pytest

from onecycle.schedules.policies import (
    clr_beta,
    clr_beta_momentum,
    fastai1_momentum,
    fastai1_one_cycle,
    flat_cos,
    one_cycle,
    sgdr,
    smith_momentum,
    smith_one_cycle,
    three_phase,
    three_phase_momentum,
    warmup_stable_decay,
)
from onecycle.schedules.shapes import constant, join_steps, linear
from onecycle.schedules.torch_like import torch_one_cycle


def positions(total_steps):
    return np.array([k / max(1, total_steps - 1) for k in range(total_steps)])


def cos_between(a, b, q):
    return a + (b - a) * (1 - math.cos(math.pi * q)) / 2


# --- fastai 0.7 ------------------------------------------------------------------------------

GOLDEN = {
    0: (0.1, 0.95),
    1: (0.12, 0.947778),
    22: (0.54, 0.901111),
    45: (1, 0.85),
    46: (0.98, 0.852222),
    67: (0.56, 0.898889),
    90: (0.1, 0.95),
    91: (0.0901, 0.95),
    95: (0.0505, 0.95),
    99: (0.0109, 0.95),
}


def test_clr_beta_has_the_golden_values_of_fastai():
    lrs = clr_beta(100, lr_max=1.0)(positions(100))
    momenta = clr_beta_momentum(100)(positions(100))
    for i, (lr, momentum) in GOLDEN.items():
        assert lrs[i] == pytest.approx(lr, rel=1e-12)
        assert momenta[i] == pytest.approx(momentum, rel=1e-6)


def clr_beta_by_hand(i, n, lr, div, pct, high, low):
    h = int(n * (1 - pct / 100) / 2)
    if i <= h and h:
        share = i / h
    elif i <= 2 * h and h:
        share = 1 - (i - h) / h
    else:
        return lr / div * (1 - 0.99 * (i - 2 * h) / (n - 2 * h)), high
    return lr * (1 + share * (div - 1)) / div, high - share * (high - low)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 100, 391 * 3])
@pytest.mark.parametrize(("div", "pct"), [(10, 10), (25, 13.68), (4, 0), (3, 100)])
def test_clr_beta_is_fastais_formula_at_every_batch(n, div, pct):
    expected = [clr_beta_by_hand(i, n, 0.8, div, pct, 0.95, 0.8) for i in range(n)]
    lrs, momenta = np.array(expected).T
    ours = clr_beta(n, lr_max=0.8, div=div, pct=pct)
    np.testing.assert_allclose(ours(positions(n)), lrs, rtol=1e-12)
    ours = clr_beta_momentum(n, pct=pct, max_mom=0.95, min_mom=0.8)
    np.testing.assert_allclose(ours(positions(n)), momenta, rtol=1e-12)


@pytest.mark.parametrize("half_cycle", [0.00099, 1e-12, 1e-200])
def test_smiths_momentum_refuses_lines_too_short_to_be_counted(half_cycle):
    with pytest.raises(ValueError, match=f"half_cycle must be at least 0.001.*{half_cycle}"):
        smith_momentum(half_cycle=half_cycle)


def test_smiths_shortest_lines_meet_the_momentum_where_they_should():
    every = smith_momentum(0.9, 0.5, half_cycle=0.001)
    assert every(0.001) == pytest.approx(0.5)
    assert every(0.003) == pytest.approx(0.7)
    assert every(0.002) == pytest.approx(0.9)


# --- fastai 1 --------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "pct"), [(1, 0.3), (3, 0.3), (10, 0.3), (391, 0.45), (50, 0.0)])
def test_fastai1_steps_two_schedules_after_each_batch(n, pct):
    rise = int(n * pct)
    phases = [(rise, (0.8 / 25, 0.8), (0.95, 0.85)), (n - rise, (0.8, 0.8 / 25e4), (0.85, 0.95))]
    phases = [phase for phase in phases if phase[0]]
    expected, (length, lr, mom), done = [], phases.pop(0), 0
    for _ in range(n):
        expected.append((cos_between(*lr, done / length), cos_between(*mom, done / length)))
        done += 1
        if done == length and phases:
            (length, lr, mom), done = phases.pop(0), 0
    lrs, momenta = np.array(expected).T
    ours = fastai1_one_cycle(n, lr_max=0.8, pct_start=pct)
    np.testing.assert_allclose(ours(positions(n)), lrs, rtol=1e-11)
    np.testing.assert_allclose(
        fastai1_momentum(n, pct_start=pct)(positions(n)), momenta, rtol=1e-12
    )


def test_fastai1_falls_towards_its_final_div():
    ours = fastai1_one_cycle(1000, lr_max=1.0, final_div=100.0)
    assert ours(1.0) == pytest.approx(cos_between(1.0, 0.01, 699 / 700), rel=1e-12)


# --- Smith -----------------------------------------------------------------------------------


def test_smith_has_the_rates_of_the_logs():
    steps = 8400
    ours = smith_one_cycle(0.8, half_cycle=4003 / steps)
    assert ours(0.0) == 0.08
    assert ours(4003 / steps) == pytest.approx(0.8, rel=1e-12)
    assert ours(5000 / steps) == pytest.approx(0.600749, rel=1e-6)
    assert ours(8000 / steps) == pytest.approx(0.001199, rel=1e-3)
    assert ours(8200 / steps) == pytest.approx(8e-5, rel=1e-12)
    assert ours(1.0) == pytest.approx(8e-5, rel=1e-12)


@pytest.mark.parametrize("half", [0.5, 0.45, 0.2])
@pytest.mark.parametrize("div", [3.0, 10.0])
def test_smith_goes_up_down_towards_zero_and_stays_at_the_floor(half, div):
    base = 0.6 / div
    ours = smith_one_cycle(0.6, div=div, half_cycle=half)
    for p in positions(201):
        if p < half:
            expected = base + (0.6 - base) * p / half
        else:
            expected = max(base / 1000, 0.6 * (1 - (p - half) / half))
        assert ours(p) == pytest.approx(expected, rel=1e-9)


def test_smiths_momentum_has_the_value_of_the_log():
    assert smith_momentum(0.95, 0.8, half_cycle=2246 / 4800)(1.0) == pytest.approx(
        0.939715, abs=1e-6
    )


@pytest.mark.parametrize("half", [0.07, 0.25, 0.45, 0.5, 1.0, 4.9])
def test_smiths_momentum_cycles_on_half_as_deep_each_time(half):
    ours = smith_momentum(0.95, 0.8, half_cycle=half)
    for p in positions(173):
        cycle, within = divmod(p / half, 2)
        depth = (0.95 - 0.8) * 0.5**cycle * (within if within <= 1 else 2 - within)
        assert ours(p) == pytest.approx(0.95 - depth, rel=1e-9)


@pytest.mark.parametrize(("up", "down"), [(0.45, 0.45), (0.1, 0.3), (0.5, 0.5), (0.0, 0.4)])
def test_the_momentum_of_three_phases_goes_down_up_and_holds(up, down):
    ours = three_phase_momentum((0.95, 0.8, 0.9), fraction_up=up, fraction_down=down)
    rate = three_phase(1.0, fraction_up=up, fraction_down=down)
    for p in positions(101):
        if p < up:
            expected = (0.95 - 0.15 * p / up, 0.1 + 0.9 * p / up)
        elif p < up + down:
            q = (p - up) / down
            expected = (0.8 + 0.1 * q, 1 - 0.9 * q)
        else:
            rest = 1 - up - down
            expected = (0.9, 0.1 - 0.099 * ((p - up - down) / rest if rest else 0))
        assert (ours(p), rate(p)) == pytest.approx(expected, rel=1e-9)


# --- the others ------------------------------------------------------------------------------


def test_flat_cos_has_the_golden_values_of_fastai():
    expected = [1, 1, 1, 0.500005, 1e-5]
    np.testing.assert_allclose(flat_cos(1.0)([0, 0.5, 0.75, 0.875, 1]), expected, rtol=1e-12)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_warmup_stable_decay_has_a_plateau_at_its_peak(anneal):
    ours = warmup_stable_decay(0.5, div=10, div_final=100, anneal=anneal)
    between = cos_between if anneal == "cosine" else lambda a, b, q: a + (b - a) * q
    for p in positions(101):
        expected = 0.5
        if p < 0.1:
            expected = between(0.05, 0.5, p / 0.1)
        elif p > 0.8:
            expected = between(0.5, 0.005, (p - 0.8) / 0.2)
        assert ours(p) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("total", "n_cycles", "mult", "lengths"),
    [
        (70, 3, 2, [10, 20, 40]),
        (30, 3, 1, [10, 10, 10]),
        (10, 1, 2, [10]),
        (7, 3, 2, [1, 2, 4]),
        (19, 2, 1.5, [8, 11]),
    ],
)
def test_each_cycle_of_sgdr_is_a_cosine_from_its_first_to_its_last_update(
    total, n_cycles, mult, lengths
):
    expected = [
        0.01 + (0.3 - 0.01) * (1 + math.cos(math.pi * j / max(1, length - 1))) / 2
        for length in lengths
        for j in range(length)
    ]
    ours = sgdr(total, lr_max=0.3, n_cycles=n_cycles, cycle_mult=mult, lr_min=0.01)
    np.testing.assert_allclose(ours(positions(total)), expected, rtol=1e-12)
    assert ours(0.0) == 0.3


def test_sgdr_with_more_cycles_than_updates_drops_those_without_an_update():
    assert sgdr(2, lr_max=0.3, n_cycles=4)([0, 1]).tolist() == [0.3, 0.3]


# --- steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [2, 10, 77, 1001, 100_003])
def test_a_jump_of_join_steps_is_at_its_very_update(total):
    for k in {1, total // 3, total // 2, total - 1} - {0}:
        ours = join_steps(total, [(k, constant(1)), (total, constant(2))])
        assert [ours((k - 1) / (total - 1)), ours(k / (total - 1))] == [1, 2]


def test_join_steps_cuts_what_is_too_long_and_holds_the_end_of_what_is_too_short():
    pos = positions(5)
    assert join_steps(5, [(8, linear(0, 8))])(pos).tolist() == [0, 1, 2, 3, 4]
    assert join_steps(5, [(2, linear(0, 2))])(pos).tolist() == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: join_steps(5, [(-1, constant(1))]), ValueError, "length of a phase must be at le"),
        (lambda: join_steps(5, [(0, constant(1))]), ValueError, "at least one step together"),
        (lambda: join_steps(5, []), ValueError, "at least one step together"),
        (lambda: join_steps(0, [(1, constant(1))]), ValueError, "total_steps must be at least 1"),
        (lambda: join_steps(5, [(0.5, constant(1))]), TypeError, "a phase must be an integer"),
        (lambda: join_steps(5, [constant(1)]), TypeError, r"a pair \(steps, schedule\)"),
        (lambda: smith_one_cycle(1, half_cycle=0.6), ValueError, "half_cycle is at most 0.5"),
        (lambda: smith_one_cycle(1, half_cycle=45), ValueError, r"did you mean 0.45\?"),
        (lambda: smith_one_cycle(1, div_final=0.5), ValueError, "div_final must be at least 1"),
        (lambda: smith_momentum(half_cycle=0), ValueError, "half_cycle must be positive"),
        (lambda: smith_momentum(1.0), ValueError, "high must be below 1"),
        (lambda: clr_beta(9, lr_max=1, pct=101), ValueError, "pct is in percent, from 0 to 100"),
        (lambda: clr_beta(9, lr_max=1, div=0), ValueError, "div must be positive"),
        (lambda: clr_beta(0, lr_max=1), ValueError, "total_steps must be at least 1; got 0"),
        (lambda: fastai1_one_cycle(9, lr_max=1, pct_start=30), ValueError, "did you mean 0.3"),
        (lambda: flat_cos(-1), ValueError, "lr must not be negative"),
        (lambda: warmup_stable_decay(1, fraction_up=0.9), ValueError, "at most 1; 0.9 . 0.2 = 1.1"),
        (lambda: warmup_stable_decay(1, anneal="cos"), ValueError, "anneal must be one of"),
        (lambda: sgdr(9, lr_max=1, n_cycles=0), ValueError, "n_cycles must be at least 1"),
        (lambda: sgdr(9, lr_max=1, n_cycles=2, cycle_mult=0), ValueError, "cycle_mult must be pos"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("div_final", [1.0, 1.5])
def test_the_floor_of_smiths_cycle_may_be_as_high_as_its_top(div_final):
    ours = smith_one_cycle(0.6, div=10, div_final=div_final, half_cycle=0.25)
    assert ours([0.0, 0.25, 1.0]) == pytest.approx([0.06, 0.6, 0.6 / div_final], rel=1e-12)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (one_cycle, "div"),
        (one_cycle, "div_final"),
        (three_phase, "div_final"),
        (smith_one_cycle, "div"),
        (flat_cos, "div_final"),
        (partial(fastai1_one_cycle, 10), "final_div"),
        (partial(torch_one_cycle, 10), "final_div_factor"),
    ],
)
def test_a_divisor_that_makes_a_rate_infinite_is_named(make, name):
    lr = {"lr" if make is flat_cos else "max_lr" if name == "final_div_factor" else "lr_max": 0.1}
    with pytest.raises(ValueError, match=rf"\b{name} must not be so small.*got 5e-324"):
        make(**lr, **{name: 5e-324})
