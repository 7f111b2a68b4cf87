"""The loop that a person writes by hand, and the tiny model that the benchmarks train by it.

The model has 32, 64 and 10 units, the batch 64 samples: so small that what is measured is the
cost of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

LR = 1e-3
STEPS = 2000
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(SGD, momentum=0.9),
    "AdamW": AdamW,
}
Batches = list[tuple[Tensor, Tensor]]


def tiny_model() -> nn.Module:
    """Make the tiny model with seeded weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def make_batches(steps: int = STEPS) -> Batches:
    """Make the batches that all sides train on, in this order."""
    torch.manual_seed(1)
    return [(torch.randn(64, 32), torch.randint(0, 10, (64,))) for _ in range(steps)]


def by_hand(
    opt_func: Callable[..., torch.optim.Optimizer], model: nn.Module, batches: Batches
) -> Callable[[], list[Tensor]]:
    """Return what trains on the batches once, by 1cycle, and gives the loss of each."""
    opt = opt_func(model.parameters(), lr=LR)
    schedule = OneCycleLR(opt, LR, total_steps=len(batches))

    def train() -> list[Tensor]:
        losses = []
        for xb, yb in batches:
            loss = nn.functional.cross_entropy(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        return losses

    return train
