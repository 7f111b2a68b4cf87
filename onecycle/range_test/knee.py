"""`knee`: where the fall of the raw losses ends, well below the rate at which they turn up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from onecycle.range_test.noise import as_numbers
from onecycle.schedules.shapes import Array

#: The fewest points of the running median, and its share of all points where they are many.
WINDOW, SHARE = 7, 0.07

#: The knee is where the running median has come so far down on its way to the lowest.
FALLEN = 0.9

#: The loss turns where the running median, after its lowest, has gone back so much of its fall.
REGAINED = 0.4

#: The knee is at most the turning rate over this. Between a rate that is too high and a loss
#: that shows it lie a few updates, and in this time the rate of a test rises by a decade.
MARGIN = 10.0

#: The loss breaks where it rises above the start by as much as it fell, by this part of the start,
#: and by so many deviations of the running median, and stays there for so many updates. Without
#: the last three a fall that is noise is undone by noise, decades below the rate that breaks.
RISE, DEVIATIONS, UPDATES = 0.3, 3.0, 3

#: A fall shows a valley from so many times the noise of a batch on; pure noise, also skewed or
#: spiky, reaches 2.6 in one test of a hundred.
CLEAR = 4.0

#: Below so many times the noise it shows one only if it stays down for a tenth of the updates, ten
#: at least: a narrower floor may be a few easy batches, far from where the loss falls for good.
SHARP = 8.0

#: A fall below this part of the loss shows none, however exact it is.
LEAST = 0.01

#: The share of a normal distribution that lies more than one deviation below its median.
_ONE_DEVIATION = 0.16

#: The deviation of a median of normal numbers over that of their mean: the root of pi / 2.
_OF_MEDIAN = 1.25

#: Fewer points than this say nothing about a curve.
POINTS = 10


@dataclass(frozen=True)
class Reading:
    """What the raw losses of a range test say.

    Attributes:
        start: The loss before it falls.
        fall: How far the running median comes down from there.
        noise: The deviation of one batch, downwards: losses are skewed, and those far above the
            median say nothing about how low a loss may lie by chance.
        falls: The rate from which on a tenth of the fall is made.
        settles: The rate at which nine tenths of it are.
        turns: The rate at which the median has gone back `REGAINED` of the fall, after its lowest,
            and stays there for so many updates as of a break, or that of the break; ``None`` where
            it never does.
        breaks: The rate at which the median rises above the start, by as much as it fell and by
            more than noise and `RISE` explain, or the loss ceases to be finite, or the test was
            stopped; ``None`` where it never does.
        floor: How many updates lie between the rate at which it settles and that at which it turns;
            all of them where it never does.
        points: How many finite losses there are.
        has_ended: Whether the fall has: not where it settles within half a decade of the last rate
            and the loss does not turn, so that the best rate may lie beyond.
    """

    start: float
    fall: float
    noise: float
    falls: float
    settles: float
    turns: float | None
    breaks: float | None
    floor: int
    points: int
    has_ended: bool = True

    @property
    def is_clear(self) -> bool:
        """Whether the fall is one, and no noise."""
        least = max((CLEAR if self.stays else SHARP) * self.noise, LEAST * abs(self.start))
        return self.points >= POINTS and self.fall > least

    @property
    def stays(self) -> bool:
        """Whether the loss stays down for long enough to be no few easy batches."""
        return self.floor >= max(POINTS, self.points / 10)

    @property
    def lr(self) -> float:
        """The knee: where the fall ends, at most the turning rate over `MARGIN`."""
        return self.settles if self.turns is None else min(self.settles, self.turns / MARGIN)


def read(lrs: npt.ArrayLike, losses: npt.ArrayLike, *, stopped: bool = False) -> Reading:
    """Read the raw losses of a range test.

    They are judged by a centred running median of 7 (of 7 in 100, where they are more): it does
    not lag behind as a smoothed loss does, and one batch that is hard or easy does not move it.

    Args:
        lrs: Learning rate of each batch, rising, shape ``(batches,)``.
        losses: Raw loss of each batch, shape ``(batches,)``; what comes after the first that is
            not finite counts for nothing.
        stopped: Whether the test ended because the loss diverged.

    Raises:
        ValueError: If the two have not one shape ``(batches,)``, or the rates do not rise.

    Example:
        >>> lrs = np.geomspace(1e-5, 10, 100)
        >>> found = read(lrs, 2 - np.tanh(2 * np.log10(lrs) + 4) + lrs**2)
        >>> found.is_clear, round(found.falls, 4), round(found.settles, 3), round(found.breaks, 2)
        (True, 0.0031, 0.033, 2.15)
    """
    rates, raw = as_numbers("lrs", lrs), as_numbers("losses", losses)
    if rates.ndim != 1 or rates.shape != raw.shape or np.any(np.diff(rates) <= 0):
        raise ValueError(
            "lrs and losses are expected to have one shape (points,), and the rates to rise; "
            f"got {rates.shape} and {raw.shape}"
        )
    finite = np.isfinite(raw)
    points = len(raw) if finite.all() else int(finite.argmin())
    if points == 0:
        first = float(rates[0]) if len(rates) else math.nan
        return Reading(math.nan, 0.0, math.inf, first, first, first, first, 0, 0)
    medians = running_median(raw[:points])
    low = int(medians.argmin())
    start = float(np.median(raw[: max(points // 10, min(3 * points // 10, low), 1)]))
    fall = start - float(medians[low])
    down = np.nonzero(medians <= start - 0.1 * fall)[0] if fall > 0 else np.array([low])
    settled = np.nonzero(medians <= start - FALLEN * fall)[0] if fall > 0 else np.array([low])
    below = (raw[:points] - medians)[: max(low, POINTS)]
    broken = _rises(medians, low, start + _rise(start, fall, below))
    ends = points if points < len(raw) else len(raw) - 1
    broken = ends if broken is None and (points < len(raw) or stopped) else broken
    turned = _rises(medians, low, float(medians[low]) + REGAINED * fall)
    turned = broken if turned is None else turned
    return Reading(
        start=start,
        fall=fall,
        noise=abs(float(np.quantile(below, _ONE_DEVIATION))),
        falls=float(rates[down[0]]),
        settles=float(rates[settled[0]]),
        turns=None if turned is None else float(rates[turned]),
        breaks=None if broken is None else float(rates[broken]),
        floor=points if turned is None else turned - int(settled[0]),
        points=points,
        has_ended=turned is not None or math.sqrt(10) * rates[settled[0]] < rates[-1],
    )


def _rise(start: float, fall: float, noise: Array) -> float:
    """Return how far above the start the running median is that of a break."""
    upwards = max(float(np.quantile(noise, 1 - _ONE_DEVIATION)), 0.0)
    of_median = _OF_MEDIAN * upwards / math.sqrt(WINDOW)
    return max(fall, RISE * abs(start), DEVIATIONS * of_median)


def _rises(medians: Array, low: int, level: float) -> int | None:
    """Return where the medians after the lowest rise above a level for a few updates."""
    over = medians[low:] > level
    if len(over) < UPDATES:
        return None
    stays = sliding_window_view(over, UPDATES).all(1)
    return low + int(stays.argmax()) if stays.any() else None


def running_median(values: Array) -> Array:
    """Return the median of each value and its neighbours; at the ends there are fewer of them.

    Example:
        >>> running_median(np.array([0.0, 9.0, 1.0, 2.0, 3.0])).tolist()
        [1.5, 2.0, 2.0, 2.0, 2.5]
    """
    half = max(WINDOW, round(SHARE * len(values))) // 2
    padded = np.pad(values, half, constant_values=np.nan)
    found: Array = np.nanmedian(sliding_window_view(padded, 2 * half + 1), axis=1)
    return found


def knee(lrs: npt.ArrayLike, losses: npt.ArrayLike) -> float:
    """Suggest the rate at which the fall of the loss ends, well below the one at which it turns up.

    That is the first rate at which a running median of the raw losses has made nine tenths of its
    fall: after it Adam's loss is often flat and noisy for two decades, of which the lowest point
    says nothing. Where the loss falls right up to its turn, a tenth of the turning rate is less,
    and taken instead. These numbers were chosen by the regret of one cycle on 100 tasks.

    Args:
        lrs: Learning rates, rising, shape ``(points,)``.
        losses: **Raw** losses, shape ``(points,)``, of the whole test.

    Returns:
        A learning rate, also where there is no valley: `read` says whether there is one.

    Raises:
        ValueError: If the two are no curve.

    Example:
        >>> lrs = np.geomspace(1e-5, 10, 100)
        >>> round(knee(lrs, 2 - np.tanh(2 * np.log10(lrs) + 4) + lrs**2), 3)
        0.033
    """
    return read(lrs, losses).lr


def why_unclear(reading: Reading) -> str:
    """Say why a reading shows no valley."""
    if reading.fall > max(CLEAR * reading.noise, LEAST * abs(reading.start)) and not reading.stays:
        return (
            f"no suggestion: the loss falls by {reading.fall:.4g} from {reading.start:.4g}, with "
            f"noise {reading.noise:.2g} per batch, but stays down for {reading.floor} updates only"
        )
    return (
        f"no suggestion: the loss never falls clearly: by {max(reading.fall, 0.0):.4g} from "
        f"{reading.start:.4g}, with noise {reading.noise:.2g} per batch"
    )
