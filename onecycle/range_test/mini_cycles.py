"""`MiniCycles`: which of a few peaks trains best in a short cycle, and what that advises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: From one peak to the next.
STEP = math.sqrt(10)

#: The best peak of a short cycle is divided by this: in a longer one the rate stays near its peak
#: for longer, and what is almost too much in 50 updates is too much in 200.
SAFETY = 2.0

#: A loss is hardly worse than the best if it gives away less than this part of what that gained.
HARDLY = 0.1

#: Peaks whose losses differ by less than this part of what the best gained are alike.
TIE = 0.01

#: A cycle that lowers the loss by less than this part of it has trained nothing.
LEAST = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class MiniCycles:
    """Short cycles, all from the same state over the same batches; prints as a table.

    Attributes:
        peaks: The peak of each cycle, rising.
        losses: The loss at its end; infinite where it was not finite.
        before: The loss before training, measured alike.
        n_updates: The updates of each.
        measured: ``"validation loss"``, or ``"training loss"``: the mean of the last updates.

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

    @property
    def best(self) -> float:
        """The peak of the lowest loss; of several that are alike the lowest peak."""
        lowest = min(self.losses)
        alike = lowest + TIE * max(self.before - lowest, 0.0) if math.isfinite(lowest) else lowest
        pairs = zip(self.peaks, self.losses, strict=True)
        return next(peak for peak, loss in pairs if loss <= alike)

    @property
    def lr(self) -> float | None:
        """What is advised: the best peak over `SAFETY`; ``None`` where no cycle trained."""
        trained = min(self.losses) < self.before - LEAST * abs(self.before)
        return self.best / SAFETY if trained else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """Half a step to both sides of the rate: finer the peaks do not tell; or ``None``."""
        half = math.sqrt(STEP)
        return None if self.lr is None else (self.lr / half, self.lr * half)

    @property
    def cost(self) -> int:
        """The updates of all cycles together."""
        return len(self.peaks) * self.n_updates

    def __repr__(self) -> str:
        """Show a line for each peak."""
        lines = [f"{len(self.peaks)} cycles of {self.n_updates} updates, {self.measured}"]
        for peak, loss in zip(self.peaks, self.losses, strict=True):
            is_best = self.lr is not None and peak == self.best
            lines.append(f"  {peak:.2e}  {loss:.4g}{'  the best' if is_best else ''}")
        return "\n".join(lines)


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
        centre: The middle of the first peaks, half a decade apart.
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
        [0.32, 1.0, 3.16, 10.0]
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
