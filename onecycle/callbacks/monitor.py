"""What was recorded under a name, and whether that is better than the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from onecycle.arguments import check_fraction, check_not_negative, check_one_of, check_text
from onecycle.callbacks.recorder import Recorder, recorder_of
from onecycle.data.held import hold_loaders
from onecycle.range_test.probe import ValidProbe
from onecycle.record.directions import Direction
from onecycle.record.metrics import as_metrics, better_direction, value_owners
from onecycle.record.names import name_in_training, series_of

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: Whether less or more of the monitored value is better; ``"auto"``: as the metric says it by
#: ``higher_is_better``, or as its name is known for.
Mode = Literal["auto", "min", "max"]


def recorded_names(learn: Loop) -> list[str]:
    """List what every epoch of a fit records: ``"train_loss"``, and what validation gives.

    Args:
        learn: The learner that is about to fit.

    Returns:
        ``"train_loss"``, with metrics of the training pass theirs; for each validation set
        ``"valid_loss"`` and the metrics' names, of a further set with its name behind. A metric
        that gives several values is listed by its own name until a pass has shown theirs.
    """
    return list(_known_owners(learn))


def shown_names(learn: Loop) -> list[str]:
    """List `recorded_names`, the names of a metric's several values among them.

    A validation batch shows them; nothing else is changed by it. From a loader that is an iterator
    nothing is drawn, as the fit would miss it.
    """
    return list(_shown_owners(learn))


class _Source(NamedTuple):
    """What a series is of: the plain name of the loss or metric, and the metric."""

    name: str
    metric: Any


def ends_between(learn: Loop) -> bool:
    """Tell whether a validation between two batches ends with the pass that has just ended."""
    return bool(learn.between_batches) and learn.valid_set == [*learn.dls.valid_sets()][-1]


def _known_owners(learn: Loop) -> dict[str, _Source]:
    """Return by recorded name the metric that the value comes from; the losses have none."""
    recorder = _recorder_in(learn)
    return _owners(learn, {} if recorder is None else recorder.metric_parts)


def _recorder_in(learn: Loop) -> Recorder | None:
    return next((callback for callback in learn.cbs if isinstance(callback, Recorder)), None)


def _shown_owners(learn: Loop) -> dict[str, _Source]:
    """Return the same, after a look at what the metrics give for a validation batch."""
    valid = learn.dls.valid
    if not learn.metrics or valid is None or isinstance(valid, Iterator):
        return _known_owners(learn)
    put_back = hold_loaders(valid)
    try:
        probe = ValidProbe(learn)
        probe.measure(learn)
        probe.close()
    finally:
        put_back()
    return _owners(learn, probe.parts)


def _owners(learn: Loop, parts: dict[str, list[str]]) -> dict[str, _Source]:
    owners, recorder = value_owners(as_metrics(learn.metrics), parts), _recorder_in(learn)
    in_training = recorder is not None and recorder.train_metrics
    found = series_of(owners, learn.dls.valid_sets(), in_training=in_training)
    return {name: _Source(plain, owners.get(plain)) for name, plain in found.items()}


def judged_by(learn: Loop, metric: str | None, mode: Mode) -> tuple[str, Direction]:
    """Return the name of what a study on validation batches judges by, and which way is better.

    Args:
        learn: The learner.
        metric: ``"valid_loss"`` or a metric's name; by default the first metric, or the loss
            where there is none.
        mode: As for `direction_of`.

    Raises:
        ValueError: If there is no validation loader, or no such metric; if which way is better is
            not known.
    """
    if metric is not None:
        check_text("metric", metric)
    # A metric may give several values, and none of its own name.
    owners = (_known_owners if metric == "valid_loss" else _shown_owners)(learn)
    if learn.dls.valid is None:
        raise ValueError(
            "this is judged by validation, and the learner has no validation loader: give it "
            "DataLoaders(train, valid)"
        )
    in_training = {name_in_training(source.name) for source in owners.values()}
    names = [name for name in owners if name not in {"train_loss", *in_training}]
    main = [name for name in names if name == owners[name].name]
    name = main[min(1, len(main) - 1)] if metric is None else metric
    if name not in names:
        raise ValueError(f"metric must be one of {', '.join(names)}; got {name!r}")
    return name, direction_of(*owners[name], mode)


def direction_of(name: str, metric: Any, mode: Mode) -> Direction:
    """Return which way a recorded value is better, or ask for it.

    Args:
        name: The plain name of a loss or metric, without that of a validation set.
        metric: What the value comes from; ``None`` for a loss.
        mode: ``"min"`` and ``"max"`` say it; ``"auto"``: as the metric says it, or as its name is
            known for.

    Raises:
        ValueError: For an unknown mode; in mode ``"auto"``, if neither says it.
    """
    check_mode(mode)
    if mode != "auto":
        return mode
    found = better_direction(name, metric)
    if found is None:
        raise ValueError(
            f'which way {name!r} is better is not known: pass mode="min" (less is better) or '
            'mode="max" (more is), or let the metric say it, by an attribute higher_is_better'
        )
    return found


def check_mode(mode: Mode) -> None:
    """Refuse what is no mode.

    Raises:
        ValueError: Naming the modes.
    """
    check_one_of("mode", mode, ("auto", "min", "max"))


class EpochValue:
    """Reads what was recorded under a name since it was read last.

    Args:
        name: One of `recorded_names`.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(n_batches=2)
        >>> value = EpochValue("train_loss")
        >>> value.begin(learn)
        >>> learn.fit(1)
        >>> value.read(learn) == float(recorder_of(learn).history["train_loss"].values.mean())
        True
        >>> value.read(learn) is None
        True
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen = 0
        self._source = _Source(name, None)

    def begin(self, learn: Loop) -> None:
        """Leave out what earlier fits recorded.

        Raises:
            ValueError: If this fit does not record the name.
        """
        names = _known_owners(learn)
        if self.name not in names:
            names = _shown_owners(learn)
        self._source = names.get(self.name, self._source)
        if self.name not in names:
            hint = " (the learner has no validation loader)" if learn.dls.valid is None else ""
            raise ValueError(
                f"monitor={self.name!r} cannot be monitored: this fit records "
                f"{', '.join(names)}{hint}"
            )
        series = recorder_of(learn).history.get(self.name)
        self._seen = 0 if series is None else len(series)

    @property
    def better(self) -> Direction | None:
        """Which way it is better, as the metric says it or its name is known for; once begun."""
        return better_direction(*self._source)

    def read(self, learn: Loop) -> float | None:
        """Return what was recorded since the last reading.

        Returns:
            Of the training loss the mean over the updates; else the value of the last pass;
            ``None`` if nothing was recorded, as where validation was cancelled.
        """
        series = recorder_of(learn).history.get(self.name)
        if series is None or len(series) == self._seen:
            return None
        new = series.values[self._seen :]
        self._seen += len(new)
        return float(new.mean() if self.name == "train_loss" else new[-1])

    def state_dict(self) -> dict[str, Any]:
        """Return how much of the record is read."""
        return {"seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._seen = state["seen"]


class Monitor(EpochValue):
    """Reads a value of each epoch or validation, and compares it with the best of this fit.

    Args:
        name: One of `recorded_names`.
        mode: ``"min"``: less is better; ``"max"``: more is; ``"auto"``: see `direction_of`.
        min_delta: By how much a value must be better than the best, at least 0.
        threshold: By which part of the best a value must be better than it, in [0, 1].

    Attributes:
        best: The best value of this fit, set by whoever acts on `is_better`; ``None`` before.

    Raises:
        ValueError: For an unknown mode, or a negative or infinite ``min_delta`` or ``threshold``.

    Example:
        >>> monitor = Monitor("accuracy", "max", min_delta=0.01)
        >>> monitor.best = 0.9
        >>> monitor.is_better(0.905), monitor.is_better(0.92)
        (False, True)
    """

    def __init__(
        self, name: str, mode: Mode = "auto", min_delta: float = 0.0, threshold: float = 0.0
    ) -> None:
        super().__init__(check_text("monitor", name))
        check_mode(mode)
        self.mode = mode
        self.min_delta = check_not_negative("min_delta", min_delta)
        self.threshold = check_fraction("threshold", threshold)
        self.best: float | None = None
        self._direction = None if mode == "auto" else mode

    def begin(self, learn: Loop) -> None:
        """Forget the best of an earlier fit, and leave out what that recorded.

        Raises:
            ValueError: If this fit does not record the name, or which way is better is not known.
        """
        super().begin(learn)
        self._direction = direction_of(*self._source, self.mode)
        self.best = None

    def read(self, learn: Loop) -> float | None:
        """Return what was recorded since the last reading, as an `EpochValue` does.

        Raises:
            ValueError: If validation has run, and a metric does not give the value any more.
        """
        value = super().read(learn)
        names = [self.name] if value is not None else recorded_names(learn)
        if self.name not in names:
            raise ValueError(
                f"{self.name!r} is monitored, and validation gave {', '.join(names[1:])} only"
            )
        return value

    def is_better(self, value: float) -> bool:
        """Tell whether a value is better than the best; NaN never is."""
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        gain = self._gain(value, self.best)
        share = self.threshold * abs(self.best) if math.isfinite(self.best) else 0.0
        return gain > max(self.min_delta, share)

    def is_beyond(self, value: float, other: float) -> bool:
        """Tell whether a value is better than another one, by however little."""
        return self._gain(value, other) > 0

    def _gain(self, value: float, other: float) -> float:
        return other - value if self._direction == "min" else value - other

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and how much of the record is read."""
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        self.best = state["best"]
