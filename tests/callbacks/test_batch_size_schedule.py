"""Batches that grow during a fit: the updates of a loop by hand, and nothing else is changed."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState, trained
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from onecycle import (
    BatchSizeSchedule,
    Callback,
    CancelFit,
    Checkpoint,
    EarlyStopping,
    GradientAccumulation,
    Learner,
    Progress,
    SeededDataset,
    Stage,
    TensorLoader,
    TorchScheduler,
    Validate,
    constant,
    one_cycle,
)
from onecycle.data.generators import order_seed
from onecycle.data.lengths import epochs_in, updates_in
from onecycle.testing import toy_learner

N, OWN = 37, 5
SIZES = {1: 8, 3: 20}
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
DATA = TensorDataset(X, Y, torch.arange(N))


def size_in(epoch: int, sizes: dict[int, int] = SIZES) -> int:
    return next((sizes[e] for e in sorted(sizes, reverse=True) if e <= epoch), OWN)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))


def sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def learner(train: Any = None, *cbs: Callback, **options: Any) -> Learner:
    if train is None:
        train = TensorLoader(X, Y, torch.arange(N), batch_size=OWN, shuffle=True)
    given: dict[str, Any] = {"loss_func": lambda pred, y, i: mse_loss(pred, y), "n_inp": 1}
    given = {"opt_func": sgd, "lr": 0.02, "seed": 3, "device": "cpu", "check": False} | given
    learn = Learner((train, None), options.pop("model", None) or model(), **(given | options))
    learn.cbs = [each for each in learn.cbs if not isinstance(each, Progress)] + list(cbs)
    torch.manual_seed(1)
    return learn


class Seen(Callback):
    """Keeps which samples each batch had, by epoch."""

    during = "train"

    def before_fit(self, learn: Any) -> None:
        self.by_epoch: dict[int, list[list[int]]] = {}

    def before_batch(self, learn: Any) -> None:
        self.by_epoch.setdefault(learn.epoch, []).append(learn.batch[2].tolist())


def order_of(epoch: int) -> list[int]:
    """The order of an epoch, as a function of seed and epoch, made as torch makes one."""
    generator = torch.Generator().manual_seed(order_seed(3, epoch))
    return torch.randperm(N, generator=generator).tolist()


def cut(rows: list[int], size: int, *, drop_last: bool = False) -> list[list[int]]:
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [batch for batch in batches if len(batch) == size or not drop_last]


def by_hand(batches: list[list[int]], lrs: Any) -> tuple[nn.Module, list[float]]:
    """Train on batches of these samples at these rates, with torch alone."""
    net = model()
    opt, losses = sgd(net.parameters(), 0.02), []
    torch.manual_seed(1)
    for rows, lr in zip(batches, lrs, strict=True):
        opt.param_groups[0]["lr"] = float(lr)
        opt.zero_grad()
        loss = mse_loss(net(X[rows]), Y[rows])
        loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    return net, losses


def same_weights(learn: Learner, net: nn.Module) -> bool:
    pairs = zip(learn.model.parameters(), net.parameters(), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


# The updates ----------------------------------------------------------------------------------


class Rows(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return X[i], Y[i], i


def plain_batch_sampler() -> DataLoader[Any]:
    return DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), OWN, False))


LOADERS = {
    "tensor loader": lambda: TensorLoader(X, Y, torch.arange(N), batch_size=OWN, shuffle=True),
    "dataloader": lambda: DataLoader(DATA, OWN, shuffle=True),
    "plain batch sampler": plain_batch_sampler,
    "rows": lambda: DataLoader(Rows(), OWN, shuffle=True),
    "own generator": lambda: DataLoader(DATA, OWN, shuffle=True, generator=torch.Generator()),
}
WITH_WORKERS = {
    "workers": lambda: DataLoader(Rows(), OWN, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(
        Rows(), OWN, shuffle=True, num_workers=2, persistent_workers=True
    ),
}
every_loader = pytest.mark.parametrize(
    "make",
    [
        *LOADERS.values(),
        *(pytest.param(each, marks=pytest.mark.slow) for each in WITH_WORKERS.values()),
    ],
    ids=[*LOADERS, *WITH_WORKERS],
)


@every_loader
def test_it_makes_the_updates_of_a_loop_by_hand_over_larger_and_larger_batches(make):
    batches = [rows for e in range(5) for rows in cut(order_of(e), size_in(e))]
    n = len(batches)
    assert n == 8 + 5 + 5 + 2 + 2
    lrs = one_cycle(0.1)(np.arange(n) / (n - 1))
    net, losses = by_hand(batches, lrs)
    learn, seen, planned = learner(make()), Seen(), []
    look = Callback(before_step=lambda learn: planned.append(learn.n_updates_planned))
    cbs = [BatchSizeSchedule(SIZES), seen, look]
    learn.fit_one_cycle(5, 0.1, moms=False, cbs=cbs)
    assert [rows for each in seen.by_epoch.values() for rows in each] == batches
    assert same_weights(learn, net)
    history = learn.recorder.history
    assert history["train_loss"].values.tolist() == pytest.approx(losses, rel=1e-6)
    assert history["lr"].values.tolist() == lrs.tolist()
    assert planned == [n] * n
    assert learn.n_updates == n


@pytest.mark.parametrize("sizes", [{0: 8}, {0: 8, 2: 16, 1: 12}, {2: 1}, {1: 16, 2: 4}, {0: N + 9}])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_epoch_is_one_pass_in_the_order_of_any_other_fit(sizes, drop_last):
    sizes = {e: min(size, N) if drop_last else size for e, size in sizes.items()}
    for make in (
        lambda: DataLoader(DATA, OWN, shuffle=True, drop_last=drop_last),
        lambda: TensorLoader(
            X, Y, torch.arange(N), batch_size=OWN, shuffle=True, drop_last=drop_last
        ),
    ):
        learn, seen = learner(make()), Seen()
        learn.fit(3, cbs=[BatchSizeSchedule(sizes), seen])
        assert seen.by_epoch == {
            e: cut(order_of(e), size_in(e, sizes), drop_last=drop_last) for e in range(3)
        }
        assert learn.n_updates == learn.n_updates_planned
        learn.fit(1, cbs=[seen])  # afterwards as ever, in the next epoch's order
        assert seen.by_epoch == {0: cut(order_of(3), OWN, drop_last=drop_last)}


def test_the_sizes_are_by_the_epochs_of_each_fit():
    learn, seen = learner(None, BatchSizeSchedule(SIZES)), Seen()
    for _ in range(2):
        learn.fit(2, cbs=[seen])
        assert [len(each[0]) for each in seen.by_epoch.values()] == [OWN, 8]


def test_sizes_that_are_the_loaders_own_train_to_the_bits_of_a_plain_fit():
    found = []
    for cbs in ([], [BatchSizeSchedule({0: OWN, 2: OWN})]):
        learn = learner()
        learn.fit_one_cycle(3, 0.1, cbs=cbs)
        found.append(trained(learn))
    assert found[0] == found[1]


@pytest.mark.parametrize("n_epoch", [0.3, 1.0, 1.5, 2.01, 3.7, 6])
@pytest.mark.parametrize("per_update", [1, 3])
@pytest.mark.parametrize("steps", [None, 4])
def test_as_many_updates_are_planned_as_are_made(n_epoch, per_update, steps):
    whole = [min(math.ceil(N / size_in(e)), steps or N) for e in range(6)]
    done = int(n_epoch)
    batches = whole[:done]
    if n_epoch > done:
        batches.append(math.ceil(round((n_epoch - done) * whole[done], 6)))
    expected = sum(math.ceil(n / per_update) for n in batches)
    learn, seen = learner(), Seen()
    cbs = [BatchSizeSchedule(SIZES), GradientAccumulation(per_update), seen]
    for order in (cbs, cbs[::-1]):
        learn.fit_one_cycle(n_epoch, 0.1, steps_per_epoch=steps, cbs=order)
        assert [len(each) for each in seen.by_epoch.values()] == batches
        assert learn.n_updates == learn.n_updates_planned == expected
        assert learn.recorder.history["lr"].values[-1] == pytest.approx(
            0.1 / 1e5 if expected > 1 else 0.1 / 25
        )


@pytest.mark.parametrize("most", [1, 8, 9, 17, 19, 100])
def test_a_limit_of_updates_ends_the_fit_wherever_it_is(most):
    learn, seen = learner(), Seen()
    learn.fit_one_cycle(None, 0.1, max_updates=most, cbs=[BatchSizeSchedule(SIZES), seen])
    assert learn.n_updates == learn.n_updates_planned == most
    lengths = {0: 8, 1: 5, 3: 2}
    assert len(seen.by_epoch) == epochs_in(lengths, most, 1)
    assert updates_in(lengths, len(seen.by_epoch), 1) >= most


@pytest.mark.parametrize("n_updates", range(1, 40))
@pytest.mark.parametrize("lengths", [{0: 4}, {0: 8, 1: 5, 3: 2}, {0: 3, 2: 7}])
def test_the_epochs_of_so_many_updates_are_those_counted_one_by_one(lengths, n_updates):
    epoch = done = 0
    while done < n_updates:
        done += math.ceil(lengths[max(e for e in lengths if e <= epoch)] / 2)
        epoch += 1
    assert epochs_in(lengths, n_updates, 2) == epoch
    assert updates_in(lengths, epoch, 2) == done


def test_a_cycle_of_torch_by_epochs_is_as_long_as_such_a_fit():
    learn = learner()
    cycle = TorchScheduler(lambda opt: OneCycleLR(opt, 0.1, total_steps=4), every="epoch")
    learn.fit(9, max_updates=19, cbs=[BatchSizeSchedule(SIZES), cycle])
    assert learn.n_updates == 19  # 8, 5, 5 and 1


def test_accumulation_makes_one_update_of_the_larger_batches():
    whole, parts = learner(), learner()
    whole.fit(3, cbs=[BatchSizeSchedule({0: 8, 1: 16})])
    parts.fit(3, cbs=[BatchSizeSchedule({0: 4, 1: 8}), GradientAccumulation(2)])
    assert whole.n_updates == parts.n_updates == 5 + 3 + 3


def test_samples_have_their_own_seeds_in_batches_of_any_size():
    found = []
    for sizes in ({0: OWN}, {0: 8}, {0: N}):
        pixels: dict[int, Tensor] = {}

        def keep(learn: Any, pixels: Any = pixels) -> None:
            pixels.update(zip(learn.batch[2].tolist(), learn.xb, strict=True))

        loader = DataLoader(SeededDataset(Noisy()), OWN, shuffle=True)
        learner(loader).fit(1, cbs=[BatchSizeSchedule(sizes), Callback(before_batch=keep)])
        found.append([pixels[i].tolist() for i in range(N)])
    assert found[0] == found[1] == found[2]


# What else counts batches -----------------------------------------------------------------------


def test_validation_by_parts_of_an_epoch_comes_at_those_of_each_epoch():
    learn = toy_learner(n_batches=8)  # 64 samples in batches of 8
    learn.fit(4, cbs=[BatchSizeSchedule({1: 16, 2: 32}), Validate("0.5 epochs")])
    assert learn.recorder.history["valid_loss"].updates.tolist() == [4, 8, 10, 12, 13, 14, 15, 16]
    learn.fit(4, cbs=[BatchSizeSchedule({1: 16, 2: 32}), Validate("1.5 epochs")])
    assert learn.recorder.history["valid_loss"].updates[8:].tolist() == [26, 30, 32]


def test_the_table_and_the_share_of_the_fit_are_those_of_each_epoch(capsys):
    learn, shares = toy_learner(n_batches=8), []
    look = Callback(after_train=lambda learn: shares.append((learn.iter + 1, learn.n_iter)))
    cbs = [BatchSizeSchedule({1: 16}), Validate("0.5 epochs"), Progress(), look]
    learn.fit(2, cbs=cbs)
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == ["0.50", "0", "1.50", "1"]
    assert shares == [(8, 8), (4, 4)]


def test_a_landing_has_the_updates_it_is_given():
    learn, seen = learner(), Seen()

    def land(learn: Any) -> None:
        if learn.n_updates == 11:
            learn.land(9)

    learn.fit_one_cycle(50, 0.1, cbs=[BatchSizeSchedule(SIZES), seen, Callback(after_step=land)])
    assert learn.n_updates == learn.n_updates_planned == 20
    assert [len(each) for each in seen.by_epoch.values()] == [8, 5, 5, 2]


def test_early_stopping_ends_it_and_the_loader_is_what_it_was():
    learn = toy_learner(n_batches=8)
    learn.fit(9, cbs=[BatchSizeSchedule({1: 16}), EarlyStopping("valid_loss", limit=0.0)])
    assert learn.dls.train.batch_size == 8
    assert learn.n_updates == 8
    assert learn.stop_reason


# What is left alone -----------------------------------------------------------------------------


@every_loader
def test_the_loader_is_the_same_afterwards_also_after_an_error(make):
    loader = make()
    before = {n: v for n, v in vars(loader).items() if n != "_iterator"}
    size, n = loader.batch_size, len(loader)

    def fail(learn: Any) -> None:
        if learn.epoch == 1 and learn.iter == 2:
            raise InterruptedError

    for cbs in ([], [Callback(after_batch=fail)], [Callback(before_step=_cancel)]):
        learn = learner(loader)
        with suppress(InterruptedError):
            learn.fit(2, cbs=[BatchSizeSchedule({0: 7, 1: 9}), *cbs])
        assert learn.dls.train is learn.dl is loader
        assert (loader.batch_size, len(loader)) == (size, n)
        assert {n: v for n, v in vars(loader).items() if n != "_iterator"} == before
        assert getattr(loader, "_iterator", None) is None
        sampler = getattr(loader, "batch_sampler", None)
        assert sampler is None or sampler.batch_size == OWN


def _cancel(learn: Any) -> None:
    raise CancelFit


def test_range_tests_studies_and_inference_have_the_loaders_own_batches():
    learn, sizes = toy_learner(n_batches=8), []
    schedule = BatchSizeSchedule({0: 32})
    look = Callback(before_batch=lambda learn: sizes.append(len(learn.xb)), during="both")
    look.runs_in = frozenset(("range_test", "inference"))
    learn.cbs += [schedule, look]
    before = LearnerState(learn)
    learn.lr_find(num_it=12, show_plot=False)
    learn.find_batch_size(8)
    learn.get_preds(learn.dls.train)
    assert before.changes(LearnerState(learn)) == []
    assert set(sizes) == {8}


def test_a_range_test_and_a_prediction_in_the_middle_leave_the_fit_as_it_is():
    def look(learn: Any) -> None:
        if learn.n_updates == 9:
            sizes = []
            own = Callback(before_batch=lambda learn: sizes.append(len(learn.xb)))
            own.runs_in = frozenset(("range_test", "inference"))
            with learn.added_cbs([own]):
                learn.lr_find(num_it=12, show_plot=False)
                learn.get_preds(learn.dls.train)
            assert set(sizes) == {8}

    learn, other = toy_learner(n_batches=8), toy_learner(n_batches=8)
    learn.fit(3, 0.1, cbs=[BatchSizeSchedule({1: 16}), Callback(after_step=look)])
    other.fit(3, 0.1, cbs=[BatchSizeSchedule({1: 16})])
    assert learn.n_updates == 16
    assert trained(learn) == trained(other)


def test_validation_on_the_training_loader_has_its_own_batches():
    learn, sizes = learner(), []
    learn.dls.valid = learn.dls.train

    def look(learn: Any) -> None:
        if not learn.training:
            sizes.append(len(learn.xb))

    cbs = [BatchSizeSchedule({0: 16}), Validate("2 updates"), Callback(before_batch=look)]
    learn.fit(1, cbs=cbs)
    assert sizes == [5, 5, 5, 5, 5, 5, 5, 2] * 2
    assert learn.n_updates == 3


def test_compare_leaves_nothing_behind_and_gives_every_policy_as_many_updates():
    learn = toy_learner(n_batches=8, cbs=(BatchSizeSchedule({1: 16}),))
    before = LearnerState(learn)
    for n_epoch in (2, 1.5):
        found = learn.compare(n_epoch, 0.1, ["constant", "one_cycle"], [0, 1])
        counts = {len(run["train_loss"]) for runs in found.runs.values() for run in runs.values()}
        assert counts == {8 + (4 if n_epoch == 2 else 2)}
    assert before.changes(LearnerState(learn)) == []


# Killed and resumed -----------------------------------------------------------------------------


def stopped(at: int) -> Callback:
    """End a fit with an error when an update was made and its checkpoint is written."""

    def stop(learn: Any) -> None:
        if learn.n_updates == at:
            raise InterruptedError

    callback = Callback(after_batch=stop)
    callback.stage, callback.hears_last = Stage.SAVE, True
    return callback


class Noisy(Rows):
    """Draws from torch's generator for every sample."""

    def __getitem__(self, i: int) -> Any:
        return X[i] + 0.1 * torch.randn(4), Y[i], i


