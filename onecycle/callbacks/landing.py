"""Landing: let the rates of a fit fall to nothing from where they are, and end it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_count
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.replan import Replan, anneal
from onecycle.core.callback import Callback
from onecycle.schedules.shapes import Schedule

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: A landing ends at the rate it began with, divided by this.
DIV_FINAL = 1e5


def land_running(learn: Loop, updates: int, reason: str | None) -> None:
    """Land the fit that is running: see `Learner.land`."""
    replan = landing_plan(learn, learn.n_updates, updates, reason)
    learn.n_epoch, learn.max_updates = None, learn.n_updates + learn.n_skipped + updates
    learn.n_updates_planned = learn.n_updates_scheduled = learn.n_updates + updates
    replan.join(learn)
    log.info("land: %s", replan.landing)


def is_landing(learn: Loop) -> bool:
    """Tell whether the fit that is running has been told to land."""
    return any(isinstance(cb, Replan) and cb.landing is not None for cb in learn.cbs)


def landing_plan(learn: Loop, done: int, updates: int, reason: str | None) -> Replan:
    """Return the schedules of a landing, from where each hyperparameter is."""
    ends = {"lr": [rate / DIV_FINAL for rate in learn.groups.get("lr")]}
    if learn.groups.has_momentum():
        ends["momentum"] = _first_momenta(learn)
    schedules: dict[str, list[Schedule | None]] = {
        name: [
            None if value == end else anneal(value, end, done=done, updates=updates)
            for value, end in zip(learn.groups.get(name), each, strict=True)
        ]
        for name, each in ends.items()
    }
    landed = f"landed in {updates} updates, from update {learn.total_updates + 1}"
    return Replan(schedules, landed if reason is None else f"{reason}; {landed}")


def _first_momenta(learn: Loop) -> list[float]:
    """Return the momentum of each group at the first update of this fit, or of the last one."""
    for callback in learn.cbs:
        if isinstance(callback, Recorder) and "momentum" in callback.history and learn.n_updates:
            recorded = callback.history["momentum"].values
            return [float(value) for value in recorded[-learn.n_updates :][:1].ravel()]
    return learn.groups.get("momentum")


class LandOnInterrupt(Callback):
    """Land at the first Ctrl-C, instead of breaking off; a second one interrupts as always.

    The fit then makes the updates of the landing and ends as any other, with validation. What
    Ctrl-C means outside the fit is left as it was. Python hears of Ctrl-C in its main thread:
    in another one this callback does nothing, and says so. Worker processes of a loader that
    were forked in this fit pass over it; those that were started otherwise end at it, and the fit
    with them.

    Args:
        updates: As in `Learner.land`.

    Raises:
        ValueError, TypeError: If that is no number of updates.

    Example:
        >>> import signal
        >>> from onecycle import Callback, LandOnInterrupt
        >>> from onecycle.testing import toy_learner
        >>> def press_ctrl_c(learn):
        ...     if learn.n_updates == 3:
        ...         signal.raise_signal(signal.SIGINT)
        >>> learn = toy_learner()
        >>> learn.fit(9, cbs=[LandOnInterrupt(5), Callback(after_step=press_ctrl_c)])
        >>> learn.n_updates, learn.stop_reason
        (8, 'Ctrl-C; landed in 5 updates, from update 4')
    """

    def __init__(self, updates: int) -> None:
        self.updates = check_count("updates", updates)
        self._before: Any = None
        self._is_installed = self._is_asked = self._has_landed = False

    def before_fit(self, learn: Loop) -> None:
        """Listen to Ctrl-C."""
        self._is_asked = self._has_landed = False
        if threading.current_thread() is not threading.main_thread():
            log.warning("LandOnInterrupt: Ctrl-C is heard in the main thread only, and not here")
            return
        self._process = os.getpid()
        self._before = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, self._ask)
        self._is_installed = True

    def after_batch(self, learn: Loop) -> None:
        """Land once, if Ctrl-C was pressed; of several processes in any, at whatever moment."""
        asked = self._is_asked
        if learn.processes is not None:
            asked = learn.processes.any(asked)
        if asked and not self._has_landed:
            self._has_landed = True
            land_running(learn, self.updates, "Ctrl-C")

    def cleanup_fit(self, learn: Loop) -> None:
        """Give Ctrl-C its meaning back."""
        self._put_back()

    def _ask(self, signum: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker, which inherited this and is needed for the landing
        self._put_back()
        self._is_asked = True
        log.warning("Ctrl-C: landing in %d updates; a second one interrupts", self.updates)

    def _put_back(self) -> None:
        if self._is_installed:
            signal.signal(signal.SIGINT, self._before)
            self._is_installed, self._before = False, None
