"""The plateau of a linear range test: the rates at which a fixed validation sample stays good."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle.core.callback import Callback
from onecycle.core.restore import preserved_rng
from onecycle.data.loaders import n_batches
from onecycle.data.passes import start_pass
from onecycle.range_test.probe import apart
from onecycle.record.metrics import MetricSet
from onecycle.schedules.shapes import Array

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: A rate is on the plateau while the metric keeps this part of what it gained over its start. In
#: the range tests of Smith and Topin it kept 0.78 or more, up to the highest rate.
KEPT = 0.75

#: Validation batches are taken until they have so many samples: an accuracy of them is known to
#: 0.02, where that of one batch of 64 swings by 0.06.
SAMPLE = 500

#: How often the sample is measured in a test. More would cost more than the updates between.
POINTS = 50

#: The running median is over so many measurements, so that two in a row may be anything.
MEDIAN = 5

#: The plateau ends where the median leaves it for so many measurements in a row: with momentum a
#: healthy loss may swing through a few.
GAP = 6

#: A gain is clear from so many standard deviations of a measurement on. Of curves of pure noise
#: one in a hundred has one.
CLEAR_GAIN = 5.0


@dataclass(frozen=True, eq=False)
class Plateau:
    """The rates of a linear range test at which the metric stays high.

    Attributes:
        lrs: The learning rates after which the metric was measured, shape ``(points,)``.
        values: The metric on the sample, shape ``(points,)``.
        smoothed: Its running median; what is worse than at the start counts as the start.
        lr_lo, lr_hi: The first and the last rate on the plateau; ``None`` where the metric never
            rises clearly above its noise.
        is_open: Whether ``lr_hi`` is where the test was to end, so that the plateau goes on.
        share: The part of the measurements between ``lr_lo`` and ``lr_hi`` at which the metric
            itself is high, in [0, 1]: below 1 where the plateau is ragged.
    """

    lrs: Array
    values: Array
    smoothed: Array
    lr_lo: float | None
    lr_hi: float | None
    is_open: bool
    share: float

    @property
    def span(self) -> tuple[float, float] | None:
        """The first and the last rate together, or ``None``."""
        return None if self.lr_lo is None or self.lr_hi is None else (self.lr_lo, self.lr_hi)


def find_plateau(
    lrs: Array, values: Array, start: float, *, less_is_better: bool, n_planned: int
) -> Plateau:
    """Find the rates of a linear range test at which a metric stays high.

    It is judged on a running median of `MEDIAN` measurements, where what is worse than at the
    start, or not finite, counts as the start: a loss that explodes is no more than lost. The
    plateau goes from the first rate at which it keeps `KEPT` of its gain to the last one before
    it has less for `GAP` measurements in a row or more.

    Args:
        lrs: The rates, rising, shape ``(points,)``.
        values: The metric after the update at each, shape ``(points,)``.
        start: The metric before the first update.
        less_is_better: Whether less of it is better.
        n_planned: The points that were planned, of which a test that diverges has fewer.

    Source:
        Smith and Topin, "Super-Convergence", arXiv:1708.07120: the accuracy stays high up to
        unusually large rates, over 0.7 of at most 0.86 up to a rate of 3 for a ResNet-56 on
        CIFAR-10, where a usual network's falls off. The numbers are from their logs.

    Example:
        >>> lrs, values = np.arange(1.0, 41.0), np.array([0.1] * 10 + [0.9] * 20 + [0.2] * 10)
        >>> plateau = find_plateau(lrs, values, 0.1, less_is_better=False, n_planned=40)
        >>> plateau.span, plateau.is_open, plateau.share
        ((11.0, 30.0), False, 1.0)
    """
    sign = -1.0 if less_is_better else 1.0
    measured, start = np.asarray(values, np.float64), sign * start
    known = np.where(np.isfinite(measured), sign * measured, start)
    raised = np.maximum(known, start)
    smoothed = running_median(raised)
    gain = float(smoothed.max(initial=start)) - start
    # What is lost after the best tells nothing about the noise.
    best = int(smoothed.argmax()) if len(smoothed) else 0
    noise = _noise(known[: max(best + MEDIAN, 2 * MEDIAN)])
    if not (math.isfinite(start) and gain > CLEAR_GAIN * noise):
        return Plateau(lrs, measured, sign * smoothed, None, None, is_open=False, share=0.0)
    level = start + KEPT * gain
    high = np.flatnonzero(smoothed >= level)
    first, breaks = int(high[0]), np.flatnonzero(np.diff(high) > GAP)
    last = int(high[breaks[0]] if len(breaks) else high[-1])
    return Plateau(
        lrs,
        measured,
        sign * smoothed,
        lr_lo=float(lrs[first]),
        lr_hi=float(lrs[last]),
        is_open=last == n_planned - 1,
        share=float((raised[first : last + 1] >= level).mean()),
    )


def running_median(values: Array) -> Array:
    """Return the median of each value and its neighbours, two on each side where there are.

    Example:
        >>> running_median(np.array([1.0, 1.0, 9.0, 9.0, 1.0, 1.0, 1.0])).tolist()
        [1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    half = MEDIAN // 2
    return np.array(
        [np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )


def _noise(values: Array) -> float:
    """Return the standard deviation of a measurement, by its bend: a slope bends nowhere."""
    bends = np.abs(np.diff(values, n=2))
    return 1.4826 * float(np.median(bends)) / math.sqrt(6) if len(bends) else math.inf


class Measured:
    """What the sample gave in one range test: by name the value, at each update.

    An object of its own, so that it outlives the snapshot that puts the learner back.
    """

    def __init__(self) -> None:
        self.updates: list[int] = []
        self.values: list[dict[str, float]] = []

    def series(self, name: str) -> Array:
        """Return the values of a metric, the one before the first update included."""
        return np.array([found.get(name, math.nan) for found in self.values])


class FixedSample(Callback):
    """Measures the same validation batches again and again while a range test runs.

    Args:
        batches: The sample: see `draw_sample`.
        every: After how many updates.
        measured: Where to put the values.
    """

    during = "train"
    runs_in = frozenset(("range_test",))

    def __init__(self, batches: list[Any], every: int, measured: Measured) -> None:
        self._batches, self._every, self._measured = tuple(batches), every, measured

    def before_fit(self, learn: Loop) -> None:
        """Measure what the learner begins with."""
        self._means = MetricSet(deepcopy(learn.metrics))  # theirs belong to the fit
        self._measure(learn)

    def after_step(self, learn: Loop) -> None:
        """Measure, if it is time."""
        if learn.n_updates % self._every == 0:
            self._measure(learn)

    def _measure(self, learn: Loop) -> None:
        self._means.reset()
        learn.infer(self._batches, self._collect)
        self._measured.updates.append(learn.n_updates)
        self._measured.values.append(self._means.compute())

    def _collect(self, learn: Loop) -> None:
        learn.measure_batch(self._means)


def draw_sample(learn: Loop) -> list[Any]:
    """Return validation batches of `SAMPLE` samples or more, or all that there are.

    They are spread over the whole pass, as an unshuffled validation set may be sorted by class.
    """
    valid, chosen = apart(learn.dls.valid), list[Any]()
    total, places = n_batches(valid), set[int]()
    with preserved_rng():
        for i, batch in enumerate(start_pass(valid, seed=learn.seed, epoch=learn.total_epochs)):
            if not chosen:
                needed = math.ceil(SAMPLE / max(1, learn.batch_size(batch)))
                last = needed - 1 if total is None else total - 1
                places = {round(place) for place in np.linspace(0, last, needed)}
            if i in places:
                chosen.append(batch)
            if i >= max(places):
                break
    if not chosen:
        raise ValueError("the validation loader gave no batch: it is empty")
    return chosen
