"""The knee of a range test: by hand on curves of straight lines, and under noise."""

import math

import numpy as np
import pytest
from smoothed import smoothed

from onecycle.range_test.knee import MARGIN, knee, read, running_median, why_unclear
from onecycle.range_test.rules import minimum, suggest, valley

LRS = np.geomspace(1e-7, 10, 100)


def lines(*corners: tuple[float, float]) -> np.ndarray:
    """Draw straight lines between ``(index, loss)``."""
    return np.interp(np.arange(100), *zip(*corners, strict=True))


#: Falls from 2 to 1 between 40 and 60, stays until 80, and is at 3 at 90: over the start by as
#: much as it fell.
TROUGH = lines((0, 2.0), (40, 2.0), (60, 1.0), (80, 1.0), (90, 3.0), (99, 4.8))


@pytest.mark.parametrize("n", [5, 7, 100, 300])
def test_the_running_median_is_that_of_each_window_by_hand(n: int) -> None:
    values = np.random.default_rng(0).normal(size=n)
    half = 3 if n <= 100 else 10
    expected = [np.median(values[max(0, i - half) : i + half + 1]) for i in range(n)]
    assert running_median(values).tolist() == expected


def test_settles_where_nine_tenths_of_the_fall_are_made() -> None:
    found = read(LRS, TROUGH)
    assert found.falls == LRS[42]
    assert found.settles == LRS[58]
    assert found.turns == LRS[83]  # the first above 1.4
    assert found.breaks == LRS[91]  # the first above the height of 90
    assert found.floor == 83 - 58
    assert found.lr == min(LRS[58], LRS[83] / MARGIN) == LRS[58]


def test_is_a_tenth_of_the_turning_rate_where_the_loss_falls_up_to_its_turn() -> None:
    found = read(LRS, lines((0, 2.0), (60, 2.0), (75, 1.0), (85, 2.0), (99, 2.1)))
    assert found.turns == LRS[80]  # the tip of the median is at 1.13: the first above 1.48
    assert found.breaks is None
    assert found.lr == LRS[80] / 10 < found.settles == LRS[72]


def test_turns_at_its_break_at_the_latest() -> None:
    losses = TROUGH.copy()
    losses[75:] = math.nan
    assert read(LRS, losses).turns == read(LRS, losses).breaks == LRS[75]


def test_a_rise_of_less_than_four_tenths_of_the_fall_or_of_two_updates_is_no_turn() -> None:
    found = read(LRS, lines((0, 2.0), (40, 2.0), (60, 1.0), (70, 1.0), (90, 1.39), (99, 1.39)))
    assert (found.turns, found.floor, found.lr) == (None, 100, LRS[58])
    losses = lines((0, 2.0), (40, 2.0), (60, 1.0), (99, 1.0))
    losses[[70, 71, 72, 75]] = 9.0  # the median of seven is high for two updates
    assert read(LRS, losses).turns is None
    losses[76] = 9.0
    assert read(LRS, losses).turns == LRS[72]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_breaks_at_a_loss_that_is_not_finite_or_huge(bad: float) -> None:
    losses = TROUGH.copy()
    losses[75:] = bad
    assert read(LRS, losses).breaks == LRS[75]


def test_breaks_at_the_end_of_a_test_that_was_stopped_and_nowhere_in_one_that_was_not() -> None:
    assert read(LRS[:70], TROUGH[:70]).breaks is None
    assert read(LRS[:70], TROUGH[:70], stopped=True).breaks == LRS[69]


def test_noise_that_exceeds_a_small_fall_is_no_break() -> None:
    # The fall is that of one lucky window; a rule that waits for as much above the start takes
    # noise for the break.
    found = []
    for seed in range(50):
        losses = 2.0 + 0.2 * np.random.default_rng(seed).normal(size=100)
        losses[90:] = np.geomspace(4, 40, 10)
        found.append(read(LRS, losses).breaks)
    assert set(found) <= set(LRS[88:91])


def test_a_few_high_losses_are_no_break_and_what_stays_is_one() -> None:
    losses = TROUGH.copy()
    losses[[70, 71, 72, 75]] = 9.0  # the median of seven is high for two updates
    assert read(LRS, losses).breaks == LRS[91]
    losses[70:80] = 9.0
    assert read(LRS, losses).breaks == LRS[70]


def test_a_flat_and_noisy_bottom_does_not_drag_it_to_the_right() -> None:
    # As with Adam: two decades of a flat bottom whose lowest point is anywhere.
    flat = lines((0, 2.0), (40, 2.0), (60, 1.0), (99, 0.98))
    noisy = [flat + 0.05 * np.random.default_rng(s).normal(size=100) for s in range(20)]
    knees = [knee(LRS, losses) for losses in noisy]
    assert LRS[55] <= min(knees) <= max(knees) <= LRS[64]
    lows = [10 * minimum(LRS[10:-5], smoothed(losses)[10:-5]) for losses in noisy]
    assert min(lows) > LRS[85]  # negative control: where the smoothed loss is lowest


