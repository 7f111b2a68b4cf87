"""Processes that are killed, and started again: by hand, or by torchrun."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_faults import Run, other_number, same_number, undisturbed
from started import HELPERS, LIMIT, ROOT, Job

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def right() -> Iterator[Run]:
    run = undisturbed("bits", 2)
    yield run
    run.remove()


def test_killed_at_random_moments_and_started_again_the_bits_are_the_same(right: Run) -> None:
    assert same_number(right, 2, 2, random.Random(1)) == []


def test_another_number_of_processes_goes_on_with_the_same_samples_in_the_same_order() -> None:
    assert other_number(1, random.Random(1)) == []


def test_torchrun_starts_processes_again_of_which_one_was_killed(
    right: Run, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    command += ["-m", "process_life", str(tmp_path), "0", "bits", "6", "73"]
    path = f"{ROOT}{os.pathsep}{HELPERS}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "dead").exists()
    run = Run("bits", 2, tmp_path)
    assert [each["bits"] for each in run.ends()] == [each["bits"] for each in right.ends()]
    lives = {file.name.split("-")[1] for file in tmp_path.glob("seen-*")}
    assert lives == {"0", "1"}


def test_processes_that_do_not_end_are_killed_and_have_the_code_of_that(tmp_path: Path) -> None:
    assert Job("killed_job", 2, tmp_path).wait(1.0) == [-signal.SIGKILL] * 2
