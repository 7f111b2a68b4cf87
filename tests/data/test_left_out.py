"""Batches that no epoch reaches are said before the first update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from onecycle import Callback, TensorLoader
from onecycle.testing import toy_learner

X, Y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.ones(40, 1)
DATA = TensorDataset(X, Y)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(DATA)


class Hears(Stream):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return (DATA[(i + 8 * self.epoch) % len(DATA)] for i in range(len(DATA)))


FIXED: dict[str, Any] = {
    "list": lambda: [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)],
    "tensors": lambda: TensorLoader(X, Y, batch_size=8),
    "loader": lambda: DataLoader(DATA, 8),
}
OTHERS: dict[str, Any] = {
    "shuffled tensors": lambda: TensorLoader(X, Y, batch_size=8, shuffle=True),
    "shuffled loader": lambda: DataLoader(DATA, 8, shuffle=True),
    "stream, which goes on": lambda: DataLoader(Stream(), 8),
    "iterator": lambda: iter(FIXED["list"]() * 2),
    "hears of epochs": lambda: DataLoader(Hears(), 8),
}


def seen(loader: Any, steps: int | None) -> int:
    """Return how many different batches two epochs train on."""
    learn, found = toy_learner(), set()
    learn.dls.train = loader
    look = Callback(before_batch=lambda learn: found.add(learn.xb.sum().item()), during="train")
    learn.fit(2, lr=0.0, cbs=[look], steps_per_epoch=steps)
    return len(found)


@pytest.mark.parametrize("kind", FIXED)
def test_a_cut_that_never_reaches_the_others_is_said(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert seen(FIXED[kind](), 2) == 2
    assert "than the first 2 are never" in caplog.text


@pytest.mark.parametrize("kind", [*FIXED])
def test_nothing_is_said_where_nothing_is_cut(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    assert seen(FIXED[kind](), None) == 5
    assert "steps_per_epoch" not in caplog.text


@pytest.mark.parametrize("kind", OTHERS)
def test_nothing_is_said_where_another_epoch_may_have_others(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert seen(OTHERS[kind](), 2) >= 3
    assert "steps_per_epoch" not in caplog.text
