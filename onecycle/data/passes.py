"""In which order a loader is passed, and from which batch on.

The order of a pass is a function of (seed, epoch) where the loader lets us set it, so that a fit
which was interrupted can go on with the batches it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from onecycle.data.blocks import start_in_blocks
from onecycle.data.generators import order_seed
from onecycle.data.loaders import TensorLoader, n_batches
from onecycle.data.seeded import SeededDataset, SeededIndex
from onecycle.data.sources import counts, data_sets, draws

#: torch's samplers that draw from a `generator`, when the first index is asked for.
_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def start_pass(
    dl: Iterable[Any],
    seed: int,
    epoch: int,
    *,
    skip: int = 0,
    more: Callable[[], object] | None = None,
) -> Iterator[Any]:
    """Start one pass over a loader, in the order that belongs to (seed, epoch).

    A `TensorLoader`, and a torch DataLoader whose indices come from torch's ``RandomSampler``
    (``shuffle=True``), ``SubsetRandomSampler`` or ``WeightedRandomSampler``, are shuffled by a
    generator made here. It replaces theirs while the pass starts; a generator
    of the user's own is put back without a number drawn from it. Neither does a DataLoader draw
    from torch's default generator then. Any other iterable keeps its own order. The samples of a
    `SeededDataset` are told what to seed their randomness with.

    Args:
        dl: The loader.
        seed: Seed of the learner.
        epoch: Epochs begun before this one, over the life of the learner.
        skip: Batches to pass over, at least 0. `can_skip` tells whether that is free; otherwise
            they are drawn and dropped before this function returns.
        more: Called where the loader has more batches than its length says, before the last of
            that length is handed out.

    Returns:
        An iterator over the batches that are left, the same ones in the same order as without
        ``skip``. The first of them is loaded when it is asked for, not before: random states
        can be restored in between.

    Raises:
        ValueError: ``skip`` is negative, or the loader's samplers cannot be followed by a
            `SeededDataset`.

    Example:
        >>> loader = TensorLoader(torch.arange(6), batch_size=2, shuffle=True)
        >>> whole = [x.tolist() for x, in start_pass(loader, seed=0, epoch=3)]
        >>> rest = [x.tolist() for x, in start_pass(loader, seed=0, epoch=3, skip=1)]
        >>> rest == whole[1:]
        True
    """
    if skip < 0:
        raise ValueError(f"expected a skip of at least 0 batches; got {skip}")
    order = order_seed(seed, epoch)
    by_index = skip if skip and can_skip(dl) else 0
    batches: Iterator[Any]
    if isinstance(dl, TensorLoader):
        batches = dl.batches(_generator(order), by_index)
    elif isinstance(dl, DataLoader):
        batches = _dataloader_pass(dl, order, by_index)
    else:
        batches = islice(dl, by_index, None)
    if not _is_plain(dl):
        batches = _to_its_end(batches, n_batches(dl), more)
    for _ in islice(batches, skip - by_index):
        pass
    return batches


def set_epoch(dl: Any, epoch: int) -> None:
    """Tell the epoch to whatever has ``set_epoch``: loader, batch sampler, sampler, data set.

    Worker processes that stay alive between epochs have a data set of their own, which does not
    hear it.

    Args:
        dl: A training loader.
        epoch: The epoch over the learner's life.
    """
    for part in hearers(dl):
        part.set_epoch(epoch)


def hearers(dl: Any) -> list[Any]:
    """Return the parts of a training loader that `set_epoch` tells the epoch."""
    batch_sampler, parts = getattr(dl, "batch_sampler", None), [dl, getattr(dl, "sampler", None)]
    parts += [batch_sampler, getattr(batch_sampler, "sampler", None)]
    data_set = getattr(dl, "dataset", None)
    while data_set is not None and len(parts) < 20:  # those within it too, as of a Subset
        parts.append(data_set)
        data_set = getattr(data_set, "dataset", None)
    each = {id(part): part for part in parts}.values()
    return [part for part in each if callable(getattr(part, "set_epoch", None))]


def can_skip(dl: Iterable[Any]) -> bool:
    """Return whether `start_pass` can skip batches by index, without loading them.

    So it is for a `TensorLoader`, a list or tuple, and a map-style DataLoader whose batches are
    made by torch's own samplers. Elsewhere skipping costs as much as loading. So it does where
    worker processes load and their samples are random: what was drawn for the batches before must
    be drawn again. Those of a `SeededDataset` need nothing before them.

    Example:
        >>> can_skip([1, 2, 3]), can_skip({"not": "indexed"})
        (True, False)
    """
    if not isinstance(dl, DataLoader):
        return _is_plain(dl)
    return _is_plain(dl) and not (dl.num_workers and random_in_workers(dl))


def _is_plain(dl: Iterable[Any]) -> bool:
    """Tell whether only torch's code and ours decides which batch comes next."""
    if isinstance(dl, DataLoader):
        # Exact types: a subclass may count, cache or filter in its own way.
        own = (*_RANDOM_SAMPLERS, SequentialSampler, DistributedSampler)
        known = type(dl.batch_sampler) is BatchSampler and type(_index_sampler(dl)) in own
        return known and type(dl) is DataLoader
    return isinstance(dl, (TensorLoader, list, tuple))


