import itertools

import numpy as np
import pytest

from onecycle.range_test.rules import minimum, slide, steep, suggest, valley
from onecycle.range_test.spreads import N_RESAMPLES, WEIGHTS, Vote, spread
from onecycle.record.smoothing import smooth

LRS = np.geomspace(1e-7, 10, 100)
RULES = (minimum, valley, slide, steep)
KEPT = slice(10, -5)
#: One step of the rates, a little rounded up.
STEP = 1.21


def falling_then_rising():
    return 2.3 - 1.9 / (1 + 1e-3 / LRS) + 0.3 * LRS**1.5


def noisy(noise, seed):
    return falling_then_rising() * (1 + noise * np.random.default_rng(seed).normal(size=100))


def ask(losses, rules=RULES):
    return spread(LRS[: len(losses)], losses, smoothed=smooth(losses), num_it=100, rules=rules)


def say(losses, rules=RULES):
    """Ask each rule once, without a bootstrap."""
    return [rule(LRS[KEPT], smooth(losses)[KEPT]) for rule in rules]


@pytest.fixture(scope="module", params=[0.03, 0.1])
def resampled(request):
    """The spreads of thirty range tests that differ by their noise alone, and its size."""
    return request.param, [ask(noisy(request.param, seed)) for seed in range(30)]


def share(spreads, rule, rate):
    """How many of the intervals have a rate in them."""
    return np.mean([low <= rate <= high for low, high in (s.rules[rule] for s in spreads)])


def test_the_rate_of_the_curve_without_noise_lies_in_the_interval(resampled):
    _, spreads = resampled
    (true,) = say(falling_then_rising(), [minimum])
    assert share(spreads, "minimum", true) >= 0.8  # as the interval promises
    assert share(spreads, "minimum", true * 3) == 0  # negative control


@pytest.mark.parametrize("rule", [minimum, valley, slide], ids=lambda rule: rule.__name__)
def test_the_median_of_many_tests_lies_in_the_interval_of_each(resampled, rule):
    noise, spreads = resampled
    fresh = [say(noisy(noise, seed), [rule])[0] for seed in range(1000, 1100)]
    middle = np.quantile(fresh, 0.5, method="inverted_cdf")
    assert share(spreads, rule.__name__, middle) >= 0.75


@pytest.mark.parametrize("rule", [minimum, valley, slide], ids=lambda rule: rule.__name__)
def test_the_interval_is_as_wide_as_that_of_many_tests_and_of_other_weights(resampled, rule):
    noise, spreads = resampled
    fresh = [say(noisy(noise, seed), [rule])[0] for seed in range(1000, 1100)]
    expected = np.log10(np.quantile(fresh, 0.9) / np.quantile(fresh, 0.1))
    expected = 2 * np.hypot(expected / 2, WEIGHTS / np.log(10))  # what other weights add
    widths = [np.log10(high / low) for low, high in (s.rules[rule.__name__] for s in spreads)]
    one_step = 8 / 99  # of the grid of rates, in decades
    assert np.mean(widths) == pytest.approx(expected, abs=0.75 * one_step + 0.15 * expected)


def test_the_median_vote_of_many_tests_lies_in_the_interval_of_the_vote(resampled):
    noise, spreads = resampled
    fresh = [np.exp(np.median(np.log(say(noisy(noise, s))))) for s in range(1000, 1100)]
    inside = [s.vote.low <= np.median(fresh) <= s.vote.high for s in spreads]
    assert np.mean(inside) >= 0.8


@pytest.mark.parametrize("rule", ["minimum", "valley", "slide", "steep"])
def test_more_noise_spreads_more(rule):
    widths = []
    for noise in (0.01, 0.2):
        found = [ask(noisy(noise, seed)).rules[rule] for seed in range(3)]
        widths.append(np.mean([np.log10(high / low) for low, high in found]))
    assert widths[1] > 1.3 * widths[0]


def test_without_noise_the_interval_is_as_wide_as_what_other_weights_add():
    losses = np.concatenate([np.linspace(2, 1, 70), np.linspace(1, 2, 31)[1:]])  # straight lines
    found = ask(losses, [minimum, valley])
    expected = say(losses, [minimum, valley])
    fifth = np.exp(0.2)
    assert found.rules["minimum"] == pytest.approx((expected[0] / fifth, expected[0] * fifth))
    assert found.rules["valley"] == pytest.approx((expected[1] / fifth, expected[1] * fifth))
    middle = np.sqrt(np.prod(expected))
    vote = (found.vote.lr, found.vote.low, found.vote.high)
    assert vote == pytest.approx((middle, middle / fifth, middle * fifth))


