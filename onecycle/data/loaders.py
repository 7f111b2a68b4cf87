"""Loaders: what is iterated, and how many batches there are.

Anything that can be iterated more than once is a loader: a torch DataLoader, a `TensorLoader`,
a list of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from copy import copy
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
)

from onecycle.arguments import (
    check_callable,
    check_count,
    check_flags,
    check_list,
    check_text,
    shown,
)
from onecycle.data.generators import order_seed, seed_global
from onecycle.data.parts import Part, PartSampler, Unpadded
from onecycle.elsewhere import SaysOurNames, says_our_keywords

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


class DataLoaders(SaysOurNames):
    """The loaders of a fit: one to train on and, if wanted, one or several to validate on.

    Of several validation sets the first one is the main one: studies, the range test and whatever
    else needs one set take it, and its series have the plain names, ``valid_loss`` and those of
    the metrics. Series of the others have the name of the set behind: ``valid_loss/noisy``.

    Args:
        train: Any iterable of batches that can be iterated once an epoch.
        valid: The same; a dict of such by name, for several validation sets; or None to train
            without validation.
        classes: The names of the classes, class 0 first, where there are any: what pictures and
            tables call them.

    Attributes:
        train: The training loader.
        valid: The validation loader, of several the first; or None.
        more_valid: The other validation loaders by name.

    Raises:
        TypeError: A loader cannot be iterated, or only once; a class is no text.
        ValueError: A loader has no batches, or a validation set no name that a series can have.

    Example:
        >>> train = TensorLoader(torch.zeros(100, 3), batch_size=32)
        >>> DataLoaders(train)
        DataLoaders(train=4 batches, valid=None)
        >>> DataLoaders(train, {"clean": [1, 2], "noisy": [3]})
        DataLoaders(train=4 batches, valid={clean: 2 batches, noisy: 1 batches})
    """

    _called = "DataLoaders"

    def __init__(
        self,
        train: Iterable[Any],
        valid: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        _check_loader(train, "training", "drop_last=True with fewer samples than batch_size?")
        named = _named_sets(valid)
        for name, loader in named.items():
            role = f"valid[{name!r}], a validation" if name else "validation"
            _check_loader(loader, role, "pass None to train without validation")
        self.train = train
        self.valid = next(iter(named.values()), None)
        self.more_valid = dict(islice(named.items(), 1, None))
        self._first_name = next(iter(named), "")
        self.classes = None if classes is None else check_list("classes", classes, "texts")
        for name in self.classes or ():
            check_text("each of classes", name)

    def valid_sets(self) -> dict[str, Iterable[Any]]:
        """Return the validation loaders: the main one by the name ``""``, the others by theirs."""
        return {} if self.valid is None else {"": self.valid, **self.more_valid}

    def loaders(self) -> list[Iterable[Any]]:
        """Return all loaders, the training loader first."""
        return [self.train, *self.valid_sets().values()]

    @classmethod
    @says_our_keywords
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: no worker processes, which wait for another epoch."""
        idle = {id(dl): _idle(dl) for dl in (*self.loaders(), *self.more_valid.values())}
        state = {name: idle.get(id(part), part) for name, part in vars(self).items()}
        return state | {"more_valid": {n: idle[id(dl)] for n, dl in self.more_valid.items()}}

    def __repr__(self) -> str:
        valid = _describe(self.valid)
        if self.valid is not None and self._first_name:
            named = {self._first_name: self.valid, **self.more_valid}
            valid = f"{{{', '.join(f'{n}: {_describe(dl)}' for n, dl in named.items())}}}"
        return f"DataLoaders(train={_describe(self.train)}, valid={valid})"


