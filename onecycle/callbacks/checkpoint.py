"""`Checkpoint`: save all of a fit now and then."""

from __future__ import annotations

import logging
import re
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_count
from onecycle.checkpoints import fit_files as files
from onecycle.checkpoints.background import BackgroundWriter, copied
from onecycle.checkpoints.fit_plan import plan_of
from onecycle.checkpoints.unseen import Unseen
from onecycle.core.callback import Callback, Stage
from onecycle.core.restore import RngState

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

_EVERY = re.compile(r"(\d+(?:\.\d+)?) (update|epoch|minute)s?")


class Checkpoint(Callback):
    """Save all that training changes every so often, so that a killed fit can go on exactly.

    ``learn.fit(..., resume=folder)`` goes on from the newest checkpoint, and ends in the same
    bits as a fit that nobody interrupted. A checkpoint holds the model with all its buffers, a
    loss function that is a module, the optimizer, the ``state_dict`` of every callback, the
    record, the random states of Python, NumPy, torch and each device, and the position in the
    data. It is taken between two updates, when every other callback has heard of the last one.
    Python fields of a model are not in it (`torch.nn.Module.get_extra_state` is for them), nor
    are random states within the worker processes of a loader; a `SeededDataset` needs none.

    A file is whole or not there, and read without running code. If one cannot be written (a full
    disk), the fit goes on and a warning says so, at once and at the end. What training changes and
    no file holds is named in a warning when the first one is taken, as far as it can be seen.

    What else trains in the fields of a subclass of `Learner` is in the files too: optimizers,
    modules, and whatever has ``state_dict`` and ``load_state_dict``.

    Args:
        folder: Where the files go, one folder for each fit; made where it is missing.
        every: ``"50 updates"``, ``"1 epoch"`` or ``"10 minutes"``: after so many updates or
            epochs of the fit, or that long after the last one.
        keep: How many files are kept, at least 1; older ones are removed when a new one is there.
        background: Copy the state, and write it in a thread while training goes on. That takes
            memory for the copy, on the CPU. A checkpoint that is due before the last one is
            written waits for it; so does the end of the fit.

    Raises:
        ValueError: For arguments that are none of these.
        TypeError: At a checkpoint, if a callback's state has more than plain values and
            tensors, so that it could not be read back.

    Example:
        >>> import tempfile
        >>> from onecycle import Checkpoint
        >>> from onecycle.testing import toy_learner
        >>> folder = Path(tempfile.mkdtemp())
        >>> toy_learner(n_batches=8).fit(2, cbs=[Checkpoint(folder, "5 updates", keep=2)])
        >>> sorted(file.name for file in folder.iterdir())
        ['checkpoint-000001.pt', 'checkpoint-000002.pt']
        >>> resumed = toy_learner(n_batches=8)
        >>> resumed.fit(2, resume=folder)
        >>> resumed.total_updates
        16
    """

    stage = Stage.SAVE
    during = "train"

    def __init__(
        self,
        folder: str | Path,
        every: str = "1 epoch",
        keep: int = 3,
        *,
        background: bool = False,
    ) -> None:
        self.folder, self.keep = Path(folder), check_count("keep", keep)
        self._writer = BackgroundWriter() if background else None
        self._number, self._unit = _parse(every)
        if self.folder.is_file():
            raise ValueError(f"expected a folder for checkpoints; {str(folder)!r} is a file")
        self._saved_at = 0  # updates of this fit
        self._saved_when = 0.0
        self._n_heard = 0  # batches of this pass whose after_batch has fired
        self._pass_rng: dict[str, Any] = {}
        self._plan: dict[str, Any] = {}
        self._unseen: Unseen | None = None  # until the first checkpoint
        self._n_tried = self._n_failed = 0
        self._is_full = False  # older files could not be removed

    def before_fit(self, learn: Loop) -> None:
        """Begin anew."""
        self._plan, self._unseen = plan_of(learn), Unseen(learn)
        self._saved_at = self._n_tried = self._n_failed = 0
        self._saved_when = time.monotonic()

    def before_train(self, learn: Loop) -> None:
        """Keep the random states, from which a loader may draw its order."""
        self._pass_rng = RngState().state_dict()
        self._n_heard = 0

    def after_step(self, learn: Loop) -> None:
        """Save, if it is time, after the update that a pass ends with when no batch is left."""
        if self._n_heard == learn.iter + 1:  # every other update is followed by after_batch
            self._save_if_due(learn, self._n_heard)

    def after_batch(self, learn: Loop) -> None:
        """Save, if it is time and no gradients wait for an update."""
        self._n_heard = learn.iter + 1
        if learn.batches_in_window == 0:
            self._save_if_due(learn, self._n_heard)

    def after_epoch(self, learn: Loop) -> None:
        """Save, if it is time."""
        if self._unit == "epoch":
            if (learn.epoch + 1) % self._number == 0 and not learn.is_cancelled:
                self._save(learn, None)
        else:
            self._save_if_due(learn, None)

    def after_fit(self, learn: Loop) -> None:
        """Say again what could not be written."""
        self.wait_for_write()
        if self._n_failed:
            log.warning(
                "Checkpoint: %d of %d checkpoints could not be written to %s",
                self._n_failed,
                self._n_tried,
                self.folder,
            )

    def cleanup_fit(self, learn: Loop) -> None:
        """Wait for what is being written."""
        self.wait_for_write()

    def wait_for_write(self) -> None:
        """Wait until the checkpoint that is being written in the background is there."""
        if self._writer is not None:
            self._writer.wait()

    def _save_if_due(self, learn: Loop, batches: int | None) -> None:
        # Where a cancel is about to act, the next batch is not what comes next.
        if learn.is_cancelled or self._unit == "epoch":
            return
        if self._unit == "update":
            due = learn.n_updates // self._number > self._saved_at // self._number
        else:
            due = time.monotonic() - self._saved_when >= 60 * self._number
        if due:
            self._save(learn, batches)

    def _save(self, learn: Loop, batches: int | None) -> None:
        self._saved_at, self._saved_when = learn.n_updates, time.monotonic()
        self._n_tried += 1
        self._tell_unseen(learn)
        state = files.readable_parts(files.capture(learn, self._plan, batches, self._pass_rng))
        if self._writer is None:
            self._write(state)
        else:
            self._writer.wait()  # before there are two copies
            self._writer.start(partial(self._write, copied(state)))

    def _write(self, state: dict[str, Any]) -> None:
        try:
            files.write(files.next_path(self.folder), state)
        except (OSError, RuntimeError) as error:
            self._n_failed += 1
            if self._n_failed == 1:
                log.warning(
                    "Checkpoint: could not write to %s, the fit goes on: %s", self.folder, error
                )
            return
        try:
            files.remove_old(self.folder, self.keep)
        except OSError as error:
            if not self._is_full:
                log.warning("Checkpoint: older files stay in %s: %s", self.folder, error)
            self._is_full = True

    def _tell_unseen(self, learn: Loop) -> None:
        """Say at the first checkpoint what is in none."""
        found = self._unseen.found(learn) if self._unseen is not None else []
        self._unseen = None
        if found:
            log.warning(
                "Checkpoint: training changes %s, and no checkpoint holds it: a resumed fit may "
                "end in other bits (a buffer, get_extra_state or state_dict is the place for it)",
                "; ".join(found),
            )

    def state_dict(self) -> dict[str, Any]:
        """Return when the last checkpoint was taken, and how the training pass began."""
        return {"saved_at": self._saved_at, "pass_rng": self._pass_rng}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._saved_at, self._pass_rng = state["saved_at"], state["pass_rng"]


def _parse(every: str) -> tuple[float, str]:
    match = _EVERY.fullmatch(every) if isinstance(every, str) else None
    number = float(match[1]) if match else 0.0
    unit = match[2] if match else ""
    if not number or (unit != "minute" and number != int(number)):
        raise ValueError(
            f"every must be like '50 updates', '1 epoch' or '10 minutes'; got {every!r}"
        )
    return number, unit
