from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from onecycle import TensorLoader
from onecycle.data.passes import start_pass
from onecycle.data.streams import Stream as Position
from onecycle.parallel.shards import Shards


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(11))


class Drawn(Sampler):
    def __iter__(self):
        return (int(torch.randint(11, ())) for _ in range(11))

    def __len__(self):
        return 11


class Numbers(Dataset):
    def __len__(self):
        return 11

    def __getitem__(self, i):
        return i


def passes(make, world, skip=0, **fixed):
    """Return by batch what each of several processes has of its own, and how many batches."""
    found, lengths = [], []
    for rank in range(world):
        shards, dl = Shards(rank, world), make()
        torch.manual_seed(rank)
        own = []
        for batch in shards.start_pass(dl, 3, 1, skip):
            batch = batch[0] if isinstance(batch, (tuple, list)) else batch
            own.append(batch.tolist() if shards.has_samples else [])
        found.append(own)
        lengths.append(shards.n_batches(dl))
    return [list(chain(*each)) for each in zip(*found, strict=True)], lengths


LOADERS = {
    "tensors": lambda: TensorLoader(torch.arange(11), batch_size=2, shuffle=True),
    "shuffled": lambda: DataLoader(Numbers(), 2, shuffle=True),
    "own sampler": lambda: DataLoader(Numbers(), 2, sampler=Drawn()),
    "stream": lambda: DataLoader(Stream(), 2),
    "list": lambda: list(torch.arange(11).split(2)),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("world", [2, 3, 4])
def test_the_parts_of_all_make_batches_in_which_nothing_comes_twice(make, world):
    seen, lengths = passes(make, world)
    n = -(-11 // (2 * world))
    assert [len(batch) for batch in seen] == [2 * world] * (n - 1) + [11 - 2 * world * (n - 1)]
    assert lengths == [n] * world or lengths == [None] * world
    if make is not LOADERS["own sampler"]:
        assert sorted(chain(*seen)) == list(range(11))


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("skip", [1, 2])
def test_a_pass_can_begin_at_any_batch(make, skip):
    whole, _ = passes(make, 2)
    rest, _ = passes(make, 2, skip)
    assert rest == whole[skip:]


@pytest.mark.parametrize("name", ["tensors", "shuffled"])
def test_the_order_is_that_of_one_process_with_the_batch_of_all(name):
    seen, _ = passes(LOADERS[name], 3)
    one = {
        "tensors": TensorLoader(torch.arange(11), batch_size=6, shuffle=True),
        "shuffled": DataLoader(Numbers(), 6, shuffle=True),
    }[name]
    batches = start_pass(one, 3, 1)
    right = [(b[0] if isinstance(b, tuple) else b).tolist() for b in batches]
    assert seen == right


def test_drawing_from_a_stream_of_its_own_leaves_the_global_generators():
    shards = Shards(1, 2)
    torch.manual_seed(5)
    batches = shards.start_pass(LOADERS["own sampler"](), 3, 1, 0)
    next(batches)
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(2))


def test_a_resumed_fit_takes_the_batches_that_it_began_with():
    shards, dl = Shards(0, 1), TensorLoader(torch.arange(11), batch_size=2)
    with shards.resumed(dl, 6, 3):
        assert [x.tolist() for (x,) in shards.start_pass(dl, 0, 0, 0)] == [
            [0, 1, 2, 3, 4, 5],
            [6, 7, 8, 9, 10],
        ]
        assert shards.batch_size_of(dl) == 6
    assert shards.batch_size_of(dl) == 2


def test_several_batches_of_a_list_become_one():
    shards, batches = Shards(0, 1), [(torch.tensor([i]), torch.tensor([-i])) for i in range(5)]
    with shards.resumed(batches, None, 2):
        found = list(shards.start_pass(batches, 0, 0, 0))
    assert [[x.tolist(), y.tolist()] for x, y in found] == [
        [[0, 1], [0, -1]],
        [[2, 3], [-2, -3]],
        [[4], [-4]],
    ]


@pytest.mark.parametrize("world", [2, 3])
def test_a_stream_that_is_cut_goes_on_where_it_was_in_every_process(world):
    found = []
    for rank in range(world):
        shards, dl, position = Shards(rank, world), LOADERS["stream"](), Position()
        own = []
        for epoch in range(3):
            batches = shards.go_on_in(position, dl, 3, epoch, 0, 1)
            own.append(next(batches).tolist())
        found.append(own)
    items = [each.tolist() for each in torch.arange(11).split(2)] * 2
    right = [list(chain(*items[i * world : (i + 1) * world])) for i in range(3)]
    assert [list(chain(*each)) for each in zip(*found, strict=True)] == right


class Split(Stream):
    def __init__(self, share=(0, 1), wrong=0):
        self.share, self.wrong = share, wrong

    def split_for_rank(self, rank, world):
        return range(11)[rank::world] if self.wrong else Split((rank, world))

    def __iter__(self):
        return iter(range(*self.share[:1], 11, self.share[1]))


class Others:
    """Stands in for the processes: all have more until the longest share is at its end."""

    def __init__(self, n):
        self.left = n

    def any(self, flag):
        self.left -= 1
        return self.left >= 0


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("skip", [0, 1])
def test_a_data_set_that_splits_itself_is_drawn_by_nobody_as_a_whole(world, skip):
    found = []
    n = -(-11 // (2 * world))
    for rank in range(world):
        shards = Shards(rank, world, Others(n - skip))
        batches = shards.start_pass(DataLoader(Split(), 2), 3, 1, skip)
        found.append([batch.tolist() if shards.has_samples else [] for batch in batches])
    seen = [sorted(chain(*each)) for each in zip(*found, strict=True)]
    whole = [list(range(i, min(i + 2 * world, 11))) for i in range(0, 11, 2 * world)]
    assert seen == whole[skip:]


def test_with_the_batches_of_another_number_all_is_drawn_by_all():
    shards, dl = Shards(1, 2, Others(99)), DataLoader(Split(), 2)
    shards._processes.is_alike = lambda sign: True
    with shards.resumed(dl, None, 3):
        found = [batch.tolist() for batch in shards.start_pass(dl, 0, 0, 0)]
    assert found == [[2, 3, 4, 5], [8, 9, 10]]


def test_a_share_that_is_none_is_refused():
    class Short(Split):
        def __len__(self):
            return 11

        def split_for_rank(self, rank, world):
            return Short()

    dl = DataLoader(Split(wrong=1), 2)
    with pytest.raises(TypeError, match=r"Split.split_for_rank\(0, 2\) must return an Iterable"):
        list(Shards(0, 2, Others(9)).start_pass(dl, 3, 1, 0))
    with pytest.raises(ValueError, match=r"has 11 samples; of 11 .* makes 5"):
        list(Shards(1, 2, Others(9)).start_pass(DataLoader(Short(), 2), 3, 1, 0))
