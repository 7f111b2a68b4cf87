"""Data sets, models and callbacks with state of their own, that no state_dict tells."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from own_samplers import N, Own
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from onecycle import Callback, Learner


class Queue(Own):
    """Rotates a deque, and keeps a set and an array."""

    def __init__(self) -> None:
        self.queue, self.seen, self.weights = deque(range(N)), set[int](), np.zeros(N)

    def __iter__(self) -> Any:
        self.queue.rotate(len(self.seen) + int(self.weights.sum()) + 1)
        self.seen.add(self.queue[0])
        self.weights[self.queue[0]] += 2
        return iter([*self.queue])


class Transformed(Dataset[Tensor]):
    """Augments by generators that it holds in its transforms, or that code finds elsewhere."""

    def __init__(self) -> None:
        self.transforms = [np.random.default_rng(1), {"old": np.random.RandomState(2)}]
        self.calls = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Tensor:
        self.calls += 1
        noise = self.transforms[0].random() + self.transforms[1]["old"].rand() + random.random()
        return torch.tensor([i / N + noise + self.calls / 100])


class Passes(IterableDataset[Tensor]):
    """Gives other samples in each pass, which it counts."""

    def __init__(self) -> None:
        self.n = 0

    def __iter__(self) -> Any:
        self.n += 1
        for i in range(N):
            yield torch.tensor([i * self.n / N])


class PythonField(nn.Linear):
    """Scales by how often it was called, and by a generator of its own."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.calls, self.noise = 0, torch.Generator().manual_seed(4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x * self.calls + torch.rand(1, generator=self.noise))


class Steers(Callback):
    n = 0

    def after_batch(self, learn: Learner) -> None:
        self.n += 1
