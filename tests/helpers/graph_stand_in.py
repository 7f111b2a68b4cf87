"""A stand-in for what captures CUDA graphs, and learners that let it know their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from seeded_learner import make_learner
from torch import Tensor

from onecycle import Learner
from onecycle.cuda_graphs.batches import Results
from onecycle.data.nested import map_tensors

T = TypeVar("T")


def tensors_of(results: Any) -> list[Tensor]:
    """List the tensors that a replay writes to, of the results of a batch or of an update."""
    if not isinstance(results, Results):
        return []
    found: list[Tensor] = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, results.pred)
    return [*found, results.loss, *(g for g in results.gradients if g is not None)]


class StandIn:
    """Does on the CPU what CUDA does: a capture runs nothing, a replay writes to the same place."""

    learn: Learner
    captures = replays = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @staticmethod
    def serves(_: torch.device) -> bool:
        return True

    def run(self, function: Callable[[], T]) -> T:
        return function()

    def capture(
        self, function: Callable[[], T], *, draws: bool = True
    ) -> tuple[T, Callable[[], None]]:
        tensors = [(tensor, tensor.detach().clone()) for tensor in self.trained()]
        with torch.random.fork_rng(devices=[]):
            results = function()
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
        for tensor in tensors_of(results):
            tensor.fill_(-99)
        StandIn.captures += 1

        def replay() -> None:
            StandIn.replays += 1
            again = function()
            for static, tensor in zip(tensors_of(results), tensors_of(again), strict=True):
                static.copy_(tensor)

        return results, replay

    @classmethod
    def trained(cls) -> list[Tensor]:
        """List all that a batch or an update may write to."""
        states = [value for state in cls.learn.opt.state.values() for value in state.values()]
        kept = [value for value in states if isinstance(value, Tensor)]
        return [*cls.learn.model.parameters(), *cls.learn.model.buffers(), *kept]


def seeded(make: Callable[..., Learner] = make_learner, **options: Any) -> Learner:
    """Make a learner from seed 0, and let the stand-in know it."""
    torch.manual_seed(0)
    learn = make(**options)
    StandIn.learn = learn
    torch.manual_seed(1)
    return learn