def test_hard_and_easy_batches_do_not_move_it() -> None:
    losses = TROUGH.copy()
    losses[[0, 10, 20, 70]] = 50.0, 0.0, 90.0, 40.0
    assert read(LRS, losses).lr == read(LRS, TROUGH).lr


def test_two_thousand_points_give_the_same_knee_as_a_hundred() -> None:
    lrs = np.geomspace(1e-7, 10, 2000)
    losses = np.interp(np.log(lrs), np.log(LRS), TROUGH)
    assert read(lrs, losses).lr == pytest.approx(read(LRS, TROUGH).lr, rel=0.2)


NOISES = {
    "normal": lambda rng: 2.3 + 0.3 * rng.normal(size=100),
    "skewed": lambda rng: np.exp(rng.normal(size=100)),
    "spiky": lambda rng: 2 + 0.1 * rng.normal(size=100) + 2 * (rng.random(100) < 0.05),
}


@pytest.mark.parametrize("kind", NOISES)
def test_pure_noise_shows_no_valley(kind: str) -> None:
    rng = np.random.default_rng(0)
    assert sum(read(LRS, NOISES[kind](rng)).is_clear for _ in range(300)) <= 3


def test_a_fall_of_six_times_the_noise_shows_one() -> None:
    rng = np.random.default_rng(0)
    clear = [read(LRS, TROUGH + rng.normal(size=100) / 6).is_clear for _ in range(100)]
    assert sum(clear) >= 95


@pytest.mark.parametrize(("width", "expected"), [(13, True), (9, False)])
def test_below_eight_times_the_noise_a_valley_has_a_floor_of_a_tenth_of_the_updates(
    width: int, expected: bool
) -> None:
    low = lines((0, 2.0), (50, 2.0), (51, 1.0), (51 + width, 1.0), (52 + width, 2.0), (99, 2.0))
    noise = np.where(np.arange(100) % 2, 0.5, -0.5)  # around a median that it moves, too
    faint, sharp = read(LRS, low + noise / 7), read(LRS, low + noise / 14)
    assert faint.fall / faint.noise < 8 < sharp.fall / sharp.noise
    assert (faint.is_clear, sharp.is_clear) == (expected, True)
    assert (faint.floor >= 10) == expected


@pytest.mark.parametrize("level", [100.0, -100.0])
def test_an_exact_fall_of_less_than_a_hundredth_shows_none(level: float) -> None:
    assert not read(LRS, level * 1.1 + TROUGH).is_clear
    assert read(LRS, level / 5 + TROUGH).is_clear


def test_suggest_gives_it_the_raw_losses_and_the_others_the_smoothed() -> None:
    smooth = smoothed(TROUGH)
    found = suggest(LRS, TROUGH, smoothed=smooth, num_it=100, rules=(knee, valley))
    assert found.values == {
        "knee": read(LRS, TROUGH).lr,
        "valley": valley(LRS[10:-5], smooth[10:-5]),
    }


def test_suggest_says_why_there_is_none() -> None:
    losses = np.full(100, 2.0)
    found = suggest(LRS, losses, smoothed=losses, num_it=100, rules=(knee,))
    assert found.values == {"knee": None}
    assert found.reason == (
        "no suggestion: the loss never falls clearly: by 0 from 2, with noise 0 per batch"
    )


def test_it_says_why_a_faint_fall_with_a_narrow_floor_is_none() -> None:
    low = lines((0, 2.0), (50, 2.0), (51, 1.0), (60, 1.0), (61, 2.0), (99, 2.0))
    reading = read(LRS, low + np.where(np.arange(100) % 2, 0.5, -0.5) / 7)
    assert not reading.is_clear
    said = why_unclear(reading)
    assert said.startswith(f"no suggestion: the loss falls by {reading.fall:.4g} from ")
    assert said.endswith(f"but stays down for {reading.floor} updates only")


def test_a_test_of_no_finite_loss_has_no_points() -> None:
    found = read(LRS[:3], np.full(3, math.nan))
    assert (found.points, found.is_clear) == (0, False)


@pytest.mark.parametrize(("lrs", "losses"), [([0.1, 0.2], [1.0]), ([0.2, 0.1], [1.0, 2.0])])
def test_what_is_no_curve_is_refused(lrs: list[float], losses: list[float]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        knee(lrs, losses)
