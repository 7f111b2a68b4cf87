"""A batch in parts makes the update of the whole; a model that runs out of memory is a stand-in."""

from __future__ import annotations

import logging
import weakref
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import LearnerState, trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from onecycle import (
    Callback,
    CancelFit,
    Checkpoint,
    CutMix,
    GradientAccumulation,
    GradientClip,
    Learner,
    MicroBatches,
    MixedPrecision,
    MixUp,
    TensorLoader,
    token_weight,
)

X = torch.randn(28, 4, generator=torch.Generator().manual_seed(0))  # the last batch has 4
Y = X.sum(1, keepdim=True)


class Limited(nn.Module):
    """Has no memory for more samples at once than it is told, in one of the two passes."""

    def __init__(self, limit: int = 99, *, backward: bool = False, extra: Any = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), *deepcopy(extra), nn.Tanh(), nn.Linear(8, 1))
        self.limit, self.backward, self.seen = limit, backward, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(len(x))
        pred: Tensor = self.layers(x)
        if len(x) > self.limit and self.training:
            if not self.backward:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
            pred.register_hook(self._fail)
        return pred

    def _fail(self, gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def learner(model: nn.Module, *cbs: Callback, **options: Any) -> Learner:
    loader = TensorLoader(X, Y, batch_size=8, shuffle=True)
    given: dict[str, Any] = {"loss_func": mse_loss, "lr": 0.02} | options
    given = {"dls": (loader, TensorLoader(X, Y, batch_size=28)), "device": "cpu", "seed": 0} | given
    learn = Learner(model=model, **given)
    learn.cbs = [learn.recorder, *cbs]
    torch.manual_seed(1)
    return learn


def weights(learn: Learner) -> list[Tensor]:
    return [value.detach().clone() for value in learn.model.state_dict().values()]


def distance(one: Learner, other: Learner) -> float:
    pairs = zip(weights(one), weights(other), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def losses(learn: Learner) -> Tensor:
    return torch.tensor(learn.recorder.history["train_loss"].values)


@pytest.mark.parametrize("backward", [False, True])
def test_a_batch_without_memory_is_halved_until_it_fits_and_makes_the_same_updates(
    backward: bool, caplog: pytest.LogCaptureFixture
) -> None:
    whole, parts = learner(Limited()), learner(Limited(3, backward=backward), MicroBatches())
    whole.fit_one_cycle(2, 0.05)
    with caplog.at_level(logging.WARNING):
        parts.fit_one_cycle(2, 0.05)
    assert (parts.n_updates, parts.cbs[1].size) == (8, 2)
    assert parts.model.seen[:7] == [8, 4, 2, 2, 2, 2, 2]
    assert set(parts.model.seen[3:]) == {2}
    assert distance(whole, parts) < 1e-6
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    assert [record.getMessage()[:56] for record in caplog.records] == [
        "MicroBatches: out of memory with 8 samples at once; from",
        "MicroBatches: out of memory with 4 samples at once; from",
    ]


def test_without_the_callback_there_is_the_error_of_the_device() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        learner(Limited(3)).fit(1)


@pytest.mark.parametrize("extra", [(), (nn.BatchNorm1d(8), nn.Dropout(0.5))])
@pytest.mark.parametrize("others", [[], [MixedPrecision("bf16")], [GradientAccumulation(2)]])
def test_batches_that_fit_train_to_the_same_bits(extra: Any, others: list[Callback]) -> None:
    whole = learner(Limited(extra=extra), *others)
    whole.fit(2)
    watched = learner(Limited(extra=extra), *others, MicroBatches())
    watched.fit(2)
    assert trained(watched) == trained(whole)
    assert watched.cbs[-1].size is None


def test_parts_of_uneven_size_count_by_their_samples() -> None:
    whole, parts = learner(Limited()), learner(Limited(), MicroBatches(3))
    whole.fit(2)
    parts.fit(2)
    assert sorted(set(parts.model.seen)) == [2, 3]
    assert distance(whole, parts) < 1e-6


def test_parts_of_a_mean_over_valid_targets_count_by_these() -> None:
    labels = torch.randint(3, (28, 5), generator=torch.Generator().manual_seed(2))
    labels[torch.rand(labels.shape, generator=torch.Generator().manual_seed(3)) < 0.6] = -100
    labels[::3] = -100  # so that a part may have none at all

    def tokens(*cbs: Callback) -> Learner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 15), nn.Unflatten(1, (3, 5)))
        dls = TensorLoader(X, labels, batch_size=7), None
        return learner(model, *cbs, dls=dls, loss_func=cross_entropy, loss_weight=token_weight())

    whole, parts = tokens(), tokens(MicroBatches(1))
    whole.fit(2)
    parts.fit(2)
    assert distance(whole, parts) < 1e-6
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    by_samples = tokens(MicroBatches(1))
    by_samples.loss_weight = lambda pred, batch: 1  # type: ignore[method-assign]
    by_samples.fit(2)
    assert not distance(whole, by_samples) < 1e-6  # the weights matter


