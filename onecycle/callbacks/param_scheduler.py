"""Schedules at work: `ParamScheduler` sets hyperparameters by the position in the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle.arguments import check_callable, check_text, shown
from onecycle.core.callback import Callback, Run, Stage
from onecycle.errors import ScheduleConflictError
from onecycle.optim.groups import check_value
from onecycle.schedules.shapes import Array, Schedule

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: How many updates' values are computed at once: bounds the memory of a fit of any length.
BLOCK = 1024


class ParamScheduler(Callback):
    """Drive hyperparameters of the optimizer by schedules of the position in the fit.

    The value in force for update ``u`` of ``U`` is ``schedule(u / (U - 1))``: the first update has
    the first value, the last one exactly the last. It is set before the batch, so that every other
    callback sees it. An update that is skipped or postponed does not advance the position.

    Args:
        schedules: By name of the hyperparameter (``"lr"``, ``"momentum"``, ``"weight_decay"``,
            ``"beta2"``, ``"eps"``, ...): one schedule for every parameter group, or a sequence with
            one for each group, in which ``None`` leaves a group alone.

    Raises:
        TypeError: If something is no schedule.
        ValueError: Before the first batch, if the optimizer has no such hyperparameter, the number
            of schedules is not that of the groups, or a value is negative or not finite.
        ScheduleConflictError: If another callback schedules the same one of the same group.

    Example:
        >>> from onecycle import ParamScheduler, linear
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=3)
        >>> learn.fit(1, cbs=[ParamScheduler({"weight_decay": linear(0.1, 0.0)})])
        >>> learn.groups.get("weight_decay")
        [0.0]
    """

    stage = Stage.PREPARE
    during = "train"
    runs_in = frozenset(("fit",))

    def __init__(self, schedules: Mapping[str, Schedule | Sequence[Schedule | None]]) -> None:
        self._given = _checked_schedules("schedules", schedules)
        self._planned: int | None = None
        self._start = self._stop = self._n_groups = 0
        self._rows: list[tuple[Callable[[float], None], list[float]]] = []

    def schedules(self, learn: Loop) -> dict[str, list[Schedule | None]]:
        """Return by name the schedules in force, one for each parameter group."""
        n = len(learn.groups)
        found: dict[str, list[Schedule | None]] = {}
        for name, given in self._given.items():
            each: list[Schedule | None] = (
                [given] * n if isinstance(given, Schedule) else list(given)
            )
            if len(each) != n:
                raise ValueError(
                    f"expected one schedule of {name}, or {n}, one for each parameter group; "
                    f"got {len(each)}\n{learn.groups.table()}"
                )
            found[name] = each
        return found

    def targets(self, learn: Loop) -> set[tuple[str, int]]:
        """Return what this callback schedules: names with the index of the group."""
        return {
            (learn.groups.canonical(name), g)
            for name, each in self.schedules(learn).items()
            for g, schedule in enumerate(each)
            if schedule is not None
        }

    def before_fit(self, learn: Loop) -> None:
        """Refuse what cannot work, before anything runs."""
        learn.pos  # noqa: B018 - raises where the number of updates cannot be known
        for name in self.schedules(learn):
            for g in range(len(learn.groups)):
                learn.groups.slots(name, g)
        learn.groups.make_ready({name for name, _ in self.targets(learn)})
        self.refuse_conflicts(learn)
        last = (learn.n_updates_planned or 1) - 1
        sample = np.linspace(0, last, BLOCK).round() / max(1, last)  # all updates of a short fit
        for name, each in self.schedules(learn).items():
            for schedule in filter(None, each):
                _checked_values(name, schedule, sample)
        self._planned = None

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the schedules, by the one name of what each drives."""
        return {
            f"schedule.{learn.groups.canonical(name)}": each
            for name, each in self.schedules(learn).items()
        }

    def _meets(self, other: Callback) -> bool:
        """Tell whether both take part in one run: a short cycle of a range test does so alone."""
        runs: tuple[Run, ...] = ("fit", "range_test")
        return any(self.takes_part_in(run) and other.takes_part_in(run) for run in runs)

    def refuse_conflicts(self, learn: Loop) -> None:
        """Refuse another callback that schedules the same hyperparameter of the same group."""
        mine = self.targets(learn)
        for other in learn.cbs:
            if isinstance(other, ParamScheduler) and other is not self and self._meets(other):
                for name, g in sorted(mine & other.targets(learn)):
                    raise ScheduleConflictError(
                        f"{type(self).__name__} and {type(other).__name__} both schedule {name!r} "
                        f"of parameter group {g}: remove one of them from cbs"
                    )

    def before_batch(self, learn: Loop) -> None:
        """Put the values of this update in force."""
        update = learn.n_updates
        if (
            learn.n_updates_scheduled != self._planned
            or not self._start <= update < self._stop
            or len(learn.opt.param_groups) != self._n_groups
        ):
            self._compute(learn)
        i = update - self._start
        for set_value, values in self._rows:
            set_value(values[i])

    def _compute(self, learn: Loop) -> None:
        """Compute the values of the next block of updates."""
        self._planned, self._n_groups = learn.n_updates_scheduled, len(learn.opt.param_groups)
        self._start = learn.n_updates
        self._stop = self._start + BLOCK
        last = max(1, (self._planned or 1) - 1)
        positions = np.minimum(1.0, np.arange(self._start, self._stop) / last)
        self._rows = []
        for name, each in self.schedules(learn).items():
            for g, schedule in enumerate(each):
                if schedule is None:
                    continue
                row = _checked_values(name, schedule, positions).tolist()
                self._rows += [(slot.set, row) for slot in learn.groups.slots(name, g)]


