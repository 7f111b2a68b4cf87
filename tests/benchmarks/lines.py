"""Where the time of a step goes, line by line: in the loop written by hand, and in ours.

The tiny model of `bare_loop.py`. Each part is timed on its own in every step; the median over the
steps is printed, so that a step which another program interrupts counts for nothing. What is left
of ours is the loop itself: taking the batch apart, firing events, counting.

    python tests/benchmarks/lines.py
"""

from __future__ import annotations

import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

import torch
from bare_loop import OPTIMIZERS, make_batches, tiny_model
from pairs import arguments
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from onecycle import Learner, ParamScheduler, Progress, Recorder
from onecycle.core.loop import Loop
from onecycle.optim.fast import FastStepper
from onecycle.optim.stepper import Stepper

CROSS_ENTROPY = nn.functional.cross_entropy
PARTS = {
    "forward": (Learner, "predict_batch"),
    "loss": (Learner, "compute_loss"),
    "backward": (Stepper, "backward"),
    "optimizer step": (Stepper, "step"),
    "gradients dropped": (Stepper, "zero_grad"),
    "schedules of rate and momentum": (ParamScheduler, "before_batch"),
    "recorder": (Recorder, "after_step"),
    "progress": (Progress, "after_batch"),
    "the whole batch": (Loop, "_train_batch"),
}


class Parts:
    """The nanoseconds of each part, one for each step."""

    def __init__(self) -> None:
        self.spent: dict[str, list[int]] = defaultdict(list)

    def timed(self, name: str, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed as a part."""
        spent = self.spent[name]

        def timed(*arguments: Any) -> Any:
            start = perf_counter_ns()
            try:
                return func(*arguments)
            finally:
                spent.append(perf_counter_ns() - start)

        return timed

    def microseconds(self) -> dict[str, float]:
        """Return the median of each part; twice it where a part comes twice a step."""
        steps = len(self.spent["forward"])
        return {
            name: statistics.median(times) / 1000 * round(len(times) / steps)
            for name, times in self.spent.items()
        }


def bare(opt_name: str) -> dict[str, float]:
    """Time the parts of the loop by hand."""
    parts, model, batches = Parts(), tiny_model(), make_batches()
    opt = OPTIMIZERS[opt_name](model.parameters(), lr=1e-3)
    schedule = OneCycleLR(opt, 1e-3, total_steps=len(batches))
    losses: list[torch.Tensor] = []
    forward, loss_func = parts.timed("forward", model), parts.timed("loss", CROSS_ENTROPY)
    backward = parts.timed("backward", lambda loss: loss.backward())
    step, drop = (
        parts.timed("optimizer step", opt.step),
        parts.timed("gradients dropped", opt.zero_grad),
    )
    scheduled = parts.timed("schedules of rate and momentum", schedule.step)
    record = parts.timed("recorder", lambda loss: losses.append(loss.detach()))
    for xb, yb in batches:
        loss = loss_func(forward(xb), yb)
        backward(loss)
        step()
        drop()
        scheduled()
        record(loss)
    return parts.microseconds()


@contextmanager
def instrumented(parts: Parts, *, fast_step: bool) -> Iterator[None]:
    """Time the parts of a fit."""
    with ExitStack() as stack:
        for name, (owner, method) in PARTS.items():
            kind = FastStepper if fast_step and method in ("backward", "step") else owner
            timed = parts.timed(name, getattr(kind, method))
            stack.enter_context(patch.object(kind, method, _as_method(timed)))
        yield


def _as_method(func: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *arguments: func(self, *arguments)


def ours(opt_name: str, *, fast_step: bool) -> dict[str, float]:
    """Time the parts of `fit_one_cycle`."""
    parts = Parts()
    dls = (make_batches(), None)
    learn = Learner(dls, tiny_model(), CROSS_ENTROPY, OPTIMIZERS[opt_name], fast_step=fast_step)
    with instrumented(parts, fast_step=fast_step), redirect_stdout(io.StringIO()):
        learn.fit_one_cycle(1, 1e-3)
    found = parts.microseconds()
    found["the loop itself"] = 2 * found["the whole batch"] - sum(found.values())
    return found


def main() -> None:
    """Print a table for each optimizer."""
    arguments(__doc__, pairs=1)
    for name in OPTIMIZERS:
        sides = [bare(name), ours(name, fast_step=False), ours(name, fast_step=True)]
        print(f"{name + ', us a step':<34}{'by hand':>10}{'Learner':>10}{'fast_step':>11}")
        for part in [*PARTS, "the loop itself"]:
            cells = [f"{side[part]:.1f}" if part in side else "" for side in sides]
            print(f"{part:<34}{cells[0]:>10}{cells[1]:>10}{cells[2]:>11}")


if __name__ == "__main__":
    main()
