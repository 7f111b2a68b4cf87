"""`MiniCycles`: which of a few peaks trains best in a short cycle, and what that advises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onecycle.schedules.shapes import Array

#: From one peak to the next. One such step below a break there still is room, and a smaller step
#: tells two peaks apart less well than their noise.
FAR = 4.0

#: What a peak may give away of that which the best gained, before it counts for little: its weight
#: falls by e for each such part. Two seeds of a cycle differ by about as much.
SOFT = 0.03

#: The best peak may lie above the highest where that is the best and the one below it gives away
#: more than this part: the loss still falls steeply from one to the other. Below the lowest it may
#: lie already where the next one gives away more than `SOFT`: low peaks are the safer ones.
STEEP = 0.3

#: A cycle that lowers the loss by less than this part of it has trained nothing.
LEAST = 0.01

#: Cycles that lower the loss by less than this part of it are no evidence: so much one gains by
#: chance, and what was believed is better.
WEAK = 0.03

#: The advice is divided by this where the lowest peak is the best and a higher one trains nothing:
#: somewhere in between all breaks, and nothing is known of what lies lower.
EDGE = 1.6


@dataclass(frozen=True, eq=False, repr=False)
class MiniCycles:
    """A few cycles, all from the same state over the same batches; prints as a table.

    Attributes:
        peaks: The peak of each cycle, rising.
        losses: The loss at its end; infinite where it was not finite.
        before: The loss before training, measured alike.
        n_updates: The updates of each.
        measured: ``"validation loss"``, or ``"training loss"``: the mean of the last updates.
        believed: The peak that was believed before them: a suggestion that they confirm, or what
            took the place of one.

    Example:
        >>> cycles = MiniCycles((0.01, 0.04), (0.4, 0.2), 1.0, 150, "training loss", 0.04)
        >>> cycles.best, round(cycles.lr, 5)
        (0.04, 0.03999)
    """

    peaks: tuple[float, ...]
    losses: tuple[float, ...]
    before: float
    n_updates: int
    measured: Literal["validation loss", "training loss"]
    believed: float

    @property
    def best(self) -> float:
        """The peak of the lowest loss; of several the lowest peak."""
        return self.peaks[self.losses.index(min(self.losses))]

    @property
    def has_trained(self) -> bool:
        """Whether one of them did, by enough to be evidence."""
        return trains(min(self.losses), self.before, WEAK)

    @property
    def weights(self) -> Array:
        """How much each peak counts, together 1, shape ``(cycles,)``.

        It falls exponentially with the part that a peak gives away of what the best gained, by e
        for each `SOFT`.
        """
        lowest = min(self.losses)
        gained = max(self.before - lowest, 0.0)
        if not math.isfinite(gained) or gained == 0:
            return np.full(len(self.peaks), 1 / len(self.peaks))
        given_away = (np.array(self.losses) - lowest) / gained
        found: Array = np.exp(-given_away / SOFT)
        found /= found.sum()
        return found

    @property
    def lr(self) -> float:
        """What is advised: the mean of the peaks by their weights, in log space.

        Of peaks that are alike that is the middle, where one is clearly the best it is that one.
        It is divided by `EDGE` where the lowest is the best and a higher one trains nothing. Where
        no cycle has trained, what was believed.
        """
        if not self.has_trained:
            return self.believed
        mean = math.exp(float(self.weights @ np.log(self.peaks)))
        is_edge = self.best == self.peaks[0] and not trains(self.losses[-1], self.before)
        return mean / EDGE if is_edge else mean

    @property
    def spread(self) -> tuple[float, float]:
        """Half a step to both sides of the rate: finer the peaks do not tell."""
        half = math.sqrt(FAR)
        return self.lr / half, self.lr * half

    @property
    def cost(self) -> int:
        """The updates of all cycles together."""
        return len(self.peaks) * self.n_updates

    def __repr__(self) -> str:
        """Show a line for each peak, with its weight where they have trained."""
        lines = [f"{len(self.peaks)} cycles of {self.n_updates} updates, {self.measured}"]
        for peak, loss, weight in zip(self.peaks, self.losses, self.weights, strict=True):
            share = f"  weight {weight:.2f}" if self.has_trained else ""
            lines.append(f"  {peak:.2e}  {loss:<8.4g}{share}".rstrip())
        return "\n".join(lines)


def trains(loss: float, before: float, part: float = LEAST) -> bool:
    """Return whether the loss at the end of a cycle is that of a model that was trained."""
    return loss < before - part * abs(before)


def try_peaks(
    measure: Callable[[float], float],
    first: float,
    *,
    before: Callable[[], float],
    second: Literal["above", "below"],
    most: int,
) -> dict[float, float]:
    """Try a peak and the next one, and go on where the best may lie beyond them.

    It may lie below the lowest where that is clearly the best (by more than `SOFT`), or where none
    trains; above the highest where that is the best by more than `STEEP`.

    Args:
        measure: Returns the loss of a cycle to a peak; infinite where it is not finite.
        first: The first peak.
        before: Returns the loss before training; asked after the first peak.
        second: On which side the second peak lies, `FAR` away; below also where the first trains
            nothing.
        most: How many to try at most, two or more.

    Returns:
        The loss by peak, in rising order.

    Example:
        >>> try_peaks(lambda peak: 1 / peak, 2.0, before=lambda: 4.0, second="above", most=2)
        {2.0: 0.5, 8.0: 0.125}
    """
    losses = {first: measure(first)}
    start = before()
    goes_up = second == "above" and trains(losses[first], start)
    peak: float | None = first * FAR if goes_up else first / FAR
    while peak is not None and len(losses) < most:
        losses[peak] = measure(peak)
        peak = _beyond(losses, start)
    return {peak: losses[peak] for peak in sorted(losses)}


def _beyond(losses: dict[float, float], before: float) -> float | None:
    """Return the next peak to try, or ``None`` where the best is not beyond those tried."""
    peaks = sorted(losses)
    best = min(peaks, key=losses.__getitem__)
    if not trains(losses[best], before):
        return peaks[0] / FAR
    gained = before - losses[best]
    if best == peaks[0]:
        return best / FAR if losses[peaks[1]] - losses[best] > SOFT * gained else None
    if best == peaks[-1]:
        return best * FAR if losses[peaks[-2]] - losses[best] > STEEP * gained else None
    return None
