"""Several processes of one job: who this one is, what all know, and one decision for all.

A launcher such as ``torchrun`` starts the same script once for each device, and tells each process
by its environment who it is. `join` lets it take part in the job's group; what the processes tell
each other then goes through `Processes`. In one process there is none, and nothing here runs.

Two groups of torch are made beside the one that a person may have made, so that whatever goes wrong
can be ended by leaving them: one for tensors on the device, one on the CPU for plain values.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

log = logging.getLogger("onecycle")

#: What a launcher sets for each process.
_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: So long a process whose group broke waits for word of why, in seconds.
_WORD = 5.0
#: So long a first process that fails stays for the others, since it may keep the words, in seconds.
_READ = 1.0

_T = TypeVar("_T")


class _Groups:
    """The groups of this process: made by all at once, and made anew after they broke."""

    def __init__(self) -> None:
        self.device: Any = None
        self.host: Any = None
        self.made = 0  # how often: the same number in every process
        self.rank = 0  # where it has joined
        self.saves: dict[str, int] = {}  # how often each was written

    def ready(self) -> _Groups:
        """Make the groups where there are none; every process of the job must do so."""
        if self.device is None:
            self.made += 1
            limit = _timeout()
            self.device = dist.new_group(timeout=limit)
            self.host = dist.new_group(timeout=limit, backend="gloo")
        return self

    def leave(self) -> None:
        """Let go of the groups, so that whoever waits in one of them is told."""
        groups, self.device, self.host = (self.device, self.host), None, None
        for group in groups:
            if group is not None:
                with suppress(Exception):  # it may have broken in any way
                    dist.destroy_process_group(group)


_groups = _Groups()


def _timeout() -> timedelta | None:
    """Return how long the person's group waits, where that can be seen."""
    with suppress(Exception):
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))  # type: ignore[union-attr]
        found: timedelta = backend.options._timeout
        return found
    return None


def rank() -> int:
    """Return which process of its job this is, from 0; 0 where there is one alone.

    Example:
        >>> rank()
        0
    """
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_rank())
    if not is_launched():
        return 0
    return int(os.environ["RANK"])


def is_follower() -> bool:
    """Tell whether this process trains with others and is not the first of them.

    The first one writes, draws and prints for all.

    Example:
        >>> is_follower()
        False
    """
    return _groups.rank > 0


def is_launched() -> bool:
    """Tell whether a launcher started this process as one of several.

    Example:
        >>> is_launched()
        False
    """
    return _world_size() > 1 and all(os.environ.get(name) for name in _NAMES)


def _world_size() -> int:
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def n_processes() -> int:
    """Return how many processes the job has, whether or not this one takes part in their group.

    Example:
        >>> n_processes()
        1
    """
    if dist.is_available() and dist.is_initialized():
        return int(dist.get_world_size())
    return _world_size()


def local_device() -> torch.device | None:
    """Return the accelerator that is this process's own, by LOCAL_RANK; ``None`` without one.

    Example:
        >>> local_device() is None or local_device().type != "cpu"
        True
    """
    if not torch.cuda.is_available():
        return None
    place = int(os.environ.get("LOCAL_RANK", rank())) % torch.cuda.device_count()
    return torch.device("cuda", place)


def join() -> Processes | None:
    """Join the group of the job, or use the one that is there; ``None`` for a single process.

    It is gloo on the CPU and NCCL on CUDA. A group that is made here is left when the process
    ends; one that the person made is used and left as it is.

    Example:
        >>> join() is None
        True
    """
    if not dist.is_available() or n_processes() == 1:
        return None
    if not dist.is_initialized():
        if not is_launched():
            return None
        if (device := local_device()) is not None:
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device is not None else "gloo"
        dist.init_process_group(backend, **_of_this_attempt())
        atexit.register(_end)
    _groups.ready()
    found = Processes(int(dist.get_rank()), int(dist.get_world_size()))
    _groups.rank = found.rank
    if found.rank and not any(isinstance(each, _Quiet) for each in log.filters):
        log.addFilter(_Quiet(found.rank))
    return found


def _of_this_attempt() -> dict[str, Any]:
    """Keep processes that ``torchrun`` has started again from the addresses of those before them.

    Its agent keeps one store for all attempts, in which torch looks for the others by the same
    keys each time, and may wait for one that is gone. On one machine all know which attempt it is.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    is_alone = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    if attempt is None or not is_alone:
        return {}
    torchs: Any = dist  # which has these two in its documentation, and not in its stubs
    store, number, world = next(torchs.rendezvous("env://"))
    store = torchs.PrefixStore(f"onecycle/attempt/{attempt}", store)
    return {"store": store, "rank": number, "world_size": world}


def _end() -> None:
    _groups.leave()
    if dist.is_initialized():
        with suppress(Exception):
            dist.destroy_process_group()


class _Quiet(logging.Filter):
    """Lets warnings and errors of a process other than the first be heard, with its rank."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return False
        record.msg = f"[process {self._number}] {record.getMessage()}"
        record.args = ()
        return True


