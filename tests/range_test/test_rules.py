import itertools
import math

import numpy as np
import pytest
from smoothed import smoothed

from onecycle.range_test.rules import MIN_POINTS, StopRule, minimum, slide, steep, suggest, valley
from onecycle.record.smoothing import Smoother

LRS = 1e-7 * 1e8 ** (np.arange(100) / 100)
RULES = (valley, slide, minimum, steep)
GRID_STEP = 1e8 ** (1 / 100)


def falling_then_rising(lrs=LRS):
    """A drop from 1.2 to 0.2 centred at 1e-3, and a blow-up that begins near 0.1."""
    return 1.2 - 1 / (1 + 1e-3 / lrs) + lrs


def noisy(losses, noise, seed):
    return losses * (1 + noise * np.random.default_rng(seed).normal(size=len(losses)))


def read(losses, rules=RULES, num_it=100, lrs=LRS):
    return suggest(
        lrs[: len(losses)], losses, smoothed=smoothed(losses), num_it=num_it, rules=rules
    )


def first_stop(losses, **settings):
    """The number of the batch at which the test stops, and the reason; or None."""
    smoother, rule = Smoother(), StopRule(**settings)
    for number, loss in enumerate(losses, start=1):
        if reason := rule.update(loss, smoother.update(loss)):
            return number, reason
    return None


# The stop rule


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", [4.0, None])
@pytest.mark.parametrize("finite_before", [0, 3, 20])
def test_non_finite_loss_stops_at_once(loss, factor, finite_before):
    number, reason = first_stop([1.0] * finite_before + [loss], factor=factor)
    assert number == finite_before + 1
    assert reason == f"batch {number}: the loss is {loss}"


def test_smoothed_loss_above_factor_times_its_best_stops():
    rule = StopRule(factor=3.0, guard=2)
    assert [rule.update(0.0, s) for s in (2.0, 2.0, 1.0, 3.0)] == [None] * 4
    reason = rule.update(0.0, 3.001)
    assert reason == "batch 5: the smoothed loss 3.001 is more than 3 times its best, 1"


def test_batches_before_the_guard_neither_stop_nor_count_as_best():
    rule = StopRule(factor=4.0, guard=10)
    assert [rule.update(s, s) for s in [0.1, 90.0] + [2.0] * 8] == [None] * 10
    assert rule.update(7.9, 7.9) is None
    assert rule.update(8.1, 8.1) is not None


def test_easy_first_batch_does_not_stop_the_test():
    losses = [0.05] + [2.3] * 99
    assert first_stop(losses) is None
    # Control: without the guard this curve is cut short.
    assert first_stop(losses, guard=1)[0] < 5


def test_divergence_after_an_easy_first_batch_still_stops():
    losses = [0.05] + [2.3] * 59 + [500.0] * 40
    assert first_stop(losses)[0] in (61, 62)


def test_factor_none_lets_any_finite_loss_pass():
    losses = [1.0] * 20 + [1e30] * 20
    assert first_stop(losses, factor=None) is None
    assert first_stop(losses)[0] == 21


def test_best_below_zero_may_be_exceeded_by_factor_minus_one_times_its_size():
    assert first_stop([-2.0] * 50) is None
    rule = StopRule(factor=4.0, guard=0)
    assert [rule.update(s, s) for s in (-2.0, 3.9)] == [None, None]
    assert rule.update(4.1, 4.1) is not None


@pytest.mark.parametrize("settings", [{"factor": 1.0}, {"factor": math.nan}, {"guard": -1}])
def test_settings_that_would_always_stop_are_refused(settings):
    with pytest.raises(ValueError, match="is expected"):
        StopRule(**settings)


# The rules


def valley_by_brute_force(lrs, losses):
    """Try every subsequence; keep the longest decreasing one that ends first."""
    n = len(losses)
    best, end = 1, 0
    for last in range(n):
        for size in range(best, last + 1):
            for chosen in itertools.combinations(range(last), size):
                values = [losses[k] for k in (*chosen, last)]
                if size + 1 > best and all(a > b for a, b in itertools.pairwise(values)):
                    best, end = size + 1, last
    start = end - best
    return lrs[max(0, start + int(best / 3) + int(best / 3 / 2))]


@pytest.mark.parametrize("seed", range(30))
def test_valley_points_into_the_longest_decreasing_subsequence(seed):
    rng = np.random.default_rng(seed)
    lrs = np.arange(1.0, 11.0)
    losses = rng.integers(0, 8, size=10).astype(float)  # with ties
    assert valley(lrs, losses) == valley_by_brute_force(lrs, losses)


