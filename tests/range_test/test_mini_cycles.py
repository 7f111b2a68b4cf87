"""Which peaks are tried, and what is read from them."""

import math
from collections.abc import Callable
from typing import Literal

import pytest

from onecycle.range_test.mini_cycles import EDGE, FAR, SOFT, STEEP, MiniCycles, try_peaks


def tried(
    loss: Callable[[int], float],
    second: Literal["above", "below"] = "below",
    most: int = 3,
    before: float = 3.0,
) -> list[int]:
    """Return the tried peaks as steps from the first, in the order in which they were."""
    asked: list[int] = []

    def measure(peak: float) -> float:
        asked.append(round(math.log(peak, FAR)))
        return loss(asked[-1])

    found = try_peaks(measure, 1.0, before=lambda: before, second=second, most=most)
    assert [round(math.log(peak, FAR)) for peak in found] == sorted(asked)
    return asked


def test_two_peaks_are_enough_where_the_best_is_the_higher_and_the_next_hardly_worse() -> None:
    assert tried({0: 1.0, -1: 1.0 + 1.99 * STEEP}.__getitem__) == [0, -1]


def test_two_peaks_are_enough_where_both_are_alike() -> None:
    assert tried({0: 1.0 + 1.99 * SOFT, -1: 1.0}.__getitem__) == [0, -1]


@pytest.mark.parametrize(("below", "third"), [(1.0 + 2.01 * STEEP, 1), (0.9, -2)])
def test_a_third_is_tried_where_the_best_may_lie_beyond(below: float, third: int) -> None:
    losses = {0: 1.0, -1: below, third: 2.0}
    assert tried(losses.__getitem__) == [0, -1, third]


def test_it_goes_on_upward_while_the_loss_falls_steeply_and_no_more_than_the_most() -> None:
    assert tried(lambda place: -float(place), before=0.5, most=5) == [0, -1, 1, 2, 3]


@pytest.mark.parametrize("bad", [math.inf, 4.0, 2.999])
def test_it_goes_down_where_none_has_trained(bad: float) -> None:
    assert tried(lambda place: bad, second="above", most=4) == [0, -1, -2, -3]


@pytest.mark.parametrize(("first", "other"), [(1.0, 1), (2.99, -1), (math.inf, -1)])
def test_the_second_lies_above_a_peak_that_trains_and_else_below(first: float, other: int) -> None:
    losses = {0: first, other: 2.0}
    assert tried(losses.__getitem__, second="above", most=2) == [0, other]


def cycles(low: float, high: float, believed: float = 0.1) -> MiniCycles:
    return MiniCycles((0.1, 0.4), (low, high), 2.0, 150, "validation loss", believed)


def test_the_weight_falls_by_e_for_each_part_that_is_given_away() -> None:
    found = cycles(1.0 + SOFT, 1.0)
    assert found.weights[1] / found.weights[0] == pytest.approx(math.e)
    assert found.weights.sum() == pytest.approx(1)


def test_the_rate_is_the_mean_by_weight_in_log_space() -> None:
    low, high = 1 / (1 + math.e), math.e / (1 + math.e)
    assert cycles(1.0 + SOFT, 1.0).lr == pytest.approx(0.1**low * 0.4**high)


@pytest.mark.parametrize(
    ("low", "high", "believed", "lr"),
    [
        (1.5, 1.0, 0.1, 0.4),  # the better of the two
        (1.0, 1.5, 0.4, 0.1),
        (1.0, 1.0, 0.1, 0.2),  # alike: the middle
        (1.0, 1.99, 0.1, 0.1 / EDGE),  # the higher one trains nothing: the break is near
        (1.0, math.inf, 0.4, 0.1 / EDGE),
        (math.inf, 1.0, 0.1, 0.4),
        (1.99, 1.985, 0.1, 0.1),  # neither trains anything: what was believed
        (1.95, 1.99, 0.4, 0.4),  # nor enough to be evidence
        (1.95, math.inf, 0.1, 0.1),
        (math.inf, math.inf, 0.4, 0.4),
        (2.5, 3.0, 0.4, 0.4),
    ],
)
def test_of_two_peaks(low: float, high: float, believed: float, lr: float) -> None:
    found = cycles(low, high, believed)
    assert found.lr == pytest.approx(lr, rel=1e-3)
    assert found.spread == pytest.approx((lr / 2, lr * 2), rel=1e-3)


def test_no_margin_is_kept_where_a_lower_peak_was_tried_too() -> None:
    found = MiniCycles((0.1, 0.4, 1.6), (1.9, 1.0, math.inf), 2.0, 150, "validation loss", 0.4)
    assert found.lr == pytest.approx(0.4)
    assert (found.best, found.cost) == (0.4, 450)


def test_what_is_only_believed_has_no_weights() -> None:
    assert "weight" not in repr(cycles(1.99, 1.985))


def test_prints_a_line_for_each_peak() -> None:
    found = MiniCycles((0.01, 0.04, 0.16), (1.0, 1.02, math.inf), 2.0, 150, "training loss", 0.04)
    assert repr(found).splitlines() == [
        "3 cycles of 150 updates, training loss",
        "  1.00e-02  1         weight 0.66",
        "  4.00e-02  1.02      weight 0.34",
        "  1.60e-01  inf       weight 0.00",
    ]
