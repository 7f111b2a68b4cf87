"""`Tracker`: what every tracker has in common: what is written of a fit, and when.

A tracker writes what the `Recorder` has recorded, a block of updates at a time, so that nothing
waits for the device more often than the record itself does. What differs is where it goes: each
adapter opens a run, writes numbers, and closes it.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from onecycle.arguments import check_text
from onecycle.callbacks.checkpoint import Checkpoint
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.callbacks.resume import Resume
from onecycle.callbacks.save_model import SaveModel
from onecycle.checkpoints.fit_plan import plan_of
from onecycle.core.callback import Callback, Stage
from onecycle.plots import to_pixels
from onecycle.record.history import BLOCK, History

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np
    from numpy.typing import NDArray

    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: What a tracker can show of a setting.
Setting = str | int | float | bool | None
#: Draws a picture: uint8 of shape ``(height, width, 3)``.
Draw = Callable[[], "NDArray[np.uint8]"]


class Tracker(Callback):
    """Base of what writes a fit into a tracker of experiments.

    Written are, by update over the learner's life: every series of the record (losses, rates,
    momenta, metrics, and what other callbacks record, such as `GradientNorm`) and the epoch; once,
    the settings of the learner and of the fit, with its schedules; the picture of a range test
    that the learner made before; and at the end where `SaveModel` and `Checkpoint` have put their
    files. A series of several parameter groups is written as ``lr_0``, ``lr_1``, ....

    A block is written every 256 updates, and what is left after each epoch. If a write fails, the
    fit goes on, a warning says so, and the next block writes what is missing.

    A tracker has one run. A later fit with the same tracker goes on in it, and so does a fit that
    is resumed from a checkpoint: in the run that the interrupted fit wrote, from where the
    checkpoint was taken. Range tests, `compare` and the other studies write nothing. Of several
    processes the first one writes.

    An adapter overrides the methods with ``run`` in their name, and those that write.

    Args:
        name: What the run is called; by default the class of the model and the time. Where there
            is one of this name, a number is added.

    Raises:
        ImportError: If the tracker's package is missing; with the command that installs it.
    """

    stage = Stage.SAVE  # when all of an update is in the record; and studies leave it out
    first_process_only = True
    requires: ClassVar[tuple[type[Callback], ...]] = (Recorder,)

    #: What a write may raise without ending the fit.
    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, name: str | None = None) -> None:
        self.name = None if name is None else check_text("name", name)
        self._key: Any = None  # by which its run is found again
        self._seen: dict[str, int] = {}  # how much of each series is in the run
        self._last = self._epoch = 0  # the last update and epoch in it
        self._is_open = self._is_fitting = self._is_behind = self._has_ended = False
        self._drawn: Any = None  # the range test whose picture is in the run
        self._history = History()
        self._settings: dict[str, Setting] = {}

    # What an adapter overrides ------------------------------------------------------------

    def open_run(self, name: str) -> Any:
        """Begin a run.

        Args:
            name: What it is called.

        Returns:
            The key by which `reopen_run` finds it: a plain value.
        """
        raise NotImplementedError

    def reopen_run(self, key: Any, last: int) -> bool:
        """Go on in a run.

        Args:
            key: Of the run.
            last: The last update that the run is known to hold: what it holds beyond that is
                written again.

        Returns:
            Whether the run is still there.
        """
        raise NotImplementedError

    def write_settings(self, settings: Mapping[str, Setting]) -> None:
        """Write the settings of the fit, by dotted name."""

    def write_values(self, update: int, values: Mapping[str, float]) -> None:
        """Write what was recorded at an update."""

    def write_range_test(self, draw: Draw, suggestions: Mapping[str, float]) -> None:
        """Write a range test: its picture, and the rates that it suggests by rule."""

    def write_files(self, files: Mapping[str, str]) -> None:
        """Write where the files of the fit are."""

    def flush_run(self) -> Any:
        """Let everything be readable that was written.

        Returns:
            The key of the run as it is now.
        """
        return self._key

    def close_run(self, has_ended: bool) -> None:
        """Close the run.

        Args:
            has_ended: Whether the fit came to its end or was cancelled; not after an error.
        """

    # When it is written -------------------------------------------------------------------

    def before_fit(self, learn: Loop) -> None:
        """Open the run; that of a resumed fit is opened when its state is there."""
        self._is_fitting, self._has_ended = True, False
        recorder = recorder_of(learn)
        self._history, self._settings = recorder.history, settings_of(learn)
        self._name = self.name or f"{_kind(learn.model)}-{time.strftime('%Y%m%d-%H%M%S')}"
        if any(isinstance(callback, Resume) for callback in learn.cbs):
            return
        if self._key is None:
            self._epoch = learn.total_epochs
            self._seen = {name: len(series) for name, series in self._history.items()}
        self._open()

    def _open(self) -> None:
        if self._is_open:
            return
        if self._key is not None:
            self._is_open = self.reopen_run(self._key, self._last)
            if self._is_open:
                return
            log.warning("%s: the run is not there any more: a new one begins", type(self).__name__)
            self._seen = {}
        self._key = self.open_run(self._name)
        self._is_open = True  # not before: what could not be opened is not closed
        self.write_settings(self._settings)
        self._key = self.flush_run()

    def before_epoch(self, learn: Loop) -> None:
        """Say that an epoch is done, where a checkpoint was taken just before that was written."""
        if self._is_open:
            self._write(learn, epoch=learn.total_epochs)

    def after_step(self, learn: Loop) -> None:
        """Write a block, when there is one."""
        if learn.n_updates % BLOCK == 0:
            self._write(learn)

    def after_epoch(self, learn: Loop) -> None:
        """Write what is left of the epoch."""
        self._write(learn, epoch=learn.total_epochs + 1)

    def after_fit(self, learn: Loop) -> None:
        """Write where the files are."""
        self._has_ended = True
        files = files_of(learn)
        if files and self._is_open:
            self._try(lambda: self.write_files(files))

    def cleanup_fit(self, learn: Loop) -> None:
        """Write what is left, and close the run."""
        if self._is_open:
            try:
                self._write(learn)
                if self._is_behind:
                    log.warning("%s: the last values could not be written", type(self).__name__)
                self._try(lambda: self.close_run(self._has_ended))
            finally:
                self._is_open = False
        self._is_fitting, self._history = False, History()

    def _write(self, learn: Loop, epoch: int = 0) -> None:
        """Write what is new in the record; what cannot be written stays new."""
        if not self._is_fitting:
            return
        self._open()
        rows, seen = self._new_rows()
        if epoch > self._epoch:
            rows.setdefault(learn.total_updates, {})["epoch"] = epoch
        test = recorder_of(learn).lr_find_result

        def write() -> None:
            if test is not None and test is not self._drawn:
                self.write_range_test(partial(to_pixels, test.plot), _rates(test))
                self._drawn = test
            for update, values in sorted(rows.items()):
                self.write_values(update, values)
            self._key = self.flush_run()

        if self._try(write):
            self._seen |= seen
            self._last = max(self._last, *rows, 0)
            self._epoch = max(self._epoch, epoch)

    def _new_rows(self) -> tuple[dict[int, dict[str, float]], dict[str, int]]:
        """Return by update what is new in the record, and how long its series are."""
        rows: dict[int, dict[str, float]] = {}
        seen = {name: len(series) for name, series in self._history.items()}
        for name, series in self._history.items():
            first = self._seen.get(name, 0)
            if first == seen[name]:
                continue
            several = series.width > 1
            names = [f"{name}_{g}" for g in range(series.width)] if several else [name]
            values = series.values.reshape(-1, series.width)[first:].tolist()
            for update, row in zip(series.updates[first:].tolist(), values, strict=True):
                rows.setdefault(update, {}).update(zip(names, row, strict=True))
        return rows, seen

    def _try(self, write: Any) -> bool:
        """Write something, and return whether that worked; what does not is said once."""
        try:
            write()
        except self.failures as error:
            if not self._is_behind:
                log.warning("%s: could not write, the fit goes on: %s", type(self).__name__, error)
            self._is_behind = True
            return False
        self._is_behind = False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return by which key the run is found, and how much of the record is in it."""
        return {
            "key": self._key,
            "seen": dict(self._seen),
            "last": self._last,
            "epoch": self._epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; in a fit, go on in its run."""
        self._key, self._seen = state["key"], dict(state["seen"])
        self._last, self._epoch = state["last"], state["epoch"]
        if self._is_fitting and self._key is not None:
            self._open()


# What is written --------------------------------------------------------------------------


def settings_of(learn: Loop) -> dict[str, Setting]:
    """Return what a fit is: the model, its size, and the plan, as flat plain values.

    Args:
        learn: The learner after ``before_fit`` at `Stage.PREPARE`.

    Returns:
        By dotted name, such as ``"schedule.lr"``; what is neither number nor text, as text.
    """
    parameters = list(learn.model.parameters())
    of_model: dict[str, Setting] = {
        "model": _kind(learn.model),
        "parameters": sum(p.numel() for p in parameters),
        "device": str(learn.device),
        "seed": learn.seed,
        "torch": str(torch.__version__),
    }
    return of_model | _flat(plan_of(learn))


def _flat(plan: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    flat: dict[str, Setting] = {}
    for key, value in plan.items():
        if isinstance(value, list | tuple) and len(value) == 1:  # of the one parameter group
            value = value[0]
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            flat[prefix + key] = value if plain else str(value)
    return flat


def files_of(learn: Loop) -> dict[str, str]:
    """Return where the callbacks of a fit have put their files: the best model, checkpoints."""
    files: dict[str, str] = {}
    for callback in learn.cbs:
        if isinstance(callback, SaveModel) and callback.best_path is not None:
            files["best_model"] = str(callback.best_path)
        if isinstance(callback, Checkpoint):
            files["checkpoints"] = str(callback.folder)
    return files


def _rates(test: Any) -> dict[str, float]:
    """Return what a range test suggests, by rule; nothing for a sweep of several tests."""
    suggestions = getattr(test, "suggestions", {})
    return {rule: lr for rule, lr in suggestions.items() if lr is not None}


def _kind(model: Any) -> str:
    return type(model).__name__


def package(name: str, owner: str, *, extra: str = "trackers") -> ModuleType:
    """Import the package of a callback, or say how to install it.

    Args:
        name: Of the module.
        owner: The callback that needs it.
        extra: The extra that it comes with.

    Raises:
        ImportError: With the command.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{owner} needs {name}, which is not installed: pip install 'onecycle[{extra}]'"
        ) from error
