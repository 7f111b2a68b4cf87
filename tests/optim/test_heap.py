"""Memory that a step frees is used by the next one, and given back after the run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from onecycle import Callback
from onecycle.optim import heap
from onecycle.testing import toy_learner

IS_GLIBC = hasattr(heap.ctypes.CDLL(None), "gnu_get_libc_version") if os.name == "posix" else False
needs_glibc = pytest.mark.skipif(not IS_GLIBC, reason="the C library is not glibc")

#: What a child process begins with: steps as a network makes them, and what the kernel counted.
STEPS = f"""
import resource, runpy
kept_heap = runpy.run_path({str(Path(heap.__file__))!r})["kept_heap"]

def step():
    blocks = [b"x" * (20 * 2**20) for _ in range(6)]
    while blocks:
        blocks.pop()

def faults(n=10):
    step(), step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // n

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
"""

#: The pages of a step's blocks.
PAGES = 6 * 20 * 2**20 // (os.sysconf("SC_PAGE_SIZE") if os.name == "posix" else 4096)


def child(code: str, **environment: str) -> list[int]:
    """Run code in a process of its own; return the numbers that it prints."""
    kept = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    printed = subprocess.run(
        [sys.executable, "-c", STEPS + code],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [int(word) for word in printed.split()]


@needs_glibc
def test_steps_touch_no_fresh_pages_within_the_block_and_all_of_them_outside() -> None:
    outside, within = child("print(faults())\nwith kept_heap(): print(faults())")

    assert outside > PAGES // 2
    assert within < PAGES // 100


@needs_glibc
def test_after_the_block_the_next_block_that_is_freed_takes_all_free_memory_with_it() -> None:
    before, within, after = child(
        "print(resident())\n"
        "with kept_heap():\n    step(); print(resident())\n"
        "bytes(2**20)\nprint(resident())"
    )

    assert within - before > 100 * 2**20
    assert after - before < 10 * 2**20


@needs_glibc
def test_a_block_within_another_ends_nothing() -> None:
    (within,) = child("with kept_heap():\n    with kept_heap(): pass\n    print(faults())")

    assert within < PAGES // 100


@needs_glibc
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072"),
    ],
)
def test_what_the_environment_says_of_malloc_stays_as_it_is(name: str, value: str) -> None:
    (within,) = child("with kept_heap(): print(faults())", **{name: value})

    assert within > PAGES // 2


# In a run --------------------------------------------------------------------------------------


@pytest.fixture
def thresholds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the trim thresholds that are set, in a list that grows."""
    seen: list[int] = []

    def mallopt(name: int, value: int) -> int:
        if name == heap.M_TRIM_THRESHOLD:
            seen.append(value)
        return 1

    monkeypatch.setattr(heap, "_mallopt", lambda: mallopt)
    return seen


@pytest.mark.parametrize(
    "run",
    [
        lambda learn: learn.fit(1),
        lambda learn: learn.lr_find(num_it=3, show_plot=False),
        lambda learn: learn.validate(),
        lambda learn: learn.get_preds(),
    ],
    ids=["fit", "lr_find", "validate", "get_preds"],
)
def test_every_run_keeps_the_heap_for_its_time(
    run: Callable[[object], object], thresholds: list[int]
) -> None:
    run(toy_learner())

    assert thresholds[0] == heap.KEPT_DURING
    assert thresholds[-1] == heap.KEPT_AFTER
    assert thresholds.count(heap.KEPT_AFTER) == 1


def test_a_run_within_a_fit_leaves_the_heap_kept(thresholds: list[int]) -> None:
    learn = toy_learner()
    inner: list[int] = []

    def after_epoch(_: object) -> None:
        learn.validate()
        inner.append(thresholds[-1])

    learn.fit(2, cbs=[Callback(after_epoch=after_epoch)])

    assert inner == [heap.KEPT_DURING] * 2
    assert thresholds[-1] == heap.KEPT_AFTER


def test_a_fit_that_fails_keeps_nothing_any_more(thresholds: list[int]) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        toy_learner(check=False).fit(1, cbs=[Callback(after_step=fail)])

    assert thresholds == [heap.KEPT_DURING, heap.KEPT_AFTER]


def test_elsewhere_than_on_linux_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    assert heap._mallopt.__wrapped__() is None
