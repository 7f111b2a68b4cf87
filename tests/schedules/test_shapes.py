import json
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from onecycle.schedules.policies import (
    clr_beta,
    clr_beta_momentum,
    fastai1_momentum,
    fastai1_one_cycle,
    flat_cos,
    momentum_cycle,
    one_cycle,
    sgdr,
    smith_momentum,
    smith_one_cycle,
    three_phase,
    three_phase_momentum,
    warmup_stable_decay,
)
from onecycle.schedules.shapes import (
    Join,
    Schedule,
    constant,
    cosine,
    exponential,
    join,
    join_steps,
    linear,
    polynomial,
    polynomial_decay,
    step,
)
from onecycle.schedules.torch_like import (
    torch_cosine,
    torch_cyclic,
    torch_linear,
    torch_one_cycle,
    torch_polynomial,
    torch_step,
    torch_warm_restarts,
)

BETWEEN = [
    linear(0.1, 0.7),
    linear(1e-7, 10.0),
    cosine(0.1, 0.7),
    cosine(3.0, 1e-9),
    cosine(1.0, 0.0),
    exponential(1e-7, 10.0),
    exponential(0.3, 1e-300),
    polynomial(0.1, 0.7, 2),
    polynomial(0.7, 0.1, 0.9),
    polynomial_decay(0.7, 0.1, 2),
    polynomial_decay(0.1, 0.7, 0.9),
]
FLAT_COS = join([(0.75, constant(1.0)), (0.25, cosine(1.0, 1e-5))])
EVERY = [
    constant(0.1),
    *BETWEEN,
    step(0.1, 0.3, milestones=(0.2, 0.5, 0.9)),
    FLAT_COS,
    join([(0.5, FLAT_COS), (0.0, constant(7.0)), (0.5, one_cycle(2.0))]),
    one_cycle(0.3),
    one_cycle(0.3, div=7, div_final=900, pct_start=0.4, anneal="linear"),
    momentum_cycle(),
    three_phase(0.8),
    torch_one_cycle(77, max_lr=0.8),
    torch_one_cycle(77, max_lr=0.8, three_phase=True, anneal_strategy="linear"),
    torch_one_cycle(77, max_lr=0.8).momentum(base=0.7, max=0.9),
    cosine(0.1, 0.7).scaled(0.3).scaled(3.0),
    join_steps(9, [(3, linear(0, 1)), (0, constant(5)), (2, one_cycle(1.0)), (90, constant(2))]),
    three_phase_momentum((0.95, 0.8, 0.9)),
    smith_one_cycle(0.8),
    smith_momentum(half_cycle=0.3),
    clr_beta(77, lr_max=0.8),
    clr_beta_momentum(77),
    fastai1_one_cycle(77, lr_max=0.8),
    fastai1_momentum(77),
    flat_cos(0.3),
    warmup_stable_decay(0.3),
    sgdr(77, lr_max=0.3, n_cycles=3),
    torch_step(77, lr=0.3, step_size=10),
    torch_linear(77, lr=0.3),
    torch_cosine(77, lr=0.3, t_max=20),
    torch_polynomial(77, lr=0.3, total_iters=50, power=0.9),
    torch_warm_restarts(77, lr=0.3, t_0=10, t_mult=2),
    torch_cyclic(77, base_lr=0.1, max_lr=0.9, step_size_up=10, mode="exp_range", gamma=0.99),
]


def by_name(schedule):
    return repr(schedule)[:60]


def each(schedules):
    return pytest.mark.parametrize("schedule", schedules, ids=by_name)


# --- golden values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pos", "lr", "mom"),
    [
        (0, 0.04, 0.95),
        (0.05, 0.131671845, 0.940450849),
        (0.125, 0.52, 0.90),
        (0.25, 1, 0.85),
        (0.4, 0.904509449, 0.859549151),
        (0.625, 0.500005, 0.90),
        (0.9, 0.0432368719, 0.94567727),
        (1, 1e-5, 0.95),
    ],
)
def test_one_cycle_and_its_momentum_have_the_values_of_fastai(pos, lr, mom):
    # Its cut points are float32.
    assert one_cycle(1.0)(pos) == pytest.approx(lr, rel=1e-6)
    assert momentum_cycle()(pos) == pytest.approx(mom, rel=1e-6)


