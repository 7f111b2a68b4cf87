"""Which peaks are tried, and what is read from them."""

import math
from collections.abc import Callable

import pytest

from onecycle.range_test.mini_cycles import SAFETY, MiniCycles, try_peaks


def tried(
    loss: Callable[[float], float], centre: float = 1.0, first: int = 5, most: int = 10
) -> list[float]:
    """Return the tried peaks as powers of ten, in the order in which they were tried."""
    asked: list[float] = []

    def measure(peak: float) -> float:
        asked.append(round(math.log10(peak), 2))
        return loss(math.log10(peak))

    found = try_peaks(measure, centre, before=lambda: 3.0, first=first, most=most)
    assert [round(math.log10(peak), 2) for peak in found] == sorted(asked)
    return asked


FIRST = [-1.0, -0.5, 0.0, 0.5, 1.0]


def test_five_peaks_half_a_decade_apart_are_enough_where_the_best_is_inside() -> None:
    assert tried(lambda place: place**2) == FIRST


@pytest.mark.parametrize("best", [-2.0, 2.0])
def test_it_goes_on_where_the_best_lies_at_an_edge(best: float) -> None:
    side = math.copysign(1.0, best)
    more = [side * 1.5, side * 2.0, side * 2.5]
    assert tried(lambda place: 4 * (place - best) ** 2) == FIRST + more


def test_it_goes_up_where_the_upper_edge_is_hardly_worse() -> None:
    # All alike but for noise: nothing has been trained yet, and the break is decades away.
    losses = {-0.5: 2.95, 0.0: 2.93, 0.5: 2.931, 1.0: 2.5, 1.5: 1.0, 2.0: math.inf}
    found = tried(lambda place: losses[round(place, 2)], first=3, most=6)
    assert found == [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_it_goes_down_where_all_diverge() -> None:
    found = tried(lambda place: 1.0 if place < -2 else math.inf, first=3, most=8)
    assert found == [-0.5, 0.0, 0.5, -1.0, -1.5, -2.0, -2.5, -3.0]


def test_it_goes_down_where_none_has_trained() -> None:
    assert tried(lambda place: 4.0 + place**2, first=3, most=5)[3:] == [-1.0, -1.5]


def test_no_more_than_the_most_are_tried() -> None:
    assert len(tried(lambda place: -place, most=7)) == 7


def cycles(*losses: float, before: float = 2.0) -> MiniCycles:
    peaks = tuple(10.0 ** (k - 3) for k in range(len(losses)))
    return MiniCycles(peaks, losses, before, 50, "validation loss")


def test_the_rate_is_the_best_peak_with_a_margin() -> None:
    found = cycles(1.5, 1.0, math.inf)
    assert (found.best, found.lr, found.cost) == (0.01, 0.01 / SAFETY, 150)
    low, high = found.spread or (0, 0)
    assert low < 0.01 / SAFETY < high


def test_of_equal_peaks_the_lower_is_the_best() -> None:
    assert cycles(1.5, 1.0, 1.0).best == cycles(1.5, 1.009, 1.0).best == 0.01
    assert cycles(1.5, 1.011, 1.0).best == 0.1


@pytest.mark.parametrize("losses", [(math.inf, math.inf), (2.5, 3.0), (1.999, 2.5)])
def test_where_none_has_trained_there_is_no_rate(losses: tuple[float, ...]) -> None:
    found = cycles(*losses)
    assert found.lr is None
    assert found.spread is None
    assert "the best" not in repr(found)


def test_prints_a_line_for_each_peak() -> None:
    assert repr(cycles(1.5, 1.0, math.inf)).splitlines() == [
        "3 cycles of 50 updates, validation loss",
        "  1.00e-03  1.5",
        "  1.00e-02  1  the best",
        "  1.00e-01  inf",
    ]