class Counted(Sampler[int]):
    """Has an order of its own for each pass, which it counts."""

    n = 0

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Any:
        self.n += 1
        generator = torch.Generator().manual_seed(self.n)
        return iter(torch.randperm(N, generator=generator).tolist())


RESUMED = LOADERS | {
    "random samples": lambda: DataLoader(Noisy(), OWN, shuffle=True),
    "counted passes": lambda: DataLoader(DATA, OWN, sampler=Counted()),
}


@pytest.mark.parametrize("number", range(len(RESUMED)), ids=RESUMED)
def test_killed_anywhere_and_resumed_it_ends_in_the_same_bits(number, tmp_path):
    make = [*RESUMED.values()][number]

    def cbs() -> list[Callback]:
        return [BatchSizeSchedule(SIZES), GradientAccumulation(2), Validate("0.5 epochs")]

    def fresh() -> Learner:
        learn = learner(make())
        learn.dls.valid = TensorLoader(X, Y, torch.arange(N), batch_size=16)
        return learn

    learn = fresh()
    learn.fit_one_cycle(4.5, 0.1, cbs=cbs())
    whole, n = trained(learn), learn.n_updates
    for at in range(1 + number, n, len(RESUMED)):  # each update with one of the loaders
        folder = tmp_path / str(at)
        with pytest.raises(InterruptedError):
            fresh().fit_one_cycle(
                4.5, 0.1, cbs=[*cbs(), Checkpoint(folder, "1 updates"), stopped(at)]
            )
        learn = fresh()
        torch.manual_seed(77)
        learn.fit_one_cycle(4.5, 0.1, cbs=cbs(), resume=folder)
        assert trained(learn) == whole


