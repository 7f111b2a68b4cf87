"""`MiniCycles`: which of a few peaks trains best in a short cycle, and what that advises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: From one peak to the next of five. With three a decade a best peak in between is missed.
STEP = 10**0.4

#: The best peak of a short cycle is divided by this: in a longer one the rate stays near its peak
#: for longer, and what is almost too much in 50 updates is too much in 200.
SAFETY = 2.0

#: A loss is hardly worse than the best if it gives away less than this part of what that gained.
HARDLY = 0.1

#: Peaks whose losses differ by less than this part of what the best gained are alike.
TIE = 0.01

#: A cycle that lowers the loss by less than this part of it has trained nothing.
LEAST = 0.01

#: Two long cycles that lower the loss by less than this part of it are no evidence: so much one
#: gains by chance, and what was believed is better.
WEAK = 0.03

#: From the first peak of two to the second. One such step below a break there still is room, and
#: a smaller step tells two peaks apart less well than their noise.
FAR = 4.0

#: A peak is divided by this where the next of two trains nothing: somewhere in between all breaks.
EDGE = 1.6


@dataclass(frozen=True, eq=False, repr=False)
class MiniCycles:
    """Short cycles, all from the same state over the same batches; prints as a table.

    Attributes:
        peaks: The peak of each cycle, rising.
        losses: The loss at its end; infinite where it was not finite.
        before: The loss before training, measured alike.
        n_updates: The updates of each.
        measured: ``"validation loss"``, or ``"training loss"``: the mean of the last updates.
        believed: Of two long cycles, in the place of a rule that sees nothing, the peak that was
            believed before them; ``None`` of short ones around a suggestion.
        around: The suggestion that short cycles confirm; ``None`` of two long ones.

    Example:
        >>> cycles = MiniCycles((0.01, 0.03, 0.1), (0.4, 0.2, math.inf), 1.0, 50, "training loss")
        >>> cycles.best, cycles.lr
        (0.03, 0.015)
    """

    peaks: tuple[float, ...]
    losses: tuple[float, ...]
    before: float
    n_updates: int
    measured: Literal["validation loss", "training loss"]
    believed: float | None = None
    around: float | None = None

    @property
    def best(self) -> float:
        """The peak of the lowest loss; of several that are alike the believed one or the lowest."""
        lowest = min(self.losses)
        alike = lowest + TIE * max(self.before - lowest, 0.0) if math.isfinite(lowest) else lowest
        pairs = zip(self.peaks, self.losses, strict=True)
        among = [peak for peak, loss in pairs if loss <= alike]
        return self.believed if self.believed in among else among[0]

    @property
    def has_trained(self) -> bool:
        """Whether one of them did, and of two long ones by enough to be evidence."""
        part = LEAST if self.believed is None else WEAK
        return trains(min(self.losses), self.before, part)

    @property
    def lr(self) -> float | None:
        """What is advised.

        Halfway, in log space, from the suggestion to the best peak over `SAFETY`: what 50 updates
        tell of a whole fit is half of the truth, as they see nothing of overfitting. Of two long
        cycles the best peak, over `EDGE` where the higher one trains nothing. Where no cycle
        trains, what was believed; or ``None``.
        """
        if not self.has_trained:
            return self.believed
        if self.believed is None:
            safe = self.best / SAFETY
            return safe if self.around is None else math.sqrt(safe * self.around)
        is_edge = self.best < self.peaks[-1] and not trains(self.losses[-1], self.before)
        return self.best / EDGE if is_edge else self.best

    @property
    def spread(self) -> tuple[float, float] | None:
        """Half a step to both sides of the rate: finer the peaks do not tell; or ``None``."""
        half = math.sqrt(STEP if self.believed is None else FAR)
        return None if self.lr is None else (self.lr / half, self.lr * half)

    @property
    def cost(self) -> int:
        """The updates of all cycles together."""
        return len(self.peaks) * self.n_updates

    def __repr__(self) -> str:
        """Show a line for each peak."""
        lines = [f"{len(self.peaks)} cycles of {self.n_updates} updates, {self.measured}"]
        lowest = min((loss for loss in self.losses if math.isfinite(loss)), default=None)
        for peak, loss in zip(self.peaks, self.losses, strict=True):
            why = "  the best" if loss == lowest else "  as good, at a lower rate"
            is_best = self.has_trained and peak == self.best
            lines.append(f"  {peak:.2e}  {loss:.4g}{why if is_best else ''}")
        return "\n".join(lines)


def trains(loss: float, before: float, part: float = LEAST) -> bool:
    """Return whether the loss at the end of a cycle is that of a model that was trained."""
    return loss < before - part * abs(before)


def try_two(
    measure: Callable[[float], float], believed: float, *, before: Callable[[], float]
) -> dict[float, float]:
    """Try the peak that is believed, and `FAR` above it if that trains, or below if not.

    Args:
        measure: Returns the loss of a cycle to a peak; infinite where it is not finite.
        believed: The first peak.
        before: Returns the loss before training; asked after the first peak.

    Returns:
        The loss by peak, in rising order.

    Example:
        >>> try_two(lambda peak: 1 / peak, 2.0, before=lambda: 4.0)
        {2.0: 0.5, 8.0: 0.125}
    """
    first = measure(believed)
    other = believed * FAR if trains(first, before()) else believed / FAR
    losses = {believed: first, other: measure(other)}
    return {peak: losses[peak] for peak in sorted(losses)}


def try_peaks(
    measure: Callable[[float], float],
    centre: float,
    *,
    before: Callable[[], float],
    first: int,
    most: int,
) -> dict[float, float]:
    """Try peaks around a rate, and go on where the best one may lie beyond an edge.

    It may where the best so far is the one at an edge, and beyond the upper edge also where that
    one is hardly worse: below the rates that train, all cycles end alike but for their noise. Where
    none has trained, lower peaks are tried.

    Args:
        measure: Returns the loss of a cycle to a peak; infinite where it is not finite.
        centre: The middle of the first peaks, `STEP` apart.
        before: Returns the loss before training; asked after the first peaks.
        first: The number of first peaks, odd.
        most: How many to try at most.

    Returns:
        The loss by peak, in rising order.

    Example:
        >>> found = try_peaks(
        ...     lambda peak: abs(peak - 4), 1.0, before=lambda: 4.0, first=3, most=6
        ... )
        >>> [round(peak, 2) for peak in found]
        [0.4, 1.0, 2.51, 6.31]
    """
    places = list(range(-(first // 2), first // 2 + 1))
    losses = {place: measure(centre * STEP**place) for place in places}
    start = before()
    while len(losses) < most:
        low, high = min(losses), max(losses)
        best = min(sorted(losses), key=losses.__getitem__)
        gained = max(start - losses[best], 0.0)
        if math.isfinite(losses[best]) and losses[high] <= losses[best] + HARDLY * gained:
            place = high + 1
        elif best == low or not gained:
            place = low - 1
        else:
            break
        losses[place] = measure(centre * STEP**place)
    return {centre * STEP**place: losses[place] for place in sorted(losses)}
