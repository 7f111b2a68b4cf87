"""What a loop can do besides, in several processes: as in one with the batch of all."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from equal_checks import BOUND, both, flat
from resume_checks import ids, interrupted
from together import (
    RANK,
    UPDATES,
    WHOLE,
    WORLD,
    N,
    X,
    Y,
    distance,
    equal_everywhere,
    gathered,
    learner,
    loaders,
    net,
    run,
    same_bits,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, AdamW, Muon
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from onecycle import (
    ActivationCheckpointing,
    BatchSizeSchedule,
    Callback,
    Checkpoint,
    DataLoaders,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    Learner,
    MeanMetric,
    MicroBatches,
    OnecycleError,
    Recorder,
    ReduceLROnPlateau,
    SaveModel,
    SpikeStop,
    TensorLoader,
    Validate,
    When,
    accuracy,
    muon_groups,
)
from onecycle.callbacks import max_time

LAST = WORLD - 1

#: One process's batches have the rows of all.
SIZES = {False: WHOLE // WORLD, True: WHOLE}


def pair(make: Any, fit: Any) -> tuple[Learner, Learner]:
    """Fit together and alone; compare all that is recorded and trained."""
    learn, alone = make(False), make(True)
    for each in (learn, alone):
        fit(each)
    equal_everywhere(learn)
    assert learn.n_updates == alone.n_updates > 0
    assert learn.stop_reason == alone.stop_reason
    assert distance(learn, alone) < BOUND
    return learn, alone


# Several optimizers -------------------------------------------------------------------------


def deep() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def check_muon_with_adamw(folder: Path) -> None:
    options = {"opt_func": {"matrices": Muon, "rest": AdamW}, "splitter": muon_groups}
    pair(
        lambda alone: learner(alone, model=deep(), **options),
        lambda each: each.fit_one_cycle(3, 0.01, cbs=[GradientClip(0.5)]),
    )


class GAN(Learner):
    """Draws nothing, so that any number of processes has the same numbers."""

    def compute_losses(self, batch: Any) -> Iterator[tuple[str, Tensor]]:
        generator, critic = self.model["generator"], self.model["critic"]
        fake = generator(self.xb)
        yield "critic", (F.softplus(critic(fake.detach())) + F.softplus(-critic(self.xb))).mean()
        if self.n_updates % 2 == 1:
            yield "generator", F.softplus(-critic(fake)).mean()


def gan(alone: bool, kind: type[Learner] = GAN) -> Learner:
    torch.manual_seed(0)
    parts = {"generator": nn.Linear(5, 5), "critic": nn.Linear(5, 1)}
    model = nn.ModuleDict(parts).double()
    opts = {name: Adam(part.parameters(), lr=0.01) for name, part in model.items()}
    data = TensorLoader(X, batch_size=SIZES[alone], shuffle=True)
    options: dict[str, Any] = {"parallel": None} if alone else {}
    learn = kind((data, None), model, opt=opts, device="cpu", seed=3, check=False, **options)
    learn.cbs = [each for each in learn.cbs if isinstance(each, Recorder)]
    return learn


def check_optimizers_that_take_turns(folder: Path) -> None:
    learn, _ = pair(gan, lambda each: each.fit(4, cbs=[GradientClip(0.3)]))
    assert len(learn.recorder.history["train_loss/generator"]) == learn.n_updates // 2


class OtherTurns(GAN):
    def compute_losses(self, batch: Any) -> Iterator[tuple[str, Tensor]]:
        if self.n_updates == 3 and RANK == LAST:
            yield "generator", F.softplus(-self.model["critic"](self.xb)).mean()
        yield from super().compute_losses(batch)


def check_turns_that_differ_are_refused(folder: Path) -> None:
    with pytest.raises(OnecycleError, match="other turns"):
        gan(False, OtherTurns).fit(1)


# Validation, budgets ------------------------------------------------------------------------


def sets(alone: bool, **options: Any) -> Learner:
    train, valid = loaders(SIZES[alone])
    other = TensorLoader(X[40:71], Y[40:71], batch_size=SIZES[alone])
    return learner(alone, DataLoaders(train, {"clean": valid, "other": other}), **options)


def check_validation_when_it_is_wanted(folder: Path) -> None:
    for every in ("4 updates", "0.25 epochs", "0.4 epochs", "2 epochs"):
        for batches in (None, 2):
            learn, _ = pair(
                learner, lambda each, e=every, b=batches: each.fit(3, cbs=[Validate(e, batches=b)])
            )
            assert len(learn.recorder.history["valid_loss"]) > 1


def check_several_validation_sets_and_what_acts_on_them(folder: Path) -> None:
    def fit(each: Learner) -> None:
        name = "alone" if each.processes is None else "together"
        path = folder / f"{name}-{WORLD}-{RANK if each.processes is None else 0}.pt"
        watched = "valid_loss/other"
        cbs = [
            Validate("5 updates"),
            ReduceLROnPlateau(watched, min_delta=0.01),
            SaveModel(path, monitor=watched),
            EarlyStopping("accuracy/other", min_delta=0.05, patience=3),
        ]
        each.fit(6, 0.5, cbs=cbs)

    learn, _ = pair(sets, fit)
    assert learn.stop_reason


def check_metrics_of_the_training_pass(folder: Path) -> None:
    class Hits:
        """An object, which sees every sample."""

        def reset(self) -> None:
            self.hits = self.all = 0

        def update(self, pred: Tensor, target: Tensor) -> None:
            self.hits += int((pred.argmax(1) == target).sum())
            self.all += len(target)

        def compute(self) -> float:
            return self.hits / self.all

    metrics = [accuracy, MeanMetric(F.cross_entropy, name="ce"), Hits]

    def make(alone: bool) -> Learner:
        own = [each() if each is Hits else each for each in metrics]
        learn = learner(alone, metrics=own)
        learn.cbs = [Recorder(train_metrics=True)]
        return learn

    right, _ = pair(make, lambda each: each.fit(3))
    mine = folder / f"metrics-{WORLD}"
    learn = make(False)
    with suppress(InterruptedError):
        learn.fit(3, cbs=[Checkpoint(mine, "1 updates"), interrupted(14)])
    gathered(None)
    learn = make(False)
    learn.fit(3, resume=mine)
    same_bits(learn, right)
    equal_everywhere(learn)
    alone = make(True)  # another number of processes
    alone.dls.train.batch_size = WHOLE // WORLD
    alone.fit(3, resume=mine)
    assert distance(alone, right) < BOUND


def check_parts_of_epochs_and_steps_for_an_epoch(folder: Path) -> None:
    for n_epoch, steps in ((0.5, None), (2.3, None), (3, 4), (1.5, 6)):
        learn, _ = pair(
            learner, lambda each, n=n_epoch, s=steps: each.fit_one_cycle(n, steps_per_epoch=s)
        )
        assert learn.n_updates == learn.n_updates_planned


class Clock(Callback):
    """Goes on by a second with each batch; that of other processes is another one."""

    def before_batch(self, learn: Any) -> None:
        NOW[0] += 1.0 + RANK


NOW = [0.0]


def check_the_first_clock_decides_for_all(folder: Path) -> None:
    before = max_time.time.monotonic
    max_time.time.monotonic = lambda: NOW[0]  # type: ignore[assignment]
    try:
        NOW[0] = 1000.0 * RANK
        mine = folder / f"time-{WORLD}"
        learn = learner()
        learn.fit_one_cycle(9, max_time="50s", cbs=[Clock(), Checkpoint(mine, "2 epochs")])
        equal_everywhere(learn)
        assert gathered(learn.n_updates_planned) == [learn.n_updates_planned] * WORLD
        assert 30 < learn.n_updates < 50
        NOW[0] = -5.0 * RANK
        again = learner()
        again.fit_one_cycle(9, max_time="50s", cbs=[Clock()], resume=mine)
        same_bits(again, learn)
    finally:
        max_time.time.monotonic = before  # type: ignore[assignment]


# Streams ------------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    """A stream that never ends, and shuffles in a buffer by the global generator."""

    def __iter__(self) -> Iterator[Any]:
        buffer: list[int] = []
        for i in itertools.count():
            buffer.append(i % N)
            if len(buffer) == 8:
                j = buffer.pop(int(torch.randint(8, ())))
                yield X[j], Y[j], j


def streamed(
    alone: bool = False, data: Any = None, size: int = 3
) -> tuple[Learner, list[list[int]], Callback]:
    options = {"n_inp": 1, "loss_func": lambda pred, y, i: F.cross_entropy(pred, y), "metrics": []}
    learn = learner(alone, (DataLoader(data or Endless(), size), None), **options)
    seen: list[list[int]] = []

    def keep(learn: Any) -> None:
        has = learn.shards is None or learn.shards.has_samples
        seen.append(learn.batch[2].tolist() if has else [])

    return learn, seen, Callback(after_batch=keep)


def whole(seen: list[list[int]]) -> list[list[int]]:
    return [flat(parts) for parts in zip(*gathered(seen), strict=True)]


class Ordered(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(X[i], Y[i], i) for i in range(N)])


def check_a_stream_goes_on_where_an_epoch_was_cut(folder: Path) -> None:
    learn, seen, keep = streamed(data=Ordered())
    learn.fit(3, steps_per_epoch=5, cbs=[keep])
    learn.fit(1, steps_per_epoch=2, cbs=[keep])
    items = [list(range(i, min(i + 3, N))) for i in range(0, N, 3)] * 2
    assert whole(seen) == [flat(items[i * WORLD : (i + 1) * WORLD]) for i in range(17)]
    equal_everywhere(learn)


def check_a_stream_that_was_cut_is_resumed(folder: Path) -> None:
    right, seen_right, keep = streamed()
    right.fit(4, steps_per_epoch=5, cbs=[keep])
    equal_everywhere(right)
    assert len({tuple(each) for each in whole(seen_right)}) == 20
    for at in (5, 13):
        mine = folder / f"stream-{WORLD}-{at}"
        learn, _, _ = streamed()
        with suppress(InterruptedError):
            learn.fit(4, steps_per_epoch=5, cbs=[Checkpoint(mine, "1 updates"), interrupted(at)])
        gathered(None)
        learn, seen, keep = streamed()
        torch.manual_seed(50 + RANK)
        learn.fit(4, steps_per_epoch=5, cbs=[keep], resume=mine)
        assert whole(seen) == whole(seen_right)[at - 1 :]
        same_bits(learn, right)
        alone, seen, keep = streamed(alone=True)
        alone.fit(4, steps_per_epoch=5, cbs=[keep], resume=mine)
        assert seen == whole(seen_right)[at - 1 :]
        assert distance(alone, right) < BOUND


class Split(IterableDataset[Any]):
    """A stream with an order for each epoch, which says what it draws, and can draw a share."""

    def __init__(self, n: int = N, share: tuple[int, int] = (0, 1)) -> None:
        self.n, self.share, self.epoch = n, share, 0
        self.drawn: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def split_for_rank(self, rank: int, world: int) -> Split:
        share = Split(self.n, (rank, world))
        share.epoch, share.drawn = self.epoch, self.drawn
        return share

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(self.epoch))
        for i in order[self.share[0] :: self.share[1]].tolist():
            self.drawn.append(i)
            yield X[i], Y[i], i


def check_a_stream_that_can_be_split(folder: Path) -> None:
    for n, steps in ((N, None), (WORLD * 3 + 1, None), (N, 3), (1, None)):
        learn, seen, keep = streamed(data=(own := Split(n)))
        learn.fit(3, steps_per_epoch=steps, cbs=[keep])
        alone, right, keep_alone = streamed(True, Split(n), 3 * WORLD)
        alone.fit(3, steps_per_epoch=steps, cbs=[keep_alone])
        equal_everywhere(learn)
        assert [*map(sorted, whole(seen))] == [*map(sorted, right)]
        assert distance(learn, alone) < BOUND
        mine = flat(seen)
        assert set(own.drawn[: len(mine)]) <= {*mine, *(own.drawn if n == 1 else ())}
        assert len(own.drawn) <= len(mine) + (3 * 3 if n > 1 else 3)


def check_a_share_goes_on_where_it_was(folder: Path) -> None:
    for steps, at in ((None, 13), (3, 8)):
        mine = folder / f"share-{WORLD}-{at}"
        right, seen_right, keep = streamed(data=Split())
        right.fit(5, steps_per_epoch=steps, cbs=[keep])
        learn, _, _ = streamed(data=Split())
        saves = Checkpoint(mine, "1 updates")
        with suppress(InterruptedError):
            learn.fit(5, steps_per_epoch=steps, cbs=[saves, interrupted(at)])
        gathered(None)
        learn, seen, keep = streamed(data=Split())
        learn.fit(5, steps_per_epoch=steps, cbs=[keep], resume=mine)
        assert whole(seen) == whole(seen_right)[at - 1 :]
        same_bits(learn, right)
        alone, seen, keep = streamed(True, Split())  # another number: it draws all
        alone.fit(5, steps_per_epoch=steps, cbs=[keep], resume=mine)
        assert [*map(sorted, seen)] == [*map(sorted, whole(seen_right)[at - 1 :])]
        assert distance(alone, right) < BOUND


# Callbacks ----------------------------------------------------------------------------------


def check_callbacks_that_are_called_now_and_then(folder: Path) -> None:
    def fit(each: Learner) -> None:
        heard: list[int] = []
        functions = Callback(after_step=lambda learn: heard.append(learn.n_updates), every=4)
        stop = When(EarlyStopping("train_loss", limit=0.0, patience=None), after=2)
        each.fit(9, cbs=[functions, stop])
        assert heard == list(range(4, each.n_updates + 1, 4))

    learn, _ = pair(learner, fit)
    assert learn.n_updates == 3 * UPDATES


class Jumps:
    """A loss that is far larger at some batches."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, pred: Tensor, yb: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        return F.cross_entropy(pred, yb) * (1000 if self.calls in (14, 25, 26) else 1)


