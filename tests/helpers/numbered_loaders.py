"""Loaders of every kind, whose samples are their own numbers."""

from collections import Counter

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from onecycle.data.loaders import TensorLoader
from onecycle.data.passes import start_pass

N, BATCH = 23, 4
NUMBERS = TensorDataset(torch.arange(N))


class Numbers(Dataset):
    """Returns its index, and counts what was loaded."""

    def __init__(self, n=N, fails_at=None):
        self.n, self.fails_at, self.loaded = n, fails_at, Counter()

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.fails_at:
            raise RuntimeError("no such image")
        self.loaded[i] += 1
        return i


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(N))


def values(batches):
    """The numbers of each batch, whatever loader it comes from."""
    return [(b[0] if isinstance(b, (tuple, list)) else b).tolist() for b in batches]


def pass_over(dl, seed=0, epoch=0, skip=0):
    return values(start_pass(dl, seed=seed, epoch=epoch, skip=skip))


def inner_batch_sampler(**kwargs):
    sampler = BatchSampler(RandomSampler(NUMBERS, **kwargs), BATCH, drop_last=False)
    return DataLoader(NUMBERS, batch_sampler=sampler)


SHUFFLED = {
    "tensor loader": lambda: TensorLoader(torch.arange(N), batch_size=BATCH, shuffle=True),
    "shuffle=True": lambda: DataLoader(NUMBERS, BATCH, shuffle=True),
    "drop_last": lambda: DataLoader(NUMBERS, BATCH, shuffle=True, drop_last=True),
    "single samples": lambda: DataLoader(NUMBERS, None, shuffle=True),
    "own generator": lambda: DataLoader(
        NUMBERS, BATCH, shuffle=True, generator=torch.Generator().manual_seed(9)
    ),
    "with replacement": lambda: DataLoader(
        NUMBERS, BATCH, sampler=RandomSampler(NUMBERS, replacement=True, num_samples=75)
    ),
    "more samples than data": lambda: DataLoader(
        NUMBERS, BATCH, sampler=RandomSampler(NUMBERS, num_samples=60)
    ),
    "weighted": lambda: DataLoader(
        NUMBERS, BATCH, sampler=WeightedRandomSampler(list(range(1, N + 1)), 75)
    ),
    "subset": lambda: DataLoader(NUMBERS, BATCH, sampler=SubsetRandomSampler(range(3, N))),
    "batch_sampler": inner_batch_sampler,
    "two workers": lambda: DataLoader(NUMBERS, BATCH, shuffle=True, num_workers=2),
    "two persistent workers": lambda: DataLoader(
        NUMBERS, BATCH, shuffle=True, num_workers=2, persistent_workers=True
    ),
}
UNSHUFFLED = {
    "tensor loader": lambda: TensorLoader(torch.arange(N), batch_size=BATCH),
    "dataloader": lambda: DataLoader(NUMBERS, BATCH),
    "list": lambda: list(torch.arange(N).split(BATCH)),
    "stream": lambda: DataLoader(Stream(), BATCH),
    "stream, two workers": lambda: DataLoader(Stream(), BATCH, num_workers=2),
}
shuffled = pytest.mark.parametrize("make", SHUFFLED.values(), ids=SHUFFLED)
every_loader = pytest.mark.parametrize(
    "make", [*SHUFFLED.values(), *UNSHUFFLED.values()], ids=[*SHUFFLED, *UNSHUFFLED]
)
