"""`kept_heap`: memory that a step frees is used by the next one, not given back in between."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

#: The names that malloc.h has for these numbers.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: The largest threshold that glibc takes: blocks above it are mapped, and never kept.
LARGEST_KEPT_BLOCK = 32 * 2**20
#: How much free memory is kept during a run, and after it. The latter is what glibc's own
#: adjustment of the two thresholds ends at.
KEPT_DURING, KEPT_AFTER = 2**31 - 1, 2 * LARGEST_KEPT_BLOCK

#: With one of these set, a person has decided how the heap is kept.
_DECIDED_BY = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
)

_lock = threading.Lock()
_running: set[object] = set()


@contextmanager
def kept_heap() -> Iterator[None]:
    """Run a block in which freed memory stays with the process, up to 2 GiB.

    Each step of training on a CPU takes memory for its activations and frees it. glibc's malloc
    gives what is free at the end of its heap back to the kernel, as soon as that is more than 64
    MiB at most; the next step asks for it again, and the kernel fills every page of it with zeros
    when it is first touched. That took up to 23 % of a step of convolutional networks.

    Afterwards glibc gives memory back as before, except that it no longer adjusts its thresholds
    itself: they are left where it would stop. Nothing is done where there is no glibc, or where an
    environment variable of malloc, such as ``MALLOC_TRIM_THRESHOLD_``, says what it shall do.

    Source:
        mallopt(3), ``M_MMAP_THRESHOLD`` and ``M_TRIM_THRESHOLD``.

    Example:
        >>> with kept_heap():
        ...     pass  # steps
    """
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    run = object()
    try:
        with _lock:
            _running.add(run)
            _keep(mallopt, KEPT_DURING)
        yield
    finally:
        with _lock:
            _running.discard(run)
            if not _running:  # neither around this one nor in another thread
                _keep(mallopt, KEPT_AFTER)


def _keep(mallopt: Callable[[int, int], int], n_bytes: int) -> None:
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)
    mallopt(M_TRIM_THRESHOLD, n_bytes)


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    if sys.platform != "linux" or any(name in os.environ for name in _DECIDED_BY):
        return None
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):  # another C library than glibc
        return None
    return library.mallopt
