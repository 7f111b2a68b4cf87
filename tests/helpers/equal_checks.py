"""W processes with batch b, and one process with batch W * b: the same parameters and record."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from together import (
    UPDATES,
    WHOLE,
    WORLD,
    N,
    X,
    Y,
    distance,
    equal_everywhere,
    flat,
    gathered,
    learner,
    loaders,
    run,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from onecycle import (
    EMA,
    SWA,
    Callback,
    GradientAccumulation,
    GradientClip,
    MeanMetric,
    ReduceLROnPlateau,
    SaveModel,
    SeededDataset,
    TensorLoader,
    TerminateOnNonFinite,
    Throughput,
    token_weight,
)
from onecycle.callbacks import throughput
from onecycle.optim.stepper import Stepper

DATA = TensorDataset(X, Y)
BOUND = 1e-6


def both(folder: Path, cbs: Any = list, n_epoch: int = 3, **options: Any) -> None:
    """Fit together and alone, and compare all that is recorded and trained."""
    learn, alone = learner(**options), learner(alone=True, **options)
    for each in (learn, alone):
        each.fit_one_cycle(n_epoch, 0.1, cbs=cbs())
    equal_everywhere(learn)
    assert learn.n_updates == alone.n_updates > 0
    assert distance(learn, alone) < BOUND


def check_plain_sgd_over_200_updates(folder: Path) -> None:
    both(folder, n_epoch=200 // UPDATES)


def check_adamw(folder: Path) -> None:
    both(folder, opt_func=torch.optim.AdamW)


def check_a_last_batch_of_one_sample(folder: Path) -> None:
    made, n = [], 2 * WHOLE + 1
    for alone in (False, True):
        size = WHOLE if alone else WHOLE // WORLD
        train = TensorLoader(X[:n], Y[:n], batch_size=size, shuffle=True)
        made.append(learner(alone, (train, TensorLoader(X[:n], Y[:n], batch_size=size))))
        made[-1].fit(4)
    assert distance(*made) < BOUND


def check_accumulation_and_its_last_window(folder: Path) -> None:
    both(folder, lambda: [GradientAccumulation(4), GradientClip(0.5)])


def check_clipping(folder: Path) -> None:
    both(folder, lambda: [GradientClip(0.1)])


def check_averages(folder: Path) -> None:
    both(folder, lambda: [EMA(0.9)])
    both(folder, lambda: [SWA(0.5)])


def check_plateau_and_best_model(folder: Path) -> None:
    def cbs() -> list[Callback]:
        path = folder / f"best-{WORLD}.pt"
        return [ReduceLROnPlateau(min_delta=0.5, factor=0.3), SaveModel(path)]

    for lr in (0.1, 5.0):
        learn, alone = learner(), learner(alone=True)
        learn.fit(4, lr, cbs=cbs())
        gathered(None)
        path = folder / f"alone-{WORLD}-{gathered(None) and torch.distributed.get_rank()}.pt"
        alone.fit(4, lr, cbs=[cbs()[0], SaveModel(path)])
        assert learn.groups.get("lr")[0] < lr
        assert distance(learn, alone) < BOUND
        equal_everywhere(learn)


def check_a_loss_over_valid_targets(folder: Path) -> None:
    y = torch.where(torch.arange(N) % 3 > 0, Y, -100)
    y[: 2 * WHOLE] = -100  # whole batches may have none
    losses = partial(F.cross_entropy, ignore_index=-100)

    def replace_stepper(learn: Any) -> None:
        learn.stepper = Stepper(learn.opt)

    late = Callback(before_train=replace_stepper)
    for cbs in ([], [GradientAccumulation(3)], [late]):
        made = []
        for alone in (False, True):
            size = WHOLE if alone else WHOLE // WORLD
            dls = (
                TensorLoader(X, y, batch_size=size, shuffle=True),
                TensorLoader(X, y, batch_size=8),
            )
            options = {"loss_func": losses, "metrics": [], "loss_weight": token_weight()}
            learn = learner(alone, dls, **options)
            learn.fit(3, cbs=cbs)
            made.append(learn)
        assert distance(*made) < BOUND


class TwoHeads(nn.Module):
    """A model of which some parameters are not used, or not by every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.never = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).tanh()
        return self.one(hidden) if len(x) % 2 else self.other(hidden)


def check_unused_parameters(folder: Path) -> None:
    torch.manual_seed(1)
    learn = learner(model=TwoHeads().double())
    before = learn.model.never.weight.detach().clone()
    learn.fit(2, wd=0.1)
    equal_everywhere(learn)
    assert torch.equal(learn.model.never.weight, before)


def check_freezing_within_a_fit(folder: Path) -> None:
    def freeze(learn: Any) -> None:
        for p in learn.model[0].parameters():
            p.requires_grad_(learn.epoch > 0)

    both(folder, lambda: [Callback(before_epoch=freeze)])


