"""`Shards`: the part of each batch that one process takes, whatever the loader.

The batches of an epoch are those of one process with the batch of all of them; each process takes
its part by position. So no sample comes twice and none is left out, and the order is a function of
(seed, epoch), whatever the number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from onecycle.data.generators import global_states, order_seed, put_global_states, seed_global
from onecycle.data.loaders import TensorLoader, n_batches, shared_loader
from onecycle.data.nested import concatenate
from onecycle.data.parts import Part, PartSampler
from onecycle.data.passes import can_skip, start_pass
from onecycle.data.streams import Stream
from onecycle.errors import OnecycleError
from onecycle.parallel.alike import sign_of
from onecycle.parallel.share import can_split, loader_of_share
from onecycle.processes import Processes

log = logging.getLogger("onecycle")

_END = object()
_OTHER_INDICES = (
    "the sampler of a loader gives each process other indices, and of these each would take its "
    "part: samples would come twice or not at all. Let it give those of all, the same in every "
    "process: what draws at random needs a seed that all have, and what takes a share by RANK is "
    "to leave that to the Learner"
)
_OTHER_ITEMS = (
    "the processes draw other items from a loader, and of these each would take its part: samples "
    "would come twice or not at all. Let all draw the same: what draws at random needs a seed that "
    "all have, and what takes a share by RANK does so in split_for_rank(rank, world) alone"
)


class Shards:
    """Gives one process its part of the batches.

    A `TensorLoader` and a DataLoader are asked for the rows of this process alone. Of what is
    neither, and of an iterable data set, every process draws all and takes its items by position;
    what is random in drawing them comes from a stream of its own, the same in every process.

    An iterable data set that can leave out what is not this process's says so by a method
    ``split_for_rank(rank, world)``: see `onecycle.parallel.share`.

    Args:
        rank: Which process, from 0.
        world: How many there are.
        processes: Those of the job; ``None`` for one alone.

    Attributes:
        part: What it takes.
        items: How many of the loaders' own batches make a batch of all.
        has_samples: Whether the batch that was drawn last has samples of this process; otherwise
            it is a stand-in.
    """

    def __init__(self, rank: int, world: int, processes: Processes | None = None) -> None:
        self.part, self._processes = Part(rank, world), processes
        self._fixed: tuple[Any, int | None] = (None, None)  # of a resumed fit
        self.items = world
        self.has_samples = True
        self._kept: dict[int, tuple[Any, int | None, Any]] = {}  # whose worker processes stay
        self._told = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a fit with worker processes of its own."""
        before, self._kept = self._kept, {}
        try:
            yield
        finally:
            self._kept = before

    @contextmanager
    def resumed(self, dl: Any, batch_size: int | None, items: int) -> Iterator[None]:
        """Run a fit with the batches of one that had another number of processes.

        Args:
            dl: The training loader.
            batch_size: Samples in a batch of all; ``None`` where that is not known.
            items: How many of the loaders' own batches made a batch of all.
        """
        before = self._fixed, self.items
        self._fixed, self.items = (dl, batch_size), items
        try:
            yield
        finally:
            self._fixed, self.items = before

    def batch_size_of(self, dl: Any) -> int | None:
        """Return how many samples a batch of all processes has, where the loader knows it."""
        size = getattr(dl, "batch_size", None)
        if isinstance(dl, DataLoader) and type(dl.batch_sampler) is BatchSampler:
            size = dl.batch_sampler.batch_size
        if not isinstance(size, int) or not _is_by_rows(dl):
            return None
        return self._size(dl) or size * self.items

    def _size(self, dl: Any) -> int | None:
        return self._fixed[1] if self._fixed[0] is dl else None

    def n_batches(self, dl: Iterable[Any], size: int | None = None) -> int | None:
        """Return how many batches a pass has, the same in every process; ``None``: unknown.

        Args:
            dl: The loader.
            size: As for `start_pass`.
        """
        if _is_by_rows(dl) and not _has_own_batches(dl):
            return n_batches(self._shared(dl, size or self._size(dl)))
        n = n_batches(dl)
        if n is None:
            return None
        return n // self.items if _leaves_out(dl) else -(-n // self.items)

    def start_pass(
        self, dl: Iterable[Any], seed: int, epoch: int, skip: int, size: int | None = None
    ) -> Iterator[Any]:
        """Start one pass over this process's part, as `onecycle.data.passes.start_pass` does.

        Args:
            dl: The loader.
            seed: Seed of the learner.
            epoch: Epochs begun before this one, over the life of the learner.
            skip: Batches of all to pass over.
            size: The samples of a batch of all, for a loader that can be asked for rows; ``None``
                for its own.
        """
        self._tell(dl)
        if self._can_split(dl):
            return self._by_share(
                partial(self._start_share, dl, seed, epoch, skip=skip * self.items)
            )
        if not _is_by_rows(dl):
            open_it = start_pass if isinstance(dl, list | tuple) else start_apart
            items = partial(open_it, dl, seed, epoch, skip=skip * self.items)
            return self._by_item(items, _leaves_out(dl))
        shared = self._kept_shared(dl, size or self._size(dl))

        def start() -> Iterator[Any]:
            return start_pass(shared, seed, epoch, skip=skip)

        plain = can_skip(dl) or isinstance(dl, TensorLoader)
        batches = start() if plain else _in_stream(start, order_seed(seed, epoch))
        return self._counted(shared, batches, skip)

    def _shared(self, dl: Any, size: int | None) -> Any:
        if isinstance(dl, TensorLoader):
            return dl.shared(size or dl.batch_size * self.items, self.part)
        shared = shared_loader(dl, size, self.items, self.part)
        shared.batch_sampler.check = partial(self._check_alike, _OTHER_INDICES)
        return shared

    def _kept_shared(self, dl: Any, size: int | None) -> Any:
        known, its_size, shared = self._kept.get(id(dl), (None, None, None))
        if known is not dl or its_size != size:
            shared = self._shared(dl, size)
            if getattr(dl, "persistent_workers", False):
                self._kept[id(dl)] = dl, size, shared
        return shared

    def _counted(self, shared: Any, batches: Iterator[Any], skip: int) -> Iterator[Any]:
        """Note of each batch whether this process has samples in it."""
        if isinstance(shared, TensorLoader):
            n, size = len(shared.tensors[0]), shared.batch_size
            for i, batch in enumerate(batches, skip):
                own = self.part.rows(min(size, n - i * size), size)
                self.has_samples = own.start < own.stop
                yield batch
            return
        counts, to_drop = shared.batch_sampler.counts, 0 if can_skip(shared) else skip
        for batch in batches:
            for _ in range(to_drop):  # drawn and dropped on the way to the first one
                counts.popleft()
            to_drop = 0
            self.has_samples = counts.popleft() > 0
            yield batch

    def go_on_in(
        self,
        stream: Stream,
        dl: Iterable[Any],
        seed: int,
        epoch: int,
        skip: int,
        n_iter: int | None,
    ) -> Iterator[Any]:
        """Start a training pass over this process's part of a stream, as `Stream.start` does."""
        is_whole = n_iter is None or n_iter == self.n_batches(dl)
        if is_whole and _is_by_rows(dl):
            stream.forget()
            return self.start_pass(dl, seed, epoch, skip)
        n = n_batches(dl) if is_whole or n_iter is None else n_iter * self.items
        splits = self._can_split(dl)
        open_it = self._start_share if splits else start_apart
        begin = partial(stream.start, dl, seed, epoch, n_iter=n, start=open_it)
        begin = partial(begin, skip=skip * self.items)
        return self._by_share(begin) if splits else self._by_item(begin, _leaves_out(dl))

    def _can_split(self, dl: Any) -> bool:
        """Tell whether each process can draw its share alone: all have batches of their own."""
        is_own = self._processes is not None and self.items == self.part.world
        return is_own and can_split(dl)

    def _start_share(self, dl: Any, seed: int, epoch: int, *, skip: int = 0, **_: Any) -> Any:
        """Start a pass over this process's share; each batch is followed by those of the others.

        These are not there: so a pass counts as one that draws all.
        """
        share, others = loader_of_share(dl, self.part), [None] * (self.items - 1)
        batches, last = start_apart(share, seed, epoch, skip=skip // self.items), None
        while True:
            batch = next(batches, _END)
            if self._processes is None or not self._processes.any(batch is not _END):
                return
            if batch is not _END:
                last = batch
            elif last is None:  # nothing of its own to stand in
                last = next(start_apart(dl, seed, epoch))
            yield last, batch is not _END
            yield from others

    def _by_share(self, start: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """Take this process's batch of each so many in a row."""
        items = start()
        while group := list(islice(items, self.items)):
            batch, self.has_samples = group[0]
            yield batch
            del batch, group  # not kept alive while the next one is loaded

    def _by_item(self, start: Callable[[], Iterator[Any]], drop_last: bool) -> Iterator[Any]:
        """Take this process's items of each so many in a row."""
        items, is_first = start(), True
        while group := list(islice(items, self.items)):
            if is_first:
                self._check_alike(_OTHER_ITEMS, group)
            is_first = False
            if drop_last and len(group) < self.items:
                return
            own = group[self.part.of(len(group))]
            self.has_samples = bool(own)
            yield group[0] if not own else own[0] if len(own) == 1 else concatenate(own)

    def _check_alike(self, said: str, value: Any) -> None:
        """Refuse what the processes do not draw alike, at the beginning of a pass.

        Raises:
            OnecycleError: In every process.
        """
        if self._processes is not None and not self._processes.is_alike(sign_of(value)):
            raise OnecycleError(said)

    def _tell(self, dl: Any) -> None:
        if isinstance(dl, DataLoader) and type(dl.sampler) is DistributedSampler and not self._told:
            self._told = True
            log.warning(
                "a DistributedSampler pads: its order is kept, with its seed and its shuffle, and "
                "each process takes its part of every batch, so that no sample comes twice"
            )


def _is_by_rows(dl: Any) -> bool:
    """Tell whether rows of a batch can be asked for, without loading the others."""
    if isinstance(dl, TensorLoader):
        return type(dl).batches is TensorLoader.batches
    if type(dl) is not DataLoader or isinstance(dl.dataset, IterableDataset):
        return False
    return dl.batch_sampler is not None


def _leaves_out(dl: Any) -> bool:
    """Tell whether a loader leaves out what makes no full batch."""
    return type(dl) is DataLoader and dl.drop_last


def _has_own_batches(dl: Any) -> bool:
    own = getattr(dl, "batch_sampler", None)
    return own is not None and type(own) not in (BatchSampler, PartSampler)


def start_apart(
    dl: Iterable[Any],
    seed: int,
    epoch: int,
    *,
    skip: int = 0,
    more: Callable[[], object] | None = None,
) -> Iterator[Any]:
    """Start a pass as `onecycle.data.passes.start_pass` does, with random numbers of its own.

    What is drawn from the global generators comes from a stream of this pass, the same in every
    process, and theirs is left alone.
    """
    start = partial(start_pass, dl, seed, epoch, skip=skip, more=more)
    return _in_stream(start, order_seed(seed, epoch))


def _in_stream(start: Callable[[], Iterator[Any]], seed: int) -> Iterator[Any]:
    """Draw batches while the global generators are in a stream of their own, the same for all."""
    stream, batches = None, None
    while True:
        own = global_states()
        if stream is None:
            seed_global(seed)
        else:
            put_global_states(stream)
        try:
            batches = start() if batches is None else batches
            batch = next(batches, _END)
            stream = global_states()
        finally:
            put_global_states(own)
        if batch is _END:
            return
        yield batch
