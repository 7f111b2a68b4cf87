"""The speed profile: what it chooses for a device, and that it computes the same as without."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_learner import image_learner
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from onecycle import (
    BackendFlags,
    Callback,
    ChannelsLast,
    Learner,
    MixedPrecision,
    accuracy,
    speed_profile,
)
from onecycle.optim.stepper import ScaledStepper
from onecycle.testing import toy_learner
from onecycle.vision import digits, digits_cnn


def processor(monkeypatch: pytest.MonkeyPatch, instructions: Mapping[str, bool]) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)


def chosen(callbacks: list[Callback], device: str) -> tuple[str, bool, bool]:
    """Return what a list of callbacks does on a device: precision, channels last, flags."""
    images = torch.zeros(2, 3, 4, 4)
    learn: Any = SimpleNamespace(device=torch.device(device), xb=images)
    precision, flags = "float32", False
    for callback in callbacks:
        if isinstance(callback, MixedPrecision):
            precision = str(callback.dtype_on(learn.device)).removeprefix("torch.")
        elif isinstance(callback, ChannelsLast):
            callback.before_batch(learn)
        elif isinstance(callback, BackendFlags):
            flags = callback.forward_context(learn) is not None
    return precision, learn.xb.is_contiguous(memory_format=torch.channels_last), flags


# --- what is chosen ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("cuda", None, ("bfloat16", True, True)),
        ("cuda", "fp32", ("float32", True, True)),
        ("cuda", "fp16", ("float16", True, True)),
        ("cpu", None, ("bfloat16", True, False)),
        ("cpu", "fp32", ("float32", True, False)),
        ("cpu", "bf16", ("bfloat16", True, False)),
        ("mps", None, ("float32", False, False)),
        ("mps", "fp16", ("float16", False, False)),
        ("xpu", None, ("bfloat16", True, False)),
    ],
)
def test_each_device_has_what_its_table_says(
    device: str, precision: Any, expected: tuple[str, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, {"avx512_bf16": True})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    assert chosen(speed_profile(precision), device) == expected


def test_on_a_processor_without_bf16_the_profile_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor(monkeypatch, {})
    records = []
    for cbs in ((), speed_profile(), speed_profile("fp32"), speed_profile("bf16")):
        learn = toy_learner(cbs=(*cbs,))
        learn.fit(2)
        records.append((learn.recorder.history["train_loss"].values.tolist(), learn.validate()))
    assert records[0] == records[1] == records[2]
    assert records[0] != records[3]


def test_fp16_has_its_gradient_scaler() -> None:
    learn = toy_learner(cbs=(*speed_profile("fp16"),))
    learn.fit(1)
    assert isinstance(learn.stepper, ScaledStepper)


@pytest.mark.parametrize("precision", ["fp8", "float32", "", 16, torch.bfloat16, True])
def test_another_precision_is_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match=r"precision must be one of .*; got "):
        speed_profile(precision)


def test_each_call_gives_callbacks_of_its_own() -> None:
    first, second = speed_profile(), speed_profile()
    assert [type(callback) for callback in first] == [BackendFlags, ChannelsLast, MixedPrecision]
    assert not {id(callback) for callback in first} & {id(callback) for callback in second}


# --- compared with the plain learner -------------------------------------------------------------


def trained(cbs: list[Callback]) -> tuple[Learner, Tensor]:
    """Train for two epochs on the digits; return the learner and the losses of its updates."""
    torch.manual_seed(0)
    learn = Learner(digits(), digits_cnn(), cross_entropy, metrics=[accuracy], cbs=cbs, seed=0)
    with learn.no_bar():
        learn.fit_one_cycle(2, lr_max=0.01)
    return learn, torch.tensor(learn.recorder.history["train_loss"].values)


@pytest.mark.slow
def test_the_digits_are_told_apart_as_well_as_without_it() -> None:
    """To one point, by which plain fits differ from seed to seed (97.8 to 98.9 % in three)."""
    plain, losses = trained([])
    fast, fast_losses = trained(speed_profile("bf16"))
    found = fast.validate()["accuracy"]
    assert found == pytest.approx(plain.validate()["accuracy"], abs=0.01)
    assert found > 0.97
    assert fast_losses[0] == pytest.approx(losses[0], rel=2**-7)  # the same weights still
    assert not torch.equal(fast_losses, losses)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        ("fp32", 1e-5),  # sums in another order
        ("bf16", 3 * 2**-8),  # three layers; each rounds to 8 significant bits
        ("fp16", 3 * 2**-11),  # to 11
    ],
)
def test_predictions_are_those_of_the_plain_learner_to_the_precision(
    precision: Any, tolerance: float
) -> None:
    plain = image_learner()
    plain.fit(1)
    expected = plain.get_preds().preds
    fast = image_learner(cbs=speed_profile(precision))
    fast.model.load_state_dict(plain.model.state_dict())
    found = fast.get_preds().preds
    apart = (found - expected).abs().max() / expected.abs().max()
    assert apart <= tolerance
    assert (apart == 0) <= (precision == "fp32")


def test_with_the_profile_a_model_still_learns_in_place() -> None:
    """Weights stay float32, in the layout and on the objects that the optimizer knows."""
    learn = image_learner(cbs=speed_profile("bf16"))
    before = [(id(p), p.dtype, p.stride()) for p in learn.model.parameters()]
    learn.fit(1)
    assert [(id(p), p.dtype, p.stride()) for p in learn.model.parameters()] == before
    assert isinstance(learn.model[0], nn.Conv2d)
    assert learn.get_preds().preds.dtype is torch.float32
