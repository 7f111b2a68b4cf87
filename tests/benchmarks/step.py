"""The time of a training step on a tiny model: `Learner` against the loop written by hand.

The model has 32, 64 and 10 units, the batch 64 samples, torch one thread: so small that what is
measured is the cost of the loop. Both sides train the same batches with momentum or beta1 cycled
against the learning rate. They take turns (A, B, A, B, ...), and the ratio is taken pair by pair,
so that a machine that slows down slows both.

    python tests/benchmarks/step.py --pairs 15
"""

from __future__ import annotations

import argparse
import functools
import io
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stdout

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR

from onecycle import Callback, Learner, Progress

STEPS = 2000


def make_model() -> nn.Module:
    """Make the tiny model with seeded weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def make_batches() -> list[tuple[Tensor, Tensor]]:
    """Make the batches that both sides train on, in this order."""
    torch.manual_seed(1)
    return [(torch.randn(64, 32), torch.randint(0, 10, (64,))) for _ in range(STEPS)]


def bare(opt_func: Callable[..., torch.optim.Optimizer], batches: list) -> float:
    """Time the loop that a person writes by hand; return seconds for each step."""
    model = make_model()
    opt = opt_func(model.parameters(), lr=1e-3)
    schedule = OneCycleLR(opt, 1e-3, total_steps=len(batches))
    losses = []
    start = time.perf_counter()
    for xb, yb in batches:
        loss = nn.functional.cross_entropy(model(xb), yb)
        loss.backward()
        opt.step()
        opt.zero_grad()
        schedule.step()
        losses.append(loss.detach())
    return (time.perf_counter() - start) / len(batches)


def floor(batches: list) -> float:
    """Time the forward and backward pass alone."""
    model = make_model()
    start = time.perf_counter()
    for xb, yb in batches:
        nn.functional.cross_entropy(model(xb), yb).backward()
        for p in model.parameters():
            p.grad = None
    return (time.perf_counter() - start) / len(batches)


def ours(
    opt_func: Callable[..., torch.optim.Optimizer],
    batches: list,
    *,
    cbs: tuple[Callback, ...] = (),
    bar: bool = True,
) -> float:
    """Time `fit_one_cycle` with the default callbacks; return seconds for each step."""
    learn = Learner((batches, None), make_model(), nn.functional.cross_entropy, opt_func, cbs=cbs)
    with learn.removed_cbs(*([] if bar else [Progress])), redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        learn.fit_one_cycle(1, 1e-3)
        return (time.perf_counter() - start) / len(batches)


class Idle(Callback):
    """Handles events and does nothing."""

    def before_batch(self, learn: Learner) -> None:
        """Do nothing."""

    def after_loss(self, learn: Learner) -> None:
        """Do nothing."""

    def after_step(self, learn: Learner) -> None:
        """Do nothing."""


def main() -> None:
    """Run all pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    batches = make_batches()
    rows: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {}
    for name, opt_func in {"SGD": functools.partial(SGD, momentum=0.9), "AdamW": AdamW}.items():
        against = functools.partial(bare, opt_func, batches)
        idle = tuple(Idle() for _ in range(5))
        rows[f"{name}: Learner"] = (functools.partial(ours, opt_func, batches), against)
        rows[f"{name}: with five more callbacks"] = (
            functools.partial(ours, opt_func, batches, cbs=idle),
            against,
        )
        rows[f"{name}: without progress"] = (
            functools.partial(ours, opt_func, batches, bar=False),
            against,
        )
        rows[f"{name}: forward and backward alone"] = (functools.partial(floor, batches), against)
    print(f"torch {torch.__version__}, one thread, {STEPS} steps a run, {pairs} pairs")
    print(f"{'':<36}{'us/step':>9}{'bare':>9}{'ratio':>8}{'  (quartiles)'}")
    for name, (a, b) in rows.items():
        a(), b()
        timed = [(a(), b()) for _ in range(pairs)]
        ratios = [x / y for x, y in timed]
        low, middle, high = statistics.quantiles(ratios, n=4)
        mine = statistics.median(x for x, _ in timed) * 1e6
        other = statistics.median(y for _, y in timed) * 1e6
        print(f"{name:<36}{mine:>9.1f}{other:>9.1f}{middle:>8.3f}  ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
