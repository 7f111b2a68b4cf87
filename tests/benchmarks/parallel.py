"""Two processes against one, and the library against a loop by hand over DistributedDataParallel.

`resnet9(width=24)` on random images, a batch of 64 for each process, one thread each. In the same
processes a fit of the library and the loop by hand take turns; of each, a run of twice as many
steps less one of so many gives the seconds of a step, and the ratio of the sums is printed, in CPU
time and on the wall. What one process takes is measured first, alone: two need no more for a step,
if they are twice as fast. That row says something on a machine which does nothing else.

    python tests/benchmarks/parallel.py --steps 5 --rounds 5
"""

from __future__ import annotations

import argparse
import io
import logging
from collections.abc import Callable
from contextlib import redirect_stdout
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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    alone = {}
    for n in (1, 2):
        rows = launch(measure, options.steps, options.rounds, processes=n)[0]
        for i, kind in enumerate(("CPU", "wall")):
            mine, theirs = (sum(row[side][i] for row in rows) for side in (0, 1))
            per_step = mine / len(rows)
            scaling = f", {alone[kind] / per_step:.3f} of linear" if n == 2 else ""
            alone[kind] = per_step
            print(
                f"{n} process(es), {kind:<4}: {1000 * per_step:.1f} ms a step, "
                f"{mine / theirs:.3f} of the loop by hand{scaling}"
            )


if __name__ == "__main__":
    main()
