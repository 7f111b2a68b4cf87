"""A landing is exact, ends the fit as any other, and survives a restart."""

import logging
import os
import signal
import threading

import numpy as np
import pytest
import torch
from grouped_learner import record
from landings import KilledError, N, half_cosine, kill, lands, learner, when
from learner_state import trained
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from onecycle import (
    AttributeScheduler,
    Callback,
    CancelFit,
    CancelStep,
    Checkpoint,
    GradientAccumulation,
    LandOnInterrupt,
    Learner,
    ParamScheduler,
    Progress,
    TorchScheduler,
    linear,
)
from onecycle.callbacks.replan import Replan
from onecycle.checkpoints import fit_files
from onecycle.processes import Processes
from onecycle.testing import toy_learner


@pytest.mark.parametrize("updates", [2, 5, 15, 40])  # 40: beyond what the fit would have made
@pytest.mark.parametrize("at", [1, 6, 8])
@pytest.mark.parametrize("event", ["after_step", "after_batch"])
def test_every_rate_and_momentum_falls_from_its_present_value(event, at, updates):
    learn, whole = learner(), learner()
    whole.fit_one_cycle(4, [0.02, 0.1])
    learn.fit_one_cycle(4, [0.02, 0.1], cbs=[lands(updates, at, event)])
    assert learn.n_updates == learn.n_updates_planned == at + updates
    assert record(learn)[:at].tolist() == record(whole)[:at].tolist()
    for g in range(2):
        rate = record(whole)[at - 1, g]
        np.testing.assert_allclose(
            record(learn)[at:, g], half_cosine(rate, rate / 1e5, updates), rtol=1e-12
        )
        assert record(learn)[-1, g] == rate / 1e5
        momentum = record(whole, "momentum")[at - 1, g]
        np.testing.assert_allclose(
            record(learn, "momentum")[at:, g], half_cosine(momentum, 0.95, updates), rtol=1e-12
        )
    assert learn.stop_reason == f"landed in {updates} updates, from update {at + 1}"


@pytest.mark.parametrize("event", ["before_batch", "after_loss", "before_step"])
def test_a_landing_asked_for_before_an_update_counts_that_one(event):
    learn = learner()
    learn.fit(4, 0.1, cbs=[lands(5, 8, event)])
    assert learn.n_updates == 13
    np.testing.assert_allclose(record(learn)[8:, 0], half_cosine(0.1, 1e-6, 5), rtol=1e-12)


def test_the_fit_ends_with_all_its_events_and_its_table_is_closed(capsys):
    seen = []
    names = ("after_train", "after_validate", "after_epoch", "after_fit", "cleanup_fit")
    names += ("after_cancel_train", "after_cancel_epoch", "after_cancel_fit")
    log = Callback(**{n: lambda learn, n=n: seen.append((n, learn.n_updates)) for n in names})
    learn = learner()
    learn.cbs.append(Progress())
    learn.fit(9, 0.1, cbs=[log, lands(3, 7)])
    ends = ["after_train", "after_validate", "after_epoch"]
    assert seen == [(n, 6) for n in ends] + [(n, 10) for n in [*ends, "after_fit", "cleanup_fit"]]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 2 + 1
    assert printed[-1] == "stop_reason: landed in 3 updates, from update 8"
    assert record(learn, "valid_loss")[-1] == learn.validate()["valid_loss"]


def test_a_landing_from_the_end_of_the_last_epoch_goes_on_beyond_it():
    learn = learner()
    learn.fit(2, 0.1, cbs=[when("after_epoch", 12, lambda learn: None), epoch_end(2, 9)])
    assert (learn.n_updates, learn.total_epochs) == (21, 4)
    assert len(record(learn, "valid_loss")) == 4


def epoch_end(epoch, updates):
    def land(learn):
        if learn.epoch == epoch - 1 and not learn.is_landing:
            learn.land(updates)

    return Callback(after_epoch=land)


def test_a_landing_asked_for_in_validation():
    learn = learner()

    def land(learn):
        if learn.epoch == 0 and not learn.is_landing:
            learn.land(4)

    learn.fit(5, 0.1, cbs=[Callback(after_validate=land)])
    assert learn.n_updates == 10


def test_one_update_has_the_present_rate():
    learn = learner()
    learn.fit(4, 0.1, cbs=[lands(1, 8)])
    assert record(learn)[:, 0].tolist() == [0.1] * 9


def test_the_second_landing_replaces_the_first():
    learn = learner()
    learn.fit(9, 0.1, cbs=[lands(20, 5), lands(4, 10)])
    assert learn.n_updates == 14
    now = half_cosine(0.1, 1e-6, 20)[4]
    assert record(learn)[9, 0] == pytest.approx(now)
    np.testing.assert_allclose(record(learn)[10:, 0], half_cosine(now, now / 1e5, 4), rtol=1e-9)
    assert learn.stop_reason == "landed in 4 updates, from update 11"


def test_momentum_that_was_not_cycled_stays_as_it_is_to_the_bit():
    learn = learner()
    learn.fit(4, 0.1, cbs=[lands(7, 5)])
    assert set(record(learn, "momentum").ravel()) == {0.9}


