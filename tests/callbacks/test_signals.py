"""A fit that is asked to end saves, cleans up, and leaves with a code to run it again by."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from learner_state import trained

from onecycle import Callback, Checkpoint, Learner
from onecycle.callbacks.signals import EXIT_CODE
from onecycle.checkpoints import fit_files
from onecycle.processes import Processes
from onecycle.testing import toy_learner

LIFE = str(Path(__file__).parents[1] / "helpers" / "signalled_life.py")


def learner() -> Learner:
    return toy_learner(n_batches=6)


def asked(event: str, at: int, number: signal.Signals = signal.SIGTERM) -> Callback:
    """Make a callback that sends the process a signal at a certain event."""
    seen = []

    def send(learn: Learner) -> None:
        seen.append(0)
        if len(seen) == at:
            os.kill(os.getpid(), number)

    return Callback(**{event: send})


def whole() -> dict[str, Any]:
    learn = learner()
    learn.fit_one_cycle(2, 0.1)
    return trained(learn)


MOMENTS = [
    ("after_pred", 2, 2),
    ("after_step", 3, 3),
    ("before_validate", 1, 6),
    ("after_validate", 1, 6),
    ("before_epoch", 2, 7),
    ("after_epoch", 2, 12),
]


@pytest.mark.parametrize(("event", "at", "updates"), MOMENTS)
def test_a_signal_ends_the_fit_after_the_running_update_and_it_resumes_to_the_same_bits(
    event: str, at: int, updates: int, tmp_path: Path
) -> None:
    cleaned, learn = [], learner()
    cbs = [
        Checkpoint(tmp_path, "50 updates", on_signal=True),
        asked(event, at),
        Callback(cleanup_fit=lambda learn: cleaned.append(learn.n_updates)),
    ]
    with pytest.raises(SystemExit) as left:
        learn.fit_one_cycle(2, 0.1, cbs=cbs)
    assert left.value.code == EXIT_CODE == 75
    assert cleaned == [updates]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    newest = fit_files.read(fit_files.find(tmp_path)[0])
    assert newest["counters"]["n_updates"] == updates
    resumed = learner()
    resumed.fit_one_cycle(2, 0.1, resume=tmp_path)
    assert trained(resumed) == whole()


class Asked(Processes):
    """Two processes that are one: a signal comes to it while they tell each other of signals."""

    asked = 0

    def __init__(self) -> None:
        super().__init__(0, 2)

    def most_of(self, values: list[int]) -> list[int]:
        self.asked += 1
        if self.asked == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return values


def test_a_signal_that_comes_while_processes_ask_for_signals_is_heard_the_next_time(
    tmp_path: Path,
) -> None:
    learn = learner()
    learn.processes = Asked()
    with pytest.raises(SystemExit) as left:
        learn.fit_one_cycle(2, 0.1, cbs=[Checkpoint(tmp_path, "50 updates", on_signal=True)])
    assert left.value.code == EXIT_CODE
    assert learn.n_updates == 4  # not 3: the other process could not know of it
    assert fit_files.read(fit_files.find(tmp_path)[0])["counters"]["n_updates"] == 4


def test_in_a_validation_no_further_batch_is_run(tmp_path: Path) -> None:
    seen = []

    def look(learn: Learner) -> None:
        seen.append(learn.training)
        if len(seen) == 7:  # the first of validation
            os.kill(os.getpid(), signal.SIGTERM)

    cbs = [Checkpoint(tmp_path, on_signal=True), Callback(before_batch=look)]
    learn = learner()
    learn.dls.valid = [*learn.dls.valid] * 5
    with pytest.raises(SystemExit):
        learn.fit(2, cbs=cbs)
    assert seen == [True] * 6 + [False]
    again = learner()
    again.dls.valid = learn.dls.valid
    again.fit(2, resume=tmp_path)
    undisturbed = learner()
    undisturbed.dls.valid = learn.dls.valid
    undisturbed.fit(2)
    assert trained(again) == trained(undisturbed)


def test_other_signals_are_heard_where_asked_and_the_users_handlers_come_back(
    tmp_path: Path,
) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        checkpoint = Checkpoint(tmp_path, on_signal=signal.SIGUSR1)
        with pytest.raises(SystemExit):
            learner().fit(1, cbs=[checkpoint, asked("after_step", 1, signal.SIGUSR1)])
        assert heard == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard == [signal.SIGUSR1]
        late = asked("cleanup_fit", 1, signal.SIGUSR1)  # too late for the fit to end by it
        learner().fit(1, cbs=[Checkpoint(tmp_path / "late", on_signal=signal.SIGUSR1), late])
        assert heard == [signal.SIGUSR1] * 2
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_without_being_asked_no_handler_is_touched(tmp_path: Path) -> None:
    found = []
    look = Callback(after_step=lambda learn: found.append(signal.getsignal(signal.SIGTERM)))
    learner().fit(1, cbs=[Checkpoint(tmp_path), look])
    assert set(found) == {signal.SIG_DFL}


def test_outside_of_the_main_thread_it_is_said_and_the_fit_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learn = learner()
    checkpoint = Checkpoint(tmp_path, on_signal=True)
    thread = threading.Thread(target=lambda: learn.fit(1, cbs=[checkpoint]))
    thread.start()
    thread.join()
    assert learn.total_updates == 6
    assert "on_signal has no effect" in caplog.text


@pytest.mark.parametrize("given", [15, "SIGTERM", [15], None])
def test_what_is_no_signal_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="on_signal must be True, for SIGTERM"):
        Checkpoint(tmp_path, on_signal=given)


@pytest.mark.parametrize("event", ["before_batch", "after_loss", "before_step", "after_validate"])
def test_an_error_leaves_a_checkpoint_of_the_last_whole_update_where_asked(
    event: str, tmp_path: Path
) -> None:
    seen = []

    def fail(learn: Learner) -> None:
        seen.append(0)
        if len(seen) == (1 if event == "after_validate" else 4):
            raise KeyError("deliberate")

    for folder, on_error in ((tmp_path / "not", False), (tmp_path / "asked", True)):
        seen.clear()
        checkpoint = Checkpoint(folder, "50 updates", on_error=on_error)
        with pytest.raises(KeyError, match="deliberate"):
            learner().fit_one_cycle(2, 0.1, cbs=[checkpoint, Callback(**{event: fail})])
    assert not list((tmp_path / "not").glob("*.pt"))
    newest = fit_files.read(fit_files.find(tmp_path / "asked")[0])
    assert newest["counters"]["n_updates"] == (6 if event == "after_validate" else 3)
    resumed = learner()
    resumed.fit_one_cycle(2, 0.1, resume=tmp_path / "asked")
    assert trained(resumed) == whole()


@pytest.mark.slow
def test_real_processes_leave_with_the_code_and_end_in_the_same_bits(tmp_path: Path) -> None:
    rng = random.Random(0)

    def live(folder: Path, wait: float | None) -> tuple[int, str]:
        command = [sys.executable, LIFE, str(folder), "" if wait is None else str(wait)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout.strip()

    code, expected = live(tmp_path / "whole", None)
    assert code == 0
    for i in range(3):
        folder = tmp_path / str(i)
        code, _ = live(folder, rng.uniform(0.0, 0.3))
        assert code == EXIT_CODE
        assert live(folder, None) == (0, expected)
