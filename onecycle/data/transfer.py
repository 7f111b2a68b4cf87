"""`to_device`: batches go where the model is, on CUDA beside what it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping
from copy import copy
from functools import cache
from operator import is_
from typing import Any

import torch
from torch import Tensor

#: The size of a batch, in bytes, from which a CUDA stream of its own is used. To change streams
#: takes the host about as long as PCI Express takes for this; an estimate, not measured.
LARGE = 2**20

#: How many such batches the host may be ahead of the device.
AHEAD = 4


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Move every tensor of a batch to a device.

    On CUDA, the host is ahead: when it has a batch, the device is busy with the one before. A large
    batch is copied on a stream of its own, so that it does not wait for that; what is launched
    afterwards waits for the copy. No batch is drawn earlier than without. What goes to the CPU is
    there, and can be read, on return.

    Args:
        batch: A tensor, or tuples, lists, named tuples and dicts of them, nested at will. What
            is none of these (a string, a number) is passed through.
        device: Where to. A `torch.device` is the fastest to compare with.

    Returns:
        The batch on the device; the very same object if nothing had to be moved.

    Example:
        >>> batch = (torch.zeros(2), {"id": "a"})
        >>> to_device(batch, torch.device("cpu")) is batch
        True
        >>> to_device(batch, "meta")
        (tensor(..., device='meta', size=(2,)), {'id': 'a'})
    """
    # Every batch comes through here, and on a CPU nearly every one is there already.
    for item in batch if isinstance(batch, (tuple, list)) else (batch,):
        if not isinstance(item, Tensor) or item.device != device:
            break
    else:
        return batch
    to = torch.device(device)
    if to.type == "cuda" and _is_large_on_host(batch):
        return _side(torch.cuda.current_device() if to.index is None else to.index).move(batch)
    return _moved(batch, to)


def _moved(batch: Any, device: torch.device) -> Any:
    non_blocking = device.type != "cpu"  # else it would return before the numbers are there
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=non_blocking)
    if isinstance(batch, (tuple, list)):
        if hasattr(batch, "to"):  # a PackedSequence: a part of it has to stay on the CPU
            return batch.to(device, non_blocking=non_blocking)
        items = [_moved(item, device) for item in batch]
        if all(map(is_, items, batch)):
            return batch
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, MutableMapping):
        moved = {key: _moved(value, device) for key, value in batch.items()}
        if all(map(is_, moved.values(), batch.values())):
            return batch
        result = copy(batch)  # keeps the type, and what a subclass stores beside the items
        result.update(moved)
        return result
    return batch


def _is_large_on_host(batch: Any) -> bool:
    tensors = list(_tensors(batch))
    # Elsewhere, work that the copy would have to wait for may be in progress.
    if not all(t.device.type == "cpu" and t.layout is torch.strided for t in tensors):
        return False
    return sum(t.nbytes for t in tensors) >= LARGE


class _Side:
    """A stream of a CUDA device on which batches are copied, beside its other work.

    Args:
        index: Of the device.
    """

    def __init__(self, index: int) -> None:
        self._device = torch.device("cuda", index)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's
        self._used: deque[torch.cuda.Event] = deque()

    def move(self, batch: Any) -> Any:
        """Move a batch that is on the host."""
        # The memory of a batch is free when the device is done with it; a host that is far ahead
        # would hold as many of them.
        if len(self._used) == AHEAD:
            self._used.popleft().synchronize()
        current = torch.cuda.current_stream(self._device)
        self._used.append(current.record_event())
        with torch.cuda.stream(self._stream):
            moved = _moved(batch, self._device)
        current.wait_stream(self._stream)
        for tensor in _tensors(moved):
            if tensor.device.type != "cpu":
                tensor.record_stream(current)  # its memory stays until this stream is done
        return moved


@cache
def _side(index: int) -> _Side:
    # One for all learners: memory that was freed on a stream is kept for that stream.
    return _Side(index)


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (tuple, list, Mapping)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)
