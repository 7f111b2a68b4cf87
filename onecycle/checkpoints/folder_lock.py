"""One fit at a time writes to a folder: a lock that dies with its process."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch

from onecycle.errors import CheckpointError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("onecycle")

NAME = ".onecycle.lock"

#: What this process holds: how often, by folder. Closing any handle of a file would give its lock
#: up, so that a folder that is locked already is not opened again.
_held: dict[tuple[int, Path], int] = {}


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Keep other processes from writing to folders while a block runs.

    The lock is the system's, on a file in the folder, which names the process and is removed at
    the end. A process that dies gives it up; forked processes, as the workers of a loader, do not
    inherit it. Within one process a folder may be locked several times. The processes of one job
    (``WORLD_SIZE``, or ``torch.distributed``) share it: the first of them holds it.

    Where the system has no such locks (Windows, some network file systems) nothing is locked, and
    two processes in one folder mix their checkpoints; the log says so at level INFO. A folder that
    cannot be written to is not locked either: its checkpoints will fail, and say so.

    Args:
        folders: The folders; made where they are missing.

    Raises:
        CheckpointError: If another process holds one of them, with its id and host.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with locked([folder]):
        ...     print((folder / NAME).exists())
        True
        >>> (folder / NAME).exists()
        False
    """
    with ExitStack() as stack:
        if _rank() == 0:
            for folder in {Path(each).absolute() for each in folders}:
                stack.enter_context(_locked(folder))
        yield


def _rank() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() and os.environ.get("WORLD_SIZE", "1") != "1" else 0


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    key = (os.getpid(), folder)  # a forked process has a copy of the table, and not the locks
    handle = None if key in _held else _take(folder)
    _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        _held[key] -= 1
        if not _held[key]:
            del _held[key]
        if handle is not None:
            with suppress(OSError):
                (folder / NAME).unlink()  # before the lock is given up
            os.close(handle)


def _take(folder: Path) -> int | None:
    """Return the handle that holds the lock; ``None`` where nothing can be locked."""
    if fcntl is None:
        log.info("no file locks on this system: %s is not protected from another fit", folder)
        return None
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # what is to be written there will fail too, and say so
            return None
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                owner = os.read(handle, 200).decode(errors="replace").strip()
                os.close(handle)
                raise CheckpointError(
                    f"{folder} is in use: {owner or 'another process'} writes its checkpoints "
                    "there. Wait for its end or stop it, or give each fit a folder of its own"
                ) from None
            os.close(handle)
            log.info(
                "%s cannot be locked (%s): it is not protected from another fit", folder, error
            )
            return None
        if _is_there(handle, folder / NAME):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)  # its last owner removed it between the two steps


def _is_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False
