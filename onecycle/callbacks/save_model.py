"""`SaveModel`: keep the best model of a fit, or one every few epochs."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_count
from onecycle.callbacks.monitor import Mode, Monitor
from onecycle.callbacks.recorder import Recorder
from onecycle.checkpoints.learner_files import load_learner, save_learner
from onecycle.core.callback import Callback, Stage

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class SaveModel(Callback):
    """Save the model whenever a monitored value is the best of the fit, or every few epochs.

    What is saved is what was validated: with `EMA` or `SWA` in the fit, the average of the weights.
    The files are those of ``learn.save`` and are read by ``learn.load``; each is whole or not
    there. If one cannot be written (a full disk), the fit goes on and a warning says so, at once
    and at the end. A best epoch that could not be written does not count as the best: the next
    one is measured against what is on disk.

    Args:
        path: The file, replaced each time. It may hold ``{epoch}``, or ``{epoch:03d}``: the epochs
            trained over the learner's life, this one included.
        monitor: ``"valid_loss"``, the name of a metric, or ``"train_loss"`` (the mean over the
            updates of an epoch).
        mode: ``"min"``: less is better; ``"max"``: more is. ``"auto"``: as the metric says it by
            its attribute ``higher_is_better``, or as its name is known for.
        min_delta: By how much a value must be better than the best to be saved, at least 0.
        every: Save after every so many epochs of the learner's life instead, and monitor nothing.
        restore_best: Give the model the best epoch's weights when the fit is done or cancelled,
            not after an error. The optimizer keeps its own state. Without a monitored value there
            is no best one, and nothing is restored.

    Raises:
        ValueError: For arguments out of range or that contradict each other; if ``path`` is a
            folder, or has another placeholder; before the first batch, if the fit does not record
            ``monitor``, or ``mode="auto"`` does not know which way is better.

    Example:
        >>> import tempfile
        >>> from onecycle import SaveModel
        >>> from onecycle.testing import toy_learner
        >>> folder = Path(tempfile.mkdtemp())
        >>> learn = toy_learner()
        >>> learn.fit(4, cbs=[SaveModel(folder / "best.pt"),
        ...                   SaveModel(folder / "epoch-{epoch}.pt", every=2)])
        >>> sorted(file.name for file in folder.iterdir())
        ['best.pt', 'epoch-2.pt', 'epoch-4.pt']
    """

    stage = Stage.SAVE
    requires = (Recorder,)

    def __init__(
        self,
        path: str | Path,
        monitor: str = "valid_loss",
        *,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        every: int | None = None,
        restore_best: bool = True,
    ) -> None:
        _check_path(path)
        if every is not None:
            check_count("every", every)
            if (monitor, mode, min_delta) != ("valid_loss", "auto", 0.0):
                raise ValueError(
                    "every= saves without looking at a value: leave out monitor, mode and "
                    "min_delta, or use two SaveModel"
                )
        self.path, self.every, self.restore_best = str(path), every, restore_best
        self._monitor = Monitor(monitor, mode, min_delta)
        self._best_path: str | None = None
        self._n_tried = self._n_failed = 0

    def before_fit(self, learn: Loop) -> None:
        """Begin anew, after checking that this fit records the monitored value."""
        self._best_path = None
        self._n_tried = self._n_failed = 0
        if self.every is None:
            self._monitor.begin(learn)

    def after_epoch(self, learn: Loop) -> None:
        """Save, if this epoch is the best or its turn has come."""
        epoch = learn.total_epochs + 1
        path = self.path.format(epoch=epoch)
        if self.every is not None:
            if epoch % self.every == 0:
                self._save(learn, path)
            return
        value = self._monitor.read(learn)
        if value is not None and self._monitor.is_better(value) and self._save(learn, path):
            self._monitor.best, self._best_path = value, path

    def after_fit(self, learn: Loop) -> None:
        """Load the best weights, and say again what could not be written."""
        if self._n_failed:
            log.warning(
                "SaveModel: %d of %d files could not be written to %s",
                self._n_failed,
                self._n_tried,
                self.path,
            )
        if self.restore_best and self._best_path is not None:
            load_learner(learn, self._best_path, with_opt=False)

    def _save(self, learn: Loop, path: str) -> bool:
        """Save the model; tell whether that worked."""
        self._n_tried += 1
        with ExitStack() as weights:
            for callback in learn.cbs:
                weights.enter_context(callback.as_validated(learn))
            try:
                save_learner(learn, path)
            except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
                self._n_failed += 1
                if self._n_failed == 1:
                    log.warning("SaveModel: could not write %s, the fit goes on: %s", path, error)
                return False
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and where its weights are."""
        return {"monitor": self._monitor.state_dict(), "best_path": self._best_path}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._monitor.load_state_dict(state["monitor"])
        self._best_path = state["best_path"]


def _check_path(path: str | Path) -> None:
    try:
        file = Path(str(path).format(epoch=1))
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"the path of SaveModel may hold {{epoch}} and no other placeholder; got {str(path)!r}"
        ) from error
    if file.is_dir() or str(path).endswith("/"):
        raise ValueError(f"expected the path of a file; {str(path)!r} is a folder")
