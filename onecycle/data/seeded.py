"""`SeededDataset`: random augmentation of single samples that can be had again, bit for bit."""

from __future__ import annotations

from collections.abc import Sized
from os import getpid
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from onecycle.arguments import shown
from onecycle.data.generators import (
    global_states,
    order_seed,
    put_global_states,
    put_state,
    seed_generator,
    seed_global,
    state_of,
)
from onecycle.data.sources import generators


class SeededDataset(Dataset[Any]):
    """Let the random transforms of a data set depend on the sample and the epoch alone.

    A map-style data set that augments in ``__getitem__`` draws from the global generators of
    whichever process loads the sample, so that its samples depend on the number of workers and
    the batch size, and are others when a fit is resumed within an epoch. Wrapped in this, sample
    ``i`` is a function of (the learner's seed, the epoch over the learner's life, i): the same
    whoever loads it and when, another in each epoch.

    For each sample the global generators of Python, NumPy and torch (its CPU) are seeded, and
    those that the data set holds, as its transforms may. That takes a few microseconds each; where
    no worker but the main process loads it, they are put back as they were, which takes a tenth of
    a millisecond. A sample that is drawn twice in an epoch is the same both times.

    The learner's loop passes seed and epoch on with the index, also to workers that stay alive.
    Outside of it, as in ``dataset[3]``, samples are those of the data set itself.

    Args:
        dataset: A map-style data set. It must be wrapped last: ``SeededDataset(Subset(...))``.
            The DataLoader over it is made with ``batch_size=``.

    Attributes:
        dataset: The same.

    Raises:
        TypeError: If it is no map-style data set.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader
        >>> from onecycle.data.passes import start_pass
        >>> class Noisy(Dataset):
        ...     def __len__(self):
        ...         return 6
        ...     def __getitem__(self, i):
        ...         return i + torch.rand(())
        >>> def samples(batch_size, epoch):
        ...     loader = DataLoader(SeededDataset(Noisy()), batch_size)
        ...     return torch.cat(list(start_pass(loader, seed=0, epoch=epoch)))
        >>> torch.equal(samples(2, epoch=0), samples(3, epoch=0))
        True
        >>> torch.equal(samples(2, epoch=0), samples(2, epoch=1))
        False
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        is_other = isinstance(dataset, IterableDataset | str | bytes)
        if is_other or not hasattr(type(dataset), "__getitem__"):
            raise TypeError(
                "expected a map-style data set, with __getitem__ and __len__: the seed of a sample "
                f"comes from its index; got dataset={shown(dataset)}"
            )
        self.dataset = dataset
        self._own: tuple[Any, list[Any]] = (None, [])

    def __repr__(self) -> str:
        """Show what it seeds."""
        size = f", {len(self)} samples" if isinstance(self.dataset, Sized) else ""
        return f"SeededDataset({type(self.dataset).__name__}{size})"

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self.dataset[index]
        own = self._generators()
        # A worker does nothing but load: there is no stream to put back.
        before = _states(own) if get_worker_info() is None else None
        try:
            _seed(index.seed, own)
            return self.dataset[int(index)]
        finally:
            if before is not None:
                _put_back(before)

    def _generators(self) -> list[Any]:
        """Return the generators that the data set holds, looked for once in each process."""
        # A worker, or the data set itself, may make them when the first sample is asked for.
        held = tuple(map(id, getattr(self.dataset, "__dict__", {}).values()))
        if self._own[0] != (getpid(), held):
            self._own = (getpid(), held), list(generators(self.dataset, "").values())
        return self._own[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: it looks for generators of its own."""
        return {**vars(self), "_own": (None, [])}


class SeededIndex(int):
    """The index of a sample, and the seed of its randomness.

    The two travel together, since a worker loads ahead of the loop: what the loop is at when the
    sample is loaded may be another epoch, or a range test within this one.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        """Make an index that carries a seed in [0, 2**63)."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # int's has one item
        """Return what pickle makes it from again, in a worker."""
        return int(self), self.seed


def _seed(seed: int, own: list[Any]) -> None:
    seed_global(seed)
    for i, generator in enumerate(own, 1):  # each its own stream
        seed_generator(generator, order_seed(seed, i))


def _states(own: list[Any]) -> tuple[Any, ...]:
    return global_states(), [(generator, state_of(generator)) for generator in own]


def _put_back(states: tuple[Any, ...]) -> None:
    put_global_states(states[0])
    for generator, state in states[1]:
        put_state(generator, state)
