import math

import numpy as np
import pytest
from smoothed import smoothed

from onecycle.record.smoothing import Smoother, smooth


def test_smoothed_value_is_the_normalised_sum_of_powers_of_beta() -> None:
    values = np.random.default_rng(0).normal(size=50)
    smoothed = smooth(values, beta=0.9)
    for t in range(1, 51):
        weights = 0.9 ** np.arange(t)[::-1]
        assert smoothed[t - 1] == pytest.approx((weights * values[:t]).sum() / weights.sum())


def test_first_value_has_no_bias_and_a_constant_stays_constant() -> None:
    np.testing.assert_allclose(smooth(np.full(200, 7.0)), 7.0, rtol=1e-12)


def test_beta_zero_returns_the_series() -> None:
    assert smooth([3.0, 1.0, 2.0], beta=0).tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_a_gap_and_leaves_the_rest_as_without_it(bad: float) -> None:
    smoothed = smooth([4.0, bad, 2.0, 1.0], beta=0.5)
    assert math.isnan(smoothed[1])
    assert smoothed[[0, 2, 3]].tolist() == smooth([4.0, 2.0, 1.0], beta=0.5).tolist()


def test_empty_series_stays_empty() -> None:
    assert smooth([]).shape == (0,)


@pytest.mark.parametrize("beta", [-0.1, 1.0, 98])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        smooth([1.0], beta=beta)


def test_several_series_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        smooth(np.zeros((2, 3)))


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.98])
def test_smoothed_loss_is_the_exponentially_weighted_mean_of_the_losses_so_far(beta):
    losses = np.random.default_rng(0).normal(2, 1, size=30)
    smoother = Smoother(beta)
    np.testing.assert_allclose([smoother.update(x) for x in losses], smoothed(losses, beta))


def test_first_smoothed_loss_is_the_first_loss():
    assert Smoother().update(7.25) == pytest.approx(7.25, rel=1e-13)


def test_smoothed_loss_stays_nan_after_a_nan():
    smoother = Smoother()
    assert [math.isnan(smoother.update(x)) for x in (1.0, math.nan, 1.0)] == [False, True, True]


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_beta_outside_zero_to_one_is_refused(beta):
    with pytest.raises(ValueError, match="beta is expected"):
        Smoother(beta)
