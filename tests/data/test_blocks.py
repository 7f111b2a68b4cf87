"""A DataLoader over a TensorDataset is read in blocks: the same batches and random numbers."""

import random
from contextlib import suppress
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data._utils.collate import default_collate_fn_map
from torch.utils.data.distributed import DistributedSampler

from onecycle import Learner, SeededDataset
from onecycle.data import blocks, passes
from onecycle.data.passes import start_pass

N = 23
Y = torch.arange(N) % 3


def channels_last(*shape):
    return torch.randn(N, *shape[1:], shape[0]).movedim(-1, 1)


TENSORS = {
    "floats and labels": (torch.randn(N, 5), Y),
    "one tensor": (torch.randn(N, 2, 3),),
    "images": (torch.randint(0, 256, (N, 3, 4, 4), dtype=torch.uint8), Y),
    "channels last": (channels_last(3, 4, 4), Y),
    "channels last in 3 dimensions": (channels_last(2, 3, 4, 5), Y),
    "a transposed tensor": (torch.randn(4, N).t(), Y),
    "every second row": (torch.randn(2 * N, 4)[::2], Y),
    "one row for all": (torch.randn(1, 4).expand(N, 4), Y),
    "one channel": (torch.randn(N, 1, 1, 1), Y),
    "nothing in a sample": (torch.randn(N, 0), Y),
    "not a number": (torch.full((N, 2), float("nan")), torch.tensor([-0.0] * N)),
    "complex, conjugated": (torch.randn(N, 2, dtype=torch.complex64).conj(), Y),
    "with gradients": (torch.randn(N, 2, requires_grad=True), Y),
    **{
        str(dtype): (torch.arange(N).to(dtype), Y)
        for dtype in (torch.bool, torch.int8, torch.float16, torch.bfloat16, torch.float64)
    },
}
SAMPLERS = {
    "in order": lambda data: {},
    "shuffled": lambda data: {"shuffle": True},
    "shuffled, the last dropped": lambda data: {"shuffle": True, "drop_last": True},
    "own generator": lambda data: {
        "shuffle": True,
        "generator": torch.Generator().manual_seed(3),
    },
    "with replacement": lambda data: {"sampler": RandomSampler(data, replacement=True)},
    "longer than the data": lambda data: {"sampler": RandomSampler(data, num_samples=1000)},
    "weighted": lambda data: {"sampler": WeightedRandomSampler([1.0, 2.0] * 10, 300)},
    "a subset": lambda data: {"sampler": SubsetRandomSampler([3, 5, 7, 11, 20])},
    "a subset from the end": lambda data: {"sampler": SubsetRandomSampler([-1, 5, -7])},
    "a subset of tensors": lambda data: {"sampler": SubsetRandomSampler(torch.tensor([3, 5, 9]))},
    "a part of the processes": lambda data: {"sampler": DistributedSampler(data, 2, 1)},
    "batch sampler": lambda data: {
        "batch_sampler": BatchSampler(RandomSampler(data), 5, drop_last=True)
    },
    "batches of a list": lambda data: {"batch_sampler": [[0, 1, 2], [-1], [4, 4]]},
}


def loader_of(name, data):
    options = SAMPLERS[name](data)
    return DataLoader(data, **({} if "batch_sampler" in options else {"batch_size": 4}) | options)


def as_torch_reads(monkeypatch):
    """Let a DataLoader be read as torch does it."""
    monkeypatch.setattr(passes, "start_in_blocks", lambda dl, sampler: iter(dl))


def count_blocks(monkeypatch):
    """Return a list that grows with each pass that is read in blocks."""
    read, whole = [], blocks._blocks
    monkeypatch.setattr(blocks, "_blocks", lambda *a, **k: read.append(1) or whole(*a, **k))
    return read