def test_parts_are_accumulated_and_clipped_as_whole_batches() -> None:
    def cbs() -> list[Callback]:
        return [GradientAccumulation(3), GradientClip(0.05)]

    whole, parts = learner(Limited(), *cbs()), learner(Limited(2), MicroBatches(), *cbs())
    whole.fit(2)
    parts.fit(2)
    assert parts.n_updates == whole.n_updates == 4
    assert distance(whole, parts) < 1e-6
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)


def test_a_penalty_on_weights_that_a_callback_adds_is_differentiated_once() -> None:
    def add(learn: Any) -> None:
        penalty = sum(p.square().sum() for p in learn.model.parameters())
        learn.loss_grad = learn.loss_grad * 0.5 + 0.01 * penalty

    whole, parts = (
        learner(Limited(limit), *cbs, Callback(before_backward=add))
        for limit, cbs in ((99, []), (2, [MicroBatches()]))
    )
    whole.fit(2)
    parts.fit(2)
    assert distance(whole, parts) < 1e-6


def test_a_failed_attempt_leaves_no_trace_in_buffers_and_random_numbers() -> None:
    extra = (nn.BatchNorm1d(8), nn.Dropout(0.5))
    given = learner(Limited(extra=extra), MicroBatches(4))
    given.fit(2)
    found = learner(Limited(4, backward=True, extra=extra), MicroBatches())
    found.fit(2)
    assert found.cbs[1].size == 4
    assert trained(found) == trained(given)


def test_batch_norm_is_told(caplog: pytest.LogCaptureFixture) -> None:
    learner(Limited(4, extra=[nn.BatchNorm1d(8)]), MicroBatches()).fit(1)
    assert "batch norm, which sees 4 samples at once" in caplog.text


@pytest.mark.parametrize("size", [None, 3])
def test_parts_in_fp16_are_scaled_before_they_are_differentiated(size: int | None) -> None:
    def half(*cbs: Callback) -> Learner:
        learn = learner(Limited(), MixedPrecision("fp16", init_scale=1024.0), *cbs)
        learn.fit(2)
        return learn

    whole, parts = half(), half(MicroBatches(size))
    assert distance(whole, parts) < (1e-12 if size is None else 1e-3)
    assert parts.n_skipped == whole.n_skipped


def test_gradients_that_would_vanish_in_fp16_do_not() -> None:
    def half(factor: float, *cbs: Callback) -> float:
        def small(pred: Tensor, yb: Tensor) -> Tensor:
            return (pred.half() * yb.half()).float().mean() * factor

        found = []
        look = Callback(before_step=lambda learn: found.append(learn.stepper.params[0].grad.norm()))
        mixed = MixedPrecision("fp16", init_scale=2.0**16)
        learn = learner(Limited(), mixed, *cbs, look, loss_func=small, check=False)
        learn.fit(1, steps_per_epoch=1)
        return float(found[0])

    assert half(1e-8, MicroBatches(4)) == pytest.approx(half(1e-8), rel=0.02)
    assert half(1e-8, MicroBatches(4)) > 0


def test_an_interrupted_fit_ends_in_the_same_bits(tmp_path: Path) -> None:
    def stop(learn: Any) -> None:
        if learn.n_updates == 3:
            raise CancelFit

    extra = [nn.Dropout(0.5)]
    whole = learner(Limited(3, extra=extra), MicroBatches())
    whole.fit(2)
    cut = learner(Limited(3, extra=extra), MicroBatches())
    cut.fit(2, cbs=[Checkpoint(tmp_path, every="1 update"), Callback(after_step=stop)])
    resumed = learner(Limited(3, extra=extra), MicroBatches())
    resumed.fit(2, resume=tmp_path)
    assert resumed.model.seen[0] == 2  # it goes on with the size that was found
    assert trained(resumed) == trained(whole)


def test_a_fit_that_ran_out_of_memory_goes_on_in_parts(tmp_path: Path) -> None:
    whole = learner(Limited())
    whole.fit(2)
    cut = learner(Limited())

    def fail(learn: Any) -> None:
        if learn.n_updates == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        cut.fit(2, cbs=[Checkpoint(tmp_path, every="1 update"), Callback(after_loss=fail)])
    parts = learner(Limited(), MicroBatches(2))
    parts.fit(2, resume=tmp_path)
    assert (parts.total_updates, set(parts.model.seen)) == (8, {2})
    assert distance(whole, parts) < 1e-6


