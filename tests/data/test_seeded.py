"""The randomness of a sample is a function of (seed, epoch, index), whoever loads it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import trained
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from onecycle import (
    Callback,
    CancelFit,
    Checkpoint,
    Learner,
    SeededDataset,
)
from onecycle.checkpoints import fit_files
from onecycle.core.restore import RngState
from onecycle.data.passes import start_pass

N = 12
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))


class Noisy(Dataset[Any]):
    """Draws from the three global generators for each sample."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        assert type(i) is int
        noise = torch.rand(4) + random.random() + float(np.random.rand())
        return X[i] + noise, i


def samples(epoch: int = 0, seed: int = 0, skip: int = 0, **options: Any) -> dict[int, list[float]]:
    """Return the samples of a pass by their index."""
    loader = options.pop("loader", None)
    if loader is None:
        loader = DataLoader(SeededDataset(Noisy()), shuffle=True, **options)
    found = {}
    for xb, yb in start_pass(loader, seed=seed, epoch=epoch, skip=skip):
        found |= dict(zip(yb.tolist(), xb.tolist(), strict=True))
    return found


EXPECTED = samples(batch_size=4)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 0), (12, 0), (4, 1), (5, 2)])
def test_a_sample_is_the_same_whatever_the_workers_and_the_batch_size(
    batch_size: int, workers: int
) -> None:
    random.seed(batch_size)
    torch.manual_seed(workers)
    assert samples(batch_size=batch_size, num_workers=workers) == EXPECTED


def test_without_the_wrapper_it_is_not() -> None:
    def plain(batch_size: int) -> dict[int, list[float]]:
        return samples(loader=DataLoader(Noisy(), batch_size, shuffle=True))

    assert plain(4) != plain(5)


def test_samples_of_other_epochs_and_seeds_are_other_ones() -> None:
    others = [samples(epoch, seed, batch_size=4) for epoch, seed in [(1, 0), (0, 1), (2, 3)]]
    for i in range(N):
        assert len({str(found[i]) for found in [EXPECTED, *others]}) == 4


def test_two_samples_of_one_epoch_have_randomness_of_their_own() -> None:
    noise = torch.tensor([EXPECTED[i] for i in range(N)]) - X
    assert len(noise.unique(dim=0)) == N


def test_workers_that_stay_alive_learn_of_each_epoch() -> None:
    loader = DataLoader(
        SeededDataset(Noisy()), 5, shuffle=True, num_workers=1, persistent_workers=True
    )
    for epoch in (0, 1, 0):
        assert samples(epoch, loader=loader) == samples(epoch, batch_size=4)
    alone = [xb.tolist() for xb, _ in loader]  # outside of the loop: no seed of a pass before
    assert alone != [xb.tolist() for xb, _ in loader]


def test_a_pass_within_a_pass_leaves_the_samples_of_the_outer_one_alone() -> None:
    loader = DataLoader(SeededDataset(Noisy()), 2, shuffle=True, num_workers=1)
    outer, found = start_pass(loader, seed=0, epoch=0), {}
    for n, (xb, yb) in enumerate(outer):
        found |= dict(zip(yb.tolist(), xb.tolist(), strict=True))
        if n == 1:  # the worker has loaded ahead by now
            assert samples(7, loader=loader) == samples(7, batch_size=4)
    assert found == EXPECTED


@pytest.mark.parametrize("skip", [1, 2])
def test_skipped_batches_leave_the_rest_as_it_was(skip: int) -> None:
    rest = samples(batch_size=4, skip=skip)
    assert len(rest) == N - 4 * skip
    assert rest == {i: EXPECTED[i] for i in rest}


def test_the_generators_of_the_process_are_put_back_also_after_an_error() -> None:
    class Failing(Noisy):
        def __getitem__(self, i: int) -> Any:
            super().__getitem__(i)
            raise OSError("unreadable")

    before = str(RngState().state_dict())
    samples(batch_size=4)
    with pytest.raises(OSError, match="unreadable"):
        samples(loader=DataLoader(SeededDataset(Failing()), 4))
    assert str(RngState().state_dict()) == before


def test_outside_of_the_loop_samples_are_those_of_the_data_set() -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = Noisy()[3]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    assert torch.equal(SeededDataset(Noisy())[3][0], expected[0])
    assert len(SeededDataset(Noisy())) == N


