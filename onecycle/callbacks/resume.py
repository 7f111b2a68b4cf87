"""`Resume`: how ``resume=`` goes on with what `Checkpoint` saved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from onecycle.arguments import check_one_of, check_path
from onecycle.callbacks.checkpoint import Checkpoint
from onecycle.callbacks.param_scheduler import ParamScheduler
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.replan import Replan, tail
from onecycle.checkpoints import fit_files as files
from onecycle.checkpoints.fit_plan import (
    Changes,
    Extend,
    changes,
    kept_schedules,
    may_change,
    plan_of,
    told,
    updates_of,
)
from onecycle.checkpoints.snapshot import Snapshot, has_lazy
from onecycle.checkpoints.source_state import load_sources
from onecycle.core.callback import Callback, Stage
from onecycle.core.restore import Capture, RngState, surely
from onecycle.data.passes import can_skip
from onecycle.data.streams import Stream
from onecycle.parallel.resumed import take_own_streams
from onecycle.processes import Processes, is_follower

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")


class Resume(Callback):
    """Put a fit back where it was interrupted; the last callback to hear that it begins.

    What ``resume=`` adds to a fit, through `resuming`.

    Args:
        path: The file, for messages.
        state: What is in it.
        extend: How to go on if the plan has changed; ``None`` to refuse that.
        seed: The seed that was asked for; ``None`` to take over that of the interrupted fit.
    """

    stage = Stage.SAVE
    hears_last = True

    def __init__(
        self,
        path: Path,
        state: dict[str, Any],
        extend: Extend | None = None,
        seed: int | None = None,
    ) -> None:
        self.path, self.seed, self.stored = path, seed, state
        self._state: dict[str, Any] | None = state
        self._extend = extend
        self.before: Snapshot | None = None  # of the learner, until all is put back
        self._stored: dict[str, Any] | None = None  # until a stream that goes on is open again
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
        files.check_modules(learn, self._state, self.path)
        was, now = self._state["plan"], plan_of(learn)
        differing = changes(was, now)
        seed = self._state["counters"]["seed"]
        if self.seed is not None and self.seed != seed:
            differing["seed"] = (seed, self.seed)
        if differing:
            self._check_change(learn, differing)
        else:
            self._extend = None
        files.check_opt(learn, self._state, self.path)
        if self._extend is not None:
            self._change_plan(learn, self._state, was)
            self._rates = now["lr"] if "lr" in differing else None

    def _check_change(self, learn: Loop, differing: Changes) -> None:
        said = told(differing)
        if not may_change(differing):
            raise ValueError(
                f"cannot resume from {self.path}, this is another fit: {said}. Give it the "
                "same arguments, or start a new fit instead, without resume="
            )
        if self._extend is None:
            raise ValueError(
                f"cannot resume from {self.path} just so, the plan has changed: {said}. "
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
            self._replan = Replan(kept_schedules(was))
        else:
            self._replan.landing = None
        state["callbacks"] = [each for each in state["callbacks"] if each[0] != Replan.__name__]

    def before_fit(self, learn: Loop) -> None:
        """Put the learner at its epoch; between two epochs, put everything back."""
        if self._state is None:
            return
        position = self._state["position"]
        # At a level that is seen where nobody has set up logging.
        log.log(
            logging.INFO if is_follower() else logging.WARNING,
            "resume: from %s, epoch %d, after %d updates",
            self.path,
            position["epoch"],
            self._state["counters"]["n_updates"],
        )
        files.restore_counters(learn, self._state)
        learn.stream = Stream(**self._state["extra"].get("stream", {}))
        if position["batches"] is None:
            self._restore(learn, self._state)
            self._load_sources(learn, self._state)
            RngState.from_state_dict(self._state["rng"]).restore()
            self._stored, self._state = self._state, None
            if next(iter(learn.epochs_left()), None) is None:
                log.warning(
                    "resume: this fit is complete, nothing is trained: for a new one give another "
                    "folder, or no resume="
                )

    def before_train(self, learn: Loop) -> None:
        """Within an epoch, put everything back now that it has begun."""
        state, self._state = self._state, None
        if state is None:
            self._reopen(learn)
            return
        self._restore(learn, state)
        if self._extend is not None:
            learn.plan_pass()
        if learn.iter and not learn.stream.drawn and not can_skip(learn.dl):
            log.warning(
                "resume: the training loader cannot be repositioned: its first %d batches are "
                "drawn and dropped",
                learn.iter,
            )
        self._load_sources(learn, state)
        self._put_where_it_began(learn, state)
        learn.rng = _Here.of(learn, state)

    def _reopen(self, learn: Loop) -> None:
        """Let a stream that goes on be drawn as it was, without a trace in the random states."""
        state, self._stored = self._stored, None
        if state is not None and learn.stream.goes_on(learn.dl, learn.n_iter):
            here = _Here.of(learn, {**state, "rng": RngState().state_dict()})
            load_sources(learn, state["extra"]["sources"]["pass"], drawn_again=False)
            self._put_where_it_began(learn, state)
            learn.rng = here
        elif state is not None and "stream" in state["extra"]:  # a plan that begins it anew
            load_sources(learn, state["extra"]["sources"]["now"], drawn_again=False)

    def _put_where_it_began(self, learn: Loop, state: dict[str, Any]) -> None:
        RngState.from_state_dict(state["pass_rng"]).restore()
        for callback in learn.cbs:
            if isinstance(callback, Checkpoint):
                callback.keep_pass(learn)

    def _load_sources(self, learn: Loop, state: dict[str, Any]) -> None:
        """Put back what the loaders draw from, and say what cannot be."""
        sources = state["extra"].get("sources")
        if sources is None:
            return
        missing = load_sources(learn, sources["pass"], drawn_again=True)
        if missing:
            log.warning(
                "resume: the data may come in another order, or be augmented in another way: there "
                "is no state for, or no place for that of, %s",
                ", ".join(missing),
            )
        for sentence in state["extra"].get("lost", ()):
            log.warning("resume: the fit may end in other bits: %s", sentence)

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
        self.before = None


@contextmanager
def whole_or_undone(learn: Loop, resumed: Sequence[Callback]) -> Iterator[None]:
    """Run a fit that leaves the learner as it was if it is refused before it goes on.

    Args:
        learn: The learner.
        resumed: What `resuming` returned.
    """
    resume = next((each for each in resumed if isinstance(each, Resume)), None)
    if resume is None:
        yield
        return
    resume.before = None if has_lazy(learn) else Snapshot(learn)
    record = Capture()
    recorders = [callback for callback in learn.cbs if isinstance(callback, Recorder)]
    record.add([vars(series) for each in recorders for series in each.history.values()])
    try:
        yield
    except BaseException:
        if resume.before is not None:
            surely(resume.before.restore)
            surely(record.restore)
        raise


class _Here(RngState):
    """The random states of the batch at which a fit goes on, those of the loaders included."""

    _put_sources: Callable[[], object]

    @classmethod
    def of(cls, learn: Loop, state: dict[str, Any]) -> Self:
        """Make them of what `Checkpoint` stored."""
        here = cls.from_state_dict(state["rng"])
        sources = state["extra"].get("sources")
        here._put_sources = lambda: (
            None if sources is None else load_sources(learn, sources["now"], drawn_again=False)
        )
        return here

    def restore(self) -> None:
        """Put every generator back."""
        self._put_sources()
        super().restore()


def state_of(resumed: Sequence[Callback]) -> dict[str, Any] | None:
    """Return what the checkpoint holds; ``None`` where there is none.

    Args:
        resumed: What `resuming` returned.
    """
    return next((each.stored for each in resumed if isinstance(each, Resume)), None)


def resuming(
    path: str | Path | None,
    extend: Extend | None = None,
    seed: int | None = None,
    processes: Processes | None = None,
) -> list[Callback]:
    """Return the callbacks that let a fit go on from a checkpoint.

    Args:
        path: A file of `Checkpoint`, or its folder, whose newest complete file is taken; ``None``
            to begin at the beginning.
        extend: How to go on if the plan of the fit has changed: see `Learner.fit`.
        seed: The learner's seed, where it was asked for: another one is another fit.
        processes: Those that train together: the first one reads for all.

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
    read = partial(files.read_newest, check_path("resume", path))
    found = read() if processes is None else processes.from_first(read)
    if found is None:
        log.warning("resume: no checkpoint in %s, the fit starts from the beginning", path)
        return []
    take_own_streams(found[1], processes)
    resume = Resume(*found, extend, seed)
    check = Callback(before_fit=resume.check)
    check.stage = Stage.PREPARE  # the plan is known then, and no logger has begun a file
    return [check, resume]
