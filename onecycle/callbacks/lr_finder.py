"""`LRFinder`: the learning-rate range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from onecycle.arguments import check_count, check_finite, check_flags
from onecycle.core.callback import Callback, Stage
from onecycle.errors import CancelFit
from onecycle.range_test.probe import ValidProbe
from onecycle.range_test.result import LRFindResult
from onecycle.range_test.rules import Rule, StopRule, suggest
from onecycle.record.smoothing import Smoother, smooth
from onecycle.schedules.shapes import Array, exponential, linear

if TYPE_CHECKING:
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
        check_flags(stop_div=stop_div, linear=linear, valid=valid)
        if not 0 < check_finite("start_lr", start_lr) < check_finite("end_lr", end_lr):
            raise ValueError(
                f"expected 0 < start_lr < end_lr; got start_lr={start_lr} and end_lr={end_lr}"
            )
        self.num_it = check_count("num_it", num_it, least=2)
        self.linear, self.valid = linear, valid
        self.lrs = _rates(start_lr, end_lr, self.num_it, is_linear=linear)
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
        stopped = self.stop_reason is not None
        found = suggest(
            lrs, losses, smoothed=smoothed, num_it=self.num_it, rules=rules, stopped=stopped
        )
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
            stopped=stopped,
        )

    def _validated(self) -> tuple[Array | None, dict[str, Array]]:
        """Return what the probe measured, up to the update at which the test stopped."""
        if self._probe is None:
            return None, {}
        n = len(self._losses)
        metrics = {name: values[:n] for name, values in self._probe.metrics.items()}
        return self._probe.losses[:n], metrics


def _rates(start: float, end: float, num_it: int, *, is_linear: bool) -> Array:
    shape = linear if is_linear else exponential
    return shape(start, end)(np.arange(num_it) / (num_it - 1))
