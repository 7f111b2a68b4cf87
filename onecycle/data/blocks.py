"""Batches of a `TensorDataset` taken out of its tensors in one piece, not put together by sample.

torch asks such a data set for one sample after the other and stacks them, which takes many times
as long as the batch is worth. The batches here are the same to the bit, in the order in which
torch's own samplers give the indices.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

#: Batches whose indices are drawn at a time, where a sampler has decided on all of them before.
_AHEAD = 64


def start_in_blocks(dl: DataLoader[Any], sampler: Any) -> Iterator[Any]:
    """Start a pass over a DataLoader, with each batch taken out of the tensors in one piece.

    So it is over a `TensorDataset` with torch's own collate function and no workers; whatever
    differs is read as torch does it. No number is drawn but by the sampler: a DataLoader draws a
    seed for its workers from its generator too.

    Args:
        dl: The loader, whose generator nobody looks at after this pass.
        sampler: One of torch's own that draws the single indices; what ``dl.batch_sampler`` goes
            through may begin later in its order.

    Example:
        >>> dl = DataLoader(TensorDataset(torch.arange(5)), batch_size=2)
        >>> [x.tolist() for x, in start_in_blocks(dl, dl.sampler)]
        [[0, 1], [2, 3], [4]]
    """
    if not _can_be_read_in_blocks(dl):
        return iter(dl)
    # The list of this one may be changed while it is read; others decide on all of it before.
    ahead = 1 if isinstance(sampler, SubsetRandomSampler) else _AHEAD
    return _blocks(dl.dataset, dl.batch_sampler, ahead, pin=dl.pin_memory)


def _can_be_read_in_blocks(dl: DataLoader[Any]) -> bool:
    data: Any = dl.dataset
    # Exact types: a subclass may do anything with a sample.
    if type(dl) is not DataLoader or type(data) is not TensorDataset:
        return False
    if type(dl.batch_sampler) is not BatchSampler or dl.num_workers or dl.timeout:
        return False
    if dl.collate_fn is not default_collate or hasattr(data, "__getitems__"):
        return False
    if dl.pin_memory and (dl.pin_memory_device or not torch.cuda.is_available()):
        return False  # torch warns of it
    tensors = data.tensors
    is_usual = type(tensors) is tuple and bool(tensors) and all(map(_is_stacked_alike, tensors))
    return is_usual and _collates_as_torch()


def _collates_as_torch() -> bool:
    """Tell whether nobody has changed how torch collates tuples of tensors."""
    known = default_collate_fn_map
    is_own = known.get(Tensor) is collate_tensor_fn
    return is_own and not any(issubclass(tuple, kind) for kind in known)


def _is_stacked_alike(tensor: Any) -> bool:
    """Tell whether rows of a tensor, stacked by torch, lie in memory as those taken at once."""
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.requires_grad:
        return False
    if tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg():
        return False
    if not tensor.ndim or not len(tensor):
        return False
    # Of some layouts, as channels last in three dimensions, torch keeps the order of the memory.
    return torch.stack([tensor[0]]).is_contiguous()


def _blocks(data: Any, batches: Any, ahead: int, *, pin: bool) -> Iterator[list[Tensor]]:
    # Little is done for a batch: after so much memory was copied, each line of Python costs more.
    for rows in _index_batches(batches, len(data), ahead):
        if not isinstance(rows, Tensor):  # as torch does it, errors included
            batch = default_collate([data[i] for i in rows])
        else:
            batch = [t.index_select(0, rows.to(t.device)) for t in data.tensors]
        yield [part.pin_memory() for part in batch] if pin else batch
        del batch  # not kept alive while the next one is made


def _index_batches(batches: Any, n: int, ahead: int) -> Iterator[Any]:
    """Give the indices of each batch as one tensor."""
    size, indices = batches.batch_size, iter(batches.sampler)
    while chunk := list(islice(indices, ahead * size)):
        rows = _as_rows(chunk, n)
        for begin in range(0, len(chunk), size):
            if begin + size <= len(chunk) or not batches.drop_last:
                yield rows[begin : begin + size]


def _as_rows(indices: list[Any], n: int) -> Any:
    """Return indices as a tensor; a list stays what no tensor would take as the data set does.

    So it is for those that a subset may hold: negative ones, tensors, one that is not there.
    """
    if set(map(type, indices)) != {int}:
        return indices
    try:
        rows = np.array(indices, dtype=np.int64)  # a tenth of torch.tensor's time
    except OverflowError:
        return indices
    are_there = rows.min() >= 0 and rows.max() < n
    return torch.from_numpy(rows) if are_there else indices
