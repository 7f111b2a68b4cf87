"""A learner in which a seed governs all that it can: weights, dropout and the order of the data."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from onecycle import Learner, Progress, TensorLoader, mse


def make_model() -> nn.Module:
    """Make a model with everything that a seed governs: weights and dropout; and buffers."""
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def loaders(kind: str) -> tuple[Any, Any]:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(5))
    y = x.sum(1, keepdim=True)
    valid = TensorLoader(x, y, batch_size=10)
    if kind == "DataLoader":
        return DataLoader(TensorDataset(x, y), 8, shuffle=True), valid
    return TensorLoader(x, y, batch_size=8, shuffle=True), valid


def make_learner(kind: str = "TensorLoader", seed: int = 99, **options: Any) -> Learner:
    given = {"metrics": [mse], "device": "cpu", "seed": seed, "lr": 0.01}
    learn = Learner(loaders(kind), make_model(), mse_loss, **(given | options))
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


def record(history: Any) -> dict[str, tuple[list[int], list[float]]]:
    return {name: (s.updates.tolist(), s.values.tolist()) for name, s in history.items()}
