"""End a fit early, or lower its learning rate, by a monitored value."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

from onecycle.arguments import check_count, check_finite, check_not_negative, check_one_of, shown
from onecycle.callbacks.landing import is_landing, land_running
from onecycle.callbacks.monitor import Mode, Monitor, ends_between
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.callbacks.recorder import Recorder
from onecycle.core.callback import Callback
from onecycle.elsewhere import says_our_keywords
from onecycle.errors import CancelFit, ScheduleConflictError
from onecycle.optim.groups import listed

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class _Patience(Callback):
    """Counts the epochs since a monitored value was best, and acts when they are too many.

    Of a value that validation gives it counts the validations, where there are more of them.
    """

    requires = (Recorder,)

    def __init__(self, monitor: Monitor, patience: int | None) -> None:
        self.patience = None if patience is None else check_count("patience", patience)
        self._monitor = monitor
        self._waited = 0
        self._unit = "epoch"

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return what is monitored, and how long it may not improve."""
        monitor = self._monitor
        return {
            "monitor": monitor.name,
            "mode": monitor.mode,
            "min_delta": monitor.min_delta,
            "threshold": monitor.threshold,
            "patience": self.patience,
        }

    def before_fit(self, learn: Loop) -> None:
        """Begin anew, after checking that this fit records the monitored value."""
        self._monitor.begin(learn)
        self._waited, self._unit = 0, "epoch"

    def after_validate(self, learn: Loop) -> None:
        """Compare the value of a validation between two batches with the best."""
        if ends_between(learn) and self._monitor.name != "train_loss":
            self._unit = "validation"
            self._look(learn)

    def after_epoch(self, learn: Loop) -> None:
        """Compare this epoch's value with the best; one that recorded none does not count."""
        self._look(learn)

    def _look(self, learn: Loop) -> None:
        value = self._monitor.read(learn)
        if value is None or self._is_over(learn, value):
            return
        is_better, is_resting = self._monitor.is_better(value), self._rests()
        if is_better:
            self._monitor.best = value
        self._waited = 0 if is_better or is_resting else self._waited + 1
        if self.patience is not None and self._waited >= self.patience:
            self._act(learn)

    def _is_over(self, learn: Loop, value: float) -> bool:
        """Act on the value alone; tell whether nothing is to be compared any more."""
        return False

    def _rests(self) -> bool:
        """Tell whether this epoch does not count."""
        return False

    def _act(self, learn: Loop) -> None:
        raise NotImplementedError

    def _why(self) -> str:
        best, epochs = self._monitor.best, self._unit + "s" * (self.patience != 1)
        said = "was never a number" if best is None else f"has not improved on {best:.6g}"
        return f"{self._monitor.name} {said} for {self.patience} {epochs}"

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the epochs since."""
        return {"monitor": self._monitor.state_dict(), "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._monitor.load_state_dict(state["monitor"])
        self._waited = state["waited"]


class EarlyStopping(_Patience):
    """End the fit when a monitored value has stopped improving, or has passed a threshold.

    ``learn.stop_reason`` then says so, and it is logged. Every fit begins anew: the best of an
    earlier one, perhaps with other layers frozen, says nothing about this one. A schedule does not
    get to its end: under the 1cycle policy, whose last phase improves most, prefer shorter fits,
    or ``action="land"``.

    Args:
        monitor: ``"valid_loss"``, the name of a metric, either also on another validation set, as
            ``"valid_loss/noisy"``, or ``"train_loss"`` (the mean over the updates of an epoch).
        mode: ``"min"``: less is better; ``"max"``: more is. ``"auto"``: as the metric says it by
            its attribute ``higher_is_better``, or as its name is known for.
        min_delta: By how much a value must be better than the best to count, at least 0.
        patience: After how many epochs in a row without improvement the fit ends, at least 1; with
            `Validate`, after how many validations. One whose value is NaN has not improved.
            ``None``: only the thresholds end it.
        action: ``"stop"``: the fit ends at once. ``"land"``: it ends with a landing, as
            ``learn.land`` does it, during which nothing is monitored.
        land_updates: The updates of the landing.
        target: The fit ends, by ``action``, when the value is as good as this.
        limit: The fit ends, at once, when the value is worse than this, or NaN: it diverged.

    Raises:
        ValueError: For arguments out of range or that contradict each other; before the first
            batch, if the fit does not record ``monitor``, or ``mode="auto"`` does not know which
            way is better.

    Example:
        >>> from onecycle import EarlyStopping
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> learn.fit(10, lr=0.0, cbs=[EarlyStopping(patience=2)])
        >>> len(learn.recorder.history["valid_loss"])
        3
        >>> enough = EarlyStopping(target=0.5, limit=20.0, patience=None)
        >>> learn.fit(20, lr=0.1, cbs=[enough])
        >>> learn.recorder.history["valid_loss"].values[-2:] <= 0.5
        array([False,  True])
    """

    @says_our_keywords
    def __init__(
        self,
        monitor: str = "valid_loss",
        *,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        patience: int | None = 1,
        action: Literal["stop", "land"] = "stop",
        land_updates: int | None = None,
        target: float | None = None,
        limit: float | None = None,
    ) -> None:
        if patience is None and target is None and limit is None:
            raise ValueError("patience=None needs target= or limit=: nothing would end the fit")
        super().__init__(Monitor(monitor, mode, min_delta), patience)
        self.target = None if target is None else check_finite("target", target)
        self.limit = None if limit is None else check_finite("limit", limit)
        check_one_of("action", action, ("stop", "land"))
        if (action == "land") != (land_updates is not None):
            raise ValueError(
                'action="land" and land_updates= go together: give both, as in '
                f'action="land", land_updates=200; got {action!r} and {shown(land_updates)}'
            )
        self.land_updates = (
            None if land_updates is None else check_count("land_updates", land_updates)
        )

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return what is monitored, and how the fit is ended."""
        own = {"land_updates": self.land_updates, "target": self.target, "limit": self.limit}
        return {**super().plan(learn), **own}

    def before_fit(self, learn: Loop) -> None:
        """Begin anew, after checking what is monitored, and that the thresholds can be passed."""
        super().before_fit(learn)
        target, limit = self.target, self.limit
        if target is not None and limit is not None and not self._monitor.is_beyond(target, limit):
            raise ValueError(
                f"target must be better than limit, of {self._monitor.name}; got target={target:g} "
                f"and limit={limit:g}"
            )

    def _look(self, learn: Loop) -> None:
        if self.land_updates is None or not is_landing(learn):
            super()._look(learn)

    def _is_over(self, learn: Loop, value: float) -> bool:
        said, limit = f"{self._monitor.name} is {value:.6g}", self.limit
        if limit is not None and (math.isnan(value) or self._monitor.is_beyond(limit, value)):
            self._end(learn, f"{said}, past the limit of {limit:.6g}", at_once=True)
        if self.target is None or math.isnan(value) or self._monitor.is_beyond(self.target, value):
            return False
        self._end(learn, f"{said}, as good as the target of {self.target:.6g}")
        return True

    def _act(self, learn: Loop) -> None:
        self._end(learn, self._why())

    def _end(self, learn: Loop, why: str, *, at_once: bool = False) -> None:
        log.warning("EarlyStopping: %s", why)
        if at_once or self.land_updates is None:
            raise CancelFit(why)
        land_running(learn, self.land_updates, why)


