from itertools import chain

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from onecycle import TensorLoader
from onecycle.data.loaders import shared_loader
from onecycle.data.parts import Part, PartSampler, Unpadded

WORLDS = (1, 2, 3, 4, 7)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("n", [0, 1, 2, 5, 12, 13])
def test_every_thing_is_one_process_s_own_as_evenly_as_can_be(world, n):
    parts = [range(n)[Part(rank, world).of(n)] for rank in range(world)]
    assert list(chain(*parts)) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("n", range(1, 20))
def test_of_a_batch_that_is_not_full_nobody_has_a_single_row_beside_others(world, n):
    parts = [range(n)[Part(rank, world).rows(n, 20)] for rank in range(world)]
    assert list(chain(*parts)) == list(range(n))
    assert n == 1 or 1 not in map(len, parts)


def test_of_a_full_batch_each_process_has_its_own_row():
    assert [Part(rank, 4).rows(4, 4) for rank in range(4)] == [slice(i, i + 1) for i in range(4)]


def test_a_process_without_rows_has_some_that_stand_in():
    assert Part(3, 4).rows(3, 8) == slice(3, 3)
    assert Part(3, 4).or_some(3, 8) == slice(0, 2)
    assert Part(0, 4).or_some(3, 8) == slice(0, 3)


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_batches_of_all_processes_are_those_of_the_sampler(drop_last):
    samplers = [PartSampler(range(22), 8, drop_last, Part(rank, 3)) for rank in range(3)]
    batches = [list(sampler) for sampler in samplers]
    found = [
        [i for sampler, own in zip(samplers, each, strict=True) for i in own[: sampler.counts[k]]]
        for k, each in enumerate(zip(*batches, strict=True))
    ]
    assert found == list(BatchSampler(range(22), 8, drop_last))
    assert {len(sampler) for sampler in samplers} == {len(found)}


def test_a_tensor_loader_gives_each_process_its_rows_in_one_order():
    loader = TensorLoader(torch.arange(21), batch_size=99, shuffle=True)

    def drawn(part):
        generator = torch.Generator().manual_seed(0)
        return [x.tolist() for (x,) in loader.shared(6, part).batches(generator)]

    whole = drawn(Part(0, 1))
    both = zip(drawn(Part(0, 2)), drawn(Part(1, 2)), strict=True)
    halves = [[*one, *other] for one, other in both]
    assert halves[:-1] == whole[:-1]
    assert halves[-1] == whole[-1] + whole[-1][:2]  # three rows are the first one's; two stand in


def test_an_order_of_a_distributed_sampler_is_whole_and_unpadded():
    data = list(range(10))
    for shuffle in (False, True):
        each = [
            DistributedSampler(data, num_replicas=3, rank=rank, shuffle=shuffle, seed=4)
            for rank in range(3)
        ]
        for sampler in each:
            sampler.set_epoch(2)
        padded = [list(sampler) for sampler in each]  # 12 indices, two of them twice
        assert list(Unpadded(each[0])) == [padded[i % 3][i // 3] for i in range(10)]


def test_the_loader_of_a_process_keeps_what_the_users_has():
    def collate(samples):
        return torch.tensor(samples)

    own = DataLoader(range(10), 2, collate_fn=collate)
    shared = shared_loader(own, None, 2, Part(1, 2))
    assert [batch.tolist() for batch in shared] == [[2, 3], [6, 7], [8, 9]]
    assert list(shared.batch_sampler.counts) == [2, 2, 0]
    listed = DataLoader(
        range(10), batch_sampler=BatchSampler(SequentialSampler(range(10)), 2, True)
    )
    assert len(shared_loader(listed, None, 3, Part(0, 3))) == 1
