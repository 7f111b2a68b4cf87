"""Whether super-convergence is possible for a model and its data: the plateau of a range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onecycle import plots
from onecycle.arguments import check_count, check_list, check_positive
from onecycle.callbacks.monitor import Mode, judged_by
from onecycle.checkpoints.snapshot import preserved
from onecycle.data.loaders import n_batches
from onecycle.range_test.noise import deviation_above
from onecycle.range_test.result import LRFindResult, written
from onecycle.range_test.rules import CLEAR, minimum
from onecycle.range_test.varied import check_settings
from onecycle.schedules.shapes import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.training.trainer import Trainer

#: A rate is on the plateau while the metric keeps this part of what it gained over its start. In
#: the range tests of Smith and Topin it kept 0.78 or more, up to the highest rate.
KEPT = 0.75

#: The plateau ends at large rates from this many usual rates on, and at none below the second.
LARGE, NOT_LARGE = 5.0, 3.0

#: A cycle's peak is this factor below the plateau's end: the range test is at each of its rates
#: for one update, and a cycle stays near its peak.
MARGIN = 3.0

#: Another weight decay is clearly better if the plateau ends this factor further up.
WIDER = 1.5

#: The linear test ends at this many usual rates, unless told otherwise. With a further end its
#: rate would rise too fast for the model to learn anything on the way.
REACH = 10.0

Answer = Literal["yes", "no", "unsure"]


@dataclass(frozen=True, eq=False)
class Plateau:
    """The rates of a linear range test at which the smoothed metric stays high.

    Attributes:
        lrs: The learning rate of each update, shape ``(updates,)``.
        smoothed: The metric after each update, averaged over neighbours.
        lr_lo, lr_hi: The first and the last rate on the plateau; ``None`` where the metric never
            rises clearly above its noise.
        is_open: Whether ``lr_hi`` is where the test was to end, so that the plateau goes on.
        share: The part of the updates between ``lr_lo`` and ``lr_hi`` at which the metric is
            high, in [0, 1]: below 1 where the plateau is ragged.
    """

    lrs: Array
    smoothed: Array
    lr_lo: float | None
    lr_hi: float | None
    is_open: bool
    share: float

    @property
    def span(self) -> tuple[float, float] | None:
        """The first and the last rate together, or ``None``."""
        return None if self.lr_lo is None or self.lr_hi is None else (self.lr_lo, self.lr_hi)


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """Whether super-convergence is possible, with the numbers that say so; prints as a table.

    Attributes:
        answer: ``"yes"``, ``"no"`` or ``"unsure"``.
        sentence: Why, in numbers.
        lr_usual: The rate of a usual fit, which the plateau is compared with; ``None`` where the
            range test found none.
        lr_max: A peak for one cycle; ``None`` where the answer is "no", or no rate was found.
        weight_decay: The weight decay that the answer is for: the learner's own, or another one
            whose plateau is clearly wider.
        metric: The name of what was measured after each update.
        less_is_better: Whether less of it is better.
        plateaus: By weight decay what its range test found, the learner's own first.
    """

    answer: Answer
    sentence: str
    lr_usual: float | None
    lr_max: float | None
    weight_decay: float
    metric: str
    less_is_better: bool
    plateaus: dict[float, Plateau]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the smoothed metric over the rate; marks the plateau, the usual rate and the peak.

        Args:
            ax: Where to draw; by default a new figure.
        """
        chosen = self.plateaus.get(self.weight_decay)
        return plots.plot_plateaus(
            {f"weight_decay {wd:g}": (p.lrs, p.smoothed) for wd, p in self.plateaus.items()},
            None if chosen is None else chosen.span,
            {"usual rate": self.lr_usual, "peak for one cycle": self.lr_max},
            ylabel=f"{self.metric}, smoothed",
            ax=ax,
        )

    def __repr__(self) -> str:
        """Show the answer, and a line for each weight decay."""
        width = max(8, len(self.metric))
        peak = "" if self.lr_max is None else f"; peak for one cycle: lr_max={self.lr_max:.2g}"
        lines = [f"super-convergence: {self.answer}{peak}", self.sentence]
        if self.plateaus:
            lines.append(
                f"weight_decay  plateau from        to  x usual  share  best {self.metric:>{width}}"
                f"{'at the end':>12}"
            )
        for wd, plateau in self.plateaus.items():
            smoothed, end = plateau.smoothed, plateau.smoothed[-1]
            best = smoothed.min() if self.less_is_better else smoothed.max()
            lines.append(
                f"{wd:>12g}  {written(plateau.lr_lo):>12}  {written(plateau.lr_hi):>8}"
                f"  {_ratio(plateau, self.lr_usual):>7}  {plateau.share:>5.0%}"
                f"  {best:>{width + 5}.4g}{end:>12.4g}"
            )
        return "\n".join(lines)