@pytest.mark.slow
def test_killed_with_workers_that_stay_it_ends_in_the_same_bits(tmp_path):
    make = WITH_WORKERS["persistent workers"]
    learn = learner(make())
    learn.fit_one_cycle(3, 0.1, cbs=[BatchSizeSchedule({1: 8, 2: 20})])
    whole = trained(learn)
    for at in (9, 13, 14):
        folder = tmp_path / str(at)
        cbs = [BatchSizeSchedule({1: 8, 2: 20}), Checkpoint(folder, "1 updates"), stopped(at)]
        with pytest.raises(InterruptedError):
            learner(make()).fit_one_cycle(3, 0.1, cbs=cbs)
        learn = learner(make())
        torch.manual_seed(77)
        learn.fit_one_cycle(3, 0.1, cbs=[BatchSizeSchedule({1: 8, 2: 20})], resume=folder)
        assert trained(learn) == whole


@pytest.mark.parametrize(
    "cbs", [[], [BatchSizeSchedule({1: 8})], [BatchSizeSchedule({1: 9, 3: 20})]]
)
def test_a_resume_with_another_schedule_is_refused(cbs, tmp_path):
    with pytest.raises(InterruptedError):
        learner().fit(4, cbs=[BatchSizeSchedule(SIZES), Checkpoint(tmp_path), stopped(12)])
    learn = learner()
    before = LearnerState(learn)
    for extend in (None, "keep", "tail"):
        with pytest.raises(ValueError, match=r"this is another fit.*BatchSizeSchedule"):
            learn.fit(4, cbs=cbs, resume=tmp_path, extend=extend)
    assert [each for each in before.changes(LearnerState(learn)) if "model" in each] == []
    learn.fit(4, cbs=[BatchSizeSchedule(dict(reversed(SIZES.items())))], resume=tmp_path)
    assert learn.n_updates == 8 + 5 + 5 + 2


