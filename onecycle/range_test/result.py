"""`LRFindResult`: what a range test measured, and what it suggests."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from onecycle import plots
from onecycle.arguments import check_count
from onecycle.range_test import rules
from onecycle.range_test.knee import knee
from onecycle.range_test.mini_cycles import MiniCycles
from onecycle.range_test.rules import Rule, suggest
from onecycle.range_test.spreads import Spreads, Vote, spread
from onecycle.record.smoothing import smooth
from onecycle.schedules.shapes import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: By this name the rate of the short cycles is among the suggestions.
CYCLES = "mini_cycles"

#: Rules that differ by more than so many times cannot both be trusted.
APART = 20.0


@dataclass(frozen=True, eq=False, repr=False)
class LRFindResult:
    """What a learning-rate range test found.

    Attributes:
        lrs: The learning rate of each update (the last group's), shape ``(updates,)``.
        losses: The training loss of each update.
        smoothed: The losses, exponentially smoothed.
        suggestions: By name of the rule the rate it suggests, or ``None``. Before them
            ``"mini_cycles"`` where short cycles confirmed a rule, or decided in the place of
            `knee`, which then is not there.
        lr_min, lr_max: A pair for a cycle, or ``None``.
        reason: Why there is no suggestion, in a sentence; ``None`` where there is one.
        stop_reason: Why the test ended.
        linear: Whether the rate rose linearly.
        valid_losses: The loss on one validation batch after each update, not smoothed; ``None``
            without ``valid=True``.
        metrics: By name the metric on that batch, not smoothed; empty without ``valid=True``.
        num_it: The updates that were planned.
        rules: The rules that were asked.
        stopped: Whether the test ended because the loss diverged.
        cycles: The short cycles, where there were some; see `Learner.lr_find`.
        note: What was done beyond one test, and what it cost, in a line; or ``None``.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> result = toy_learner(100, 32).lr_find(1e-4, show_plot=False)
        >>> low, high = result.spreads["knee"]
        >>> low <= result.suggestion <= high
        True
        >>> result.knee == result.suggestion
        True
    """

    lrs: Array
    losses: Array
    smoothed: Array
    suggestions: dict[str, float | None]
    lr_min: float | None
    lr_max: float | None
    reason: str | None
    stop_reason: str
    linear: bool
    valid_losses: Array | None = None
    metrics: dict[str, Array] = field(default_factory=dict)
    num_it: int = 0
    rules: tuple[Rule, ...] = ()
    stopped: bool = False
    cycles: MiniCycles | None = None
    note: str | None = None

    @property
    def suggestion(self) -> float | None:
        """What the short cycles say, where there were some; else the first rule."""
        return next(iter(self.suggestions.values()), None)

    @property
    def knee(self) -> float | None:
        """What the rule `knee` suggests, whether it was asked or not; or ``None``."""
        return self._by(knee)

    @property
    def minimum(self) -> float | None:
        """What the rule `minimum` suggests, likewise."""
        return self._by(rules.minimum)

    @property
    def valley(self) -> float | None:
        """What the rule `valley` suggests, likewise."""
        return self._by(rules.valley)

    @property
    def slide(self) -> float | None:
        """What the rule `slide` suggests, likewise."""
        return self._by(rules.slide)

    @property
    def steep(self) -> float | None:
        """What the rule `steep` suggests, likewise."""
        return self._by(rules.steep)

    def _by(self, rule: Rule) -> float | None:
        found = suggest(
            self.lrs,
            self.losses,
            smoothed=self.smoothed,
            num_it=self.num_it,
            rules=(rule,),
            stopped=self.stopped,
        )
        return found.values[rule.__name__]

    @property
    def spreads(self) -> dict[str, tuple[float, float] | None]:
        """By name of the rule, between which rates another seed might put it.

        On 80 % of the curves resampled from the noise of this one, and wider by what other initial
        weights add: see `onecycle.range_test.spreads`. ``None`` where there is no suggestion.
        Computed when it is first asked for.
        """
        found = {} if self._resampled is None else dict(self._resampled.rules)
        if self.cycles is not None:
            found[CYCLES] = self.cycles.spread
        return {rule: found.get(rule) for rule in self.suggestions}

    @property
    def vote(self) -> Vote | None:
        """What all rules say together, with its spread.

        ``None`` where there is no suggestion, and where short cycles have decided.
        """
        have_decided = CYCLES in self.suggestions
        return None if self._resampled is None or have_decided else self._resampled.vote

    @cached_property
    def _resampled(self) -> Spreads | None:
        said = {rule: lr for rule, lr in self.suggestions.items() if lr is not None}
        asked = [rule for rule in self.rules if rule.__name__ in said]
        if self.rules and not asked:
            return None
        return spread(
            self.lrs,
            self.losses,
            smoothed=self.smoothed,
            num_it=self.num_it,
            rules=asked,
            stopped=self.stopped,
        ).around(said)

    @property
    def unsure(self) -> str | None:
        """Why not to trust the suggestion, in a line; or ``None``.

        It lies below the first rate of the test, or two rules differ by more than 20 times.
        """
        said = {rule: lr for rule, lr in self.suggestions.items() if lr is not None}
        if not said:
            return None
        first, start = next(iter(said.items())), float(self.lrs[0])
        if first[1] < start:
            return (
                f"unsure: {first[0]} says {first[1]:.1e}, below the first rate of the test, "
                f"{start:.1e}: try a lower start_lr"
            )
        low, high = min(said, key=said.__getitem__), max(said, key=said.__getitem__)
        if said[high] <= APART * said[low]:
            return None
        return (
            f"unsure: {high} says {said[high]:.1e}, {low} {said[low]:.1e}, "
            f"{said[high] / said[low]:.0f} times less"
        )

    @property
    def valid_smoothed(self) -> Array | None:
        """The validation losses, smoothed as the training losses are; ``None`` without them."""
        return None if self.valid_losses is None else smooth(self.valid_losses)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot loss against learning rate, with the suggestions and their spreads.

        Of several rules the vote is marked too. A ring is the loss after a short cycle, over its
        peak. What was measured on validation batches is drawn
        smoothed, the metrics on a second y axis.

        Args:
            ax: Where to draw; by default a new figure.
        """
        said = self._said()
        return plots.plot_lr_find(
            self.lrs,
            self.losses,
            self.smoothed,
            {name: lr for name, (lr, _) in said.items()},
            None if self.lr_min is None or self.lr_max is None else (self.lr_min, self.lr_max),
            turns=self._turns,
            spreads={name: interval for name, (_, interval) in said.items()},
            valid_smoothed=self.valid_smoothed,
            metrics={name: smooth(values) for name, values in self.metrics.items()},
            cycles=self._drawn_cycles(),
            note=self.reason or self.note,
            log=not self.linear,
            ax=ax,
        )

    @property
    def _turns(self) -> bool:
        """Whether the range ends where the loss turns up, and not at a suggestion."""
        return self.lr_max is not None and self.lr_max not in self.suggestions.values()

    def _drawn_cycles(self) -> tuple[tuple[float, ...], tuple[float, ...], str] | None:
        """Return peaks, losses and a name of the short cycles, for a picture."""
        if self.cycles is None:
            return None
        label = f"{self.cycles.measured}, cycles of {self.cycles.n_updates}"
        return self.cycles.peaks, self.cycles.losses, label

    def to_text(self, width: int = 72, height: int = 12) -> str:
        """Draw the smoothed loss in characters, above the lines that this prints as.

        Args:
            width: Of the picture, in characters, at least 40.
            height: Of the curve, in lines, at least 2.

        Returns:
            The text, for ``print``. Under the curve the first letter of its name marks each
            suggestion, ``|`` where the loss turns up, ``o`` the peaks of short cycles.
        """
        check_count("width", width, least=40)
        check_count("height", height, least=2)
        drawn = plots.draw_lr_find(
            self.lrs,
            self.smoothed,
            {name: lr for name, lr in self.suggestions.items() if lr is not None},
            turn=self.lr_max if self._turns else None,
            peaks=() if self.cycles is None else self.cycles.peaks,
            log=not self.linear,
            width=width,
            height=height,
        )
        return "\n".join(part for part in (drawn, repr(self)) if part)

    def _said(self) -> dict[str, tuple[float, tuple[float, float]]]:
        """Return each rule's rate and interval, and the vote's where there are several rules."""
        said = {
            rule: (lr, interval)
            for (rule, lr), interval in zip(
                self.suggestions.items(), self.spreads.values(), strict=True
            )
            if lr is not None and interval is not None
        }
        if len(said) > 1 and self.vote is not None:
            said["vote"] = (self.vote.lr, (self.vote.low, self.vote.high))
        return said

    def __repr__(self) -> str:
        """Show a line for each rule, with its spread."""
        lines = [f"range test of {len(self.lrs)} updates: {self.stop_reason}"]
        lines += [self.note] if self.note is not None else []
        if self.reason is not None:
            return "\n".join([*lines, self.reason])
        lines += [line for line in (self.unsure,) if line is not None]
        lines += [] if self.cycles is None else [repr(self.cycles)]
        said = self._said()
        width = max(map(len, (*said, "cycle")))
        lines += [
            f"{name:<{width}}  {lr:.2e}  ({low:.1e} to {high:.1e})"
            for name, (lr, (low, high)) in said.items()
        ]
        return "\n".join([*lines, f"{'cycle':<{width}}  {self.lr_min:.2e} to {self.lr_max:.2e}"])


def written(lr: float | None) -> str:
    """Write a learning rate for a table; "none" where there is none."""
    return "none" if lr is None else f"{lr:.2e}"