def diagnose(
    learn: Trainer,
    end_lr: float | None,
    num_it: int,
    *,
    wds: Sequence[float],
    metric: str | None,
    mode: Mode,
    lr_usual: float | None,
) -> Diagnosis:
    """Say whether super-convergence is possible: see `Learner.diagnose`."""
    check_count("num_it", num_it, least=20)
    name, better = judged_by(learn, metric, mode)
    less = better == "min"
    end = None if end_lr is None else check_positive("end_lr", end_lr)
    lr_usual = None if lr_usual is None else check_positive("lr_usual", lr_usual)
    own = _own_decay(learn)
    others = [wd for wd in check_list("wds", wds, "weight decays") if wd != own]
    if others:
        check_settings(learn, "weight_decay", others)
    with preserved(learn):  # also the range test that the Recorder keeps for its plot
        if lr_usual is None:
            found = learn.lr_find(show_plot=False, suggest_funcs=(minimum,))
            lr_usual, reason = found.suggestion, found.reason
        if lr_usual is None:
            sentence = f"{reason}; or give lr_usual, the rate of a usual fit"
            return Diagnosis("unsure", sentence, None, None, own, name, less, {})
        tests = _linear_tests(learn, end or REACH * lr_usual, num_it, own, others)
    window = _window(learn, num_it)
    plateaus = {
        wd: find_plateau(test, name, less_is_better=less, window=window, num_it=num_it)
        for wd, test in tests.items()
    }
    chosen = widest(plateaus, own)
    answer, sentence = judge(plateaus[chosen], lr_usual, name)
    if chosen != own:
        sentence += f"; at a weight decay of {chosen:g}, where {own:g} narrows the plateau"
    peak = plateaus[chosen].lr_hi
    lr_max = None if peak is None or answer == "no" else peak / MARGIN
    return Diagnosis(answer, sentence, lr_usual, lr_max, chosen, name, less, plateaus)


def find_plateau(
    test: LRFindResult, metric: str, *, less_is_better: bool, window: int, num_it: int
) -> Plateau:
    """Find the rates of a linear range test at which a metric stays high.

    The metric is averaged over ``window`` neighbours, where what is worse than at the start, or
    not finite, counts as the start: a loss that explodes is no more than lost. The plateau goes
    from the first to the last rate at which it keeps `KEPT` of its gain.

    Args:
        test: The range test, with validation.
        metric: ``"valid_loss"``, or one of its metrics.
        less_is_better: Whether less of it is better.
        window: The updates to average over.
        num_it: The updates that were planned, of which a test that diverges makes fewer.

    Source:
        Smith and Topin, "Super-Convergence", arXiv:1708.07120: the accuracy stays high up to
        unusually large rates, over 0.7 of at most 0.86 up to a rate of 3 for a ResNet-56 on
        CIFAR-10, where a usual network's falls off. The numbers are from their logs.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> test = toy_learner().lr_find(1e-3, 0.1, 60, show_plot=False, linear=True, valid=True)
        >>> plateau = find_plateau(test, "mse", less_is_better=True, window=5, num_it=60)
        >>> plateau.is_open, plateau.share
        (True, 1.0)
    """
    measured = {"valid_loss": test.valid_losses, **test.metrics}[metric]
    sign = -1.0 if less_is_better else 1.0
    values = sign * np.asarray(measured, np.float64)
    values = np.where(np.isfinite(values), values, np.nan)
    window = min(window, len(values))
    start = float(values[:window].mean())
    noise = deviation_above(values, start)
    values = np.where(values > start, values, start)
    ones = np.ones(window)
    smoothed = np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
    gain = float(smoothed.max()) - start
    if not gain > CLEAR * noise / math.sqrt(window):
        return Plateau(test.lrs, sign * smoothed, None, None, is_open=False, share=0.0)
    high = smoothed >= start + KEPT * gain
    first, last = np.flatnonzero(high)[[0, -1]]
    return Plateau(
        test.lrs,
        sign * smoothed,
        lr_lo=float(test.lrs[first]),
        lr_hi=float(test.lrs[last]),
        is_open=bool(last == num_it - 1),
        share=float(high[first : last + 1].mean()),
    )


