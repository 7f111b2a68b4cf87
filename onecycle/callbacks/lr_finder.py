"""`LRFinder`: the learning-rate range test, and its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from onecycle import plots
from onecycle.core.callback import Callback, Stage
from onecycle.errors import CancelFit
from onecycle.range_test.probe import ValidProbe
from onecycle.range_test.rules import Array, Rule, Smoother, StopRule, suggest
from onecycle.range_test.spreads import Spreads, Vote, spread
from onecycle.record.smoothing import smooth
from onecycle.schedules.shapes import exponential, linear

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop

#: After how many updates the losses are read, where reading makes the device wait.
_READ_EVERY = 8


class LRFinder(Callback):
    """Raise the learning rate from update to update, and stop when the loss diverges.

    `Learner.lr_find` runs it over a learner that is put back afterwards. The rate of update ``i``
    is that of the last parameter group, at ``i / (num_it - 1)`` of the way, so that ``end_lr`` is
    reached; the other groups keep the ratios that they have.

    Args:
        start_lr: The first rate, above 0.
        end_lr: The last rate, above ``start_lr``.
        num_it: The number of updates, at least 2.
        stop_div: Stop when the smoothed loss is over four times its best.
        linear: Let the rate rise linearly instead of exponentially.
        valid: After each update, measure loss and metrics on the next validation batch too, as
            fastai 0.7's ``lr_find2`` did. When to stop and what to suggest stays a matter of the
            training loss.

    Raises:
        ValueError: If the rates do not rise, or there are fewer than two updates; with ``valid``,
            when the test begins, if there is no validation loader.

    Example:
        >>> finder = LRFinder(1e-4, 1.0, num_it=5)
        >>> finder.lrs.tolist()
        [0.0001, 0.001, 0.01, 0.1, 1.0]
    """

    stage = Stage.PREPARE
    during = "train"
    runs_in = frozenset(("range_test",))

    def __init__(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_it: int = 100,
        *,
        stop_div: bool = True,
        linear: bool = False,
        valid: bool = False,
    ) -> None:
        if not 0 < start_lr < end_lr < math.inf:
            raise ValueError(
                f"expected 0 < start_lr < end_lr; got start_lr={start_lr} and end_lr={end_lr}"
            )
        if num_it < 2:
            raise ValueError(f"num_it must be at least 2 updates; got {num_it}")
        self.num_it, self.linear, self.valid = num_it, linear, valid
        self.lrs = _rates(start_lr, end_lr, num_it, is_linear=linear)
        self.stop_reason: str | None = None
        self._smoother = Smoother()
        self._rule = StopRule(factor=4.0 if stop_div else None)
        self._losses: list[float] = []
        self._unread: list[Tensor] = []
        self._probe: ValidProbe | None = None

    def before_fit(self, learn: Loop) -> None:
        """Find where the rates of the groups are kept, and their ratios."""
        rates = learn.groups.get("lr")
        ratios = [rate / rates[-1] if rates[-1] else 1.0 for rate in rates]
        self._slots = [
            (slot, ratio) for g, ratio in enumerate(ratios) for slot in learn.groups.slots("lr", g)
        ]
        self._probe = ValidProbe(learn) if self.valid else None
        self._read_every = 1 if learn.device.type == "cpu" else _READ_EVERY

    def before_batch(self, learn: Loop) -> None:
        """Put this update's rate in force."""
        rate = float(self.lrs[learn.n_updates])
        for slot, ratio in self._slots:
            slot.set(rate * ratio)

    def after_step(self, learn: Loop) -> None:
        """Keep the loss; now and then read those that are kept, and stop where they diverge."""
        self._unread.append(learn.update_loss)
        if self._probe is not None:
            self._probe.measure(learn)
        if len(self._unread) >= self._read_every:
            self._read()

    def after_cancel_step(self, learn: Loop) -> None:
        """Stop at a loss that is not finite, for which a gradient scaler makes no update."""
        if not math.isfinite(float(learn.update_loss)):
            self.after_step(learn)
            self._read()

    def after_fit(self, learn: Loop) -> None:
        """Read what is left."""
        if self.stop_reason is None:
            try:
                self._read()
            except CancelFit as cancel:
                self.stop_reason = cancel.reason

    def cleanup_fit(self, learn: Loop) -> None:
        """Let go of the validation loader, whatever ended the test."""
        if self._probe is not None:
            self._probe.close()

    def _read(self) -> None:
        unread, self._unread = self._unread, []
        for loss in unread:
            value = float(loss)
            self._losses.append(value)
            self.stop_reason = self._rule.update(value, self._smoother.update(value))
            if self.stop_reason is not None:
                raise CancelFit(self.stop_reason)

    def result(self, rules: Sequence[Rule]) -> LRFindResult:
        """Judge what was measured.

        Args:
            rules: Functions ``(lrs, smoothed losses) -> rate``; see `onecycle.range_test.rules`.
        """
        losses = np.array(self._losses)
        lrs, smoothed = self.lrs[: len(losses)], smooth(losses)
        valid_losses, metrics = self._validated()
        found = suggest(lrs, losses, smoothed=smoothed, num_it=self.num_it, rules=rules)
        return LRFindResult(
            lrs=lrs,
            losses=losses,
            smoothed=smoothed,
            suggestions=found.values,
            lr_min=found.lr_min,
            lr_max=found.lr_max,
            reason=found.reason,
            stop_reason=self.stop_reason or "all updates were made",
            linear=self.linear,
            valid_losses=valid_losses,
            metrics=metrics,
            num_it=self.num_it,
            rules=tuple(rules),
        )

    def _validated(self) -> tuple[Array | None, dict[str, Array]]:
        """Return what the probe measured, up to the update at which the test stopped."""
        if self._probe is None:
            return None, {}
        n = len(self._losses)
        metrics = {name: values[:n] for name, values in self._probe.metrics.items()}
        return self._probe.losses[:n], metrics