def test_an_optimizer_without_momentum_lands_too():
    learn = toy_learner(N, opt_func=torch.optim.Adagrad)
    learn.fit(4, 0.1, cbs=[lands(7, 5)])
    assert record(learn)[-1] == 0.1 / 1e5


def test_whatever_else_is_scheduled_stays_as_it_is():
    class Box:
        p = 0.0

    box, seen = Box(), []

    def look(learn):
        seen.append((box.p, learn.groups.get("weight_decay")[0]))

    learn = toy_learner(N, wd=0.1)
    schedulers = [
        AttributeScheduler(box, "p", linear(0.0, 1.0)),
        ParamScheduler({"weight_decay": linear(0.1, 0.0)}),
    ]
    learn.fit(4, 0.1, cbs=[*schedulers, lands(9, 8), Callback(after_step=look)])
    assert len(set(seen[:8])) == 8
    assert seen[8:] == [seen[7]] * 9


def test_a_scheduler_of_torch_is_replaced_too():
    learn = learner()
    learn.fit(4, 0.1, cbs=[TorchScheduler(lambda opt: StepLR(opt, 2)), lands(5, 3)])
    now = record(learn)[2, 0]
    assert now == pytest.approx(0.01)
    np.testing.assert_allclose(record(learn)[3:, 0], half_cosine(now, now / 1e5, 5), rtol=1e-9)


@pytest.mark.parametrize("event", ["after_step", "after_batch", "before_batch"])
def test_updates_are_counted_under_accumulation(event):
    learn = learner()
    learn.fit(5, 0.1, cbs=[GradientAccumulation(4), lands(5, 3, event)])  # 2 updates an epoch
    assert learn.n_updates == 8
    np.testing.assert_allclose(record(learn)[3:, 0], half_cosine(0.1, 1e-6, 5), rtol=1e-12)


@pytest.mark.parametrize("event", ["after_backward", "after_batch", "before_batch"])
@pytest.mark.parametrize("waiting", [1, 2])
def test_a_window_that_is_open_is_the_first_update_of_the_landing(event, waiting):
    def land(learn):
        if (learn.n_updates, learn.batches_in_window) == (2, waiting) and not learn.is_landing:
            learn.land(3)

    learn = toy_learner(20)
    asks = Callback(**{event: land})
    asks.during = "train"
    learn.fit(5, 0.1, cbs=[GradientAccumulation(3), asks])
    assert learn.n_updates == learn.n_updates_planned == 5
    np.testing.assert_allclose(record(learn)[2:], half_cosine(0.1, 1e-6, 3), rtol=1e-12)


def test_skipped_updates_count_as_in_any_fit():
    def skip(learn):
        if learn.n_updates in (3, 9) and learn.n_skipped < learn.n_updates // 3:
            raise CancelStep

    learn = learner()
    learn.fit(9, 0.1, cbs=[lands(6, 7), Callback(before_step=skip)])
    assert (learn.n_updates, learn.n_skipped) == (11, 3)  # one before, two of the landing's six


def test_a_fit_limited_by_updates_lands_beyond_its_limit():
    learn = learner()
    learn.fit(None, 0.1, max_updates=8, cbs=[lands(9, 8)])
    assert learn.n_updates == 17


def test_a_cancel_at_the_last_update_has_the_last_word():
    def cancel(learn):
        if learn.n_updates == 10:
            raise CancelFit("the loss is NaN")

    learn = learner()
    learn.fit(9, 0.1, cbs=[lands(3, 7), Callback(after_train=cancel)])
    assert learn.stop_reason == "the loss is NaN"


def test_the_next_fit_is_none_that_landed():
    learn, other = learner(), learner()
    learn.fit(4, 0.1, cbs=[lands(3, 5)])
    assert not learn.is_landing
    learn.fit(2, 0.05)
    assert (learn.n_updates, learn.n_epoch, learn.stop_reason) == (12, 2, None)
    other.fit(2, 0.05)
    assert record(learn)[8:].tolist() == record(other).tolist()


