"""The order of a pass is a function of seed and epoch, also of what is left of it."""

import random
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from numbered_loaders import (
    BATCH,
    NUMBERS,
    SHUFFLED,
    UNSHUFFLED,
    N,
    Numbers,
    Stream,
    every_loader,
    pass_over,
    shuffled,
    values,
)
from torch.nn.functional import mse_loss
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from onecycle import Learner
from onecycle.data.generators import order_seed
from onecycle.data.passes import can_skip, start_pass


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


# --- set_epoch, and loaders whose length is not theirs ----------------------------------------


class Told:
    """A sampler or data set that is told the epoch."""

    def __init__(self, items):
        self.items, self.epochs = items, []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        return iter(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_whatever_takes_its_order_from_the_epoch_is_told_it_once_a_pass():
    sampler, data = Told(range(4)), Told(torch.zeros(4, 1))
    loader = DataLoader(Subset(data, range(4)), 2, sampler=sampler)
    learn = Learner((loader, None), torch.nn.Linear(1, 1), torch.mean, device="cpu")
    with learn.no_bar():
        learn.fit(2)
        learn.fit(1)
    assert sampler.epochs == data.epochs == [0, 1, 2]


class RoundsDown:
    def __len__(self):
        return 2

    def __iter__(self):
        return iter(
            [(torch.full((2, 1), float(i)), torch.full((2, 1), float(i))) for i in range(4)]
        )


def test_validation_and_prediction_run_until_the_loader_ends_whatever_its_length_says():
    learn = Learner((RoundsDown(), RoundsDown()), torch.nn.Linear(1, 1), mse_loss, device="cpu")
    assert learn.get_preds().targets.flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with torch.no_grad():
        expected = sum(float(mse_loss(learn.model(x), y)) for x, y in RoundsDown()) / 4
    assert learn.validate()["valid_loss"] == pytest.approx(expected, rel=1e-6)
    with learn.no_bar():
        learn.fit(1, lr=0.0)
    assert learn.recorder.history["valid_loss"].values[-1] == pytest.approx(expected, rel=1e-6)
