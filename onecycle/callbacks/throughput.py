"""`Throughput`: how many samples a second a training pass takes in, and the share of the peak."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from onecycle.callbacks.cuda_graph import CudaGraph
from onecycle.callbacks.peaks import Peak, device_name, least_seconds, peak_of
from onecycle.callbacks.precision import MixedPrecision
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.core.callback import Callback, Stage

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: The series, and the columns of the table of epochs.
NAME, SHARE = "samples_per_s", "peak_share"


class Throughput(Callback):
    """Record the samples a second of each training pass, as the series ``samples_per_s``.

    It is a column of the table of epochs too. Counted are the samples of the batches that were
    trained on, over the time from the first batch's being asked for to the end of the last update:
    loading included, validation and what comes after the pass not. It waits for the device once a
    pass. Of several processes the samples of all are counted.

    Where the peak of the device is known, the series ``peak_share`` is how much of it the pass
    made use of, in [0, 1] (others call it MFU): the time that the operators of its first batch
    would take at the peak, forward and backward, against the time a sample took. Counted are
    products of matrices, convolutions and attention, once a pass, by torch's `FlopCounterMode`.
    For compiled models, CUDA graphs and devices that are not known there is none.

    Source:
        Chowdhery et al., "PaLM", arXiv:2204.02311, appendix B, for the model FLOPs utilization.

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
        self._peak: Peak | None = None
        self._least: float | None = None  # the seconds of a sample at the peak
        self._counter: Any = None

    def before_fit(self, learn: Loop) -> None:
        """Look up the peak of the device."""
        is_eager = not hasattr(learn.model, "_orig_mod") and (
            getattr(learn.model, "_compiled_call_impl", None) is None
        )
        graphs = any(isinstance(each, CudaGraph) for each in learn.cbs)
        self._peak = peak_of(device_name(learn.device)) if is_eager and not graphs else None

    def before_train(self, learn: Loop) -> None:
        """Begin to count."""
        self._samples, self._began, self._rate = 0, perf_counter(), 0.0
        self._least = None

    def before_batch(self, learn: Loop) -> None:
        """Begin to count the operators of the first batch."""
        if self._peak is not None and learn.iter == 0:
            self._stop_counting()
            from torch.utils.flop_counter import FlopCounterMode

            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def after_batch(self, learn: Loop) -> None:
        """Count the batch, unless it was cancelled."""
        if self._counter is not None:
            self._least = self._count(learn, self._counter)
        if learn.pred is not None and learn.has_samples:
            self._samples += learn.batch_size(learn.batch)

    def _count(self, learn: Loop, counter: Any) -> float | None:
        self._stop_counting()
        size = learn.batch_size(learn.batch) if learn.pred is not None else 0
        flops = counter.get_flop_counts().get("Global", {})
        if self._peak is None or not size or not flops:
            return None
        seconds = least_seconds(flops, self._peak, _multiplied(learn))
        return None if seconds is None else seconds / size

    def _stop_counting(self) -> None:
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)

    def after_train(self, learn: Loop) -> None:
        """Look at the clock when the device is done."""
        self._stop_counting()
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
            history = recorder_of(learn).history
            history.series(NAME).append(learn.total_updates, self._rate)
            if self._least is not None:
                world = 1 if learn.processes is None else learn.processes.world
                share = self._rate * self._least / world
                history.series(SHARE).append(learn.total_updates, share)
            self._samples = 0

    def after_cancel_batch(self, learn: Loop) -> None:
        """Stop to count."""
        self._stop_counting()

    def cleanup_fit(self, learn: Loop) -> None:
        """Stop to count."""
        self._stop_counting()


def _multiplied(learn: Loop) -> torch.dtype:
    """Return the dtype in which a model's matrices are multiplied."""
    found = next((p.dtype for p in learn.model.parameters() if p.is_floating_point()), torch.half)
    for callback in learn.cbs:
        if isinstance(callback, MixedPrecision):
            asked = callback.dtype_on(learn.device)
            return found if asked is torch.float32 else asked
    return found
