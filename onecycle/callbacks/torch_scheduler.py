"""`TorchScheduler`: any scheduler of ``torch.optim.lr_scheduler`` drives a fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal
from warnings import catch_warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from onecycle.arguments import check_one_of
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.schedules.shapes import Schedule

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class TorchScheduler(ParamScheduler):
    """Drive the learning rate by a scheduler of torch.

    The scheduler is made anew for every fit, from the rate of that fit, and advances before the
    batch: the first update or epoch has its first value, and it is never stepped beyond the last.
    An update that is skipped or postponed does not advance it. What it adds to the optimizer
    (``initial_lr`` and the like) is gone after the fit.

    Args:
        make: Called with the optimizer when a fit begins; returns the scheduler. One that takes a
            list takes a value for each of ``learn.opt.param_groups``.
        every: When it advances: after every ``"update"`` or every ``"epoch"``.

    Raises:
        TypeError: Before the first batch, if no scheduler is made, or one that follows a metric.
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
                "TorchScheduler takes a function that makes the scheduler, such as "
                f"lambda opt: StepLR(opt, 30); got {make!r}"
            )
        check_one_of("every", every, ("update", "epoch"))
        self.every = every
        self._make = make
        self._scheduler: LRScheduler | None = None
        self._state: dict[str, Any] = {}
        self._steps, self._resumed = 0, False

    def schedules(self, learn: Loop) -> dict[str, list[Schedule | None]]:
        """Return no schedule: the scheduler keeps its own."""
        return {}

    def targets(self, learn: Loop) -> set[tuple[str, int]]:
        """Return what the scheduler drives: names with the index of the group."""
        cycles_momentum = getattr(self._scheduler, "cycle_momentum", False)
        names = ("lr", "momentum") if cycles_momentum else ("lr",)
        return {(name, g) for name in names for g in range(len(learn.groups))}

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return what makes the scheduler, and what it made for this fit."""
        return {"make": self._make, "every": self.every, "scheduler": self._scheduler}

    def before_fit(self, learn: Loop) -> None:
        """Make the scheduler, and refuse what cannot work, before anything runs."""
        self._scheduler, self._steps, self._resumed = None, 0, False
        self.refuse_conflicts(learn)
        groups = learn.opt.param_groups
        before = [dict(group) for group in groups]
        # A scheduler would begin from the rate that an earlier one, of somebody else, began from.
        self._foreign = [
            {"initial_lr": group.pop("initial_lr")} if "initial_lr" in group else {}
            for group in groups
        ]
        self._keys = [set(group) for group in groups]
        self._was_wrapped = "step" in vars(learn.opt)
        try:
            self._scheduler = _checked(self._make(learn.opt), learn.opt)
            self.refuse_conflicts(learn)
        except BaseException:
            self._scheduler = None
            self._clean(learn.opt)
            for group, values in zip(groups, before, strict=True):
                group.update(values)
            raise

    def before_batch(self, learn: Loop) -> None:
        """Advance the scheduler to this update or epoch."""
        done = learn.n_updates if self.every == "update" else learn.epoch
        if self._scheduler is None or not learn.n_updates:
            return  # torch warns of a step before the optimizer's first
        # Torch warns where this optimizer has not stepped; it did, in the run that was resumed.
        quiet = catch_warnings(action="ignore", category=UserWarning)
        with quiet if self._resumed else nullcontext():
            while self._steps < done:
                self._scheduler.step()
                self._steps += 1
        self._resumed = False

    def cleanup_fit(self, learn: Loop) -> None:
        """Take out of the optimizer what the scheduler put there, but for the values in force."""
        if self._scheduler is None:
            return
        self._state = self.state_dict()
        self._scheduler = None
        self._clean(learn.opt)

    def _clean(self, opt: Optimizer) -> None:
        each = zip(opt.param_groups, self._keys, self._foreign, strict=True)
        for group, keys, foreign in each:
            for key in set(group) - keys:
                del group[key]
            group.update(foreign)
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
            self._steps, self._resumed = state["steps"], True
            self._scheduler.load_state_dict(state["scheduler"])


def _checked(scheduler: object, opt: Optimizer) -> LRScheduler:
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            "expected the function of TorchScheduler to return a scheduler of "
            f"torch.optim.lr_scheduler; got {scheduler!r}"
        )
    if "metrics" in inspect.signature(scheduler.step).parameters:
        raise TypeError(
            f"{type(scheduler).__name__} follows a metric: use the callback ReduceLROnPlateau"
        )
    if getattr(scheduler, "optimizer", opt) is not opt:
        raise ValueError(
            f"{type(scheduler).__name__} drives another optimizer: make it of the one that the "
            "function of TorchScheduler is given"
        )
    return scheduler
