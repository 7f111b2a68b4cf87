"""`Replan`: schedules that take the place of those of a fit, on the way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onecycle.callbacks.attribute_scheduler import AttributeScheduler
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.checkpoints.fit_plan import read_schedules
from onecycle.core.callback import Callback
from onecycle.schedules.shapes import Schedule, constant, cosine, join_steps

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class Replan(ParamScheduler):
    """Schedules that take the place of those of a fit that is running.

    From when it joins, no other `ParamScheduler` sets anything; where the fit lands, nor does an
    `AttributeScheduler`. What these schedules leave out stays as it is.

    Args:
        schedules: By name of the hyperparameter, one for each parameter group; ``None`` leaves a
            group alone.
        landing: Why the fit ends, for ``learn.stop_reason``, where it does so by this plan.
    """

    def __init__(
        self,
        schedules: Mapping[str, list[Schedule | None]],
        landing: str | None = None,
    ) -> None:
        super().__init__({})
        self.landing = landing
        self._replanned = dict(schedules)
        self._begun = self._cancelled = False

    def schedules(self, learn: Loop) -> dict[str, list[Schedule | None]]:
        """Return by name the schedules in force, one for each parameter group."""
        return self._replanned

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the length of the fit: the schedules are state, which a checkpoint holds."""
        return {"fit.n_updates_planned": learn.n_updates_planned}

    def join(self, learn: Loop) -> None:
        """Take the place of every schedule of the running fit."""
        kinds = (ParamScheduler, AttributeScheduler) if self.landing else (ParamScheduler,)
        learn.cbs = [callback for callback in learn.cbs if not isinstance(callback, Replan)]
        held: list[Callback] = [cb for cb in learn.cbs if isinstance(cb, kinds)]
        learn.join_fit(self, held)

    def _compute(self, learn: Loop) -> None:
        super()._compute(learn)
        if self.landing and not self._begun:
            learn.plan_pass()  # here, where it is certain which batches wait for an update
        self._begun = True

    def after_cancel_fit(self, learn: Loop) -> None:
        """Leave the last word to what cancelled the fit."""
        self._cancelled = True

    def after_fit(self, learn: Loop) -> None:
        """Say that the fit has landed, if nothing else ended it."""
        if self.landing and learn.updates_left() == 0 and not self._cancelled:
            learn.stop_reason = self.landing

    def cleanup_fit(self, learn: Loop) -> None:
        """Say so, if the fit was over already."""
        if self.landing and not self._begun:
            log.warning("land: the fit had no batch left to land with: call it after the fit")

    def state_dict(self) -> dict[str, Any]:
        """Return the schedules, and whether their first batch has come."""
        schedules = {
            name: [None if schedule is None else schedule.to_dict() for schedule in each]
            for name, each in self._replanned.items()
        }
        return {"schedules": schedules, "landing": self.landing, "begun": self._begun}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Replan:
        """Make what `state_dict` described."""
        replan = cls({})
        replan.load_state_dict(state)
        return replan

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._replanned = read_schedules(state["schedules"])
        self.landing, self._begun, self._planned = state["landing"], state["begun"], None


def anneal(value: float, end: float, *, done: int, updates: int) -> Schedule:
    """Go from a value to another on half a cosine, from the middle of a fit to its end.

    Args:
        value: The value at the first of the updates that are left.
        end: The value at the last of them, if there are two or more.
        done: The updates done before.
        updates: The updates that are left, at least 1.

    Returns:
        A schedule over all ``done + updates`` updates.
    """
    if updates == 1:
        return constant(value)
    phases = [(done, constant(value)), (updates - 1, cosine(value, end))]
    return join_steps(done + updates, phases)


def schedulers_of(learn: Loop) -> list[ParamScheduler]:
    """Return the callbacks of a fit whose schedules can be told, as those of torch cannot."""
    return [
        callback
        for callback in learn.cbs
        if isinstance(callback, ParamScheduler)
        and not isinstance(callback, Replan)
        and callback.schedules(learn)
    ]


def tail(learn: Loop, rates: list[float] | None) -> Replan:
    """Make every scheduled hyperparameter go from where it is to where its new schedule ends.

    Args:
        learn: The learner, with everything restored and the new length planned.
        rates: The learning rates to end with, where no schedule drives them.
    """
    done = learn.n_updates
    left = (learn.n_updates_scheduled or 1) - done
    ends: dict[str, list[float | None]] = {} if rates is None else {"lr": [*rates]}
    for scheduler in schedulers_of(learn):
        for name, each in scheduler.schedules(learn).items():
            ends[name] = [None if schedule is None else schedule(1.0) for schedule in each]
    schedules: dict[str, list[Schedule | None]] = {
        name: [
            None if end is None else anneal(value, end, done=done, updates=left)
            for value, end in zip(learn.groups.get(name), each, strict=True)
        ]
        for name, each in ends.items()
    }
    return Replan(schedules)