def test_valley_of_a_hand_made_curve():
    # Ten falling losses end at index 12: s = 2, t = 10 / 3, index 2 + 3 + 1.
    losses = [9, 9, 9, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0.5, 5, 6, 7]
    assert valley(np.arange(1.0, 17.0), losses) == 7.0


@pytest.mark.parametrize(("points", "index"), [(2, 0), (3, 0), (12, 5), (30, 14)])
def test_valley_of_a_curve_that_only_falls_starts_one_before_the_first_point(points, index):
    lrs = np.arange(1.0, points + 1)
    assert valley(lrs, -lrs) == lrs[index]


def test_valley_of_a_curve_that_only_rises_is_the_first_rate():
    assert valley(np.arange(1.0, 9.0), np.arange(8.0)) == 1.0


def test_minimum_is_a_tenth_of_the_rate_at_the_first_lowest_loss():
    assert minimum([0.1, 0.2, 0.4, 0.8], [3, 1, 1, 2]) == pytest.approx(0.02)


def test_steep_measures_the_slope_over_the_logarithm_of_the_rate():
    # A fall by 2 over a factor 2 is steeper than a fall by 3 over a factor 100.
    lrs, losses = np.array([1e-4, 1e-2, 2e-2, 1.0]), [6.0, 3.0, 1.0, 1.0]
    assert steep(lrs, losses) == 1e-2
    # Control: over the rate itself the first step is the steepest.
    assert np.argmin(np.diff(losses) / np.diff(lrs)) == 0


def test_slide_stops_where_the_slopes_fifteen_apart_agree():
    # Slopes are 0 up to index 28, 0.5 at 29, and 1 from 30 on. The interval slides left until
    # its right end is at 28, so the last left end that differed is 29 - 15.
    lrs = np.arange(1.0, 41.0)
    losses = np.where(lrs <= 30, 0.0, lrs - 30)
    assert slide(lrs, losses) == lrs[14]


def test_slide_stays_where_it_starts_when_the_slopes_agree_there():
    lrs = np.arange(1.0, 41.0)
    assert slide(lrs, -lrs) == lrs[39 - 15]


@pytest.mark.parametrize("points", [2, 10, 15, 16])
def test_slide_of_a_curve_shorter_than_its_interval_is_the_first_rate(points):
    lrs = np.arange(1.0, points + 1)
    assert slide(lrs, lrs**2) == 1.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("lrs", "losses", "message"),
    [
        ([0.1], [1.0], "2 points or more"),
        ([0.1, 0.2, 0.3], [1.0, 2.0], "one shape"),
        ([0.0, 0.1], [1.0, 2.0], "positive"),
        ([0.2, 0.1], [1.0, 2.0], "to rise"),
        ([0.1, 0.2], [1.0, math.nan], "finite, got nan"),
    ],
)
def test_rules_refuse_what_is_no_curve(rule, lrs, losses, message):
    with pytest.raises(ValueError, match=message):
        rule(lrs, losses)


# Suggestions


def test_without_noise_every_rule_finds_its_known_rate():
    # The values that fastai 2.8 gives on such a curve; slide depends on the depth of the drop,
    # and may be one point off.
    values = read(falling_then_rising()).values
    assert values["valley"] == pytest.approx(4.0e-4, rel=0.02)
    assert values["slide"] == pytest.approx(3.6e-3, rel=GRID_STEP * 1.02 - 1)
    assert values["minimum"] == pytest.approx(4.4e-2, rel=0.02)
    assert values["steep"] == pytest.approx(5.3e-3, rel=0.02)


# Within a factor of 1.5: the medians are compared on a grid of steps of 1.2, over 40 seeds each,
# whose 10-90 % spread is a factor of 1.2 to 3.6: that is up to 1.2 in the median of either side.
@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (0.05, {"valley": 1.6e-3, "slide": 3.6e-3, "minimum": 4.4e-2, "steep": 4.4e-3}),
        (0.15, {"valley": 2.5e-3, "slide": 4.4e-3, "minimum": 4.4e-2}),  # steep is lost
        (0.30, {"valley": 3.6e-3, "slide": 7.6e-3, "minimum": 4.4e-2}),
    ],
)
def test_median_over_seeds_is_near_the_known_one(noise, expected):
    runs = [read(noisy(falling_then_rising(), noise, seed)).values for seed in range(40)]
    for name, value in expected.items():
        found = [run[name] for run in runs if run[name] is not None]
        assert len(found) >= 39
        assert value / 1.5 < np.median(found) < value * 1.5, name


