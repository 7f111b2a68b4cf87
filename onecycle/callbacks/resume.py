"""`Checkpoint`: save all of a fit now and then; and how ``resume=`` goes on with it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle import checkpoint_files as files
from onecycle.callback import Callback, Stage
from onecycle.callbacks.param_schedule import OneCycleSchedule, ParamScheduler
from onecycle.data import can_skip, n_batches
from onecycle.loop import log
from onecycle.snapshot import RngState

if TYPE_CHECKING:
    from onecycle.loop import Loop

_EVERY = re.compile(r"(\d+(?:\.\d+)?) (update|epoch|minute)s?")


class Checkpoint(Callback):
    """Save all that training changes every so often, so that a killed fit can go on exactly.

    ``learn.fit(..., resume=folder)`` goes on from the newest checkpoint, and ends in the same
    bits as a fit that nobody interrupted. A checkpoint holds the model with all its buffers, a
    loss function that is a module, the optimizer, the ``state_dict`` of every callback, the
    record, the random states of Python, NumPy, torch and each device, and the position in the
    data. It is taken between two updates, when every other callback has heard of the last one.
    Python fields of a model are not in it (`torch.nn.Module.get_extra_state` is for them), nor
    are random states within the worker processes of a loader.

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
    """

    stage = Stage.SAVE

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path = path
        self._state: dict[str, Any] | None = state

    def check(self, learn: Loop) -> None:
        """Refuse to go on with another fit, before anything is loaded or written.

        Raises:
            ValueError: Naming all that differs.
            CheckpointError: If the model is another one.
        """
        if self._state is None:
            return
        was, now = self._state["plan"], plan_of(learn)
        names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        if names:
            differences = "; ".join(f"{n} was {was.get(n)} and is {now.get(n)}" for n in names)
            raise ValueError(
                f"cannot resume from {self.path}, this is another fit: {differences}. Give it the "
                "same arguments, or start a new fit instead, without resume="
            )
        files.check_modules(learn, self._state, self.path)

    def before_fit(self, learn: Loop) -> None:
        """Put the learner at its epoch; between two epochs, put everything back."""
        if self._state is None:
            return
        position = self._state["position"]
        log.info("resume: from %s, epoch %d", self.path, position["epoch"])
        files.restore_counters(learn, self._state)
        if position["batches"] is None:
            files.restore(learn, self._state)
            RngState.from_state_dict(self._state["rng"]).restore()
            self._state = None

    def before_train(self, learn: Loop) -> None:
        """Within an epoch, put everything back now that it has begun."""
        if self._state is None:
            return
        state, self._state = self._state, None
        files.restore(learn, state)
        if learn.iter and not can_skip(learn.dl):
            log.warning(
                "resume: the training loader cannot be repositioned: its first %d batches are "
                "drawn and dropped",
                learn.iter,
            )
        RngState.from_state_dict(state["pass_rng"]).restore()
        learn.rng = RngState.from_state_dict(state["rng"])


def resuming(path: str | Path | None) -> list[Callback]:
    """Return the callbacks that let a fit go on from a checkpoint.

    Args:
        path: A file of `Checkpoint`, or its folder, whose newest complete file is taken; ``None``
            to begin at the beginning.

    Returns:
        The callbacks, to come after all others; none where there is no checkpoint, which the log
        says.

    Raises:
        CheckpointError: If what is there cannot be read.
    """
    if path is None:
        return []
    found = files.read_newest(path)
    if found is None:
        log.warning("resume: no checkpoint in %s, the fit starts from the beginning", path)
        return []
    resume = Resume(*found)
    check = Callback(before_fit=resume.check)
    check.stage = Stage.PREPARE  # the plan is known then, and no logger has begun a file
    return [check, resume]


def plan_of(learn: Loop) -> dict[str, Any]:
    """Return what a resumed fit must have in common with the interrupted one.

    Args:
        learn: The learner after ``before_fit`` at `Stage.PREPARE`.

    Returns:
        Plain values by name; schedules as dicts where they can be stored, else as text.
    """
    groups = learn.groups
    plan: dict[str, Any] = {
        "n_epoch": learn.n_epoch,
        "steps_per_epoch": learn.steps_per_epoch,
        "max_updates": learn.max_updates,
        "the number of training batches": n_batches(learn.dls.train),
        "batches_per_update": learn.batches_per_update,
        "the number of planned updates": learn.n_updates_planned,
        "the optimizer": type(learn.opt).__name__,
        "the number of parameters of each group": [
            len(groups.params(g)) for g in range(len(groups))
        ],
        "lr": groups.get("lr"),
    }
    if "weight_decay" in groups.names():
        plan["weight_decay"] = groups.get("weight_decay")
    preparing = [cb for cb in learn.cbs if cb.stage is Stage.PREPARE and cb.takes_part_in("fit")]
    # One made from functions has no name that could be compared.
    plan["the preparing callbacks"] = [
        type(cb).__name__ for cb in preparing if type(cb) is not Callback
    ]
    for callback in preparing:
        if isinstance(callback, OneCycleSchedule):
            plan["lr_max"] = groups.expand("lr_max", callback.lr_max)
            plan["policy"] = callback.policy if isinstance(callback.policy, str) else "a Schedule"
        if isinstance(callback, ParamScheduler):
            for name, each in callback.schedules(learn).items():
                plan[f"the schedule of {name}"] = [_stored(schedule) for schedule in each]
    return plan


def _stored(schedule: Any) -> Any:
    try:
        return None if schedule is None else schedule.to_dict()
    except TypeError:  # its class has no kind
        return repr(schedule)


def _parse(every: str) -> tuple[float, str]:
    match = _EVERY.fullmatch(every) if isinstance(every, str) else None
    number = float(match[1]) if match else 0.0
    unit = match[2] if match else ""
    if not number or (unit != "minute" and number != int(number)):
        raise ValueError(
            f"every must be like '50 updates', '1 epoch' or '10 minutes'; got {every!r}"
        )
    return number, unit
