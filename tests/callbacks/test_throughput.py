import pytest

from onecycle import Callback, CancelBatch, Throughput
from onecycle.callbacks import throughput
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