def random_in_workers(dl: DataLoader[Any]) -> str | None:
    """Name what draws random numbers for the samples of a DataLoader, or counts them, if any does.

    Args:
        dl: The loader.

    Returns:
        A class or a function; ``None`` where samples have seeds of their own, or nothing is seen.
    """
    seeded = isinstance(dl.dataset, SeededDataset)
    kinds = map(type, data_sets(dl).values())
    counting = next((kind.__name__ for kind in kinds if counts(kind)), None)
    return counting or draws([dl.collate_fn] if seeded else [dl.dataset, dl.collate_fn])


def _to_its_end(
    batches: Iterator[Any], length: int | None, tell_more: Callable[[], object] | None
) -> Iterator[Any]:
    """Let a loader come to its end before the last batch of its length is handed out.

    A sampler may count its passes behind its last index, for which a loop that knows the number
    of batches never asks.
    """
    for number, batch in enumerate(batches, 1):
        more = list(islice(batches, 1)) if number == length else []
        if more and tell_more is not None:
            tell_more()
        yield batch
        del batch  # not kept alive while the next one is loaded
        yield from more


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _index_sampler(dl: DataLoader[Any]) -> Sampler[Any] | Iterable[Any]:
    """Return what draws single indices; with a batch sampler, `dl.sampler` is a mere default."""
    batch_sampler = dl.batch_sampler
    return batch_sampler.sampler if isinstance(batch_sampler, BatchSampler) else dl.sampler


def _check_seeded(dl: DataLoader[Any]) -> bool:
    """Tell whether the samples need seeds; refuse a loader by which they would not get them."""
    if isinstance(dl.dataset, SeededDataset):
        if type(dl.batch_sampler) is not BatchSampler:
            raise ValueError(
                "a SeededDataset gets its seeds with the indices of torch's own BatchSampler; this "
                f"DataLoader has {type(dl.batch_sampler).__name__}: make it with batch_size="
            )
        return True
    inner: list[Dataset[Any]] = [dl.dataset]
    for dataset in inner:  # which grows meanwhile
        if isinstance(dataset, Subset):
            inner.append(dataset.dataset)
        elif isinstance(dataset, ConcatDataset):
            inner += dataset.datasets
        elif isinstance(dataset, SeededDataset):
            raise ValueError(
                f"a SeededDataset within {type(dl.dataset).__name__} gets no seeds: wrap the "
                "outermost data set, as in SeededDataset(Subset(dataset, indices))"
            )
    return False


def _dataloader_pass(dl: DataLoader[Any], order: int, skip: int) -> Iterator[Any]:
    sampler = _index_sampler(dl)
    with _ordered(dl, order, skip):
        batches = start_in_blocks(dl, sampler) if _is_plain(dl) else iter(dl)
        # Samplers look at their attributes when the first index is drawn, not before.
        first = list(islice(batches, 1))
    if first:
        yield first.pop()  # popped: the first batch is not kept alive by this frame
    yield from batches


@contextmanager
def _ordered(dl: DataLoader[Any], order: int, skip: int) -> Iterator[None]:
    """Let passes that start in here begin at batch `skip` of the given order."""
    sampler, needs_seeds = _index_sampler(dl), _check_seeded(dl)
    with ExitStack() as stack:
        # The seed of the workers comes from the loader's generator, but persistent workers take
        # one only in their first pass: from a shared generator, the order would depend on that.
        stack.enter_context(_swapped(dl, "generator", _generator(order_seed(order, 0))))
        if isinstance(sampler, _RANDOM_SAMPLERS):
            stack.enter_context(_swapped(sampler, "generator", _generator(order)))
        indices: Iterable[Any] = sampler
        if skip and isinstance(dl.batch_sampler, BatchSampler):
            indices = islice(sampler, skip * dl.batch_sampler.batch_size, None)
        if needs_seeds:
            # Seed 0 of this order is the workers'.
            indices = (SeededIndex(i, order_seed(order, i + 1)) for i in indices)
        if indices is not sampler:
            stack.enter_context(_swapped(dl.batch_sampler, "sampler", indices))
        yield


@contextmanager
def _swapped(owner: object, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
