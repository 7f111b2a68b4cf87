"""Whether super-convergence is possible for a model and its data: a plateau, and short fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from onecycle import plots
from onecycle.arguments import check_count, check_epochs, check_list, check_positive
from onecycle.callbacks.monitor import Mode, judged_by
from onecycle.callbacks.run_bar import bars
from onecycle.checkpoints.snapshot import preserved
from onecycle.core.callback import Callback
from onecycle.range_test.result import LRFindResult, written
from onecycle.range_test.rules import minimum
from onecycle.range_test.varied import check_settings, put_in_force
from onecycle.schedules.shapes import Array
from onecycle.studies.plateau import (
    POINTS,
    FixedSample,
    Measured,
    Plateau,
    draw_sample,
    find_plateau,
)
from onecycle.studies.trials import Init, check_init, check_seeds
from onecycle.studies.verification import Answer, ShortFit, epochs_of, verdict, verify

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.training.trainer import Trainer

#: The plateau ends at large rates from this many usual rates on, and at none below the second.
LARGE, NOT_LARGE = 5.0, 3.0

#: Below this share of high measurements a plateau is ragged.
RAGGED = 0.8

#: A cycle's peak is this factor below the plateau's end: the range test is at each of its rates
#: for one update, and a cycle stays near its peak.
MARGIN = 3.0

#: A peak is large, and worth fits of its own, from this many usual or suggested rates on.
WORTH_FITS = 1.3

#: Another weight decay is clearly better if the plateau ends this factor further up.
WIDER = 1.5

#: The linear test ends at this many usual rates, unless told otherwise. With a further end its
#: rate would rise too fast for the model to learn anything on the way.
REACH = 10.0


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """Whether super-convergence is possible, with the numbers that say so; prints as a table.

    Attributes:
        answer: ``"yes"``, ``"no"`` or ``"unsure"``.
        sentence: Why, in numbers.
        lr_usual: The rate of a usual fit, which the plateau is compared with; ``None`` where the
            range test found none.
        lr_suggested: What the rule `minimum` suggests; ``None`` where it finds nothing.
        lr_max: A peak for one cycle; ``None`` where the answer is "no", or no rate was found.
        weight_decay: The weight decay that the answer is for: the learner's own, or another one
            whose plateau is clearly wider.
        metric: The name of what was measured.
        less_is_better: Whether less of it is better.
        plateaus: By weight decay what its range test found, the learner's own first.
        fits: By name of the short fit what validation ended at with each seed, shape ``(seeds,)``;
            empty where no fit was made, so that the answer is a guess.
    """

    answer: Answer
    sentence: str
    lr_usual: float | None
    lr_suggested: float | None
    lr_max: float | None
    weight_decay: float
    metric: str
    less_is_better: bool
    plateaus: dict[float, Plateau]
    fits: dict[str, Array] = field(default_factory=dict)

    @property
    def is_guess(self) -> bool:
        """Whether no fit was made."""
        return not self.fits

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the metric's running median over the rate, with plateau, usual rate and peak.

        Args:
            ax: Where to draw; by default a new figure.
        """
        chosen = self.plateaus.get(self.weight_decay)
        return plots.plot_plateaus(
            {f"weight_decay {wd:g}": (p.lrs, p.smoothed) for wd, p in self.plateaus.items()},
            None if chosen is None else chosen.span,
            {"usual rate": self.lr_usual, "peak for one cycle": self.lr_max},
            ylabel=f"{self.metric}, running median",
            ax=ax,
        )

    def __repr__(self) -> str:
        """Show the answer, a line for each weight decay, and one for each kind of fit."""
        width = max(8, len(self.metric))
        peak = "" if self.lr_max is None else f"; peak for one cycle: lr_max={self.lr_max:.2g}"
        guess = " (a guess: no fit was made)" if self.is_guess else ""
        lines = [f"super-convergence: {self.answer}{guess}{peak}", self.sentence]
        if self.plateaus:
            lines.append(
                f"weight_decay  plateau from        to  x usual  share  best {self.metric:>{width}}"
                f"{'at the end':>12}"
            )
        for wd, plateau in self.plateaus.items():
            smoothed = plateau.smoothed if len(plateau.smoothed) else np.array([math.nan])
            best, end = smoothed.min() if self.less_is_better else smoothed.max(), smoothed[-1]
            lines.append(
                f"{wd:>12g}  {written(plateau.lr_lo):>12}  {written(plateau.lr_hi):>8}"
                f"  {_ratio(plateau, self.lr_usual):>7}  {plateau.share:>5.0%}"
                f"  {best:>{width + 5}.4g}{end:>12.4g}"
            )
        names = max(map(len, self.fits), default=0)
        for name, ends in self.fits.items():
            each = " ".join(f"{end:.4g}" for end in ends)
            lines.append(f"{name:<{names}}  {self.metric} {ends.mean():.4g}  ({each})")
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
    make_fits: bool,
    n_epoch: float | None,
    seeds: Sequence[int],
    init: Init | None,
) -> Diagnosis:
    """Say whether super-convergence is possible: see `Learner.diagnose`."""
    check_count("num_it", num_it, least=20)
    name, better = judged_by(learn, metric, mode)
    end = None if end_lr is None else check_positive("end_lr", end_lr)
    lr_usual = None if lr_usual is None else check_positive("lr_usual", lr_usual)
    if lr_usual is not None and REACH * lr_usual == float("inf"):
        raise ValueError(
            f"lr_usual must be small enough to test {REACH:g} times it; got {lr_usual}"
        )
    check_init(init)
    found_seeds, length = check_seeds(seeds), 0.0
    if make_fits:
        length = epochs_of(learn, num_it) if n_epoch is None else check_epochs("n_epoch", n_epoch)
    own = _own_decay(learn)
    others = [wd for wd in check_list("wds", wds, "weight decays") if wd != own]
    if others:
        check_settings(learn, "weight_decay", others)
    with preserved(learn):  # also the range test that the Recorder keeps for its plot
        guess = _guess(learn, end, num_it, [own, *others], (name, better == "min"), lr_usual)
    if not make_fits or guess.lr_max is None:
        return guess
    fits = _fits(guess, own)
    if not fits:
        small = f"{guess.sentence}; the peak that this allows, {guess.lr_max:.2g}, is no large one"
        return replace(guess, answer="no", sentence=small, lr_max=None)
    ends = verify(learn, fits, length, found_seeds, init=init, metric=name)
    return _judged(guess, ends, fits[-1])


