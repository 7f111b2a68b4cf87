"""One decision for all: cancels, landings, errors; and what is measured is the same everywhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from equal_checks import BOUND
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
    run,
    weights,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset, random_split

from onecycle import (
    Callback,
    CancelBatch,
    CancelEpoch,
    CancelFit,
    CancelStep,
    CancelTrain,
    CancelValid,
    Checkpoint,
    EarlyStopping,
    GradientClip,
    OnecycleError,
    Stage,
    TensorLoader,
)

LAST = WORLD - 1


def raising(event: str, cancel: type[Exception], at: int, who: int) -> Callback:
    """Let one process raise a cancel at its n-th event."""
    heard: list[int] = []

    def hear(learn: Any) -> None:
        heard.append(1)
        if len(heard) == at and who in (RANK, -1):
            raise cancel("enough")

    return Callback(**{event: hear})


class Early(Callback):
    """Is asked before the library takes the losses of all together."""

    stage = Stage.PREPARE

    def after_loss(self, learn: Any) -> None:
        alone = learn.processes is None
        if learn.training and learn.iter == 3 and (alone or RANK == LAST):
            raise CancelBatch("enough")


def check_a_cancel_before_the_losses_are_added_up(folder: Path) -> None:
    learn, alone = learner(), learner(alone=True)
    for each in (learn, alone):
        each.fit(2, cbs=[Early(), GradientClip(0.5)])
    equal_everywhere(learn)
    assert learn.n_updates == alone.n_updates == 2 * (UPDATES - 1)
    assert distance(learn, alone) < BOUND


def check_a_cancel_in_one_process_is_one_in_all(folder: Path) -> None:
    cases = [
        ("after_batch", CancelFit),
        ("after_step", CancelFit),
        ("before_batch", CancelBatch),
        ("after_loss", CancelBatch),
        ("before_backward", CancelTrain),
        ("after_backward", CancelStep),
        ("before_step", CancelStep),
        ("before_batch", CancelEpoch),
        ("before_validate", CancelValid),
        ("after_pred", CancelValid),
        ("after_epoch", CancelFit),
    ]
    for event, cancel in cases:
        at = UPDATES + 4 if event.endswith(("batch", "loss", "pred", "backward", "step")) else 1
        at = UPDATES + 2 if cancel is CancelValid and event == "after_pred" else at
        learn, alone = learner(), learner(alone=True)
        learn.fit(2, cbs=[raising(event, cancel, at, LAST)])
        alone.fit(2, cbs=[raising(event, cancel, at, -1)])
        equal_everywhere(learn)
        assert distance(learn, alone) < BOUND, (event, cancel)
        assert learn.stop_reason == alone.stop_reason == "enough" or cancel is CancelStep
        assert learn.n_skipped == alone.n_skipped


def check_a_callback_of_one_process_alone_hangs_nothing(folder: Path) -> None:
    extra = [raising("after_batch", CancelFit, 5, -1)] if RANK == LAST else []
    learn = learner()
    learn.fit(2, cbs=extra)
    assert gathered(learn.n_updates) == [5] * WORLD


def check_a_landing_asked_for_in_one_process(folder: Path) -> None:
    def land(learn: Any) -> None:
        if learn.n_updates == 4 and RANK == LAST:
            learn.land(3)

    learn, alone = learner(), learner(alone=True)
    learn.fit(3, cbs=[Callback(after_step=land)])
    alone.fit(3, cbs=[Callback(after_step=lambda each: each.n_updates == 4 and each.land(3))])
    equal_everywhere(learn)
    assert learn.n_updates == 7
    assert distance(learn, alone) < BOUND


def check_early_stopping(folder: Path) -> None:
    learn, alone = learner(), learner(alone=True)
    for each in (learn, alone):
        each.fit(9, 1e-9, cbs=[EarlyStopping(min_delta=0.1, patience=2)])
    assert learn.stop_reason == alone.stop_reason != ""
    assert learn.n_updates == alone.n_updates == 3 * UPDATES


class Leaving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 3).double(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == UPDATES - 1 and RANK == LAST:
            raise CancelBatch("of the model's own")
        return self.layer(x)


def check_a_cancel_of_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(OnecycleError, match="of which the other processes do not hear"):
        learner(model=Leaving()).fit(2)


def check_different_fits_are_refused(folder: Path) -> None:
    for n_epoch, cbs in ((2 + RANK, []), (2, [Checkpoint(folder / "own")] if RANK == LAST else [])):
        with pytest.raises((ValueError, OnecycleError), match="different fits"):
            learner().fit(n_epoch, cbs=cbs)


class Share(Sampler[int]):
    """Takes a share for each process, as scripts do that know of these by themselves."""

    def __iter__(self) -> Any:
        return iter(range(RANK, N, WORLD))

    def __len__(self) -> int:
        return -(-(N - RANK) // WORLD)


class ShareOfStream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(X[i], Y[i]) for i in range(RANK, N, WORLD)])


def check_other_data_in_each_process_are_refused(folder: Path) -> None:
    torch.manual_seed(RANK)
    data = TensorDataset(X, Y)
    apart, n = random_split(data, [N - 21, 21]), N - RANK
    noise = torch.rand(N, 5, dtype=torch.float64)
    cases: list[tuple[Any, str]] = [
        ((DataLoader(apart[0], 3, shuffle=True), None), "training data of process 1"),
        ((TensorLoader(X, Y), DataLoader(apart[1], 3)), "validation data of process 1"),
        ((TensorLoader(noise, Y, batch_size=3), None), "training data of process 1"),
        ((TensorLoader(X[:n], Y[:n], batch_size=3), None), "training data of process 1"),
        ((DataLoader(data, 3, sampler=Share()), None), "gives each process other indices"),
        ((DataLoader(ShareOfStream(), 3), None), "draw other items"),
        (([(noise[:3], Y[:3])] * 4, None), "draw other items"),
    ]
    for dls, word in cases:
        learn = learner(dls=dls, metrics=[])
        with pytest.raises((ValueError, OnecycleError), match=word):
            learn.fit(1)
        assert learn.n_updates == 0


def check_other_rates_in_each_process_are_refused(folder: Path) -> None:
    learn = learner()
    for fit in (learn.fit, learn.fit_one_cycle):
        with pytest.raises(ValueError, match=r"different fits.*process 1"):
            fit(1, 0.1 * (1 + RANK))
    with pytest.raises(ValueError, match=r"pct_start|schedule of lr"):
        learn.fit_one_cycle(1, 0.1, pct_start=0.2 + 0.1 * RANK)
    assert learn.n_updates == 0
    learn.fit(1, 0.1)
    equal_everywhere(learn)


def check_optimizers_in_different_states_are_refused(folder: Path) -> None:
    learn = learner()
    learn.fit(1)
    if RANK == LAST:  # as after a file that one process alone has loaded
        learn.opt.state.clear()
    with pytest.raises(OnecycleError, match="not in one state"):
        learn.fit(1)
    assert gathered(learn.n_updates) == [0] * WORLD
    learn.save(folder / f"state-{WORLD}.pt")
    learn.load(folder / f"state-{WORLD}.pt")
    learn.fit(1)
    equal_everywhere(learn)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 3).double(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == UPDATES - 1 and RANK == LAST:
            raise ArithmeticError("the model failed")
        return self.layer(x)


class FailingData(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i == 7:
            raise ArithmeticError("the loader failed")
        return X[i], Y[i]


def fail(learn: Any) -> None:
    if learn.n_updates == 3 and RANK == LAST:
        raise ArithmeticError("the callback failed")


def interrupt(learn: Any) -> None:
    if learn.n_updates == 3 and RANK == LAST:
        raise KeyboardInterrupt


def check_an_error_in_one_process_ends_all(folder: Path) -> None:
    loader = torch.utils.data.DataLoader(FailingData(), WHOLE // WORLD)
    cases: list[tuple[dict[str, Any], list[Callback], str]] = [
        ({}, [Callback(after_step=fail)], "the callback failed"),
        ({}, [Callback(before_backward=fail)], "the callback failed"),
        ({}, [Callback(before_step=fail)], "the callback failed"),
        ({}, [Callback(before_validate=lambda learn: fail_at_all(learn))], "in validation"),
        ({"model": Failing()}, [], "the model failed"),
        ({"dls": (loader, None)}, [], "the loader failed"),
        ({}, [Callback(after_batch=interrupt)], "KeyboardInterrupt"),
    ]
    for options, cbs, word in cases:
        learn, began = learner(**options), time.monotonic()
        try:
            learn.fit(3, cbs=cbs)
        except (Exception, KeyboardInterrupt) as error:
            own = repr(error)
        else:
            own = "no error"
        assert time.monotonic() - began < 30
        said = gathered(own)
        assert all(word in each for each in said), said
        told = [each for each in said if "process" in each and "failed" in each]
        assert len(told) == WORLD - 1, said
        learn = learner()  # and the same processes go on together
        learn.fit(1)
        equal_everywhere(learn)


def fail_at_all(learn: Any) -> None:
    if RANK == LAST:
        raise ArithmeticError("in validation")


# Inference and range tests ------------------------------------------------------------------


def check_inference_is_whole_everywhere(folder: Path) -> None:
    learn, alone = learner(), learner(alone=True)
    for each in (learn, alone):
        each.fit(1)
    for found in (learn.validate(), learn.check().valid):
        assert gathered(found) == [found] * WORLD
    assert abs(learn.validate()["valid_loss"] - alone.validate()["valid_loss"]) < BOUND
    preds, targets = learn.get_preds()
    assert targets.tolist() == Y[:29].tolist()
    assert (preds - alone.get_preds().preds).abs().max() < BOUND
    assert gathered(preds.tolist()) == [preds.tolist()] * WORLD
    if RANK == 0:  # one process alone may ask
        learn.predict(X[0])
        learn.get_preds()
        learn.validate()
    views = learn.tta(transforms=[lambda x: x * 1.01])
    assert gathered(views.preds.tolist()) == [views.preds.tolist()] * WORLD


def check_the_range_test_is_that_of_one_process(folder: Path) -> None:
    learn, alone = learner(), learner(alone=True)
    before, rng = weights(learn), torch.get_rng_state()
    found, right = (each.lr_find(num_it=30, show_plot=False) for each in (learn, alone))
    assert np.abs(found.losses - right.losses).max() < 1e-5 * np.abs(right.losses).max()
    assert len(found.losses) == len(right.losses)
    assert abs(found.suggestion / right.suggestion - 1) < 1e-6
    assert gathered(found.losses.tolist()) == [found.losses.tolist()] * WORLD
    for mine, was in zip(weights(learn), before, strict=True):
        assert torch.equal(mine, was)
    assert torch.equal(torch.get_rng_state(), rng)
    again = learn.lr_find(num_it=12, show_plot=False, valid=True)
    assert gathered(again.valid_losses.tolist()) == [again.valid_losses.tolist()] * WORLD
    learn.fit(1)
    alone.fit(1)
    assert distance(learn, alone) < BOUND


def check_comparisons_are_the_same_everywhere(folder: Path) -> None:
    learn, alone = learner(), learner(alone=True)
    tables = [each.compare(2, 0.1, ["constant", "one_cycle"], seeds=[0]) for each in (learn, alone)]
    assert gathered(repr(tables[0])) == [repr(tables[0])] * WORLD
    for policy in ("constant", "one_cycle"):
        ends = [float(table.final(policy, "train_loss")[0]) for table in tables]
        assert abs(ends[0] - ends[1]) < BOUND


def check_save_and_load(folder: Path) -> None:
    learn = learner()
    learn.fit(1)
    learn.save(folder / "saved.pt")
    other = learner(model=nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    other.load(folder / "saved.pt")
    for mine, theirs in zip(weights(learn), weights(other), strict=True):
        assert torch.equal(mine, theirs)


def check_only_the_first_process_prints(folder: Path) -> None:
    import io
    from contextlib import redirect_stdout

    from onecycle import Learner

    said = io.StringIO()
    dls = TensorLoader(X, Y, batch_size=4), None
    model = nn.Linear(5, 3).double()
    with redirect_stdout(said):
        Learner(dls, model, nn.functional.cross_entropy, device="cpu", seed=1).fit(1)
    assert bool(said.getvalue()) is (RANK == 0), said.getvalue()


def check_the_statistics_of_batch_norm_are_the_first_ones(folder: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
    learn = learner(model=nn.Sequential(*layers).double())
    learn.fit(2)
    equal_everywhere(learn)
    assert float(learn.model[1].running_mean.abs().max()) > 0


def check_a_group_of_the_users_is_left(folder: Path) -> None:
    learner().fit(1)
    total = torch.ones(())
    dist.all_reduce(total)
    assert int(total) == WORLD


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
CHECKS = {name: value for name, value in CHECKS.items() if value.__module__ == __name__}

if __name__ == "__main__":
    run(CHECKS)