def test_one_cycle_over_ten_batches_has_the_rates_of_fastai():
    expected = [0.04, 0.371672, 0.908328, 0.989074, 0.904509]
    expected += [0.750002, 0.552269, 0.345498, 0.165443, 0.0432369]
    np.testing.assert_allclose(one_cycle(1.0)(np.arange(10) / 10), expected, rtol=3e-6)


def test_linear_one_cycle_is_two_straight_lines():
    schedule = one_cycle(1.0, div=10, div_final=100, pct_start=0.5, anneal="linear")
    np.testing.assert_allclose(schedule([0, 0.25, 0.5, 0.75, 1]), [0.1, 0.55, 1, 0.505, 0.01])


def test_flat_then_cosine_by_join_has_the_values_of_fastai():
    expected = [1, 1, 1, 0.500005, 1e-5]
    np.testing.assert_allclose(FLAT_COS([0, 0.5, 0.75, 0.875, 1]), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("i", "lr", "mom"),
    [
        (0, 0.1, 0.95),
        (1, 0.12, 0.947778),
        (22, 0.54, 0.901111),
        (45, 1, 0.85),
        (46, 0.98, 0.852222),
        (67, 0.56, 0.898889),
        (90, 0.1, 0.95),
        (91, 0.0901, 0.95),
        (95, 0.0505, 0.95),
        (99, 0.0109, 0.95),
    ],
)
def test_three_phase_defaults_are_use_clr_beta_10_10(i, lr, mom):
    momentum = join([(0.45, linear(0.95, 0.85)), (0.45, linear(0.85, 0.95)), (0.1, constant(0.95))])
    assert three_phase(1.0)(i / 100) == pytest.approx(lr, rel=1e-12)
    assert momentum(i / 100) == pytest.approx(mom, rel=1e-6)


def test_each_shape_has_its_formula():
    a, b = 0.3, 0.007
    for p in np.random.default_rng(0).random(200):
        expected = {
            linear(a, b): a + p * (b - a),
            cosine(a, b): a + (b - a) * (1 - math.cos(math.pi * p)) / 2,
            exponential(a, b): a * (b / a) ** p,
            polynomial(a, b, 1.7): a + (b - a) * p**1.7,
            polynomial_decay(a, b, 1.7): b + (a - b) * (1 - p) ** 1.7,
        }
        for schedule, value in expected.items():
            assert schedule(p) == pytest.approx(value, rel=1e-12, abs=0)


def test_polynomial_decay_is_the_rise_from_its_end_read_backwards():
    pos = np.arange(33) / 32  # 1 - p is exact
    for power in (0.5, 0.9, 1.0, 2.0, 3.0):
        backwards = polynomial(0.0, 8.0, power)(1 - pos)
        found = polynomial_decay(8.0, 0.0, power)(pos)
        np.testing.assert_allclose(found, backwards, rtol=1e-14)
    expected = [0.025, 0.025 * 0.535886731268146, 0.0]  # the square root of 0.5 ** 1.8, by hand
    np.testing.assert_allclose(polynomial_decay(0.025, 0.0, 0.9)([0, 0.5, 1]), expected, rtol=1e-14)


# --- ends, cuts, positions outside -----------------------------------------------------


@each(BETWEEN)
def test_both_ends_are_exact(schedule):
    assert schedule(0) == schedule.start
    assert schedule(1) == schedule.end
    assert schedule([0.0, 0.5, 1.0])[[0, 2]].tolist() == [schedule.start, schedule.end]


def test_both_ends_are_exact_for_any_values():
    rng = np.random.default_rng(1)
    for a, b in 10 ** rng.uniform(-12, 3, (300, 2)):
        powers = polynomial(a, b, 1.3), polynomial_decay(a, b, 1.3)
        for schedule in (linear(a, b), cosine(a, b), exponential(a, b), *powers):
            assert (schedule(0.0), schedule(1.0)) == (a, b)


