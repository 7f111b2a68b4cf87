"""What a long fit costs: the time of a late step, and the memory of the record.

One fit of a million updates, really made, of a model with one parameter, by SGD with its rate and
momentum cycled and the default callbacks. Blocks of updates are timed where it begins and where
it ends; the record is full then. The memory is what Python holds after a fit of 50,000 updates
and did not hold before, divided by the updates.

    python tests/benchmarks/growth.py
"""

from __future__ import annotations

import io
import itertools
import statistics
import tracemalloc
from contextlib import redirect_stdout
from functools import partial

import torch
from pairs import arguments, clock, quartiles, readable
from torch import nn
from torch.optim import SGD

from onecycle import Callback, Learner

UPDATES = 1_000_000
BLOCK = 1000
N_BLOCKS = 20


def make_learner() -> Learner:
    """Make a learner whose model has one parameter, with an epoch of 10,000 batches."""
    batches = [(torch.ones(1, 1), torch.ones(1, 1))] * 10_000
    model = nn.Linear(1, 1, bias=False)
    return Learner((batches, None), model, nn.functional.mse_loss, partial(SGD, momentum=0.9))


def fit(updates: int, cbs: tuple[Callback, ...] = ()) -> Learner:
    """Fit for a number of updates, silently, and return the learner."""
    learn = make_learner()
    with redirect_stdout(io.StringIO()):
        learn.fit_one_cycle(None, 1e-3, max_updates=updates, cbs=cbs)
    return learn


class Blocks(Callback):
    """Time blocks of updates where a fit begins, from update 100 on, and where it ends."""

    def __init__(self) -> None:
        span = [BLOCK * i for i in range(N_BLOCKS + 1)]
        self._marks = {100 + at for at in span} | {UPDATES - at for at in span}
        self.read: dict[int, float] = {}

    def after_step(self, learn: Learner) -> None:
        """Read the clock at the ends of the blocks."""
        if learn.n_updates in self._marks:
            self.read[learn.n_updates] = clock()

    def times(self, first: int) -> list[float]:
        """Return the seconds of a step in each block from an update on."""
        marks = [self.read[first + BLOCK * i] for i in range(N_BLOCKS + 1)]
        return [(b - a) / BLOCK for a, b in itertools.pairwise(marks)]


def bytes_per_update(updates: int = 50_000) -> float:
    """Return the bytes that a recorded update takes: loss, rate and momentum of one group."""
    fit(1000)  # what is made once
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    learn = fit(updates)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    if len(learn.recorder.history["train_loss"]) != updates:
        raise RuntimeError("the record is not complete")
    return taken / updates


def main() -> None:
    """Print both rows."""
    arguments(__doc__, pairs=1)
    print(f"{bytes_per_update():.0f} bytes for each recorded update (target: at most 100)")
    blocks = Blocks()
    fit(UPDATES, (blocks,))
    early, late = blocks.times(100), blocks.times(UPDATES - N_BLOCKS * BLOCK)
    for name, times in {"update 100": early, "update 1,000,000": late}.items():
        low, middle, high = (readable(t) for t in quartiles(times))
        print(f"{name}: {middle} a step (quartiles {low} to {high}, {N_BLOCKS} blocks of {BLOCK})")
    print(
        f"ratio {statistics.median(late) / statistics.median(early):.3f} (target: 1, within noise)"
    )


if __name__ == "__main__":
    main()
