"""Every schedule of torch against torch itself, at every step."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import OneCycleLR

from onecycle.schedules.policies import one_cycle
from onecycle.schedules.shapes import cosine
from onecycle.schedules.torch_like import (
    torch_cosine,
    torch_cyclic,
    torch_linear,
    torch_one_cycle,
    torch_polynomial,
    torch_step,
    torch_warm_restarts,
)

# --- OneCycleLR ----------------------------------------------------------------------------

TORCH_10 = {
    "two phases": (
        {},
        "0.04 0.52 1 0.950485 0.811746 0.611262 0.388742 0.188258 0.0495194 4e-6",
        "0.95 0.9 0.85 0.85495 0.86883 0.88887 0.91113 0.93117 0.94505 0.95",
    ),
    "three phases": (
        {"three_phase": True},
        "0.04 0.52 1 0.52 0.04 0.0361807 0.0261817 0.0138223 0.00382328 4e-6",
        "0.95 0.9 0.85 0.9 0.95 0.95 0.95 0.95 0.95 0.95",
    ),
    "linear": (
        {"anneal_strategy": "linear"},
        "0.04 0.52 1 0.857143 0.714287 0.57143 0.428574 0.285717 0.142861 4e-6",
        None,
    ),
}


@pytest.mark.parametrize(("options", "lrs", "moms"), TORCH_10.values(), ids=TORCH_10)
def test_torch_one_cycle_has_the_golden_values(options, lrs, moms):
    schedule = torch_one_cycle(10, max_lr=1.0, **options)
    pos = np.arange(10) / 9
    np.testing.assert_allclose(schedule(pos), [float(v) for v in lrs.split()], rtol=3e-6)
    if moms:
        expected = [float(v) for v in moms.split()]
        np.testing.assert_allclose(schedule.momentum()(pos), expected, rtol=6e-6)


def test_torch_three_linear_phases_of_twenty_steps_have_the_golden_values():
    schedule = torch_one_cycle(20, max_lr=1.0, three_phase=True, anneal_strategy="linear")
    up = [0.04, 0.232, 0.424, 0.616, 0.808]
    tail = [0.035556, 0.031112, 0.026668, 0.022224, 0.01778, 0.013336, 0.008892, 0.004448, 4e-6]
    expected = [*up, 1, *reversed(up), *tail]
    np.testing.assert_allclose(schedule(np.arange(20) / 19), expected, rtol=1e-9)


def torch_curves(opt_class, total_steps, base, top, **options):
    """The rate and momentum of every step, from torch itself."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    opt = opt_class([parameter], lr=1.0)
    scheduler = OneCycleLR(
        opt, total_steps=total_steps, base_momentum=base, max_momentum=top, **options
    )
    lrs, moms = [], []
    for k in range(total_steps):
        group = opt.param_groups[0]
        lrs.append(group["lr"])
        moms.append(group["momentum"] if "momentum" in group else group["betas"][0])
        opt.step()
        if k < total_steps - 1:
            scheduler.step()
    return np.array(lrs), np.array(moms)


TORCH_CASES = [
    pytest.param(*case, id="-".join(map(str, case)))
    for case in product(
        (2, 7, 10, 101, 250), (0.0, 0.05, 0.3, 0.4316, 0.7), ("cos", "linear"), (False, True)
    )
]


@pytest.mark.parametrize(("total_steps", "pct_start", "strategy", "three"), TORCH_CASES)
def test_torch_one_cycle_is_torch_at_every_step(total_steps, pct_start, strategy, three):
    rng = np.random.default_rng([total_steps, int(1000 * pct_start), len(strategy), three])
    options = {
        "max_lr": float(10 ** rng.uniform(-4, 1)),
        "pct_start": pct_start,
        "anneal_strategy": strategy,
        "three_phase": three,
        "div_factor": float(rng.uniform(1, 100)),
        "final_div_factor": float(10 ** rng.uniform(0, 6)),
    }
    base, top = 0.6 + 0.2 * rng.random(), 0.85 + 0.1 * rng.random()
    opt_class = torch.optim.SGD if rng.random() < 0.5 else torch.optim.Adam
    lrs, moms = torch_curves(opt_class, total_steps, base, top, **options)

    schedule = torch_one_cycle(total_steps, **options)
    pos = np.array([k / (total_steps - 1) for k in range(total_steps)])
    # Torch's straight line misses its end by a rounding of its start; ours does not.
    atol = 1e-15 * options["max_lr"] if strategy == "linear" else 0.0
    np.testing.assert_allclose(schedule(pos), lrs, rtol=1e-12, atol=atol)
    np.testing.assert_allclose(schedule.momentum(base, top)(pos), moms, rtol=1e-12)


