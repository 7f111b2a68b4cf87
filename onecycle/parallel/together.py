"""`ParallelLoop`: the loop of a learner that trains in several processes, or goes on with such."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from onecycle.arguments import Default, shown
from onecycle.core.callback import Callback, Handler, Run
from onecycle.core.handlers import Handlers
from onecycle.core.loop import Loop
from onecycle.core.restore import RngState, surely
from onecycle.data.streams import is_stream
from onecycle.errors import OnecycleError
from onecycle.optim.build import move_to
from onecycle.optim.named_modules import check_blocks
from onecycle.parallel.agreed import AgreedHandlers, agreed_events
from onecycle.parallel.alike import check_data
from onecycle.parallel.blocks import blocks_of
from onecycle.parallel.joining import Device, Parallel, joined
from onecycle.parallel.resumed import batches_of, shared_state
from onecycle.parallel.sharded import FullySharded, Sharded, check_parts_serve
from onecycle.parallel.shards import Shards
from onecycle.parallel.wrapped import DataParallel
from onecycle.processes import Processes
from onecycle.record.metrics import MetricSet

log = logging.getLogger("onecycle")


class ParallelLoop(Loop):
    """Runs fits and range tests in all processes of a job as one; inference in each for itself.

    Attributes:
        has_agreed: Whether the last cancel is one of all processes.
        asked_landing: In how many updates this process has asked the others to land, and why.
        shards: What this process takes of each batch; ``None`` where one process trains alone.
    """

    shards: Shards | None = None
    _shares: bool
    _blocks: list[str]
    _cuts = False
    _half: torch.dtype | None = None
    _agreed: set[str] | None
    has_agreed = False
    _has_told = False
    #: Whether a fit of this process is running, of whichever learner.
    _runs: ClassVar[bool] = False
    asked_landing: tuple[int, str | None] | None = None

    def _join_job(
        self,
        parallel: Parallel | Default | None,
        device: Device,
        cbs: Sequence[Callback],
        blocks: Sequence[str],
    ) -> Device:
        """Take part in the job that this process belongs to; return the device to train on."""
        self._shares, self._agreed, self._blocks = True, None, check_blocks(blocks)
        if self._blocks and parallel != "fsdp":
            raise ValueError(
                'blocks are the parts that parallel="fsdp" gathers for themselves: leave blocks= '
                f"out, or give both; got blocks={shown(blocks)} and parallel={shown(parallel)}"
            )
        self.processes, device = joined(parallel, device)
        if self.processes is not None:
            own = self.processes
            self.shards = Shards(own.rank, own.world, own)
            self._cuts = parallel == "fsdp"
        return device

    def _place(
        self,
        device: Device,
        model: nn.Module,
        loss: nn.Module | None,
        given: Any,
    ) -> None:
        """Move model and loss to the device; cut them where each process is to have a part."""
        if self._blocks:  # looked for in one process too, in which the script is tried first
            blocks_of(model, self._blocks)
        if not self._cuts or self.processes is None:
            move_to(device, model, loss)
            return
        if given is not None:
            raise ValueError(
                'parallel="fsdp" cuts the parameters, and opt= holds them as they were: give '
                "opt_func=, which is called when they are cut"
            )
        here = torch.device("cpu" if device is None else device)
        if here.type == "cuda":  # where torch gathers it
            torch.cuda.set_device(here)
        self.sharded = Sharded(self.processes, model, self._blocks, loss, here, self._half)

    def write_once(self, write: Callable[[], object]) -> None:
        """Let the first process write what all have, and the others wait until it is there.

        Args:
            write: Where each process has a part of the model, all call it: it sees to the rest.
        """
        if self.processes is None or self.sharded is not None:
            write()
        else:
            self.processes.after_first(write, f"update {self.total_updates}")

    def require_whole(self, verb: str) -> None:
        """Refuse what needs the whole model, where each process has a part of it.

        Args:
            verb: What needs it.

        Raises:
            ValueError: With what to do.
        """
        if self.sharded is not None:
            raise ValueError(
                f'{verb} needs the whole model, and with parallel="fsdp" each process has a part '
                "of it: save(path), and load it in one process"
            )

    @contextmanager
    def batches_as(self, state: dict[str, Any] | None) -> Iterator[None]:
        """Run a fit with the batches of one that another number of processes began.

        Args:
            state: What the checkpoint holds; ``None`` for a fit that begins.
        """
        shards = self.shards
        size, items = (None, 1) if state is None else batches_of(state)
        if state is None or items == (1 if shards is None else shards.items):
            yield
            return
        others = shards or Shards(0, 1)
        own = others.batch_size_of(self.dls.train)
        if own is None or size is None or own * items != size * others.items:
            size = None  # their size has changed, which the plan of the fit refuses
        try:
            self.shards = others
            with others.resumed(self.dls.train, size, items):
                yield
        finally:
            surely(partial(setattr, self, "shards", shards))

    def drawn_seed(self) -> int:
        """Draw a seed, the same in every process."""
        own = int(torch.randint(2**62, ()))
        return own if self.processes is None else self.processes.from_first(lambda: own)

    def run_fit(
        self,
        n_epoch: float | None,
        *,
        cbs: Sequence[Callback] = (),
        run: Run = "fit",
        steps_per_epoch: int | None = None,
        max_updates: int | None = None,
    ) -> None:
        """Run a fit or a range test, in all processes; see `Loop.run_fit`."""
        limits = {"steps_per_epoch": steps_per_epoch, "max_updates": max_updates}
        if self.shards is None or self._run is not None:
            super().run_fit(n_epoch, cbs=cbs, run=run, **limits)
            return
        cbs_before, agreed_before, within = self.cbs, self._agreed, ParallelLoop._runs
        with self.shards.running(), failing_together(self.processes):
            try:
                ParallelLoop._runs = True
                both = [*self._joined(self.processes, [n_epoch, *limits.values()], run, cbs)]
                super().run_fit(n_epoch, cbs=[*cbs, *both], run=run, **limits)
                if not within:  # a fit whose processes draw otherwise, each for itself
                    _go_on_alike(self.processes)
            finally:
                ParallelLoop._runs = within
                surely(partial(vars(self).update, cbs=cbs_before, _agreed=agreed_before))

    def _joined(
        self,
        processes: Processes | None,
        limits: list[Any],
        run: Run,
        cbs: Sequence[Callback],
    ) -> list[Callback]:
        """Get ready to train together; return the callbacks to come last."""
        if processes is None or self.shards is None:
            return []
        if self.sharded is not None:
            self.sharded.check_joined()
        processes.ready()
        callbacks = [each for each in (*self.cbs, *cbs) if each.takes_part_in(run)]
        self._agreed = _compared(processes, [self.seed, *limits], callbacks)
        check_data(processes, {"training": self.dls.train, **self.dls.valid_sets()})
        together = DataParallel(processes, self.shards)
        if self.sharded is not None:
            check_parts_serve(callbacks)
            together = FullySharded(self.sharded, processes, self.shards)
        self.cbs = [together.front, *self.cbs]
        return together.back

    def _tell(self, world: int) -> None:
        """Say once what a batch is, but where the fit is told the size of the batch of all."""
        if self._has_told or self._run != "fit" or self.batch_sizes.of(self.epoch) is not None:
            return
        self._has_told = True
        size = self.whole_batch_size(self.dls.train)
        log.warning(
            "%d processes train one model: an update is made of %s, as in one process with a batch "
            "that much larger. Its learning rate is another one: ask lr_find, run in the same way, "
            "or try up to %d times that of one process",
            world,
            f"{world} batches of the loader" if size is None else f"{size} samples",
            world,
        )

    def make_handlers(self, callbacks: Sequence[Callback]) -> tuple[Handlers, Handlers]:
        """Return the tables of a run's handlers; of several processes such as agree."""
        if self._agreed is None or self.processes is None:
            return super().make_handlers(callbacks)
        processes, events = self.processes, self._agreed
        return (
            AgreedHandlers(callbacks, "train", processes, events),
            AgreedHandlers(callbacks, "valid", processes, events),
        )

    def _begin_pass(self, skip: int) -> Iterator[Any]:
        """Start the pass over this process's part of ``dl``."""
        if self.shards is None or not self._shares:
            return super()._begin_pass(skip)
        if self.training and self.processes is not None and self.processes.is_first:
            self._tell(self.processes.world)
        order = self.dl, self.seed, self.total_epochs
        if self.training and is_stream(self.dl):
            return self.shards.go_on_in(self.stream, *order, skip, self.n_iter)
        size = self.batch_sizes.of(self.epoch) if self.training else None
        return self.shards.start_pass(*order, skip, size)

    def count_batches(self, dl: Any, size: int | None = None) -> int | None:
        """Return how many batches of all processes a pass over a loader has."""
        if self.shards is None or not self._shares:
            return super().count_batches(dl, size)
        return self.shards.n_batches(dl, size)

    def whole_batch_size(self, dl: Any) -> int | None:
        """Return how many samples a batch of all processes has, where the loader says it."""
        if self.shards is None or not self._shares:
            return super().whole_batch_size(dl)
        return self.shards.batch_size_of(dl)

    def stored_beside(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return what others need to go on with the batches and the random states of these."""
        return shared_state(self.processes, self.shards, self.dls.train, state)

    def land_together(self, updates: int, reason: str | None) -> None:
        """Land the fit that is running; of several processes all, when the event is over."""
        if self._agreed is None:
            self._land(updates, reason)
        elif self.event not in self._agreed:
            raise RuntimeError(f"of several processes, none can land the fit in {self.event}")
        else:
            self.asked_landing = updates, reason

    def land_as_asked(self, said: Sequence[tuple[int, str | None] | None]) -> None:
        """Land as the first of the processes asked that did.

        Args:
            said: What each has asked for.
        """
        self.asked_landing = None
        self._land(*next(each for each in said if each is not None))

    def _land(self, updates: int, reason: str | None) -> None:
        raise NotImplementedError

    def check_same_plan(self, processes: Processes) -> None:
        """Refuse a fit of which rates, schedules or lengths differ between the processes."""
        raise NotImplementedError

    @property
    def has_samples(self) -> bool:
        """Whether this process has samples in the batch: one of several may only stand in."""
        return self.shards is None or not self._shares or self.shards.has_samples

    def measure_batch(self, means: MetricSet) -> None:
        """Add loss and metrics of the batch to the means of a pass."""
        if self.shards is None or self.has_samples:
            super().measure_batch(means)
        elif self.pred is not None:  # a stand-in, which counts nothing
            means.update(self.pred, self.yb, self.loss, 0, 0)

    def _infer(self, dl: Any, cbs: Sequence[Callback], collect: Handler, with_loss: bool) -> None:
        shares = self._shares
        if self.sharded is not None:
            self.sharded.check_joined()
        try:
            self._shares = False
            with nullcontext() if self.sharded is None else self.sharded.let_go():
                super()._infer(dl, cbs, collect, with_loss)
        finally:
            surely(partial(setattr, self, "_shares", shares))


def _compared(processes: Processes, limits: list[Any], callbacks: Sequence[Callback]) -> set[str]:
    """Refuse fits that differ between the processes; return the events on which all agree."""
    ours = [
        type(each).__name__
        for each in callbacks
        if type(each).__module__.startswith("onecycle.") and not each.first_process_only
        if type(each) is not Callback
    ]
    said = processes.gather((limits, ours, agreed_events(callbacks)))
    for number, (other_limits, other_callbacks, _) in enumerate(said):
        if (other_limits, other_callbacks) != said[0][:2]:
            raise ValueError(
                f"the processes are about to make different fits: seed, lengths and callbacks are "
                f"{said[0][0]} with {said[0][1]} in process 0, and {other_limits} with "
                f"{other_callbacks} in process {number}: let all run the same lines; what may "
                "write files does so in the first process alone, by itself"
            )
    return set().union(*(events for _, _, events in said))


@contextmanager
def failing_together(processes: Processes | None) -> Iterator[None]:
    """Run a block that all processes run, and end in all of them if it fails in one."""
    try:
        yield
    except BaseException as error:
        if processes is None:
            raise
        word = processes.fail(error)
        if word is None:
            raise
        raise OnecycleError(word) from error


def _go_on_alike(processes: Processes | None) -> None:
    """Give all processes the random states of the first one: what follows is drawn alike."""
    if processes is not None:
        state = processes.from_first(lambda: RngState().state_dict())
        if not processes.is_first:
            RngState.from_state_dict(state).restore()
