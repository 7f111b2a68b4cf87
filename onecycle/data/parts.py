"""What one of several processes takes of each batch: its part, by position."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DistributedSampler, Sampler


@dataclass(frozen=True)
class Part:
    """The part of one process in what all of them share: as even as it can be, none twice.

    Attributes:
        rank: Which process, from 0.
        world: How many there are.

    Example:
        >>> [Part(rank, 3).of(7) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """

    rank: int
    world: int

    def of(self, n: int) -> slice:
        """Return which of ``n`` things in a row are its own; there may be none."""
        return slice(self.rank * n // self.world, (self.rank + 1) * n // self.world)

    def rows(self, n: int, full: int) -> slice:
        """Return which of the ``n`` rows of a batch are its own; there may be none.

        Of a batch that is not full no process gets a single row, as long as there are two: batch
        norm cannot train on one.

        Args:
            n: The rows of the batch.
            full: Those of a full one.
        """
        world = min(self.world, max(1, n // 2)) if n < full else self.world
        return Part(self.rank, world).of(n) if self.rank < world else slice(n, n)

    def or_some(self, n: int, full: int) -> slice:
        """Return its rows, or where it has none the first two as a stand-in.

        A process without a sample takes part in the update all the same, with a weight of 0.
        """
        own = self.rows(n, full)
        return own if own.start < own.stop else slice(0, min(n, 2))


class PartSampler(BatchSampler):
    """Gives the indices that one process loads of each batch that all of them share.

    Attributes:
        part: The process.
        counts: How many of its samples each batch has that was given and not asked for yet: 0
            where the one index is a stand-in.
        check: Is given what makes the first batch of each pass, before it is shared out.

    Args:
        sampler: The indices of all, or lists of them, one for each process's batch.
        batch_size: How many items of the sampler make one batch of all.
        drop_last: Leave out a last batch that is not full.
        part: The process.
        of_lists: Whether the sampler gives lists of indices, as a batch sampler does.
    """

    def __init__(
        self,
        sampler: Iterable[Any],
        batch_size: int,
        drop_last: bool,
        part: Part,
        *,
        of_lists: bool = False,
    ) -> None:
        self.sampler: Any = sampler
        self.batch_size, self.drop_last = batch_size, drop_last
        self.part, self.of_lists = part, of_lists
        self.counts: deque[int] = deque()
        self.check: Callable[[list[Any]], object] | None = None

    def __iter__(self) -> Iterator[list[Any]]:
        self.counts.clear()
        items, check = iter(self.sampler), self.check
        while chunk := list(islice(items, self.batch_size)):
            if check is not None:
                check(chunk)
                check = None
            if self.drop_last and len(chunk) < self.batch_size:
                return
            if self.of_lists:
                own = [index for each in chunk[self.part.of(len(chunk))] for index in each]
                chunk = [index for each in chunk for index in each]
            else:
                own = chunk[self.part.rows(len(chunk), self.batch_size)]
            self.counts.append(len(own))
            yield own or chunk[:2]

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + (rest > 0 and not self.drop_last)


class Unpadded(Sampler[int]):
    """The whole order of which a ``DistributedSampler`` gives each process a padded part.

    Args:
        sampler: Its seed, its epoch and whether it shuffles are asked for each pass.
    """

    def __init__(self, sampler: DistributedSampler[Any]) -> None:
        self.of = sampler

    def __iter__(self) -> Iterator[int]:
        n = len(self)
        if not self.of.shuffle:
            return iter(range(n))
        generator = torch.Generator().manual_seed(self.of.seed + self.of.epoch)
        return iter(torch.randperm(n, generator=generator).tolist())

    def __len__(self) -> int:
        return len(self.of.dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length
