"""A look at the first batch, or a range test, leaves nothing in what a loss keeps of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle import Learner
from onecycle.data.held_calls import hold_calls

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 3, generator=G), torch.randn(20, 2, generator=G)
BATCHES = [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 20, 8)]
N = 0
STATE: dict[str, Any] = {"calls": 0}


def scaled(pred: Tensor, target: Tensor, calls: float) -> Tensor:
    """Return a loss that grows with the number of its calls, as an annealed one does."""
    return F.mse_loss(pred, target) * (1 + float(calls) / 10)


def by_global(pred: Tensor, target: Tensor) -> Tensor:
    global N
    N += 1
    return scaled(pred, target, N)


def by_dict(pred: Tensor, target: Tensor) -> Tensor:
    STATE["calls"] += 1
    return scaled(pred, target, STATE["calls"])


def by_helper(pred: Tensor, target: Tensor) -> Tensor:
    return by_dict(pred, target)


CALLS = np.zeros(1)


def by_default(pred: Tensor, target: Tensor, calls: Any = CALLS) -> Tensor:
    calls += 1
    return scaled(pred, target, calls[0])


def by_closure() -> Callable[..., Tensor]:
    n, buffer = 0, torch.zeros(())

    def loss(pred: Tensor, target: Tensor) -> Tensor:
        nonlocal n
        n += 1
        buffer.add_(1)
        return scaled(pred, target, n + buffer)

    return loss


class Counts:
    def __init__(self) -> None:
        self.n, self.noise = 0, np.random.default_rng(1)

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        self.n += 1
        return scaled(pred, target, self.n + self.noise.random())


def teacher() -> Callable[..., Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).requires_grad_(False)
    return lambda pred, target: F.mse_loss(pred, model(target)) + model[0].running_mean.sum()


LOSSES: dict[str, Callable[[], Any]] = {
    "a global": lambda: by_global,
    "a dict among the globals": lambda: by_dict,
    "a function of the module": lambda: by_helper,
    "a default": lambda: by_default,
    "a closure": by_closure,
    "a method": lambda: Counts().loss,
    "a partial": lambda: partial(Counts().loss),
    "a teacher in training mode": teacher,
}


def anew() -> None:
    global N
    N, STATE["calls"] = 0, 0
    CALLS[0] = 0


def fitted(loss: Any, test: bool) -> list[float]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    options: dict[str, Any] = {"metrics": [loss], "device": "cpu", "seed": 0}
    learn = Learner((BATCHES, BATCHES), model, loss, torch.optim.SGD, 0.1, **options)
    with learn.no_bar():
        if test:
            learn.lr_find(num_it=5, show_plot=False)
        learn.fit(2)
    return learn.recorder.history["train_loss"].values.tolist()


def by_hand(loss: Any) -> list[float]:
    torch.manual_seed(0)
    model, losses = nn.Linear(3, 2), []
    opt = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        for x, y in BATCHES:
            value = loss(model(x), y)
            opt.zero_grad()
            value.backward()
            opt.step()
            losses.append(value.item())
        for x, y in BATCHES:  # the loss, and the metric
            loss(model(x), y), loss(model(x), y)
    return losses


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(
    "test",
    [False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["fit", "range test, fit"],
)
def test_a_loss_that_counts_its_calls_is_called_as_by_hand(make: Any, test: bool) -> None:
    anew()
    ours = fitted(make(), test)
    anew()
    assert ours == by_hand(make())


def test_what_nobody_wrote_to_is_not_written_to() -> None:
    weight = torch.ones(2)
    put_back = hold_calls(lambda pred: pred * weight)
    put_back()
    assert weight._version == 0


def test_tensors_that_cannot_be_written_to_are_left_alone() -> None:
    with torch.inference_mode():
        inference = torch.ones(2)
    kinds = [
        inference,
        torch.ones(1).expand(3),
        torch.eye(2).to_sparse(),
        nn.Parameter(torch.ones(1)),
    ]
    hold_calls(lambda pred: kinds)()


def test_objects_of_other_libraries_are_left_alone() -> None:
    class Foreign:
        __module__ = "elsewhere"

        def __init__(self) -> None:
            self.n = 0

    writer = Foreign()

    def loss(pred: Tensor) -> None:
        writer.n += 1

    put_back = hold_calls(loss)
    loss(X)
    put_back()
    assert writer.n == 1
