"""Loaders: what is iterated, in which order, and how a batch is taken apart.

Anything that can be iterated more than once is a loader: a torch DataLoader, a `TensorLoader`,
a list of batches. The order of a pass is a function of (seed, epoch) where the loader lets us
set it, so that a fit which was interrupted can go on with the batches it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from copy import copy
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from onecycle.data.seeded import SeededDataset, SeededIndex

#: torch's samplers that draw from a `generator`, when the first index is asked for.
_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_UINT64 = 2**64 - 1


#: What a DataLoader of another batch size has in common with the one it is made from.
_KEPT_OPTIONS = (
    "dataset",
    "sampler",
    "num_workers",
    "collate_fn",
    "pin_memory",
    "drop_last",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)


class DataLoaders:
    """The loaders of a fit: one to train on and, if wanted, one to validate on.

    Args:
        train: Any iterable of batches that can be iterated once an epoch.
        valid: The same, or None to train without validation.

    Raises:
        TypeError: A loader cannot be iterated, or only once.
        ValueError: A loader has no batches.

    Example:
        >>> DataLoaders(TensorLoader(torch.zeros(100, 3), batch_size=32))
        DataLoaders(train=4 batches, valid=None)
    """

    def __init__(self, train: Iterable[Any], valid: Iterable[Any] | None = None) -> None:
        _check_loader(train, "training", "drop_last=True with fewer samples than batch_size?")
        if valid is not None:
            _check_loader(valid, "validation", "pass None to train without validation")
        self.train = train
        self.valid = valid

    @classmethod
    def from_datasets(
        cls,
        train_ds: Dataset[Any],
        valid_ds: Dataset[Any] | None = None,
        *,
        batch_size: int = 64,
        valid_batch_size: int | None = None,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> DataLoaders:
        """Make torch DataLoaders: training shuffled, validation in order and complete.

        Args:
            train_ds: Map-style data set to train on.
            valid_ds: Map-style data set to validate on, or None.
            batch_size: Samples in a training batch.
            valid_batch_size: Samples in a validation batch; None for twice ``batch_size``,
                since no gradients are kept there.
            num_workers: Processes that load, for each loader; they stay alive between epochs.
            drop_last: Leave out the training batch that is not full.

        Returns:
            The two loaders. Memory is pinned where CUDA is available.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> ds = TensorDataset(torch.zeros(100, 3), torch.zeros(100))
            >>> DataLoaders.from_datasets(ds, ds, batch_size=16, drop_last=True)
            DataLoaders(train=6 batches, valid=4 batches)
        """
        shared: dict[str, Any] = {
            "num_workers": num_workers,
            "persistent_workers": num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
        train: DataLoader[Any] = DataLoader(
            train_ds, batch_size, shuffle=True, drop_last=drop_last, **shared
        )
        if valid_ds is None:
            return cls(train)
        return cls(train, DataLoader(valid_ds, valid_batch_size or 2 * batch_size, **shared))

    def __repr__(self) -> str:
        return f"DataLoaders(train={_describe(self.train)}, valid={_describe(self.valid)})"


def as_dataloaders(dls: DataLoaders | tuple[Iterable[Any], Iterable[Any] | None]) -> DataLoaders:
    """Return loaders as `DataLoaders`, from what a person passes.

    Args:
        dls: `DataLoaders`, returned as they are, or a ``(train, valid)`` pair.

    Returns:
        The loaders.

    Raises:
        TypeError: It is neither, or one of the loaders cannot be iterated more than once.
        ValueError: One of the loaders has no batches.

    Example:
        >>> as_dataloaders(([1, 2, 3], None))
        DataLoaders(train=3 batches, valid=None)
    """
    if isinstance(dls, DataLoaders):
        return dls
    # Not a list: two batches in a list would be taken for two loaders.
    if isinstance(dls, tuple) and len(dls) == 2:
        return DataLoaders(*dls)
    came = type(dls).__name__ + (f" of {len(dls)} items" if isinstance(dls, tuple) else "")
    raise TypeError(
        f"expected DataLoaders or a (train, valid) pair; got {came}; "
        "write (loader, None) to train without validation"
    )


def _check_loader(loader: object, role: str, empty_hint: str) -> None:
    name = type(loader).__name__
    # Not by iter(loader): that would start the workers of a DataLoader.
    if isinstance(loader, Iterator):
        raise TypeError(
            f"the {role} loader can be iterated only once ({name}); every epoch iterates it "
            "again: pass a list, a DataLoader, or an object whose __iter__ starts anew"
        )
    if not isinstance(loader, Iterable):
        raise TypeError(f"expected an iterable of batches as {role} loader; got {name}")
    if n_batches(loader) == 0:
        raise ValueError(f"the {role} loader is empty (0 batches): {empty_hint}")


def _describe(loader: Iterable[Any] | None) -> str:
    if loader is None:
        return "None"
    n = n_batches(loader)
    return type(loader).__name__ if n is None else f"{n} batches"


def n_batches(dl: Iterable[Any]) -> int | None:
    """Return the number of batches of one pass, or None where the loader does not know it.

    Example:
        >>> n_batches([1, 2]), n_batches(iter([1, 2]))
        (2, None)
    """
    if not isinstance(dl, Sized):
        return None
    try:
        return len(dl)
    except TypeError:  # a DataLoader over an IterableDataset that has no length
        return None


class TensorLoader:
    """Iterate tensors in memory by whole batches, on any device.

    A batch costs one slice or one ``index_select`` for each tensor, not one Python call for each
    sample: an epoch over a small data set takes a fraction of a DataLoader's time, and data that
    is already on an accelerator never leaves it.

    Args:
        *tensors: Tensors of shape ``(n, ...)`` with the same n, on one device.
        batch_size: Samples in a batch, at least 1.
        shuffle: Take a new permutation for each pass. In a fit it is a function of the
            learner's seed and the epoch; iterated alone, torch's default generator draws it.
        drop_last: Leave out the last batch if it is not full.
        transform: ``transform(batch) -> batch``, applied to each tuple of tensors: the place to
            normalise or augment a whole batch on its device.

    Raises:
        ValueError: No tensors, lengths that differ, or a batch size below 1.

    Example:
        >>> loader = TensorLoader(torch.arange(5), torch.arange(5) * 10, batch_size=2)
        >>> [x.tolist() for x, y in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        transform: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] | None = None,
    ) -> None:
        if not tensors:
            raise ValueError("expected at least one tensor; got none")
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) > 1:
            raise ValueError(f"expected tensors of one length; got the lengths {lengths}")
        if batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1; got {batch_size}")
        self.tensors = tensors
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform

    def __len__(self) -> int:
        full, rest = divmod(len(self.tensors[0]), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.batches()

    def batches(
        self, generator: torch.Generator | None = None, skip: int = 0
    ) -> Iterator[tuple[Tensor, ...]]:
        """Iterate one pass.

        Args:
            generator: CPU generator that draws the permutation; None for torch's default one.
            skip: Batches at the beginning to leave out, at no cost.

        Yields:
            A tuple of tensors of shape ``(batch, ...)``.
        """
        order = None
        if self.shuffle:
            # Drawn on the CPU and moved once: the same order on every device.
            order = torch.randperm(len(self.tensors[0]), generator=generator)
            order = order.to(self.tensors[0].device)
        for i in range(skip, len(self)):
            chunk = slice(i * self.batch_size, (i + 1) * self.batch_size)
            if order is None:
                batch = tuple(tensor[chunk] for tensor in self.tensors)
            else:
                batch = tuple(tensor.index_select(0, order[chunk]) for tensor in self.tensors)
            yield batch if self.transform is None else self.transform(batch)

    def to(self, device: torch.device | str) -> TensorLoader:
        """Return a loader of the same data on a device; what is there already is shared.

        Example:
            >>> TensorLoader(torch.zeros(4)).to("meta").tensors[0].device
            device(type='meta')
        """
        moved = copy(self)
        moved.tensors = tuple(tensor.to(device) for tensor in self.tensors)
        return moved


def with_batch_size(dl: Iterable[Any], batch_size: int) -> TensorLoader | DataLoader[Any]:
    """Return a loader of the same data with another batch size; the one given is unchanged.

    Args:
        dl: A `TensorLoader`, or a DataLoader of a map-style data set made with ``batch_size=``.
        batch_size: Samples in a batch, at least 1.

    Raises:
        ValueError: The batch size is not a whole number above 0.
        TypeError: The loader is of another kind, whose batches are made in its own way.

    Example:
        >>> loader = TensorLoader(torch.zeros(10), batch_size=2)
        >>> len(with_batch_size(loader, 5)), len(loader)
        (2, 5)
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1; got {batch_size!r}")
    if isinstance(dl, TensorLoader):
        other = copy(dl)
        other.batch_size = batch_size
        return other
    if isinstance(dl, DataLoader) and _batches_by_size(dl):
        kept = {name: getattr(dl, name) for name in _KEPT_OPTIONS}
        return DataLoader(batch_size=batch_size, **kept)
    raise TypeError(
        f"cannot change the batch size of a {type(dl).__name__}: it is known how for a "
        "TensorLoader, and for a DataLoader of a map-style data set made with batch_size="
    )


def _batches_by_size(dl: DataLoader[Any]) -> bool:
    # With a batch sampler of the user's own, batch_size is None and dl.sampler a mere default.
    is_own = type(dl) is DataLoader and dl.batch_size is not None
    return is_own and not isinstance(dl.dataset, IterableDataset)


def order_seed(seed: int, epoch: int) -> int:
    """Mix a seed and an epoch into the seed of that epoch's data order.

    Neighbouring seeds and epochs give unrelated orders; with ``seed + epoch``, epoch 1 of seed 0
    would be epoch 0 of seed 1.

    Args:
        seed: Any integer; its low 64 bits count.
        epoch: Epochs begun before this one, over the life of the learner.

    Returns:
        An integer in [0, 2**63).

    Source:
        splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
        OOPSLA 2014.

    Example:
        >>> order_seed(0, 1) != order_seed(1, 0)
        True
    """
    return _splitmix64(_splitmix64(seed) + epoch) >> 1


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _UINT64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _UINT64
    return x ^ (x >> 31)


def start_pass(dl: Iterable[Any], *, seed: int, epoch: int, skip: int = 0) -> Iterator[Any]:
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
    by_index = skip if can_skip(dl) else 0
    batches: Iterator[Any]
    if isinstance(dl, TensorLoader):
        batches = dl.batches(_generator(order), by_index)
    elif isinstance(dl, DataLoader):
        batches = _dataloader_pass(dl, order, by_index)
    else:
        batches = islice(dl, by_index, None)
    for _ in islice(batches, skip - by_index):
        pass
    return batches


def can_skip(dl: Iterable[Any]) -> bool:
    """Return whether `start_pass` can skip batches by index, without loading them.

    So it is for a `TensorLoader`, a list or tuple, and a map-style DataLoader whose batches are
    made by torch's own samplers. Elsewhere skipping costs as much as loading.

    Example:
        >>> can_skip([1, 2, 3]), can_skip({"not": "indexed"})
        (True, False)
    """
    if isinstance(dl, DataLoader):
        # Exact types: a subclass may count, cache or filter in its own way.
        own = (*_RANDOM_SAMPLERS, SequentialSampler, DistributedSampler)
        return type(dl.batch_sampler) is BatchSampler and type(_index_sampler(dl)) in own
    return isinstance(dl, (TensorLoader, list, tuple))


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
    with _ordered(dl, order, skip):
        batches = iter(dl)
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


def split_batch(batch: Any, n_inp: int | None = None) -> tuple[Any, Any]:
    """Split a batch into what the model gets and what the loss function compares with.

    Args:
        batch: A tuple or list, a dict, or anything else as the one input.
        n_inp: How many leading items of a tuple are inputs, in [1, its length]; None for all but
            the last.

    Returns:
        ``(xb, yb)``: each one item, a tuple of several, or None for no targets. A dict is both:
        the model gets it as keywords; loss function and metrics get it whole.

    Raises:
        ValueError: ``n_inp`` does not fit the batch, or the batch is an empty tuple.

    Example:
        >>> split_batch(("image", "mask", "label"))
        (('image', 'mask'), 'label')
        >>> split_batch(("image", "mask", "label"), n_inp=1)
        ('image', ('mask', 'label'))
        >>> split_batch("image")
        ('image', None)
    """
    if isinstance(batch, (tuple, list)):
        if n_inp is None and len(batch) == 2:
            return batch[0], batch[1]
        items = tuple(batch)
    elif isinstance(batch, Mapping):
        if n_inp is not None:
            raise ValueError(f"n_inp={n_inp} counts the items of a tuple; the batch is a dict")
        return batch, batch
    else:
        items = (batch,)
    if not items:
        raise ValueError("expected a batch of at least one item; got an empty one")
    n = max(len(items) - 1, 1) if n_inp is None else n_inp
    if not 1 <= n <= len(items):
        raise ValueError(f"expected n_inp in [1, {len(items)}] for this batch; got {n}")
    xb, yb = items[:n], items[n:]
    return xb[0] if n == 1 else xb, (yb or None) if len(yb) != 1 else yb[0]