def test_valley_is_steadier_than_steep_under_noise():
    runs = [read(noisy(falling_then_rising(), 0.15, seed)).values for seed in range(40)]
    spread = {
        name: np.ptp(np.quantile(np.log10([run[name] for run in runs]), [0.1, 0.9]))
        for name in ("valley", "steep")
    }
    assert spread["valley"] < 1 < 2 < spread["steep"]


def test_rules_see_the_points_from_a_tenth_of_num_it_to_the_last_five():
    seen = []

    def spy(lrs, losses):
        seen.append((lrs, losses))
        return 1.0

    losses = falling_then_rising()[:90]  # stopped after 90 of 100
    assert read(losses, rules=(spy,)).values == {"spy": 1.0}
    np.testing.assert_array_equal(seen[0][0], LRS[10:85])
    np.testing.assert_allclose(seen[0][1], smoothed(losses)[10:85])


def test_points_from_the_first_non_finite_one_on_are_cut():
    losses = falling_then_rising()
    losses[92:] = math.nan
    cut = suggest(LRS, losses, smoothed=smoothed(losses), num_it=100, rules=RULES)
    # Five finite points more stand in for the five that are always dropped.
    assert cut == read(falling_then_rising()[:97])


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15, 0.3])
def test_pair_for_a_cycle_ends_before_the_loss_turns_up(noise):
    # The noiseless curve is lowest at 0.032, at 0.06, and by 0.2 higher at a rate of 0.23: what
    # the noise of 30 % per batch, 0.3, can hide in an average of 10 is about that.
    pairs = [read(noisy(falling_then_rising(), noise, seed)) for seed in range(40)]
    lr_max = np.array([pair.lr_max for pair in pairs])
    assert 0.032 < lr_max.min() <= np.median(lr_max) < (0.1 if noise <= 0.05 else 0.3)
    np.testing.assert_array_equal([pair.lr_min for pair in pairs], lr_max / 10)


def test_pair_reaches_to_the_end_of_a_flat_bottom():
    losses = 2.3 - 1.9 / (1 + (1e-4 / LRS) ** 2) + np.where(LRS > 0.5, (LRS / 0.5) ** 3 - 1, 0)
    found = [read(noisy(losses, 0.02, seed)).lr_max for seed in range(20)]
    assert 0.1 < np.min(found) <= np.max(found) < 1.0


@pytest.mark.parametrize(("height", "first", "last"), [(2.0, 85, 94), (4.0, 55, 62)])
def test_pair_ends_at_a_rise_of_three_standard_errors_and_not_at_one_of_two(height, first, last):
    # Noise of alternating sign cancels in a moving average of ten: what is left is the curve.
    points = np.arange(100)
    noise = 0.05 * (-1.0) ** points
    losses = np.interp(points, [0, 40], [1.5, 0.5]) + noise
    steps = np.diff(losses[10:65])
    error = np.sqrt((steps**2).mean() / 2) / np.sqrt(10)  # as the standard error of a mean is
    losses[60:] += height * error
    found = read(losses)
    assert LRS[first] <= found.lr_max <= LRS[last]


def test_easy_first_batch_does_not_hide_the_valley():
    losses = noisy(falling_then_rising(), 0.03, seed=0)
    plain = read(losses)
    losses[0] = 0.05
    easy = read(losses)
    assert easy.reason is None
    assert easy.lr_max == plain.lr_max


def none_of(found):
    assert found.values == dict.fromkeys(("valley", "slide", "minimum", "steep"))
    assert (found.lr_min, found.lr_max) == (None, None)
    return found.reason


@pytest.mark.parametrize("level", [2.3, 0.0, -5.0, 1e30])
def test_flat_curve_gives_the_reason(level):
    assert "never falls clearly" in none_of(read(np.full(100, level)))


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_curve_that_rises_from_the_start_gives_the_reason(noise):
    losses = noisy(2.3 + np.linspace(0, 5, 100), noise, seed=1)
    assert "never falls clearly" in none_of(read(losses))


def test_reason_names_the_levels_and_the_noise():
    losses = 2.0 + 0.1 * (-1.0) ** np.arange(100)  # neighbours differ by 0.2 = noise * sqrt(2)
    assert none_of(read(losses)) == (
        "no suggestion: the loss never falls clearly: from 2 down to 2, with noise 0.14 per batch"
    )


