"""A fit that was interrupted goes on: in the same bits, or with another number of processes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
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
    flat,
    gathered,
    learner,
    run,
    same_bits,
)
from torch import nn
from torch.nn import functional as F

from onecycle import EMA, Callback, Checkpoint, GradientAccumulation, TensorLoader

BOUND = 1e-6
EPOCHS = 3


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3)
    return nn.Sequential(*layers).double()


def interrupted(at: int) -> Callback:
    def stop(learn: Any) -> None:
        if learn.n_updates == at:
            raise InterruptedError

    return Callback(after_batch=stop)


def begin(folder: Path, at: int, cbs: Any = list, every: str = "3 updates", **options: Any) -> None:
    torch.manual_seed(7)
    learn = learner(**options)
    try:
        learn.fit_one_cycle(EPOCHS, 0.1, cbs=[*cbs(), Checkpoint(folder, every), interrupted(at)])
    except InterruptedError:
        return
    raise AssertionError("the fit was not interrupted")


def whole(cbs: Any = list, **options: Any) -> Any:
    torch.manual_seed(7)
    learn = learner(**options)
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=cbs())
    return learn


def check_the_same_number_ends_in_the_same_bits(folder: Path) -> None:
    def cbs() -> list[Callback]:
        return [EMA(0.9), GradientAccumulation(2)]

    for number, at in enumerate((4, 7)):
        mine = folder / f"same-{WORLD}-{number}"
        begin(mine, at, cbs, model=net())
        gathered(None)
        learn = learner(model=net())
        torch.manual_seed(1000 + RANK)
        learn.fit_one_cycle(EPOCHS, 0.1, cbs=[*cbs(), Checkpoint(mine, "3 updates")], resume=mine)
        same_bits(learn, whole(cbs, model=net()))
        equal_everywhere(learn)


def check_random_numbers_that_are_not_restored_are_seen(folder: Path) -> None:
    """The negative control: dropout, which draws otherwise, ends elsewhere."""
    mine = folder / f"control-{WORLD}"
    begin(mine, 5, model=net())
    gathered(None)
    learn = learner(model=net())
    spoil = Callback(after_batch=lambda learn: torch.manual_seed(1))
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=[spoil], resume=mine)
    right = whole(model=net())
    assert learn.recorder.history["train_loss"].values.tolist() != (
        right.recorder.history["train_loss"].values.tolist()
    )


def ids(seen: list[list[int]]) -> Callback:
    def keep(learn: Any) -> None:
        has = learn.shards is None or learn.shards.has_samples
        seen.append(learn.batch[2].tolist() if has else [])

    return Callback(after_batch=keep)


def numbered(alone: bool = False, size: int | None = None) -> Any:
    size = size or (WHOLE if alone else WHOLE // WORLD)
    train = TensorLoader(X, Y, torch.arange(N), batch_size=size, shuffle=True)
    loss = {"loss_func": lambda pred, y, i: F.cross_entropy(pred, y), "n_inp": 1, "metrics": []}
    return learner(alone, (train, None), **loss)


def stop_at(learn: Any, folder: Path, at: int) -> list[list[int]]:
    seen: list[list[int]] = []
    cbs = [ids(seen), Checkpoint(folder, "2 updates"), interrupted(at)]
    with suppress(InterruptedError):
        learn.fit_one_cycle(EPOCHS, 0.1, cbs=cbs)
    return seen


def check_one_process_goes_on_for_several(folder: Path) -> None:
    """What several began goes on in one, here and in each of them for itself."""
    mine = folder / f"several-{WORLD}"
    stop_at(numbered(), mine, 7)
    right, seen_right = numbered(alone=True), []
    right.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen_right)])
    gathered(None)
    learn, seen = numbered(alone=True, size=WHOLE // WORLD), []
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen)], resume=mine)
    assert seen == seen_right[6:]
    assert distance(learn, right) < BOUND
    assert learn.shards is None


def check_several_go_on_for_one(folder: Path) -> None:
    mine = folder / f"one-{WORLD}"
    if RANK == 0:
        stop_at(numbered(alone=True), mine, 7)
    gathered(None)
    right, seen_right = numbered(alone=True), []
    right.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen_right)])
    learn, seen = numbered(size=WHOLE), []  # the script for one, started for several
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen)], resume=mine)
    assert [flat(each) for each in zip(*gathered(seen), strict=True)] == seen_right[6:]
    assert distance(learn, right) < BOUND
    equal_everywhere(learn)
    learn.fit(1)
    assert len(learn.recorder.history["train_loss"]) == UPDATES * EPOCHS + -(-N // (WHOLE * WORLD))


def check_begin_for_others(folder: Path) -> None:
    """Leave a checkpoint for another number of processes: see the next one."""
    stop_at(numbered(), folder / f"for-others-{WORLD}", 9)


def check_another_number_goes_on(folder: Path) -> None:
    mine = folder / f"for-others-{6 - WORLD}"
    # A script says the batch of each process; this one that of the other job.
    right, seen_right = numbered(alone=True), []
    right.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen_right)])
    learn, seen = numbered(size=WHOLE // (6 - WORLD)), []
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen)], resume=mine)
    assert [flat(each) for each in zip(*gathered(seen), strict=True)] == seen_right[8:]
    assert distance(learn, right) < BOUND


def check_a_list_goes_on_in_another_number(folder: Path) -> None:
    batches = [(X[i : i + 3], Y[i : i + 3]) for i in range(0, N, 3)]
    mine = folder / f"list-{WORLD}"
    learn = learner(dls=(batches, None), metrics=[])
    with suppress(InterruptedError):
        learn.fit(2, cbs=[Checkpoint(mine, "2 updates"), interrupted(5)])
    gathered(None)
    right = learner(dls=(batches, None), metrics=[])
    right.fit(2)
    learn = learner(True, (batches, None), metrics=[])
    learn.fit(2, resume=mine)
    assert distance(learn, right) < BOUND


def check_another_batch_size_is_refused(folder: Path) -> None:
    mine = folder / f"refused-{WORLD}"
    stop_at(numbered(), mine, 5)
    gathered(None)
    with pytest.raises(ValueError, match="batch"):
        numbered(size=WHOLE // WORLD + 1).fit_one_cycle(EPOCHS, 0.1, resume=mine)


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}

if __name__ == "__main__":
    run(CHECKS)
