"""Landing, called as a verb: the fit that runs, or a fit of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onecycle.arguments import check_count, check_text
from onecycle.callbacks.landing import landing_plan
from onecycle.core.callback import Callback, Stage
from onecycle.core.checks import checked_callbacks

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer


def land(
    learn: Trainer,
    updates: int,
    *,
    reason: str | None,
    cbs: Sequence[Callback] | None,
    resume: str | Path | None,
) -> None:
    """Land the fit that is running, or fit to land: see `Learner.land`."""
    check_count("updates", updates)
    if reason is not None:
        check_text("reason", reason)
    if learn.running is None:
        start = Callback(before_fit=landing_plan(learn, 0, updates, reason).join)
        start.stage, start.hears_last = Stage.SAVE, True
        learn.fit(None, cbs=[*checked_callbacks(cbs), start], max_updates=updates, resume=resume)
        return
    if learn.running != "fit":
        raise RuntimeError(f"a {learn.running} is running: there is no fit that could land")
    if cbs is not None or resume is not None:
        raise ValueError(
            "cbs and resume are for a landing that is a fit of its own: one is running"
        )
    learn.land_together(updates, reason)
