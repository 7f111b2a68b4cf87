from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch

from onecycle.data.nested import concatenate, map_tensors, split_batch

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


@pytest.mark.parametrize(
    ("batch", "n_inp", "expected"),
    [
        ((1, 2), None, (1, 2)),
        ([1, 2], 1, (1, 2)),
        ((1, 2), 2, ((1, 2), None)),
        ((1, 2, 3), None, ((1, 2), 3)),
        ([1, 2, 3, 4], 2, ((1, 2), (3, 4))),
        ((1, 2, 3), 1, (1, (2, 3))),
        ((1,), None, (1, None)),
        (Pair(1, 2), None, (1, 2)),
    ],
)
def test_split_batch_takes_the_first_n_inp_items_as_inputs(batch, n_inp, expected):
    assert split_batch(batch, n_inp) == expected


def test_split_batch_gives_a_dict_to_the_model_and_to_the_loss():
    batch = {"x": 1}
    xb, yb = split_batch(batch)
    assert xb is batch
    assert yb is batch


def test_split_batch_takes_a_lone_tensor_as_input():
    x = torch.zeros(3, 2)
    assert split_batch(x)[0] is x
    assert split_batch(x)[1] is None


@pytest.mark.parametrize(
    ("batch", "n_inp", "message"),
    [
        ((1, 2), 3, r"expected n_inp in \[1, 2\] for this batch; got 3"),
        ((1, 2), 0, r"expected n_inp in \[1, 2\] for this batch; got 0"),
        (torch.zeros(5), 2, r"expected n_inp in \[1, 1\] for this batch; got 2"),
        ({"x": 1}, 1, "n_inp=1 counts the items of a tuple; the batch is a dict"),
        ((), None, "expected a batch of at least one item"),
    ],
)
def test_split_batch_refuses_what_does_not_fit(batch, n_inp, message):
    with pytest.raises(ValueError, match=message):
        split_batch(batch, n_inp)