def _own_decay(learn: Trainer) -> float:
    """Return the weight decay of the last group, which is 0 where the optimizer has none."""
    has_decay = "weight_decay" in learn.groups.names()
    return learn.groups.get("weight_decay")[-1] if has_decay else 0.0


def _linear_tests(
    learn: Trainer, end_lr: float, num_it: int, own: float, others: Sequence[float]
) -> dict[float, LRFindResult]:
    """Run the linear range test of the learner as it is, and those of other weight decays."""

    def test(**sweep: Any) -> Any:
        return learn.lr_find(
            end_lr / num_it,
            end_lr,
            num_it,
            stop_div=False,
            show_plot=False,
            suggest_funcs=(minimum,),
            linear=True,
            valid=True,
            **sweep,
        )

    return {own: test(), **(test(wds=[*others]) if others else {})}


def _window(learn: Trainer, num_it: int) -> int:
    """Return over how many updates to average: whole passes of validation, if they are short."""
    # The batches of a pass may differ, as where an unshuffled validation set is sorted by class.
    valid, least = learn.dls.valid, num_it // 20
    batches = (None if valid is None else n_batches(valid)) or 1
    return min(math.ceil(least / batches) * batches, num_it // 5)


def widest(plateaus: dict[float, Plateau], own: float) -> float:
    """Return the weight decay whose plateau ends clearly higher than the learner's own, or that."""
    ends = {wd: plateau.lr_hi or 0.0 for wd, plateau in plateaus.items()}
    # Of about equal ends the larger decay: regularize as much as the large rates leave room for.
    best = max(ends, key=lambda wd: (ends[wd] * WIDER >= max(ends.values()), wd))
    return best if ends[best] > WIDER * ends[own] else own


def judge(plateau: Plateau, lr_usual: float, metric: str) -> tuple[Answer, str]:
    """Return the answer and its reason."""
    if plateau.span is None:
        return "no", (
            f"{metric} never improves clearly while the rate rises to {plateau.lrs[-1]:.2g}, "
            f"{plateau.lrs[-1] / lr_usual:.2g} times the usual {lr_usual:.2g}"
        )
    lo, hi = plateau.span
    stays = (
        f"{metric} stays high from {lo:.2g} up to {'at least ' if plateau.is_open else ''}"
        f"{hi:.2g}, {hi / lr_usual:.2g} times the usual {lr_usual:.2g}"
    )
    if hi < NOT_LARGE * lr_usual:
        if plateau.is_open:
            return "unsure", f"{stays}, where the test ends: give a higher end_lr"
        return "no", f"{stays}: it is lost before the rates are large"
    if hi < LARGE * lr_usual:
        return "unsure", f"{stays}: neither narrow nor wide"
    if lo < lr_usual:
        return "unsure", f"{stays}; below the usual rate too, so a large one may gain nothing"
    return "yes", stays


def _ratio(plateau: Plateau, lr_usual: float | None) -> str:
    if plateau.lr_hi is None or lr_usual is None:
        return "none"
    return f"{'>' if plateau.is_open else ''}{plateau.lr_hi / lr_usual:.2g}"