def test_interpolating_by_the_difference_would_miss_an_end():
    a, b = 0.1 + 0.2, 1e-9
    assert a + 1.0 * (b - a) != b


def test_every_level_of_a_policy_is_exact():
    lr_max = 0.3
    assert one_cycle(lr_max)([0, 0.25, 1]).tolist() == [lr_max / 25, lr_max, lr_max / 1e5]
    assert momentum_cycle()([0, 0.25, 1]).tolist() == [0.95, 0.85, 0.95]
    levels = [lr_max / 10, lr_max, lr_max / 10, lr_max / 1000]
    assert three_phase(lr_max)([0, 0.45, 0.9, 1]).tolist() == levels
    levels = [lr_max / 25, lr_max, lr_max / 25 / 1e4]
    assert torch_one_cycle(10, max_lr=lr_max)(np.array([0, 2, 9]) / 9).tolist() == levels


@each(EVERY)
def test_outside_the_range_the_first_and_the_last_value_hold(schedule):
    assert schedule(-1e-9) == schedule(-math.inf) == schedule(0.0)
    assert schedule(1 + 1e-9) == schedule(math.inf) == schedule(1.0)


@each(EVERY)
def test_nan_is_no_position(schedule):
    for pos in (math.nan, np.array([0.5, math.nan])):
        with pytest.raises(ValueError, match="a position is a number from 0 to 1; got"):
            schedule(pos)


def test_at_a_cut_the_later_phase_holds():
    schedule = join([(0.25, constant(1)), (0.25, constant(2)), (0.5, constant(3))])
    before = np.nextafter([0.25, 0.5], 0)
    assert schedule([0.25, 0.5, 1.0]).tolist() == [2, 3, 3]
    assert schedule(before).tolist() == [1, 2]


def test_each_part_of_a_join_runs_from_its_own_start_to_its_own_end():
    schedule = join([(0.3, linear(0, 3)), (0.7, linear(10, 17))])
    pos = np.random.default_rng(2).random(100)
    expected = [10 * p if p < 0.3 else 10 + 10 * (p - 0.3) for p in pos]
    np.testing.assert_allclose(schedule(pos), expected, rtol=1e-12)


def test_phases_of_length_zero_are_skipped():
    none = (0.0, constant(9))
    full = join([none, (0.5, linear(0, 1)), none, none, (0.5, linear(1, 3)), none])
    bare = join([(0.5, linear(0, 1)), (0.5, linear(1, 3))])
    pos = np.linspace(0, 1, 101)
    assert full(pos).tolist() == bare(pos).tolist()


def test_a_cycle_without_a_rise_or_without_a_fall_is_the_other_phase_alone():
    assert one_cycle(1.0, pct_start=0)([0, 1]).tolist() == [1.0, 1e-5]
    assert one_cycle(1.0, pct_start=1)([0, 1]).tolist() == [0.04, 1.0]


def test_three_phases_without_a_tail_end_where_they_began():
    for up, down in ((0.5, 0.5), (0.7, 0.3), (0.1, 0.9), (1 - 0.9, 0.9), (1, 0)):
        expected = 1.0 if down == 0 else 0.1
        assert three_phase(1.0, fraction_up=up, fraction_down=down)(1.0) == expected


def test_fractions_that_add_to_one_but_for_rounding_are_normalised():
    thirds = join([(0.3333333, constant(1)), (0.3333333, constant(2)), (0.3333333, cosine(3, 4))])
    assert thirds([0, 1 / 3 + 1e-9, 1]).tolist() == [1, 2, 4]
    tenths = join([(0.1, constant(k)) for k in range(9)] + [(0.1, linear(9, 10))])
    assert tenths(1.0) == 10


