"""Mixed precision: what is half, what stays float32, and what a skipped update moves."""

import copy
import io
import itertools
import logging
from collections import namedtuple
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from onecycle import (
    Callback,
    CancelBatch,
    CancelEpoch,
    CancelFit,
    CancelStep,
    CancelTrain,
    GradientAccumulation,
    GradientClip,
    Learner,
    MixedPrecision,
    ParamScheduler,
    Stage,
    linear,
)
from onecycle.optim.stepper import ScaledStepper
from onecycle.testing import check_callback, toy_learner

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def fp16(init_scale: float = 2.0**8) -> MixedPrecision:
    """A scale at which the toy's gradients do not overflow."""
    return MixedPrecision("fp16", init_scale=init_scale)


def half(dtype: str) -> MixedPrecision:
    return MixedPrecision(dtype) if dtype == "bf16" else fp16()


def sgd(params: Any, lr: float) -> SGD:
    return SGD(params, lr, momentum=0.9)


def weights(learn: Learner) -> Tensor:
    return nn.utils.parameters_to_vector(learn.model.parameters()).detach().cpu()


def overflow_at(*updates: int) -> Callback:
    """Put an infinite gradient into some updates, counted with those that are skipped."""

    def overflow(learn: Learner) -> None:
        if learn.n_updates + learn.n_skipped in updates:
            next(learn.model.parameters()).grad.view(-1)[0] = torch.inf

    return Callback(after_backward=overflow)


def counter(event: str) -> tuple[Callback, list[int]]:
    heard: list[int] = []
    return Callback(**{event: lambda learn: heard.append(learn.n_updates)}), heard


# --- what is half and what is not ----------------------------------------------------------------


class Watched(nn.Linear):
    """A linear layer that notes the dtype of what it returns."""

    def __init__(self) -> None:
        super().__init__(4, 1)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        self.seen.add(out.dtype)
        return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_model_computes_in_half_and_all_others_see_float32(dtype: str, device: str) -> None:
    torch.manual_seed(0)
    seen: set[torch.dtype] = set()

    def look(learn: Learner) -> None:
        seen.update((learn.pred.dtype, learn.loss.dtype))

    def metric(pred: Tensor, yb: Tensor) -> Tensor:
        seen.add(pred.dtype)
        return (pred - yb).abs().mean()

    model = Watched()
    learn = toy_learner(cbs=(half(dtype), Callback(after_batch=look)))
    learn = Learner(
        learn.dls, model, nn.functional.mse_loss, metrics=[metric], cbs=learn.cbs, device=device
    )
    with learn.no_bar():
        learn.fit(1)
        learn.lr_find(num_it=10, show_plot=False)
    learn.validate()
    assert learn.get_preds().preds.dtype is learn.predict(torch.ones(4)).dtype is torch.float32
    assert model.seen == {HALF[dtype]}
    assert seen == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    state = [v for s in learn.opt.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert {v.dtype for v in state} == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_equals_a_bare_autocast_loop_bit_for_bit(device: str) -> None:
    learn = toy_learner(cbs=(MixedPrecision("bf16"),), opt_func=sgd, device=device)
    model = copy.deepcopy(learn.model)
    opt = SGD(model.parameters(), 0.05, momentum=0.9)
    batches: list[Any] = []
    learn.fit(2, lr=0.05, cbs=[Callback(before_backward=lambda learn: batches.append(learn.batch))])
    for x, y in batches:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(model(x), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    assert torch.equal(weights(learn), nn.utils.parameters_to_vector(model.parameters()).cpu())
    x, y = learn.dls.valid.tensors
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        expected = torch.cat([model(part.to(device)) for part in x.split(8)]).float().cpu()
    assert torch.equal(learn.get_preds().preds, expected)
    assert learn.validate()["mse"] == pytest.approx(float((expected - y).square().mean()))


@pytest.mark.parametrize("device", DEVICES)
def test_fp16_equals_a_bare_scaled_loop_bit_for_bit(device: str) -> None:
    learn = toy_learner(
        cbs=(fp16(), GradientClip(0.5)), opt_func=sgd, device=device, wd_bn_bias=True
    )
    model = copy.deepcopy(learn.model)
    opt, scaler = (
        SGD(model.parameters(), 0.05, momentum=0.9),
        torch.amp.GradScaler(device, init_scale=2.0**8),
    )
    batches: list[Any] = []
    learn.fit(2, lr=0.05, cbs=[Callback(before_backward=lambda learn: batches.append(learn.batch))])
    for x, y in batches:
        with torch.autocast(device, dtype=torch.float16):
            loss = nn.functional.mse_loss(model(x), y)
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(opt)
        scaler.update()
    assert torch.equal(weights(learn), nn.utils.parameters_to_vector(model.parameters()).cpu())


def test_half_precision_is_not_float32_with_another_name() -> None:
    plain, half = toy_learner(), toy_learner(cbs=(MixedPrecision("bf16"),))
    for learn in (plain, half):
        learn.fit(1)
    assert not torch.equal(weights(plain), weights(half))
    assert plain.validate() != half.validate()


Two = namedtuple("Two", "first second")


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Two:
        out = self.linear(x)
        return Two(out, {"again": out, "size": len(x)})


def test_a_nested_prediction_keeps_its_types() -> None:
    seen: list[Any] = []
    learn = Learner(
        toy_learner().dls,
        TwoHeads(),
        lambda pred, yb: nn.functional.mse_loss(pred.first, yb),
        cbs=[MixedPrecision("bf16"), Callback(after_loss=lambda learn: seen.append(learn.pred))],
        device="cpu",
    )
    with learn.no_bar():
        learn.fit(1)
    assert isinstance(seen[0], Two)
    assert seen[0].first.dtype is seen[0].second["again"].dtype is torch.float32
    assert isinstance(learn.get_preds().preds, Two)


@pytest.mark.parametrize(
    ("instructions", "has_library", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True}, True, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, True, torch.bfloat16),
        ({"architecture": "aarch64", "bf16": True}, True, torch.bfloat16),
        ({"neon": True, "sve_bf16": True}, True, torch.bfloat16),
        ({"avx512_f": True, "avx512_bw": True, "avx512_bf16": False}, True, torch.float32),
        ({"architecture": "x86_64"}, True, torch.float32),
        ({"bf16": True}, False, torch.float32),
    ],
)
def test_the_default_on_a_cpu_is_bf16_where_it_has_instructions_that_torch_uses(
    instructions: Any, has_library: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_library)
    assert MixedPrecision().dtype_on(torch.device("cpu")) is expected
    assert MixedPrecision("bf16").dtype_on(torch.device("cpu")) is torch.bfloat16