def test_the_comparison_with_torch_sees_a_phase_that_is_one_step_longer():
    lrs, _ = torch_curves(torch.optim.SGD, 100, 0.85, 0.95, max_lr=1.0, pct_start=0.3)
    pos = np.arange(100) / 99
    longer = torch_one_cycle(100, max_lr=1.0, pct_start=0.31)
    plain = one_cycle(1.0, pct_start=0.3, div_final=25e4)
    for other in (longer, plain):
        assert np.abs(other(pos) - lrs).max() > 0.01


@pytest.mark.parametrize("three", [False, True])
def test_torch_one_cycle_skips_the_phases_without_length_where_torch_divides_by_zero(three):
    options = {"max_lr": 1.0, "pct_start": 0.1, "three_phase": three}
    with pytest.raises(ZeroDivisionError):
        torch_curves(torch.optim.SGD, 10, 0.85, 0.95, **options)
    expected = cosine(0.04 if three else 1.0, 4e-6)
    pos = np.arange(10) / 9
    np.testing.assert_allclose(torch_one_cycle(10, **options)(pos), expected(pos), rtol=1e-12)


def test_torch_one_cycle_that_only_rises_ends_at_its_maximum():
    schedule = torch_one_cycle(10, max_lr=1.0, pct_start=1)
    assert schedule(1.0) == 1.0
    assert schedule.momentum()(1.0) == 0.85


@pytest.mark.parametrize(("pct_start", "three"), [*product((0.0, 0.3, 0.5, 1.0), (False, True))])
def test_torch_one_cycle_of_a_single_step_gives_the_final_rate(pct_start, three):
    schedule = torch_one_cycle(1, max_lr=1.0, pct_start=pct_start, three_phase=three)
    assert schedule(0.0) == schedule(1.0) == 1.0 / 25 / 1e4


# --- the others ----------------------------------------------------------------------------


def positions(total_steps):
    return np.array([k / max(1, total_steps - 1) for k in range(total_steps)])


