"""Which peaks are tried, and what is read from them."""

import math
from collections.abc import Callable

import pytest

from onecycle.range_test.mini_cycles import (
    EDGE,
    FAR,
    SAFETY,
    STEP,
    MiniCycles,
    try_peaks,
    try_two,
)


def tried(loss: Callable[[int], float], first: int = 5, most: int = 10) -> list[int]:
    """Return the tried peaks as steps from the centre, in the order in which they were tried."""
    asked: list[int] = []

    def measure(peak: float) -> float:
        asked.append(round(math.log10(peak) / math.log10(STEP)))
        return loss(asked[-1])

    found = try_peaks(measure, 1.0, before=lambda: 3.0, first=first, most=most)
    steps = [round(math.log10(peak) / math.log10(STEP)) for peak in found]
    assert steps == sorted(asked)
    return asked


FIRST = [-2, -1, 0, 1, 2]


def test_five_peaks_are_enough_where_the_best_is_inside() -> None:
    assert tried(lambda place: place**2) == FIRST


@pytest.mark.parametrize("best", [-4, 4])
def test_it_goes_on_where_the_best_lies_at_an_edge(best: int) -> None:
    side = 1 if best > 0 else -1
    assert tried(lambda place: (place - best) ** 2) == [*FIRST, 3 * side, 4 * side, 5 * side]


def test_it_goes_up_where_the_upper_edge_is_hardly_worse() -> None:
    # All alike but for noise: nothing has been trained yet, and the break is decades away.
    losses = {-1: 2.95, 0: 2.93, 1: 2.931, 2: 2.5, 3: 1.0, 4: math.inf}
    assert tried(losses.__getitem__, first=3, most=6) == [-1, 0, 1, 2, 3, 4]


def test_it_goes_down_where_all_diverge() -> None:
    found = tried(lambda place: 1.0 if place < -4 else math.inf, first=3, most=8)
    assert found == [-1, 0, 1, -2, -3, -4, -5, -6]


def test_it_goes_down_where_none_has_trained() -> None:
    assert tried(lambda place: 4.0 + place**2, first=3, most=5)[3:] == [-2, -3]


def test_no_more_than_the_most_are_tried() -> None:
    assert len(tried(lambda place: -place, most=7)) == 7


@pytest.mark.parametrize(("first", "other"), [(1.0, FAR), (2.99, 1 / FAR), (math.inf, 1 / FAR)])
def test_the_second_of_two_lies_above_a_peak_that_trains_and_else_below(
    first: float, other: float
) -> None:
    losses = {0.1: first, 0.1 * other: 2.0}
    found = try_two(lambda peak: losses[peak], 0.1, before=lambda: 3.0)
    assert found == losses
    assert [*found] == sorted(losses)


def cycles(*losses: float, before: float = 2.0) -> MiniCycles:
    peaks = tuple(10.0 ** (k - 3) for k in range(len(losses)))
    return MiniCycles(peaks, losses, before, 50, "validation loss")


def test_the_rate_is_the_best_peak_with_a_margin() -> None:
    found = cycles(1.5, 1.0, math.inf)
    assert (found.best, found.lr, found.cost) == (0.01, 0.01 / SAFETY, 150)
    low, high = found.spread or (0, 0)
    assert low < 0.01 / SAFETY < high


def test_around_a_suggestion_the_rate_lies_halfway_to_it() -> None:
    found = MiniCycles((0.01, 0.1), (1.5, 1.0), 2.0, 50, "validation loss", around=0.2)
    assert found.lr == pytest.approx((0.2 * 0.1 / SAFETY) ** 0.5)


def test_of_equal_peaks_the_lower_is_the_best() -> None:
    assert cycles(1.5, 1.0, 1.0).best == cycles(1.5, 1.009, 1.0).best == 0.01
    assert cycles(1.5, 1.011, 1.0).best == 0.1


@pytest.mark.parametrize("losses", [(math.inf, math.inf), (2.5, 3.0), (1.999, 2.5)])
def test_where_none_has_trained_there_is_no_rate(losses: tuple[float, ...]) -> None:
    found = cycles(*losses)
    assert found.lr is None
    assert found.spread is None
    assert "the best" not in repr(found)


def long_cycles(low: float, high: float, believed: float) -> MiniCycles:
    return MiniCycles((0.1, 0.4), (low, high), 2.0, 150, "validation loss", believed)


@pytest.mark.parametrize(
    ("low", "high", "believed", "lr"),
    [
        (1.5, 1.0, 0.1, 0.4),  # the better of the two
        (1.0, 1.5, 0.1, 0.1),
        (1.0, 0.995, 0.1, 0.1),  # alike: what was believed
        (0.995, 1.0, 0.4, 0.4),
        (1.0, 1.99, 0.1, 0.1 / EDGE),  # the higher one trains nothing: the break is near
        (1.0, math.inf, 0.4, 0.1 / EDGE),
        (1.99, 1.985, 0.1, 0.1),  # neither trains anything: what was believed
        (1.95, 1.99, 0.4, 0.4),  # nor enough to be evidence
        (1.95, math.inf, 0.1, 0.1),
        (math.inf, math.inf, 0.4, 0.4),
    ],
)
def test_of_two_long_cycles(low: float, high: float, believed: float, lr: float) -> None:
    found = long_cycles(low, high, believed)
    assert found.lr == lr
    ends = found.spread or (0, 0)
    assert ends == pytest.approx((lr / 2, lr * 2))


def test_what_is_only_believed_is_not_called_the_best() -> None:
    assert "the best" not in repr(long_cycles(1.99, 1.985, 0.1))


def test_prints_a_line_for_each_peak() -> None:
    assert repr(cycles(1.5, 1.0, math.inf)).splitlines() == [
        "3 cycles of 50 updates, validation loss",
        "  1.00e-03  1.5",
        "  1.00e-02  1  the best",
        "  1.00e-01  inf",
    ]
