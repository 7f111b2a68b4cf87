"""A batch taken apart, and tensors nested in tuples, lists and dicts: what models take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from copy import copy
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from onecycle.explanations import describe


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to every tensor of a nested value; the rest passes through.

    Containers keep their type, so that named tuples and the outputs of model libraries do.

    Example:
        >>> map_tensors(torch.neg, {"a": torch.ones(1), "b": ("text", None)})
        {'a': tensor([-1.]), 'b': ('text', None)}
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        mapped = copy(value) if isinstance(value, MutableMapping) else dict(value)
        for key, part in value.items():
            mapped[key] = map_tensors(function, part)
        return mapped
    if isinstance(value, tuple | list):
        return sequence_like(value, [map_tensors(function, part) for part in value])
    return value


def leaves(value: Any) -> Iterator[Any]:
    """Give all that is in a nested value and is no tuple, list or dict.

    Example:
        >>> list(leaves({"a": [1, (2, None)], "b": "text"}))
        [1, 2, None, 'text']
    """
    if isinstance(value, tuple | list | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(part)
    else:
        yield value


def sequence_like(example: Any, parts: list[Any]) -> Any:
    """Return a tuple, named tuple or list of the example's type, with other items."""
    kind = type(example)
    return kind(*parts) if hasattr(example, "_fields") else kind(parts)


def concatenate(batches: Sequence[Any], sizes: Sequence[int] | None = None) -> Any:
    """Join what a loop collected, batch by batch, into one value of all samples.

    Tensors are concatenated along their first dimension. Where they differ in another one, as those
    of batches that are padded to different lengths do, they become a list of one tensor for each
    sample; so do nested tensors and packed sequences. Tuples and lists with an item for each
    sample, as `is_one_a_sample` has it, become one list. Several outputs keep their container, and
    dicts their keys.

    Args:
        batches: Values of one nesting.
        sizes: The samples of each batch; None where they are not known.

    Returns:
        The samples of all batches, in their order; ``None`` if every batch is ``None``; of values
        of any other kind a list, one for each batch.

    Raises:
        ValueError: The batches have different keys, or different numbers of outputs.

    Example:
        >>> concatenate([(torch.zeros(2), None), (torch.ones(1), None)])
        (tensor([0., 0., 1.]), None)
        >>> concatenate([("a", "b"), ("c",)])
        ['a', 'b', 'c']
        >>> [tokens.tolist() for tokens in concatenate([torch.ones(1, 3), torch.zeros(2, 1)])]
        [[1.0, 1.0, 1.0], [0.0], [0.0]]
    """
    if all(batch is None for batch in batches):
        return None
    first, kind = batches[0], _kind(batches[0])
    if not all(isinstance(batch, kind) for batch in batches):
        return list(batches)
    if kind is PackedSequence:
        return [sample for batch in batches for sample in unpack_sequence(batch)]
    if kind is Mapping:
        _check_same("keys", [set(batch) for batch in batches])
        return {key: concatenate([batch[key] for batch in batches], sizes) for key in first}
    if kind in (tuple, list):
        if is_one_a_sample(batches, sizes):
            return [item for batch in batches for item in batch]
        _check_same("numbers of items, some shorter than others", list(map(len, batches)))
        each = [concatenate(part, sizes) for part in zip(*batches, strict=True)]
        return sequence_like(first, each)
    if kind in (Tensor, np.ndarray):
        return _joined(batches, torch.cat if kind is Tensor else np.concatenate)
    return list(batches)


def _kind(value: Any) -> type:
    """Return the type that the values of all batches must have to be joined as this one is."""
    kinds = (Tensor, np.ndarray, PackedSequence, Mapping, tuple, list)
    return next((kind for kind in kinds if isinstance(value, kind)), type(value))


def _joined(arrays: Sequence[Any], join: Callable[[list[Any]], Any]) -> Any:
    if not any(getattr(array, "is_nested", False) for array in arrays):
        arrays = [array if array.ndim else array[None] for array in arrays]
        if len({array.shape[1:] for array in arrays}) == 1:
            return join(arrays)
    return [sample for array in arrays for sample in array]


def _check_same(what: str, each: Sequence[Any]) -> None:
    for other in each[1:]:
        if other != each[0]:
            raise ValueError(
                f"what the batches gave cannot be joined, it has different {what}: {each[0]} in "
                f"the first batch, {other} in a later one"
            )


def is_one_a_sample(batches: Sequence[Any], sizes: Sequence[int] | None) -> bool:
    """Tell whether tuples or lists have one item for each sample, or are several outputs.

    Of several outputs each one has all samples of the batch. Texts and numbers are one a sample.
    Other items are so if they are alike, and in each batch as many as samples; unless they are
    tensors with as many rows. Dicts and objects are so also where their number changes.

    Args:
        batches: A tuple or list for each batch.
        sizes: The samples of each batch; None where they are not known.

    Example:
        >>> boxes = [torch.zeros(3, 4), torch.zeros(1, 4)]
        >>> is_one_a_sample([boxes], [2]), is_one_a_sample([boxes], [8])
        (True, False)
    """
    if type(batches[0]) not in (tuple, list):
        return False
    items = [item for batch in batches for item in batch if item is not None]
    if all(isinstance(item, str | bytes | Number) for item in items):
        return True
    if len(set(map(_likeness, items))) > 1:
        return False
    lengths = list(map(len, batches))
    if isinstance(items[0], Tensor | tuple | list):
        return sizes is not None and lengths == list(sizes) and not _have_rows(batches, sizes)
    return lengths == sizes or len(set(lengths)) > 1


