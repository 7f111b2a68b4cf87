"""`ShowGraph`: the loss and the metrics as a picture that grows in a notebook."""

from __future__ import annotations

import io
import logging
import math
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

from onecycle.arguments import check_positive
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.core.callback import Callback, Stage

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class ShowGraph(Callback):
    """Draw the loss, and the metrics beside it, in a notebook while the fit runs.

    The picture is drawn anew after each epoch, and within a long one at most every few seconds;
    drawing reads the record, for which the device has to finish what it was given. The last
    picture stays. Outside of a notebook nothing is drawn, which the log says.

    Args:
        seconds: The time between two pictures within an epoch, above 0.

    Example:
        >>> learn.fit_one_cycle(10, cbs=[ShowGraph()])  # doctest: +SKIP
    """

    stage = Stage.RECORD  # so that studies leave it out
    first_process_only = True
    during = "train"
    requires: ClassVar[tuple[type[Callback], ...]] = (Recorder,)

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = check_positive("seconds", seconds)
        self._screen: Any = None
        self._draw_at = math.inf

    def before_fit(self, learn: Loop) -> None:
        """Look whether somebody can see it."""
        self._screen = new_screen()
        self._draw_at = math.inf if self._screen is None else perf_counter() + self.seconds
        if self._screen is None:
            log.info("ShowGraph draws in notebooks, and this is none")

    def after_batch(self, learn: Loop) -> None:
        """Draw, if it is time."""
        if perf_counter() >= self._draw_at:
            self._draw(learn)

    def after_epoch(self, learn: Loop) -> None:
        """Draw."""
        self._draw(learn)

    def cleanup_fit(self, learn: Loop) -> None:
        """Leave the last picture."""
        self._screen, self._draw_at = None, math.inf

    def _draw(self, learn: Loop) -> None:
        recorder = recorder_of(learn)
        if self._screen is not None and recorder.history.get("train_loss"):
            self._screen.show(_picture(recorder))
            self._draw_at = perf_counter() + self.seconds


def _picture(recorder: Recorder) -> bytes:
    """Draw the loss and, where there are some, the metrics; return a PNG."""
    from matplotlib.figure import Figure

    has_metrics = any(recorder.metric_parts.values())
    figure = Figure(figsize=(12 if has_metrics else 7, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if has_metrics else 1, squeeze=False)[0]
    recorder.plot_loss(axes[0])
    if has_metrics:
        recorder.plot_metrics(axes[1])
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    return file.getvalue()


class Screen:
    """A place in the output of a notebook's cell, for one picture after another."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, png: bytes) -> None:
        """Show a picture in place of the one before."""
        from IPython import display as module

        ipython: Any = module
        if self._handle is None:
            self._handle = ipython.display(ipython.Image(data=png), display_id=True)
        else:
            self._handle.update(ipython.Image(data=png))


def new_screen() -> Screen | None:
    """Return where pictures are shown: nowhere outside of a notebook."""
    from fastprogress.fastprogress import IN_NOTEBOOK

    return Screen() if IN_NOTEBOOK else None
