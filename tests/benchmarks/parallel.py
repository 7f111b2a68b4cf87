"""Two processes against one, and the library against a loop by hand over DistributedDataParallel.

`resnet9(width=24)` on random images, a batch of 64 for each process, one thread each. One process
and two take turns; within each a fit of the library and the loop by hand take turns. Of each, a run
of twice as many steps less one of so many gives the seconds of a step. Two processes need no more
for a step than one, if they are twice as fast: that is "linear". Printed are medians over the
turns, and the smallest and largest. It says something on a machine which does nothing else.

    python tests/benchmarks/parallel.py --steps 5 --turns 4
"""

from __future__ import annotations

import argparse
import io
import logging
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR

from onecycle import Learner, launch, resnet9

BATCH = 64

#: CPU and wall seconds.
Times = tuple[float, float]


def batches(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Make batches of random images, the same one again and again."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator)
    return [(x, torch.randint(10, (BATCH,), generator=generator))] * n


def net() -> nn.Module:
    """Make the model."""
    torch.manual_seed(0)
    return resnet9(n_classes=10, width=24)


def sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of both sides."""
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def by_hand(steps: int) -> None:
    """Train as a person writes it."""
    model: Any = net()
    if torch.distributed.is_initialized():
        model = DistributedDataParallel(model)
    opt = sgd(model.parameters(), 0.01)
    schedule = OneCycleLR(opt, 0.1, total_steps=steps)
    for xb, yb in batches(steps):
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
        schedule.step()


def ours(steps: int) -> None:
    """Train with a learner: in two processes, two batches of the list make a step."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    dls = batches(steps * world), None
    learn = Learner(dls, net(), F.cross_entropy, sgd, 0.01, device="cpu", check=False)
    with redirect_stdout(io.StringIO()):
        learn.fit_one_cycle(1, 0.1)


def step_of(run: Callable[[int], None], steps: int) -> Times:
    """Return the seconds of a step, without what happens once a fit."""
    spent = []
    for n in (steps, 2 * steps):
        cpu, wall = process_time(), perf_counter()
        run(n)
        spent.append((process_time() - cpu, perf_counter() - wall))
    return (spent[1][0] - spent[0][0]) / steps, (spent[1][1] - spent[0][1]) / steps


def measure(steps: int, rounds: int) -> list[tuple[Times, Times]]:
    """Return by round the seconds of a step: ours, and by hand."""
    torch.set_num_threads(1)
    logging.getLogger("onecycle").setLevel(logging.ERROR)
    ours(2)  # joins the group, and warms up
    return [(step_of(ours, steps), step_of(by_hand, steps)) for _ in range(rounds)]


def said(values: Sequence[float], digits: int = 3) -> str:
    """Return the median of some values, and their range."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--turns", type=int, default=4, help="of one process and two")
    parser.add_argument("--rounds", type=int, default=2, help="within each turn")
    options = parser.parse_args()
    found: dict[int, list[list[tuple[Times, Times]]]] = {1: [], 2: []}
    for _ in range(options.turns):
        for n, turns in found.items():
            turns.append(launch(measure, options.steps, options.rounds, processes=n)[0])
    for n, turns in found.items():
        for i, kind in enumerate(("CPU", "wall")):
            rows = [row for turn in turns for row in turn]
            steps = said([1000 * ours[i] for ours, _ in rows], 1)
            ratios = said([ours[i] / theirs[i] for ours, theirs in rows])
            print(f"{n} process(es), {kind:<4}: {steps} ms a step, {ratios} of the loop by hand")
    for side, whose in enumerate(("the library", "the loop by hand")):
        both = [[[row[side][1] for row in turn] for turn in turns] for turns in found.values()]
        linear = [median(one) / median(two) for one, two in zip(*both, strict=True)]
        print(f"{whose}, of linear on the wall: {said(linear)}")


if __name__ == "__main__":
    main()
