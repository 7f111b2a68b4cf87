"""A batch taken apart, and tensors nested in tuples, lists and dicts: what models take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor


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
        return _sequence_like(value, [map_tensors(function, part) for part in value])
    return value


def concatenate(batches: Sequence[Any]) -> Any:
    """Concatenate what a loop collected, batch by batch, into one value of the same nesting.

    Args:
        batches: Values of one nesting: tensors of shape ``(batch, ...)``, or tuples, lists or
            dicts of such. Anything else is returned as a list.

    Returns:
        The tensors concatenated along the first dimension; ``None`` if every batch is ``None``.

    Example:
        >>> concatenate([(torch.zeros(2), None), (torch.ones(1), None)])
        (tensor([0., 0., 1.]), None)
    """
    first = batches[0] if batches else None
    if isinstance(first, Tensor):
        return torch.cat([batch if batch.ndim else batch[None] for batch in batches])
    if isinstance(first, Mapping):
        return {key: concatenate([batch[key] for batch in batches]) for key in first}
    if isinstance(first, tuple | list):
        return _sequence_like(first, [concatenate(part) for part in zip(*batches, strict=True)])
    return None if all(batch is None for batch in batches) else list(batches)


def _sequence_like(example: Any, parts: list[Any]) -> Any:
    kind = type(example)
    return kind(*parts) if hasattr(example, "_fields") else kind(parts)


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