@pytest.mark.parametrize("at", [8, 12, 19])
@pytest.mark.parametrize("extend", ["keep", "restretch", "tail"])
def test_a_fit_that_is_extended_has_the_updates_of_the_longer_one(at, extend, tmp_path):
    cbs = [BatchSizeSchedule(SIZES)]
    ends = [Checkpoint(tmp_path, "1 updates"), stopped(at)]
    with pytest.raises(InterruptedError):
        learner().fit_one_cycle(4, 0.1, cbs=[*cbs, *ends])
    learn = learner()
    learn.fit_one_cycle(5.5, 0.1, cbs=cbs, resume=tmp_path, extend=extend)
    assert learn.n_updates == learn.n_updates_planned == 8 + 5 + 5 + 2 + 2 + 1
    if at > 8:
        with pytest.raises(ValueError, match="and the fit is to have 8 in all"):
            learner().fit_one_cycle(1, 0.1, cbs=cbs, resume=tmp_path, extend=extend)


def test_a_landing_that_is_interrupted_goes_on(tmp_path):
    def land(learn: Any) -> None:
        if learn.n_updates == 11 and not learn.is_landing:
            learn.land(9)

    def cbs() -> list[Callback]:
        return [BatchSizeSchedule(SIZES), Callback(after_step=land)]

    learn = learner()
    learn.fit_one_cycle(50, 0.1, cbs=cbs())
    whole = trained(learn)
    for at in (11, 13, 18):
        folder = tmp_path / str(at)
        end = [Checkpoint(folder, "1 updates"), stopped(at)]
        with pytest.raises(InterruptedError):
            learner().fit_one_cycle(50, 0.1, cbs=[*cbs(), *end])
        learn = learner()
        learn.fit_one_cycle(50, 0.1, cbs=cbs(), resume=folder)
        assert trained(learn) == whole


