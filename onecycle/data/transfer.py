"""`to_device`: batches go where the model is, on CUDA beside what it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, MutableMapping
from copy import copy
from functools import cache
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from onecycle.data.nested import leaves, sequence_like

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
        batch: A tensor, or tuples, lists, named tuples and dicts of them, nested at will. An object
            of any class that has a method ``to`` is moved by it, called with the device alone:
            graphs, encodings of texts, batches of your own. What is none of these (a string, a
            number, an array of NumPy) is passed through.
        device: Where to. A `torch.device` is the fastest to compare with.

    Returns:
        The batch on the device; the very same object if nothing had to be moved.

    Raises:
        TypeError: The ``to`` of an object returned nothing.

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
    if isinstance(batch, PackedSequence):  # a part of it has to stay on the CPU
        return batch.to(device=device, non_blocking=non_blocking)  # type: ignore[call-arg]  # untyped
    if moves_itself(batch):
        moved = batch.to(device)
        if moved is None:
            raise TypeError(
                f"{type(batch).__name__}.to(device) returned None: it must return the batch on "
                "that device, itself if it is moved in place"
            )
        return moved
    if isinstance(batch, (tuple, list)):
        items = [_moved(item, device) for item in batch]
        if all(map(is_, items, batch)):
            return batch
        return sequence_like(batch, items)
    if isinstance(batch, Mapping):
        parts = {key: _moved(value, device) for key, value in batch.items()}
        if all(map(is_, parts.values(), batch.values())):
            return batch
        if not isinstance(batch, MutableMapping):
            return parts
        result = copy(batch)  # keeps the type, and what a subclass stores beside the items
        result.update(parts)
        return result
    return batch


def moves_itself(value: Any) -> bool:
    """Tell whether an object has a method ``to`` of its own, which tensors have too.

    Example:
        >>> moves_itself(torch.zeros(1)), moves_itself({"to": 1})
        (True, False)
    """
    # Of the class: a dict with attributes would look for an item of this name.
    return callable(getattr(type(value), "to", None))


def _is_large_on_host(batch: Any) -> bool:
    tensors = []
    for leaf in leaves(batch):
        if isinstance(leaf, Tensor):
            # Elsewhere, work that the copy would have to wait for may be in progress.
            if leaf.device.type != "cpu" or leaf.layout is not torch.strided or leaf.is_nested:
                return False
            tensors.append(leaf)
        elif moves_itself(leaf):  # nobody could tell whose memory must last until it is used
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
        for leaf in leaves(moved):
            if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
                leaf.record_stream(current)  # its memory stays until this stream is done
        return moved


@cache
def _side(index: int) -> _Side:
    # One for all learners: memory that was freed on a stream is kept for that stream.
    return _Side(index)