def _named_sets(valid: Any) -> dict[str, Iterable[Any]]:
    """Return validation sets by name, a single one by the name ``""``."""
    if valid is None:
        return {}
    if type(valid) is not dict:
        return {"": valid}
    if not valid:
        raise ValueError("valid={} names no validation set: pass None to train without validation")
    for name in valid:
        check_text("a name in valid", name)
        if "/" in name:
            raise ValueError(
                f"a name in valid must have no '/', which is in the names of the set's series, as "
                f"in valid_loss/noisy; got {name!r}"
            )
    return dict(valid)


def _idle(dl: Any) -> Any:
    if not isinstance(dl, DataLoader) or dl._iterator is None:
        return dl
    dl = copy(dl)
    dl._iterator = None
    return dl


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
    came = type(dls).__name__
    hint = "write (loader, None) to train without validation"
    if isinstance(dls, tuple | list):
        came += f" of {len(dls)} items"
        hint += ", and (train, valid) with validation"
    elif isinstance(dls, Dataset) and not isinstance(dls, IterableDataset):
        hint = "write DataLoaders.from_datasets(train_ds, valid_ds, batch_size=64)"
    raise TypeError(f"expected DataLoaders or a (train, valid) pair; got {came}; {hint}")


def _check_loader(loader: object, role: str, empty_hint: str) -> None:
    name = type(loader).__name__
    if isinstance(loader, Tensor):
        raise TypeError(
            f"expected an iterable of batches as {role} loader; got a tensor of shape "
            f"{tuple(loader.shape)}: write TensorLoader(x, y, batch_size=64, shuffle=True)"
        )
    # Not by iter(loader): that would start the workers of a DataLoader.
    if isinstance(loader, Iterator):
        raise TypeError(
            f"the {role} loader can be iterated only once ({name}); every epoch iterates it "
            "again: pass a list, a DataLoader, or an object whose __iter__ starts anew"
        )
    if not isinstance(loader, Iterable):
        hint = ": write DataLoader(data_set, batch_size=64)" if isinstance(loader, Dataset) else ""
        raise TypeError(f"expected an iterable of batches as {role} loader; got {name}{hint}")
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

    @says_our_keywords
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
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or not tensor.ndim:
                raise TypeError(f"tensors must be tensors of shape (n, ...); got {shown(tensor)}")
        check_flags(shuffle=shuffle, drop_last=drop_last)
        if transform is not None:
            check_callable("transform", transform, "batch")
        lengths = [len(tensor) for tensor in tensors]
        if len(set(lengths)) > 1:
            raise ValueError(f"expected tensors of one length; got the lengths {lengths}")
        self.tensors = tensors
        self.batch_size = check_count("batch_size", batch_size)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.transform = transform
        self._part: Part | None = None

    def __repr__(self) -> str:
        """Show how many samples it has, and how it gives them."""
        order = "shuffled" if self.shuffle else "in order"
        n = len(self.tensors[0])
        return f"TensorLoader({n} samples, {order}, in batches of {self.batch_size})"

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
            chunk = self._rows(i)
            if order is None:
                batch = tuple(tensor[chunk] for tensor in self.tensors)
            else:
                batch = tuple(tensor.index_select(0, order[chunk]) for tensor in self.tensors)
            yield batch if self.transform is None else self.transform(batch)

    def _rows(self, i: int) -> slice:
        start = i * self.batch_size
        stop = start + self.batch_size
        if self._part is None:
            return slice(start, stop)
        rows = self._part.or_some(min(stop, len(self.tensors[0])) - start, self.batch_size)
        return slice(start + rows.start, start + rows.stop)

    def shared(self, batch_size: int, part: Part) -> TensorLoader:
        """Return a loader of one process's part of batches that several share.

        Args:
            batch_size: Samples in a batch of all processes.
            part: The process.

        Example:
            >>> loader = TensorLoader(torch.arange(5)).shared(4, Part(1, 2))
            >>> [x.tolist() for x, in loader]  # the last row stands in: it is the first one's
            [[2, 3], [4]]
        """
        other = copy(self)
        other.batch_size, other._part = batch_size, part
        return other

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
        dl: A `TensorLoader`, or a DataLoader of a map-style data set made with ``batch_size=``, or
            with a ``BatchSampler`` of torch itself.
        batch_size: Samples in a batch, at least 1.

    Raises:
        ValueError: The batch size is not a whole number above 0.
        TypeError: The loader is of another kind, whose batches are made in its own way.

    Example:
        >>> loader = TensorLoader(torch.zeros(10), batch_size=2)
        >>> len(with_batch_size(loader, 5)), len(loader)
        (2, 5)
    """
    check_count("batch_size", batch_size)
    if isinstance(dl, TensorLoader):
        other = copy(dl)
        other.batch_size = batch_size
        return other
    if (kind := _without_size(dl)) is None and isinstance(dl, DataLoader):
        own: Any = dl.batch_sampler  # with one that was given, dl.sampler is a mere default
        kept = {name: getattr(dl, name) for name in _KEPT_OPTIONS}
        kept |= {"sampler": own.sampler, "drop_last": own.drop_last}
        return DataLoader(batch_size=batch_size, **kept)
    raise TypeError(
        f"cannot change the batch size of a {kind}: it is known how for a TensorLoader, and for a "
        "DataLoader of a map-style data set made with batch_size="
    )


def shared_loader(dl: DataLoader[Any], batch_size: int | None, items: int, part: Part) -> Any:
    """Return a DataLoader of one process's part of the batches that several share.

    Args:
        dl: A DataLoader of torch itself over a map-style data set, which is unchanged.
        batch_size: Samples in a batch of all processes; ``None`` for ``items`` times its own.
        items: How many of its own batches make a batch of all.
        part: The process.
    """
    own = dl.batch_sampler
    if dl.batch_size is None and type(own) is not BatchSampler:
        sampler = PartSampler(own or (), items, False, part, of_lists=True)
    else:
        order: Any = dl.sampler
        size, drop_last = dl.batch_size, dl.drop_last
        if type(own) is BatchSampler:
            order, size, drop_last = own.sampler, own.batch_size, own.drop_last
        order = Unpadded(order) if type(order) is DistributedSampler else order
        sampler = PartSampler(order, batch_size or (size or 1) * items, drop_last, part)
    left_out = ("sampler", "drop_last", "in_order")  # one not in order could not be counted
    kept = {name: getattr(dl, name) for name in _KEPT_OPTIONS if name not in left_out}
    if part.rank:
        kept["worker_init_fn"] = partial(_init_worker, part.rank, dl.worker_init_fn)
    return DataLoader(batch_sampler=sampler, **kept)


def _init_worker(rank: int, own: Callable[[int], None] | None, number: int) -> None:
    """Let a worker draw other random numbers than that of the same number in process 0."""
    seed_global(order_seed(torch.initial_seed(), rank))
    if own is not None:
        own(number)


def loader_of(dl: DataLoader[Any], share: IterableDataset[Any]) -> DataLoader[Any]:
    """Return a DataLoader like one of an iterable data set, over another such.

    Args:
        dl: The loader, which is unchanged.
        share: What it is to load instead; its worker processes end with each pass.
    """
    left_out = ("dataset", "sampler", "persistent_workers")
    kept = {name: getattr(dl, name) for name in _KEPT_OPTIONS if name not in left_out}
    return DataLoader(share, dl.batch_size, **kept)


def _without_size(dl: Any) -> str | None:
    """Say which loader it is that has no batch size to be changed; ``None`` for a DataLoader."""
    name = type(dl).__name__
    if type(dl) is not DataLoader:
        return f"{name}, whose batches are made in its own way"
    if isinstance(dl.dataset, IterableDataset):
        return f"{name} of the stream {type(dl.dataset).__name__}"
    if dl.batch_sampler is None:
        return f"{name} of single samples (batch_size=None)"
    if type(dl.batch_sampler) is not BatchSampler:
        return f"{name} with {type(dl.batch_sampler).__name__} as its batch_sampler"
    return None