def check_spikes_and_thresholds(folder: Path) -> None:
    for action, patience in (("skip", 2), ("stop", None)):
        learn, alone = (learner(each, loss_func=Jumps(), metrics=[]) for each in (False, True))
        for each in (learn, alone):
            stop = SpikeStop(action, window=8, patience=patience)  # type: ignore[arg-type]
            each.fit(4, cbs=[stop])
        equal_everywhere(learn)
        assert learn.n_updates == alone.n_updates < 36
        assert learn.n_skipped == alone.n_skipped
        assert distance(learn, alone) < BOUND
    pair(learner, lambda each: each.fit(9, 0.5, cbs=[EarlyStopping(target=0.6, patience=None)]))
    pair(learner, lambda each: each.fit(9, 50.0, cbs=[EarlyStopping(limit=3.0, patience=None)]))


class Limited(nn.Module):
    """Has no memory for more samples at once than it is told, in one process or in all."""

    def __init__(self, limit: int, who: int = -1, *, backward: bool = False) -> None:
        super().__init__()
        self.layers, self.unused = net(), nn.Linear(2, 2).double()
        self.limit, self.who, self.backward = limit, who, backward

    def forward(self, x: Tensor) -> Tensor:
        pred: Tensor = self.layers(x)
        if len(x) > self.limit and self.training and self.who in (RANK, -1):
            if not self.backward:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if pred.requires_grad:
                pred.register_hook(self._fail)
        return pred

    def _fail(self, gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


def check_batches_in_parts(folder: Path) -> None:
    for model in (
        Limited(99),
        Limited(2),
        Limited(1, LAST),
        Limited(2, 0, backward=True),
    ):
        learn, alone = learner(model=model), learner(True, model=Limited(99))
        micro = MicroBatches()
        learn.fit(3, cbs=[micro])
        alone.fit(3)
        equal_everywhere(learn)
        assert distance(learn, alone) < BOUND
    learn = learner(model=Limited(0, LAST))
    with pytest.raises(Exception, match="out of memory"):
        learn.fit(1, cbs=[MicroBatches()])


def check_the_batch_size_that_fits_in_all(folder: Path) -> None:
    for who in (-1, 0, LAST):
        learn = learner(model=Limited(11, who), dls=(loaders(4)[0], None), metrics=[])
        before = torch.get_rng_state()
        assert gathered(learn.find_batch_size()) == [8] * WORLD
        assert torch.equal(torch.get_rng_state(), before)
    learn = learner(model=Limited(1000), metrics=[])
    assert gathered(learn.find_batch_size()) == [-(-N // WORLD)] * WORLD
    learn = learner(model=Limited(0, LAST), metrics=[])
    with pytest.raises(Exception, match="out of memory"):
        learn.find_batch_size()
    learn.fit(0.1, cbs=[Callback(before_fit=lambda each: setattr(each.model, "limit", 99))])
    equal_everywhere(learn)


class NoRoom(nn.Module):
    """Cannot even be copied in one of the processes, as where memory is short."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.fails = net(), False

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]

    def modules(self) -> Any:
        if self.fails and RANK == LAST:
            self.fails = False
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().modules()


def check_a_batch_size_where_one_process_has_no_room_for_a_copy(folder: Path) -> None:
    learn = learner(model=NoRoom(), dls=(loaders(4)[0], None), metrics=[])
    learn.model.fails = True
    assert gathered(learn.find_batch_size(most=4)) == [2] * WORLD


def check_blocks_that_are_computed_again(folder: Path) -> None:
    both(folder, lambda: [ActivationCheckpointing(["0", "2"])])


def check_fits_of_growing_batches(folder: Path) -> None:
    def fit(each: Learner) -> None:
        for factor in (1, 2, 3):
            size = factor * SIZES[each.processes is None]
            each.dls.train = TensorLoader(X, Y, batch_size=size, shuffle=True)
            each.fit(1)

    pair(learner, fit)


GROWING = {1: 20, 2: 31, 3: 1}  # samples of all, the last one fewer than there are processes


def grown(alone: bool, made: str = "tensors", size: int | None = None) -> Any:
    """Return a learner over numbered samples, those that it saw, and what keeps them."""
    size = size or SIZES[alone]
    train: Any = TensorLoader(X, Y, torch.arange(N), batch_size=size, shuffle=True)
    if made != "tensors":
        stays = {"num_workers": 1, "persistent_workers": True} if made == "workers" else {}
        rows = TensorDataset(X, Y, torch.arange(N))
        train = DataLoader(rows, size, shuffle=True, **stays)
    options = {"n_inp": 1, "loss_func": lambda pred, y, i: F.cross_entropy(pred, y), "metrics": []}
    seen: list[list[int]] = []
    return learner(alone, (train, None), **options), seen, ids(seen)


def check_batches_that_grow_are_those_of_all(folder: Path) -> None:
    for made in ("tensors", "rows", "workers"):
        last = 3 if made == "workers" else 3.1
        (learn, mine, keep), (alone, theirs, keep_too) = (grown(a, made) for a in (False, True))
        learn.fit_one_cycle(last, 0.1, cbs=[keep, BatchSizeSchedule(GROWING)])
        alone.fit_one_cycle(last, 0.1, cbs=[keep_too, BatchSizeSchedule(GROWING)])
        assert whole(mine) == theirs
        whole_epochs = [-(-N // WHOLE), -(-N // 20), -(-N // 31)]
        assert [len(each) for each in theirs[: sum(whole_epochs)]] == [
            min(size, N - i * size)
            for size, n in zip((WHOLE, 20, 31), whole_epochs, strict=True)
            for i in range(n)
        ]
        assert learn.n_updates == learn.n_updates_planned == len(theirs)
        assert distance(learn, alone) < BOUND
        equal_everywhere(learn)
        assert learn.dls.train.batch_size == SIZES[False]
    both(
        folder,
        lambda: [BatchSizeSchedule(GROWING), GradientAccumulation(2), Validate("0.5 epochs")],
    )


def check_what_a_batch_is_is_said_unless_the_fit_says_it(folder: Path) -> None:
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("onecycle")
    before = log.level
    log.setLevel(logging.WARNING)
    log.addHandler(listener)
    try:
        learn = learner()
        learn.fit(1, cbs=[BatchSizeSchedule({0: 31})])
        assert said == []
        learn.fit(2, cbs=[BatchSizeSchedule({1: 31})])
        learn.fit(1)
    finally:
        log.removeHandler(listener)
        log.setLevel(before)
    words = f"{WORLD} processes train one model: an update is made of {WHOLE} samples"
    assert [words in each for each in said] == ([True] if RANK == 0 else [])


def check_batches_that_grow_go_on_in_any_number_of_processes(folder: Path) -> None:
    right, seen_right, keep = grown(True)
    right.fit_one_cycle(3, 0.1, cbs=[keep, BatchSizeSchedule(GROWING)])
    same, _, _ = grown(False)
    same.fit_one_cycle(3, 0.1, cbs=[BatchSizeSchedule(GROWING)])
    for at in (4, 12, 17):
        mine = folder / f"grown-{WORLD}-{at}"
        ends = [Checkpoint(mine, "1 updates"), interrupted(at)]
        with suppress(InterruptedError):
            grown(False)[0].fit_one_cycle(3, 0.1, cbs=[BatchSizeSchedule(GROWING), *ends])
        gathered(None)
        learn, seen, keep = grown(False)
        torch.manual_seed(50 + RANK)
        learn.fit_one_cycle(3, 0.1, cbs=[BatchSizeSchedule(GROWING), keep], resume=mine)
        assert whole(seen) == seen_right[at - 1 :]
        same_bits(learn, same)
        alone, seen, keep = grown(True, size=SIZES[False])
        alone.fit_one_cycle(3, 0.1, cbs=[BatchSizeSchedule(GROWING), keep], resume=mine)
        assert seen == seen_right[at - 1 :]
        assert distance(alone, right) < BOUND
        if RANK == 0:
            with pytest.raises(ValueError, match="BatchSizeSchedule"):
                alone.fit_one_cycle(3, 0.1, cbs=[BatchSizeSchedule({1: 20})], resume=mine)


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
CHECKS = {name: value for name, value in CHECKS.items() if value.__module__ == __name__}

if __name__ == "__main__":
    run(CHECKS)
