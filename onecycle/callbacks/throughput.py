"""`Throughput`: how many samples a second a training pass takes in."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, ClassVar

import torch

from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.core.callback import Callback, Stage

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: The series, and the column of the table of epochs.
NAME = "samples_per_s"


class Throughput(Callback):
    """Record the samples a second of each training pass, as the series ``samples_per_s``.

    It is a column of the table of epochs too. Counted are the samples of the batches that were
    trained on, over the time from the first batch's being asked for to the end of the last update:
    loading included, validation and what comes after the pass not. It waits for the device once a
    pass. Of several processes it counts the samples of all.

    Example:
        >>> from onecycle import Throughput
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> learn.fit(2, cbs=[Throughput()])
        >>> len(learn.recorder.history["samples_per_s"])
        2
    """

    stage = Stage.RECORD
    during = "train"
    requires: ClassVar[tuple[type[Callback], ...]] = (Recorder,)

    def __init__(self) -> None:
        self._samples, self._began, self._rate = 0, 0.0, 0.0

    def before_train(self, learn: Loop) -> None:
        """Begin to count."""
        self._samples, self._began, self._rate = 0, perf_counter(), 0.0

    def after_batch(self, learn: Loop) -> None:
        """Count the batch, unless it was cancelled."""
        if learn.pred is not None and learn.has_samples:
            self._samples += learn.batch_size(learn.batch)

    def after_train(self, learn: Loop) -> None:
        """Look at the clock when the device is done."""
        if learn.device.type == "cuda":
            torch.cuda.synchronize(learn.device)
        seconds = perf_counter() - self._began
        if learn.processes is not None:
            samples, all_seconds = learn.processes.sums([self._samples, seconds])
            self._samples, seconds = int(samples), all_seconds / learn.processes.world
        self._rate = self._samples / seconds

    def after_epoch(self, learn: Loop) -> None:
        """Record it."""
        if self._samples:
            recorder_of(learn).history.series(NAME).append(learn.total_updates, self._rate)
            self._samples = 0
