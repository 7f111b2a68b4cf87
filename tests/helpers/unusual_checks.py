"""Models, metrics, data and callbacks that are seldom seen: the answer of one process."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from equal_checks import BOUND, both
from together import (
    RANK,
    WHOLE,
    WORLD,
    N,
    X,
    Y,
    distance,
    equal_everywhere,
    gathered,
    learner,
    net,
    run,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from onecycle import SWA, Callback, GradientAccumulation, OnecycleError, TensorLoader


class Shuffled(nn.Module):
    """Orders and masks its inputs by buffers of several dtypes, and counts its calls."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = net()
        self.register_buffer("mask", torch.rand(5, generator=generator) > 0.4)
        self.register_buffer("turn", torch.randn(5, generator=generator, dtype=torch.complex128))
        self.register_buffer("order", torch.randperm(5, generator=generator))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # the first process's are those of all
            self.calls += len(x)
        return self.layers((x * self.mask * self.turn.real)[:, self.order])


def check_buffers_of_any_dtype_are_the_first_ones(folder: Path) -> None:
    learn, alone = learner(model=Shuffled(RANK)), learner(True, model=Shuffled(0))
    for each in (learn, alone):
        each.fit(2)
    equal_everywhere(learn)
    for mine, theirs in zip(learn.model.parameters(), alone.model.parameters(), strict=True):
        assert float((mine - theirs).detach().abs().max()) < BOUND


def check_what_trains_changes_within_a_fit(folder: Path) -> None:
    """A frozen layer is thawed and given to the optimizer, in any event; one is frozen later."""

    def thaw(learn: Any) -> None:
        if learn.n_updates == 4 and len(learn.opt.param_groups) == 1:
            learn.model[0].requires_grad_(True)
            learn.opt.add_param_group({"params": [*learn.model[0].parameters()], "lr": 0.1})

    def freeze(learn: Any) -> None:
        if learn.total_updates == 2 and learn.batches_in_window == 1:
            learn.model[0].requires_grad_(False)

    for event in ("before_epoch", "before_train", "before_batch", "after_batch"):
        made = []
        for alone in (False, True):
            model = net()
            model[0].requires_grad_(False)
            learn = learner(alone, model=model, opt_func=partial(_of_those_that_train, model))
            learn.fit(3, cbs=[Callback(**{event: thaw})])
            made.append(learn)
        equal_everywhere(made[0])
        assert distance(*made) < BOUND, event
    both(folder, lambda: [Callback(before_batch=freeze), GradientAccumulation(3)])


def _of_those_that_train(model: nn.Module, params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)


