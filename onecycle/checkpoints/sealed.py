"""Files that end with their checksum: written whole, and refused if one bit is another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from onecycle.checkpoints.archives import Hashed, read_archive, write_archive
from onecycle.errors import CheckpointError
from onecycle.files import atomic_write

#: The length of the checksum that a file ends with: of SHA-256, in hexadecimal digits.
_DIGITS = 64


def write_sealed(path: str | Path, state: dict[str, Any]) -> str:
    """Write a file that `read_sealed` reads.

    Args:
        path: Where to write; a file that is there is replaced.
        state: Tensors and plain values: see `onecycle.checkpoints.readable.readable`.

    Returns:
        The checksum of the file, by which it can be told from any other.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        sealed = _Sealed(file)
        write_archive(state, sealed)
        return sealed.close()


def checksum_of(path: str | Path) -> str:
    """Return the checksum that a file of `write_model` ends with, without reading the rest.

    Raises:
        OSError: If the file cannot be opened.
    """
    with Path(path).open("rb") as file:
        file.seek(-min(_DIGITS, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return file.read().decode(errors="replace")


def read_sealed(
    path: str | Path, check: Callable[[Any], None], *, checksum: str | None = None
) -> dict[str, Any]:
    """Read what `write_sealed` wrote; runs no code from the file.

    Args:
        path: The file.
        check: Refuses what is no such file as is meant, before its checksum is asked for.
        checksum: What `write_sealed` returned, where no other file will do.

    Raises:
        CheckpointError: If the file is none of ours, another one, or damaged.
        OSError: If the file cannot be opened.
    """
    content = Path(path).read_bytes()
    if checksum is not None and content[-_DIGITS:] != checksum.encode():
        raise CheckpointError(f"{path} is not the file that was written: it has been replaced")
    try:
        state = read_archive(content)
    except Exception as error:
        # torch's own words fill a page, and advise to switch the protection off.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, of another kind, or holds "
            "more than tensors and plain values, which could run code or fill the memory"
        ) from error
    check(state)
    body = memoryview(content)[:-_DIGITS]
    if hashlib.sha256(body).hexdigest().encode() != content[-_DIGITS:]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    found: dict[str, Any] = state
    return found


def check_format(path: str | Path, state: Any, known: int, writer: str) -> None:
    """Refuse what was not written by this version.

    Args:
        path: The file, for messages.
        state: What was read.
        known: The version that can be read.
        writer: What writes such files.
    """
    version = state.get("format") if isinstance(state, dict) else None
    if type(version) is not int:
        raise CheckpointError(f"{path} was not written by {writer}")
    if version != known:
        advice = "update it" if version > known else "load it with an earlier one"
        raise CheckpointError(f"{path} has format {version}; this onecycle reads {known}: {advice}")


class _Sealed:
    """A file with a checksum in the comment of a zip archive, which torch and others pass over.

    torch does not look at the checksums that an archive has for its parts: it would load a tensor
    with a flipped bit.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._digest, self._last = hashlib.sha256(), b""
        self._file = Hashed(file, self._digest.update)

    def write(self, data: Any) -> int:
        """Write all but the last two bytes: the length of the comment, which comes last."""
        n = len(data)
        if n < 2:
            data = self._last + bytes(data)
        else:
            self._file.write(self._last)
        self._file.write(data[:-2])
        self._last = bytes(data[-2:])
        return n

    def flush(self) -> None:
        """Do nothing: the file is synced when it is whole."""

    def close(self) -> str:
        """Write the length of the comment, and the comment, which is returned."""
        self._file.write(_DIGITS.to_bytes(2, "little"))
        checksum = self._digest.hexdigest()
        self._file.write(checksum.encode())
        return checksum
