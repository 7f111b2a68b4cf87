"""`TorchScheduler`: any scheduler of ``torch.optim.lr_scheduler`` drives a fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
)

from onecycle.arguments import check_callable, check_one_of, shown
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.data.lengths import epochs_in
from onecycle.errors import ScheduleConflictError
from onecycle.optim.build import ready_state
from onecycle.optim.groups import Slot
from onecycle.schedules.of_torch import cycles_momentum, follows_a_metric, parts
from onecycle.schedules.shapes import Schedule

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class TorchScheduler(ParamScheduler):
    """Drive the learning rate by a scheduler of torch.

    The scheduler is made anew for every fit, from the rate of that fit, and advances before the
    batch: the first update or epoch has its first value, and it is never stepped beyond the last.
    An update that is skipped or postponed does not advance it. What it adds to the optimizer
    (``initial_lr`` and the like) is gone after the fit.

    A ``OneCycleLR`` must be as long as the fit. Where another scheduler with a length of its own,
    such as ``CosineAnnealingLR``, is longer or shorter, the log says what that means.

    Args:
        make: Called with the optimizer when a fit begins; returns the scheduler. Meanwhile the
            optimizer has one group for each of the splitter's, also where norms and biases stand
            in groups of their own: a scheduler that takes a list takes a value for each of the
            splitter's groups.
        every: When it advances: after every ``"update"`` or every ``"epoch"``.

    Raises:
        TypeError: Before the first batch, if no scheduler is made, or one that follows a metric.
        ValueError: Before the first batch, if a ``OneCycleLR`` has another length than the fit.
        ScheduleConflictError: If another callback schedules the learning rate too, or the
            momentum where the scheduler cycles it.

    Example:
        >>> from torch.optim.lr_scheduler import StepLR
        >>> from onecycle import TorchScheduler
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=2)
        >>> halve = TorchScheduler(lambda opt: StepLR(opt, 1, gamma=0.5), every="epoch")
        >>> learn.fit(3, lr=0.1, cbs=[halve])
        >>> learn.recorder.history["lr"].values.tolist()
        [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    """

    def __init__(
        self,
        make: Callable[[Optimizer], LRScheduler],
        *,
        every: Literal["update", "epoch"] = "update",
    ) -> None:
        super().__init__({})
        if not callable(make) or isinstance(make, LRScheduler):
            raise TypeError(
                "make: TorchScheduler takes a function that makes the scheduler, such as "
                f"lambda opt: StepLR(opt, 30); got {shown(make)}"
            )
        if not (isinstance(make, type) and issubclass(make, LRScheduler)):
            check_callable("make", make, "opt")
        check_one_of("every", every, ("update", "epoch"))
        self.every = every
        self._make = make
        self._scheduler: LRScheduler | None = None
        self._state: dict[str, Any] = {}
        self._steps, self._is_checked = 0, False
        self._wrapper: Any = None

    def schedules(self, learn: Loop) -> dict[str, list[Schedule | None]]:
        """Return no schedule: the scheduler keeps its own."""
        return {}

    def targets(self, learn: Loop) -> set[tuple[str, int]]:
        """Return what the scheduler drives: names with the index of the group."""
        return {(name, g) for name in self._driven() for g in range(len(learn.groups))}

    def _driven(self) -> tuple[str, ...]:
        has_momentum = self._scheduler is not None and cycles_momentum(self._scheduler)
        return ("lr", "momentum") if has_momentum else ("lr",)

    def refuse_conflicts(self, learn: Loop) -> None:
        """Refuse another callback that schedules the same, a second one of this kind above all."""
        if any(isinstance(other, TorchScheduler) and other is not self for other in learn.cbs):
            raise ScheduleConflictError(
                "two TorchSchedulers both schedule 'lr' of every parameter group: make one "
                "TorchScheduler of both, whose function returns ChainedScheduler([...]), in which "
                "they multiply, or SequentialLR(...), in which one follows the other"
            )
        super().refuse_conflicts(learn)

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return what makes the scheduler, and what it made for this fit."""
        return {"make": self._make, "every": self.every, "scheduler": self._scheduler}

    def before_fit(self, learn: Loop) -> None:
        """Make the scheduler, and refuse what cannot work, before anything runs."""
        self._scheduler, self._steps = None, 0
        self._wrapper, self._is_checked = None, False
        self.refuse_conflicts(learn)
        groups = learn.opt.param_groups
        # A scheduler would begin from the rate that an earlier one, of somebody else, began from.
        self._foreign = [(g, g.pop("initial_lr")) for g in groups if "initial_lr" in g]
        self._keys = {key for group in groups for key in group}
        self._values = _driven_values(learn)
        self._was_wrapped = "step" in vars(learn.opt)
        try:
            with _one_group_each(learn):
                self._scheduler = _checked(self._make(learn.opt), learn.opt)
            if not self._was_wrapped:  # torch's wrapper would keep a shorter step from being taken
                self._wrapper = vars(learn.opt).pop("step", None)
            self._added = {key for group in groups for key in group} - self._keys
            self._spread(learn)
            self.refuse_conflicts(learn)
            ready_state(learn.opt)  # it may have switched momentum on
        except BaseException:
            self._undo(learn)
            raise

    def before_epoch(self, learn: Loop) -> None:
        """Refuse a scheduler of another length, now that every callback has set that of the fit."""
        if self._is_checked or self._scheduler is None:
            return
        by_update = self.every == "update"
        n = learn.n_updates_planned if by_update else _epochs(learn)
        try:
            _check_length(self._scheduler, n, f"{self.every}s")
        except ValueError:
            self._undo(learn)
            raise
        self._is_checked = True

    def before_batch(self, learn: Loop) -> None:
        """Advance the scheduler to this update or epoch."""
        done = learn.n_updates if self.every == "update" else learn.epoch
        if self._scheduler is None or not learn.n_updates:
            return  # torch warns of a step before the optimizer's first
        if self._steps < done:
            with _one_group_each(learn), _wrapped_step(learn.opt, self._wrapper):
                while self._steps < done:
                    self._scheduler.step()
                    self._steps += 1
            self._spread(learn)

    def _spread(self, learn: Loop) -> None:
        """Give the groups that the scheduler does not see what those beside them have."""
        for g, member in enumerate(learn.groups.members):
            for name in self._driven() if len(member) > 1 else ():
                first, *others = learn.groups.slots(name, g)
                for slot in others:
                    slot.set(first.get())

    def cleanup_fit(self, learn: Loop) -> None:
        """Take out of the optimizer what the scheduler put there, but for the values in force."""
        if self._scheduler is None:
            return
        self._state = self.state_dict()
        self._clean(learn.opt)

    def _undo(self, learn: Loop) -> None:
        """Leave the optimizer as it was, values in force included."""
        self._added = {key for group in learn.opt.param_groups for key in group} - self._keys
        self._clean(learn.opt)
        for slot, value in self._values:
            slot.set(value)

    def _clean(self, opt: Optimizer) -> None:
        self._scheduler = None
        for group in opt.param_groups:
            for key in self._added & group.keys():
                del group[key]
        for group, initial_lr in self._foreign:
            group["initial_lr"] = initial_lr
        if not self._was_wrapped:
            vars(opt).pop("step", None)  # a wrapper that only watches the order of steps

    def state_dict(self) -> dict[str, Any]:
        """Return how far the scheduler is, and its own state."""
        if self._scheduler is None:
            return self._state
        return {"steps": self._steps, "scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on, in a fit that has begun, where the state was taken."""
        self._state = state
        if self._scheduler is not None:
            self._steps = state["steps"]
            self._scheduler.load_state_dict(state["scheduler"])


@contextmanager
def _one_group_each(learn: Loop) -> Iterator[None]:
    """Show the optimizer with one group for each of the splitter's, the first where it has more."""
    opt, members = learn.opt, learn.groups.members
    every = opt.param_groups
    if len(every) == len(members):
        yield
        return
    opt.param_groups = [every[member[0]] for member in members]
    try:
        yield
    finally:
        opt.param_groups = every


@contextmanager
def _wrapped_step(opt: Optimizer, wrapper: Any) -> Iterator[None]:
    """Show a scheduler its wrapper of the optimizer's step, by which it knows of updates.

    That there were some is said here: the loop made them, or the run that is resumed.
    """
    opt._opt_called = True  # type: ignore[attr-defined]  # torch's
    if wrapper is not None:
        vars(opt)["step"] = wrapper
    try:
        yield
    finally:
        if wrapper is not None:
            del vars(opt)["step"]


def _driven_values(learn: Loop) -> list[tuple[Slot, float]]:
    """Return what a scheduler may drive, in every place, with the value in force."""
    names = ("lr", "momentum") if learn.groups.has_momentum() else ("lr",)
    slots = (learn.groups.slots(name, g) for name in names for g in range(len(learn.groups)))
    return [(slot, slot.get()) for places in slots for slot in places]


def _checked(scheduler: object, opt: Optimizer) -> LRScheduler:
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            "expected the function of TorchScheduler to return a scheduler of "
            f"torch.optim.lr_scheduler; got {shown(scheduler)}"
        )
    if follows_a_metric(scheduler):
        raise TypeError(
            f"{type(scheduler).__name__} follows a metric: use the callback ReduceLROnPlateau"
        )
    if getattr(scheduler, "optimizer", opt) is not opt:
        raise ValueError(
            f"{type(scheduler).__name__} drives another optimizer: make it of the one that the "
            "function of TorchScheduler is given"
        )
    return scheduler


# How long it is ---------------------------------------------------------------------------


def _epochs(learn: Loop) -> int | None:
    """Return how many epochs the fit will have; ``None`` if that cannot be known."""
    if learn.max_updates is None:
        return None if learn.n_epoch is None else math.ceil(learn.n_epoch)
    needed = epochs_in(learn.epoch_lengths(), learn.max_updates, learn.batches_per_update)
    if needed is None or learn.n_epoch is None:
        return needed
    return min(needed, math.ceil(learn.n_epoch))


def _check_length(scheduler: LRScheduler, n: int | None, units: str) -> None:
    """Refuse a ``OneCycleLR`` of another length than its part of the fit; warn of others.

    Args:
        scheduler: The scheduler, new.
        n: How many values it has to give; ``None`` if that cannot be known.
        units: What each of them is for: updates or epochs.

    Raises:
        ValueError: If a cycle would break off, or jump back up and fail.
    """
    for part, steps in parts(scheduler, math.inf if n is None else n):
        if isinstance(part, OneCycleLR) and part.total_steps != steps:
            cycle = f"OneCycleLR(total_steps={part.total_steps})"
            if steps == math.inf:
                raise ValueError(
                    f"{cycle} must have as many {units}, and the number of this fit's cannot be "
                    "known: give max_updates= or steps_per_epoch="
                )
            raise ValueError(
                f"{cycle} has {steps} {units} in this fit: it would break off, or jump back up and "
                f"fail. Give it total_steps={steps}, or use learn.fit_one_cycle(..., "
                'policy="torch"), which is as long as the fit'
            )
        if problem := _problem(part, steps, units):
            log.warning("TorchScheduler: %s", problem)


#: By kind the argument that is its length, and what its rate does beyond it.
_LENGTHS: dict[type[LRScheduler], tuple[str, str]] = {
    CosineAnnealingLR: ("T_max", "its rate rises again after them"),
    PolynomialLR: ("total_iters", "its rate is 0 after them"),
    LinearLR: ("total_iters", ""),
    ConstantLR: ("total_iters", ""),
}


def _problem(part: LRScheduler, steps: float, units: str) -> str:
    """Say what is odd about the length of a part that has so many steps; nothing if none is."""
    argument, beyond = _LENGTHS.get(type(part), ("", ""))
    if not argument or steps in (0, math.inf):
        return ""
    length = getattr(part, argument)
    if length > steps:
        said = "it does not come to its end"
    elif beyond and length < steps - 1:
        said = beyond
    else:
        return ""
    return f"{type(part).__name__}({argument}={length}) has {steps} {units}: {said}"
