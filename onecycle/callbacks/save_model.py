"""`SaveModel`: keep the best model of a fit, or one every few epochs."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_count, check_flag, check_path
from onecycle.callbacks.monitor import Mode, Monitor, ends_between
from onecycle.callbacks.recorder import Recorder
from onecycle.checkpoints.learner_files import load_learner, save_learner
from onecycle.checkpoints.sealed import checksum_of
from onecycle.core.callback import Callback, Stage
from onecycle.elsewhere import says_our_keywords
from onecycle.errors import CheckpointError
from onecycle.processes import is_follower

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


@dataclass(frozen=True)
class _Saved:
    """A file that this run has written: its place follows from these and the present path."""

    epoch: int
    update: int
    value: float
    checksum: str


class SaveModel(Callback):
    """Save the model whenever a monitored value is the best of the fit, or every few epochs.

    What is saved is what was validated: with `EMA` or `SWA` in the fit, the average of the weights.
    The files are those of ``learn.save`` and are read by ``learn.load``; each is whole or not
    there. If one cannot be written (a full disk), the fit goes on and a warning says so, at once
    and at the end. A best epoch that could not be written does not count as the best: the next
    one is measured against what is on disk.

    Only a file that this run has written is restored or removed, told by its checksum. A resumed
    run looks for it at its own ``path``, which may be that of a copy. If it is lost, damaged or
    replaced by another run, the fit ends with the last weights and a warning.

    Args:
        path: The file, replaced each time. It may hold ``{epoch}``, or ``{epoch:03d}``: the epochs
            trained over the learner's life, this one included; and ``{update}``, the updates.
        monitor: ``"valid_loss"``, the name of a metric, either also on another validation set, as
            ``"valid_loss/noisy"``, or ``"train_loss"`` (the mean over the updates of an epoch).
        mode: ``"min"``: less is better; ``"max"``: more is. ``"auto"``: as the metric says it by
            its attribute ``higher_is_better``, or as its name is known for.
        min_delta: By how much a value must be better than the best to be saved, at least 0.
        every: Save after every so many epochs of the learner's life instead, and monitor nothing.
        keep: How many files are kept, those of the best epochs; above 1, ``path`` must hold
            ``{epoch}``, or with `Validate` ``{update}``. By default each file that was the best
            once.
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

    @says_our_keywords
    def __init__(
        self,
        path: str | Path,
        monitor: str = "valid_loss",
        *,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        every: int | None = None,
        keep: int | None = None,
        restore_best: bool = True,
    ) -> None:
        self.path, self.every, self.keep = _check_path(path), every, keep
        if every is not None:
            check_count("every", every)
            if (monitor, mode, min_delta, keep) != ("valid_loss", "auto", 0.0, None):
                raise ValueError(
                    "every= saves without looking at a value: leave out monitor, mode, min_delta "
                    "and keep, or use two SaveModel"
                )
        if keep is not None and check_count("keep", keep) > 1 and self._is_one_file():
            raise ValueError(
                f"keep={keep} needs a file for each epoch: write {{epoch}} into the path, as in "
                f"'best-{{epoch}}.pt'; got {self.path!r}"
            )
        self.restore_best = check_flag("restore_best", restore_best)
        self._monitor = Monitor(monitor, mode, min_delta)
        self._kept: list[_Saved] = []  # the best first
        self._n_tried = self._n_failed = 0

    @property
    def best_path(self) -> Path | None:
        """The file of the best epoch of this fit; ``None`` before there is one."""
        best = next(iter(self._kept), None)
        return None if best is None else Path(self._file(best.epoch, best.update))

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return by what the best epoch is told."""
        if self.every is not None:
            return {}
        monitor = self._monitor
        return {"monitor": monitor.name, "mode": monitor.mode, "min_delta": monitor.min_delta}

    def before_fit(self, learn: Loop) -> None:
        """Begin anew, after checking that this fit records the monitored value."""
        self._kept = []
        self._n_tried = self._n_failed = 0
        if self.every is None:
            self._monitor.begin(learn)

    def _is_one_file(self, *, in_an_epoch: bool = False) -> bool:
        return self._file(1, 1) == self._file(1 if in_an_epoch else 2, 2)

    def after_validate(self, learn: Loop) -> None:
        """Save, if a validation between two batches is one of the best."""
        if self.every is None and ends_between(learn) and self._monitor.name != "train_loss":
            if (self.keep or 1) > 1 and self._is_one_file(in_an_epoch=True):
                raise ValueError(
                    f"keep={self.keep} needs a file for each validation, and there are several in "
                    f"an epoch: write {{update}} into the path; got {self.path!r}"
                )
            self._look(learn)

    def after_epoch(self, learn: Loop) -> None:
        """Save, if this epoch is one of the best or its turn has come."""
        if self.every is None:
            self._look(learn)
        elif (learn.total_epochs + 1) % self.every == 0:
            self._save(learn)

    def _look(self, learn: Loop) -> None:
        value = self._monitor.read(learn)
        place = None if value is None else self._place(value)
        if value is None or place is None:
            return
        checksum = self._save(learn)
        if checksum is not None:
            epoch, update = learn.total_epochs + 1, learn.total_updates
            self._kept.insert(place, _Saved(epoch, update, value, checksum))
            self._monitor.best = self._kept[0].value
            self._drop_others()

    def _place(self, value: float) -> int | None:
        """Return where a value stands among those kept, the best at 0; ``None``: not among them."""
        if self._monitor.is_better(value):
            return 0
        if math.isnan(value):
            return None
        rest = self._kept[1:]
        place = 1 + sum(not self._monitor.is_beyond(value, saved.value) for saved in rest)
        return place if place < (self.keep or 1) else None

    def _drop_others(self) -> None:
        """Remember no more than are kept, and remove the files of the others where asked to."""
        self._kept, others = self._kept[: self.keep or 1], self._kept[self.keep or 1 :]
        for saved in others if self.keep and not is_follower() else ():
            file = Path(self._file(saved.epoch, saved.update))
            with suppress(OSError):
                if checksum_of(file) == saved.checksum:
                    file.unlink()

    def after_fit(self, learn: Loop) -> None:
        """Load the best weights, and say again what could not be written."""
        if self._n_failed:
            log.warning(
                "SaveModel: %d of %d files could not be written to %s",
                self._n_failed,
                self._n_tried,
                self.path,
            )
        if self.restore_best and self._kept:
            best = self._kept[0]
            file = self._file(best.epoch, best.update)
            try:
                load_learner(learn, file, with_opt=False, checksum=best.checksum)
            except (CheckpointError, OSError) as error:
                log.warning(
                    "SaveModel: the best weights, of epoch %d with %s %.6g, are lost, and the "
                    "model keeps its last ones: %s",
                    best.epoch,
                    self._monitor.name,
                    best.value,
                    error,
                )

    def _file(self, epoch: int, update: int) -> str:
        return self.path.format(epoch=epoch, update=update)

    def _save(self, learn: Loop) -> str | None:
        """Save the model; return the checksum of its file, or nothing if that did not work."""
        self._n_tried += 1
        file = self._file(learn.total_epochs + 1, learn.total_updates)
        with ExitStack() as weights:
            for callback in learn.cbs:
                weights.enter_context(callback.as_validated(learn))
            write = partial(save_learner, learn, file)
            try:
                if learn.processes is None or learn.sharded is not None:
                    return write()
                return learn.processes.from_first(write)
            except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
                self._n_failed += 1
                if self._n_failed == 1:
                    log.warning("SaveModel: could not write %s, the fit goes on: %s", file, error)
                return None

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, and by which epochs and checksums the files are found."""
        return {"monitor": self._monitor.state_dict(), "kept": [*map(asdict, self._kept)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; say so at once if the best file is not there."""
        kept = [_Saved(**saved) for saved in state["kept"]]
        self._monitor.load_state_dict(state["monitor"])
        self._kept = kept
        file = self._file(kept[0].epoch, kept[0].update) if kept else ""
        if self.restore_best and kept and not Path(file).exists():
            log.warning(
                "SaveModel: the best weights so far, of epoch %d, are not at %s: unless a later "
                "epoch is better, the fit will end with its last ones",
                kept[0].epoch,
                file,
            )


def _check_path(path: str | Path) -> str:
    text = str(check_path("path", path))
    try:
        file = Path(text.format(epoch=1, update=1))
    except (LookupError, ValueError, AttributeError) as error:
        raise ValueError(
            "the path of SaveModel may hold {epoch} and {update} and no other placeholder; got "
            f"{str(path)!r}"
        ) from error
    if file.is_dir() or str(path).endswith("/"):
        raise ValueError(f"expected the path of a file; {str(path)!r} is a folder")
    return text
