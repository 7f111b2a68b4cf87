from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch

from onecycle.data.nested import concatenate, map_tensors

Pair = namedtuple("Pair", "first second")
ONE, TWO = torch.ones(1), torch.full((2,), 2.0)


def plain(value: Any) -> Any:
    """Return a nested value with its tensors as lists, and its types written down."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value).__name__, [plain(part) for part in value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ONE, [-1.0]),
        ((ONE, None), ("tuple", [[-1.0], None])),
        ([ONE, "text"], ("list", [[-1.0], "text"])),
        (Pair(ONE, 3), ("Pair", [[-1.0], 3])),
        (OrderedDict(a=ONE, b=(ONE,)), {"a": [-1.0], "b": ("tuple", [[-1.0]])}),
        ((), ("tuple", [])),
        (None, None),
    ],
)
def test_a_function_reaches_every_tensor_and_keeps_the_nesting(value: Any, expected: Any) -> None:
    assert plain(map_tensors(torch.neg, value)) == expected


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([ONE, TWO], [1, 2, 2]),
        ([(ONE, TWO), (TWO, ONE)], ("tuple", [[1, 2, 2], [2, 2, 1]])),
        ([Pair(ONE, None), Pair(TWO, None)], ("Pair", [[1, 2, 2], None])),
        ([{"a": ONE, "b": [TWO]}] * 2, {"a": [1, 1], "b": ("list", [[2, 2, 2, 2]])}),
        ([torch.tensor(1.0), torch.tensor(2.0)], [1, 2]),
        ([None, None], None),
        ([], None),
        (["a", "b"], ("list", ["a", "b"])),
    ],
)
def test_batches_become_one_value_of_their_nesting(batches: Any, expected: Any) -> None:
    assert plain(concatenate(batches)) == expected


def test_what_torch_returns_as_a_named_result_keeps_its_type() -> None:
    result = torch.ones(2, 3).max(1)
    both = concatenate([result, result])
    assert type(both) is type(result)
    assert both.values.tolist() == [1, 1, 1, 1]


def test_tuples_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        concatenate([(ONE, ONE), (ONE,)])
