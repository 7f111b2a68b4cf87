"""Batches as other libraries make them: the same protocols, without the libraries."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Encoding(UserDict):
    """Texts as a tokenizer encodes them: a mapping that is no dict, and is moved in place."""

    def to(self, device: torch.device) -> Encoding:
        self.data = {key: part.to(device) for key, part in self.data.items()}
        return self


class Output(OrderedDict):
    """What a language model returns: a dict whose items are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Graphs:
    """Several graphs as one: no container, with the number of its graphs."""

    def __init__(self, x: Tensor, owner: Tensor, y: Tensor) -> None:
        self.x, self.owner, self.y, self.num_graphs = x, owner, y, len(y)

    def to(self, device: torch.device) -> Graphs:
        return Graphs(self.x.to(device), self.owner.to(device), self.y.to(device))


@dataclass
class Pair:
    """A batch of one's own, with no more than its fields."""

    x: Tensor
    y: Tensor


@dataclass
class Moving(Pair):
    """One that can be moved."""

    def to(self, device: torch.device) -> Moving:
        return Moving(self.x.to(device), self.y.to(device))


def graphs(sizes: tuple[int, ...], seed: int = 0) -> Graphs:
    """Make a batch of graphs with so many nodes each."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = torch.randn(len(owner), 3, generator=generator)
    return Graphs(x, owner, torch.randn(len(sizes), 1, generator=generator))