def _judged(guess: Diagnosis, ends: dict[str, Array], peak: ShortFit) -> Diagnosis:
    """Return a diagnosis whose answer is that of the fits."""
    answer, sentence = verdict(
        ends, peak.name, less_is_better=guess.less_is_better, metric=guess.metric
    )
    if peak.weight_decay is not None:
        sentence += f"; at a weight decay of {peak.weight_decay:g}"
    return replace(
        guess,
        answer=answer,
        sentence=sentence,
        lr_max=None if answer == "no" else peak.lr,
        fits=ends,
    )


def _guess(
    learn: Trainer,
    end_lr: float | None,
    num_it: int,
    wds: list[float],
    metric: tuple[str, bool],
    lr_usual: float | None,
) -> Diagnosis:
    """Say by range tests alone what fits would probably show."""
    name, less = metric
    own = wds[0]
    with learn.added_cbs(_bar(learn, 1, wds)):
        found: LRFindResult = learn.lr_find(show_plot=False, suggest_funcs=minimum)
    suggested = found.suggestion
    usual = suggested if lr_usual is None else lr_usual
    if usual is None:
        sentence = f"{found.reason}; or give lr_usual, the rate of a usual fit"
        return Diagnosis("unsure", sentence, None, None, None, own, name, less, {})
    end = end_lr or REACH * max(usual, suggested or 0.0)
    plateaus = _plateaus(learn, end, num_it, wds, name, less)
    chosen = widest(plateaus, own)
    answer, sentence = judge(plateaus[chosen], usual, name, end)
    if chosen != own:
        sentence += f"; at a weight decay of {chosen:g}, where {own:g} narrows the plateau"
    peak = plateaus[chosen].lr_hi
    lr_max = None if peak is None or answer == "no" else peak / MARGIN
    return Diagnosis(answer, sentence, usual, suggested, lr_max, chosen, name, less, plateaus)


