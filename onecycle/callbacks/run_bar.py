"""`RunBar`: the bar of a range test, or of a fit that a study makes."""

from __future__ import annotations

import math
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING

from onecycle.callbacks.progress import REFRESH, Progress
from onecycle.callbacks.tables import Table, new_bar
from onecycle.core.callback import Callback
from onecycle.processes import is_follower

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class RunBar(Callback):
    """Shows a bar over the updates of a run, with the time left, where somebody can watch it.

    It is gone when the run ends. A run shorter than `REFRESH` seconds has none. Used by `lr_find`
    and the studies; ``with learn.no_bar():`` does without it, as without `Progress`.

    Args:
        label: What runs.
        runs: How many runs it is for: of several the label says which one it is.
    """

    during = "train"
    runs_in = frozenset(("fit", "range_test"))
    first_process_only = True

    def __init__(self, label: str, runs: int = 1) -> None:
        self._label, self._runs = label, runs
        # An object of its own: it goes on counting when a snapshot puts the fields back.
        self._numbers = count(1)
        self._bar, self._refresh_at, self._began = Table(), math.inf, 0.0

    def before_fit(self, learn: Loop) -> None:
        """Begin a run; its bar opens with the first refresh."""
        number = next(self._numbers)
        self._text = f"{self._label} {number}/{self._runs}" if self._runs > 1 else self._label
        self._bar, self._began = new_bar(), perf_counter()
        self._refresh_at = self._began + REFRESH if self._bar.has_bars else math.inf

    def after_batch(self, learn: Loop) -> None:
        """Refresh the bar, if it is time."""
        if (now := perf_counter()) >= self._refresh_at:
            if not self._bar.bar_is_open:
                self._bar.open_bar(self._text, learn.n_updates_planned, now - self._began)
            loss = "" if learn.loss is None else f"loss {float(learn.loss):.4f}"
            if learn.n_updates:  # 0 would begin the bar anew
                self._bar.update_bar(learn.n_updates, loss)
            self._refresh_at = perf_counter() + REFRESH

    def cleanup_fit(self, learn: Loop) -> None:
        """Close the bar, whatever ended the run."""
        self._bar.close_bar()
        self._bar, self._refresh_at = Table(), math.inf


def bars(learn: Loop, label: str, runs: int = 1) -> list[Callback]:
    """Return a bar for a learner that shows progress and has none for this yet, in a list."""
    has_one = any(isinstance(callback, RunBar) for callback in learn.cbs)
    return [] if has_one or not is_watched(learn) else [RunBar(label, runs)]


def is_watched(learn: Loop) -> bool:
    """Return whether a learner shows progress."""
    shown = any(isinstance(callback, Progress) for callback in learn.cbs)
    return shown and not is_follower()
