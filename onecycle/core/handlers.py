"""The handlers of a run: a table made once, and how its events are fired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from onecycle.core.callback import Callback, Handler
from onecycle.core.events import BATCH_EVENTS, EVENTS
from onecycle.errors import Cancel
from onecycle.explanations import explain_out_of_memory

if TYPE_CHECKING:
    from onecycle.core.state import LoopState


class Handlers:
    """The handlers of every event, as one attribute for each: a tuple, often empty.

    It is built once for a run, from the bound methods that callbacks really define, so that an
    event nobody handles costs the loop one truth test.

    Args:
        callbacks: Those that take part, in any order.
        during: Which batches this table is for.
    """

    __slots__ = tuple(EVENTS)

    def __init__(self, callbacks: Sequence[Callback], during: Literal["train", "valid"]) -> None:
        self.build(callbacks, during)

    def build(
        self,
        callbacks: Sequence[Callback],
        during: Literal["train", "valid"],
        held: Sequence[Callback] = (),
    ) -> None:
        """Make the table anew, in place: a fit that is running goes on with it.

        Args:
            callbacks: As for the class.
            during: As for the class.
            held: Those among them whose ``before_batch`` is left out.
        """
        ordered = sorted(callbacks, key=lambda each: (each.stage, each.hears_last))
        for event in EVENTS:
            for_batches = event in BATCH_EVENTS
            handlers: list[Handler] = [
                getattr(callback, event)
                for callback in ordered
                if hasattr(callback, event)
                and not (event == "before_batch" and callback in held)
                and not (for_batches and callback.during not in (during, "both"))
            ]
            if event == "cleanup_fit":
                handlers.reverse()
            setattr(self, event, tuple(handlers))

    if TYPE_CHECKING:

        def __getattr__(self, event: str) -> tuple[Handler, ...]: ...


def handler_owner(handler: Handler) -> str:
    """Name the callback behind a handler, for messages."""
    owner = getattr(handler, "__self__", None)
    return type(owner).__name__ if owner is not None else f"Callback from {handler!r}"


def fire(learn: LoopState, handlers: tuple[Handler, ...], event: str) -> None:
    """Call the handlers of an event in their order.

    An error keeps its type and gains a note that names callback, event, epoch and batch; a cancel
    remembers who raised it.
    """
    learn.event = event
    for handler in handlers:
        try:
            handler(learn)
        except Cancel as cancel:
            cancel.raised_by = f"{handler_owner(handler)} in {event}"
            raise
        except Exception as error:
            owner = handler_owner(handler)
            error.add_note(f"onecycle: raised by {owner} in {event}, {where(learn)}")
            raise


def report(learn: LoopState, handlers: tuple[Handler, ...], event: str) -> None:
    """Fire an event that tells of something done: all hear of it before a cancel acts.

    Of several cancels the widest acts, so that a stop is never lost to a smaller wish.
    """
    if len(handlers) == 1:
        fire(learn, handlers, event)
        return
    cancels: list[Cancel] = []
    try:
        for handler in handlers:
            try:
                fire(learn, (handler,), event)
            except Cancel as cancel:
                cancels.append(cancel)
                learn.is_cancelled = True
    finally:
        learn.is_cancelled = False
    if cancels:
        raise max(cancels, key=lambda cancel: cancel.width)


def clean_up(
    learn: LoopState, handlers: tuple[Handler, ...], error: BaseException | None
) -> BaseException | None:
    """Fire ``cleanup_fit`` for every handler, whatever fails.

    Args:
        learn: The learner.
        handlers: Newest callback first.
        error: What ended the fit, or ``None``.

    Returns:
        The first error: the given one, with a note for each that followed, or that of a handler.
    """
    for handler in handlers:
        try:
            fire(learn, (handler,), "cleanup_fit")
        except BaseException as another:
            if error is not None:
                error.add_note(f"onecycle: then {handler_owner(handler)} failed: {another!r}")
            error = error or another
    return error


def explain(learn: LoopState, error: BaseException | None) -> None:
    """Add to an error of a fit where it was raised, and what to do if the memory is used up."""
    if not isinstance(error, Exception) or isinstance(error, Cancel):
        return
    place = where(learn)
    if not any(place in note for note in getattr(error, "__notes__", ())):
        error.add_note(f"onecycle: {place}")
    explain_out_of_memory(error, learn.xb)


def where(learn: LoopState) -> str:
    """Say where the loop stands, for messages."""
    kind = "training" if learn.training else "validation"
    return f"epoch {learn.epoch}, {kind} batch {learn.iter}, after {learn.n_updates} updates"
