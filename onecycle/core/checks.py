"""What is refused before a fit begins, each with one clear error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from onecycle.arguments import (
    check_takes_learn,
    class_hint,
    shown,
)
from onecycle.core.callback import Callback
from onecycle.core.events import EVENTS
from onecycle.errors import MissingCallbackError

log = logging.getLogger("onecycle")


def check_callbacks(cbs: Sequence[Callback]) -> None:
    """Refuse what is no list of callbacks.

    Raises:
        TypeError: Naming what came, with the hint to make an object of a class.
    """
    if not isinstance(cbs, list | tuple):
        hint = ": write [...] around" if isinstance(cbs, Callback | type) else ""
        raise TypeError(f"cbs must be a list of Callback objects; got {shown(cbs)}{hint}")
    for callback in cbs:
        if not isinstance(callback, Callback):
            came = f"{shown(callback)}{class_hint(callback)}"
            raise TypeError(f"cbs must be Callback objects; got {came}")
        for name in EVENTS:
            check_takes_learn(callback, name)


def checked_callbacks(cbs: Sequence[Callback] | None) -> Sequence[Callback]:
    """Return the callbacks of one fit; none for ``None``."""
    if cbs is None:
        return ()
    check_callbacks(cbs)
    return cbs


def check_requirements(callbacks: Iterable[Callback]) -> None:
    """Refuse a list of callbacks in which one lacks another that it requires.

    Raises:
        MissingCallbackError: Naming both, and what to do.
    """
    present = list(callbacks)
    for callback in present:
        for needed in callback.requires:
            if not any(isinstance(other, needed) for other in present):
                raise MissingCallbackError(
                    f"{type(callback).__name__} requires {needed.__name__}, which takes no part "
                    f"in this fit: add {needed.__name__}() to the learner's or the fit's cbs"
                )