def drawn(loader, skip, use_between):
    """A pass, what each batch is, and the random states after each."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    found = []
    for batch in start_pass(loader, seed=7, epoch=2, skip=skip):
        found.append([type(batch), len(batch)])
        for part in batch:
            bits = part.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).tolist()
            kind = type(part), part.dtype, part.shape, part.stride(), part.requires_grad
            found.append([bits, kind, part.is_conj()])
        if use_between:  # as dropout would
            torch.rand(3)
        found.append([torch.get_rng_state().tolist(), random.random(), np.random.rand()])
    own = loader.generator
    return found, None if own is None else own.get_state().tolist()


@pytest.mark.parametrize("tensors", TENSORS)
def test_any_tensors_give_the_batches_that_torch_gives(tensors, monkeypatch):
    data = TensorDataset(*TENSORS[tensors])
    for name, skip in product(("in order", "shuffled"), (0, 2)):
        found = drawn(loader_of(name, data), skip, use_between=True)
        with monkeypatch.context() as patched:
            as_torch_reads(patched)
            assert found == drawn(loader_of(name, data), skip, use_between=True)


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler_gives_the_batches_and_random_numbers_of_torch(name, monkeypatch):
    data = TensorDataset(torch.randn(N, 3), Y)
    for skip in (0, 3):
        found = drawn(loader_of(name, data), skip, use_between=True)
        with monkeypatch.context() as patched:
            as_torch_reads(patched)
            assert found == drawn(loader_of(name, data), skip, use_between=True)


def test_the_usual_loaders_are_read_in_blocks(monkeypatch):
    read = count_blocks(monkeypatch)
    data = TensorDataset(torch.randn(N, 3), Y)
    for number, name in enumerate(SAMPLERS, 1):
        if name != "batches of a list":
            list(start_pass(loader_of(name, data), 0, 0))
            assert len(read) == number, name


class OwnSet(TensorDataset):
    def __getitem__(self, i):
        return (self.tensors[0][i] + 1,)


class OwnSampler(SequentialSampler):
    def __iter__(self):
        return iter([2, 1, 0])


class OwnLoader(DataLoader):
    def __iter__(self):
        return iter([[torch.tensor([9])]])


class OwnTensor(torch.Tensor):
    pass


DATA = TensorDataset(torch.arange(N))
OTHERS = {
    "own collate function": lambda: DataLoader(
        DATA, 4, collate_fn=lambda batch: default_collate(batch)
    ),
    "workers": lambda: DataLoader(DATA, 4, num_workers=1),
    "a subclass of the data set": lambda: DataLoader(OwnSet(torch.arange(N)), 4),
    "a subclass of a sampler": lambda: DataLoader(DATA, 4, sampler=OwnSampler(DATA)),
    "a subclass of the loader": lambda: OwnLoader(DATA, 4),
    "a subclass of a tensor": lambda: DataLoader(
        TensorDataset(torch.arange(N).as_subclass(OwnTensor)), 4
    ),
    "no batches": lambda: DataLoader(DATA, None),
    "a subset": lambda: DataLoader(Subset(DATA, range(5)), 4),
    "seeded samples": lambda: DataLoader(SeededDataset(DATA), 4),
    "sparse": lambda: DataLoader(TensorDataset(torch.eye(4).to_sparse()), 2),
    "a list": lambda: DataLoader([1, 2, 3], 2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_differs_is_left_alone(name, monkeypatch):
    read = count_blocks(monkeypatch)
    with suppress(RuntimeError):  # by which torch refuses sparse tensors
        list(start_pass(OTHERS[name](), 0, 0))
    assert not read


def test_a_changed_collate_function_of_torch_is_heeded(monkeypatch):
    def negative(batch, *, collate_fn_map):
        return -torch.stack(batch)

    monkeypatch.setitem(default_collate_fn_map, torch.Tensor, negative)
    assert next(start_pass(DataLoader(DATA, 3), 0, 0))[0].tolist() == [0, -1, -2]


def test_methods_that_read_many_samples_are_asked(monkeypatch):
    data = TensorDataset(torch.arange(N))
    data.__getitems__ = lambda indices: [(torch.tensor(5),)] * len(indices)
    assert next(start_pass(DataLoader(data, 2), 0, 0))[0].tolist() == [5, 5]


def test_batches_are_memory_of_their_own():
    x = torch.zeros(6, 2)
    for (batch,) in start_pass(DataLoader(TensorDataset(x), 3), 0, 0):
        batch += 1
    assert x.sum() == 0


def test_data_that_change_during_a_pass_are_read_as_torch_reads_them(monkeypatch):
    def changed():
        data = TensorDataset(torch.arange(200.0))
        sampler = SubsetRandomSampler(list(range(100)))
        found = []
        for (batch,) in start_pass(DataLoader(data, 2, sampler=sampler), 0, 0):
            found += batch.tolist()
            data.tensors = (data.tensors[0] + 1000,)
            sampler.indices[:] = [i + 1 for i in sampler.indices]
        return found

    ours = changed()
    as_torch_reads(monkeypatch)
    assert ours == changed()


def test_a_row_that_is_not_there_is_torchs_own_error(monkeypatch):
    def error():
        loader = DataLoader(DATA, 2, sampler=WeightedRandomSampler([0.0] * N + [1.0], 4))
        with pytest.raises(IndexError) as raised:
            list(start_pass(loader, 0, 0))
        return str(raised.value)

    ours = error()
    as_torch_reads(monkeypatch)
    assert ours == error()


def fitted(order=0):
    torch.manual_seed(order)
    data = TensorDataset(torch.randn(N, 5), Y)
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Dropout(0.5))
    loader = DataLoader(data, 4, shuffle=True)
    learn = Learner((loader, DataLoader(data, 8)), model, cross_entropy, device="cpu", seed=1)
    with learn.no_bar():
        learn.fit_one_cycle(2, 0.1)
    return [p.tolist() for p in model.parameters()], torch.rand(3).tolist()


def test_a_fit_with_dropout_ends_in_the_same_bits_and_random_state(monkeypatch):
    read, ours = count_blocks(monkeypatch), fitted()
    assert read
    as_torch_reads(monkeypatch)
    assert ours == fitted()
    assert ours != fitted(order=1)  # the control: another order of numbers is seen


WRONG = {
    "another row": lambda batches: ([part.roll(1, 0) for part in batch] for batch in batches),
    "another container": lambda batches: (tuple(batch) for batch in batches),
    "other strides": lambda batches: (
        [part.t().contiguous().t() if part.ndim == 2 else part for part in batch]
        for batch in batches
    ),
    "another dtype": lambda batches: ([part.double() for part in batch] for batch in batches),
    "a number drawn": lambda batches: (batch for batch in batches if torch.rand(()) >= 0),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_comparison_sees_what_is_wrong(wrong, monkeypatch):
    data = TensorDataset(torch.randn(N, 3), Y)
    whole = blocks._blocks
    found = []
    for each in (whole, lambda *a, **k: wrong(whole(*a, **k))):
        monkeypatch.setattr(blocks, "_blocks", each)
        found.append(drawn(loader_of("shuffled", data), 0, use_between=True))
    assert found[0] != found[1]
