"""A fit of several processes that writes to trackers, is interrupted, and goes on."""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import together
from resume_checks import interrupted
from together import RANK, equal_everywhere, gathered, learner, run

from onecycle import Callback, Checkpoint, MLflow, TensorBoard, WandB

for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ResourceWarning):
    warnings.simplefilter("ignore", category)  # of the trackers' packages


def check_trackers_of_a_fit_that_goes_on(folder: Path) -> None:
    def fit(learn: Any, *cbs: Callback, **options: Any) -> None:
        trackers = [
            TensorBoard(folder / "tb"),
            WandB("project", mode="offline", folder=folder / "w"),
            MLflow("digits", uri=f"sqlite:///{folder / 'runs.db'}"),
        ]
        learn.cbs = [*learn.cbs, *trackers]
        learn.lr_find(num_it=5, show_plot=False)
        learn.validate()
        assert not any((folder / name).exists() for name in ("tb", "w", "runs.db")) or options
        gathered(None)
        learn.fit(3, cbs=[Checkpoint(folder / "checkpoints", "4 updates"), *cbs], **options)

    with suppress(InterruptedError):
        fit(learner(), interrupted(14))
    gathered(None)
    resumed = learner()
    fit(resumed, resume=folder / "checkpoints")
    equal_everywhere(resumed)
    record = {
        name: [*zip(series.updates.tolist(), series.values.tolist(), strict=True)]
        for name, series in resumed.recorder.history.items()
    }
    (folder / f"record-{RANK}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    together.PATIENCE = timedelta(minutes=3)  # the first process makes data bases and services
    run({"check_trackers_of_a_fit_that_goes_on": check_trackers_of_a_fit_that_goes_on})
