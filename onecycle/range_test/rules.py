"""The mathematics of the learning-rate range test, without any training.

While a range test runs, a `Smoother` averages the losses and a `StopRule` says when they
diverge. Afterwards `suggest` reads the curve: it first asks whether the loss falls at all by
more than its noise, and only then lets the rules (`valley`, `slide`, `minimum`, `steep`, or
any function like them) name a learning rate.

A rule is a function ``(lrs, losses) -> float`` of the learning rates, positive and increasing,
and the smoothed losses, both of shape ``(points,)`` and finite. `onecycle.range_test.knee` alone
reads the raw losses, and says itself whether they show a valley.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onecycle.range_test.knee import knee, read, why_unclear
from onecycle.range_test.noise import as_numbers, deviation
from onecycle.schedules.shapes import Array

Rule = Callable[[Array, Array], float]

#: Fewer points than this say nothing about a curve.
MIN_POINTS = 10

#: A fall is clear from this many standard errors of the moving average on. Pure noise reaches it
#: in at most one range test of twenty, with 10 points as with 2000, and with skewed or spiky
#: noise as with normal noise. One in a hundred would take 6.5, and miss twice as many valleys at
#: a batch size of 8.
CLEAR = 5.5

#: The loss has turned up once its moving average is this many standard errors above the lowest.
TURN = 3.0

#: A fall below this part of the loss is not worth a suggestion, however exact it is.
MIN_FALL = 0.01


class StopRule:
    """Say when the losses of a range test diverge.

    A loss that is not finite stops the test at once. A finite one stops it when the smoothed
    loss is more than ``factor`` times its best, which is kept from batch number ``guard`` on: among
    the few before it one easy batch would make every later one look like divergence.

    Args:
        factor: How many times its best the smoothed loss may reach, above 1. A best below zero
            may be exceeded by ``(factor - 1)`` times its size, which for a positive best is the
            same. ``None`` stops on non-finite losses only.
        guard: Number of batches, 0 or more, before which no loss is compared with another.

    Raises:
        ValueError: If ``factor`` is not above 1 or ``guard`` is negative.

    Example:
        >>> rule = StopRule(factor=4.0, guard=1)
        >>> print(rule.update(loss=2.0, smoothed=2.0))
        None
        >>> rule.update(loss=16.0, smoothed=9.0)
        'batch 2: the smoothed loss 9 is more than 4 times its best, 2'
    """

    def __init__(self, factor: float | None = 4.0, guard: int = 10) -> None:
        if factor is not None and not factor > 1:
            raise ValueError(f"factor is expected above 1, got {factor}; None switches it off")
        if guard < 0:
            raise ValueError(f"guard is expected to be a number of batches, 0 or more, got {guard}")
        self.factor = factor
        self.guard = guard
        self._best = math.inf
        self._count = 0

    def update(self, loss: float, smoothed: float) -> str | None:
        """Take in the next batch.

        Args:
            loss: The loss of the batch.
            smoothed: The smoothed loss, this batch included.

        Returns:
            Why the test should stop, in a sentence; ``None`` to go on.
        """
        self._count += 1
        if not math.isfinite(loss):
            return f"batch {self._count}: the loss is {loss}"
        if self.factor is None or self._count < self.guard:
            return None
        if smoothed > self._best + (self.factor - 1) * abs(self._best):
            return (
                f"batch {self._count}: the smoothed loss {smoothed:.4g} is more than "
                f"{self.factor:g} times its best, {self._best:.4g}"
            )
        self._best = min(self._best, smoothed)
        return None


def valley(lrs: npt.ArrayLike, losses: npt.ArrayLike) -> float:
    """Suggest a learning rate in the middle of the longest descent.

    The descent is the longest strictly decreasing subsequence, not necessarily of neighbours;
    of several as long, the one that ends first. With ``e`` the index of its end, ``n`` its
    length, ``s = e - n`` and ``t = n / 3``, the rule points at ``s + int(t) + int(t / 2)``.

    Args:
        lrs: Learning rates, shape ``(points,)``.
        losses: Smoothed losses, shape ``(points,)``.

    Returns:
        A learning rate out of ``lrs``.

    Raises:
        ValueError: If the two are not a curve: two finite points at least, of rising rates.

    Example:
        >>> valley([1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], [5.0, 5.0, 4.0, 3.0, 2.0, 9.0])
        0.001

    Source:
        fastai 2.8, ``fastai.callback.schedule.valley``.
    """
    lrs, losses = _as_curve(lrs, losses)
    lengths = _descent_lengths(losses)
    length = max(lengths)
    start = lengths.index(length) - length
    third = length / 3
    # A curve that falls from its first point on has start == -1.
    return float(lrs[max(0, start + int(third) + int(third / 2))])


def _descent_lengths(losses: Array) -> list[int]:
    """Return the length of the longest strictly decreasing subsequence ending at each point."""
    # Patience sorting: tails[k] is the lowest end of an increasing subsequence of k + 1 of the
    # negated losses. O(n log n).
    tails: list[float] = []
    lengths = []
    for value in (-losses).tolist():
        k = bisect_left(tails, value)
        tails[k : k + 1] = [value]
        lengths.append(k + 1)
    return lengths


def slide(lrs: npt.ArrayLike, losses: npt.ArrayLike) -> float:
    """Suggest a learning rate well before the final rise, by sliding an interval left.

    An interval of 15 points starts at the right end and moves left for as long as the slopes
    of the loss, per point, at its two ends differ by more than 0.005. Its last left end that
    still differed is the suggestion.

    Args:
        lrs: Learning rates, shape ``(points,)``.
        losses: Smoothed losses, shape ``(points,)``.

    Returns:
        A learning rate out of ``lrs``; the first one when no two slopes agree.

    Raises:
        ValueError: If the two are not a curve: two finite points at least, of rising rates.

    Example:
        >>> lrs = [10 ** (k / 10 - 3) for k in range(30)]
        >>> round(slide(lrs, [1.0] * 20 + [1.0 + k for k in range(10)]), 4)
        0.0032

    Source:
        fastai 2.8, ``fastai.callback.schedule.slide``.
    """
    lrs, losses = _as_curve(lrs, losses)
    slopes = np.gradient(losses)
    right = len(losses) - 1
    left = max(0, right - 15)
    suggestion = lrs[left]
    while left >= 0 and abs(slopes[right] - slopes[left]) > 0.005:
        suggestion = lrs[left]
        left -= 1
        right -= 1
    return float(suggestion)


def minimum(lrs: npt.ArrayLike, losses: npt.ArrayLike) -> float:
    """Suggest a tenth of the learning rate at the lowest loss.

    Args:
        lrs: Learning rates, shape ``(points,)``.
        losses: Smoothed losses, shape ``(points,)``.

    Returns:
        The learning rate at the (first) lowest loss, divided by 10.

    Raises:
        ValueError: If the two are not a curve: two finite points at least, of rising rates.

    Example:
        >>> minimum([0.01, 0.1, 1.0], [3.0, 2.0, 4.0])
        0.01

    Source:
        fastai 2.8, ``fastai.callback.schedule.minimum``.
    """
    lrs, losses = _as_curve(lrs, losses)
    return float(lrs[losses.argmin()] / 10)


def steep(lrs: npt.ArrayLike, losses: npt.ArrayLike) -> float:
    """Suggest the learning rate where the loss falls fastest.

    The slope is taken between neighbours, over the logarithm of the learning rate. Of all
    rules this one is the most easily misled by noise.

    Args:
        lrs: Learning rates, shape ``(points,)``.
        losses: Smoothed losses, shape ``(points,)``.

    Returns:
        The learning rate at the left end of the steepest step down.

    Raises:
        ValueError: If the two are not a curve: two finite points at least, of rising rates.

    Example:
        >>> steep([0.01, 0.1, 1.0, 10.0], [3.0, 2.9, 1.0, 4.0])
        0.1

    Source:
        fastai 2.8, ``fastai.callback.schedule.steep``.
    """
    lrs, losses = _as_curve(lrs, losses)
    return float(lrs[np.argmin(np.diff(losses) / np.diff(np.log(lrs)))])


def _as_curve(lrs: npt.ArrayLike, losses: npt.ArrayLike) -> tuple[Array, Array]:
    """Return both as arrays, or say why they are no curve."""
    lrs, losses = as_numbers("lrs", lrs), as_numbers("losses", losses)
    if lrs.ndim != 1 or lrs.shape != losses.shape or len(lrs) < 2:
        raise ValueError(
            "lrs and losses are expected to have one shape (points,) with 2 points or more, "
            f"got {lrs.shape} and {losses.shape}"
        )
    if not (lrs[0] > 0 and np.all(np.diff(lrs) > 0) and np.isfinite(lrs[-1])):
        raise ValueError(
            f"lrs are expected to be positive and to rise, got {lrs[0]:g} to {lrs[-1]:g}; "
            "leave out a rate of 0 and put the points in order"
        )
    if not np.all(np.isfinite(losses)):
        raise ValueError(
            f"losses are expected to be finite, got {losses[~np.isfinite(losses)][0]}; "
            "cut the curve before its first non-finite loss"
        )
    return lrs, losses


@dataclass(frozen=True)
class Suggestions:
    """What a range test says about the learning rate.

    Attributes:
        values: The learning rate that each rule suggests, by the rule's name; ``None`` when it
            sees no valley.
        lr_min: Lower end for a cycle, a tenth of ``lr_max``; or ``None``.
        lr_max: Upper end for a cycle, the last learning rate before the loss turns up by more
            than its noise; near the last one tested when it never does; or ``None``.
        reason: Why the first rule suggests nothing, in a sentence; ``None`` when it does.
    """

    values: dict[str, float | None]
    lr_min: float | None
    lr_max: float | None
    reason: str | None


def suggest(
    lrs: npt.ArrayLike,
    losses: npt.ArrayLike,
    *,
    smoothed: npt.ArrayLike,
    num_it: int,
    rules: Sequence[Rule] = (valley,),
    stopped: bool = False,
) -> Suggestions:
    """Apply suggestion rules to a range test, if its loss has a valley.

    The rules see the points ``[num_it // 10 : -5]``, cut at the first smoothed loss that is
    not finite. Whether there is a valley, and where it turns up again, is judged on a centred
    moving average of the raw losses: the smoothed ones lag behind by dozens of points, and a
    hard first batch alone makes them fall.

    Args:
        lrs: Learning rate of each batch, rising, shape ``(batches,)``.
        losses: Raw loss of each batch, shape ``(batches,)``.
        smoothed: Smoothed loss of each batch (see `Smoother`), shape ``(batches,)``.
        num_it: Batches planned. A test that was stopped has fewer.
        rules: Functions ``(lrs, smoothed losses) -> float``, named by their ``__name__``.
        stopped: Whether the test ended because the loss diverged.

    Returns:
        A value of each rule and the pair of rates for a cycle, or the reason why there is none.

    Raises:
        ValueError: If the three series differ in shape, or the rates do not rise.
        TypeError: If a rule has no ``__name__``.

    Example:
        >>> import numpy as np
        >>> lrs = np.geomspace(1e-5, 10, 100)
        >>> losses = 2 - np.tanh(2 * np.log10(lrs) + 4) + lrs**2
        >>> found = suggest(lrs, losses, smoothed=losses, num_it=100, rules=(valley, steep))
        >>> {name: round(lr, 4) for name, lr in found.values.items()}
        {'valley': 0.0017, 'steep': 0.0093}
        >>> suggest(lrs, 0 * lrs + 2, smoothed=0 * lrs + 2, num_it=100).reason
        'no suggestion: the loss never falls clearly: from 2 down to 2, with noise 0 per batch'

    Source:
        The pair for a cycle follows Smith, "Cyclical Learning Rates for Training Neural
        Networks", 2017, section 3.3 (arXiv:1506.01186).
    """
    names = [_name(rule) for rule in rules]
    rates, raw, smooth = select_points(lrs, losses, smoothed, num_it)
    too_few = _too_few(rates, smoothed, num_it)
    turn, reason = turning_point(raw) if too_few is None else (0, too_few)
    said = [
        _ask_knee(lrs, losses, stopped, too_few)
        if rule is knee
        else (None if reason is not None else float(rule(rates, smooth)), reason)
        for rule in rules
    ]
    values = {name: value for name, (value, _) in zip(names, said, strict=True)}
    lr_max = values.get(knee.__name__) if reason is not None else float(rates[turn])
    return Suggestions(
        values, None if lr_max is None else lr_max / 10, lr_max, said[0][1] if said else reason
    )


def _ask_knee(
    lrs: npt.ArrayLike, losses: npt.ArrayLike, stopped: bool, too_few: str | None
) -> tuple[float | None, str | None]:
    """Return what the knee of the raw losses is, or None and why there is none."""
    if too_few is not None:
        return None, too_few
    reading = read(lrs, losses, stopped=stopped)
    return (reading.lr, None) if reading.is_clear else (None, why_unclear(reading))


def _name(rule: Rule) -> str:
    name = getattr(rule, "__name__", None)
    if not isinstance(name, str):
        raise TypeError(
            f"a rule is expected to have a __name__, got {rule!r}; define it with def, or set it"
        )
    return name


def select_points(
    lrs: npt.ArrayLike, losses: npt.ArrayLike, smoothed: npt.ArrayLike, num_it: int
) -> tuple[Array, Array, Array]:
    """Return the points that the rules see: ``[num_it // 10 : -5]``, cut at a non-finite loss.

    Args:
        lrs: As in `suggest`, and so are the others.
        losses: Raw loss of each batch, shape ``(batches,)``.
        smoothed: Smoothed loss of each batch, shape ``(batches,)``.
        num_it: Batches planned.

    Returns:
        Rates, raw and smoothed losses, each of shape ``(points,)``.

    Raises:
        ValueError: If the three series differ in shape, or the rates do not rise.
    """
    rates, raw, smooth = (np.asarray(series, np.float64) for series in (lrs, losses, smoothed))
    if not (rates.ndim == 1 and rates.shape == raw.shape == smooth.shape):
        raise ValueError(
            "lrs, losses and smoothed are expected to have one shape (batches,), "
            f"got {rates.shape}, {raw.shape} and {smooth.shape}"
        )
    if np.any(np.diff(rates) <= 0):
        raise ValueError("lrs are expected to rise from batch to batch; put the points in order")
    keep = slice(num_it // 10, -5)
    rates, raw, smooth = rates[keep], raw[keep], smooth[keep]
    bad = ~(np.isfinite(raw) & np.isfinite(smooth))
    end = int(bad.argmax()) if bad.any() else len(bad)
    return rates[:end], raw[:end], smooth[:end]


def _too_few(rates: Array, smoothed: npt.ArrayLike, num_it: int) -> str | None:
    """Return why there are too few points, or None when there are enough."""
    if len(rates) >= MIN_POINTS:
        return None
    if not np.isfinite(np.asarray(smoothed)[:1]).all():
        return (
            "no suggestion: the loss was not finite from the first batch on, whatever the rate: "
            "look at the data and the parameters (TerminateOnNonFinite says where it begins)"
        )
    cause = "" if np.all(np.isfinite(smoothed)) else " before the loss became non-finite"
    return (
        f"no suggestion: only {len(rates)} points{cause}, without the first {num_it // 10} and "
        f"the last 5, and {MIN_POINTS} are needed; try a lower start_lr or a higher num_it"
    )


def turning_point(losses: Array) -> tuple[int, str | None]:
    """Find where the raw losses, after a clear fall, are about to rise.

    Returns:
        The index of the last point before the rise, and None; or 0 and why there is no valley.
    """
    window = max(5, len(losses) // 8)
    means = np.convolve(losses, np.full(window, 1 / window), "valid")
    low = int(means.argmin())
    high = means[: low + 1].max()
    # What comes after the lowest mean is divergence, and left out.
    noise = deviation(losses[: max(low + window, MIN_POINTS)])
    error = noise / math.sqrt(window)
    if high - means[low] <= max(CLEAR * error, MIN_FALL * abs(high)):
        return 0, (
            f"no suggestion: the loss never falls clearly: from {high:.4g} down to "
            f"{means[low]:.4g}, with noise {noise:.2g} per batch"
        )
    risen = means[low:] > means[low] + TURN * error
    quiet = int(risen.argmax()) - 1 if risen.any() else len(risen) - 1
    return low + quiet + window // 2, None
