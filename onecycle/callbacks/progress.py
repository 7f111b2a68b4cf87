"""`Progress`: the table of epochs, and bars where somebody can watch them."""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onecycle.callbacks.monitor import ends_between, recorded_names
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.callbacks.tables import Table, new_table
from onecycle.callbacks.throughput import NAME as THROUGHPUT
from onecycle.callbacks.throughput import Throughput
from onecycle.core.callback import Callback

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: Seconds between two refreshes of a bar. A refresh reads the loss, for which the device has to
#: finish what it was given, and in a notebook it sends a message: five a second go unnoticed.
REFRESH = 0.2


class Progress(Callback):
    """Show the table of epochs, and a bar for the pass that is running.

    Every learner has one; ``with learn.no_bar():`` does without. In a terminal and in a notebook
    there are bars, with the time left and the loss of the latest batch. Where the output goes to
    a file or a pipe there is the table alone, one line for each epoch.

    The columns are ``epoch``, from 0; ``train_loss``, the mean over the updates of the epoch,
    read from ``learn.recorder.history`` once, at its end; ``valid_loss``, the metrics, and
    whatever else was recorded once for each validation or each epoch, as by `Throughput`; and
    ``time``, which is that of the whole epoch. A validation between two batches has a row too, with
    a fraction of an epoch; time and training loss are then those since the row before. What an
    epoch did not compute is left blank. The last line is ``learn.stop_reason``, if there is one.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> toy_learner(metrics=[]).fit(2, lr=0.05, cbs=[Progress()])  # doctest: +ELLIPSIS
        epoch   train_loss   valid_loss     time
            0     3.0...     1.7...     0:0...
            1     0.9...     0.1...     0:0...
    """

    requires: ClassVar[tuple[type[Callback], ...]] = (Recorder,)
    first_process_only = True

    def __init__(self) -> None:
        self._table = Table()
        self._refresh_at = math.inf
        self._n_losses = 0  # recorded before this epoch
        self._epoch_began = 0.0
        self._lengths: dict[str, int] | None = None
        self._train_lengths: dict[str, int] = {}

    def before_fit(self, learn: Loop) -> None:
        """Begin the table."""
        self._table = new_table(learn.n_epoch)
        self._refresh_at = perf_counter() if self._table.has_bars else math.inf
        asked = any(isinstance(callback, Throughput) for callback in learn.cbs)
        self._names = [*recorded_names(learn), *([THROUGHPUT] if asked else [])]
        self._table.header(["epoch", *self._names, "time"])
        self._begin_epoch(learn)

    def before_epoch(self, learn: Loop) -> None:
        """Note where the epoch begins."""
        self._begin_epoch(learn)

    def _begin_epoch(self, learn: Loop) -> None:
        self._epoch_began = perf_counter()
        history = recorder_of(learn).history
        self._n_losses = len(history.get("train_loss", ()))
        self._lengths = None
        names = (name for name in recorded_names(learn)[1:] if name.startswith("train_"))
        self._train_lengths = {name: len(history.get(name, ())) for name in names}

    def before_train(self, learn: Loop) -> None:
        """Open the bar of the training pass."""
        self._begin_pass(learn, "train")

    def before_validate(self, learn: Loop) -> None:
        """Open the bar of the validation pass."""
        if not learn.valid_set:
            history = recorder_of(learn).history
            self._lengths = {name: len(series) for name, series in history.items()}
        self._begin_pass(learn, f"valid {learn.valid_set}".strip())

    def after_batch(self, learn: Loop) -> None:
        """Refresh the bar, if it is time."""
        if perf_counter() >= self._refresh_at:
            loss = "" if learn.loss is None else f"loss {float(learn.loss):.4f}"
            self._refresh(learn, learn.iter + 1, loss)

    def after_train(self, learn: Loop) -> None:
        """Close the bar; what is recorded from here on is of the epoch."""
        history = recorder_of(learn).history
        self._lengths = {name: len(series) for name, series in history.items()}
        self._table.close_bar()

    def after_validate(self, learn: Loop) -> None:
        """Close the bar, and add a row for a validation between two batches."""
        self._table.close_bar()
        if ends_between(learn):
            batches = learn.epoch_length(learn.epoch)
            part = 0 if batches is None else 100 * learn.between_batches // batches
            self._add_row(learn, f"{learn.epoch}.{part:02}" if part else f"{learn.epoch}+")
            self._begin_pass(learn, "train")

    def after_epoch(self, learn: Loop) -> None:
        """Add a row to the table."""
        self._table.close_bar()  # still open where the epoch was cancelled
        self._add_row(learn, str(learn.epoch))

    def _add_row(self, learn: Loop, label: str) -> None:
        table = self._table
        values = self._epoch_values(recorder_of(learn))
        if new := [name for name in values if name not in self._names]:
            # A metric that gives several values gives none of its own name.
            given = [name for name in self._names if name in values or name == "train_loss"]
            self._names = given + new
            table.header(["epoch", *self._names, "time"])
        numbers = [number(values[name]) if name in values else "" for name in self._names]
        table.row([label, *numbers, clock(perf_counter() - self._epoch_began)])
        self._begin_epoch(learn)  # of the next one, should another callback cancel it at once

    def cleanup_fit(self, learn: Loop) -> None:
        """End the table; a bar that is still open stays, so that one sees how far it came."""
        table = self._table
        # Another one for a fit in which before_fit of an earlier callback fails.
        self._table, self._refresh_at = Table(), math.inf
        table.end("" if learn.stop_reason is None else f"stop_reason: {learn.stop_reason}")

    def state_dict(self) -> dict[str, Any]:
        """Return where in the record the epoch began."""
        return {"n_losses": self._n_losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._n_losses = state["n_losses"]

    def _begin_pass(self, learn: Loop, kind: str) -> None:
        of = "" if learn.n_epoch is None else f"/{learn.n_epoch:g}"
        self._label = f"epoch {learn.epoch + 1}{of} {kind}"
        self._pass_began = perf_counter()
        if self._pass_began >= self._refresh_at:  # passes of a few milliseconds get no bar
            self._refresh(learn, 0, "")

    def _refresh(self, learn: Loop, done: int, comment: str) -> None:
        table, now = self._table, perf_counter()
        if not table.bar_is_open:
            table.open_bar(self._label, learn.n_iter, now - self._pass_began)
        if done:
            table.update_bar(done, comment)
        self._refresh_at = now + REFRESH

    def _epoch_values(self, recorder: Recorder) -> dict[str, float]:
        """Collect what this epoch recorded: updates in the mean, validation as it is."""
        history = recorder.history
        losses = history["train_loss"].values[self._n_losses :]
        values = {"train_loss": float(np.mean(losses))} if len(losses) else {}
        for name, series in history.items():
            known = self._train_lengths.get(name)
            if known is None and self._lengths is not None:
                known = self._lengths.get(name, 0)
            if known is not None and len(series) > known and series.width == 1:
                values[name] = float(series.values[-1])
        return values


def number(value: float) -> str:
    """Write a loss or a metric as the table has it."""
    if value == 0 or 1e-4 <= abs(value) < 1e3:
        return f"{value:.6f}"
    return f"{value:.4g}"


def clock(seconds: float) -> str:
    """Write a time as the table has it: minutes and seconds, and hours where there are any."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
