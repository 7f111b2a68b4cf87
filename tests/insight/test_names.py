import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from onecycle import DataLoaders
from onecycle.insight.names import class_name, class_names, written


class Named(TensorDataset):
    classes = ("cat", "dog")


def test_names_are_those_of_the_loaders_and_else_of_a_data_set():
    loader = DataLoader(Subset(Named(torch.zeros(4)), [0, 1]))
    assert class_names(DataLoaders(loader)) == ["cat", "dog"]
    assert class_names(DataLoaders(loader, classes=["a", "b"])) == ["a", "b"]
    assert class_names(DataLoaders([1]), loader) == ["cat", "dog"]
    assert class_names(DataLoaders([1])) is None


def test_a_class_without_a_name_goes_by_its_index():
    assert [class_name(i, ["cat"]) for i in (-1, 0, 1)] == ["-1", "cat", "1"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, "dog"),
        (torch.tensor([1]), "dog"),
        (torch.tensor(0.123456), "0.1235"),
        (True, "True"),
        (torch.tensor([0.0, 1.0]), "dog 1"),
        (torch.tensor([0, 0]), "none"),
        (torch.tensor([0.5, 0.25, 0.25]), "0.5, 0.25, 0.25"),
        (torch.zeros(8, 8), "(8, 8) float32"),
        ({"a": 1, "b": 2.5}, "a: dog, b: 2.5"),
        ((0, "x"), "cat, x"),
        (None, ""),
    ],
)
def test_values_are_written_in_a_few_words(value, expected):
    assert written(value, ["cat", "dog"]) == expected
