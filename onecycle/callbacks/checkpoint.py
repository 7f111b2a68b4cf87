"""`Checkpoint`: save all of a fit now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any

from onecycle.arguments import check_cadences, check_count, check_flag, check_path
from onecycle.callbacks.signals import EXIT_CODE, signals_of
from onecycle.checkpoints import fit_files as files
from onecycle.checkpoints.background import BackgroundWriter, copied
from onecycle.checkpoints.fit_plan import plan_of
from onecycle.checkpoints.source_state import Sources
from onecycle.checkpoints.unseen import Unseen
from onecycle.core.callback import Callback, During, Stage
from onecycle.core.restore import RngState
from onecycle.data.nested import map_tensors
from onecycle.elsewhere import says_our_keywords
from onecycle.optim.sharded import whole
from onecycle.processes import is_follower

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

_LATE = (
    "the training loader goes on from an earlier fit, of which it is not known how it began: what "
    "it draws at random, or counts, may come in another way"
)


class Checkpoint(Callback):
    """Save all that training changes every so often, so that a killed fit can go on exactly.

    ``learn.fit(..., resume=folder)`` goes on from the newest checkpoint, and ends in the same
    bits as a fit that nobody interrupted. A checkpoint holds the model with all its buffers, a
    loss function that is a module, the optimizer, the ``state_dict`` of every callback, the
    record, the random states of Python, NumPy, torch and each device, and the position in the
    data. It is taken between two updates, when every other callback has heard of the last one.
    Python fields of a model are not in it (`torch.nn.Module.get_extra_state` is for them), nor
    are random states within the worker processes of a loader; a `SeededDataset` needs none.

    Of several processes the first one writes, one file for all. With ``parallel="fsdp"`` it gathers
    the whole state for that, on the CPU.

    A file is whole or not there, and read without running code. If one cannot be written (a full
    disk), the fit goes on and a warning says so, at once and at the end. What training changes and
    no file holds is named in a warning when the first one is taken, as far as it can be seen.

    What else trains in the fields of a subclass of `Learner` is in the files too: optimizers,
    modules, and whatever has ``state_dict`` and ``load_state_dict``.

    Args:
        folder: Where the files go, one folder for each fit; made where it is missing.
        every: ``"50 updates"``, ``"1 epoch"`` or ``"10 minutes"``: after so many updates or
            epochs of the fit, or that long after the last one. Several, such as ``("1 epoch",
            "10 minutes")``: whenever one of them says so.
        keep: How many files are kept, at least 1; older ones are removed when a new one is there.
        on_signal: Whether SIGTERM, or one of the signals that are given, ends the fit in order:
            the running update is finished and saved, a validation is left at once (one of
            `Validate` between two batches is finished), callbacks
            clean up, and the process ends with exit code 75, upon which a scheduler can run it
            again. The fit must run in the main thread, and the signal go to its process alone,
            not to the workers of its loaders. The handlers that were there before are put back
            when the fit ends. Costs a copy of the state for each validation.
        on_error: Whether an exception, Ctrl-C included, leaves a checkpoint of the last whole
            update. Costs a copy of the state for each update.
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
    hears_last = True
    during: During = "train"

    @says_our_keywords
    def __init__(
        self,
        folder: str | Path,
        every: str | Sequence[str] = "1 epoch",
        keep: int = 3,
        *,
        background: bool = False,
        on_signal: bool | Signals | Sequence[Signals] = False,
        on_error: bool = False,
    ) -> None:
        self.folder, self.keep = check_path("folder", folder), check_count("keep", keep)
        self._writer = BackgroundWriter() if check_flag("background", background) else None
        self.cadences = check_cadences("every", every)
        if self.folder.is_file():
            raise ValueError(f"expected a folder for checkpoints; {str(folder)!r} is a file")
        self.on_signal, self.on_error = on_signal, check_flag("on_error", on_error)
        self._signals = signals_of(on_signal)
        self._goes_by_time = any(unit == "minute" for _, unit in self.cadences)
        if self._signals.wanted:
            self.during = "both"
        self._asked: Signals | None = None  # what all processes know of
        self._last: dict[str, Any] | None = None  # a copy of the last whole update
        self._saved_at = 0  # updates of this fit
        self._saved_when = 0.0
        self._n_heard = 0  # batches of this pass whose after_batch has fired
        self._pass_rng: dict[str, Any] = {}
        self._plan: dict[str, Any] = {}
        self._pass_sources: dict[str, Any] = {}
        self._is_late = False  # the training loader goes on from before this fit
        self._sources: Sources | None = None
        self._lost: list[str] | None = None  # looked for at the first checkpoint
        self._unseen: Unseen | None = None  # until the first checkpoint
        self._n_tried = self._n_failed = 0
        self._is_full = False  # older files could not be removed

    def before_fit(self, learn: Loop) -> None:
        """Begin anew."""
        self._plan, self._unseen = plan_of(learn), Unseen(learn)
        self._sources, self._lost, self._pass_rng = Sources(learn), None, {}
        self._saved_at = self._n_tried = self._n_failed = 0
        self._saved_when = time.monotonic()
        self._last = self._asked = None
        self._signals.listen()

    def before_train(self, learn: Loop) -> None:
        """Keep the random states, and whatever else a loader may draw its order from."""
        goes_on = learn.stream.goes_on(learn.dl, learn.n_iter)
        if not goes_on or not self._pass_rng:
            self.keep_pass(learn)
            self._is_late = goes_on
        learn.stream.when_begun[self] = partial(self.keep_pass, learn)
        self._n_heard = 0

    def keep_pass(self, learn: Loop) -> None:
        """Note how the pass begins; a resume does so again when it has put everything back.

        Where a stream goes on, it is how that began.
        """
        self._pass_rng, self._is_late = RngState().state_dict(), False
        if self._sources is not None:
            self._pass_sources = self._sources.state(learn)

    def after_step(self, learn: Loop) -> None:
        """Save, if it is time, after the update that a pass ends with when no batch is left."""
        if self._n_heard == learn.iter + 1:  # every other update is followed by after_batch
            self._save_if_due(learn, self._n_heard)

    def after_batch(self, learn: Loop) -> None:
        """Save, if it is time and no gradients wait for an update."""
        if not learn.training:
            self._leave_if_asked(learn)
            return
        self._n_heard = learn.iter + 1
        if learn.batches_in_window == 0:
            self._save_if_due(learn, self._n_heard)

    def after_epoch(self, learn: Loop) -> None:
        """Save, if it is time."""
        epochs = [number for number, unit in self.cadences if unit == "epoch"]
        self._save_if_due(learn, None, any((learn.epoch + 1) % number == 0 for number in epochs))

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
        self._last = None
        self._hear_of_signals(learn)
        if self._asked:
            self._leave()

    def cleanup_fit(self, learn: Loop) -> None:
        """After an error, save the last whole update where that is asked; put handlers back."""
        last, self._last = self._last, None
        learn.stream.when_begun.pop(self, None)
        try:
            self.wait_for_write()
            if last is not None and self.on_error:
                self._write(last)
        finally:
            self._signals.give_back()

    def _leave_if_asked(self, learn: Loop) -> None:
        """Leave a validation, with what stood before it, or before the last update.

        One between two batches is finished first, where nothing was copied before it.
        """
        self._hear_of_signals(learn)
        if self._asked and self._last is not None:
            lost = learn.n_updates - self._last["counters"]["n_updates"]
            if lost > 1:
                return
            self.wait_for_write()
            self._write(self._last)
            self._leave()

    def _hear_of_signals(self, learn: Loop, is_due: bool = False) -> bool:
        """Let a signal to one of several processes be one to all, at the same update.

        One that comes from here on is heard the next time, by all.

        Args:
            learn: The learner.
            is_due: Whether it is time to save, by the clock of this process.

        Returns:
            Whether it is by the clock of one of them.
        """
        self._asked = self._signals.came
        if learn.processes is None or not (self._signals.wanted or self._goes_by_time):
            return is_due
        asked, due = learn.processes.most_of([self._asked or 0, int(is_due)])
        self._asked = Signals(asked) if asked else None
        return bool(due)

    def _leave(self) -> None:
        asked, self._asked, self._signals.came, self._last = self._asked, None, None, None
        log.warning("Checkpoint: %s, the fit ends here and can be resumed", asked and asked.name)
        raise SystemExit(EXIT_CODE)

    def _keep_last(self, learn: Loop, batches: int | None) -> None:
        is_last = bool(self._signals.wanted) and batches == learn.n_iter
        if (self.on_error or is_last) and not learn.is_cancelled:
            state = self._captured(learn, batches)
            self._last = map_tensors(lambda t: t.detach().to("cpu", copy=True), state)

    def save(self, learn: Loop) -> None:
        """Save now, whenever the next one is due: in ``after_batch``, when an update was made."""
        self._save(learn, learn.iter + 1)

    def wait_for_write(self) -> None:
        """Wait until the checkpoint that is being written in the background is there."""
        if self._writer is not None:
            self._writer.wait()

    def _save_if_due(self, learn: Loop, batches: int | None, is_due: bool = False) -> None:
        is_due = self._hear_of_signals(learn, is_due or self._is_due(learn))
        self._keep_last(learn, batches)
        if learn.is_cancelled:  # the next batch is not what comes next
            return
        if is_due or self._asked:
            self._save(learn, batches)
        if self._asked:
            self._leave()

    def _is_due(self, learn: Loop) -> bool:
        """Tell whether it is time, wherever in an epoch."""
        done, before = learn.n_updates, self._saved_at
        if any(
            done // number > before // number for number, unit in self.cadences if unit == "update"
        ):
            return True
        minutes = (time.monotonic() - self._saved_when) / 60 if self._goes_by_time else 0.0
        return any(minutes >= number for number, unit in self.cadences if unit == "minute")

    def _save(self, learn: Loop, batches: int | None) -> None:
        self._saved_at, self._saved_when = learn.n_updates, time.monotonic()
        self._tell_unseen(learn)
        state = self._captured(learn, batches)
        if self._writer is None:
            self._write(state)
        else:
            self._writer.wait()  # before there are two copies
            self._writer.start(partial(self._write, copied(state)))

    def _captured(self, learn: Loop, batches: int | None) -> dict[str, Any]:
        state = files.capture(learn, self._plan, batches, self._pass_rng)
        if learn.sharded is not None:  # every process takes part, the first one keeps
            state = whole(state, keeps=not is_follower())
        state["extra"] |= self._of_sources(learn, batches)
        state["extra"] |= learn.stored_beside(state)
        if learn.stream.drawn:
            state["extra"]["stream"] = {"epoch": learn.stream.epoch, "drawn": learn.stream.drawn}
        return files.readable_parts(state)

    def _write(self, state: dict[str, Any]) -> None:
        if is_follower():  # the first process writes for all
            return
        self._n_tried += 1
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

    def _of_sources(self, learn: Loop, batches: int | None) -> dict[str, Any]:
        """Return what the loaders draw from, and say once what of that cannot be kept."""
        if self._sources is None:
            return {}
        now = self._sources.state(learn)
        begun = now if batches is None and not learn.stream.drawn else self._pass_sources
        if learn.stream.drawn:  # which began long ago; what is passed beside it did not
            beside = {p: s for p, s in now["states"].items() if p.partition(".")[0] != "train"}
            begun = {**begun, "states": {**begun["states"], **beside}}
        if self._lost is None:
            self._lost = self._sources.lost(learn)
            if self._is_late:
                self._lost.append(_LATE)
            for sentence in () if is_follower() else self._lost:
                log.warning("Checkpoint: a resumed fit may end in other bits: %s", sentence)
        parts = {"pass": self._sources.for_file(begun), "now": self._sources.for_file(now)}
        return {"sources": parts, "lost": self._lost}

    def _tell_unseen(self, learn: Loop) -> None:
        """Say at the first checkpoint what is in none."""
        found = self._unseen.found(learn) if self._unseen is not None else []
        self._unseen = None
        if found and not is_follower():
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
