"""A loss that jumps over its level is found where a count by hand finds it, and nowhere else."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from learner_state import trained
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from onecycle import Callback, CancelFit, Checkpoint, GradientAccumulation, Learner, SpikeStop

X = torch.randn(240, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def learner(*losses: Any, bad: Any = (), size: int = 4, **options: Any) -> Learner:
    """Make a learner of 60 batches, of which some have a loss (and gradients) a thousandfold."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 1))
    batches = [(X[i : i + size], Y[i : i + size]) for i in range(0, 240, size)]

    def loss(pred: Tensor, yb: Tensor) -> Tensor:
        own = mse_loss(pred, yb)
        if losses:
            return own * 0 + losses[learn.iter]
        return own * (1000 if learn.iter in bad else 1)

    learn = Learner((batches, None), model, loss, lr=0.003, device="cpu", seed=0, **options)
    learn.cbs = [learn.recorder]
    return learn


def state(learn: Learner) -> dict[str, Any]:
    return {name: value.clone() for name, value in learn.model.state_dict().items()}


def by_hand(losses: list[float], window: int, sigmas: float) -> list[int]:
    level: list[float] = []
    found = []
    for i, loss in enumerate(losses):
        if len(level) >= window:
            last = level[-window:]
            middle = median(last)
            spread = 1.4826 * median(abs(each - middle) for each in last)
            if not loss <= middle + sigmas * max(spread, 0.01 * abs(middle)):
                found.append(i)
                continue
        if not math.isfinite(loss):
            found.append(i)
        else:
            level.append(loss)
    return found


def test_spikes_are_those_that_a_count_by_hand_finds() -> None:
    draw = torch.Generator().manual_seed(1)
    losses = (torch.rand(60, generator=draw) ** 3 + torch.linspace(3, 1, 60)).tolist()
    losses[0], losses[25], losses[26], losses[40], losses[50] = 9.0, 9.0, math.nan, math.inf, 5.5
    expected = by_hand(losses, 12, 4.0)
    assert {25, 26, 40} <= set(expected) <= {25, 26, 40, 50}
    learn = learner(*losses)
    skipped: list[int] = []
    look = Callback(after_cancel_step=lambda learn: skipped.append(learn.iter))
    learn.fit(1, cbs=[SpikeStop("skip", sigmas=4, window=12), look])
    assert skipped == expected
    assert (learn.n_skipped, learn.n_updates) == (len(expected), 60 - len(expected))


@pytest.mark.parametrize("level", [0.0, -5.0, 1e-9, 1e9])
def test_losses_that_hardly_change_are_no_spikes_and_a_real_one_is(level: float) -> None:
    losses = [level * (1 + 0.001 * (i % 3)) for i in range(60)]
    learn = learner(*losses)
    learn.fit(1, cbs=[SpikeStop(window=10)])
    assert learn.n_updates == 60
    losses[30] = level + abs(level) + 1e-9
    learn = learner(*losses)
    learn.fit(1, cbs=[SpikeStop(window=10)])
    assert learn.n_updates == 30


def test_a_fit_stops_before_the_update_of_a_spike() -> None:
    whole = learner()
    whole.fit(1, max_updates=20)
    learn = learner(bad=[20])
    learn.fit(1, cbs=[SpikeStop(window=10)])
    assert learn.n_updates == 20
    assert "jumped to" in str(learn.stop_reason)
    assert "at update 21, over" in str(learn.stop_reason)
    weights = [name for name, _ in learn.model.named_parameters()]
    assert all(torch.equal(state(whole)[name], state(learn)[name]) for name in weights)


def test_patience_counts_the_spikes_in_a_row() -> None:
    def updates(bad: list[int], patience: int) -> int:
        learn = learner(bad=bad)
        learn.fit(1, cbs=[SpikeStop(window=10, patience=patience)])
        return learn.n_updates

    assert updates([20, 30, 40], 2) == 60  # in "stop", updates of single spikes are made
    assert updates([20, 30, 31], 2) == 31
    skipping = learner(bad=[20, *range(30, 60)])
    skipping.fit(1, cbs=[SpikeStop("skip", window=10, patience=4)])
    assert (skipping.n_updates, skipping.n_skipped) == (29, 4)
    assert str(skipping.stop_reason).endswith("4 spikes in a row")


def test_a_skipped_update_leaves_weights_and_buffers_and_training_goes_on() -> None:
    seen: list[Any] = []

    def look(learn: Any) -> None:
        if learn.iter in (19, 20):
            seen.append((learn.n_updates, state(learn)))

    learn = learner(bad=[20])
    learn.fit(1, cbs=[SpikeStop("skip", window=10), Callback(after_batch=look)])
    (before, one), (after, other) = seen
    assert before == after == 20
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (learn.n_updates, learn.n_skipped) == (59, 1)
    unprotected = learner(bad=[20])
    seen.clear()
    unprotected.fit(1, cbs=[Callback(after_batch=look)])
    assert not torch.equal(seen[0][1]["1.running_mean"], seen[1][1]["1.running_mean"])


def test_of_accumulated_batches_the_loss_of_the_update_is_judged() -> None:
    cbs = [GradientAccumulation(4), SpikeStop("skip", window=8)]
    learn = learner(bad=[41])
    learn.fit(1, cbs=cbs)
    assert (learn.n_updates, learn.n_skipped) == (14, 1)


def test_losses_on_an_accelerator_are_read_in_blocks_and_the_true_update_is_named() -> None:
    stop = SpikeStop(window=10)
    in_blocks = Callback(before_train=lambda learn: vars(stop).update(_block=16))
    learn = learner(bad=[20])
    learn.fit(1, cbs=[in_blocks, stop])
    assert learn.n_updates == 31  # in the second block of 16
    assert "at update 21, over" in str(learn.stop_reason)
    learn = learner(bad=[57])
    learn.fit(1, cbs=[in_blocks, stop])
    assert "at update 58, over" in str(learn.stop_reason)  # what is left is read after the pass


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_an_interrupted_fit_ends_in_the_same_bits(action: Any, tmp_path: Path) -> None:
    def spikes() -> SpikeStop:
        return SpikeStop(action, window=10, patience=3)

    def stop(learn: Any) -> None:
        if learn.iter == 21 and learn.epoch == 0:
            raise CancelFit

    bad = [20, 21, 30, 31, 32]
    whole = learner(bad=bad)
    whole.fit(2, cbs=[spikes()])
    cut = learner(bad=bad)
    keep = Checkpoint(tmp_path, every="1 update")
    cut.fit(2, cbs=[spikes(), keep, Callback(before_batch=stop)])
    resumed = learner(bad=bad)
    resumed.fit(2, cbs=[spikes()], resume=tmp_path)
    assert trained(resumed) == trained(whole)
    assert resumed.stop_reason == whole.stop_reason is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "land"}, "action"),
        ({"sigmas": 0}, "sigmas"),
        ({"window": 4}, "window"),
        ({"patience": 0}, "patience"),
    ],
)
def test_what_is_no_rule_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpikeStop(**options)