def test_a_range_test_leaves_nothing_behind() -> None:
    learn = learner(Limited(4, extra=[nn.BatchNorm1d(8)]), MicroBatches())
    learn.model.seen = Forgetful()
    before = LearnerState(learn)
    assert len(learn.lr_find(num_it=12, show_plot=False).lrs) > 5
    assert before.changes(LearnerState(learn)) == []


class Forgetful(list[int]):
    """Takes what is appended, and stays empty."""

    def append(self, value: int) -> None:
        pass


def test_validation_and_prediction_are_whole() -> None:
    learn = learner(Limited(), MicroBatches(2))
    learn.fit(1)
    preds, _ = learn.get_preds()
    learn.model.eval()
    assert torch.equal(preds, learn.model(X).detach())


def test_a_prediction_may_be_read_and_not_be_differentiated() -> None:
    seen = []
    read = Callback(after_loss=lambda learn: seen.append(learn.pred.shape), during="train")
    learner(Limited(), MicroBatches(2), read).fit(1)
    assert seen[-1] == (4, 1)

    def lean(learn: Any) -> None:
        learn.loss_grad = learn.loss_grad + learn.pred.mean()

    with pytest.raises(RuntimeError, match=r"put that into compute_loss\(self, pred, batch\)"):
        learner(Limited(), MicroBatches(2), Callback(before_backward=lean)).fit(1)


def test_one_sample_that_is_too_large_is_said() -> None:
    with pytest.raises(torch.OutOfMemoryError) as raised:
        learner(Limited(0), MicroBatches()).fit(1)
    assert any("one sample is too large" in note for note in raised.value.__notes__)


def test_time_that_may_come_first_is_not_divided() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            found: Tensor = self.layer(x)[0]
            return found

    batch = torch.zeros(8, 8, 4), torch.zeros(8, 8, 4)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        learner(Recurrent(), MicroBatches(), dls=([batch], None)).fit(1)
    assert any("time first" in note for note in raised.value.__notes__)


def rescaled(learn: Any) -> None:
    learn.pred = learn.pred * 2


@pytest.mark.parametrize(
    ("cbs", "message"),
    [
        ([MicroBatches(), MixUp()], "MicroBatches and MixUp"),
        ([CutMix(), MicroBatches()], "MicroBatches and CutMix"),
        ([MicroBatches(), MicroBatches(2)], "MicroBatches and MicroBatches"),
        ([MicroBatches(4), Callback(after_pred=rescaled)], "handles after_pred"),
    ],
)
def test_what_needs_the_whole_batch_is_refused(cbs: list[Callback], message: str) -> None:
    learn = learner(Limited())
    with pytest.raises(ValueError, match=message):
        learn.fit(1, cbs=cbs)
    assert learn.total_updates == 0


def test_a_callback_that_changes_predictions_is_heard_once_and_keeps_a_batch_whole() -> None:
    change = Callback(after_pred=rescaled, during="train")
    plain = learner(Limited(), change)
    plain.fit(1)
    watched = learner(Limited(), MicroBatches(), change)
    watched.fit(1)
    assert trained(watched) == trained(plain)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        learner(Limited(3), MicroBatches(), change).fit(1)
    assert any("handles after_pred" in note for note in raised.value.__notes__)


@pytest.mark.parametrize("backward", [False, True])
def test_an_attempt_that_failed_is_let_go_of_before_the_next(backward: bool) -> None:
    alive: list[Any] = []

    class Watched(Limited):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layers[0](x)
            assert not any(each() is not None for each in alive)
            alive.append(weakref.ref(hidden))
            if len(x) > self.limit and not self.backward:
                raise torch.OutOfMemoryError("CUDA out of memory")
            pred: Tensor = self.layers[1:](hidden)
            if len(x) > self.limit:
                pred.register_hook(self._fail)
            return pred

    learn = learner(Watched(3, backward=backward), MicroBatches(), dls=([(X, Y)], None))
    learn.fit(1)
    assert learn.cbs[1].size == 2


def test_a_hook_on_a_gradient_is_refused() -> None:
    learn = learner(Limited(), MicroBatches())
    next(learn.model.parameters()).register_hook(lambda gradient: gradient * 2)
    with pytest.raises(ValueError, match="would call twice"):
        learn.fit(1)
    with pytest.raises(ValueError, match="size"):
        MicroBatches(0)
