"""Write files so that no crash leaves half of one."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

#: A temporary file names its writer: the machine, the process, and when that began.
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{12})-(\d+)-(\d+)\.[a-z0-9_]+\.tmp", re.DOTALL)
#: Whether the writer is alive cannot be asked on another machine; after so many seconds it is not.
_A_DAY = 24 * 60 * 60.0

#: When a process began that is alive, and says no more of itself.
_UNKNOWN = "0"


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, and put it in place when the block succeeds.

    The file is synced to disk, renamed over ``path``, and the folder is synced, so that at any
    moment ``path`` is either the old file or the whole new one. If the block fails, the temporary
    file is removed and ``path`` is untouched. What writers that were killed left in the folder is
    removed when the first file is written there.

    Args:
        path: The file to write; its folder is made where it is missing.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> with atomic_write(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _tidy(path.parent.absolute())
    writer = f"{_machine()}-{os.getpid()}-{_begin_of(os.getpid())}"
    handle, name = tempfile.mkstemp(
        prefix=f".{path.name[:40]}.{writer}.", suffix=".tmp", dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        # mkstemp makes private files; a written file has the mode that open() would give it.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some systems cannot sync a folder
        _sync(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of writers that are dead, and of no others.

    Those of another machine are removed when nothing was written to them for a day.

    Args:
        folder: Where they are.
    """
    with suppress(OSError):  # what cannot be removed harms nobody
        for file in folder.iterdir():
            match = _TEMPORARY.fullmatch(file.name)
            if match and _is_abandoned(file, match[1], int(match[2]), match[3]):
                file.unlink(missing_ok=True)


@lru_cache(maxsize=1024)
def _tidy(folder: Path) -> None:
    """Look once in a process for what others left: a folder may hold a great many files."""
    remove_abandoned(folder)


def _is_abandoned(file: Path, machine: str, process: int, begin: str) -> bool:
    if machine != _machine():
        return time.time() - file.stat().st_mtime > _A_DAY
    now = _begin_of(process)
    return not now or (now != begin and _UNKNOWN not in (now, begin))


@lru_cache(maxsize=1)
def _machine() -> str:
    """Name the machine, and in it the container: process ids mean nothing elsewhere."""
    try:
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        container = 0
    return hashlib.sha256(f"{socket.gethostname()} {container}".encode()).hexdigest()[:12]


def _begin_of(process: int) -> str:
    """Return when a process began, in ticks of its system; nothing if it is dead.

    Another process that was given the id of a dead one began at another time.
    """
    try:
        # What follows the name, which may hold anything: the state, and 18 fields further on.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return ""
    except OSError:  # it is someone else's
        pass
    return _UNKNOWN


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
