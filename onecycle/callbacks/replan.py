"""The plan of a fit: what is stored and compared, and `Replan`, which changes it on the way."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from onecycle.callbacks.attribute_scheduler import AttributeScheduler
from onecycle.callbacks.gradients import GradientAccumulation
from onecycle.callbacks.one_cycle import OneCycleSchedule
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.core.callback import Callback, Stage
from onecycle.data.loaders import n_batches
from onecycle.schedules.shapes import Schedule, constant, cosine, join_steps

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: How a resumed fit goes on by a plan that has changed.
Extend = Literal["keep", "restretch", "tail"]

_SCHEDULE_OF = "the schedule of "
_N_UPDATES = "the number of planned updates"
_MAY_CHANGE = {"n_epoch", "max_updates", "batches_per_update", _N_UPDATES, "lr", "lr_max", "policy"}


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
        self._replanned = _read(state["schedules"])
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


# The plan ---------------------------------------------------------------------------------


def plan_of(learn: Loop) -> dict[str, Any]:
    """Return what a resumed fit must have in common with the interrupted one, or extend.

    Args:
        learn: The learner after ``before_fit`` at `Stage.PREPARE`.

    Returns:
        Plain values by name; schedules as dicts where they can be stored, else as text.
    """
    groups = learn.groups
    plan: dict[str, Any] = {
        "n_epoch": learn.n_epoch,
        "steps_per_epoch": learn.steps_per_epoch,
        "max_updates": learn.max_updates,
        "the number of training batches": n_batches(learn.dls.train),
        "batches_per_update": learn.batches_per_update,
        _N_UPDATES: learn.n_updates_planned,
        "the optimizer": type(learn.opt).__name__,
        "the number of parameters of each group": [
            len(groups.params(g)) for g in range(len(groups))
        ],
        "lr": groups.get("lr"),
    }
    if "weight_decay" in groups.names():
        plan["weight_decay"] = groups.get("weight_decay")
    schedulers = schedulers_of(learn)
    for scheduler in schedulers:
        if isinstance(scheduler, OneCycleSchedule):
            plan["lr_max"] = groups.expand("lr_max", scheduler.lr_max)
            plan["policy"] = scheduler.policy if isinstance(scheduler.policy, str) else "a Schedule"
        for name, each in scheduler.schedules(learn).items():
            plan[_SCHEDULE_OF + name] = [_stored(schedule) for schedule in each]
    told = (GradientAccumulation, Replan)  # the first by batches_per_update
    preparing = [cb for cb in learn.cbs if cb.stage is Stage.PREPARE and cb.takes_part_in("fit")]
    # One made from functions has no name that could be compared.
    plan["the preparing callbacks"] = [
        type(cb).__name__
        for cb in preparing
        if type(cb) is not Callback and cb not in schedulers and not isinstance(cb, told)
    ]
    return plan


def schedulers_of(learn: Loop) -> list[ParamScheduler]:
    """Return the callbacks of a fit whose schedules can be told, as those of torch cannot."""
    return [
        callback
        for callback in learn.cbs
        if isinstance(callback, ParamScheduler)
        and not isinstance(callback, Replan)
        and callback.schedules(learn)
    ]


def differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two plans."""
    return [name for name in {**was, **now} if was.get(name) != now.get(name)]


def may_change(names: list[str]) -> bool:
    """Tell whether a fit can go on although its plan differs in these."""
    return all(name in _MAY_CHANGE or name.startswith(_SCHEDULE_OF) for name in names)


def described(names: list[str], was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Show what differs between two plans; schedules only where nothing shorter tells them."""
    plain = [name for name in names if not name.startswith(_SCHEDULE_OF)]
    return "; ".join(f"{n} was {was.get(n)} and is {now.get(n)}" for n in plain or names)


# Extending --------------------------------------------------------------------------------


def updates_of(learn: Loop, tried: int, epoch: int, batches: int) -> int | None:
    """Count the updates of a fit that goes on in the middle.

    Args:
        learn: The learner, as the fit begins.
        tried: The updates done or skipped before.
        epoch: The epoch in which it goes on.
        batches: The batches of it that are done.

    Returns:
        The updates tried before and those to come; ``None`` if that cannot be known.
    """
    lengths = [n_batches(learn.dls.train), learn.steps_per_epoch]
    known = [length for length in lengths if length is not None]
    if not known or learn.n_epoch is None:
        return learn.max_updates
    whole = math.ceil(min(known) / learn.batches_per_update)
    rest = math.ceil((min(known) - batches) / learn.batches_per_update)
    total = tried + rest + (learn.n_epoch - epoch - 1) * whole
    return total if learn.max_updates is None else min(total, learn.max_updates)


def kept(plan: Mapping[str, Any]) -> Replan:
    """Make the schedules of a stored plan go on.

    Raises:
        ValueError: If one of them could not be stored.
    """
    stored = {
        name.removeprefix(_SCHEDULE_OF): each
        for name, each in plan.items()
        if name.startswith(_SCHEDULE_OF)
    }
    for name, each in stored.items():
        for text in each:
            if isinstance(text, str):
                raise ValueError(
                    f'extend="keep" needs the old schedule of {name}, {text}, which could not be '
                    "stored: declare its class with a kind, or choose another way to extend"
                )
    return Replan(_read(stored))


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


def _read(stored: Mapping[str, list[Any]]) -> dict[str, list[Schedule | None]]:
    return {
        name: [None if each is None else Schedule.from_dict(each) for each in given]
        for name, given in stored.items()
    }


def _stored(schedule: Any) -> Any:
    try:
        return None if schedule is None else schedule.to_dict()
    except TypeError:  # its class has no kind
        return repr(schedule)