def test_a_smooth_curve_spreads_by_no_more_than_two_steps_and_what_other_weights_add():
    for name, (low, high) in ask(falling_then_rising()).rules.items():
        assert high <= low * STEP**2 * np.exp(2 * WEIGHTS), name


def test_no_interval_reaches_beyond_the_rate_at_which_the_loss_turns_up():
    losses = np.interp(np.arange(100), [0, 40, 60, 70, 99], [2.0, 2.0, 1.0, 1.0, 1.9])
    turn = suggest(LRS, losses, smoothed=smooth(losses), num_it=100).lr_max
    assert LRS[64] < turn < LRS[76]  # on the floor, or as it ends

    def well_below(lrs, curve):
        return turn / 2

    def just_below(lrs, curve):
        return turn / 1.1

    found = ask(losses, [well_below, just_below])
    assert found.rules["well_below"][1] == pytest.approx(turn / 2 * np.exp(WEIGHTS))
    assert found.rules["just_below"][1] == turn
    assert ask(losses, [just_below]).vote.high == turn

    def beyond(lrs, curve):
        return 2 * turn

    low, high = ask(losses, [beyond]).rules["beyond"]
    assert (low, high) == pytest.approx((2 * turn / np.exp(WEIGHTS), 2 * turn))


def test_the_same_losses_give_the_same_spread_and_no_generator_moves():
    losses = noisy(0.1, 0)
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    assert ask(losses) == ask(losses)
    assert np.random.random() == expected


def test_the_noise_of_a_loss_stays_at_its_place():
    losses, curves = np.linspace(2, 1, 100), []
    losses[60:] += np.random.default_rng(0).normal(size=40)

    def keep(lrs, curve):
        curves.append(curve)
        return 1.0

    ask(losses, [keep])
    changed = np.std(curves, axis=0) > 1e-12
    # The mean of a loss and its neighbours reaches one point further.
    assert changed.tolist() == [False] * 49 + [True] * 36


def test_each_rule_sees_the_points_of_the_test_with_the_variance_of_its_noise():
    curves = []

    def look(lrs, losses):
        assert np.array_equal(lrs, LRS[KEPT])
        curves.append(losses)
        return 1.0

    noise = np.random.default_rng(0).normal(size=100)
    ask(noise, [look])
    assert len(curves) == N_RESAMPLES
    # The variance of the weighted mean of independent noise, written out for the last point.
    weights = 0.98 ** np.arange(95)
    expected = np.sum(weights**2) / np.sum(weights) ** 2 * noise.var()
    assert np.var(curves, axis=0)[-1] == pytest.approx(expected, rel=0.3)


def test_the_vote_is_the_median_over_rules_in_log_space():
    counter = itertools.count()

    def constant(name, rates):
        def rule(lrs, losses):
            return rates[next(counter) % 2] if len(rates) > 1 else rates[0]

        rule.__name__ = name
        return rule

    losses = noisy(0.1, 0)
    two = ask(losses, [constant("a", [1e-4]), constant("b", [1e-2])])
    assert two.vote.lr == pytest.approx(1e-3)
    three = ask(losses, [constant("a", [1e-4]), constant("b", [3e-3]), constant("c", [1.0])])
    low, high = (pytest.approx(3e-3 * np.exp(sign * WEIGHTS)) for sign in (-1, 1))
    assert three.vote == Vote(pytest.approx(3e-3), low, high)
    # One rule of three that jumps on half of the resamples carries the vote with it.
    jumps = ask(losses, [constant("a", [1e-4]), constant("b", [1e-3, 1e-2]), constant("c", [1.0])])
    reach = np.exp(np.hypot(np.log(10), WEIGHTS))
    assert jumps.vote.low == pytest.approx(1e-3 / np.exp(WEIGHTS))
    assert jumps.vote.high == pytest.approx(1e-3 * reach)


def test_points_after_a_loss_that_is_not_finite_take_no_part():
    losses = noisy(0.1, 0)
    cut = np.concatenate([losses[:80], [np.nan] * 20])
    rates = LRS[10:80]
    seen = []

    def look(lrs, curve):
        assert np.isfinite(curve).all()
        seen.append(lrs)
        return 1.0

    ask(cut, [look])
    assert np.array_equal(seen[0], rates)


def test_no_rules_have_no_spread():
    found = ask(noisy(0.1, 0), [])
    assert (found.rules, found.vote) == ({}, None)