class Processes:
    """The processes of a job, as one of them sees them.

    Every process must make the same calls in the same order; all get the same answer.

    Attributes:
        rank: Which one this is, from 0.
        world: How many there are.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, draws and prints."""
        return self.rank == 0

    @property
    def device_group(self) -> Any:
        """The group for tensors on the device, as torch's own wrappers take it."""
        return _groups.ready().device

    @property
    def generation(self) -> int:
        """How often the groups have been made; 0 where they are broken."""
        return 0 if _groups.device is None else _groups.made

    def ready(self) -> None:
        """Make the groups anew where they broke."""
        _groups.ready()

    def add_up(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over the processes, in place, and return it; no host waits on CUDA."""
        dist.all_reduce(tensor, group=self.device_group)
        return tensor

    def spread(self, tensor: Tensor) -> Tensor:
        """Put the first process's tensor in place of each one's, in place, and return it."""
        dist.broadcast(tensor, 0, group=self.device_group)
        return tensor

    def sums(self, values: list[float]) -> list[float]:
        """Return the sums over the processes, in double precision."""
        return self._host(values, dist.ReduceOp.SUM)

    def most(self, value: int) -> int:
        """Return the largest of the processes' numbers."""
        return self.most_of([value])[0]

    def most_of(self, values: list[int]) -> list[int]:
        """Return the largest of the processes' numbers at each place."""
        return [int(most) for most in self._host([*values], dist.ReduceOp.MAX)]

    def any(self, flag: bool) -> bool:
        """Tell whether one of the processes says so."""
        return bool(self.most(int(flag)))

    def is_alike(self, value: int) -> bool:
        """Tell whether the processes have one number, below 2**53."""
        most, least = self._host([value, -value], dist.ReduceOp.MAX)
        return most == -least

    def _host(self, values: list[float], op: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op, group=_groups.ready().host)
        found: list[float] = tensor.tolist()
        return found

    def gather(self, value: _T) -> list[_T]:
        """Return what each process gives, by rank: anything that can be pickled."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=_groups.ready().host)
        return found

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Return what the first process makes; an error that it raises is raised by all."""
        made: list[Any] = [None, None]
        if self.is_first:
            try:
                made[0] = make()
            except Exception as error:
                made[1] = error
        dist.broadcast_object_list(made, 0, group=_groups.ready().host)
        if made[1] is not None:
            raise made[1]
        found: _T = made[0]
        return found

    # Where something is written -------------------------------------------------------------

    def after_first(self, write: Callable[[], _T], what: str) -> _T | None:
        """Let the first process write; the others wait until it is there, if it comes to that.

        No collective: a script may let the first process alone call it.

        Args:
            write: Writes it.
            what: The same in every process: what the first one wrote alone, at another update
                say, is not taken for what the others wait for.

        Returns:
            What ``write`` returns, in the first process.
        """
        _groups.saves[what] = number = _groups.saves.get(what, 0) + 1
        key = f"onecycle/written/{number}/{what}"
        if self.is_first:
            try:
                return write()
            finally:
                _store().set(key, b"1")
        _store().wait([key], timedelta(minutes=30))
        return None

    # When one fails -------------------------------------------------------------------------

    def fail(self, error: BaseException) -> str | None:
        """Tell the others of an error, and leave the groups in which they may wait.

        Args:
            error: What ended the work of this process.

        Returns:
            Which process failed first and of what, if it was another one; else ``None``.
        """
        key, word = f"onecycle/failed/{_groups.made}", None
        if _is_of_group(error):
            word = _word(key, self.rank)
        else:
            with suppress(Exception):  # the one that keeps the words may be gone
                text = f"{self.rank}:{type(error).__name__}: {error}"
                _store().compare_set(key, "", text)
        _groups.leave()
        with suppress(Exception):
            known = [f"{key}/known/{other}" for other in range(self.world)]
            _store().set(known[self.rank], b"1")
            if self.is_first and word is None:
                _wait_for(known)
        return word


def _is_of_group(error: BaseException) -> bool:
    """Tell whether an error is what torch says where the other end of a group is gone."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        part in text for part in ("gloo", "Connection closed by peer", "NCCL", "TCPStore")
    )


def _wait_for(keys: list[str]) -> None:
    """Wait until all are there, but not for long: a process may have been killed."""
    until = time.monotonic() + _READ
    while not _store().check(keys) and time.monotonic() < until:
        time.sleep(0.01)


def _word(key: str, own: int) -> str:
    """Say which process failed, and of what."""
    until = time.monotonic() + _WORD
    with suppress(Exception):
        while time.monotonic() < until:
            if _store().check([key]):
                number, _, text = _store().get(key).decode().partition(":")
                return f"process {number} failed, and the others end with it: {text}"
            time.sleep(0.05)
    return (
        f"another process of this job has ended or does not answer, and process {own} ends with "
        "it: its own output may say why; it may have been killed"
    )


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
