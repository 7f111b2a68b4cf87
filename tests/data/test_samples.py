"""One sample as a batch, and one out of a batch."""

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from batch_kinds import Pair
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import default_collate

from onecycle.data.samples import batch_of_one, only_sample, sample_of

Named = namedtuple("Named", "x y")
X = torch.arange(6.0).view(3, 2)


def same(left: Any, right: Any) -> bool:
    """Tell whether nested values are equal, and of the same types."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple | list):
        is_alike = type(left) is type(right) and len(left) == len(right)
        return is_alike and all(map(same, left, right))
    return bool(left == right)


def listed(value: Any) -> Any:
    """Make lists of tuples of texts, of which torch's collate function makes tuples."""
    if isinstance(value, tuple | list) and all(isinstance(part, str) for part in value):
        return list(value)
    if isinstance(value, dict):
        return {key: listed(part) for key, part in value.items()}
    return value


@pytest.mark.parametrize(
    "sample", [X, {"x": X, "n": 3, "name": "a"}, np.ones((2, 2)), 3, Named(X, X), {"x": {"y": X}}]
)
def test_a_batch_of_one_is_what_a_data_loader_makes(sample: Any) -> None:
    assert same(batch_of_one(sample), listed(default_collate([sample])))


def test_a_number_with_a_point_is_a_float_as_the_models_are() -> None:
    assert batch_of_one(2.5).dtype == torch.float32


def test_a_tuple_stays_one_and_none_is_passed() -> None:
    assert same(batch_of_one((X, None)), (X[None], None))


@pytest.mark.parametrize("sample", [Pair(X, X), pack_sequence([X]), object()])
def test_an_object_is_refused_with_what_to_do(sample: Any) -> None:
    with pytest.raises(TypeError, match=r"call get_preds\(\[batch\]\)"):
        batch_of_one(sample)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (X[:1], X[0]),
        (torch.tensor(1.0), torch.tensor(1.0)),
        ((X[:1], [X[:1]]), (X[0], [X[0]])),
        ({"a": X[:1], "b": X}, {"a": X[0], "b": X}),
        (Named(X[:1], "a"), Named(X[0], "a")),
        ([{"box": X}], {"box": X}),
        (("a",), "a"),
        (pack_sequence([X]), X),
        ((X[:1], X[None]), (X[0], X)),
    ],
)
def test_the_only_sample_of_a_prediction_has_no_batch_dimension(value: Any, expected: Any) -> None:
    assert same(only_sample(value), expected)


def test_a_prediction_without_a_row_for_the_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"returned \(3, 2\) float32: does it squeeze\(\)"):
        only_sample(X)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (X, X[1:2]),
        ((X, 2 * X), (X[1:2], 2 * X[1:2])),
        ({"x": X, "loss": torch.tensor(1.0)}, {"x": X[1:2], "loss": torch.tensor(1.0)}),
        ([{"box": X[:0]}, {"box": X[:1]}, {"box": X[:2]}], [{"box": X[:1]}]),
        (("a", "b", "c"), ("b",)),
        ((X, None), (X[1:2], None)),
        (7, 7),
    ],
)
def test_one_sample_of_a_batch_is_a_batch_of_one(value: Any, expected: Any) -> None:
    assert same(sample_of(value, 1, 3), expected)


@pytest.mark.parametrize(
    "value", [X[:2], Pair(X, X), pack_sequence([X]), (X, X[:2]), {"x": X, "y": X.T}]
)
def test_what_has_no_row_for_each_sample_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="cannot take one of 3 samples out of"):
        sample_of(value, 1, 3)