@pytest.mark.parametrize(
    "sampler",
    [SequentialSampler(range(N)), RandomSampler(range(N)), WeightedRandomSampler([1.0] * N, 30)],
    ids=lambda sampler: type(sampler).__name__,
)
def test_every_sampler_of_torch_gives_the_same_sample_for_an_index(sampler: Any) -> None:
    found = samples(loader=DataLoader(SeededDataset(Noisy()), 4, sampler=sampler))
    assert found == {i: EXPECTED[i] for i in found}
    assert len(found) > N / 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda ds: DataLoader(Subset(SeededDataset(ds), [0, 1]), 2), "within Subset gets no"),
        (lambda ds: DataLoader(ConcatDataset([ds, SeededDataset(ds)]), 2), "within ConcatDataset"),
        (lambda ds: DataLoader(SeededDataset(ds), batch_size=None), "make it with batch_size="),
        (lambda ds: DataLoader(SeededDataset(ds), batch_sampler=[[0]]), "has list: make it with"),
    ],
    ids=["subset", "concat", "no batches", "own batch sampler"],
)
def test_a_loader_by_which_samples_would_get_no_seed_is_refused(make: Any, words: str) -> None:
    loader = make(Noisy())
    with pytest.raises(ValueError, match=words):
        next(start_pass(loader, seed=0, epoch=0))


def test_a_batch_sampler_of_torch_is_followed() -> None:
    batches = BatchSampler(SequentialSampler(range(N)), 5, drop_last=False)
    assert samples(loader=DataLoader(SeededDataset(Noisy()), batch_sampler=batches)) == EXPECTED


@pytest.mark.parametrize("kind", ["iterable", "no data set"])
def test_what_has_no_index_is_refused(kind: str) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(range(3))

    with pytest.raises(TypeError, match="expected a map-style data set"):
        SeededDataset(Stream() if kind == "iterable" else object())  # type: ignore[arg-type]


def learner(workers: int, *, seeded: bool = True, persistent: bool = False) -> Learner:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 12))
    ds: Dataset[Any] = SeededDataset(Noisy()) if seeded else Noisy()
    train = DataLoader(ds, 2, shuffle=True, num_workers=workers, persistent_workers=persistent)
    return Learner((train, None), model, nn.functional.cross_entropy, device="cpu", seed=0)


def resumed_differs(
    folder: Path, workers: int, *, seeded: bool, persistent: bool = False
) -> list[str]:
    """Stop a fit in the middle of its second epoch, resume it, compare with one left alone."""
    whole = learner(workers, seeded=seeded, persistent=persistent)
    torch.manual_seed(2), random.seed(2), np.random.seed(2)
    with whole.no_bar():
        whole.fit(2, 0.1)
    expected = trained(whole)

    def stop(learn: Learner) -> None:
        if learn.n_updates == 10:  # the checkpoint is that of update 9, 3 of 6 batches
            raise CancelFit("killed here")

    stopped = learner(workers, seeded=seeded, persistent=persistent)
    torch.manual_seed(2), random.seed(2), np.random.seed(2)
    with stopped.no_bar():
        stopped.fit(
            2, 0.1, cbs=[Checkpoint(folder, "3 updates", keep=9), Callback(after_step=stop)]
        )
    newest = fit_files.find(folder)[0]
    again = learner(workers, seeded=seeded, persistent=persistent)
    torch.manual_seed(9), random.seed(9), np.random.seed(9)
    with again.no_bar():
        again.fit(2, 0.1, resume=newest)
    found = trained(again)
    return [name for name in expected if found.get(name) != expected[name]]


def test_a_fit_resumed_within_an_epoch_ends_in_the_same_bits_with_a_worker(tmp_path: Path) -> None:
    assert resumed_differs(tmp_path, 1, seeded=True) == []


def test_without_the_wrapper_the_batches_before_are_drawn_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert resumed_differs(tmp_path, 1, seeded=False) == []
    assert "its first 3 batches are drawn and dropped" in caplog.text


def test_without_the_wrapper_workers_that_live_on_end_in_other_bits_and_it_is_said_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    differs = resumed_differs(tmp_path, 1, seeded=False, persistent=True)
    assert "model.0.weight" in differs
    said = [each.getMessage() for each in caplog.records]
    warned = [
        i for i, each in enumerate(said) if "Noisy draws random numbers or counts in worker" in each
    ]
    assert len(warned) == 2, said  # at the first checkpoint, and at the resume


def test_a_range_test_within_an_epoch_changes_no_sample_of_it() -> None:
    def look(learn: Learner) -> None:
        if learn.n_updates == 2:
            learn.lr_find(num_it=9, show_plot=False)

    ends = []
    for cbs in ([], [Callback(after_step=look)]):
        learn = learner(1, persistent=True)
        with learn.no_bar():
            learn.fit(2, 0.1, cbs=cbs)
        ends.append(trained(learn))
    assert ends[0] == ends[1]