NOISES = {
    "normal": lambda rng, n: 2.3 + 0.3 * rng.normal(size=n),
    "skewed": lambda rng, n: np.exp(rng.normal(size=n)),
    "spiky": lambda rng, n: 2 + 0.1 * rng.normal(size=n) + 2 * (rng.random(n) < 0.05),
}


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("num_it", [30, 100, 300])
def test_pure_noise_passes_for_a_valley_in_at_most_one_run_of_twenty(kind, num_it):
    rng = np.random.default_rng(0)
    lrs = np.geomspace(1e-7, 10, num_it)
    draws = [NOISES[kind](rng, num_it) for _ in range(300)]
    # The smoothed losses play no part in the decision.
    found = [suggest(lrs, x, smoothed=x, num_it=num_it, rules=(valley,)) for x in draws]
    assert sum(f.reason is None for f in found) <= len(draws) / 20


def test_hard_first_batch_alone_is_no_valley():
    losses = noisy(np.full(100, 2.3), 0.02, seed=0)
    losses[0] = 12.0
    # Control: the smoothed curve falls, by many times the noise of a batch.
    assert np.ptp(smoothed(losses)[10:-5]) > 0.5
    assert "never falls clearly" in none_of(read(losses))


def test_exact_fall_of_less_than_a_hundredth_is_no_valley():
    assert read(100 + falling_then_rising()).reason is not None
    assert read(-100 + falling_then_rising()).reason is not None
    assert read(10 + falling_then_rising()).reason is None


def test_negative_losses_have_valleys_too():
    assert read(falling_then_rising() - 20).reason is None


@pytest.mark.parametrize("finite", [1, 14, 23])
def test_early_non_finite_loss_gives_the_reason(finite):
    losses = np.append(falling_then_rising()[:finite], math.nan)
    points = max(0, finite + 1 - 15)
    assert none_of(read(losses)).startswith(
        f"no suggestion: only {points} points before the loss became non-finite, "
        "without the first 10 and the last 5"
    )


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (np.full(100, math.nan), "the loss was not finite from the first batch on"),
        (np.full(1, math.inf), "the loss was not finite from the first batch on"),
        (np.array([]), "only 0 points"),
    ],
)
def test_curve_without_any_finite_loss_gives_the_reason_and_does_not_blame_the_rate(losses, reason):
    found = suggest(LRS[: len(losses)], losses, smoothed=losses, num_it=100, rules=RULES)
    assert none_of(found).startswith(f"no suggestion: {reason}")
    assert ("start_lr" in none_of(found)) == (not len(losses))


@pytest.mark.parametrize("num_it", [0, 1, 5, 6, 10, 15])
def test_short_test_gives_the_reason_and_blames_no_loss(num_it):
    lrs = np.geomspace(1e-5, 1, num_it) if num_it else np.array([])
    reason = none_of(read(np.linspace(3, 1, num_it), num_it=num_it, lrs=lrs))
    assert "non-finite" not in reason
    assert f"and {MIN_POINTS} are needed" in reason


def test_few_clear_points_are_enough():
    lrs = np.geomspace(1e-5, 1, 17)
    losses = np.array([3.0] * 8 + [1.0] * 9) + 0.01 * np.random.default_rng(0).normal(size=17)
    found = suggest(lrs, losses, smoothed=losses, num_it=17, rules=RULES)
    assert found.reason is None
    assert None not in found.values.values()


def test_linear_test_from_zero_is_read_like_any_other():
    lrs = np.linspace(0, 10, 100)
    losses = 2 - np.tanh(lrs - 3) + (lrs / 9) ** 30
    assert 3 < read(losses, lrs=lrs).lr_max < 9


def test_two_thousand_points_give_the_same_reading_as_a_hundred():
    few, many = (np.geomspace(1e-7, 10, n) for n in (100, 2000))
    a, b = (
        suggest(x, y, smoothed=y, num_it=len(x), rules=(minimum,))
        for x, y in ((lrs, falling_then_rising(lrs)) for lrs in (few, many))
    )
    assert b.values["minimum"] == pytest.approx(a.values["minimum"], rel=0.2)
    assert b.lr_max == pytest.approx(a.lr_max, rel=0.5)


def test_series_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"got \(100,\), \(99,\) and \(100,\)"):
        suggest(LRS, np.ones(99), smoothed=np.ones(100), num_it=100)


def test_rates_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match="expected to rise"):
        suggest(LRS[::-1], np.ones(100), smoothed=np.ones(100), num_it=100)


def test_rule_without_a_name_is_refused():
    class Nameless:
        def __call__(self, lrs, losses):
            return 1.0

    with pytest.raises(TypeError, match="__name__"):
        suggest(LRS, np.ones(100), smoothed=np.ones(100), num_it=100, rules=(Nameless(),))
