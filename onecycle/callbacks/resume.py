"""`Checkpoint`: save all of a fit now and then; and how ``resume=`` goes on with it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_one_of
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.callbacks.replan import (
    Extend,
    Replan,
    described,
    differing,
    kept,
    may_change,
    plan_of,
    tail,
    updates_of,
)
from onecycle.checkpoints import fit_files as files
from onecycle.core.callback import Callback, Stage
from onecycle.core.loop import log
from onecycle.core.restore import RngState
from onecycle.data.passes import can_skip

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

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
    disk), the fit goes on and a warning says so, at once and at the end.

    Args:
        folder: Where the files go, one folder for each fit; made where it is missing.
        every: ``"50 updates"``, ``"1 epoch"`` or ``"10 minutes"``: after so many updates or
            epochs of the fit, or that long after the last one.
        keep: How many files are kept, at least 1; older ones are removed when a new one is there.

    Raises:
        ValueError: For arguments that are none of these.
        TypeError: At the first checkpoint, if a callback's state has more than plain values and
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

    def __init__(self, folder: str | Path, every: str = "1 epoch", keep: int = 3) -> None:
        self.folder, self.keep = Path(folder), keep
        self._number, self._unit = _parse(every)
        if not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep must be a whole number of files, from 1; got {keep!r}")
        if self.folder.is_file():
            raise ValueError(f"expected a folder for checkpoints; {str(folder)!r} is a file")
        self._saved_at = 0  # updates of this fit
        self._saved_when = 0.0
        self._n_heard = 0  # batches of this pass whose after_batch has fired
        self._pass_rng: dict[str, Any] = {}
        self._plan: dict[str, Any] = {}
        self._n_tried = self._n_failed = 0

    def before_fit(self, learn: Loop) -> None:
        """Begin anew."""
        self._plan = plan_of(learn)
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
        if self._n_failed:
            log.warning(
                "Checkpoint: %d of %d checkpoints could not be written to %s",
                self._n_failed,
                self._n_tried,
                self.folder,
            )

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
        state = files.capture(learn, self._plan, batches, self._pass_rng)
        try:
            files.write(files.next_path(self.folder), state, verify=self._n_tried == 1)
            files.remove_old(self.folder, self.keep)
        except (OSError, RuntimeError) as error:
            self._n_failed += 1
            if self._n_failed == 1:
                log.warning(
                    "Checkpoint: could not write to %s, the fit goes on: %s", self.folder, error
                )

    def state_dict(self) -> dict[str, Any]:
        """Return when the last checkpoint was taken, and how the training pass began."""
        return {"saved_at": self._saved_at, "pass_rng": self._pass_rng}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._saved_at, self._pass_rng = state["saved_at"], state["pass_rng"]


class Resume(Callback):
    """Put a fit back where it was interrupted; the last callback to hear that it begins.

    What ``resume=`` adds to a fit, through `resuming`.

    Args:
        path: The file, for messages.
        state: What is in it.
        extend: How to go on if the plan has changed; ``None`` to refuse that.
    """

    stage = Stage.SAVE

    def __init__(self, path: Path, state: dict[str, Any], extend: Extend | None = None) -> None:
        self.path = path
        self._state: dict[str, Any] | None = state
        self._extend = extend
        self._rates: list[float] | None = None  # asked for, where they are others than before
        # That of a fit which landed, or was extended, before it was interrupted.
        found = [part for name, part in state["callbacks"] if name == Replan.__name__]
        self._replan = Replan.from_state(found[0]) if found else None

    def check(self, learn: Loop) -> None:
        """Refuse to go on with another fit, before anything is loaded or written.

        Raises:
            ValueError: Naming all that differs.
            CheckpointError: If the model is another one.
        """
        if self._state is None:
            return
        was, now = self._state["plan"], plan_of(learn)
        names = differing(was, now)
        if names:
            self._check_change(learn, names, was, now)
        else:
            self._extend = None
        files.check_modules(learn, self._state, self.path)
        if self._extend is not None:
            self._change_plan(learn, self._state, was)
            self._rates = now["lr"] if "lr" in names else None

    def _check_change(
        self, learn: Loop, names: list[str], was: dict[str, Any], now: dict[str, Any]
    ) -> None:
        changes = described(names, was, now)
        if not may_change(names):
            raise ValueError(
                f"cannot resume from {self.path}, this is another fit: {changes}. Give it the "
                "same arguments, or start a new fit instead, without resume="
            )
        if self._extend is None:
            raise ValueError(
                f"cannot resume from {self.path} just so, the plan has changed: {changes}. "
                'Choose extend="keep" (the old schedule goes on, and its last value holds), '
                '"restretch" (the new schedule over the new length, read at the present update) or '
                '"tail" (half a cosine from the present values to where the new schedule ends); or '
                "give it the same arguments, or start a new fit instead, without resume="
            )
        for other in learn.cbs:
            if isinstance(other, ParamScheduler) and not other.schedules(learn):
                raise ValueError(
                    f"cannot extend a fit with {type(other).__name__}, which has a length of its "
                    "own: use a Schedule, such as torch_one_cycle, or give it the same arguments"
                )

    def _change_plan(self, learn: Loop, state: dict[str, Any], was: dict[str, Any]) -> None:
        """Give the stored fit the length of this one, and find the schedules that go on."""
        counters, position = state["counters"], state["position"]
        tried = counters["n_updates"] + counters["n_skipped"]
        planned = updates_of(learn, tried, position["epoch"], position["batches"] or 0)
        if planned is not None and planned <= tried:
            raise ValueError(
                f"cannot go on from {self.path}: {tried} updates are done, and the fit is to have "
                f"{planned} in all; give it a greater n_epoch or max_updates"
            )
        scheduled = planned
        if self._extend == "keep":
            scheduled = counters["n_updates_scheduled"] or planned
        elif self._extend == "tail":
            if planned is None:
                raise ValueError(
                    'extend="tail" needs to know how many updates are left, and the training '
                    "loader has no length: give max_updates="
                )
            scheduled = planned - counters["n_skipped"]  # so that it gets to its end
        counters["n_epoch"], counters["max_updates"] = learn.n_epoch, learn.max_updates
        counters["n_updates_planned"], counters["n_updates_scheduled"] = planned, scheduled
        if self._extend != "keep":
            self._replan = None
        elif self._replan is None:
            self._replan = kept(was)
        else:
            self._replan.landing = None
        state["callbacks"] = [each for each in state["callbacks"] if each[0] != Replan.__name__]

    def before_fit(self, learn: Loop) -> None:
        """Put the learner at its epoch; between two epochs, put everything back."""
        if self._state is None:
            return
        position = self._state["position"]
        log.info("resume: from %s, epoch %d", self.path, position["epoch"])
        files.restore_counters(learn, self._state)
        if position["batches"] is None:
            self._restore(learn, self._state)
            RngState.from_state_dict(self._state["rng"]).restore()
            self._state = None

    def before_train(self, learn: Loop) -> None:
        """Within an epoch, put everything back now that it has begun."""
        if self._state is None:
            return
        state, self._state = self._state, None
        self._restore(learn, state)
        if self._extend is not None:
            learn.plan_pass()
        if learn.iter and not can_skip(learn.dl):
            log.warning(
                "resume: the training loader cannot be repositioned: its first %d batches are "
                "drawn and dropped",
                learn.iter,
            )
        RngState.from_state_dict(state["pass_rng"]).restore()
        learn.rng = RngState.from_state_dict(state["rng"])

    def _restore(self, learn: Loop, state: dict[str, Any]) -> None:
        if self._replan is not None and self._extend is None:
            self._replan.join(learn)  # its state is one of those that are restored
        files.restore(learn, state)
        if self._extend == "keep" and self._replan is not None:
            self._replan.join(learn)
        elif self._extend == "tail":
            tail(learn, self._rates).join(learn)
        elif self._extend == "restretch" and self._rates is not None:
            learn.groups.set("lr", self._rates)


def resuming(path: str | Path | None, extend: Extend | None = None) -> list[Callback]:
    """Return the callbacks that let a fit go on from a checkpoint.

    Args:
        path: A file of `Checkpoint`, or its folder, whose newest complete file is taken; ``None``
            to begin at the beginning.
        extend: How to go on if the plan of the fit has changed: see `Learner.fit`.

    Returns:
        The callbacks, to come after all others; none where there is no checkpoint, which the log
        says.

    Raises:
        ValueError: If there is nothing to extend.
        CheckpointError: If what is there cannot be read.
    """
    if extend is not None:
        check_one_of("extend", extend, ("keep", "restretch", "tail"))
    if path is None:
        if extend is not None:
            raise ValueError(
                f"extend={extend!r} says how a resumed fit goes on: give resume= too, with the "
                "folder of its checkpoints"
            )
        return []
    found = files.read_newest(path)
    if found is None:
        log.warning("resume: no checkpoint in %s, the fit starts from the beginning", path)
        return []
    resume = Resume(*found, extend)
    check = Callback(before_fit=resume.check)
    check.stage = Stage.PREPARE  # the plan is known then, and no logger has begun a file
    return [check, resume]


def _parse(every: str) -> tuple[float, str]:
    match = _EVERY.fullmatch(every) if isinstance(every, str) else None
    number = float(match[1]) if match else 0.0
    unit = match[2] if match else ""
    if not number or (unit != "minute" and number != int(number)):
        raise ValueError(
            f"every must be like '50 updates', '1 epoch' or '10 minutes'; got {every!r}"
        )
    return number, unit
