"""`Timeline`: what a training batch spends where."""

from __future__ import annotations

import functools
import json
import logging
import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from onecycle import plots
from onecycle.arguments import check_count, check_path
from onecycle.callbacks.traces import PartTime, part_times
from onecycle.core.callback import Callback, Stage
from onecycle.core.events import EVENTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class Timeline(Callback):
    """Measure what training batches spend where: a table, and a Chrome trace.

    Some batches of the first pass that has them are run under torch's profiler; from then on the
    callback costs one truth test a batch. The parts are ``data`` (waiting for the loader),
    ``transfer`` to the device, ``forward``, ``loss``, ``backward``, ``step`` (with what is done to
    gradients besides), and each callback by its name; ``other`` is the rest of the loop. A
    callback that inherits its methods goes by the first that has them.

    Times of the host are those of the thread that runs the loop; of the device they are what it
    did with what it was given in that part, later perhaps. The profiler itself makes short calls
    longer: shares are what to look at, and the rate of a fit without it.

    Args:
        path: Where to put the trace, for ``chrome://tracing`` or Perfetto; by default nowhere.
        batches: How many batches are measured, at least 1; fewer, if the pass ends before.
        skip: How many batches are let pass first, in which caches fill and kernels are chosen.

    Attributes:
        parts: What was measured; empty before.
        n_batches: How many batches that was.

    Example:
        >>> from onecycle import Timeline
        >>> from onecycle.testing import toy_learner
        >>> timeline = Timeline(batches=4, skip=2)
        >>> toy_learner().fit(1, cbs=[timeline])
        >>> [part.name for part in timeline.parts if part.name in ("data", "forward", "Recorder")]
        ['data', 'forward', 'Recorder']
    """

    stage = Stage.SAVE
    hears_last = True  # that a batch is done
    first_process_only = True
    during = "train"
    runs_in = frozenset(("fit",))

    def __init__(self, path: str | Path | None = None, *, batches: int = 20, skip: int = 5) -> None:
        self.path = None if path is None else check_path("path", path)
        self.batches = check_count("batches", batches)
        self.skip = check_count("skip", skip, least=0)
        self.parts: tuple[PartTime, ...] = ()
        self.n_batches = 0
        self._profiler: Any = None
        self._seen = self._first = 0
        self._began = 0.0

    def before_fit(self, learn: Loop) -> None:
        """Begin to count."""
        self.parts, self.n_batches, self._seen = (), 0, 0
        self._profiler = None

    def after_batch(self, learn: Loop) -> None:
        """Begin or end to measure, if it is time."""
        if self.n_batches:
            return
        self._seen += 1
        if self._profiler is None:
            if self._seen >= self.skip:
                self._start(learn)
        elif self._seen - self._first >= self.batches:
            self._stop(learn)

    def after_train(self, learn: Loop) -> None:
        """End with the pass."""
        if self._profiler is not None:
            self._stop(learn)

    def cleanup_fit(self, learn: Loop) -> None:
        """Stop the profiler after an error, and say where nothing was measured."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        elif not self.n_batches:
            log.warning(
                "Timeline measured nothing: the fit has no batch after the first %d; give a "
                "smaller skip=",
                self.skip,
            )

    def _start(self, learn: Loop) -> None:
        activities = [ProfilerActivity.CPU]
        if learn.device.type == "cuda":
            torch.cuda.synchronize(learn.device)
            activities.append(ProfilerActivity.CUDA)
        self._first = self._seen
        self._profiler = profile(activities=activities, with_stack=True, acc_events=True)
        self._profiler.start()
        self._began = perf_counter()

    def _stop(self, learn: Loop) -> None:
        total, profiler = perf_counter() - self._began, self._profiler
        if learn.device.type == "cuda":
            torch.cuda.synchronize(learn.device)
        self._profiler = None
        profiler.stop()
        measured = self._seen - self._first
        if not measured:  # the pass has ended: the next one may have more
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json" if self.path is None else self.path
            path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
        self.parts, self.n_batches = part_times(events, _owners(learn), total), measured

    def __str__(self) -> str:
        """Show a table, with milliseconds for a batch."""
        if not self.n_batches:
            return "nothing was measured yet"
        rows = [("part", "host ms", "share", "device ms")]
        whole = sum(part.host for part in self.parts)
        sums = PartTime("in all", whole, sum(part.device for part in self.parts))
        for part in (*self.parts, sums):
            host, device = (1e3 * s / self.n_batches for s in (part.host, part.device))
            share = f"{part.host / whole:.1%}"
            rows.append((part.name, f"{host:.3f}", share, f"{device:.3f}" if device else ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, f"for one of {self.n_batches} batches"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a bar for each part: milliseconds of host and device for a batch.

        Args:
            ax: Where to draw; by default a new figure.

        Raises:
            ValueError: If nothing was measured yet.
        """
        if not self.n_batches:
            raise ValueError("nothing was measured yet: fit first, with this Timeline in cbs")
        scale = 1e3 / self.n_batches
        host = {part.name: scale * part.host for part in self.parts}
        device = {part.name: scale * part.device for part in self.parts}
        bars = {"host": host, "device": device} if any(device.values()) else {"host": host}
        return plots.plot_bars(bars, xlabel="milliseconds for a batch", ax=ax)


def _owners(learn: Loop) -> dict[tuple[int, str], list[tuple[str, str]]]:
    """Return where the methods of the callbacks are: see `Owners`."""
    owners: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for callback in learn.cbs:
        for event in EVENTS:
            handler: Any = getattr(callback, event, None)
            while isinstance(handler, functools.partial):
                handler = handler.func
            handler = getattr(handler, "__wrapped__", handler)
            code = getattr(getattr(handler, "__func__", handler), "__code__", None)
            if code is not None:
                key, file = (code.co_firstlineno, code.co_name), code.co_filename
                entry = file.replace("\\", "/"), type(callback).__name__
                owners.setdefault(key, []).append(entry)
    return owners