def test_a_step_schedule_holds_the_new_value_from_the_milestone_on():
    schedule = step(1.0, 0.1, milestones=(0.5, 0.75))
    pos = [0, np.nextafter(0.5, 0), 0.5, np.nextafter(0.75, 0), 0.75, 1]
    np.testing.assert_allclose(schedule(pos), [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-15)
    assert step(0.3, 0.5, milestones=())(0.9) == 0.3


# --- one position and a block agree to the bit -------------------------------------------


@each(EVERY)
def test_a_scalar_call_and_any_block_give_the_same_bits(schedule):
    rng = np.random.default_rng(3)
    total = 401
    pos = np.concatenate([np.arange(total) / (total - 1), rng.random(200), [0.25, 0.3, 0.45]])
    single = [schedule(float(p)) for p in pos]
    assert all(type(value) is float for value in single)
    assert schedule(pos).tolist() == single
    for size in (1, 2, 3, 4, 7, 8, 16, 33, 256):
        start = int(rng.integers(0, size))
        for at in range(start, len(pos), 13 * size):
            assert schedule(pos[at : at + size]).tolist() == single[at : at + size]


@each(EVERY)
def test_strides_and_shape_of_the_positions_do_not_change_a_bit(schedule):
    pos = np.random.default_rng(4).random(600)
    values = schedule(pos)
    assert schedule(pos[::3]).tolist() == values[::3].tolist()
    assert schedule(pos[::-1]).tolist() == values[::-1].tolist()
    assert schedule(pos.reshape(20, 30).T).tolist() == values.reshape(20, 30).T.tolist()
    assert schedule(np.array([])).tolist() == []
    assert values.dtype == np.float64


@each(EVERY)
def test_positions_that_came_in_are_left_alone(schedule):
    pos = np.array([-1.0, 0.3, 2.0])
    schedule(pos)
    assert pos.tolist() == [-1.0, 0.3, 2.0]


def test_a_number_of_any_type_gives_a_float():
    schedule = linear(0, 1)
    for pos in (1, np.float32(1), np.int64(1), np.array(1.0), torch.tensor(1.0)):
        assert type(schedule(pos)) is float
        assert schedule(pos) == 1.0


# --- scaled ------------------------------------------------------------------------------


@each(EVERY)
def test_scaling_multiplies_and_by_one_keeps_every_bit(schedule):
    pos = np.random.default_rng(5).random(500)
    assert schedule.scaled(1.0)(pos).tolist() == schedule(pos).tolist()
    assert schedule.scaled(0.3)(pos).tolist() == [value * 0.3 for value in schedule(pos)]


# --- values: equality, hash, print, dict ---------------------------------------------------


@each(EVERY)
def test_every_schedule_survives_a_round_trip_through_json(schedule):
    restored = Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())))
    pos = np.linspace(0, 1, 57)
    assert restored == schedule
    assert hash(restored) == hash(schedule)
    assert repr(restored) == repr(schedule)
    assert restored(pos).tolist() == schedule(pos).tolist()


def test_the_round_trip_is_tried_for_every_kind():
    def kinds(description):
        if isinstance(description, dict):
            yield description["kind"]
            description = list(description.values())
        if isinstance(description, list):
            for item in description:
                yield from kinds(item)

    with pytest.raises(ValueError, match="unknown kind") as error:
        Schedule.from_dict({"kind": "no such kind"})
    tried = {kind for schedule in EVERY for kind in kinds(schedule.to_dict())}
    ours = {"constant", "cosine", "exponential", "join", "linear", "polynomial", "scaled"}
    ours |= {"polynomial_decay"}
    ours |= {"step", "join_steps", "torch_cyclic", "torch_momentum", "torch_one_cycle"}
    assert tried == ours
    assert all(repr(kind) in str(error.value) for kind in ours)


def test_a_dict_that_describes_no_schedule_is_refused_with_what_is_expected():
    with pytest.raises(ValueError, match=r"unknown kind of schedule None; the kinds: \['"):
        Schedule.from_dict({"start": 1.0})
    with pytest.raises(ValueError, match=r"'linear' has the fields \['end', 'start'\]; got"):
        Schedule.from_dict({"kind": "linear", "start": 1.0, "stop": 2.0})
    with pytest.raises(ValueError, match="start must be positive; got -1"):
        Schedule.from_dict({"kind": "exponential", "start": -1, "end": 2.0})


