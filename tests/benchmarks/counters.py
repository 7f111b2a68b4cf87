"""What a step is made of, counted: numbers that do not depend on the machine's mood.

For the tiny model of `bare_loop.py`, `Learner` with its default callbacks and the loop written by
hand: the Python functions that are called, the operators of torch that run, forward and backward,
and the scalars that are read out of tensors, each of which would make the host wait for an
accelerator. Counted over a number of steps and over twice as many; the difference is that of
the steps alone, without what happens once a fit.

    python tests/benchmarks/counters.py
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bare_loop import OPTIMIZERS, by_hand, make_batches, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from onecycle import Learner

#: Steps between which the record reads no block of losses, and the schedule computes none.
STEPS = 50


@dataclass(frozen=True)
class Counts:
    """What one step takes on average.

    Attributes:
        calls: Calls of Python functions.
        operators: Operators of torch.
        reads: Scalars read out of tensors.
    """

    calls: float
    operators: float
    reads: float


class _Operators(TorchDispatchMode):
    """Counts every operator, and those that read a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.all += 1
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def per_step(run: Callable[[int], None], steps: int = STEPS) -> Counts:
    """Count what each step of a loop takes.

    Args:
        run: Makes that many steps; called a few times.
        steps: How many, and twice as many.
    """
    run(steps)  # what is made once in the life of a process
    few, many = (_count(partial(run, n)) for n in (steps, 2 * steps))
    return Counts(*((b - a) / steps for a, b in zip(few, many, strict=True)))


def _count(run: Callable[[], None]) -> tuple[int, int, int]:
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
    with _Operators() as operators:
        run()
    return calls, operators.all, operators.reads


def ours(opt_func: Callable[..., torch.optim.Optimizer], steps: int, **options: Any) -> None:
    """Make steps with `fit_one_cycle` and the default callbacks."""
    dls = (make_batches(1) * steps, None)
    learn = Learner(dls, tiny_model(), nn.functional.cross_entropy, opt_func, **options)
    with redirect_stdout(io.StringIO()):
        learn.fit_one_cycle(1, 1e-3)


def bare(opt_func: Callable[..., torch.optim.Optimizer], steps: int) -> None:
    """Make steps with the loop that a person writes by hand."""
    by_hand(opt_func, tiny_model(), make_batches(1) * steps)()


def main() -> None:
    """Print the table."""
    print(f"{'each step':<24}{'Python calls':>14}{'operators':>12}{'scalar reads':>14}")
    for name, opt_func in OPTIMIZERS.items():
        for side, run in {"Learner": ours, "by hand": bare}.items():
            counts = per_step(partial(run, opt_func))
            print(
                f"{f'{name}: {side}':<24}{counts.calls:>14.1f}{counts.operators:>12.1f}"
                f"{counts.reads:>14.2f}"
            )


if __name__ == "__main__":
    main()
