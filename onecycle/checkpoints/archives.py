"""Archives of torch: hashed while they are written, looked through before they are read.

``torch.load(weights_only=True)`` runs no code, but a file made by hand could still fill the memory:
with parts that are unpacked to a thousand times their size, with a tensor of one number that is
expanded to a billion, or with a list of lists that all are the same one.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

#: Makes memory of any size out of a number; nothing that a file holds needs it.
_GREEDY = re.compile(rb"c(?:builtins|__builtin__)\nbytearray\n")
#: The parts of a state that a file of whatever size may have, if they are the same ones.
_LEAST_PARTS = 100_000


class Hashed:
    """A file that hears of all that is written to it: enough of a file for ``torch.save``.

    Args:
        file: Where it goes.
        hear: Called with the bytes before they are written, such as ``update`` of a hash.
    """

    def __init__(self, file: BinaryIO, hear: Callable[[Any], object]) -> None:
        self._file, self._hear = file, hear

    def write(self, data: Any) -> int:
        """Write, and let the bytes be heard."""
        self._hear(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Write what waits."""
        self._file.flush()


def write_archive(value: Any, file: Any) -> None:
    """Write what `read_archive` reads.

    Args:
        value: What `onecycle.checkpoints.readable.readable` returned.
        file: Has ``write`` and ``flush``.
    """
    torch.save(value, cast("IO[bytes]", file))


def read_archive(content: bytes) -> Any:
    """Read what ``torch.save`` wrote; runs no code, and takes no more memory than the file has.

    Args:
        content: The archive.

    Returns:
        What was saved, with all tensors on the CPU.

    Raises:
        ValueError: If it is no such archive, or would take more memory.
        Exception: What torch raises of a damaged archive.

    Example:
        >>> buffer = io.BytesIO()
        >>> torch.save({"weight": torch.ones(2)}, buffer)
        >>> read_archive(buffer.getvalue())
        {'weight': tensor([1., 1.])}
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = archive.infolist()
        packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
        if packed or sum(part.file_size for part in parts) > len(content):
            raise ValueError("it would be larger when it is unpacked")
        for part in parts:
            if part.filename.endswith("data.pkl") and _GREEDY.search(archive.read(part)):
                raise ValueError("it would take memory that it does not have")
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    _look_through(found, max(len(content), _LEAST_PARTS))
    return found


def _look_through(value: Any, limit: int) -> None:
    """Refuse what would be larger where it is copied than it is here."""
    waiting, n = [value], 0
    while waiting:
        part = waiting.pop()
        n += 1
        if n > limit:
            raise ValueError("its parts are in each other")
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, Tensor) and is_expanded(part):
            raise ValueError("a tensor in it is larger than what is stored of it")


def is_expanded(tensor: Tensor) -> bool:
    """Tell whether a tensor has more places than memory: see `torch.Tensor.expand`.

    Args:
        tensor: Of any kind.
    """
    if tensor.layout != torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
