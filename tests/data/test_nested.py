from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from onecycle.data.nested import concatenate, leaves, map_tensors, split_batch

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
        (Pair(1, 2), None, (Pair(1, 2), Pair(1, 2))),  # only exactly a tuple or list is unpacked
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


# Joining batches ---------------------------------------------------------------------------------

EMPTY, THREE = torch.zeros(0), torch.full((3,), 3.0)
FOUND = [[{"box": EMPTY}, {"box": THREE}], [{"box": ONE}]]


@pytest.mark.parametrize(
    ("batches", "sizes"),
    [
        ([("a", "b"), ("c",)], None),
        ([["a", "b"], ["c", "d"]], [8, 8]),
        ([[1, 2.5], [True]], [2, 1]),
        ([[], ["a"]], [0, 1]),
        (FOUND, [2, 1]),
        (FOUND, None),  # that they differ in number tells it too
        ([FOUND[0], FOUND[0]], [2, 2]),
        ([[object(), object()], [object()]], [2, 1]),
        ([[ONE, THREE], [TWO]], [2, 1]),
        ([[ONE, None], [THREE, ONE]], [2, 2]),
        ([[(ONE, "a"), (THREE, "b")], [(ONE, "c")]], [2, 1]),
    ],
)
def test_lists_with_an_item_for_each_sample_become_one(batches: Any, sizes: Any) -> None:
    joined = concatenate(batches, sizes)
    expected = [item for batch in batches for item in batch]
    assert type(joined) is list
    assert len(joined) == len(expected)
    assert all(a is b for a, b in zip(joined, expected, strict=True))


@pytest.mark.parametrize(
    ("batches", "sizes", "expected"),
    [
        ([[TWO, -TWO], [ONE, -ONE]], [2, 1], ("list", [[2, 2, 1], [-2, -2, -1]])),
        ([(TWO, TWO)] * 2, [2, 2], ("tuple", [[2] * 4, [2] * 4])),
        ([(torch.tensor(1.0), TWO)] * 2, [2, 2], ("tuple", [[1, 1], [2] * 4])),
        ([(TWO, TWO.long())] * 2, [2, 2], ("tuple", [[2] * 4, [2] * 4])),
        ([(TWO, None)] * 2, [2, 2], ("tuple", [[2] * 4, None])),
        ([({"a": TWO}, {"b": TWO})] * 2, [2, 2], ("tuple", [{"a": [2] * 4}, {"b": [2] * 4}])),
        ([Pair("a", ONE)] * 2, [2, 2], ("Pair", [("list", ["a", "a"]), [1, 1]])),
        ([([ONE], TWO)] * 2, [2, 2], ("tuple", [("list", [[1, 1]]), [2] * 4])),
        ([(TWO, ["a", "b"])] * 2, [2, 2], ("tuple", [[2] * 4, ("list", ["a", "b"] * 2)])),
    ],
)
def test_several_outputs_keep_their_container(batches: Any, sizes: Any, expected: Any) -> None:
    assert plain(concatenate(batches, sizes)) == expected


def test_tensors_of_other_lengths_become_a_list_of_samples() -> None:
    first, second = torch.arange(6.0).view(2, 3), torch.arange(4.0).view(1, 4)
    joined = concatenate([first, second])
    assert [row.tolist() for row in joined] == [[0, 1, 2], [3, 4, 5], [0, 1, 2, 3]]


def test_nested_tensors_and_packed_sequences_become_a_list_of_samples() -> None:
    samples = [[ONE, THREE], [TWO, ONE]]
    nested = [torch.nested.nested_tensor(batch, layout=torch.jagged) for batch in samples]
    packed = [pack_sequence(batch, enforce_sorted=False) for batch in samples]
    for batches in (nested, packed):
        assert [row.tolist() for row in concatenate(batches)] == [[1], [3, 3, 3], [2, 2], [1]]


def test_sparse_tensors_and_arrays_are_concatenated() -> None:
    sparse = concatenate([torch.eye(2).to_sparse(), torch.zeros(1, 2).to_sparse()])
    assert sparse.to_dense().tolist() == [[1, 0], [0, 1], [0, 0]]
    assert concatenate([np.ones((1, 2)), np.zeros((2, 2))]).tolist() == [[1, 1], [0, 0], [0, 0]]
    assert [row.tolist() for row in concatenate([np.ones((1, 2)), np.zeros((1, 1))])] == [
        [1, 1],
        [0],
    ]


def test_what_is_not_joined_is_a_list_of_the_batches() -> None:
    first, second = object(), object()
    assert concatenate([first, second]) == [first, second]
    assert concatenate([None, first]) == [None, first]
    assert concatenate([ONE, "a"]) == [ONE, "a"]


def test_dicts_of_other_keys_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"different keys: .'a'. in the first batch, .'b'. in a later one"
    ):
        concatenate([{"a": ONE}, {"b": ONE}])


def test_leaves_are_all_but_tuples_lists_and_dicts() -> None:
    value = {"a": [ONE, (None, "text")], "b": Pair(3, {})}
    assert list(leaves(value)) == [ONE, None, "text", 3]
