"""`MaxTime`: the time decides, once, how long a fit is."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_positive
from onecycle.callbacks.checkpoint import Checkpoint
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.callbacks.validate import Validate
from onecycle.core.callback import Callback, Stage
from onecycle.data.held import hold_loaders
from onecycle.data.lengths import least
from onecycle.processes import Processes
from onecycle.range_test.probe import ValidProbe

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: The updates that a fit has until the time has decided, where nothing else limits it.
UNDECIDED = 10**9
#: The time decides after so many updates and this share of it, or after that share alone.
_UPDATES, _SHARE, _LARGEST_SHARE = 10, 0.01, 0.1
#: The share of the time that is kept in reserve.
_RESERVE = 0.02
#: The validation batches that are timed, where no validation has run before; and one before them.
_TRIED = 4


class MaxTime(Callback):
    """Shorten a fit, once, to the updates for which there is time. What ``max_time=`` adds to it.

    The decision comes after ten updates or more, when a hundredth of the time is used; or when a
    tenth is. Until then the schedules run as without it. The time of an update is that of those
    after the first one. What is left is shared out to updates, the validations and the checkpoints
    that come with them, a last one of each, and a reserve of two hundredths. Each is timed: where
    no validation has run yet by a few of its batches, and a checkpoint by writing one. Another one
    follows the decision: a fit that is resumed from it has the same length, whatever the clock
    says. Time that an interrupted fit took before the decision counts. Several processes go by the
    clock of the first one.

    Args:
        seconds: The time, above 0.

    Raises:
        ValueError: Before the first batch, if a scheduler has a length of its own, or the batch
            size changes on the way.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> learn.fit_one_cycle(2, 0.05, max_time="2h")  # there is time for all
        >>> learn.n_updates
        16
    """

    stage = Stage.SAVE
    hears_last = True
    during = "train"

    def __init__(self, seconds: float) -> None:
        self.seconds = check_positive("seconds", seconds)
        self._is_decided = False
        self._used = 0.0  # before the fit was resumed
        self._began = 0.0
        self._processes: Processes | None = None
        self._first: tuple[float, int] | None = None  # when the first update was made, and which
        self._validated = 0.0  # seconds, since then
        self._n_validated = 0
        self._validation_began = 0.0

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the time."""
        return {"seconds": self.seconds}

    def before_fit(self, learn: Loop) -> None:
        """Look at the clock."""
        for other in learn.cbs:
            if isinstance(other, ParamScheduler) and not other.schedules(learn):
                raise ValueError(
                    f"max_time= cannot shorten a fit with {type(other).__name__}, which has a "
                    "length of its own: use a Schedule, such as torch_one_cycle"
                )
        if len(learn.batch_sizes.changes) > 1:
            raise ValueError(
                "max_time= counts on updates that all take as long, and BatchSizeSchedule lets "
                "their batches grow: limit the fit by n_epoch or max_updates instead"
            )
        self._is_decided, self._used, self._first = False, 0.0, None
        self._validated, self._n_validated = 0.0, 0
        self._processes = learn.processes
        self._began = self._now()

    def _now(self) -> float:
        """Look at the clock; of several processes at that of the first, so that they agree."""
        if self._processes is None:
            return time.monotonic()
        return self._processes.from_first(time.monotonic)

    def before_validate(self, learn: Loop) -> None:
        """Time the validation."""
        self._validation_began = self._now()

    def after_validate(self, learn: Loop) -> None:
        """Time the validation."""
        self._validated += self._now() - self._validation_began
        self._n_validated += not learn.valid_set

    def after_batch(self, learn: Loop) -> None:
        """Decide, if it is time."""
        tried = learn.n_updates + learn.n_skipped
        if self._is_decided or learn.batches_in_window or learn.is_cancelled or not tried:
            return
        now = self._now()
        used = self._used + now - self._began
        if self._first is None:
            self._first, self._validated, self._n_validated = (now, tried), 0.0, 0
        is_soon = tried < _UPDATES or used < _SHARE * self.seconds
        if is_soon and used < _LARGEST_SHARE * self.seconds:
            return
        began, first = self._first
        an_update = (now - began - self._validated) / max(1, tried - first) or used / tried
        self._decide(learn, tried, an_update)

    def after_fit(self, learn: Loop) -> None:
        """Say if it took longer."""
        if (used := self._spent()) > self.seconds:
            log.warning("max_time: the fit took %.4g s, and was to take %g s", used, self.seconds)

    def _spent(self) -> float:
        return self._used + self._now() - self._began

    def _decide(self, learn: Loop, tried: int, an_update: float) -> None:
        checkpoints = [each for each in learn.cbs if isinstance(each, Checkpoint)]
        saves = [(self._save(each, learn), each.cadences) for each in checkpoints]
        costs = [(cost, *cadence) for cost, cadences in saves for cadence in cadences]
        validate = next((each for each in learn.cbs if isinstance(each, Validate)), None)
        every = (1.0, "epoch") if validate is None else validate.cadence
        costs.append((self._a_validation(learn, validate), *every))
        left = self.seconds * (1 - _RESERVE) - self._spent()
        whole = learn.epoch_length(learn.epoch)
        per_epoch = math.inf if whole is None else math.ceil(whole / learn.batches_per_update)
        for cost, number, unit in costs:
            an_update += cost / (number * per_epoch) if unit == "epoch" else 0.0
            an_update += cost / number if unit == "update" else 0.0
            left -= cost * (1 + (max(0.0, left) / (60 * number) if unit == "minute" else 0.0))
        more = max(0, int(left / an_update))
        self._is_decided = True
        if learn.n_updates_planned is None or learn.n_updates + more < learn.n_updates_planned:
            learn.max_updates = tried + more
            learn.n_updates_planned = learn.n_updates_scheduled = learn.n_updates + more
            learn.n_iter = least(learn.n_iter, learn.iter + 1 + more * learn.batches_per_update)
            log.warning(
                "max_time: the fit has %d updates, for which %g s are enough",
                tried + more,
                self.seconds,
            )
        for checkpoint in checkpoints:
            checkpoint.save(learn)

    def _save(self, checkpoint: Checkpoint, learn: Loop) -> float:
        """Write a checkpoint, and return the seconds that it took."""
        began = self._now()
        checkpoint.save(learn)
        return self._now() - began

    def _a_validation(self, learn: Loop, validate: Validate | None) -> float:
        """Return the seconds of a validation on all sets."""
        if self._n_validated:
            return self._validated / self._n_validated
        limit = None if validate is None else validate.batches
        lengths = [least(learn.count_batches(dl), limit) for dl in learn.dls.valid_sets().values()]
        if not lengths:
            return 0.0
        if None in lengths:
            log.warning("max_time: a validation loader has no length, and its time is not counted")
        put_back = hold_loaders(learn.dls.valid)
        try:
            probe, times = ValidProbe(learn), [self._now()]
            for _ in range(1 + _TRIED):
                probe.measure(learn)
                times.append(self._now())
            probe.close()
        finally:
            put_back()
        return (times[-1] - times[1]) / _TRIED * sum(length or 0 for length in lengths)

    def state_dict(self) -> dict[str, Any]:
        """Return whether the length is decided, and if not, the time that is used."""
        return {"is_decided": self._is_decided, "used": 0.0 if self._is_decided else self._spent()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._is_decided, self._used = state["is_decided"], state["used"]
        self._began = self._now()