def test_the_default_is_float32_on_mps_which_does_not_say_what_it_has() -> None:
    device = torch.device("mps")
    assert MixedPrecision().dtype_on(device) is torch.float32
    assert MixedPrecision(torch.float16).dtype_on(device) is torch.float16


def test_a_default_of_float32_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    plain, mixed = toy_learner(), toy_learner(cbs=(MixedPrecision(),))
    for learn in (plain, mixed):
        learn.fit(1)
    assert torch.equal(weights(plain), weights(mixed))
    assert plain.validate() == mixed.validate()


def test_the_default_is_fp16_where_bf16_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    for native, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert MixedPrecision().dtype_on(torch.device("cuda", 1)) is expected
    assert asked == [torch.device("cuda", 1)] * 2


@pytest.mark.parametrize("dtype", ["fp8", torch.float32, 16])
def test_another_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype must be 'bf16' or 'fp16'"):
        MixedPrecision(dtype)


def test_fp16_refuses_weights_in_fp16_before_the_first_batch() -> None:
    learn = toy_learner(cbs=(fp16(),))
    learn.model.half()
    with pytest.raises(ValueError, match=r"float32 weights; '0.weight' is float16"):
        learn.fit(1)


# --- skipped updates -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("opt_func", [sgd, AdamW])
def test_the_schedule_waits_for_skipped_updates(
    opt_func: Any, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    learn = toy_learner(cbs=(fp16(),), opt_func=opt_func, device=device)
    cancelled, skips = counter("after_cancel_step")
    stepped, updates = counter("after_step")
    schedule = linear(0.0, 0.15)
    with caplog.at_level(logging.WARNING, "onecycle"):
        learn.fit(
            2, cbs=[ParamScheduler({"lr": schedule}), overflow_at(0, 5, 6), cancelled, stepped]
        )
    assert (learn.n_updates, learn.n_skipped, learn.n_updates_planned) == (13, 3, 16)
    assert skips == [0, 4, 4]
    assert updates == list(range(1, 14))
    expected = [float(schedule(u / 15)) for u in range(13)]
    assert learn.recorder.history["lr"].values.tolist() == expected
    assert learn.recorder.history["train_loss"].updates.tolist() == updates
    assert learn.pos == 13 / 15
    assert [record.getMessage() for record in caplog.records] == [
        "13 of 16 planned updates were made, 3 skipped: "
        f"the schedule ended at position {12 / 15:.4g}"
    ]


def test_a_skipped_update_changes_no_weight_and_halves_the_scale() -> None:
    precision = fp16()
    learn = toy_learner(n_batches=1, cbs=(precision,))
    before = weights(learn)
    learn.fit(3, cbs=[overflow_at(0, 1, 2)])
    assert torch.equal(weights(learn), before)
    assert not learn.opt.state
    assert precision.scaler.get_scale() == 2.0**5


def test_a_scale_that_is_too_large_finds_its_way_down() -> None:
    precision = fp16(2.0**40)
    learn = toy_learner(n_batches=40, cbs=(precision,), opt_func=sgd)
    learn.fit_one_cycle(1, 0.1)
    assert 15 < learn.n_skipped < 40
    assert learn.n_skipped + learn.n_updates == 40
    assert precision.scaler.get_scale() == 2.0 ** (40 - learn.n_skipped)


def test_updates_are_still_counted_as_skipped_when_the_scale_has_reached_zero() -> None:
    precision = fp16()
    learn = toy_learner(n_batches=200, cbs=(precision,))
    learn.fit(1, cbs=[overflow_at(*range(200))])
    assert precision.scaler.get_scale() == 0
    assert (learn.n_updates, learn.n_skipped) == (0, 200)


def test_a_scale_that_is_lowered_by_hand_is_no_skip() -> None:
    precision = fp16()

    def lower(learn: Learner) -> None:
        if learn.training:
            precision.scaler.update(precision.scaler.get_scale() / 2)

    learn = toy_learner(cbs=(precision, Callback(after_batch=lower)))
    learn.fit(1)
    assert (learn.n_updates, learn.n_skipped) == (8, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_a_skipped_window_counts_as_one_update(device: str) -> None:
    cbs = (fp16(), GradientAccumulation(3))
    learn = toy_learner(n_batches=8, cbs=cbs, device=device)
    schedule = linear(0.0, 1.0)
    learn.fit(2, cbs=[overflow_at(1), ParamScheduler({"lr": schedule})])
    assert (learn.n_updates, learn.n_skipped, learn.n_updates_planned) == (5, 1, 6)
    expected = [float(schedule(u / 5)) for u in range(5)]
    assert learn.recorder.history["lr"].values.tolist() == expected


# --- leaving an update that was prepared ---------------------------------------------------------


@pytest.mark.parametrize("kind", [CancelStep, CancelBatch, CancelTrain, CancelEpoch, CancelFit])
def test_the_next_update_works_after_a_cancel_in_before_step(kind: type[Exception]) -> None:
    def cancel(learn: Learner) -> None:
        if learn.epoch == 0 and learn.iter == 2:
            raise kind

    learn = toy_learner(cbs=(fp16(),))
    learn.fit(2, cbs=[Callback(before_step=cancel)])
    made = {CancelStep: 15, CancelBatch: 15, CancelTrain: 10, CancelEpoch: 10, CancelFit: 2}
    assert learn.n_updates == made[kind]
    assert learn.n_skipped == (kind is CancelStep)
    learn.fit(1)
    assert learn.n_updates == 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_next_fit_works_after_an_error_in_before_step(error: type[BaseException]) -> None:
    def fail(learn: Learner) -> None:
        raise error("deliberate")

    learn = toy_learner(cbs=(fp16(),))
    with pytest.raises(error, match="deliberate"):
        learn.fit(1, cbs=[Callback(before_step=fail)])
    learn.fit(1)
    assert (learn.n_updates, learn.n_skipped) == (8, 0)


# --- the life of the scaler ----------------------------------------------------------------------


def test_the_scaler_lives_on_from_fit_to_fit() -> None:
    precision = fp16()
    learn = toy_learner(cbs=(precision,))
    learn.fit(1, cbs=[overflow_at(0, 1)])
    scaler = precision.scaler
    learn.fit(1)
    assert precision.scaler is scaler
    assert scaler.state_dict() | {"scale": 2.0**6, "_growth_tracker": 14} == scaler.state_dict()


def test_the_state_of_the_scaler_survives_a_restart() -> None:
    first = fp16()
    toy_learner(cbs=(first,)).fit(1, cbs=[overflow_at(0)])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    early, late = fp16(), fp16()
    early.load_state_dict(state)  # before there is a scaler
    resumed: list[Any] = []

    def look(learn: Learner) -> None:
        resumed.append((early if early in learn.cbs else late).state_dict())

    toy_learner(cbs=(early,)).fit(1, cbs=[Callback(before_train=look)])
    load = Callback(before_train=lambda learn: late.load_state_dict(state))
    toy_learner(cbs=(late,)).fit(1, cbs=[load, Callback(before_train=look)])
    assert resumed == [state, state]
    assert state["scaler"]["scale"] == 2.0**7


def test_a_scaler_that_goes_on_trains_to_the_bits_of_one_that_was_never_saved() -> None:
    whole, first, second = (fp16(2.0**30) for _ in range(3))
    learn = toy_learner(cbs=(whole,))
    learn.fit(2)
    resumed = toy_learner(cbs=(first,))
    resumed.fit(1)
    second.load_state_dict(first.state_dict())
    resumed.cbs = [second if cb is first else cb for cb in resumed.cbs]
    resumed.fit(1)
    assert second.state_dict() == whole.state_dict()
    assert torch.equal(weights(learn), weights(resumed))


@pytest.mark.parametrize("fitted", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_a_range_test_leaves_the_scaler_as_it_was(device: str, fitted: bool) -> None:
    precision = fp16()
    learn = toy_learner(cbs=(precision,), device=device)
    if fitted:
        learn.fit(1, cbs=[overflow_at(0)])
    scaler, state = precision.scaler, copy.deepcopy(precision.state_dict())
    learn.lr_find(1e-3, 10, num_it=20, show_plot=False)
    assert precision.scaler is scaler
    assert precision.state_dict() == state


def test_a_range_test_between_two_updates_leaves_the_fit_as_it_was() -> None:
    def find(learn: Learner) -> None:
        if learn.training and learn.iter == 3:
            learn.lr_find(1e-3, 10, num_it=20, show_plot=False)

    runs = []
    for cbs in ([], [Callback(after_batch=find)]):
        precision = fp16(2.0**30)
        learn = toy_learner(cbs=(precision,))
        learn.fit(1, cbs=cbs)
        runs.append((precision.state_dict(), weights(learn), learn.n_skipped))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2] > 0


def test_a_fit_without_the_callback_is_plain_again() -> None:
    learn = toy_learner()
    learn.fit(1, cbs=[fp16()])
    assert isinstance(learn.stepper, ScaledStepper)
    learn.fit(1)
    assert not isinstance(learn.stepper, ScaledStepper)


# --- with the others -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_order_in_the_list_changes_no_bit(dtype: str, device: str) -> None:
    results = []
    for order in itertools.permutations(range(3)):
        cbs = (half(dtype), GradientAccumulation(3), GradientClip(0.5))
        learn = toy_learner(n_batches=8, device=device, opt_func=sgd)
        others = [overflow_at(1)] if dtype == "fp16" else []
        learn.fit_one_cycle(2, 0.1, cbs=[*(cbs[i] for i in order), *others])
        losses = learn.recorder.history["train_loss"].values
        results.append((weights(learn), losses, learn.n_updates))
    for found, losses, n_updates in results:
        assert n_updates == results[0][2] == (5 if dtype == "fp16" else 6)
        assert torch.equal(found, results[0][0])
        np.testing.assert_array_equal(losses, results[0][1])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_accumulation_in_half_trains_like_the_large_batch_to_rounding(dtype: str) -> None:
    small = toy_learner(16, 8, cbs=(half(dtype), GradientAccumulation(4)), opt_func=sgd)
    large = toy_learner(4, 32, cbs=(half(dtype),), opt_func=sgd)
    for learn in (small, large):
        learn.fit_one_cycle(3, 0.03)
    moved = (weights(large) - weights(toy_learner())).abs().max()
    apart = (weights(large) - weights(small)).abs().max()
    assert apart < 0.01 * moved


def test_gradients_are_unscaled_when_they_are_clipped_and_measured() -> None:
    runs = []
    for cbs in ((), (fp16(),)):
        clip = GradientClip(1e9)
        toy_learner(n_batches=1, cbs=(*cbs, clip)).fit(1)
        runs.append(float(clip.norm))
    assert runs[1] == pytest.approx(runs[0], rel=1e-2)


@pytest.mark.parametrize(
    "make",
    [
        MixedPrecision,
        lambda: fp16(),
        lambda: GradientAccumulation(3),
        GradientClip,
    ],
)
def test_the_contract_of_callbacks_is_kept(make: Any) -> None:
    check_callback(make)


@CUDA
def test_fp16_waits_for_the_device_once_an_update() -> None:
    learn = toy_learner(n_batches=32, cbs=(fp16(), GradientClip()), device="cuda")
    learn.dls.train = learn.dls.train.to("cuda")
    learn.fit(1)

    def begin(learn: Learner) -> None:
        torch.cuda.set_sync_debug_mode("warn")

    def end(learn: Learner) -> None:
        torch.cuda.set_sync_debug_mode("default")

    watch = Callback(before_batch=begin, after_batch=end)
    watch.stage, watch.during = Stage.SAVE, "train"
    with pytest.warns(UserWarning, match="synchronizing") as caught:
        learn.fit(1, cbs=[watch])
    # There may be one more, once in a process: that the mode is a prototype.
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    assert 0 < len(waits) <= 32
