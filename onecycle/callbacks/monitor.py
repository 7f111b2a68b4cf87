"""What one epoch recorded under a name, and whether that is better than the best so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from onecycle.callbacks.recorder import recorder_of
from onecycle.record.metrics import as_metrics

if TYPE_CHECKING:
    from onecycle.core.state import LoopState

#: Whether less or more of the monitored value is better; ``"auto"`` goes by its name.
Mode = Literal["auto", "min", "max"]

#: In mode ``"auto"``, a name that holds one of these is better when it is less.
LESS_IS_BETTER = ("loss", "error", "mse", "mae", "perplexity")


def recorded_names(learn: LoopState) -> list[str]:
    """List what every epoch of a fit records: ``"train_loss"``, and what validation gives.

    Args:
        learn: The learner that is about to fit.

    Returns:
        ``"train_loss"``; with a validation loader also ``"valid_loss"`` and the metrics' names.
    """
    if learn.dls.valid is None:
        return ["train_loss"]
    return ["train_loss", "valid_loss", *as_metrics(learn.metrics)]


def validated_name(learn: LoopState, metric: str | None) -> str:
    """Return the name of what a study on validation batches judges by, or refuse it.

    Args:
        learn: The learner.
        metric: ``"valid_loss"`` or a metric's name; by default the first metric, or the loss
            where there is none.

    Raises:
        ValueError: If there is no validation loader, or no such metric.
    """
    names = recorded_names(learn)[1:]
    if not names:
        raise ValueError(
            "this is judged by validation, and the learner has no validation loader: give it "
            "DataLoaders(train, valid)"
        )
    if metric is None:
        return names[min(1, len(names) - 1)]
    if metric not in names:
        raise ValueError(f"metric must be one of {', '.join(names)}; got {metric!r}")
    return metric


class EpochValue:
    """Reads what each epoch recorded under a name.

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

    def begin(self, learn: LoopState) -> None:
        """Leave out what earlier fits recorded.

        Raises:
            ValueError: If this fit does not record the name.
        """
        names = recorded_names(learn)
        if self.name not in names:
            hint = " (the learner has no validation loader)" if learn.dls.valid is None else ""
            raise ValueError(
                f"{self.name!r} cannot be monitored: this fit records {', '.join(names)}{hint}"
            )
        series = recorder_of(learn).history.get(self.name)
        self._seen = 0 if series is None else len(series)

    def read(self, learn: LoopState) -> float | None:
        """Return the mean of what was recorded since the last reading.

        That is one value of a validation pass, and of the training loss one for each update.

        Returns:
            The mean; ``None`` if nothing was recorded, as where validation was cancelled.
        """
        series = recorder_of(learn).history.get(self.name)
        if series is None or len(series) == self._seen:
            return None
        new = series.values[self._seen :]
        self._seen += len(new)
        return float(new.mean())

    def state_dict(self) -> dict[str, Any]:
        """Return how much of the record is read."""
        return {"seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._seen = state["seen"]


class Monitor(EpochValue):
    """Reads a value of each epoch, and compares it with the best of this fit.

    Args:
        name: One of `recorded_names`.
        mode: ``"min"``: less is better; ``"max"``: more is. ``"auto"``: less for a name that
            holds one of `LESS_IS_BETTER`, more for any other.
        min_delta: By how much a value must be better than the best, at least 0.

    Attributes:
        best: The best value of this fit, set by whoever acts on `is_better`; ``None`` before.

    Raises:
        ValueError: For an unknown mode, or a negative or infinite ``min_delta``.

    Example:
        >>> monitor = Monitor("accuracy", min_delta=0.01)
        >>> monitor.best = 0.9
        >>> monitor.is_better(0.905), monitor.is_better(0.92)
        (False, True)
    """

    def __init__(self, name: str, mode: Mode = "auto", min_delta: float = 0.0) -> None:
        super().__init__(name)
        if mode not in ("auto", "min", "max"):
            raise ValueError(f'mode must be "auto", "min" or "max"; got {mode!r}')
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta must be finite and not negative; got {min_delta!r}")
        by_name = "min" if any(part in name.lower() for part in LESS_IS_BETTER) else "max"
        self.mode = by_name if mode == "auto" else mode
        self.min_delta = min_delta
        self.best: float | None = None

    def begin(self, learn: LoopState) -> None:
        """Forget the best of an earlier fit, and leave out what that recorded.

        Raises:
            ValueError: If this fit does not record the name.
        """
        super().begin(learn)
        self.best = None

    def is_better(self, value: float) -> bool:
        """Tell whether a value is better than the best; NaN never is."""
        if math.isnan(value) or self.best is None:
            return not math.isnan(value)
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and how much of the record is read."""
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        self.best = state["best"]