# What is refused --------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[i], Y[i], i) for i in range(N)])


class Pairs(Sampler[list[int]]):
    def __iter__(self) -> Any:
        return iter(cut(list(range(N)), 2))

    def __len__(self) -> int:
        return 19


class Unending(Sampler[int]):
    def __iter__(self) -> Any:
        return iter(range(N))

    __len__ = None  # type: ignore[assignment]


class OwnLoader(DataLoader[Any]):
    pass


class OwnTensors(TensorLoader):
    def batches(self, generator: Any = None, skip: int = 0) -> Any:
        return super().batches(generator, skip)


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ([(X, Y, torch.arange(N))], "of a list"),
        (DataLoader(Stream(), 4), "of a DataLoader of the stream Stream"),
        (DataLoader(DATA, batch_sampler=Pairs()), "DataLoader with Pairs as its batch_sampler"),
        (DataLoader(DATA, None), "DataLoader of single samples"),
        (OwnLoader(DATA, 4), "of a OwnLoader"),
        (OwnTensors(X, Y, batch_size=4), "of a OwnTensors, which has batches"),
    ],
)
def test_a_loader_of_another_kind_is_refused_before_the_first_update(loader, words):
    learn = learner(loader)
    with pytest.raises(TypeError, match=words) as caught:
        learn.fit(2, cbs=[BatchSizeSchedule({1: 8})])
    assert "or leave BatchSizeSchedule out" in str(caught.value.__notes__)
    assert learn.total_updates == 0


