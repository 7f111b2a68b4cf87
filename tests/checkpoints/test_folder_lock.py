"""One process at a time writes to a folder."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from onecycle import Callback, Checkpoint, CheckpointError, Learner
from onecycle.checkpoints import folder_lock
from onecycle.checkpoints.folder_lock import NAME, locked
from onecycle.testing import toy_learner

HOLD = """
import sys
from pathlib import Path
from onecycle.checkpoints.folder_lock import locked
with locked([Path(sys.argv[1])]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Other:
    """Another process that holds a folder."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", HOLD, str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.holds = self.process.stdout.readline() == "held\n"

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_the_second_process_is_refused_before_it_trains_and_told_of_the_first(
    tmp_path: Path,
) -> None:
    learn = toy_learner()
    before = [p.clone() for p in learn.model.parameters()]
    with Other(tmp_path) as first:
        words = f"in use: process {first.pid} on {socket.gethostname()} writes"
        with pytest.raises(CheckpointError, match=words):
            learn.fit(1, cbs=[Checkpoint(tmp_path)])
        learn.fit(1, lr=0.0, cbs=[Checkpoint(tmp_path / "own")])
    assert all(map(torch.equal, before, learn.model.parameters()))
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.slow
def test_a_process_that_died_holds_nothing(tmp_path: Path) -> None:
    with Other(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / NAME).exists()
        with locked([tmp_path]):
            pass
    assert not (tmp_path / NAME).exists()


@pytest.mark.slow
def test_a_folder_may_be_locked_twice_by_one_process_and_is_held_to_the_end(
    tmp_path: Path,
) -> None:
    with locked([tmp_path]):
        with locked([tmp_path, tmp_path]):
            pass
        other = Other(tmp_path)
        with other:
            assert not other.holds
    other = Other(tmp_path)
    with other:
        assert other.holds


@pytest.mark.slow
def test_forked_workers_that_outlive_a_fit_do_not_hold_it(tmp_path: Path) -> None:
    loader = DataLoader(torch.ones(4, 1), 2, num_workers=1, persistent_workers=True)
    learn = Learner((loader, None), torch.nn.Linear(1, 1), torch.mean, device="cpu", seed=0)
    with learn.no_bar():
        learn.fit(1, 0.1, cbs=[Checkpoint(tmp_path)])
    assert learn.dls.train._iterator is not None
    other = Other(tmp_path)
    with other:
        assert other.holds


def test_the_folder_is_free_after_a_fit_that_failed(tmp_path: Path) -> None:
    def fail(learn: Learner) -> None:
        assert (tmp_path / NAME).exists()
        raise KeyError

    with pytest.raises(KeyError):
        toy_learner().fit(1, cbs=[Checkpoint(tmp_path), Callback(after_step=fail)])
    assert not (tmp_path / NAME).exists()


@pytest.mark.slow
def test_the_ranks_of_one_job_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Other(tmp_path):  # rank 0
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        with locked([tmp_path]):
            pass
        monkeypatch.setenv("RANK", "0")  # of another job
        with pytest.raises(CheckpointError), locked([tmp_path]):
            pass


@pytest.mark.parametrize("lacks", ["fcntl", "locks"])
def test_where_nothing_can_be_locked_the_fit_runs_and_the_log_says_so(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "onecycle")
    if lacks == "fcntl":
        monkeypatch.setattr(folder_lock, "fcntl", None)
    else:

        def refuse(*args: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(folder_lock.fcntl, "lockf", refuse)
    with locked([tmp_path]):
        pass
    assert "is not protected from another fit" in caplog.text


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with locked([tmp_path / "file" / "folder"]):
        pass