def rates(make, total_steps, lr, momentum=0.9):
    """The rate and the momentum of every step, from torch itself."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=momentum)
    scheduler = make(opt)
    found = []
    for _ in range(total_steps):
        found.append((opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]))
        opt.step()
        scheduler.step()
    return np.array(found).T


LENGTHS = pytest.mark.parametrize("total_steps", [1, 2, 7, 60, 331])


@LENGTHS
@pytest.mark.parametrize(("step_size", "gamma"), [(1, 0.97), (7, 0.1), (30, 0.5), (1000, 0.1)])
def test_torch_step_is_step_lr(total_steps, step_size, gamma):
    lrs, _ = rates(lambda opt: lr_scheduler.StepLR(opt, step_size, gamma), total_steps, 0.3)
    ours = torch_step(total_steps, lr=0.3, step_size=step_size, gamma=gamma)
    np.testing.assert_allclose(ours(positions(total_steps)), lrs, rtol=1e-11)


@LENGTHS
@pytest.mark.parametrize("factors", [(1 / 3, 1.0), (1.0, 0.01), (0.2, 0.7)])
@pytest.mark.parametrize("total_iters", [1, 5, 50, 400])
def test_torch_linear_is_linear_lr(total_steps, factors, total_iters):
    options = {"start_factor": factors[0], "end_factor": factors[1], "total_iters": total_iters}
    lrs, _ = rates(lambda opt: lr_scheduler.LinearLR(opt, **options), total_steps, 0.3)
    ours = torch_linear(total_steps, lr=0.3, **options)
    np.testing.assert_allclose(ours(positions(total_steps)), lrs, rtol=1e-11)


@LENGTHS
@pytest.mark.parametrize(("t_max", "eta_min"), [(1, 0.1), (10, 0.0), (59, 0.01), (400, 1e-4)])
def test_torch_cosine_is_cosine_annealing_lr(total_steps, t_max, eta_min):
    lrs, _ = rates(
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, t_max, eta_min), total_steps, 0.3
    )
    ours = torch_cosine(total_steps, lr=0.3, t_max=t_max, eta_min=eta_min)
    np.testing.assert_allclose(ours(positions(total_steps)), lrs, rtol=1e-9, atol=1e-15)


@LENGTHS
@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 2.0, 3])
@pytest.mark.parametrize("total_iters", [1, 6, 59, 400])
def test_torch_polynomial_is_polynomial_lr(total_steps, power, total_iters):
    ours = torch_polynomial(total_steps, lr=0.3, total_iters=total_iters, power=power)
    found = ours(positions(total_steps))
    lrs, _ = rates(lambda opt: lr_scheduler.PolynomialLR(opt, total_iters, power), total_steps, 0.3)
    np.testing.assert_allclose(found, lrs, rtol=1e-11)
    # Torch multiplies from step to step, and rounds each time; its formula is met to 2 ulp.
    left = [1.0 - min(total_iters, k) / total_iters for k in range(total_steps)]
    np.testing.assert_array_max_ulp(found, np.array([0.3 * x**power for x in left]), 2)


def test_torch_polynomial_has_the_golden_values():
    found = torch_polynomial(7, lr=1.0, total_iters=4, power=2.0)(positions(7))
    assert found.tolist() == [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0, 0.0]


@LENGTHS
@pytest.mark.parametrize(("t_0", "t_mult"), [(1, 1), (1, 2), (10, 1), (10, 2), (4, 3), (500, 2)])
def test_torch_warm_restarts_is_cosine_annealing_warm_restarts(total_steps, t_0, t_mult):
    lrs, _ = rates(
        lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, t_0, t_mult, 0.01),
        total_steps,
        0.3,
    )
    ours = torch_warm_restarts(total_steps, lr=0.3, t_0=t_0, t_mult=t_mult, eta_min=0.01)
    np.testing.assert_allclose(ours(positions(total_steps)), lrs, rtol=1e-12)


@LENGTHS
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize(("up", "down"), [(10, None), (3, 7), (12, 1), (500, 100)])
def test_torch_cyclic_is_cyclic_lr_with_its_momentum(total_steps, mode, up, down):
    options = {"step_size_up": up, "step_size_down": down, "mode": mode, "gamma": 0.99}
    options |= {"base_lr": 0.01, "max_lr": 0.7}
    lrs, momenta = rates(lambda opt: lr_scheduler.CyclicLR(opt, **options), total_steps, 0.3)
    ours = torch_cyclic(total_steps, **options)
    np.testing.assert_allclose(ours(positions(total_steps)), lrs, rtol=1e-11)
    np.testing.assert_allclose(ours.momentum()(positions(total_steps)), momenta, rtol=1e-12)


def test_the_comparisons_with_torch_see_a_cycle_that_is_one_step_longer():
    lrs, _ = rates(lambda opt: lr_scheduler.CyclicLR(opt, 0.1, 1.0, 10), 60, 0.3)
    longer = torch_cyclic(60, base_lr=0.1, max_lr=1.0, step_size_up=11)
    assert np.abs(longer(positions(60)) - lrs).max() > 0.05


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: torch_step(9, lr=0.1, step_size=0), ValueError, "step_size must be at least 1"),
        (
            lambda: torch_cyclic(9, base_lr=0, max_lr=1, step_size_up=2, step_size_down=0),
            ValueError,
            "step_size_down must be at least 1",
        ),
        (lambda: torch_step(9, lr=-1, step_size=2), ValueError, "lr must not be negative; got -1"),
        (lambda: torch_step(9.5, lr=1, step_size=2), TypeError, "total_steps must be an integer"),
        (lambda: torch_linear(9, lr=1, total_iters=-1), ValueError, "total_iters must be at least"),
        (lambda: torch_cosine(9, lr=1, t_max=0), ValueError, "t_max must be at least 1; got 0"),
        (lambda: torch_polynomial(9, lr=1, total_iters=0), ValueError, "total_iters must be at le"),
        (lambda: torch_polynomial(9, lr=1, power=-1), ValueError, "power must be positive; got -1"),
        (lambda: torch_warm_restarts(9, lr=1, t_0=0), ValueError, "t_0 must be at least 1"),
        (lambda: torch_cyclic(9, base_lr=0, max_lr=1, mode="sine"), ValueError, "mode must be one"),
        (lambda: torch_cyclic(9, base_lr=0, max_lr=-1), ValueError, "max_lr must not be negative"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, error, words):
    with pytest.raises(error, match=words):
        make()