def test_a_sampler_without_a_length_is_refused():
    learn = learner(DataLoader(DATA, OWN, sampler=Unending()))
    with pytest.raises(ValueError, match="no length: give it __len__"):
        learn.fit(2, steps_per_epoch=3, cbs=[BatchSizeSchedule({1: 8})])


def test_an_epoch_without_a_batch_is_refused_unless_the_fit_ends_before(caplog):
    learn = learner(DataLoader(DATA, OWN, drop_last=True))
    with pytest.raises(ValueError, match=f"batches of {N + 1} samples need as many"):
        learn.fit(2, cbs=[BatchSizeSchedule({1: N + 1})])
    assert learn.total_updates == 0
    with caplog.at_level(logging.WARNING):
        learn.fit(1, cbs=[BatchSizeSchedule({1: N + 1})])
    assert f"batches of {N + 1} begin with epoch 1, and this fit has 1" in caplog.text


def test_a_last_batch_of_one_is_told_where_batch_norm_cannot_train_on_it(caplog):
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    learn = learner(model=net)
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match="more than 1 value"):
        learn.fit(2, cbs=[BatchSizeSchedule({1: 12})])
    assert f"one sample (of {N}, by 12)" in caplog.text
    assert learn.dls.train.batch_size == OWN


def test_two_of_them_and_a_limit_of_time_are_refused():
    learn = learner()
    with pytest.raises(ValueError, match="two BatchSizeSchedule"):
        learn.fit(2, cbs=[BatchSizeSchedule({1: 8}), BatchSizeSchedule({2: 8})])
    with pytest.raises(ValueError, match="max_time= counts on updates that all take as long"):
        learn.fit(2, max_time="1h", cbs=[BatchSizeSchedule({1: 8})])
    assert learn.total_updates == 0
    learn.fit(2, max_time="1h", cbs=[BatchSizeSchedule({0: 8})])
    assert learn.n_updates == 10


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        (64, TypeError),
        ({}, TypeError),
        ([(0, 8)], TypeError),
        (constant(8.0), TypeError),
        ({0: 0}, ValueError),
        ({-1: 8}, ValueError),
        ({0.5: 8}, TypeError),
        ({0: 8.0}, TypeError),
        ({True: 8}, TypeError),
        ({"0": 8}, TypeError),
        ({0: None}, TypeError),
    ],
)
def test_what_is_no_schedule_of_sizes_is_refused(sizes, error):
    with pytest.raises(error, match="sizes"):
        BatchSizeSchedule(sizes)


