"""The time of a step written by hand within `onecycle.optim.heap.kept_heap`, against one outside.

A `Learner` does this for every run. Each time is that of a new process, since what malloc keeps is
a matter of the whole process; how much it gives back by itself depends on where blocks happen to
lie, so that the times outside differ from process to process. Fresh pages are counted too.

    python tests/benchmarks/kept_heap.py
"""

from __future__ import annotations

import resource
import statistics
from contextlib import nullcontext
from functools import partial

import torch
from pairs import Row, arguments, clock, compare, in_own_process
from speed_profile import MODELS
from torch import nn
from torch.optim import AdamW

from onecycle.optim.heap import kept_heap
from onecycle.vision import resnet9

NETWORKS = MODELS | {
    "resnet9, width 24": (partial(resnet9, width=24), (128, 3, 32, 32), 1),
    "resnet9, width 64": (partial(resnet9, width=64), (256, 3, 32, 32), 1),
}
#: The seconds that are measured, after three steps that are not.
SECONDS = 5.0


def steps(name: str, *, kept: bool) -> tuple[float, float, float]:
    """Make steps; return the median of their seconds, fresh pages a step, and peak memory."""
    make, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    model, x, y = make(), torch.randn(shape), torch.randint(10, shape[:1])
    opt = AdamW(model.parameters(), lr=1e-3, fused=True)
    seconds = []
    with kept_heap() if kept else nullcontext():
        for i in range(1003):
            if i == 3:
                began, before = clock(), resource.getrusage(resource.RUSAGE_SELF)
            start = clock()
            nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
            seconds.append(clock() - start)
            if i > 3 and clock() - began > SECONDS:
                break
    after = resource.getrusage(resource.RUSAGE_SELF)
    pages = (after.ru_minflt - before.ru_minflt) / (len(seconds) - 3)
    return statistics.median(seconds[3:]), pages, after.ru_maxrss


def timed(name: str, kept: bool, seen: list[tuple[float, float]]) -> float:
    """Return the seconds of a step; add its fresh pages and the peak of memory to those seen."""
    seconds, *rest = in_own_process(steps, name, kept=kept)
    seen.append((rest[0], rest[1]))
    return seconds


def main() -> None:
    """Print the table, and for each row what was counted."""
    options = arguments(__doc__, pairs=5)
    for name in NETWORKS:
        seen: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        sides = (partial(timed, name, kept, seen[kept]) for kept in (True, False))
        compare([Row(name, *sides, warm_up=False)], options)
        for kept, counted in seen.items():
            pages, peak = (statistics.median(each) for each in zip(*counted, strict=True))
            side = "kept" if kept else "plain"
            print(f"  {side}: {pages:,.0f} fresh pages a step, {peak / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
