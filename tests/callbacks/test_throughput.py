import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from onecycle import (
    Callback,
    CancelBatch,
    CancelTrain,
    Learner,
    MixedPrecision,
    TensorLoader,
    Throughput,
)
from onecycle.callbacks import throughput
from onecycle.callbacks.peaks import least_seconds, peak_of
from onecycle.testing import toy_learner


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput, "perf_counter", lambda: now[0])
    return now


def test_samples_of_the_pass_are_divided_by_its_seconds_without_validation(clock):
    def tick(learn):
        clock[0] += 0.5 if learn.training else 100

    learn = toy_learner(n_batches=5, batch_size=6)
    learn.fit(2, cbs=[Throughput(), Callback(after_pred=tick)])
    series = learn.recorder.history["samples_per_s"]
    assert series.updates.tolist() == [5, 10]
    assert series.values.tolist() == [5 * 6 / (5 * 0.5)] * 2


def test_a_cancelled_batch_does_not_count(clock):
    def cancel(learn):
        clock[0] += 1
        if learn.iter == 2:
            raise CancelBatch

    learn = toy_learner(n_batches=5, batch_size=6)
    cancels = Callback(before_batch=cancel, during="train")
    learn.fit(1, cbs=[Throughput(), cancels])
    assert learn.recorder.history["samples_per_s"].values.tolist() == [4 * 6 / 5]


# The share of the peak ----------------------------------------------------------------------


@pytest.fixture
def named(monkeypatch):
    def name(text):
        monkeypatch.setattr(throughput, "device_name", lambda device: text)

    return name


def linear_learner(*cbs):
    torch.manual_seed(0)
    x, y = torch.randn(40, 6), torch.randn(40, 3)
    loader = TensorLoader(x, y, batch_size=10)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    return Learner((loader, loader), model, F.mse_loss, device="cpu", seed=0, cbs=cbs)


def tick(clock):
    def add(learn):
        clock[0] += 0.5 * learn.training

    return Callback(after_pred=add)


# A sample: 2 operations for each weight forward, as many for its gradient, and, of all layers but
# the first, for the gradient of its input.
FLOPS = 4 * 6 * 5 + 6 * 5 * 3


@pytest.mark.parametrize(
    ("name", "cbs", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", (), 67e12),
        ("NVIDIA H100 PCIe", (), 51e12),
        ("NVIDIA A100-SXM4-80GB", (MixedPrecision("bf16"),), 312e12),
        ("Tesla V100-SXM2-16GB", (), 15.7e12),
    ],
)
def test_the_share_is_the_operations_of_a_sample_over_its_time_and_the_peak(
    name, cbs, peak, clock, named
):
    named(name)
    learn = linear_learner(Throughput(), tick(clock), *cbs)
    learn.fit(2)
    series = learn.recorder.history["peak_share"]
    assert series.updates.tolist() == [4, 8]
    assert series.values.tolist() == pytest.approx([FLOPS / (0.05 * peak)] * 2)


@pytest.mark.parametrize(
    ("name", "cbs"),
    [
        (None, ()),
        ("NVIDIA A10G", ()),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", ()),
        ("Tesla T4", (MixedPrecision("bf16"),)),
    ],
)
def test_without_a_known_peak_there_is_no_share(name, cbs, clock, named):
    named(name)
    learn = linear_learner(Throughput(), tick(clock), *cbs)
    learn.fit(1)
    assert "peak_share" not in learn.recorder.history
    assert "samples_per_s" in learn.recorder.history


def test_counting_changes_no_bit_and_ends_with_the_first_batch_whatever_becomes_of_it(named):
    named("NVIDIA H100 80GB HBM3")
    modes = []

    def look(learn):
        modes.append(len(_get_current_dispatch_mode_stack()))
        if learn.training and learn.iter == 0 and learn.epoch == 1:
            raise CancelBatch
        if learn.training and learn.iter == 0 and learn.epoch == 2:
            raise CancelTrain

    looks = Callback(after_pred=look)
    counted, plain = linear_learner(Throughput(), looks), linear_learner(looks)
    counted.fit(3)
    assert modes == [1, *[0] * 7, 1, *[0] * 7, 1, *[0] * 4]
    assert len(counted.recorder.history["peak_share"]) == 1
    plain.fit(3)
    for mine, its in zip(counted.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_convolutions_in_float32_have_the_peak_that_cudnn_may_use():
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"  # by default, unlike products
    peak, flops = peak_of("NVIDIA H100 80GB HBM3"), {"aten.convolution": 10**12, "aten.mm": 10**12}
    found = least_seconds(flops, peak, torch.float32)
    assert found == pytest.approx(1 / 494 + 1 / 67)
    assert least_seconds(flops, peak, torch.float64) is None
