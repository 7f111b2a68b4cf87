"""`Recorder`: what is recorded of a fit, and the plots of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from onecycle import plots
from onecycle.arguments import check_flag, check_list
from onecycle.core.callback import Callback, During, Stage
from onecycle.data.nested import map_tensors
from onecycle.errors import MissingCallbackError
from onecycle.record.history import History
from onecycle.record.metric_state import load_metrics, metrics_state
from onecycle.record.metrics import MetricSet, value_owners
from onecycle.record.names import name_in_training, name_on, series_of
from onecycle.record.smoothing import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop
    from onecycle.core.state import LoopState
    from onecycle.range_test.result import LRFindResult
    from onecycle.range_test.sweeps import RangeTests

log = logging.getLogger("onecycle")


class Recorder(Callback):
    """Record the loss, learning rate and momentum of every update, and each validation.

    Every learner has one, as ``learn.recorder``. The record goes on across fits. Losses stay on
    the device and are read in blocks, so that recording never makes the loop wait.

    Attributes:
        history: The series ``train_loss``, ``lr``, ``momentum`` (one value for each update),
            ``valid_loss`` and each metric by name (one for each validation pass; of a further
            validation set with its name, as ``valid_loss/noisy``), and with ``train_metrics``
            each metric as ``train_accuracy`` (one for each training pass). Where optimizers
            take turns, ``train_loss/NAME`` is the loss that one of them stepped by. Rates are those
            that the optimizer has, with an ``lr_scale`` applied: of several of its
            ``param_groups`` in one of the splitter's groups, the first one's. See `History`.
        metric_parts: By metric the names of the values that it gave in the last validation pass:
            its own, or those of its several.
        lr_find_result: The result of the last range test, or of the last sweep of them.

    Args:
        train_metrics: Compute the metrics on the training pass too, of the predictions that it
            makes anyway: of batches as the model saw them, augmented and in training mode, each
            by the weights that the updates before it left.

    Raises:
        ValueError: Before the first batch, if two series would have one name.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(cbs=(Recorder(train_metrics=True),))
        >>> learn.fit(2)
        >>> list(learn.recorder.history)
        ['train_loss', 'lr', 'momentum', 'train_mse', 'valid_loss', 'mse']
    """

    stage = Stage.RECORD
    _called = "Recorder"
    during: During = "valid"  # of the batch events; after_step is for training anyway

    def __init__(self, *, train_metrics: bool = False) -> None:
        self.train_metrics = check_flag("train_metrics", train_metrics)
        if train_metrics:
            self.during = "both"
        self.history = History()
        self.metric_parts: dict[str, list[str]] = {}
        self.lr_find_result: LRFindResult | RangeTests | None = None
        self._metric_names: list[str] = []
        self._train: MetricSet | None = None
        self._untold: set[str] = set()  # metrics of which a resumed pass knows a part only
        self._recorded = 0  # the last update whose record is whole

    def before_fit(self, learn: Loop) -> None:
        """Open the series that every update writes to."""
        groups = learn.groups
        self._rates = [groups.shown("lr", g) for g in range(len(groups))]
        self._momenta = (
            [groups.shown("momentum", g) for g in range(len(groups))]
            if groups.has_momentum()
            else []
        )
        self._add_loss = self.history.series("train_loss").append
        self._add_lr = self.history.series("lr", width=len(groups)).append
        if self._momenta:
            self._add_momentum = self.history.series("momentum", width=len(groups)).append
        self._valid = MetricSet(learn.metrics, learn.processes)
        # Copies: a validation between two batches must not disturb those of the training pass.
        self._train = (
            MetricSet(deepcopy(learn.metrics), learn.processes) if self.train_metrics else None
        )
        self._device = learn.device
        self._has_warned = self._has_said = False
        values = value_owners(self._valid.metrics, self.metric_parts)
        series_of(values, learn.dls.valid_sets(), in_training=self.train_metrics)  # or refuses

    def before_train(self, learn: Loop) -> None:
        """Note how many updates were made before this pass; a resumed fit knows it by now."""
        self._recorded = learn.total_updates
        if self._train is not None:
            self._train.reset()
            self._untold = set()

    def after_step(self, learn: Loop) -> None:
        """Record the update just made, with the values that were in force."""
        update = learn.total_updates
        self._add_loss(update, learn.update_loss)
        if learn.turn_losses:
            for name, loss in learn.turn_losses.items():
                self.history.series(f"train_loss/{name}").append(update, loss)
        rates, momenta = self._rates, self._momenta
        if len(rates) == 1:
            self._add_lr(update, rates[0].get())
            if momenta:
                self._add_momentum(update, momenta[0].get())
        else:
            self._add_lr(update, [slot.get() for slot in rates])
            if momenta:
                self._add_momentum(update, [slot.get() for slot in momenta])
        self._recorded = update

    def before_validate(self, learn: Loop) -> None:
        """Begin a validation pass."""
        self._valid.reset()

    def after_batch(self, learn: Loop) -> None:
        """Add a batch to the means."""
        if not learn.training:
            learn.measure_batch(self._valid)
        elif self._train is not None:
            pred = learn.pred
            try:
                with torch.no_grad():
                    learn.pred = map_tensors(Tensor.detach, pred)  # a metric may keep it
                    learn.measure_batch(self._train)
            finally:
                learn.pred = pred

    def after_train(self, learn: Loop) -> None:
        """Record the metrics of the training pass."""
        if self._train is not None:
            results = self._train.compute()
            parts = self._train.parts
            for name in ("valid_loss", *(part for each in self._untold for part in parts[each])):
                results.pop(name, None)
            self._add({name_in_training(name): value for name, value in results.items()}, learn)
            self.metric_parts |= parts
            self._train.reset()
            self._untold = set()

    def after_validate(self, learn: Loop) -> None:
        """Record the validation pass."""
        results = self._valid.compute()
        self._add({name_on(name, learn.valid_set): v for name, v in results.items()}, learn)
        self.metric_parts |= self._valid.parts

    def _add(self, values: dict[str, float], learn: Loop) -> None:
        losses = {name_on("valid_loss", each) for each in learn.dls.valid_sets()}
        for name, value in values.items():
            self.history.series(name).append(learn.total_updates, value)
            if name not in losses and name not in self._metric_names:
                self._metric_names.append(name)

    def after_epoch(self, learn: Loop) -> None:
        """Warn of losses that are not finite in the epoch it happens, once in a fit."""
        series = self.history.get("train_loss")
        if series is None or self._has_warned:
            return
        updates, losses = series.updates, series.values
        bad = updates[~np.isfinite(losses) & (updates > learn.total_updates - learn.n_updates)]
        if len(bad) and learn.stop_reason is None:
            self._has_warned = True
            log.warning(
                "the training loss of %d updates was NaN or infinite, first at update %d: with "
                "cbs=[TerminateOnNonFinite()] the fit ends there, and says what was wrong",
                len(bad),
                bad[0],
            )

    def cleanup_fit(self, learn: Loop) -> None:
        """Record the last update, if an error or Ctrl-C came between it and its record."""
        update = learn.total_updates
        if learn.update_loss is None or self._recorded == update:
            return
        values = {"train_loss": [learn.update_loss], "lr": [slot.get() for slot in self._rates]}
        values |= {f"train_loss/{name}": [loss] for name, loss in learn.turn_losses.items()}
        if self._momenta:
            values["momentum"] = [slot.get() for slot in self._momenta]
        for name, value in values.items():
            series = self.history.series(name, width=len(value))
            if not len(series) or series.updates[-1] != update:
                series.append(update, value)
        self._recorded = update

    @property
    def values(self) -> list[list[float]]:
        """The rows of the table: training loss, validation loss and metrics, the latest row last.

        There is one for each update after which was validated. Its training loss is the mean over
        the updates since the row before; NaN stands for what was not measured.

        Example:
            >>> from onecycle.testing import toy_learner
            >>> learn = toy_learner()
            >>> learn.fit(2)
            >>> len(learn.recorder.values), len(learn.recorder.values[-1])
            (2, 3)
        """
        if "valid_loss" not in self.history or "train_loss" not in self.history:
            return []
        losses = self.history["train_loss"]
        rows, begun = [], 0
        for update in np.unique(self.history["valid_loss"].updates):
            since = losses.values[(losses.updates > begun) & (losses.updates <= update)]
            row = [float(since.mean()) if len(since) else math.nan]
            for name in ("valid_loss", *self._metric_names):
                series = self.history.get(name)
                found = [] if series is None else series.values[series.updates == update]
                row.append(float(found[-1]) if len(found) else math.nan)
            rows.append(row)
            begun = update
        return rows

    def plot_loss(self, ax: Axes | None = None, *, skip_start: int = 0) -> Axes:
        """Plot training loss, raw and smoothed, and validation loss against the update.

        The smoothing remembers about 50 updates, in short records a twentieth of them.

        Args:
            ax: Where to draw; by default a new figure.
            skip_start: How many first updates are left out, where they dwarf the rest.
        """
        train = self.history["train_loss"]
        losses = train.values
        valid = self.history.get("valid_loss")
        prefix = name_on("valid_loss", " ")[:-1]
        others = {
            name.removeprefix(prefix): (series.updates, series.values)
            for name, series in self.history.items()
            if name.startswith(prefix)
        }
        return plots.plot_loss(
            train.updates,
            losses,
            None if valid is None else valid.updates,
            None if valid is None else valid.values,
            more_valid=others,
            train_smoothed=smooth(losses, beta=min(0.98, 1 - 20 / max(len(losses), 21))),
            skip_start=skip_start,
            ax=ax,
        )

    def plot_sched(self, ax: Axes | None = None) -> Axes:
        """Plot the learning rate and the momentum of every group against the update."""
        lr = self.history["lr"]
        momentum = self.history.get("momentum")
        return plots.plot_sched(
            lr.updates,
            lr.values,
            None if momentum is None else momentum.updates,
            None if momentum is None else momentum.values,
            ax=ax,
        )

    def plot_metrics(self, ax: Axes | None = None, *, names: Sequence[str] | None = None) -> Axes:
        """Plot metrics, or any other series, against the update.

        Args:
            ax: Where to draw; a new figure if ``None``.
            names: Of the series in ``history``, also such as callbacks of your own have written;
                by default all metrics. One of several parameter groups is a line for each.

        Raises:
            ValueError: If there is no metric.
            KeyError: For a name that nothing was recorded under.
        """
        asked = self._metric_names if names is None else check_list("names", names, "series")
        series: dict[str, Any] = {}
        for name in asked:
            own = self.history[name]
            columns = own.values.reshape(-1, own.width).T
            called = [name] if own.width == 1 else [f"{name}_{g}" for g in range(own.width)]
            series |= {each: (own.updates, y) for each, y in zip(called, columns, strict=True)}
        if not series:
            raise ValueError("no metric was recorded: give the Learner metrics=[...] and validate")
        return plots.plot_metrics(series, ax=ax)

    def plot_lr_find(self, ax: Axes | None = None) -> Axes:
        """Plot the last range test."""
        if self.lr_find_result is None:
            raise ValueError("there is no range test to plot: call learn.lr_find() first")
        return self.lr_find_result.plot(ax=ax)

    def to_frame(self) -> Any:
        """Return the record as a ``pandas.DataFrame``, one row for each update."""
        return self.history.to_frame()

    def to_csv(self, path: str | Path) -> None:
        """Write the record to a CSV file, one row for each update."""
        self.history.to_csv(path)

    def state_dict(self) -> dict[str, Any]:
        """Return the record, and what the metrics of the training pass hold."""
        return {
            "train": self._train_state(),
            "history": self.history.state_dict(),
            "metrics": list(self._metric_names),
            "parts": {name: list(parts) for name, parts in self.metric_parts.items()},
        }

    def _train_state(self) -> dict[str, Any] | None:
        if self._train is None:
            return None
        state, untold = metrics_state(self._train)
        if untold and not state["is_empty"] and not self._has_said:
            self._has_said = True
            log.warning(
                "Recorder: no checkpoint within an epoch can hold what %s has seen of the training "
                "pass: a fit that is resumed there records none of it for that epoch",
                ", ".join(untold),
            )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a record."""
        if self._train is not None and state["train"] is not None:
            load_metrics(self._train, state["train"], self._device)
            self._untold = self._train.metrics.keys() - state["train"]["metrics"].keys()
            if state["train"]["is_empty"]:
                self._untold = set()
        self.history.load_state_dict(state["history"])
        self._metric_names = list(state["metrics"])
        self.metric_parts = {name: list(parts) for name, parts in state["parts"].items()}


def recorder_of(learn: LoopState) -> Recorder:
    """Return the recorder of a learner, or refuse one that has none now."""
    for callback in learn.cbs:
        if isinstance(callback, Recorder):
            return callback
    raise MissingCallbackError("this learner has no Recorder now: it was removed from cbs")
