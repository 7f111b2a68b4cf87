"""`When`: let a callback hear of an event only every n-th time, once, or in a part of the fit."""

from __future__ import annotations

from typing import Any

from onecycle.arguments import shown
from onecycle.core.callback import Callback, Handler, Stage
from onecycle.core.events import EVENTS
from onecycle.schedules.occasions import Occasions


class When(Callback):
    """Pass on to a callback those events that a rule picks, and leave out the others.

    Each event is counted for itself, from the beginning of the fit: with ``every=100``,
    ``after_step`` is passed on at updates 100, 200, ..., and ``after_epoch`` of the same callback
    at epochs 100, 200, .... ``before_fit``, ``after_fit`` and ``cleanup_fit`` are always passed on.
    A resumed fit goes on counting where it was.

    Args:
        callback: The callback; or leave it out and give functions, as to `Callback`.
        every: Pass on every n-th time, at least 1.
        once: Pass on the first time only that the other rules let through.
        after: From this epoch on (an integer, the first one is 0), or from this fraction of the
            fit's updates on (a float in [0, 1]).
        before: Until the epoch before this one, or before this fraction.
        **handlers: Functions that take the learner, by event.

    Raises:
        TypeError: If there is no callback and no function, or both; for a callback that prepares,
            records or saves, which must hear of every event: a schedule or an augmentation that
            is to wait has a phase, or a strength that `AttributeScheduler` drives.
        ValueError: If a rule is out of its range.

    Example:
        >>> from onecycle import When
        >>> from onecycle.testing import toy_learner
        >>> found = []
        >>> looks = When(every=5, after=0.5, after_step=lambda learn: found.append(learn.n_updates))
        >>> toy_learner(n_batches=20).fit(1, cbs=[looks])
        >>> found
        [10, 15, 20]
    """

    def __init__(
        self,
        callback: Callback | None = None,
        *,
        every: int = 1,
        once: bool = False,
        after: float | None = None,
        before: float | None = None,
        **handlers: Handler,
    ) -> None:
        if (callback is None) is not bool(handlers):
            raise TypeError("give a callback, or functions by event such as after_step=f: not both")
        self.callback = _of_functions(handlers) if callback is None else callback
        if not isinstance(self.callback, Callback):
            raise TypeError(f"callback must be a Callback object; got {shown(callback)}")
        kind = type(self.callback)
        own = (kind.forward_context, kind.as_validated)  # contexts are no events
        has_contexts = own != (Callback.forward_context, Callback.as_validated)
        if self.callback.stage is not Stage.REACT or has_contexts or kind is When:
            raise TypeError(
                f"{kind.__name__} must hear of every event, for what it does in one "
                "it undoes or counts on in another: only what reacts (Stage.REACT) can be filtered"
            )
        self._occasions = Occasions(every, once, after, before)
        self.every, self.once, self.after, self.before = every, once, after, before
        vars(self).update(
            stage=self.callback.stage,
            requires=self.callback.requires,
            during=self.callback.during,
            runs_in=self.callback.runs_in,
            first_process_only=self.callback.first_process_only,
            needs_whole_model=self.callback.needs_whole_model,
        )
        known = (name for name in EVENTS if hasattr(self.callback, name))
        handlers = {name: getattr(self.callback, name) for name in known}
        vars(self).update(self._occasions.filtered(handlers))

    def plan(self, learn: Any) -> dict[str, Any]:
        """Return the rule, and what the callback returns."""
        return {**super().plan(learn), **self.callback.plan(learn)}

    def state_dict(self) -> dict[str, Any]:
        """Return how often each event was heard, and the callback's own state."""
        return {**super().state_dict(), "callback": self.callback.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        self.callback.load_state_dict(state["callback"])


def _of_functions(handlers: dict[str, Any]) -> Callback:
    return Callback(**handlers)
