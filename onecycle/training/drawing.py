"""The loop, drawn with the callbacks of a learner at their events."""

from __future__ import annotations

from collections.abc import Sequence

from onecycle.core.callback import Callback
from onecycle.core.events import LOOP
from onecycle.core.handlers import Handlers, handler_owner


def draw_loop(callbacks: Sequence[Callback]) -> str:
    """Draw the loop with the callbacks at their events, in the order they hear of them.

    Args:
        callbacks: In any order.

    Example:
        >>> from onecycle import EMA
        >>> draw_loop([EMA()]).splitlines()[-1]
        'fire cleanup_fit: EMA'
    """
    train, valid = Handlers(callbacks, "train"), Handlers(callbacks, "valid")
    drawn, on = [], train
    for line in LOOP.splitlines():
        event = line.strip().removeprefix("fire ")
        if event in ("before_validate", "after_validate"):  # the batch events between are valid's
            on = valid if event == "before_validate" else train
        names = [handler_owner(handler) for handler in getattr(on, event, ())]
        drawn.append(f"{line}: {', '.join(names)}" if names else line)
    return "\n".join(drawn)