def test_schedules_with_different_values_or_kinds_differ():
    assert len(set(EVERY)) == len(EVERY)
    assert linear(0, 1) == linear(np.float32(0), 1.0)
    assert linear(0, 1) != cosine(0, 1)


def test_a_schedule_prints_what_it_is():
    assert repr(one_cycle(1.0)) == (
        "Join(phases=((0.25, Cosine(start=0.04, end=1.0)), (0.75, Cosine(start=1.0, end=1e-05))))"
    )
    assert repr(step(np.float64(0.1), 0.5)) == (
        "Step(start=0.1, factor=0.5, milestones=(0.5, 0.75))"
    )


@each(EVERY)
def test_a_schedule_cannot_be_changed_and_can_be_pickled(schedule):
    with pytest.raises(AttributeError):
        schedule.start = 1.0
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@dataclass(frozen=True)
class Triangle(Schedule, kind="triangle of a test"):
    peak: float

    def _values(self, p):
        return self.peak * (1 - np.abs(2 * p - 1))


def test_a_schedule_of_a_users_own_is_called_joined_scaled_and_stored():
    triangle = Triangle(2.0)
    schedule = join([(0.5, triangle), (0.5, constant(0))]).scaled(10)
    assert schedule([0.125, 0.25, 0.6]).tolist() == [10, 20, 0]
    assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_a_kind_is_taken_once_and_needed_for_storing_only():
    with pytest.raises(ValueError, match="the kind 'linear' is taken by Linear"):

        class Other(Schedule, kind="linear"):
            pass

    @dataclass(frozen=True)
    class Two(Schedule):
        def _values(self, p):
            return np.full_like(p, 2.0)

    assert Two()(0.5) == 2.0
    with pytest.raises(TypeError, match=r'declare it as `class Two\(Schedule, kind="two"'):
        Two().to_dict()
    assert type(Schedule.from_dict(linear(0, 1).to_dict())) is type(linear(0, 1))


# --- wrong arguments ---------------------------------------------------------------------