def by_class(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return a share for each class of the batch, in the order in which it comes."""
    hits = (pred.argmax(1) == target).float()
    return {f"hit_{int(c)}": (hits * (target == c)).mean() for c in target.unique().flip(0)}


def check_a_metric_may_have_other_values_in_each_process(folder: Path) -> None:
    first = Y.sort().indices  # the first classes come to the first process, the last to the last
    made = []
    for alone in (False, True):
        size = WHOLE if alone else WHOLE // WORLD
        dls = TensorLoader(X, Y, batch_size=size), TensorLoader(X[first], Y[first], batch_size=size)
        made.append(learner(alone, dls, metrics=[by_class]))
        made[-1].fit(1)
    equal_everywhere(made[0])
    mine, right = (set(each.recorder.history) for each in made)
    assert mine == right >= {"hit_0", "hit_1", "hit_2"}


def check_averaged_statistics_are_drawn_alike(folder: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 3)
    learn = learner(model=nn.Sequential(*layers).double())
    learn.fit(2, cbs=[SWA(0.5)])
    equal_everywhere(learn)
    assert len(set(gathered(learn.validate()["valid_loss"]))) == 1


def weighted(pred: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (F.cross_entropy(pred, y, reduction="none") * w).sum() / w.sum()


def check_a_part_that_counts_nothing_has_no_gradient(folder: Path) -> None:
    w = (torch.arange(N) % WHOLE < WHOLE // WORLD).double()  # those of the first process
    for way in ("ddp", "fsdp"):
        made = []
        for alone in (False, True):
            train = TensorLoader(X, Y, w, batch_size=WHOLE if alone else WHOLE // WORLD)
            how = {} if alone else {"parallel": way}
            options = {"loss_func": weighted, "n_inp": 1, "metrics": []}
            options |= {"loss_weight": lambda pred, batch: batch[2].sum()}
            made.append(learner(alone, (train, None), **options, **how))
            made[-1].fit(2)
        assert distance(*made) < BOUND


def check_weights_that_part_are_refused(folder: Path) -> None:
    def noise(learn: Any) -> None:
        for p in learn.model.parameters():
            p.grad += torch.randn_like(p)

    learn = learner()
    with pytest.raises(OnecycleError, match=r"weights of process 1 are no longer those"):
        learn.fit(2, cbs=[Callback(before_step=noise)])
    assert learn.n_updates == 5

    def own_rate(learn: Any) -> None:
        learn.opt.param_groups[0]["lr"] = 0.1 + 0.01 * RANK

    learn = learner()
    with pytest.raises(OnecycleError, match=r"(weights|learning rates) of process 1"):
        learn.fit(2, cbs=[Callback(after_step=own_rate)])


class Items(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[i], Y[i]) for i in range(N)])


def check_a_stream_leaves_out_what_is_no_full_batch(folder: Path) -> None:
    made = []
    for alone in (False, True):
        size = WHOLE if alone else WHOLE // WORLD
        made.append(learner(alone, (DataLoader(Items(), size, drop_last=True), None), metrics=[]))
        made[-1].fit(2)
    assert made[0].n_updates == made[1].n_updates == 2 * (N // WHOLE)
    assert distance(*made) < BOUND


class Drawn(Dataset[Any]):
    """Samples with a random number."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> Any:
        return X[i], Y[i], torch.rand(())


def check_workers_draw_numbers_of_their_own(folder: Path) -> None:
    numbers: list[float] = []
    keep = Callback(after_batch=lambda learn: numbers.extend(learn.batch[2].tolist()))
    train = DataLoader(Drawn(), WHOLE // WORLD, num_workers=1)
    loss = {"loss_func": lambda pred, y, drawn: F.cross_entropy(pred, y), "n_inp": 1}
    learner(dls=(train, None), metrics=[], **loss).fit(1, cbs=[keep])
    drawn = [number for each in gathered(numbers) for number in each]
    assert len(set(drawn)) == len(drawn) == 24


def check_a_fit_in_a_fit_leaves_the_random_numbers_apart(folder: Path) -> None:
    drawn: list[float] = []

    def fit_another(learn: Any) -> None:
        if learn.n_updates == 2:
            learner(metrics=[]).fit(1)
        drawn.append(float(torch.rand(())))

    learner().fit(1, cbs=[Callback(after_step=fit_another)])
    each = gathered(drawn)
    assert all(len(set(numbers)) == WORLD for numbers in zip(*each, strict=True))


class Bag(nn.Module):
    """A model with an embedding whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layer = nn.Embedding(20, 6, sparse=True), nn.Linear(6, 3)

    def forward(self, i: Tensor) -> Tensor:
        return self.layer(self.embedding(i).mean(1))


def check_sparse_gradients(folder: Path) -> None:
    indices = torch.randint(20, (N, 4), generator=torch.Generator().manual_seed(1))
    made = []
    for alone in (False, True):
        train = TensorLoader(indices, Y, batch_size=WHOLE if alone else WHOLE // WORLD)
        options = {"opt_func": torch.optim.SGD, "metrics": []}
        made.append(learner(alone, (train, None), Bag().double(), **options))
        made[-1].fit(2)
    assert distance(*made) < BOUND


def check_complex_parameters_and_a_window_that_is_not_full(folder: Path) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.w = nn.Parameter(torch.randn(5, 3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (x.to(torch.complex128) @ self.w).abs()

    learn, alone = learner(model=Turned()), learner(True, model=Turned())
    for each in (learn, alone):
        each.fit(2, cbs=[GradientAccumulation(3)])
    assert distance(learn, alone) < BOUND


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}

if __name__ == "__main__":
    run(CHECKS)
