"""One sample: made a batch of one, and taken out of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, unpack_sequence

from onecycle.arguments import shown
from onecycle.data.nested import is_one_a_sample, sequence_like
from onecycle.explanations import describe


def batch_of_one(sample: Any) -> Any:
    """Make a batch of one sample, as a DataLoader of torch would.

    Args:
        sample: A tensor, an array, a number or a text, or a tuple, list or dict of such. None
            stays what it is.

    Returns:
        Tensors of shape ``(1, ...)``, and lists of one text.

    Raises:
        TypeError: For an object of another kind.

    Example:
        >>> batch_of_one({"image": torch.zeros(3), "age": 41, "name": "a"})
        {'image': tensor([[0., 0., 0.]]), 'age': tensor([41]), 'name': ['a']}
    """
    if isinstance(sample, Tensor | np.ndarray | Number):
        try:
            return torch.as_tensor(sample)[None]
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise TypeError(f"cannot make a batch of {shown(sample)}: {error}") from error
    if isinstance(sample, str | bytes):
        return [sample]
    if isinstance(sample, Mapping):
        return {key: batch_of_one(part) for key, part in sample.items()}
    if isinstance(sample, tuple | list) and not isinstance(sample, PackedSequence):
        return sequence_like(sample, [batch_of_one(part) for part in sample])
    if sample is None:
        return None
    raise TypeError(
        f"cannot make a batch of a {type(sample).__name__}: make one as your loader does, and "
        "call get_preds([batch])"
    )


def only_sample(value: Any) -> Any:
    """Return what a model says of the only sample of a batch, without the batch dimension.

    Args:
        value: What the model returned. Within tuples, lists and dicts, a tensor that has no row
            for a sample, but more or fewer, stays whole.

    Raises:
        ValueError: If it is one tensor of another number of rows.

    Example:
        >>> only_sample((torch.ones(1, 2), ["a"], torch.zeros(3)))
        (tensor([1., 1.]), 'a', tensor([0., 0., 0.]))
    """
    if isinstance(value, Tensor) and value.ndim and len(value) != 1:
        raise ValueError(
            f"expected one row for the one sample; the model returned {describe(value)}: does it "
            "squeeze() a batch of one, or put another dimension first? See get_preds([batch])"
        )
    return _only_sample(value)


def _only_sample(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value[0] if value.ndim and len(value) == 1 else value
    if isinstance(value, PackedSequence):
        return unpack_sequence(value)[0]
    if isinstance(value, Mapping):
        return {key: _only_sample(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        if is_one_a_sample([value], [1]):
            return value[0] if value else value
        return sequence_like(value, [_only_sample(part) for part in value])
    return value


def sample_of(value: Any, i: int, n: int) -> Any:
    """Take one sample out of a batch, as a batch of one: see `part_of`.

    Args:
        value: As for `part_of`.
        i: Which sample.
        n: The samples of the batch.

    Raises:
        ValueError: As by `part_of`.

    Example:
        >>> sample_of((torch.arange(3), ["a", "b", "c"]), 1, 3)
        (tensor([1]), ['b'])
    """
    return part_of(value, slice(i, i + 1), n)


def part_of(value: Any, rows: slice, n: int) -> Any:
    """Take some samples out of a batch, as a batch of them.

    Args:
        value: A tensor of shape ``(n, ...)``, a list of n items, or a tuple, list or dict of such.
            Texts, numbers and None stay what they are.
        rows: Which samples.
        n: The samples of the batch.

    Raises:
        ValueError: For a tensor of another length, or an object of another kind.

    Example:
        >>> part_of({"x": torch.arange(4), "name": list("abcd")}, slice(2, 4), 4)
        {'x': tensor([2, 3]), 'name': ['c', 'd']}
    """
    if value is None or isinstance(value, str | bytes | Number):
        return value
    if isinstance(value, Tensor) and (not value.ndim or len(value) == n):
        return value[rows] if value.ndim else value
    if isinstance(value, Mapping):
        return {key: part_of(part, rows, n) for key, part in value.items()}
    if isinstance(value, tuple | list) and not isinstance(value, PackedSequence):
        if is_one_a_sample([value], [n]) and len(value) == n:
            return sequence_like(value, list(value[rows]))
        return sequence_like(value, [part_of(part, rows, n) for part in value])
    raise ValueError(f"cannot take one of {n} samples out of {describe(value)}")
