"""`BatchSizes`: how many samples a batch has, asked of its targets first, then of its inputs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sized
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from onecycle.data.nested import split_batch

log = logging.getLogger("onecycle")

#: Under which names a dict, or an object of one's own, has its targets.
TARGET_NAMES = ("labels", "label", "targets", "target", "y")
#: Under which names an object tells how many samples it has: batches of graphs, tensor dicts.
_SIZE_NAMES = ("num_graphs", "batch_size")


class BatchSizes:
    """Tells how many samples a batch has; says once where its parts do not agree.

    The targets decide, where they have a size, else the inputs:

    - A tensor or an array has its first dimension, and none if it has no dimension.
    - A list counts its items, as the targets of detectors do. Of several tensors that all begin
      with the size of the other part of the batch it is that size: torch's collate function makes
      such lists of samples that are tuples.
    - A tuple and a dict have the size that most of their parts have. Of a dict, and of an object
      of one's own, the targets are called ``labels``, ``label``, ``targets``, ``target`` or ``y``.
    - A packed sequence counts its sequences. What has ``num_graphs`` or ``batch_size`` says it.

    Example:
        >>> import torch
        >>> sizes = BatchSizes()
        >>> sizes((torch.zeros(5, 8, 3), torch.zeros(8)))  # time first, as nn.LSTM has it
        8
        >>> sizes({"position": torch.arange(5)[None], "x": torch.zeros(8, 5), "y": torch.zeros(8)})
        8
        >>> images, boxes = [torch.zeros(3, 9, 9), torch.zeros(3, 7, 7)], [torch.zeros(5, 4)] * 2
        >>> sizes((images, [{"boxes": each} for each in boxes]))
        2
    """

    def __init__(self) -> None:
        self._was_told = False

    def __call__(self, batch: Any, n_inp: int | None = None) -> int:
        """Return the number of samples.

        Args:
            batch: The whole batch.
            n_inp: How many leading items of a tuple are inputs; ``None`` for all but the last.

        Raises:
            ValueError: If nothing in it has a size.
        """
        kind = type(batch)
        if (kind is tuple or kind is list) and len(batch) == 2:  # nearly every batch
            x, y = batch
            if isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.ndim:
                size = y.size(0)
                if x.size(0) == size:
                    return size
        first, then = _found_in(batch, n_inp)
        size = _decided(first, then)
        if not first and not self._was_told and _is_single(batch, n_inp):
            self._was_told = True
            log.warning(
                "the target has no dimension, so that the batch size is taken to be %d, that of "
                "the input: if a batch is one sample, override batch_size(self, batch) of the "
                "Learner to return 1",
                size,
            )
        if not self._was_told and len({*first, *then}) > 1:
            self._was_told = True
            # Where those that decide agree, a rule was followed; else a majority was.
            log.log(
                logging.INFO if len(set(first)) == 1 else logging.WARNING,
                "the batch size is taken to be %d, where other parts of the batch have %s: if that "
                "is not its number of samples, override batch_size(self, batch) of the Learner",
                size,
                ", ".join(map(str, sorted({*first, *then} - {size}))),
            )
        return size


def _is_single(batch: Any, n_inp: int | None) -> bool:
    if type(batch) not in (tuple, list):
        return False
    yb = split_batch(batch, n_inp)[1]
    return isinstance(yb, Tensor) and not yb.ndim


def size_of(targets: Any, inputs: Any = None) -> int:
    """Return the number of samples by the rules of `BatchSizes`, without a word.

    Args:
        targets: What is asked first.
        inputs: What is asked if the targets have no size.

    Raises:
        ValueError: If neither has one.

    Example:
        >>> import torch
        >>> size_of(["a", "b", "c"]), size_of(None, torch.zeros(4, 2))
        (3, 4)
    """
    return _decided(*_found_in_both(targets, inputs))


def _decided(first: list[int], then: list[int]) -> int:
    found = first or then
    if not found:
        raise ValueError(
            "cannot tell the batch size: nothing in the batch has one, such as a tensor with a "
            "dimension, a list or num_graphs: override batch_size(self, batch) of the Learner"
        )
    return Counter(found).most_common(1)[0][0]  # of several as common the first


def _found_in(batch: Any, n_inp: int | None) -> tuple[list[int], list[int]]:
    """Return the sizes that are asked first, and those that are asked then."""
    if type(batch) in (tuple, list):
        xb, yb = split_batch(batch, n_inp)
        return _found_in_both(yb, xb)
    fields = _fields(batch)
    targets = tuple(fields[name] for name in TARGET_NAMES if name in fields)
    own = _own_size(batch, ())
    if own is not None:
        return [own], _sizes_in(targets, (own,))
    others = tuple(part for name, part in fields.items() if name not in TARGET_NAMES)
    return _found_in_both(targets, others)


def _found_in_both(targets: Any, inputs: Any) -> tuple[list[int], list[int]]:
    first = _sizes_in(targets, _sizes_in(inputs, ()))
    return first, _sizes_in(inputs, first)


def _sizes_in(value: Any, known: Collection[int]) -> list[int]:
    """Return the sizes in a value: its own, or those of its parts.

    Args:
        value: Anything.
        known: Sizes of another part of the batch, which tell what a list of tensors is.
    """
    own = _own_size(value, known)
    if own is not None:
        return [own]
    if isinstance(value, tuple | Mapping):
        parts = value.values() if isinstance(value, Mapping) else value
        return [size for part in parts for size in _sizes_in(part, known)]
    # Not into what an object's fields hold: that may be anything, itself included.
    found = [_own_size(part, known) for part in _fields(value).values()]
    return [size for size in found if size is not None]


def _own_size(value: Any, known: Collection[int]) -> int | None:
    """Return the size that a value has as a whole, if it has one."""
    if isinstance(value, Tensor):
        return value.size(0) if value.ndim else None
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])  # which is on the CPU, wherever the data is
    if isinstance(value, list):
        stacked = _first_dimensions(value)
        is_stacked = len(stacked) == 1 and len(value) not in known and stacked.issubset(known)
        return stacked.pop() if is_stacked else len(value)
    if isinstance(value, tuple):  # of dicts, as tuple(zip(*samples)) makes them: one a sample
        return len(value) if value and all(isinstance(part, Mapping) for part in value) else None
    if isinstance(value, str | bytes | type):
        return None
    for name in _SIZE_NAMES:
        size = getattr(value, name, None)
        size = size[0] if isinstance(size, tuple) and size else size
        if isinstance(size, int):
            return size
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return int(shape[0]) if shape else None
    is_sized = isinstance(value, Sized) and not isinstance(value, Mapping)
    return len(value) if is_sized and not _fields(value) else None


def _first_dimensions(value: Any) -> set[int]:
    """Return those of all tensors in nested lists; -1 stands for anything else."""
    if isinstance(value, list | tuple):
        return {size for part in value for size in _first_dimensions(part)}
    return {value.size(0) if isinstance(value, Tensor) and value.ndim else -1}


def _fields(value: Any) -> Mapping[str, Any]:
    """Return the parts of a dict or of an object by name."""
    if isinstance(value, Mapping):
        return value
    if hasattr(value, "_asdict"):  # a named tuple
        return dict(value._asdict())
    if hasattr(value, "__dict__"):
        return {} if isinstance(value, type | nn.Module) else vars(value)
    slots = getattr(type(value), "__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def warn_of_single_sample(model: nn.Module, dl: Any) -> None:
    """Warn if the last batch has one sample: batch norm mostly fails on it, an epoch from here.

    Args:
        model: Where a batch norm may be.
        dl: The training loader.
    """
    kinds = (nn.BatchNorm1d, nn.LazyBatchNorm1d)
    name = next((name for name, m in model.named_modules() if isinstance(m, kinds)), None)
    size = getattr(dl, "batch_size", None)
    if name is None or not isinstance(size, int) or size < 2 or getattr(dl, "drop_last", True):
        return
    samples = dl.sampler if isinstance(dl, DataLoader) else getattr(dl, "tensors", ((),))[0]
    if isinstance(samples, Sized) and len(samples) % size == 1:
        log.warning(
            "the last training batch has one sample (of %d, by %d), with which the batch norm %r "
            "fails unless its input has a length besides channels: use drop_last=True, or another "
            "batch size",
            len(samples),
            size,
            name,
        )
