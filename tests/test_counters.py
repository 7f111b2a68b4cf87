"""What a step of the loop costs, counted: it must not grow unnoticed."""

from functools import partial

import pytest
from bare_loop import OPTIMIZERS
from counters import bare, ours, per_step

from onecycle import (
    ActivationStats,
    Callback,
    GradientNorm,
    JSONLines,
    Throughput,
    UpdateRatios,
)

STEPS = 10


@pytest.mark.parametrize(("name", "bound"), [("SGD", 130), ("AdamW", 190)])
def test_a_step_takes_a_bounded_number_of_python_calls(name, bound):
    counts = per_step(partial(ours, OPTIMIZERS[name]), STEPS)
    assert counts.calls <= bound


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_takes_fewer_operators_than_the_loop_by_hand(name):
    mine, theirs = (per_step(partial(run, OPTIMIZERS[name]), STEPS) for run in (ours, bare))
    assert mine.operators < theirs.operators


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_reads_no_scalar(name):
    assert per_step(partial(ours, OPTIMIZERS[name]), STEPS).reads == 0


def test_a_callback_that_reads_the_loss_is_counted():
    reader = Callback(after_batch=lambda learn: float(learn.loss))
    assert per_step(partial(ours, OPTIMIZERS["SGD"], cbs=[reader]), STEPS).reads == 1


@pytest.mark.parametrize(
    "make",
    [GradientNorm, partial(UpdateRatios, 1), partial(ActivationStats, every=1), Throughput],
    ids=["GradientNorm", "UpdateRatios", "ActivationStats", "Throughput"],
)
def test_what_looks_inside_reads_no_scalar(make):
    assert per_step(partial(ours, OPTIMIZERS["SGD"], cbs=[make()]), STEPS).reads == 0


def test_a_tracker_reads_no_scalar_within_a_block(tmp_path):
    tracker = JSONLines(tmp_path / "run.jsonl")
    assert per_step(partial(ours, OPTIMIZERS["SGD"], cbs=[tracker]), STEPS).reads == 0
