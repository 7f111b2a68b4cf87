"""One decision for all: what a callback cancels in one process is cancelled in every one.

Where a callback of the user's handles an event, in whichever process, all processes agree on its
cancels when all handlers have heard of it: the widest acts, in all of them, at the same event. What
the library's own callbacks decide, they decide by values that are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from onecycle import errors
from onecycle.core.callback import Callback, Handler, Stage
from onecycle.core.events import EVENTS
from onecycle.core.handlers import Handlers, fire
from onecycle.errors import Cancel, CancelStep
from onecycle.processes import Processes

#: No cancel can come of it, or none acts.
_NOT_AGREED = ("cleanup_fit",)
#: At these, handlers of the library may wait for those of the other processes.
_ASKED_IN = ("before_fit", "before_train", "after_pred", "after_loss", "before_step")


def agreed_events(callbacks: Sequence[Callback]) -> set[str]:
    """Return the events that callbacks of the user's handle."""
    return {
        event
        for callback in callbacks
        for event in EVENTS
        if event not in _NOT_AGREED
        and hasattr(callback, event)
        and not _is_ours(getattr(callback, event))
    }


def _is_ours(handler: Any) -> bool:
    owner = getattr(handler, "__self__", None)
    module = getattr(handler, "__module__", None) if owner is None else type(owner).__module__
    return str(module).partition(".")[0] == "onecycle"


class AgreedHandlers(Handlers):
    """The handlers of a run; those of some events agree with the other processes.

    Args:
        callbacks: As for `Handlers`.
        during: As for `Handlers`.
        processes: The processes.
        events: The events on which all agree, the same in every process.
    """

    __slots__ = ("_events", "_processes")

    def __init__(
        self,
        callbacks: Sequence[Callback],
        during: Literal["train", "valid"],
        processes: Processes,
        events: set[str],
    ) -> None:
        self._processes, self._events = processes, events
        super().__init__(callbacks, during)

    def build(
        self,
        callbacks: Sequence[Callback],
        during: Literal["train", "valid"],
        held: Sequence[Callback] = (),
    ) -> None:
        """Make the table anew, in place."""
        super().build(callbacks, during, held)
        for event in self._events:
            agreed = _AgreedEvent(event, getattr(self, event), self._processes)
            setattr(self, event, (agreed.hear,))


class _AgreedEvent:
    """Calls the handlers of an event, and lets all processes raise the same cancel."""

    def __init__(self, event: str, handlers: tuple[Handler, ...], processes: Processes) -> None:
        self._event, self._processes = event, processes
        # What saves hears of an event when it is known whether a cancel is about to act.
        late = [each for each in handlers if _is_ours(each) and _stage(each) is Stage.SAVE]
        self._early = [each for each in handlers if each not in late]
        self._late = late
        self._asking: list[Handler] = []
        if event in _ASKED_IN:  # but for the first one, which comes before all cancels
            self._asking = [each for each in self._early[1:] if _is_in_all(each)]

    def hear(self, learn: Any) -> None:
        """Call the handlers, and raise what is agreed on."""
        goes_on = EVENTS[self._event].reports or self._event == "after_backward"
        found: Cancel | None = None
        for handler in self._early:
            if handler in self._asking:  # all come to it, or none
                found = self._agreed(learn, None)
                if found is not None:
                    break
            try:
                fire(learn, (handler,), self._event)
            except Cancel as cancel:
                found = _wider(found, cancel)
                learn.is_cancelled = EVENTS[self._event].reports
                if not goes_on or (
                    self._event == "after_backward" and type(cancel) is not CancelStep
                ):
                    found = self._agreed(learn, found)
                    break
        else:
            found = self._agreed(learn, found)
        learn.is_cancelled = found is not None and EVENTS[self._event].reports
        for handler in self._late if found is None or goes_on else ():
            try:
                fire(learn, (handler,), self._event)
            except Cancel as cancel:
                found = _wider(found, cancel)
        if found is not None:
            learn.has_agreed = True
            raise found

    def _agreed(self, learn: Any, own: Cancel | None) -> Cancel | None:
        """Return the widest cancel of all processes, of several the first one's; land as asked."""
        code = 0 if own is None and learn.asked_landing is None else 1
        if not self._processes.most(code):
            return None
        cancel = None if own is None else (own.width, type(own).__name__, own.reason)
        said = self._processes.gather((cancel, learn.asked_landing))
        if any(asked for _, asked in said):
            learn.land_as_asked([asked for _, asked in said])
        widest = max((cancel[0] for cancel, _ in said if cancel is not None), default=None)
        for number, (each, _) in enumerate(said):
            if each is not None and each[0] == widest:
                found: Cancel = getattr(errors, each[1])(each[2])
                found.raised_by = f"a callback of process {number}"
                return own if number == self._processes.rank else found
        return None


def _is_in_all(handler: Handler) -> bool:
    """Tell whether every process has this handler, in the same place among such."""
    owner = getattr(handler, "__self__", None)
    return _is_ours(handler) and not getattr(owner, "first_process_only", False)


def _stage(handler: Handler) -> Any:
    return getattr(getattr(handler, "__self__", None), "stage", None)


def _wider(one: Cancel | None, other: Cancel) -> Cancel:
    return other if one is None or other.width > one.width else one
