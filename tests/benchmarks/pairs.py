"""Take turns: how every benchmark here measures, and how its rows are printed.

Two sides do the same work, A, B, A, B, ...: a machine that slows down slows both. The ratio is
taken pair by pair and given as its median and quartiles. By default the clock is the CPU time of
the process, which other programs on the machine hardly change; `--wall` takes the time that a
person waits. The two agree on a quiet machine, where torch has one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


class Clock:
    """The seconds of this run: of CPU time, or with ``wall`` of the clock on the wall."""

    def __init__(self) -> None:
        self.wall = False

    def __call__(self) -> float:
        """Return the seconds since some beginning."""
        return time.perf_counter() if self.wall else time.process_time()


#: What every benchmark reads; `arguments` sets it.
clock = Clock()


@dataclass(frozen=True)
class Row:
    """A line of a table: two sides that do the same work.

    Attributes:
        name: What is measured.
        ours: Does the work once and returns its seconds, by `clock`.
        against: The same for the other side.
        target: The ratio that is aimed at, if there is one.
        warm_up: Whether each side runs once before it is measured.
    """

    name: str
    ours: Callable[[], float]
    against: Callable[[], float]
    target: float | None = None
    warm_up: bool = True


def arguments(description: str | None, *, pairs: int) -> argparse.Namespace:
    """Read the command line, and give torch one thread.

    Args:
        description: The docstring of the benchmark.
        pairs: The pairs of a row, unless the command line says otherwise.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=pairs, help="pairs of a row (%(default)s)")
    parser.add_argument("--wall", action="store_true", help="measure wall time, not CPU time")
    parser.add_argument("--only", default="", help="only the rows whose name has this in it")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    options = parser.parse_args()
    clock.wall = options.wall
    torch.set_num_threads(options.threads)
    return options


def compare(rows: Iterable[Row], options: argparse.Namespace) -> None:
    """Measure the rows one after the other, and print each when it is done.

    Args:
        rows: The rows.
        options: What `arguments` returned.
    """
    kind = "wall" if options.wall else "CPU"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    threads = f"{torch.get_num_threads()} thread(s)"
    print(f"torch {torch.__version__}, {threads}, {kind} time, {options.pairs} pairs{load}")
    print(f"{'':<46}{'ours':>10}{'against':>10}{'ratio':>8}  {'quartiles':<16}{'target':>8}")
    for row in rows:
        if options.only not in row.name:
            continue
        if row.warm_up:
            row.ours(), row.against()
        timed = [(row.ours(), row.against()) for _ in range(options.pairs)]
        low, middle, high = quartiles([a / b for a, b in timed])
        ours, against = (readable(statistics.median(side)) for side in zip(*timed, strict=True))
        target = "" if row.target is None else f"{row.target:.2f}"
        spread = f"{low:.3f} to {high:.3f}"
        print(
            f"{row.name:<46}{ours:>10}{against:>10}{middle:>8.3f}  {spread:<16}{target:>8}",
            flush=True,
        )


def in_own_process(side: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function of a module in a new process, with the threads and the clock of this one.

    For what changes a process as a whole. Importing is no part of what the function measures.
    """
    settings = torch.get_num_threads(), clock.wall
    with ProcessPoolExecutor(1, get_context("spawn"), _set_up, settings) as pool:
        return pool.submit(side, *args, **kwargs).result()


def _set_up(threads: int, wall: bool) -> None:
    torch.set_num_threads(threads)
    clock.wall = wall


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the quartiles, the median in the middle; of one value, that value three times."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def readable(seconds: float) -> str:
    """Write seconds in the unit that fits them."""
    factor, unit = next(pair for pair in _UNITS if seconds >= pair[0] or pair is _UNITS[-1])
    return f"{seconds / factor:.4g} {unit}"
