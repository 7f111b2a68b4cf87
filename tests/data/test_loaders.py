import random
from collections import Counter, namedtuple
from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from onecycle.data.loaders import (
    DataLoaders,
    TensorLoader,
    as_dataloaders,
    n_batches,
    with_batch_size,
)
from onecycle.data.nested import split_batch
from onecycle.data.passes import can_skip, order_seed, start_pass

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


# --- DataLoaders ------------------------------------------------------------------------------


def test_a_pair_becomes_dataloaders_and_dataloaders_stay_the_same_object():
    train, valid = [1, 2], [3]
    dls = as_dataloaders((train, valid))
    assert dls.train is train
    assert dls.valid is valid
    assert as_dataloaders(dls) is dls
    assert as_dataloaders((train, None)).valid is None


@pytest.mark.parametrize(
    ("wrong", "came"),
    [
        (DataLoader(NUMBERS), "DataLoader"),
        (([1], [2], [3]), "tuple of 3 items"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_pair_of_loaders_is_refused_with_what_to_write(wrong, came):
    with pytest.raises(TypeError) as error:
        as_dataloaders(wrong)
    assert str(error.value) == (
        f"expected DataLoaders or a (train, valid) pair; got {came}; "
        "write (loader, None) to train without validation"
    )


@pytest.mark.parametrize("one_shot", [iter([1, 2]), (i for i in [1]), zip([1], [2], strict=True)])
def test_an_iterator_that_can_be_used_only_once_is_refused(one_shot):
    with pytest.raises(TypeError, match=r"the training loader can be iterated only once \(\w+\)"):
        DataLoaders(one_shot)
    with pytest.raises(TypeError, match="the validation loader can be iterated only once"):
        DataLoaders([1], one_shot)


def test_what_cannot_be_iterated_is_refused():
    with pytest.raises(TypeError, match="expected an iterable of batches as training loader; got"):
        DataLoaders(42)


def test_a_loader_without_batches_is_refused_by_name():
    too_few = DataLoader(NUMBERS, batch_size=N + 1, drop_last=True)
    with pytest.raises(
        ValueError, match=r"the training loader is empty.*drop_last=True with fewer"
    ):
        DataLoaders(too_few)
    with pytest.raises(ValueError, match=r"the validation loader is empty.*pass None to train"):
        DataLoaders([1], [])


def test_a_loader_without_length_is_accepted_and_shown_by_its_type():
    assert repr(DataLoaders(DataLoader(Stream()), [1])) == (
        "DataLoaders(train=DataLoader, valid=1 batches)"
    )


def test_from_datasets_shuffles_training_only_and_drops_only_there():
    dls = DataLoaders.from_datasets(NUMBERS, NUMBERS, batch_size=5, drop_last=True)
    assert isinstance(dls.train.sampler, RandomSampler)
    assert [len(b[0]) for b in dls.train] == [5, 5, 5, 5]
    assert values(dls.valid) == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    assert len(DataLoaders.from_datasets(NUMBERS, NUMBERS, valid_batch_size=1).valid) == N
    assert DataLoaders.from_datasets(NUMBERS).valid is None


@every_loader
def test_n_batches_is_the_number_of_batches_or_none(make):
    dl = make()
    expected = None if isinstance(getattr(dl, "dataset", None), Stream) else len(list(dl))
    assert n_batches(dl) == expected


# --- TensorLoader -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 4, 8, 9])
@pytest.mark.parametrize("drop_last", [False, True])
def test_tensor_loader_gives_the_batches_of_a_dataloader(n, drop_last):
    x, y = torch.randn(n, 3), torch.arange(n)
    ours = TensorLoader(x, y, batch_size=4, drop_last=drop_last)
    theirs = DataLoader(TensorDataset(x, y), 4, drop_last=drop_last)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert isinstance(mine, tuple)
        assert all(map(torch.equal, mine, other))


def test_tensor_loader_shuffles_all_tensors_alike_and_anew_in_each_pass():
    torch.manual_seed(0)
    loader = TensorLoader(torch.arange(100), torch.arange(100) * 10, batch_size=7, shuffle=True)
    first, second = list(loader), list(loader)
    for x, y in first:
        assert torch.equal(y, x * 10)
    orders = [torch.cat([x for x, _ in batches]) for batches in (first, second)]
    assert not torch.equal(*orders)
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(100))


def test_tensor_loader_alone_is_ordered_by_the_default_generator():
    torch.manual_seed(3)
    expected = torch.randperm(N)
    torch.manual_seed(3)
    loader = TensorLoader(torch.arange(N), batch_size=BATCH, shuffle=True)
    assert torch.equal(torch.cat([x for (x,) in loader]), expected)


def test_tensor_loader_transforms_whole_batches():
    seen = []

    def halve(batch):
        seen.append(len(batch[0]))
        return batch[0] / 2, batch[1]

    loader = TensorLoader(torch.full((5, 2), 8.0), torch.arange(5), batch_size=2, transform=halve)
    assert [x.unique().tolist() for x, _ in loader] == [[4.0]] * 3
    assert seen == [2, 2, 1]


def test_tensor_loader_moves_as_a_new_loader():
    loader = TensorLoader(torch.zeros(5, 2), torch.zeros(5), batch_size=2, shuffle=True)
    moved = loader.to("meta")
    assert [t.device.type for t in moved.tensors] == ["meta", "meta"]
    assert [t.device.type for t in loader.tensors] == ["cpu", "cpu"]
    assert [tuple(x.shape) for x, _ in moved] == [(2, 2), (2, 2), (1, 2)]
    assert loader.to("cpu").tensors[0] is loader.tensors[0]


@pytest.mark.parametrize(
    ("tensors", "kwargs", "message"),
    [
        ((), {}, "expected at least one tensor; got none"),
        ((torch.zeros(3), torch.zeros(4)), {}, r"got the lengths \[3, 4\]"),
        ((torch.zeros(3),), {"batch_size": 0}, "expected a batch_size of at least 1; got 0"),
    ],
)
def test_tensor_loader_refuses_what_it_cannot_batch(tensors, kwargs, message):
    with pytest.raises(ValueError, match=message):
        TensorLoader(*tensors, **kwargs)


# --- data order -------------------------------------------------------------------------------


def test_order_seed_is_two_rounds_of_splitmix64():
    # 0xE220A8397B1DCDAF is the published first output of splitmix64 from state 0; the second
    # state, that output, is fed in again by hand.
    mask = 2**64 - 1
    z = (0xE220A8397B1DCDAF + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    assert order_seed(0, 0) == (z ^ z >> 31) >> 1


def test_order_seeds_fit_63_bits_and_do_not_collide():
    seeds = [order_seed(s, e) for s in (-1, 0, 1, 2, 42, 2**63, 2**64 - 2) for e in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)


@shuffled
def test_order_is_a_function_of_seed_and_epoch(make):
    first = pass_over(make(), seed=1, epoch=2)
    torch.manual_seed(123)
    dl = make()
    for epoch in (0, 1):  # passes before it do not matter
        pass_over(dl, seed=1, epoch=epoch)
    assert pass_over(dl, seed=1, epoch=2) == first
    assert pass_over(dl, seed=1, epoch=3) != first
    assert pass_over(dl, seed=2, epoch=1) != first


def test_order_does_not_depend_on_how_the_data_are_loaded():
    same = [
        SHUFFLED[name]()
        for name in ("shuffle=True", "own generator", "batch_sampler", "two persistent workers")
    ]
    generator = torch.Generator().manual_seed(order_seed(5, 6))
    expected = [chunk.tolist() for chunk in torch.randperm(N, generator=generator).split(BATCH)]
    for dl in [*same, SHUFFLED["tensor loader"]()]:
        for _ in range(2):  # persistent workers start in the first pass only
            assert pass_over(dl, seed=5, epoch=6) == expected


@every_loader
def test_a_pass_draws_from_no_global_random_state(make):
    dl = make()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    pass_over(dl)
    pass_over(dl, skip=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_plain_iteration_does_draw_from_the_global_random_state():
    before = torch.get_rng_state()
    list(DataLoader(NUMBERS, BATCH))
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", list(SHUFFLED.values())[1:], ids=list(SHUFFLED)[1:])
@pytest.mark.parametrize("skip", [0, 2])
def test_generators_and_samplers_are_put_back(make, skip):
    dl = make()
    batch_sampler = dl.batch_sampler
    sampler = dl.sampler if batch_sampler is None else batch_sampler.sampler
    own = dl.generator, sampler.generator
    state = None if own[0] is None else own[0].get_state()
    batches = start_pass(dl, seed=0, epoch=0, skip=skip)
    for _ in islice(batches, 1):
        assert (dl.generator, sampler.generator) == own
        assert batch_sampler is None or batch_sampler.sampler is sampler
    list(batches)
    assert (dl.generator, sampler.generator) == own
    assert state is None or torch.equal(own[0].get_state(), state)


@pytest.mark.parametrize("skip", [0, 2])
def test_generators_are_put_back_after_an_error(skip):
    expected = [i for batch in pass_over(DataLoader(Numbers(), BATCH, shuffle=True)) for i in batch]
    dl = DataLoader(Numbers(fails_at=expected[skip * BATCH]), BATCH, shuffle=True)
    with pytest.raises(RuntimeError, match="no such image"):
        pass_over(dl, skip=skip)
    assert dl.generator is None
    assert dl.sampler.generator is None
    assert dl.batch_sampler.sampler is dl.sampler


def test_a_pass_within_a_pass_leaves_the_outer_order_alone():
    dl = DataLoader(
        NUMBERS, BATCH, sampler=RandomSampler(NUMBERS, replacement=True, num_samples=75)
    )
    expected = pass_over(dl, seed=1)
    outer = start_pass(dl, seed=1, epoch=0)
    seen = values(islice(outer, 2))
    pass_over(dl, seed=7, skip=1)
    assert seen + values(outer) == expected


# --- skipping ---------------------------------------------------------------------------------


@every_loader
@pytest.mark.parametrize("skip", [2, 100])
def test_skipping_leaves_the_rest_of_the_undisturbed_pass(make, skip):
    whole = pass_over(make(), seed=3, epoch=1)
    dl = make()
    assert pass_over(dl, seed=3, epoch=1, skip=skip) == whole[skip:]
    assert pass_over(dl, seed=3, epoch=1) == whole  # and the loader is as it was


@pytest.mark.parametrize("shuffle", [False, True])
def test_skipped_samples_are_not_loaded(shuffle):
    dl = DataLoader(Numbers(), BATCH, shuffle=shuffle)
    rest = pass_over(dl, skip=3)
    assert can_skip(dl)
    assert dl.dataset.loaded == Counter(i for batch in rest for i in batch)
    assert sum(dl.dataset.loaded.values()) == N - 3 * BATCH


def test_can_skip_says_no_where_batches_must_be_drawn():
    class EveryOther(BatchSampler):
        def __iter__(self):
            return islice(super().__iter__(), 0, None, 2)

    class Set(dict):
        pass

    drawn = [
        DataLoader(Stream(), BATCH),
        DataLoader(Numbers(), None),
        DataLoader(Numbers(), batch_sampler=EveryOther(SequentialSampler(NUMBERS), BATCH, False)),
        DataLoader(Numbers(), BATCH, sampler=list(range(N))),
        DataLoader(Numbers(), batch_sampler=[[0, 1], [2, 3]]),
        Set(a=1),
    ]
    assert [can_skip(dl) for dl in drawn] == [False] * len(drawn)
    assert pass_over(drawn[2], skip=1) == [[8, 9, 10, 11], [16, 17, 18, 19]]
    assert pass_over(drawn[4], skip=1) == [[2, 3]]
    assert all(can_skip(make()) for name, make in SHUFFLED.items() if name != "single samples")
    assert all(can_skip(UNSHUFFLED[name]()) for name in ("tensor loader", "dataloader", "list"))


def test_random_states_can_be_restored_between_skipping_and_the_first_batch():
    class Noisy(Numbers):
        def __getitem__(self, i):
            return torch.rand(())

    dl = DataLoader(Noisy(), BATCH, sampler=list(range(N)))  # skipped by drawing
    torch.manual_seed(0)
    expected = values(islice(start_pass(dl, seed=0, epoch=0), 2))[1]
    torch.manual_seed(0)
    torch.rand(BATCH)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    batches = start_pass(dl, seed=0, epoch=0, skip=1)
    torch.set_rng_state(state)
    assert next(batches).tolist() == expected


def test_a_negative_skip_is_refused():
    with pytest.raises(ValueError, match="expected a skip of at least 0 batches; got -1"):
        start_pass([1], seed=0, epoch=0, skip=-1)


# --- batches ----------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    ("batch", "n_inp", "expected"),
    [
        ((1, 2), None, (1, 2)),
        ([1, 2], 1, (1, 2)),
        ((1, 2), 2, ((1, 2), None)),
        ((1, 2, 3), None, ((1, 2), 3)),
        ([1, 2, 3, 4], 2, ((1, 2), (3, 4))),
        ((1, 2, 3), 1, (1, (2, 3))),
        ((1,), None, (1, None)),
    ],
)
def test_split_batch_takes_the_first_n_inp_items_as_inputs(batch, n_inp, expected):
    assert split_batch(batch, n_inp) == expected


@pytest.mark.parametrize("batch", [{"x": 1}, Pair(1, 2), object(), pack_sequence([torch.ones(2)])])
def test_split_batch_gives_what_is_no_plain_tuple_whole_to_the_model_and_to_the_loss(batch):
    xb, yb = split_batch(batch)
    assert xb is batch
    assert yb is batch


def test_split_batch_takes_a_lone_tensor_as_input():
    x = torch.zeros(3, 2)
    assert split_batch(x)[0] is x
    assert split_batch(x)[1] is None


@pytest.mark.parametrize(
    ("batch", "n_inp", "message"),
    [
        ((1, 2), 3, r"expected n_inp in \[1, 2\] for this batch; got 3"),
        ((1, 2), 0, r"expected n_inp in \[1, 2\] for this batch; got 0"),
        (torch.zeros(5), 2, r"expected n_inp in \[1, 1\] for this batch; got 2"),
        ({"x": 1}, 1, "n_inp=1 counts the items of a tuple; the batch is a dict"),
        ((), None, "expected a batch of at least one item"),
    ],
)
def test_split_batch_refuses_what_does_not_fit(batch, n_inp, message):
    with pytest.raises(ValueError, match=message):
        split_batch(batch, n_inp)


@pytest.mark.parametrize(
    "make",
    [
        lambda size: TensorLoader(torch.arange(N), batch_size=size, shuffle=True),
        lambda size: DataLoader(NUMBERS, size, shuffle=True, drop_last=True),
        lambda size: DataLoader(NUMBERS, size, sampler=SubsetRandomSampler(range(9))),
        lambda size: DataLoader(NUMBERS, size, collate_fn=lambda rows: torch.stack(rows[0])),
    ],
)
def test_another_batch_size_is_a_loader_made_with_it(make):
    loader = make(4)
    before = pass_over(loader)
    assert pass_over(with_batch_size(loader, 7)) == pass_over(make(7)) != before
    assert pass_over(loader) == before


@pytest.mark.parametrize(
    "loader",
    [[1, 2], inner_batch_sampler(), DataLoader(NUMBERS, None), DataLoader(Stream(), 4)],
    ids=["list", "batch sampler", "single samples", "stream"],
)
def test_another_batch_size_is_refused_where_batches_are_made_in_another_way(loader):
    with pytest.raises(TypeError, match="cannot change the batch size of a"):
        with_batch_size(loader, 7)