# Other data and models --------------------------------------------------------------------------


def test_batches_that_are_dicts_and_sequences_with_time_first():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.head = nn.RNN(3, 4), nn.Linear(4, 1)

        def forward(self, batch: Any) -> Tensor:
            return self.head(self.rnn(batch["x"])[0][-1])

    class Sequences(Dataset[Any]):
        x = torch.randn(N, 6, 3, generator=torch.Generator().manual_seed(2))

        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> Any:
            return {"x": self.x[i], "y": self.x[i].sum()[None]}

    def time_first(rows: Any) -> Any:
        return {
            "x": torch.stack([row["x"] for row in rows], 1),
            "y": torch.stack([row["y"] for row in rows]),
        }

    class DictLearner(Learner):
        def predict_batch(self, batch: Any) -> Any:
            return self.model(batch)

        def compute_loss(self, pred: Any, batch: Any) -> Tensor:
            return mse_loss(pred, batch["y"])

        def batch_size(self, batch: Any) -> int:
            return len(batch["y"])

    loader = DataLoader(Sequences(), OWN, collate_fn=time_first)
    learn = DictLearner((loader, None), Net(), opt_func=sgd, lr=0.02, device="cpu", seed=3)
    learn.cbs = [learn.recorder]
    learn.fit(2, cbs=[BatchSizeSchedule({1: 20})])
    net, losses = Net(), []
    opt = sgd(net.parameters(), 0.02)
    for size in (OWN, 20):
        for rows in cut(list(range(N)), size):
            batch = time_first([loader.dataset[i] for i in rows])
            opt.zero_grad()
            loss = mse_loss(net(batch), batch["y"])
            loss.backward()
            opt.step()
            losses.append(float(loss.detach()))
    assert learn.recorder.history["train_loss"].values.tolist() == pytest.approx(losses, rel=1e-5)
    assert learn.n_updates == 8 + 2


def test_batch_norm_sees_the_larger_batches_unless_it_is_frozen():
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))

    for frozen in (False, True):
        mine, hand = learner(model=net()), net()
        if frozen:
            mine.freeze_norms([mine.model[1]])
        mine.fit(2, cbs=[BatchSizeSchedule({1: 20})])
        opt = sgd(hand.parameters(), 0.02)
        hand.train()
        hand[1].train(not frozen)
        for epoch, size in enumerate((OWN, 20)):
            for rows in cut(order_of(epoch), size):
                opt.zero_grad()
                mse_loss(hand(X[rows]), Y[rows]).backward()
                opt.step()
        both = zip(mine.model.state_dict().values(), hand.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("order", [SequentialSampler(DATA), SubsetRandomSampler(range(9, 30))])
def test_other_samplers_keep_their_samples(order):
    loader, seen = DataLoader(DATA, OWN, sampler=order), Seen()
    learner(loader).fit(2, cbs=[BatchSizeSchedule({1: 8}), seen])
    for each, size in zip(seen.by_epoch.values(), (OWN, 8), strict=True):
        rows = [row for batch in each for row in batch]
        assert sorted(rows) == sorted(set(rows))
        assert len(rows) == len(order)
        assert [len(batch) for batch in each] == [len(b) for b in cut(rows, size)]


def test_workers_of_a_size_end_with_it():
    loader, made = WITH_WORKERS["persistent workers"](), []

    def look(learn: Any) -> None:
        made.append(learn.batch_sizes.loader(learn.dls.train, learn.epoch))

    learner(loader).fit(3, cbs=[BatchSizeSchedule({0: 20, 2: 30}), Callback(after_train=look)])
    first, second, third = made
    assert first is second
    assert [len(each) for each in (first, third)] == [2, 2]
    assert all(a is not loader for a in made)
    for before, after in pairwise((first, third)):
        assert before.batch_sampler.sampler is after.batch_sampler.sampler
