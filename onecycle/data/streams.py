"""`Stream`: where a training loader stands that has no order of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from onecycle.data.generators import kept_states
from onecycle.data.held import hold_loaders
from onecycle.data.loaders import TensorLoader, n_batches
from onecycle.data.nested import leaves
from onecycle.data.passes import can_skip, hearers, start_pass
from onecycle.data.sources import data_sets, order_parts

log = logging.getLogger("onecycle")

_END: Any = object()


class Stream:
    """Starts the training passes of a learner; a stream goes on where the last pass was cut.

    A stream is a DataLoader of an ``IterableDataset`` or of a sampler without a length, or an
    iterable of one's own, unless it or a part of it has ``set_epoch``, and so an order for each
    epoch. A pass of it that ``steps_per_epoch`` or ``max_updates`` limits goes on where the one
    before stopped, whatever stopped it, also in the next fit. Where the stream ends meanwhile, it
    begins anew, and the pass has all its batches; but a pass that began with the stream ends with
    it. A pass without such a limit is the whole stream, from its beginning.

    What is open stays open between two fits, worker processes included, and is let go with the
    learner.

    Args:
        epoch: The epoch over the learner's life in which the stream was begun.
        drawn: The batches that were drawn since. They are drawn again when the next pass starts.

    Attributes:
        when_begun: Called when the stream begins, before anything is drawn from it; by whom.

    Example:
        >>> import itertools
        >>> class Endless:
        ...     def __iter__(self):
        ...         return itertools.count()
        >>> stream, loader = Stream(), Endless()
        >>> for epoch in range(2):
        ...     batches = stream.start(loader, 0, epoch, n_iter=3)
        ...     print([next(batches) for _ in range(3)])
        [0, 1, 2]
        [3, 4, 5]
    """

    def __init__(self, epoch: int = 0, drawn: int = 0) -> None:
        self.epoch, self.drawn = epoch, drawn
        self.when_begun: dict[object, Callable[[], object]] = {}
        self._start = start_pass
        self._loader: Any = None  # that of the position; None for the first that comes
        self._batches: Iterator[Any] | None = None
        self._workers: list[tuple[DataLoader[Any], Any]] = []
        self._first: list[Tensor] = []  # of the first batch of an epoch that was cut
        self._left = 0  # batches of an unlimited pass that did not come to its end
        self._said: set[str] = set()

    def __repr__(self) -> str:
        """Show where it stands."""
        return f"Stream(epoch={self.epoch}, drawn={self.drawn})"

    def goes_on(self, dl: Iterable[Any], n_iter: int | None) -> bool:
        """Tell whether a pass would go on with what an earlier one began.

        Args:
            dl: The training loader.
            n_iter: The batches of the pass; ``None`` if that is not known.
        """
        is_same = self._loader is None or self._loader is dl
        return self.drawn > 0 and is_same and _is_limited(dl, n_iter)

    def start(
        self,
        dl: Iterable[Any],
        seed: int,
        epoch: int,
        *,
        skip: int = 0,
        n_iter: int | None = None,
        start: Callable[..., Iterator[Any]] = start_pass,
    ) -> Iterator[Any]:
        """Start a training pass; of what is no stream as `onecycle.data.passes.start_pass` does.

        Args:
            dl: The training loader.
            seed: Seed of the learner.
            epoch: Epochs begun before this one, over the life of the learner.
            skip: Batches of this pass to pass over; where it goes on, those drawn are among them.
            n_iter: The batches after which the pass will be left; ``None`` for none.
            start: What opens the loader, as `onecycle.data.passes.start_pass` does.

        Returns:
            An iterator over the batches that are left. One over a stream may go on after them.
        """
        self._start = start
        if not _is_limited(dl, n_iter):
            self.forget()
            self._tell_left()
            batches = start(dl, seed, epoch, skip=skip, more=self._tell_more)
            if is_stream(dl):
                return self._whole(batches, skip, n_iter)
            is_cut = n_iter is not None and n_iter != n_batches(dl)
            return self._watched(batches) if is_cut and not skip and not can_skip(dl) else batches
        if self.goes_on(dl, n_iter):
            self._loader, skip = dl, 0
            if self._batches is None:
                self._reopen(seed)
        else:
            self.forget()
            self.begin(dl, seed, epoch)
        rest = _Pass(self, seed, epoch)
        for _ in range(skip):
            next(rest, None)
        return rest

    def begin(self, dl: Iterable[Any], seed: int, epoch: int) -> None:
        """Open a stream at its beginning."""
        self.epoch, self.drawn, self._left = epoch, 0, 0
        self._give_workers_back()
        for hear in self.when_begun.values():
            hear()
        self._loader, self._batches = dl, self._start(dl, seed, epoch)

    def draw(self) -> Any:
        """Draw the next batch of what is open; `_END` where there is none."""
        # An error in the stream, Ctrl-C included, ends what is open: the next pass opens it anew.
        batches, self._batches = self._batches, None
        batch = _END if batches is None else next(batches, _END)
        if batch is not _END:
            self.drawn += 1
            self._batches = batches
            self._take_workers()
        return batch

    def _reopen(self, seed: int) -> None:
        log.warning(
            "the training loader cannot be repositioned: its first %d batches are drawn and "
            "dropped",
            self.drawn,
        )
        with kept_states():
            batches = self._start(self._loader, seed, self.epoch, skip=self.drawn)
        self._batches = batches
        self._take_workers()

    def forget(self) -> None:
        """Let go of what is open: the next pass begins anew."""
        self.epoch = self.drawn = 0
        self._give_workers_back()
        self._batches = self._loader = None

    # Other passes meanwhile -----------------------------------------------------------------

    def hold(self, dl: Any) -> Callable[[], object]:
        """Keep what an open stream shares with a loader that is about to be passed.

        Args:
            dl: The other loader, or the same one.

        Returns:
            What puts it back.
        """
        shared = self._batches is not None and not _parts(self._loader).isdisjoint(_parts(dl))
        return hold_loaders(dl) if shared else lambda: None

    def _take_workers(self) -> None:
        """Keep processes that live on for this pass: another would set them back."""
        loader = self._loader
        if isinstance(loader, DataLoader) and loader._iterator is not None:
            self._workers.append((loader, loader._iterator))
            loader._iterator = None

    def _give_workers_back(self) -> None:
        for loader, workers in self._workers:
            loader._iterator = workers
        self._workers = []

    # What is said ---------------------------------------------------------------------------

    def _whole(self, batches: Iterator[Any], skip: int, n_iter: int | None) -> Iterator[Any]:
        for n, batch in enumerate(batches, skip + 1):
            self._left = 0 if n == n_iter else n
            yield batch
            del batch  # not kept alive while the next one is loaded
        self._left = 0

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Say so where epochs that are cut begin alike, though nothing shows a fixed order."""
        for batch in islice(batches, 1):
            found = [part for part in leaves(batch) if _is_plain(part)]
            if found and _are_same(found, self._first):
                self._say_once(
                    "two epochs began with the same batch, and steps_per_epoch or max_updates cuts "
                    "them: if the training loader has one order, the others are never trained on; "
                    "shuffle it, by set_epoch where it has that"
                )
            self._first = [part.clone() for part in found]
            yield batch
            del batch
        yield from batches

    def _tell_left(self) -> None:
        left, self._left = self._left, 0
        if left:
            self._say_once(
                f"an epoch was left after {left} batches of the training loader, which begins "
                "anew: the others were not trained on; with steps_per_epoch= it goes on there"
            )

    def _tell_more(self) -> None:
        self._say_once(
            "the training loader has more batches than its length says, where each epoch ends: "
            "some are left. Each worker of an IterableDataset ends with a batch that may not be "
            "full; without __len__ in the data set, all of them are trained on"
        )

    def _say_once(self, words: str) -> None:
        if words[:30] not in self._said:
            self._said.add(words[:30])
            log.warning(words)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: what is open cannot be copied, and is drawn again."""
        open_now: dict[str, Any] = {
            "_batches": None,
            "_loader": None,
            "_workers": [],
            "when_begun": {},
            "_first": [],
        }
        return {**vars(self), **open_now}


class _Pass(Iterator[Any]):
    """One training pass over a stream. No generator: an error, Ctrl-C included, would end it."""

    def __init__(self, stream: Stream, seed: int, epoch: int) -> None:
        self._stream, self._order = stream, (seed, epoch)
        self._is_whole = stream.drawn == 0

    def __next__(self) -> Any:
        stream = self._stream
        batch = stream.draw()
        if batch is _END and not self._is_whole:
            self._is_whole = True
            stream.begin(stream._loader, *self._order)
            batch = stream.draw()
        if batch is _END:
            stream.forget()
            raise StopIteration
        return batch


def _is_plain(part: Any) -> bool:
    return isinstance(part, Tensor) and part.layout is torch.strided and not part.is_nested


def _are_same(some: list[Tensor], others: list[Tensor]) -> bool:
    if [part.device for part in some] != [part.device for part in others]:
        return False
    return all(map(torch.equal, some, others))


def _parts(dl: Any) -> set[int]:
    return {id(part) for part in (*order_parts(dl).values(), *data_sets(dl).values())}


def is_stream(dl: Any) -> bool:
    """Tell whether nothing but the loader itself says which batch comes next."""
    if isinstance(dl, list | tuple | TensorLoader) or hearers(dl):
        return False
    is_map_style = isinstance(dl, DataLoader) and not isinstance(dl.dataset, IterableDataset)
    return not is_map_style or n_batches(dl) is None


def _is_limited(dl: Iterable[Any], n_iter: int | None) -> bool:
    """Tell whether a pass over a stream will be left by another limit than its length."""
    return n_iter is not None and n_iter != n_batches(dl) and is_stream(dl)