class ReduceLROnPlateau(_Patience):
    """Lower the learning rate of every parameter group when a monitored value stops improving.

    It counts anew after each time, and after the ``cooldown``. The best value stays. Every fit
    begins anew, with that fit's own rates.

    Args:
        monitor: As in `EarlyStopping`.
        mode: As in `EarlyStopping`.
        min_delta: By how much a value must be better than the best to count, at least 0.
        patience: After how many epochs in a row without improvement the rates fall, at least 1;
            with `Validate`, after how many validations. The ``patience`` of torch's scheduler is
            one less.
        factor: What the rates are multiplied with, between 0 and 1, both excluded.
        min_lr: No rate is lowered beyond it; at least 0.
        threshold: By which part of the best a value must be better than it to count, in [0, 1]:
            1e-4 asks a loss of 2 to fall below 1.9998.
        cooldown: For how many of them after the rates fell none without improvement counts.

    Raises:
        ValueError: For arguments out of range; before the first batch, if the fit does not record
            ``monitor``, or ``mode="auto"`` does not know which way is better.
        ScheduleConflictError: Before the first batch, if a schedule drives the learning rate: it
            would overwrite what this sets.

    Example:
        >>> from onecycle import ReduceLROnPlateau
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> learn.fit(3, lr=1e-30, cbs=[ReduceLROnPlateau(factor=0.5)])
        >>> learn.groups.get("lr")
        [2.5e-31]
    """

    @says_our_keywords
    def __init__(
        self,
        monitor: str = "valid_loss",
        *,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        patience: int = 1,
        factor: float = 0.1,
        min_lr: float = 0.0,
        threshold: float = 0.0,
        cooldown: int = 0,
    ) -> None:
        super().__init__(
            Monitor(monitor, mode, min_delta, threshold), check_count("patience", patience)
        )
        if not 0 < check_finite("factor", factor) < 1:
            raise ValueError(f"factor must be between 0 and 1, both excluded; got {factor!r}")
        self.factor, self.min_lr = factor, check_not_negative("min_lr", min_lr)
        self.cooldown = check_count("cooldown", cooldown, least=0)
        self._resting = 0

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return what is monitored, and how far the rates fall."""
        own = {"factor": self.factor, "min_lr": self.min_lr, "cooldown": self.cooldown}
        return {**super().plan(learn), **own}

    def before_fit(self, learn: Loop) -> None:
        """Begin anew, after checking that nothing else drives the learning rate."""
        super().before_fit(learn)
        self._resting = 0
        for other in learn.cbs:
            if isinstance(other, ParamScheduler):
                for _, g in sorted(target for target in other.targets(learn) if target[0] == "lr"):
                    raise ScheduleConflictError(
                        f"ReduceLROnPlateau and {type(other).__name__} both drive 'lr' of "
                        f"parameter group {g}: remove one of them from cbs"
                    )

    def _rests(self) -> bool:
        if not self._resting:
            return False
        self._resting -= 1
        return True

    def _act(self, learn: Loop) -> None:
        self._waited, self._resting = 0, self.cooldown
        rates = learn.groups.get("lr")
        # A rate that is already below the floor stays where it is.
        lowered = [min(rate, max(rate * self.factor, self.min_lr)) for rate in rates]
        if lowered != rates:
            learn.groups.set("lr", lowered)
            log.info("ReduceLROnPlateau: %s: %s", self._why(), f"learning rate {listed(lowered)}")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, the epochs since, and those that do not count yet."""
        return {**super().state_dict(), "resting": self._resting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        self._resting = state["resting"]