def _fits(guess: Diagnosis, own: float) -> list[ShortFit]:
    """Return what to compare, the diagnosed peak last; nothing where that is no large one."""
    usual, peak = guess.lr_usual, guess.lr_max
    if usual is None or peak is None or peak < WORTH_FITS * max(usual, guess.lr_suggested or 0.0):
        return []
    decay = None if guess.weight_decay == own else guess.weight_decay
    fits = [ShortFit(f"constant {usual:.2g}", usual, is_cycle=False)]
    if guess.lr_suggested is not None:
        fits.append(ShortFit(f"one cycle to {guess.lr_suggested:.2g}", guess.lr_suggested))
    return [*fits, ShortFit(f"one cycle to {peak:.2g}", peak, weight_decay=decay)]


def _plateaus(
    learn: Trainer, end_lr: float, num_it: int, wds: Sequence[float], metric: str, less: bool
) -> dict[float, Plateau]:
    """Run a linear range test for each weight decay, the first being that of the learner."""
    sample, every = draw_sample(learn), max(1, num_it // POINTS)
    plateaus = {}
    for i, wd in enumerate(wds):
        measured = Measured()
        watching = [FixedSample(sample, every, measured), *_bar(learn, 2 + i, wds)]
        with preserved(learn), learn.added_cbs(watching):
            if i:  # else as the learner has it, group by group
                put_in_force(learn, "weight_decay", wd)
            lrs = _linear_test(learn, end_lr, num_it).lrs
        start, *values = measured.series(metric)
        # Where reading a loss makes the device wait, a test stops late: `lrs` says where.
        updates = [update for update in measured.updates[1:] if update <= len(lrs)]
        plateaus[wd] = find_plateau(
            np.array([lrs[update - 1] for update in updates]),
            np.array(values[: len(updates)]),
            start,
            less_is_better=less,
            n_planned=num_it // every,
        )
    return plateaus


def _bar(learn: Trainer, number: int, wds: Sequence[float]) -> list[Callback]:
    return bars(learn, f"range test {number}/{1 + len(wds)}")


def _linear_test(learn: Trainer, end_lr: float, num_it: int) -> LRFindResult:
    return learn.lr_find(
        end_lr / num_it,
        end_lr,
        num_it,
        stop_div=False,
        show_plot=False,
        suggest_funcs=(),
        linear=True,
    )


def _own_decay(learn: Trainer) -> float:
    """Return the weight decay of the last group, which is 0 where the optimizer has none."""
    has_decay = "weight_decay" in learn.groups.names()
    return learn.groups.get("weight_decay")[-1] if has_decay else 0.0


def widest(plateaus: dict[float, Plateau], own: float) -> float:
    """Return the weight decay whose plateau ends clearly higher than the learner's own, or that."""
    ends = {wd: plateau.lr_hi or 0.0 for wd, plateau in plateaus.items()}
    # Of about equal ends the larger decay: regularize as much as the large rates leave room for.
    best = max(ends, key=lambda wd: (ends[wd] * WIDER >= max(ends.values()), wd))
    return best if ends[best] > WIDER * ends[own] else own


def judge(plateau: Plateau, lr_usual: float, metric: str, tested: float) -> tuple[Answer, str]:
    """Return what a plateau says, and its reason; ``tested`` is the highest rate of the test."""
    if plateau.span is None:
        return "no", (
            f"{metric} never improves clearly while the rate rises to {tested:.2g}, "
            f"{tested / lr_usual:.2g} times the usual {lr_usual:.2g}"
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
    if plateau.share < RAGGED:
        return "unsure", f"{stays}, but at {1 - plateau.share:.0%} of the rates between it is not"
    if lo < lr_usual:
        return "unsure", f"{stays}; below the usual rate too, so a large one may gain nothing"
    return "yes", stays


def _ratio(plateau: Plateau, lr_usual: float | None) -> str:
    if plateau.lr_hi is None or lr_usual is None:
        return "none"
    return f"{'>' if plateau.is_open else ''}{plateau.lr_hi / lr_usual:.2g}"