WRONG = {
    "pct_start is a fraction between 0 and 1; got 30 (did you mean 0.3?)": [
        lambda: one_cycle(1.0, pct_start=30),
        lambda: momentum_cycle(pct_start=30),
        lambda: torch_one_cycle(10, max_lr=1.0, pct_start=30),
    ],
    "pct_start is a fraction between 0 and 1; got -0.1": [lambda: one_cycle(1.0, pct_start=-0.1)],
    "pct_start is a fraction between 0 and 1; got 300": [lambda: one_cycle(1.0, pct_start=300)],
    "pct_start must be finite; got nan": [lambda: one_cycle(1.0, pct_start=math.nan)],
    "lr_max must not be negative; got -0.1": [lambda: one_cycle(-0.1), lambda: three_phase(-0.1)],
    "lr_max must be finite; got inf": [lambda: one_cycle(math.inf)],
    "max_lr must not be negative; got -1": [lambda: torch_one_cycle(10, max_lr=-1)],
    "div must be positive; got 0": [lambda: one_cycle(1.0, div=0), lambda: three_phase(1.0, div=0)],
    "div_final must be positive; got -2.5": [lambda: one_cycle(1.0, div_final=-2.5)],
    "div_factor must be positive; got 0": [lambda: torch_one_cycle(9, max_lr=1, div_factor=0)],
    "anneal must be one of ('cosine', 'linear'); got 'cos'": [
        lambda: one_cycle(1.0, anneal="cos"),
        lambda: momentum_cycle(anneal="cos"),
    ],
    "anneal_strategy must be one of ('cos', 'linear'); got 'cosine'": [
        lambda: torch_one_cycle(10, max_lr=1.0, anneal_strategy="cosine")
    ],
    "total_steps must be at least 1; got 0": [lambda: torch_one_cycle(0, max_lr=1.0)],
    "moms must be three numbers in [0, 1), at the start, the peak and the end, like "
    "(0.95, 0.85, 0.95); got (95, 85, 95): a momentum is a fraction between 0 and 1; got 95 "
    "(did you mean 0.95?)": [lambda: momentum_cycle((95, 85, 95))],
    "max must be below 1; got 1": [lambda: torch_one_cycle(9, max_lr=1).momentum(max=1)],
    "moms must be three numbers in [0, 1), at the start, the peak and the end, like "
    "(0.95, 0.85, 0.95); got (0.95, 0.85)": [lambda: momentum_cycle((0.95, 0.85))],
    "fraction_up is a fraction between 0 and 1; got 45 (did you mean 0.45?)": [
        lambda: three_phase(1.0, fraction_up=45)
    ],
    "fraction_up + fraction_down is at most 1; 0.6 + 0.5 = 1.1": [
        lambda: three_phase(1.0, fraction_up=0.6, fraction_down=0.5)
    ],
    "the fractions of the phases must add to 1; 0.3 + 0.6 = 0.9": [
        lambda: join([(0.3, constant(1)), (0.6, constant(2))])
    ],
    "the fractions of the phases must add to 1; no phases = 0": [lambda: join([])],
    "the length of a phase is a fraction between 0 and 1; got 30 (did you mean 0.3?)": [
        lambda: join([(30, constant(1)), (70, constant(2))])
    ],
    "a milestone is a fraction between 0 and 1; got 30 (did you mean 0.3?)": [
        lambda: step(1.0, 0.1, milestones=(30, 60))
    ],
    "milestones must increase; got (0.6, 0.3)": [lambda: step(1.0, 0.1, milestones=(0.6, 0.3))],
    "start must be positive; got 0": [lambda: exponential(0, 1)],
    "end must be finite; got nan": [lambda: linear(0, math.nan), lambda: cosine(0, math.nan)],
    "power must be positive; got 0": [
        lambda: polynomial(0, 1, 0),
        lambda: polynomial_decay(1, 0, 0),
    ],
    "value must be finite; got inf": [lambda: constant(math.inf)],
    "factor must be finite; got nan": [lambda: constant(1).scaled(math.nan)],
}


@pytest.mark.parametrize(
    ("message", "make"), [(message, make) for message, calls in WRONG.items() for make in calls]
)
def test_a_wrong_value_is_refused_in_the_words_of_the_caller(message, make):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        make()
    assert str(error.value) == message


def test_a_wrong_type_is_refused():
    with pytest.raises(TypeError, match=r"lr_max must be a number; got '0.1'"):
        one_cycle("0.1")
    with pytest.raises(TypeError, match="start must be a number; got None"):
        linear(None, 1.0)
    with pytest.raises(TypeError, match=r"a phase is a pair \(fraction, schedule\); got Const"):
        join([constant(1)])
    with pytest.raises(TypeError, match=r"the second of a phase is a Schedule; got 0\.5"):
        join([(constant(1), 0.5)])
    with pytest.raises(TypeError, match="integer"):
        torch_one_cycle(10.5, max_lr=1.0)


def test_joins_of_joins_are_allowed_and_fractions_keep_their_bits():
    fractions = np.random.default_rng(6).dirichlet(np.ones(7))
    schedule = join([(f, constant(k)) for k, f in enumerate(fractions)])
    assert isinstance(schedule, Join)
    assert [f for f, _ in schedule.phases] == fractions.tolist()
    assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_importing_schedules_does_not_import_torch_by_itself():
    # The package itself imports torch: an empty one with the same modules stands in for it.
    code = (
        "import sys, types; package = types.ModuleType('onecycle'); "
        "package.__path__ = [sys.argv[1]]; sys.modules['onecycle'] = package; "
        "import onecycle.schedules.torch_like; from onecycle.schedules.policies import one_cycle; "
        "assert one_cycle(1.0)(0.25) == 1.0; print('torch' in sys.modules)"
    )
    folder = str(Path(sys.modules[Schedule.__module__].__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
