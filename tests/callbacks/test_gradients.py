"""Several batches make one update, as one large batch would; gradients are clipped last."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from onecycle import (
    Callback,
    CancelBatch,
    CancelFit,
    CancelStep,
    DataLoaders,
    GradientAccumulation,
    GradientClip,
    Learner,
    ParamScheduler,
    Progress,
    Stage,
    TensorLoader,
    linear,
)
from onecycle.testing import toy_learner

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
Batch = tuple[Tensor, Tensor]


def make_data(n: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    # The target drifts, so that no two windows have alike gradients.
    drift = torch.linspace(-2, 2, n, dtype=torch.float64).unsqueeze(1)
    return x, x.sum(1, keepdim=True) * drift + 1


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def make_learner(train: Any, cbs: list[Callback], device: str = "cpu", **options: Any) -> Learner:
    given = {"opt_func": lambda params, lr: SGD(params, lr, momentum=0.9), "seed": 3}
    learn = Learner(
        DataLoaders(train, None),
        make_model(),
        nn.functional.mse_loss,
        cbs=cbs,
        device=device,
        **(given | options),
    )
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


def shuffled(batch_size: int) -> TensorLoader:
    """167 samples: two windows of 64, and one of 16 + 16 + 7."""
    return TensorLoader(*make_data(167), batch_size=batch_size, shuffle=True)


def pieces(*sizes: int) -> list[Batch]:
    x, y = make_data(sum(sizes))
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def joined(batches: list[Batch]) -> Batch:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def weights(learn: Learner) -> Tensor:
    return nn.utils.parameters_to_vector(learn.model.parameters()).detach().cpu()


def by_hand(
    updates: list[list[Batch]], lr: float, *, by_samples: bool = True, max_norm: float | None = None
) -> Tensor:
    """Train with a bare loop, one update for each window, and return the weights."""
    model = make_model()
    opt = SGD(model.parameters(), lr, momentum=0.9)
    for window in updates:
        opt.zero_grad()
        samples = sum(len(x) for x, _ in window)
        for x, y in window:
            share = len(x) / samples if by_samples else 1 / len(window)
            (nn.functional.mse_loss(model(x), y) * share).backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        opt.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def assert_close(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


# --- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_accumulating_4_batches_of_16_trains_like_batches_of_64(device: str) -> None:
    small = make_learner(shuffled(16), [GradientAccumulation(4), GradientClip(2.0)], device)
    large = make_learner(shuffled(64), [GradientClip(2.0)], device)
    clipped: list[bool] = []
    watch = Callback(before_step=lambda learn: clipped.append(bool(clip_of(learn).norm > 2.0)))
    for learn in (small, large):
        learn.fit_one_cycle(3, 0.05, cbs=[watch])
    assert small.n_updates == large.n_updates == small.n_updates_planned == 9
    assert any(clipped)
    assert not all(clipped[2::3])  # the partial windows: clipping hides a wrong mean
    assert_close(weights(small), weights(large))
    for name in ("lr", "momentum", "train_loss"):
        ours, theirs = small.recorder.history[name], large.recorder.history[name]
        np.testing.assert_array_equal(ours.updates, theirs.updates)
        np.testing.assert_allclose(ours.values, theirs.values, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        small.recorder.history["lr"].values, large.recorder.history["lr"].values
    )


def clip_of(learn: Learner) -> Any:
    return next(cb for cb in learn.cbs if isinstance(cb, GradientClip))


def test_accumulation_equals_a_bare_loop_over_batches_of_any_size() -> None:
    batches = pieces(16, 7, 16, 3, 20, 1, 9, 16)  # windows of three, the last of two
    windows = [batches[:3], batches[3:6], batches[6:]]
    learn = make_learner(batches, [GradientAccumulation(3), GradientClip(2.0)])
    learn.fit(2, lr=0.1)
    assert_close(weights(learn), by_hand(windows * 2, 0.1, max_norm=2.0))
    whole = make_learner([joined(window) for window in windows], [GradientClip(2.0)])
    whole.fit(2, lr=0.1)
    losses = [run.recorder.history["train_loss"].values for run in (learn, whole)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)


def test_dropping_the_last_window_or_weighting_by_batches_would_differ() -> None:
    batches = pieces(16, 7, 16, 3, 20, 1, 9, 16)
    windows = [batches[:3], batches[3:6], batches[6:]]
    learn = make_learner(batches, [GradientAccumulation(3)])
    learn.fit(2, lr=0.1)
    right = weights(learn)
    assert (right - by_hand(windows[:2] * 2, 0.1)).abs().max() > 1e-2
    assert (right - by_hand(windows * 2, 0.1, by_samples=False)).abs().max() > 1e-2


class WithoutLength:
    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def test_a_loader_without_length_ends_with_a_partial_update_too() -> None:
    batches = pieces(8, 8, 8, 8, 5)
    accumulate = [GradientAccumulation(2)]
    sized, unsized = (
        make_learner(batches, accumulate),
        make_learner(WithoutLength(batches), accumulate),
    )
    sized.fit_one_cycle(2, 0.1)
    unsized.fit_one_cycle(2, 0.1, steps_per_epoch=5)
    assert unsized.n_updates == unsized.n_updates_planned == 6
    assert torch.equal(weights(sized), weights(unsized))


def test_max_updates_counts_updates_not_batches() -> None:
    learn = make_learner(pieces(*[4] * 10), [GradientAccumulation(4)])  # 3 updates an epoch
    schedule = ParamScheduler({"lr": linear(0.0, 1.0)})
    learn.fit(None, max_updates=5, cbs=[schedule])
    assert learn.recorder.history["lr"].values.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def cancel_at(event: str, iteration: int, kind: type[Exception], stage: Stage) -> Callback:
    def cancel(learn: Learner) -> None:
        if learn.training and learn.iter == iteration:
            raise kind

    callback = Callback(**{event: cancel})
    callback.stage = stage
    return callback


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.REACT])
@pytest.mark.parametrize("event", ["before_batch", "after_loss", "before_backward"])
def test_a_batch_cancelled_before_backward_is_left_out_of_its_window(
    event: str, stage: Stage
) -> None:
    batches = pieces(4, 6, 5, 4, 3, 2, 7)
    cancel = cancel_at(event, 1, CancelBatch, stage)
    learn = make_learner(batches, [cancel, GradientAccumulation(3)])
    learn.fit(1, lr=0.1)
    windows = [[batches[0], batches[2], batches[3]], batches[4:]]
    assert_close(weights(learn), by_hand(windows, 0.1))


@pytest.mark.parametrize("event", ["before_batch", "before_backward"])
def test_a_cancelled_first_batch_does_not_set_the_weights_of_its_window(event: str) -> None:
    batches = pieces(4, 6, 5, 4)
    learn = make_learner(
        batches, [GradientAccumulation(3), cancel_at(event, 0, CancelBatch, Stage.REACT)]
    )
    learn.fit(1, lr=0.1)
    assert_close(weights(learn), by_hand([batches[1:]], 0.1))


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.REACT])
@pytest.mark.parametrize("first", [True, False])
def test_a_batch_cancelled_after_backward_drops_its_window(first: bool, stage: Stage) -> None:
    batches = pieces(4, 6, 5, 4, 3, 2, 7)
    cancel = cancel_at("after_backward", 1, CancelBatch, stage)
    accumulate = GradientAccumulation(3)
    learn = make_learner(batches, [cancel, accumulate] if first else [accumulate, cancel])
    learn.fit(1, lr=0.1)
    assert_close(weights(learn), by_hand([batches[2:5], batches[5:]], 0.1))


@pytest.mark.parametrize("event", ["before_step", "after_step"])
def test_a_batch_may_be_cancelled_in_the_last_partial_update_as_in_a_full_one(event: str) -> None:
    heard: list[int] = []

    def cancel(learn: Learner) -> None:
        raise CancelBatch

    leave = Callback(**{event: cancel}, after_cancel_batch=lambda learn: heard.append(learn.iter))
    learn = make_learner(pieces(4, 4, 4), [GradientAccumulation(2), leave])
    learn.fit(2)
    assert heard == [1, 2, 1, 2]
    assert learn.n_updates == (4 if event == "after_step" else 0)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.REACT])
def test_an_update_postponed_by_another_callback_takes_in_one_batch_more(stage: Stage) -> None:
    batches = pieces(4, 6, 5, 4, 3)
    postpone = cancel_at("after_backward", 1, CancelStep, stage)
    learn = make_learner(batches, [postpone, GradientAccumulation(2)])
    learn.fit(1, lr=0.1)
    assert_close(weights(learn), by_hand([batches[:3], batches[3:]], 0.1))


def test_every_callback_hears_after_backward_for_every_batch() -> None:
    heard: list[int] = []
    watch = Callback(after_backward=lambda learn: heard.append(learn.iter))
    learn = make_learner(pieces(4, 4, 4, 4, 4), [GradientAccumulation(2), watch])
    learn.fit(1)
    assert heard == [0, 1, 2, 3, 4]


def test_a_window_left_behind_by_a_cancelled_fit_does_not_reach_the_next() -> None:
    batches = pieces(4, 6, 5, 4)
    learn = make_learner(batches, [GradientAccumulation(4)])
    before = weights(learn)
    learn.fit(1, lr=0.1, cbs=[cancel_at("after_batch", 2, CancelFit, Stage.REACT)])
    assert torch.equal(weights(learn), before)
    assert all(p.grad is None for p in learn.model.parameters())
    learn.fit(1, lr=0.1)
    assert_close(weights(learn), by_hand([batches], 0.1))


def test_a_gradient_factor_is_gone_with_the_gradients_it_was_for() -> None:
    batches = pieces(4, 6)

    def halve_then_leave(learn: Learner) -> None:
        if learn.iter == 0:
            learn.stepper.grad_factor = 0.5
            raise CancelBatch

    learn = make_learner(batches, [Callback(after_backward=halve_then_leave)])
    learn.fit(1, lr=0.1)
    assert_close(weights(learn), by_hand([batches[1:]], 0.1))


def test_an_accumulated_range_test_measures_the_large_batch() -> None:
    small = make_learner(shuffled(16), [GradientAccumulation(4)])
    large = make_learner(shuffled(64), [])
    before = weights(small)
    results = [learn.lr_find(1e-3, 1, num_it=12, show_plot=False) for learn in (small, large)]
    assert len(results[0].lrs) == 12
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=0, atol=1e-6)
    assert torch.equal(weights(small), before)


def test_a_range_test_inside_a_window_leaves_the_window_as_it_was() -> None:
    def find(learn: Learner) -> None:
        if learn.iter == 1:
            learn.lr_find(1e-3, 1, num_it=12, show_plot=False)

    batches = pieces(16, 7, 16, 3, 20, 1)
    plain = make_learner(batches, [GradientAccumulation(3)])
    tested = make_learner(batches, [GradientAccumulation(3), Callback(after_batch=find)])
    for learn in (plain, tested):
        learn.fit(1, lr=0.1)
    assert torch.equal(weights(plain), weights(tested))


def test_one_batch_an_update_changes_no_bit() -> None:
    plain, accumulated = toy_learner(), toy_learner(cbs=(GradientAccumulation(1),))
    for learn in (plain, accumulated):
        learn.fit_one_cycle(2, 0.1)
    assert torch.equal(weights(plain), weights(accumulated))


def test_validation_is_not_accumulated() -> None:
    plain, accumulated = toy_learner(), toy_learner(cbs=(GradientAccumulation(4),))
    assert plain.validate() == accumulated.validate()


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_a_number_of_batches_that_is_none_is_refused(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="n_batches"):
        GradientAccumulation(n)


# --- clipping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_the_norm_over_all_groups_is_clipped(max_norm: float) -> None:
    learn = make_learner(
        pieces(16, 16),
        [GradientClip(max_norm)],
        splitter=lambda model: [list(model[0].parameters()), list(model[2].parameters())],
    )
    norms: list[float] = []

    def measure(learn: Learner) -> None:
        grads = [p.grad.flatten() for p in learn.model.parameters()]
        norms.append(float(torch.cat(grads).norm()))

    raw, clipped = Callback(after_backward=measure), Callback(before_step=measure)
    learn.fit(1, lr=0.1, cbs=[raw, clipped])
    for before, after in zip(norms[::2], norms[1::2], strict=True):
        assert after == pytest.approx(min(before, max_norm), rel=1e-4)
    assert float(clip_of(learn).norm) == pytest.approx(norms[-2])
    assert_close(
        weights(learn), by_hand([[batch] for batch in pieces(16, 16)], 0.1, max_norm=max_norm)
    )


def test_values_are_clipped_each_for_itself() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    grads = {}

    def raw(learn: Learner) -> None:
        grads["raw"] = torch.cat([p.grad.flatten() for p in learn.model.parameters()])

    def final(learn: Learner) -> None:
        clipped = torch.cat([p.grad.flatten() for p in learn.model.parameters()])
        seen.append((grads["raw"], clipped))

    watch = Callback(after_backward=raw, before_step=final)
    learn = make_learner(pieces(16, 16), [GradientClip(max_value=0.05), watch])
    learn.fit(1, lr=0.1)
    assert all(torch.equal(clipped, before.clamp(-0.05, 0.05)) for before, clipped in seen)
    assert any((before.abs() > 0.05).any() for before, _ in seen)


def test_the_default_limit_is_a_norm_of_one() -> None:
    assert (GradientClip().max_norm, GradientClip().max_value) == (1.0, None)
    assert GradientClip(max_value=2.0).max_norm is None


@pytest.mark.parametrize(
    "limits", [{"max_norm": 1, "max_value": 1}, {"max_norm": 0}, {"max_value": -1}]
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="max_"):
        GradientClip(**limits)


# --- what the stepper and the loop owe to them ---------------------------------------------------


def test_a_torch_scheduler_made_when_the_fit_begins_sees_every_step() -> None:
    learn = toy_learner(n_batches=4, opt_func=AdamW)
    made: list[torch.optim.lr_scheduler.LRScheduler] = []

    def make(learn: Learner) -> None:
        made.append(torch.optim.lr_scheduler.OneCycleLR(learn.opt, 0.1, total_steps=4))

    def advance(learn: Learner) -> None:
        if learn.n_updates < 4:
            made[0].step()  # it would warn if it had not seen the optimizer step

    learn.fit(1, cbs=[Callback(before_fit=make, after_step=advance)])
    assert learn.groups.get("lr") == pytest.approx([0.1 / 25 / 1e4])
