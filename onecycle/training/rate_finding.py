"""From a range test to a rate: what is done where one test does not say enough, or is confirmed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import SGD

from onecycle.arguments import check_count
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.one_cycle import MomentumCycler, OneCycleSchedule
from onecycle.checkpoints.snapshot import preserved
from onecycle.core.callback import Callback, Stage
from onecycle.range_test.knee import MARGIN, Reading, knee, read
from onecycle.range_test.mini_cycles import MiniCycles, try_peaks
from onecycle.range_test.result import CYCLES, LRFindResult
from onecycle.range_test.rules import Rule
from onecycle.training.checking import measure

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: Runs updates with some callbacks, from the state that the learner is in.
Run = Callable[[Sequence[Callback], int], None]

#: A test of fewer updates is a look at a few rates, after which nothing else is done.
LEAST_UPDATES = 50
#: The cycles of a test that shows no valley, and of one that is confirmed; and how many of them
#: come first.
CYCLES_WITHOUT_VALLEY, FIRST_WITHOUT_VALLEY = 6, 3
CYCLES_CONFIRMED, FIRST_CONFIRMED = 10, 5
#: Where the loss neither fell nor broke, a second test begins at the last rate over the first of
#: these, so that it sees the fall, and ends at so many times the last rate.
BACK, FARTHER = 10.0, 1e4


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

        Where the rule `knee` is the first and sees no valley, short cycles decide: around the
        breaking rate over `MARGIN`, which holds without a valley too; and around the last rate
        where the loss still falls there. Where it neither falls nor breaks, a second test goes on
        to higher rates first.

        Args:
            start_lr: The first rate.
            end_lr: The last rate.
            confirm: The updates of each short cycle that confirms the suggestion; 0 for none.

        Raises:
            ValueError: If a cycle would have fewer than 10 updates.
        """
        check_count("confirm", confirm, least=10 if confirm else 0)
        result = self.test(start_lr, end_lr)
        reading = read(result.lrs, result.losses, stopped=result.stopped)
        goes_on = self.rules[:1] == (knee,) and result.num_it >= LEAST_UPDATES and not result.linear
        if reading.points == 0 or not (confirm or (goes_on and not _is_enough(reading, result))):
            return result
        spent, centre = result.num_it, result.suggestion
        if goes_on and centre is None and reading.breaks is None:
            second = self.test(end_lr / BACK, end_lr * FARTHER)
            reading = read(second.lrs, second.losses, stopped=second.stopped)
            spent += second.num_it
            if second.suggestion is not None:
                result, centre = second, second.suggestion
                if not confirm:
                    return replace(result, note=_note("a second test, to higher rates", spent))
        elif goes_on and not reading.has_ended and not confirm:
            centre = float(result.lrs[-1])
        return self._cycled(result, centre or self._guess(reading), confirm, spent)

    def _guess(self, reading: Reading) -> float:
        """Return the middle of the peaks that are tried where no rule names a rate."""
        if reading.breaks is not None and reading.falls < reading.breaks:
            return reading.breaks / MARGIN
        return 0.1 if isinstance(self.learn.opt, SGD) else 0.01  # what often is good

    def _cycled(
        self, result: LRFindResult, centre: float, confirm: int, spent: int
    ) -> LRFindResult:
        length = confirm or result.num_it // 2
        first, most = FIRST_WITHOUT_VALLEY, CYCLES_WITHOUT_VALLEY
        if confirm:
            first, most = FIRST_CONFIRMED, CYCLES_CONFIRMED
        most -= math.ceil((spent - result.num_it) / length)
        cycles = self.cycles(centre, length, first=first, most=most)
        what = "no valley" if result.suggestion is None else "no end of the fall"
        why = "" if confirm else f"the test shows {what}: "
        note = _note(f"{why}{len(cycles.peaks)} cycles of {length} updates", spent + cycles.cost)
        if cycles.lr is None:
            return replace(result, cycles=cycles, note=f"{note}; none of them trained")
        others = {rule: lr for rule, lr in result.suggestions.items() if rule != knee.__name__}
        knees = {} if result.suggestion is None else result.suggestions
        return replace(
            result,
            suggestions={CYCLES: cycles.lr, **knees, **others},
            lr_max=result.lr_max or cycles.lr,
            lr_min=result.lr_min or cycles.lr / 10,
            reason=None,
            cycles=cycles,
            note=note,
        )

    def cycles(self, centre: float, length: int, *, first: int, most: int) -> MiniCycles:
        """Run short cycles to peaks around a rate."""
        valid = self.learn.dls.valid
        training: dict[float, list[float]] = {}

        def loss_after(peak: float) -> float:
            kept = _Losses()
            with preserved(self.learn):
                self.run([*self._schedules(peak), kept], length)
                training[peak] = losses = [float(loss) for loss in kept.losses]
                if not losses or not all(map(math.isfinite, losses)):
                    return math.inf
                found = _mean(losses[-_few(length) :]) if valid is None else self._validated(length)
            return found if math.isfinite(found) else math.inf

        def before() -> float:
            if valid is not None:
                return self._validated(length)
            return _mean(training[min(training)][: _few(length)])

        found = try_peaks(loss_after, centre, before=before, first=first, most=most)
        return MiniCycles(
            tuple(found),
            tuple(found.values()),
            before(),
            length,
            "training loss" if valid is None else "validation loss",
        )

    def _schedules(self, peak: float) -> list[Callback]:
        rates = self.learn.groups.get("lr")
        ratios = [rate / rates[-1] if rates[-1] else 1.0 for rate in rates]
        cycle = _Cycle([peak * ratio for ratio in ratios])
        return [cycle] if self.moms is None else [cycle, _Momentum(self.moms)]

    def _validated(self, n_batches: int) -> float:
        """Return the loss over as many validation batches as a cycle has updates."""
        loader = self.learn.dls.valid
        found = {} if loader is None else measure(self.learn, loader, n_batches)
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


def _is_enough(reading: Reading, result: LRFindResult) -> bool:
    return result.suggestion is not None and reading.has_ended


def _few(length: int) -> int:
    return max(1, length // 5)


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses) if losses else math.nan


def _note(what: str, spent: int) -> str:
    return f"{what}; {spent} updates in all"