def _likeness(item: Any) -> Any:
    if isinstance(item, Tensor):
        return Tensor, item.ndim, item.dtype
    if isinstance(item, Mapping):
        return type(item), frozenset(item)
    return type(item), len(item) if isinstance(item, tuple | list) else None


def _have_rows(batches: Sequence[Any], sizes: Sequence[int]) -> bool:
    """Tell whether every tensor in every item has a row for each sample of its batch."""
    found = [
        (tensor, size)
        for batch, size in zip(batches, sizes, strict=True)
        for tensor in leaves(batch)
        if isinstance(tensor, Tensor)
    ]
    return bool(found) and all(t.ndim and t.shape[0] == size for t, size in found)


def split_batch(batch: Any, n_inp: int | None = None) -> tuple[Any, Any]:
    """Split a batch into what the model gets and what the loss function compares with.

    Only what is exactly a tuple or a list is taken apart. Anything else is whole: it is the model's
    input, and loss function and metrics get it too. So it is with a dict, a named tuple, a
    ``PackedSequence``, a graph batch or an object of your own. A tensor alone has no target.

    Args:
        batch: What the loader gave.
        n_inp: How many leading items of a tuple are inputs, in [1, its length]; None for all but
            the last.

    Returns:
        ``(xb, yb)``. Inputs: one item, or a tuple of several. Targets: None for none; one item; or
        a tuple of several, each an argument of its own for loss function and metrics. One target
        that is itself a tuple becomes a list, so that it is one argument and the same whichever of
        the two it came in: a DataLoader makes lists of tuples.

    Raises:
        ValueError: ``n_inp`` does not fit the batch, or the batch is nothing or has no samples.

    Example:
        >>> split_batch(("image", "mask", "label"))
        (('image', 'mask'), 'label')
        >>> split_batch(("image", "mask", "label"), n_inp=1)
        ('image', ('mask', 'label'))
        >>> split_batch(("image", ("mask", "label")))
        ('image', ['mask', 'label'])
        >>> split_batch({"image": 1, "label": 2})
        ({'image': 1, 'label': 2}, {'image': 1, 'label': 2})
    """
    kind, several = type(batch), False
    if kind is not tuple and kind is not list:
        xb, yb = _whole(batch, n_inp)
    elif n_inp is None and len(batch) == 2:
        xb, yb = batch
    else:
        xb, yb, several = _parted(tuple(batch), n_inp)
    # Asked for every batch: where the input is a tensor, no function of Python is called.
    if (not xb.numel()) if isinstance(xb, Tensor) else isinstance(xb, (tuple, list, Mapping)):
        _check_samples(xb)
    return xb, list(yb) if type(yb) is tuple and not several else yb


def _whole(batch: Any, n_inp: int | None) -> tuple[Any, Any]:
    if batch is None:
        raise ValueError(
            "the loader gave None instead of a batch: does its collate_fn return one, also where "
            "it leaves out every sample? Leave out such batches in the loader"
        )
    if isinstance(batch, Tensor):
        return _parted((batch,), n_inp)[:2]
    if n_inp is not None:
        kind = type(batch).__name__
        raise ValueError(f"n_inp={n_inp} counts the items of a tuple; the batch is a {kind}")
    return batch, batch


def _parted(items: tuple[Any, ...], n_inp: int | None) -> tuple[Any, Any, bool]:
    """Return inputs and targets, and whether the latter are several."""
    if not items:
        raise ValueError("expected a batch of at least one item; got an empty one")
    n = max(len(items) - 1, 1) if n_inp is None else n_inp
    if not 1 <= n <= len(items):
        raise ValueError(f"expected n_inp in [1, {len(items)}] for this batch; got {n}")
    xb, yb = items[:n], items[n:]
    return xb[0] if n == 1 else xb, (yb or None) if len(yb) != 1 else yb[0], len(yb) > 1


def _check_samples(xb: Any) -> None:
    parts = list(leaves(xb))
    tensors = [part for part in parts if isinstance(part, Tensor)]
    others = [part for part in parts if not isinstance(part, Tensor | Number | None)]
    if parts and (others or not tensors or any(map(_has_rows, tensors))):
        return
    raise ValueError(
        f"the batch has no samples, the model would get {describe(xb)}: leave out such batches "
        "in the loader, as where a filter drops every sample"
    )


def _has_rows(tensor: Tensor) -> bool:
    return bool(tensor.numel() or not tensor.ndim or len(tensor))
