"""`When`: let a callback hear of an event only every n-th time, once, or in a part of the fit."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_count, shown
from onecycle.core.callback import Callback, Handler, Stage
from onecycle.core.events import EVENTS

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: What begins and ends a fit is always heard: a callback makes itself ready there, and clean.
_ALWAYS = ("before_fit", "after_fit", "cleanup_fit")


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
        self.callback = Callback(during=None, **handlers) if callback is None else callback
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
        if not isinstance(once, bool):
            raise TypeError(f"once must be True or False; got {shown(once)}")
        self.every, self.once = check_count("every", every), once
        self.after, self.before = _check_place("after", after), _check_place("before", before)
        self._heard: Counter[str] = Counter()
        self._passed: set[str] = set()
        vars(self).update(
            stage=self.callback.stage,
            requires=self.callback.requires,
            during=self.callback.during,
            runs_in=self.callback.runs_in,
        )
        for name in EVENTS:
            if hasattr(self.callback, name):
                vars(self)[name] = partial(self._hear, name)

    def _hear(self, name: str, learn: Loop) -> None:
        if name == "before_fit":
            self._heard.clear()
            self._passed.clear()
        if name in _ALWAYS or self._picks(name, learn):
            self._passed.add(name)
            getattr(self.callback, name)(learn)

    def _picks(self, name: str, learn: Loop) -> bool:
        self._heard[name] += 1
        if self._heard[name] % self.every or (self.once and name in self._passed):
            return False
        is_late = self.after is None or _place(self.after, learn) >= self.after
        return is_late and (self.before is None or _place(self.before, learn) < self.before)

    def plan(self, learn: Any) -> dict[str, Any]:
        """Return the rule, and what the callback returns."""
        rule = {"every": self.every, "once": self.once, "after": self.after, "before": self.before}
        return {**rule, **self.callback.plan(learn)}

    def state_dict(self) -> dict[str, Any]:
        """Return how often each event was heard, and the callback's own state."""
        own = {"heard": dict(self._heard), "passed": sorted(self._passed)}
        return {**own, "callback": self.callback.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._heard, self._passed = Counter(state["heard"]), set(state["passed"])
        self.callback.load_state_dict(state["callback"])


def _place(limit: float, learn: Loop) -> float:
    """Return where the fit is, in the unit of a limit: the epoch, or the fraction of updates."""
    if isinstance(limit, int):
        return learn.epoch
    planned = learn.n_updates_planned
    if planned is None:
        raise ValueError(
            f"a fraction of the fit ({limit}) needs its length: give steps_per_epoch= or "
            "max_updates=, or an epoch such as after=1"
        )
    return learn.n_updates / planned


def _check_place(name: str, value: float | None) -> float | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    if isinstance(value, float) and 0 <= value <= 1 and math.isfinite(value):
        return value
    raise ValueError(
        f"{name} must be an epoch (an integer from 0) or a fraction of the fit (a float in "
        f"[0, 1]); got {shown(value)}"
    )
