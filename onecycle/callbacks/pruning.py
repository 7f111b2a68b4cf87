"""`OptunaPruning`: end the fit of a trial that Optuna gives up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from onecycle.arguments import check_text, shown
from onecycle.callbacks.monitor import EpochValue
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.trackers import package
from onecycle.core.callback import Callback, Stage

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class OptunaPruning(Callback):
    """Report a value to a trial of Optuna after each epoch, and end the fit where it is given up.

    The fit ends by ``optuna.TrialPruned``, which an objective lets pass: the study then counts the
    trial as pruned. Steps are epochs over the learner's life, the first is 1, so that a resumed
    fit goes on in them. It is for one process. Range tests, `compare` and the other studies of a
    learner report nothing.

    Args:
        trial: The trial that the objective was called with.
        monitor: What is reported, such as ``"valid_loss"`` or a metric's name.

    Raises:
        ImportError: If optuna is missing: ``pip install 'onecycle[optuna]'``.
        ValueError: Before the first batch, if the fit does not record ``monitor``, or if the study
            looks for the other direction than the one in which it is better.

    Example:
        >>> def objective(trial):  # doctest: +SKIP
        ...     learn = make_learner()
        ...     lr_max = trial.suggest_float("lr_max", 1e-3, 1, log=True)
        ...     learn.fit_one_cycle(5, lr_max, cbs=[OptunaPruning(trial)])
        ...     return learn.validate()["valid_loss"]
        >>> optuna.create_study().optimize(objective, n_trials=20)  # doctest: +SKIP
    """

    stage = Stage.SAVE  # when all of an epoch is in the record; and studies leave it out
    requires: ClassVar[tuple[type[Callback], ...]] = (Recorder,)

    def __init__(self, trial: Any, monitor: str = "valid_loss") -> None:
        package("optuna", "OptunaPruning", extra="optuna")
        if not all(hasattr(trial, name) for name in ("report", "should_prune", "study")):
            raise TypeError(f"trial must be a trial of Optuna; got {shown(trial)}")
        self.trial, self.monitor = trial, check_text("monitor", monitor)
        self._value = EpochValue(monitor)

    def before_fit(self, learn: Loop) -> None:
        """Refuse what the study could not be told, or would take for its opposite."""
        if learn.processes is not None:
            raise ValueError("OptunaPruning is for one process: the others know of no trial")
        self._value.begin(learn)
        directions = [each.name.lower()[:3] for each in self.trial.study.directions]
        if len(directions) != 1:
            raise ValueError(f"Optuna prunes by one value; its study has {len(directions)}")
        better = self._value.better
        if better is not None and better != directions[0]:
            raise ValueError(
                f"less {self.monitor} is better, and the study looks for more"
                if better == "min"
                else f"more {self.monitor} is better, and the study looks for less"
            )

    def after_epoch(self, learn: Loop) -> None:
        """Report the value, and end the fit if the trial is given up."""
        value, epoch = self._value.read(learn), learn.total_epochs + 1
        if value is None:
            return
        self.trial.report(value, epoch)
        if self.trial.should_prune():
            pruned: type[Exception] = package("optuna", "OptunaPruning", extra="optuna").TrialPruned
            raise pruned(f"Optuna gave the trial up after epoch {epoch}, {self.monitor} {value:g}")

    def state_dict(self) -> dict[str, Any]:
        """Return how much of the record is read."""
        return self._value.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._value.load_state_dict(state)
