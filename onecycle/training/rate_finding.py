"""From a range test to a rate: what is done where one test does not say enough, or is confirmed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from onecycle.arguments import check_count
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.one_cycle import MomentumCycler, OneCycleSchedule
from onecycle.checkpoints.snapshot import preserved
from onecycle.core.callback import Callback, Stage
from onecycle.range_test.knee import Reading, knee, read
from onecycle.range_test.mini_cycles import FAR, MiniCycles, try_peaks
from onecycle.range_test.result import CYCLES as CYCLE_RULE
from onecycle.range_test.result import LRFindResult
from onecycle.range_test.rules import Rule
from onecycle.training.believed_rate import N_GRADIENTS, GradientNorms, believed_peak
from onecycle.training.checking import measure

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: Runs updates with some callbacks, from the state that the learner is in.
Run = Callable[[Sequence[Callback], int], None]

#: A test of fewer updates is a look at a few rates, after which nothing else is done.
LEAST_UPDATES = 50
#: How many times its updates a test that shows no valley may take in all.
MOST = 4
#: The cycles of a confirmation at most, and of a decision without one.
CONFIRMING, DECIDING = 3, 2
#: A cycle that confirms has so many times the updates that are asked for: what a few long cycles
#: tell of a whole fit is worth more than what many short ones do, at the same cost.
LONGER = 3


@dataclass(frozen=True)
class RateSearch:
    """Finds a rate for a learner, which is left as it was.

    Args:
        learn: The learner.
        run: Runs updates, as in a range test.
        finder: Makes the range test from its two ends.
        rules: The rules that are asked.
        moms: The momenta of a cycle, or ``None`` where none is cycled.
    """

    learn: Loop
    run: Run
    finder: Callable[[float, float], LRFinder]
    rules: tuple[Rule, ...]
    moms: tuple[float, float, float] | None

    def test(self, start_lr: float, end_lr: float) -> LRFindResult:
        """Make one range test, and nothing else."""
        finder = self.finder(start_lr, end_lr)
        with preserved(self.learn):
            self.run([finder], finder.num_it)
        return finder.result(self.rules)

    def find(self, start_lr: float, end_lr: float, *, confirm: int = 0) -> LRFindResult:
        """Make a range test, and what else it takes.

        Where the rule `knee` is the first and sees no valley, or no end of it, two long cycles
        decide: to the peak that is believed (see `believed_peak`), and to one above or below it;
        with ``confirm`` a third may follow. Else two or three cycles confirm the suggestion, if
        that is asked for.

        Args:
            start_lr: The first rate.
            end_lr: The last rate.
            confirm: A third of the updates of each cycle that confirms; 0 for none.

        Raises:
            ValueError: If ``confirm`` is below 10, and not 0.
        """
        check_count("confirm", confirm, least=10 if confirm else 0)
        result = self.test(start_lr, end_lr)
        reading = read(result.lrs, result.losses, stopped=result.stopped)
        goes_on = self.rules[:1] == (knee,) and result.num_it >= LEAST_UPDATES and not result.linear
        if reading.points == 0:
            return result
        if result.suggestion is None or (goes_on and not reading.has_ended):
            return self._decided(result, reading, confirm) if goes_on or confirm else result
        return self._confirmed(result, result.suggestion, confirm) if confirm else result

    def _decided(self, result: LRFindResult, reading: Reading, least: int) -> LRFindResult:
        """Let two long cycles, or three, decide in the place of the rule `knee`."""
        start, end = float(result.lrs[0]), float(result.lrs[-1])
        spent = [result.num_it]

        def gradient() -> float:
            norms = GradientNorms()
            spent.append(N_GRADIENTS)
            with preserved(self.learn):
                self.run([*self._schedules(start), norms], N_GRADIENTS)
            return norms.mean_square

        believed = believed_peak(reading, end, self.learn.opt, gradient)
        length = max((MOST * result.num_it - sum(spent)) // DECIDING, LONGER * least)
        most = CONFIRMING if least else DECIDING
        cycles = _Measured(self, length).cycles(believed, believed, second="above", most=most)
        what = "no valley" if result.suggestion is None else "no end of the fall"
        note = f"the test shows {what}: {len(cycles.peaks)} cycles of {length} updates"
        spent.append(cycles.cost)
        if not cycles.has_trained and not _moves(reading, cycles):
            return replace(result, cycles=cycles, note=_note(note, sum(spent)))
        if not cycles.has_trained:
            note = f"{note}; unsure: they hardly trained, {_bounds(believed, reading, end)}"
        return _with_cycles(result, cycles, _note(note, sum(spent)), {})

    def _confirmed(self, result: LRFindResult, suggestion: float, asked: int) -> LRFindResult:
        """Let two or three cycles confirm the suggestion: twice as high, half as high, beyond."""
        length, twice = LONGER * asked, suggestion * math.sqrt(FAR)
        measured = _Measured(self, length)
        cycles = measured.cycles(suggestion, twice, second="below", most=CONFIRMING)
        note = f"{len(cycles.peaks)} cycles of {length} updates"
        note += "" if cycles.has_trained else "; none of them trained"
        note = _note(note, result.num_it + cycles.cost)
        if not cycles.has_trained:
            return replace(result, cycles=cycles, note=note)
        return _with_cycles(result, cycles, note, result.suggestions)

    def _schedules(self, peak: float) -> list[Callback]:
        rates = self.learn.groups.get("lr")
        ratios = [rate / rates[-1] if rates[-1] else 1.0 for rate in rates]
        cycle = _Cycle([peak * ratio for ratio in ratios])
        return [cycle] if self.moms is None else [cycle, _Momentum(self.moms)]


@dataclass(frozen=True)
class _Measured:
    """Runs cycles of one length from the state of the learner, and measures the loss after each."""

    search: RateSearch
    length: int
    _training: dict[float, list[float]] = field(default_factory=dict)

    def loss(self, peak: float) -> float:
        """Return the loss after a cycle to a peak; infinite where it is not finite."""
        kept, learn = _Losses(), self.search.learn
        with preserved(learn):
            self.search.run([*self.search._schedules(peak), kept], self.length)
            self._training[peak] = losses = [float(loss) for loss in kept.losses]
            if not losses or not all(map(math.isfinite, losses)):
                return math.inf
            last = losses[-_few(self.length) :]
            found = _mean(last) if learn.dls.valid is None else self._validated()
        return found if math.isfinite(found) else math.inf

    def before(self) -> float:
        """Return the loss before training; without a validation loader, that of first updates."""
        if self.search.learn.dls.valid is not None:
            return self._untrained
        return _mean(self._training[min(self._training)][: _few(self.length)])

    @cached_property
    def _untrained(self) -> float:
        return self._validated()

    def cycles(
        self, believed: float, first: float, *, second: Literal["above", "below"], most: int
    ) -> MiniCycles:
        """Try peaks from a first one on; return what they give, beside what is believed."""
        found = try_peaks(self.loss, first, before=self.before, second=second, most=most)
        return MiniCycles(
            tuple(found),
            tuple(found.values()),
            self.before(),
            self.length,
            "training loss" if self.search.learn.dls.valid is None else "validation loss",
            believed,
        )

    def _validated(self) -> float:
        """Return the loss over as many validation batches as a cycle has updates."""
        learn = self.search.learn
        loader = learn.dls.valid
        found = {} if loader is None else measure(learn, loader, self.length)
        return found.get("valid_loss", math.nan)


class _Cycle(OneCycleSchedule):
    runs_in = frozenset(("range_test",))


class _Momentum(MomentumCycler):
    runs_in = frozenset(("range_test",))


class _Losses(Callback):
    """Keeps the loss of each update, unread."""

    stage = Stage.RECORD
    during = "train"
    runs_in = frozenset(("range_test",))

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def after_step(self, learn: Any) -> None:
        self.losses.append(learn.update_loss)


def _with_cycles(
    result: LRFindResult, cycles: MiniCycles, note: str, knees: dict[str, float | None]
) -> LRFindResult:
    """Put what cycles say before what the rules say, without the knee where there was no valley."""
    others = {rule: lr for rule, lr in result.suggestions.items() if rule != knee.__name__}
    lr = cycles.lr
    turn = None if result.lr_max == result.suggestions.get(knee.__name__) else result.lr_max
    lr_max = max(turn or lr, lr)  # a cycle that trains beyond the turn knows better
    return replace(
        result,
        suggestions={CYCLE_RULE: lr, **knees, **others},
        lr_max=lr_max,
        lr_min=lr_max / 10,
        reason=None,
        cycles=cycles,
        note=note,
    )


def _moves(reading: Reading, cycles: MiniCycles) -> bool:
    """Return whether a loss changes at all."""
    return reading.fall > 0 or any(loss != cycles.before for loss in cycles.losses)


def _bounds(believed: float, reading: Reading, end: float) -> str:
    """Say what is believed, and why."""
    breaks = "does not break" if reading.breaks is None else f"breaks at {reading.breaks:.1e}"
    return f"{believed:.1e} is only believed, the loss {breaks} (up to {end:.1e})"


def _few(length: int) -> int:
    return max(1, length // 5)


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if losses else math.nan


def _note(what: str, spent: int) -> str:
    return f"{what}; {spent} updates in all"


def check_one_test(confirm: int, varied: object) -> None:
    """Refuse to confirm what several tests suggest.

    Args:
        confirm: As for `RateSearch.find`.
        varied: What the tests vary; ``None`` for a single one.
    """
    if check_count("confirm", confirm, least=0) and varied is not None:
        raise ValueError("confirm is for one test, not for several: leave it out, or the sweep")