@pytest.mark.parametrize("every", ["1 update", "3 updates", "1 epoch"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_killed_while_landing_and_resumed_it_ends_in_the_same_bits(every, accumulate, tmp_path):
    """A fresh callback does not ask for the landing again: the checkpoint knows it."""

    def fit(learn, *cbs, resume=None):
        cbs = [GradientAccumulation(accumulate), *cbs]
        learn.fit_one_cycle(9, [0.02, 0.1], cbs=cbs, resume=resume)

    at = 7 if accumulate == 1 else 3
    whole = learner()
    fit(whole, lands(15, at))
    for kill_at in range(at + 1, at + 15, 4):
        folder = tmp_path / str(kill_at)
        saving = Checkpoint(folder, every, keep=9)
        with pytest.raises(KilledError):
            fit(learner(), lands(15, at), saving, when("after_loss", kill_at, kill))
        learn = learner()
        # After a checkpoint from before the landing, whoever asked for it asks again.
        fit(learn, *([] if landed(folder) else [lands(15, at)]), resume=folder)
        assert trained(learn) == trained(whole)
        assert (learn.n_updates, learn.stop_reason) == (whole.n_updates, whole.stop_reason)


def test_without_the_plan_of_its_checkpoint_a_resumed_landing_differs(tmp_path, monkeypatch):
    """The comparison above can fail."""
    whole, learn = learner(), learner()
    whole.fit_one_cycle(9, 0.1, cbs=[lands(15, 7), Checkpoint(tmp_path, "10 updates")])
    monkeypatch.setattr(Replan, "join", lambda self, learn: None)
    learn.fit_one_cycle(9, 0.1, resume=tmp_path)
    assert learn.n_updates == whole.n_updates
    assert trained(learn)["lr"] != trained(whole)["lr"]


def landed(folder):
    found = fit_files.read_newest(folder)
    return found is not None and any(name == "Replan" for name, _ in found[1]["callbacks"])


def test_after_the_end_of_a_landing_a_resumed_fit_ends_at_once(tmp_path):
    learn, again = learner(), learner()
    learn.fit(9, 0.1, cbs=[lands(4, 7), Checkpoint(tmp_path)])
    again.fit(9, 0.1, resume=tmp_path)
    assert trained(again) == trained(learn)
    assert again.stop_reason == learn.stop_reason == "landed in 4 updates, from update 8"


# Ctrl-C


def press(learn):
    signal.raise_signal(signal.SIGINT)


def test_the_first_ctrl_c_lands_and_says_so_in_one_line(caplog):
    before = signal.getsignal(signal.SIGINT)
    learn = learner()
    learn.fit(9, 0.1, cbs=[LandOnInterrupt(4), when("after_loss", 7, press)])
    assert learn.n_updates == 12  # that of the batch in which it was pressed, and four
    assert learn.stop_reason == "Ctrl-C; landed in 4 updates, from update 9"
    assert caplog.messages == ["Ctrl-C: landing in 4 updates; a second one interrupts"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def default_ctrl_c():
    """Let Ctrl-C interrupt also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_second_ctrl_c_interrupts(default_ctrl_c):
    learn = learner()
    presses = [when("after_loss", 7, press), when("after_loss", 9, press)]
    with pytest.raises(KeyboardInterrupt):
        learn.fit(9, 0.1, cbs=[LandOnInterrupt(4), *presses])
    assert learn.n_updates == 9
    assert signal.getsignal(signal.SIGINT) is default_ctrl_c


def test_pressed_in_validation_it_lands_in_the_next_epoch():
    pressed = []

    def press_once(learn):
        if not learn.training and not pressed:
            pressed.append(1)
            press(learn)

    learn = learner()
    learn.fit(9, 0.1, cbs=[LandOnInterrupt(4), Callback(after_pred=press_once)])
    assert learn.n_updates == N + 4


class PressedWhileAsked(Processes):
    """Two processes that are one: Ctrl-C comes while they ask each other for it, and again."""

    asked = 0

    def any(self, flag):
        self.asked += 1
        if self.asked == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return flag or self.asked == 5  # the other process was a little late

    def sums(self, values):
        return values

    def gather(self, value):
        return [value, value]


def test_pressed_while_processes_ask_each_other_it_lands_once_at_the_next_batch():
    learn = learner()
    learn.processes = PressedWhileAsked(0, 2)
    learn.fit(9, 0.1, cbs=[LandOnInterrupt(4)])
    assert learn.n_updates == 3 + 4


def test_what_ctrl_c_means_is_put_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KilledError):
        learner().fit(1, cbs=[LandOnInterrupt(4), when("after_loss", 2, kill)])
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_the_fit_runs_and_nothing_is_installed(caplog):
    learn, seen = learner(), []
    look = Callback(after_step=lambda learn: seen.append(signal.getsignal(signal.SIGINT)))
    thread = threading.Thread(target=lambda: learn.fit(1, cbs=[LandOnInterrupt(4), look]))
    thread.start()
    thread.join()
    assert set(seen) == {signal.getsignal(signal.SIGINT)}
    assert learn.n_updates == N
    assert caplog.messages == [
        "LandOnInterrupt: Ctrl-C is heard in the main thread only, and not here"
    ]


def test_a_loaders_workers_outlive_ctrl_c(caplog):
    """A terminal sends Ctrl-C to all processes of a program, not to the first one alone."""
    from multiprocessing import active_children

    def press_for_all(learn):
        workers = active_children()
        assert len(workers) == 1
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
        press(learn)

    caplog.set_level(logging.WARNING)
    data = TensorDataset(torch.randn(48, 4), torch.randn(48, 1))
    loader = DataLoader(data, 8, num_workers=1, multiprocessing_context="fork")
    learn = Learner((loader, None), torch.nn.Linear(4, 1), torch.nn.functional.mse_loss)
    with learn.no_bar():
        learn.fit(9, 0.1, cbs=[LandOnInterrupt(4), when("after_step", 3, press_for_all)])
    assert learn.n_updates == 7
    assert caplog.messages == ["Ctrl-C: landing in 4 updates; a second one interrupts"]
