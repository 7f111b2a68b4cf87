"""`Occasions`: which of the times that an event fires are meant: every n-th, once, in a part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from onecycle.arguments import check_count, shown

#: What begins and ends a fit is always meant: who acts then makes itself ready, and clean.
_ALWAYS = ("before_fit", "after_fit", "cleanup_fit")

_Handler = Callable[[Any], None]


class _Place(Protocol):
    """Where a fit stands."""

    epoch: int
    n_updates: int
    n_updates_planned: int | None


class Occasions:
    """Picks some of the times that events fire, each event counted for itself in each fit.

    Args:
        every: Pick every n-th time, at least 1.
        once: Pick the first time only that the other rules let through.
        after: From this epoch on (an integer, the first one is 0), or from this fraction of the
            fit's updates on (a float in [0, 1]).
        before: Until the epoch before this one, or before this fraction.

    Attributes:
        are_all: Whether every time is picked, so that nothing needs to be counted.

    Raises:
        TypeError, ValueError: If a rule is out of its range.

    Example:
        >>> from types import SimpleNamespace
        >>> place = SimpleNamespace(epoch=0, n_updates=1, n_updates_planned=9)
        >>> second = Occasions(every=2)
        >>> [second.picks("after_step", place) for _ in range(4)]
        [False, True, False, True]
    """

    def __init__(
        self,
        every: int = 1,
        once: bool = False,
        after: float | None = None,
        before: float | None = None,
    ) -> None:
        if not isinstance(once, bool):
            raise TypeError(f"once must be True or False; got {shown(once)}")
        self.every, self.once = check_count("every", every), once
        self.after, self.before = _check_place("after", after), _check_place("before", before)
        self.are_all = every == 1 and not once and after is None and before is None
        self._heard: Counter[str] = Counter()
        self._picked: set[str] = set()

    def picks(self, event: str, learn: _Place) -> bool:
        """Count an event, and tell whether this time of it is picked.

        Args:
            event: Its name.
            learn: The learner.

        Raises:
            ValueError: If a rule is a fraction of a fit without a length.
        """
        if event == "before_fit":
            self._heard.clear()
            self._picked.clear()
        if event in _ALWAYS:
            return True
        self._heard[event] += 1
        if self._heard[event] % self.every or (self.once and event in self._picked):
            return False
        is_late = self.after is None or _place(self.after, learn) >= self.after
        found = is_late and (self.before is None or _place(self.before, learn) < self.before)
        if found:
            self._picked.add(event)
        return found

    def filtered(self, handlers: Mapping[str, _Handler]) -> dict[str, _Handler]:
        """Return handlers that are called at the times that are picked.

        Args:
            handlers: Functions that take the learner, by event.

        Returns:
            One for each, and one for ``before_fit``, from which on is counted; those given where
            every time is picked.
        """
        if self.are_all:
            return dict(handlers)
        every = {"before_fit": _nothing, **handlers}
        return {event: _Picked(self, event, handler) for event, handler in every.items()}

    def plan(self) -> dict[str, Any]:
        """Return the rules; none where every time is picked."""
        names = () if self.are_all else ("every", "once", "after", "before")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Return how often each event was heard; nothing where that does not matter."""
        own = {"heard": dict(self._heard), "picked": sorted(self._picked)}
        return {} if self.are_all else own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if not self.are_all:
            self._heard, self._picked = Counter(state["heard"]), set(state["picked"])


class _Picked:
    """A handler that is called at some of its times, and is named in messages as it is."""

    def __init__(self, occasions: Occasions, event: str, handler: _Handler) -> None:
        self._occasions, self._event, self._handler = occasions, event, handler
        self.__wrapped__ = handler
        self.__self__ = getattr(handler, "__self__", None)
        self.__module__ = getattr(handler, "__module__", "")  # that of whom it belongs to

    def __call__(self, learn: Any) -> None:
        if self._occasions.picks(self._event, learn):
            self._handler(learn)

    def __repr__(self) -> str:
        return repr(self._handler)


def _nothing(learn: Any) -> None:
    pass


def _place(limit: float, learn: _Place) -> float:
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
