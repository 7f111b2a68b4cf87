"""The time decides once how long a fit is; the clock is a stand-in."""

import numpy as np
import pytest
from learner_state import trained
from torch.optim.lr_scheduler import StepLR

from onecycle import Callback, Checkpoint, Stage, TorchScheduler, Validate, one_cycle
from onecycle.callbacks import max_time
from onecycle.checkpoints import fit_files
from onecycle.testing import toy_learner


class Clock(Callback):
    """Goes on with each batch: one second in training, half of one in validation."""

    stage = Stage.PREPARE

    def __init__(self, train=1.0, valid=0.5):
        self.now, self.train, self.valid = 0.0, train, valid

    def before_batch(self, learn):
        self.now += self.train if learn.training else self.valid


@pytest.fixture
def start(monkeypatch):
    """Return what starts a clock, and gives a learner that it is for."""

    def make(n_batches=8, **seconds):
        clock = Clock(**seconds)
        monkeypatch.setattr(max_time.time, "monotonic", lambda: clock.now)
        return toy_learner(n_batches=n_batches, cbs=(clock,), check=False), clock

    return make


def test_the_updates_fit_into_the_time_with_their_validations_and_the_schedule_runs_over_them(
    start,
):
    learn, clock = start()
    learn.fit_one_cycle(None, 0.1, max_time="100s")
    # At update 9 there are 13 s used. 98 - 13 s less 4 s for the last validation are for updates
    # of 1 s, with 4 s of validation for each 8 of them: 54 more.
    history = learn.recorder.history
    assert learn.n_updates == len(history["lr"]) == 63
    assert clock.now == 63 + 8 * 4
    assert history["valid_loss"].updates.tolist() == [8, 16, 24, 32, 40, 48, 56, 63]
    expected = one_cycle(0.1)(np.arange(63) / 62)
    assert history["lr"].values[9:].tolist() == expected[9:].tolist()
    assert history["lr"].values[:9] == pytest.approx(0.1 / 25)
    assert history["lr"].values[-1] == 0.1 / 1e5
    assert learn.stop_reason is None


def test_what_has_not_been_seen_yet_is_tried_validation_and_checkpoint(
    start, tmp_path, monkeypatch
):
    learn, clock = start(n_batches=40)
    write = fit_files.write

    def slow_write(path, parts):
        clock.now += 2
        write(path, parts)

    monkeypatch.setattr(fit_files, "write", slow_write)
    learn.fit(3, max_time="100 seconds", cbs=[Checkpoint(tmp_path, "20 updates")])
    # At update 10 there are 10 s used, 2 for a checkpoint, 2.5 for 5 of 40 batches of validation.
    # Of the 83.5 left a last checkpoint and validation take 22; the rest is for updates of
    # 1 + 2 / 20 + 20 / 40 s: 38 more.
    assert learn.n_updates == 48
    assert clock.now == 10 + 2 + 2.5 + 2 + 38 + 2 * 2 + 2 * 20
    assert learn.recorder.history["valid_loss"].updates.tolist() == [40, 48]


def test_fewer_validations_leave_time_for_more_updates(start):
    learn, clock = start()
    learn.fit(None, max_time="100s", cbs=[Validate("30 updates", batches=4)])
    assert learn.recorder.history["valid_loss"].updates.tolist() == [30, 60, learn.n_updates]
    assert 80 < learn.n_updates < clock.now < 100


def test_where_there_is_time_for_all_nothing_changes(start):
    learn, _ = start()
    other, _ = start()
    learn.fit_one_cycle(2, 0.1, max_time="1h")
    other.fit_one_cycle(2, 0.1)
    assert learn.n_updates == 16
    assert trained(learn) == trained(other)


def test_the_schedule_until_then_is_that_of_the_epochs(start):
    learn, _ = start()
    learn.fit_one_cycle(100, 0.1, max_time="100s")
    lrs = learn.recorder.history["lr"].values
    assert lrs[:9].tolist() == one_cycle(0.1)(np.arange(9) / 799).tolist()
    assert lrs[9:].tolist() == one_cycle(0.1)(np.arange(9, 63) / 62).tolist()


def test_a_time_that_is_over_at_once_ends_the_fit_after_one_update(start, caplog):
    learn, _ = start()
    learn.fit(5, max_time="0.5s")
    assert learn.n_updates == len(learn.recorder.history["valid_loss"]) == 1
    assert "the fit took" in caplog.text


def test_a_machine_that_becomes_slow_is_said_at_the_end(start, caplog):
    learn, clock = start()

    def slow_down(learn):
        clock.train = 3.0 if learn.n_updates > 20 else 1.0

    learn.fit(None, max_time="100s", cbs=[Callback(after_step=slow_down)])
    assert learn.n_updates == 63
    assert f"the fit took {clock.now:.4g} s, and was to take 100 s" in caplog.text


@pytest.mark.slow
def test_a_resumed_fit_has_the_length_that_was_decided_whatever_the_clock_says(start, tmp_path):
    learn, _ = start()
    learn.fit_one_cycle(None, 0.1, max_time="30s", cbs=[Checkpoint(tmp_path, "1 update", keep=99)])
    assert 12 < learn.n_updates < 30
    decided = 0
    for file in fit_files.find(tmp_path):
        state = fit_files.read(file)
        is_decided = state["counters"]["max_updates"] == learn.n_updates
        decided += is_decided
        again, _ = start(train=50.0) if is_decided else start()
        again.fit_one_cycle(None, 0.1, max_time="30s", resume=file)
        assert again.n_updates == learn.n_updates  # undecided, the time before counts
        if is_decided:
            assert trained(again) == trained(learn), file.name
    assert 0 < decided < len(fit_files.find(tmp_path))


def test_another_time_is_another_fit(start, tmp_path):
    learn, _ = start()
    learn.fit(2, max_time="30s", cbs=[Checkpoint(tmp_path, "1 epoch")])
    with pytest.raises(ValueError, match=r"seconds of MaxTime was 30.0 and is 60.0"):
        learn.fit(2, max_time="60s", resume=tmp_path)


def test_a_scheduler_with_a_length_of_its_own_is_refused(start):
    learn, _ = start()
    with pytest.raises(ValueError, match="max_time= cannot shorten a fit with TorchScheduler"):
        learn.fit(2, max_time="30s", cbs=[TorchScheduler(lambda opt: StepLR(opt, 2))])
    assert learn.total_updates == 0


@pytest.mark.parametrize(
    "given", ["", "3", "h", "3 weeks", "-1h", "0s", "1h nonsense", 5, "1.5.2h"]
)
def test_what_is_no_duration_is_refused(given):
    with pytest.raises(ValueError, match="max_time must be a duration like '3h'"):
        toy_learner().fit(2, max_time=given)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("3h", 10800),
        ("90 minutes", 5400),
        ("1h30m", 5400),
        ("1 h 30 min", 5400),
        ("2 days", 172800),
    ],
)
def test_durations_are_read(given, seconds):
    learn, seen = toy_learner(), []
    look = Callback(before_fit=lambda learn: seen.extend(learn.cbs))
    learn.fit(1, max_time=given, cbs=[look])
    assert [cb.seconds for cb in seen if isinstance(cb, max_time.MaxTime)] == [seconds]
