"""What a loader draws while it is held is drawn again afterwards, or is said to be lost."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from own_samplers import SAMPLERS, Stateful
from torch.utils.data import DataLoader, IterableDataset

from onecycle import TensorLoader
from onecycle.data.held import hold_loaders


def drawn(loader: Any) -> list[float]:
    return [float(x) for batch in loader for x in batch.flatten()]


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_goes_on_where_it_was(make: Any) -> None:
    def loader() -> DataLoader[Any]:
        return DataLoader(torch.arange(12.0)[:, None], 4, sampler=make())

    whole = loader()
    expected = [drawn(whole) for _ in range(3)]
    held = loader()
    assert drawn(held) == expected[0]
    put_back = hold_loaders(held)
    drawn(held), drawn(held)
    put_back()
    assert [drawn(held), drawn(held)] == expected[1:]


def test_a_pass_that_is_running_goes_on() -> None:
    loader = DataLoader(torch.arange(12.0)[:, None], 4, sampler=Stateful())
    expected = drawn(DataLoader(torch.arange(12.0)[:, None], 4, sampler=Stateful()))
    found = []
    for i, batch in enumerate(loader):
        found += batch.flatten().tolist()
        if i == 1:
            put_back = hold_loaders(loader)
            drawn(loader)
            put_back()
    assert found == expected


def test_numbers_and_generators_of_a_data_set_are_put_back_and_its_cache_stays() -> None:
    class Counts:
        def __init__(self) -> None:
            self.n, self.cache, self.transform = 0, dict[int, Any](), [random.Random(0)]

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> float:
            self.n += 1
            self.cache[i] = i
            return self.n + self.transform[0].random()

    loader = DataLoader(Counts(), 1)
    put_back = hold_loaders(loader)
    first = drawn(loader)
    put_back()
    assert len(loader.dataset.cache) == 3
    assert drawn(loader) == first


def test_an_iterable_data_set_counts_its_passes_alone() -> None:
    class Passes(IterableDataset[Any]):
        def __init__(self) -> None:
            self.order = np.arange(4.0)

        def __iter__(self) -> Any:
            self.order += 1
            return iter(self.order.copy())

    loader = DataLoader(Passes(), 2)
    put_back = hold_loaders(loader)
    assert drawn(loader) == [1, 2, 3, 4]
    put_back()
    assert drawn(loader) == [1, 2, 3, 4]


def test_an_iterator_that_cannot_be_put_back_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Stream:
        def __init__(self) -> None:
            self.source = iter(range(9))

        def __iter__(self) -> Any:
            return self.source

    hold_loaders(Stream())()
    assert "Stream.source is an iterator" in caplog.text


def test_holding_no_loader_does_nothing() -> None:
    batches = [1, 2]
    hold_loaders()()
    hold_loaders(batches, None)()
    assert batches == [1, 2]


def test_data_that_change_meanwhile_stay_changed() -> None:
    loader = TensorLoader(torch.zeros(4), batch_size=2)
    put_back = hold_loaders(loader)
    loader.tensors[0].fill_(1)
    put_back()
    assert loader.tensors[0].tolist() == [1, 1, 1, 1]


def test_a_loader_of_ones_own_keeps_its_fields_meanwhile() -> None:
    class Own:
        def __init__(self) -> None:
            self._iterator = [1, 2]

    loader = Own()
    kept = loader._iterator
    put_back = hold_loaders(loader)
    assert loader._iterator is kept
    loader._iterator = []
    loader.more = 1
    put_back()
    assert vars(loader) == {"_iterator": kept}
    assert loader._iterator is kept
