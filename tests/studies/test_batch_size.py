"""The batch size that fits is found by trying, on a model that is told how much memory it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from learner_state import LearnerState
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from onecycle import Callback, GradientAccumulation, Learner, MicroBatches, TensorLoader

X = torch.randn(44, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


class Limited(nn.Linear):
    """Has no memory for more samples than it is told, and less when the optimizer has a state."""

    def __init__(self, limit: int, opt_limit: int = 99) -> None:
        super().__init__(4, 1)
        self.limit, self.opt_limit, self.is_first = limit, opt_limit, True

    def forward(self, x: Tensor) -> Tensor:
        limit = self.limit if self.is_first else min(self.limit, self.opt_limit)
        self.is_first = False
        if len(x) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def learner(model: nn.Module, loader: Any = None, *cbs: Callback) -> Learner:
    train = TensorLoader(X, Y, batch_size=8, shuffle=True) if loader is None else loader
    learn = Learner((train, None), model, mse_loss, device="cpu", seed=0)
    learn.cbs = [learn.recorder, *cbs]
    return learn


@pytest.mark.parametrize(
    ("limit", "most", "size"),
    [
        (8, None, 8),
        (15, None, 8),
        (16, None, 16),
        (40, None, 32),
        (99, None, 44),
        (99, 20, 20),
        (7, None, 4),
        (1, None, 1),
        (99, 3, 3),
        (2, 6, 1),
    ],
)
def test_the_size_is_the_largest_that_doubling_or_halving_finds(
    limit: int, most: int | None, size: int
) -> None:
    assert learner(Limited(limit)).find_batch_size(most) == size


def test_an_update_beside_the_state_of_the_optimizer_must_fit_too() -> None:
    assert learner(Limited(32, opt_limit=8)).find_batch_size() == 8


@pytest.mark.parametrize("cbs", [[], [GradientAccumulation(3)], [MicroBatches()]])
def test_nothing_is_left_behind(cbs: list[Callback]) -> None:
    learn = learner(Limited(20), None, *cbs)
    learn.fit(1, lr=0.01) if not cbs else None
    before = LearnerState(learn)
    assert learn.find_batch_size() == 16
    assert before.changes(LearnerState(learn)) == []


def test_a_dataloader_is_tried_by_a_loader_of_another_size() -> None:
    loader: Any = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    learn = learner(Limited(20), loader)
    assert learn.find_batch_size() == 16
    assert (learn.dls.train, loader.batch_size) == (loader, 4)


def test_a_sample_that_does_not_fit_is_the_error_of_the_device() -> None:
    with pytest.raises(torch.OutOfMemoryError) as raised:
        learner(Limited(0)).find_batch_size()
    assert any("not even a batch of one" in note for note in raised.value.__notes__)


def test_any_other_error_is_none_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner(nn.Linear(3, 1)).find_batch_size()


@pytest.mark.parametrize(
    ("loader", "most", "message"),
    [
        ([(X, Y)], None, "cannot change the batch size of a list"),
        (None, 0, "most"),
        (None, 2.5, "most"),
    ],
)
def test_what_cannot_be_tried_is_refused(loader: Any, most: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        learner(Limited(99), loader).find_batch_size(most)


def test_it_is_not_looked_for_in_the_middle_of_a_fit() -> None:
    look = Callback(after_step=lambda learn: learn.find_batch_size())
    with pytest.raises(RuntimeError, match="before the fit"):
        learner(Limited(99), None, look).fit(1)
