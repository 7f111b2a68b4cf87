"""Samplers of users' own, each with another kind of state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

N = 12
ORDERS = np.random.default_rng(7)  # a generator that only the code of a class knows


class Own(Sampler[int]):
    def __len__(self) -> int:
        return N


class InADict(Own):
    """Holds its generator in a dict."""

    def __init__(self) -> None:
        self.held = {"g": torch.Generator()}

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(N, generator=self.held["g"]).tolist())


class Numpy(Own):
    """Draws from NumPy's new generators, in an object within."""

    def __init__(self) -> None:
        self.inner = InAField()

    def __iter__(self) -> Iterator[int]:
        return iter(self.inner.generator.permutation(N).tolist())


class InAField:
    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)


class OldNumpy(Own):
    """Draws from NumPy's old generators, index by index."""

    def __init__(self) -> None:
        self.state = np.random.RandomState(3)

    def __iter__(self) -> Iterator[int]:
        for _ in range(N):
            yield int(self.state.randint(N))


class Python(Own):
    """Draws in a closure."""

    def __init__(self) -> None:
        generator = random.Random(5)
        self.draw = lambda: generator.sample(range(N), N)

    def __iter__(self) -> Iterator[int]:
        return iter(self.draw())


class InItsModule(Own):
    """Draws from a generator of its module, which a process begins with."""

    def __init__(self) -> None:
        ORDERS.bit_generator.state = np.random.default_rng(7).bit_generator.state

    def __iter__(self) -> Iterator[int]:
        return iter(ORDERS.permutation(N).tolist())


class InPlace(Own):
    """Shuffles a list again and again, by a seed that is always the same."""

    def __init__(self) -> None:
        self.order = [*range(N)]

    def __iter__(self) -> Iterator[int]:
        random.Random(0).shuffle(self.order)
        return iter([*self.order])


class Buckets(Own):
    """Shuffles lists within a list."""

    def __init__(self) -> None:
        self.buckets = [[*range(6)], [*range(6, N)]]

    def __iter__(self) -> Iterator[int]:
        for bucket in self.buckets:
            random.Random(1).shuffle(bucket)
        return iter([i for bucket in self.buckets for i in bucket])


class Counts(Own):
    """Seeds each pass by their number, which it counts behind the last index."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(N, generator=torch.Generator().manual_seed(self.passes)).tolist()
        self.passes += 1


class Stateful(Own):
    """Knows its position and tells it, as loaders with a state do: a pass goes on there."""

    def __init__(self) -> None:
        self._at = {"passes": 0, "position": 0}

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._at["passes"])
        order = torch.randperm(N, generator=generator).tolist()
        while self._at["position"] < N:
            self._at["position"] += 1
            yield order[self._at["position"] - 1]
        self._at = {"passes": self._at["passes"] + 1, "position": 0}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._at)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._at = dict(state)


SAMPLERS: dict[str, Callable[[], Own]] = {
    each.__name__: each
    for each in (
        *(InADict, Numpy, OldNumpy, Python, InItsModule, InPlace, Buckets, Counts, Stateful),
    )
}