@dataclass(frozen=True, eq=False, repr=False)
class LRFindResult:
    """What a learning-rate range test found.

    Attributes:
        lrs: The learning rate of each update (the last group's), shape ``(updates,)``.
        losses: The training loss of each update.
        smoothed: The losses, exponentially smoothed.
        suggestions: By name of the rule the rate it suggests, or ``None``.
        lr_min, lr_max: A pair for a cycle, or ``None``.
        reason: Why there is no suggestion, in a sentence; ``None`` where there is one.
        stop_reason: Why the test ended.
        linear: Whether the rate rose linearly.
        valid_losses: The loss on one validation batch after each update, not smoothed; ``None``
            without ``valid=True``.
        metrics: By name the metric on that batch, not smoothed; empty without ``valid=True``.
        num_it: The updates that were planned.
        rules: The rules that were asked.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> result = toy_learner(n_batches=100).lr_find(1e-4, show_plot=False)
        >>> low, high = result.spreads["minimum"]
        >>> low <= result.suggestion <= high
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

    @property
    def suggestion(self) -> float | None:
        """The first rule's suggestion."""
        return next(iter(self.suggestions.values()), None)

    @property
    def spreads(self) -> dict[str, tuple[float, float] | None]:
        """By name of the rule, between which rates another draw of batches might put it.

        On 80 % of the curves resampled from the noise of this one: see
        `onecycle.range_test.spreads`. ``None`` where there is no suggestion. Computed when it is
        first asked for.
        """
        found = {} if self._resampled is None else self._resampled.rules
        return {rule: found.get(rule) for rule in self.suggestions}

    @property
    def vote(self) -> Vote | None:
        """What all rules say together, with its spread; ``None`` where there is no suggestion."""
        return None if self._resampled is None else self._resampled.vote

    @cached_property
    def _resampled(self) -> Spreads | None:
        if self.reason is not None:
            return None
        return spread(
            self.lrs, self.losses, smoothed=self.smoothed, num_it=self.num_it, rules=self.rules
        )

    @property
    def valid_smoothed(self) -> Array | None:
        """The validation losses, smoothed as the training losses are; ``None`` without them."""
        return None if self.valid_losses is None else smooth(self.valid_losses)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot loss against learning rate, with the suggestions and their spreads.

        Of several rules the vote is marked too. What was measured on validation batches is drawn
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
            spreads={name: interval for name, (_, interval) in said.items()},
            valid_smoothed=self.valid_smoothed,
            metrics={name: smooth(values) for name, values in self.metrics.items()},
            log=not self.linear,
            ax=ax,
        )

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
        if self.reason is not None:
            return f"{lines[0]}\n{self.reason}"
        said = self._said()
        width = max(map(len, (*said, "cycle")))
        lines += [
            f"{name:<{width}}  {lr:.2e}  ({low:.1e} to {high:.1e})"
            for name, (lr, (low, high)) in said.items()
        ]
        return "\n".join([*lines, f"{'cycle':<{width}}  {self.lr_min:.2e} to {self.lr_max:.2e}"])


def _rates(start: float, end: float, num_it: int, *, is_linear: bool) -> Array:
    shape = linear if is_linear else exponential
    return shape(start, end)(np.arange(num_it) / (num_it - 1))
