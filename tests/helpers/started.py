"""Start the processes of a job as a launcher does, and hear what their checks found."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

HELPERS = Path(__file__).parent
ROOT = HELPERS.parent.parent
#: Seconds after which processes are taken to hang: all checks of a job are many.
LIMIT = 900.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Job:
    """Processes that run the checks of a module.

    Args:
        module: Its name, in the folder of the tests.
        world: How many processes.
        folder: Where they write.
        names: The checks, by default all.
    """

    def __init__(self, module: str, world: int, folder: Path, *names: str) -> None:
        self.folder, self.world = folder, world
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        where |= {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        paths = [str(ROOT), str(HELPERS), os.environ.get("PYTHONPATH", "")]
        where["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, "-W", "error", "-m", module, str(folder), *names]
        self.processes = []
        for rank in range(world):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with self._said(rank).open("w") as said:
                self.processes.append(
                    subprocess.Popen(
                        command, env={**os.environ, **where, **own}, stdout=said, stderr=said
                    )
                )

    def _said(self, rank: int) -> Path:
        return self.folder / f"said-{self.world}-{rank}.txt"

    def wait(self, limit: float = LIMIT) -> list[int]:
        """Return the exit codes; processes that hang are killed, and have that of the kill."""
        until = time.monotonic() + limit
        for process in self.processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return [process.returncode for process in self.processes]

    def said(self, rank: int) -> str:
        """Return what a process wrote."""
        return self._said(rank).read_text()

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to one of them."""
        self.processes[rank].send_signal(number)

    def found(self) -> list[dict[str, str]]:
        """Wait, and return by process what each check found: nothing, or an error."""
        codes = self.wait()
        files = [self.folder / f"found-{self.world}-{rank}.json" for rank in range(self.world)]
        if any(codes) or not all(file.exists() for file in files):
            raise RuntimeError(
                f"the processes ended with {codes}:\n"
                + "\n".join(self.said(rank)[-3000:] for rank in range(self.world))
            )
        return [json.loads(file.read_text()) for file in files]


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder that the processes of one run of the tests have in common."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@cache
def found_once(module: str, world: int, folder: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """Return what the checks of a job found, by process; one of those that ask starts it, once.

    Args:
        module: As for `Job`.
        world: As for `Job`.
        folder: One that all who ask have in common.
        names: The checks.
    """
    file = folder / f"{module}-{world}.json"
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            try:
                found = Job(module, world, folder, *names).found()
            except RuntimeError as error:  # each of them failed then, and none is tried again
                found = [dict.fromkeys(names, str(error))] * world
            file.write_text(json.dumps(found))
    known: list[dict[str, str]] = json.loads(file.read_text())
    return known
