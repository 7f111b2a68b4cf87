"""The two stages of fine-tuning: a checkpoint says in which of them it was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onecycle.arguments import check_path
from onecycle.checkpoints.fit_files import read_newest
from onecycle.core.callback import Callback

_KEY = "fine_tune.stage"


class FineTuneStage(Callback):
    """Says in the plan of a fit which stage of `Learner.fine_tune` it is.

    Args:
        number: 1 for the fit of the last group, 2 for that of all of them.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def plan(self, learn: Any) -> dict[str, Any]:
        """Return the stage, which a resumed fit must have in common."""
        return {_KEY: self.number}


def found_stage(resume: str | Path | None) -> tuple[int, Path | None]:
    """Find the stage that a checkpoint was taken in.

    Args:
        resume: A checkpoint or a folder of them, as in `Learner.fit`.

    Returns:
        The stage, 1 where there is no checkpoint; and the file, or what was given without one.

    Raises:
        CheckpointError: If what is there cannot be read.
    """
    found = None if resume is None else read_newest(check_path("resume", resume))
    if found is None:
        return 1, None if resume is None else Path(resume)
    path, state = found
    return (2 if state["plan"].get(_KEY) == 2 else 1), path