class PlannedScheduler(ParamScheduler):
    """Drive hyperparameters by schedules that must know the number of updates of the fit.

    Args:
        make: Called with the number of updates that are planned; returns what `ParamScheduler`
            takes.

    Example:
        >>> from onecycle import PlannedScheduler, constant, join_steps, linear
        >>> from onecycle.testing import toy_learner
        >>> def warm_up(n):
        ...     return {"lr": join_steps(n, [(4, linear(0.0, 0.1)), (1, constant(0.1))])}
        >>> learn = toy_learner(n_batches=6)
        >>> learn.fit(1, cbs=[PlannedScheduler(warm_up)])
        >>> learn.recorder.history["lr"].values.round(3).tolist()
        [0.0, 0.025, 0.05, 0.075, 0.1, 0.1]
    """

    def __init__(
        self, make: Callable[[int], Mapping[str, Schedule | Sequence[Schedule | None]]]
    ) -> None:
        super().__init__({})
        check_callable("make", make, "n_updates")
        self._make = make

    def schedules(self, learn: Loop) -> dict[str, list[Schedule | None]]:
        """Return by name the schedules in force, one for each parameter group."""
        made = self._make(learn.n_updates_planned or 1)
        self._given = _checked_schedules(f"what make {shown(self._make)} returns", made)
        return super().schedules(learn)


def _checked_schedules(
    where: str, schedules: Mapping[str, Schedule | Sequence[Schedule | None]]
) -> dict[str, Schedule | Sequence[Schedule | None]]:
    if not isinstance(schedules, Mapping):
        raise TypeError(
            f"{where} must be a dict from names to schedules, such as "
            f'{{"lr": linear(0.1, 0.0)}}; got {shown(schedules)}'
        )
    for name, given in schedules.items():
        _check_schedules(check_text(f"a name in {where}", name), given)
    return dict(schedules)


def _check_schedules(name: str, given: object) -> None:
    each = given if isinstance(given, list | tuple) else [given]
    if given is None or not all(part is None or isinstance(part, Schedule) for part in each):
        raise TypeError(
            f"expected a Schedule of {name}, such as linear(1.0, 0.0), or a list with one or None "
            f"for each parameter group; got {shown(given)}"
        )


def _checked_values(name: str, schedule: Schedule, positions: Array) -> Array:
    values = schedule(positions)
    try:
        check_value(name, values.min())
        check_value(name, values.max())
    except ValueError as error:
        raise ValueError(f"{error}, from {schedule}") from None
    return values