def check_a_loss_with_parameters(folder: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(pred * self.scale, target)

    made = [learner(alone, loss_func=Scaled()) for alone in (False, True)]
    for learn in made:
        learn.fit(3)
    assert distance(*made) < BOUND
    scales = [float(learn.loss_func.scale.detach()) for learn in made]
    assert abs(scales[0] - scales[1]) < BOUND
    assert scales[0] != 1.5


# Metrics ----------------------------------------------------------------------------------


class MacroRecall:
    """No mean over batches: it needs all counts."""

    def reset(self) -> None:
        self.hits, self.all = torch.zeros(3), torch.zeros(3)

    def update(self, pred: Tensor, target: Tensor) -> None:
        for c in range(3):
            self.hits[c] += ((pred.argmax(1) == c) & (target == c)).sum()
            self.all[c] += (target == c).sum()

    def compute(self) -> Tensor:
        return (self.hits / self.all).mean()


class Order:
    """Depends on the order of the samples."""

    def reset(self) -> None:
        self.value = 0.0

    def update(self, pred: Tensor, target: Tensor) -> None:
        for each in target.tolist():
            self.value = (3 * self.value + each) % 1001

    def compute(self) -> float:
        return self.value


def several(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    hit = (pred.argmax(1) == target).double()
    return {"hits": hit.mean(), "misses": 1 - hit.mean()}


def check_metrics_of_every_kind(folder: Path) -> None:
    metrics = [
        MacroRecall(),
        Order(),
        several,
        MeanMetric(F.cross_entropy, name="root", transform=torch.sqrt),
    ]
    both(folder, metrics=metrics)


def check_more_processes_than_validation_samples(folder: Path) -> None:
    made = []
    for alone in (False, True):
        size = WHOLE if alone else WHOLE // WORLD
        dls = loaders(size)[0], TensorLoader(X[:1], Y[:1], batch_size=4)
        made.append(learner(alone, dls, metrics=[MacroRecall(), several]))
        made[-1].fit(2)
    valid = [learn.recorder.history["valid_loss"].values for learn in made]
    assert abs(valid[0] - valid[1]).max() < BOUND


def check_torchmetrics(folder: Path) -> None:
    try:
        from torchmetrics.classification import MulticlassF1Score
    except ImportError:
        return
    both(folder, metrics=[MulticlassF1Score(3)])


# Loaders ----------------------------------------------------------------------------------


def numbers(pairs: Any) -> Any:
    return TensorDataset(X, Y, torch.arange(N))


class Numbered(torch.utils.data.Dataset[Any]):
    """Samples that say which they are."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        return X[i], Y[i], i


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[i], Y[i], i) for i in range(N)])


class Drawn(Sampler[int]):
    """A sampler of somebody's own, which draws from torch's default generator."""

    def __iter__(self) -> Any:
        for _ in range(N):
            yield int(torch.randint(N, ()))

    def __len__(self) -> int:
        return N


class Pairs(Sampler[list[int]]):
    """A batch sampler of somebody's own, with batches of several sizes."""

    def __iter__(self) -> Any:
        order = torch.randperm(N).tolist()
        for start in range(0, N, 7):
            yield order[start : start + 5 + start % 3][:7]

    def __len__(self) -> int:
        return 15


def seen_by(train: Any, n_epoch: int = 2) -> tuple[Any, list[list[int]]]:
    """Fit, and return which samples each batch of all had, in the order of the processes."""
    own: list[list[int]] = []

    def keep(learn: Any) -> None:
        own.append(learn.batch[2].tolist() if learn.shards.has_samples else [])

    learn = learner(
        dls=(train, None), n_inp=1, loss_func=lambda pred, y, i: F.cross_entropy(pred, y)
    )
    learn.fit(n_epoch, cbs=[Callback(after_batch=keep)])
    equal_everywhere(learn)
    return learn, [flat(parts) for parts in zip(*gathered(own), strict=True)]


def alone_sees(train: Any, n_epoch: int = 2) -> tuple[Any, list[list[int]]]:
    own: list[list[int]] = []
    keep = Callback(after_batch=lambda learn: own.append(learn.batch[2].tolist()))
    learn = learner(True, (train, None), n_inp=1, loss_func=lambda p, y, i: F.cross_entropy(p, y))
    learn.fit(n_epoch, cbs=[keep])
    return learn, own


def check_a_shuffled_dataloader(folder: Path) -> None:
    for options in ({}, {"drop_last": True}, {"sampler": None, "num_workers": 1}):
        made = DataLoader(Numbered(), WHOLE // WORLD, **{"shuffle": True} | options)
        learn, seen = seen_by(made)
        alone, right = alone_sees(DataLoader(Numbered(), WHOLE, **{"shuffle": True} | options))
        assert seen == right
        assert distance(learn, alone) < BOUND


def check_samplers_of_torch(folder: Path) -> None:
    def made(size: int) -> list[Any]:
        weighted = WeightedRandomSampler(torch.arange(1.0, N + 1.0).tolist(), N)
        batches = BatchSampler(RandomSampler(Numbered()), size, drop_last=False)
        return [
            DataLoader(Numbered(), size, sampler=weighted),
            DataLoader(Numbered(), batch_sampler=batches),
            DataLoader(SeededDataset(Numbered()), size, shuffle=True),
            TensorLoader(X, Y, torch.arange(N), batch_size=size, shuffle=True, drop_last=True),
        ]

    for mine, theirs in zip(made(WHOLE // WORLD), made(WHOLE), strict=True):
        learn, seen = seen_by(mine)
        alone, right = alone_sees(theirs)
        assert seen == right
        assert distance(learn, alone) < BOUND


def check_a_list_and_a_stream_by_position(folder: Path) -> None:
    batches = [(X[i : i + 3], Y[i : i + 3], torch.arange(i, min(i + 3, N))) for i in range(0, N, 3)]
    right = [list(range(i, min(i + 3 * WORLD, N))) for i in range(0, N, 3 * WORLD)]
    stream = DataLoader(Streamed(), 3)
    for train in (batches, stream):
        _, seen = seen_by(train)
        assert seen == right * 2


def check_a_distributed_sampler_is_not_padded(folder: Path) -> None:
    sampler = DistributedSampler(Numbered(), shuffle=True, seed=11)  # type: ignore[arg-type]
    _, seen = seen_by(DataLoader(Numbered(), WHOLE // WORLD, sampler=sampler))
    for epoch in range(2):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(11 + epoch)).tolist()
        batches = seen[UPDATES * epoch : UPDATES * (epoch + 1)]
        assert flat(batches) == order
        assert [len(batch) for batch in batches] == [WHOLE] * (UPDATES - 1) + [5]


def check_samplers_of_ones_own_draw_alike(folder: Path) -> None:
    torch.manual_seed(100 + torch.distributed.get_rank())  # scripts need not seed
    _, seen = seen_by(DataLoader(Numbered(), WHOLE // WORLD, sampler=Drawn()))
    assert [len(batch) for batch in seen] == ([WHOLE] * (UPDATES - 1) + [5]) * 2
    assert len(set(flat(seen))) > N // 2
    _, seen = seen_by(DataLoader(Numbered(), batch_sampler=Pairs()), 1)
    found = flat(seen)
    assert len(found) == len(set(found)) > N - WHOLE, "a sample came twice"


def check_processes_draw_random_numbers_of_their_own(folder: Path) -> None:
    torch.manual_seed(0)
    drawn: list[float] = []
    keep = Callback(after_step=lambda learn: drawn.append(float(torch.rand(()))))
    learner().fit(1, cbs=[keep])
    assert len({each[0] for each in gathered(drawn)}) == WORLD
    assert len(set(gathered(float(torch.rand(()))))) == 1, "after a fit all draw alike"


def check_non_finite_loss_ends_all(folder: Path) -> None:
    x = X.clone()
    x[:] = torch.where(torch.arange(N)[:, None] == 35, torch.nan, x)
    made, stop = [], TerminateOnNonFinite()
    for alone in (True, False):
        size = WHOLE if alone else WHOLE // WORLD
        learn = learner(alone, (TensorLoader(x, Y, batch_size=size), None))
        learn.fit(1, cbs=[stop])
        made.append((learn.stop_reason, learn.n_updates))
    assert made[0] == made[1]
    assert made[0][1] == 35 // WHOLE
    # The last sample of its batch, which the last process has: all know, and blame no rate.
    found = stop.post_mortem
    assert found.lr is None
    assert found.bad_inputs[0].startswith(f"process {WORLD - 1}: input")
    assert found.bad_module == f"process {WORLD - 1}: 0 (Linear)"
    assert gathered(str(found.bad_inputs)) == [str(found.bad_inputs)] * WORLD


def check_throughput_counts_the_samples_of_all_once(folder: Path) -> None:
    seconds = 0.0

    def clock() -> float:
        nonlocal seconds
        seconds += 2.0
        return seconds

    throughput.perf_counter, before = clock, throughput.perf_counter
    try:
        learn = learner()
        learn.fit(2, cbs=[Throughput()])
    finally:
        throughput.perf_counter = before
    rates = learn.recorder.history["samples_per_s"].values.tolist()
    assert rates == [len(X) / 2] * 2, rates


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}

if __name__ == "__main__":
    run(CHECKS)
