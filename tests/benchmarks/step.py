"""The time of a training step: `Learner` against the loop written by hand.

The tiny model and the loop by hand are those of `bare_loop.py`. Both sides train the same batches
with momentum or beta1 cycled against the learning rate. The larger model takes about 4 ms a step,
a part of which is what the loop adds.

    python tests/benchmarks/step.py
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial

import torch
from bare_loop import OPTIMIZERS, Batches, by_hand, make_batches, tiny_model
from pairs import Row, arguments, clock, compare
from torch import nn

from onecycle import Callback, Learner, Progress

MakeModel = Callable[[], nn.Module]


def larger_model() -> nn.Module:
    """Make a model whose step takes about 4 ms."""
    torch.manual_seed(0)
    sizes = [32, 512, 512, 512, 512, 10]
    layers = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def bare(
    opt_func: Callable[..., torch.optim.Optimizer], model: MakeModel, batches: Batches
) -> float:
    """Time the loop that a person writes by hand; return seconds for each step."""
    train = by_hand(opt_func, model(), batches)
    start = clock()
    train()
    return (clock() - start) / len(batches)


def floor(batches: Batches) -> float:
    """Time the forward and backward pass alone."""
    model = tiny_model()
    start = clock()
    for xb, yb in batches:
        nn.functional.cross_entropy(model(xb), yb).backward()
        for p in model.parameters():
            p.grad = None
    return (clock() - start) / len(batches)


def ours(
    opt_func: Callable[..., torch.optim.Optimizer],
    model: MakeModel,
    batches: Batches,
    *,
    cbs: tuple[Callback, ...] = (),
    bar: bool = True,
    fast_step: bool = True,
) -> float:
    """Time `fit_one_cycle` with the default callbacks; return seconds for each step."""
    learn = Learner(
        (batches, None),
        model(),
        nn.functional.cross_entropy,
        opt_func,
        cbs=cbs,
        fast_step=fast_step,
    )
    with learn.removed_cbs(*([] if bar else [Progress])), redirect_stdout(io.StringIO()):
        start = clock()
        learn.fit_one_cycle(1, 1e-3)
        return (clock() - start) / len(batches)


class Idle(Callback):
    """Handles events and does nothing."""

    def before_batch(self, learn: Learner) -> None:
        """Do nothing."""

    def after_loss(self, learn: Learner) -> None:
        """Do nothing."""

    def after_step(self, learn: Learner) -> None:
        """Do nothing."""


def rows() -> Iterator[Row]:
    """Give the rows of the table."""
    batches, few = make_batches(), make_batches(100)
    idle = tuple(Idle() for _ in range(5))
    for name, opt_func in OPTIMIZERS.items():
        side = partial(ours, opt_func, tiny_model, batches)
        against = partial(bare, opt_func, tiny_model, batches)
        yield Row(f"{name}: Learner", side, against, 0.65 if name == "SGD" else 0.52)
        yield Row(f"{name}: with five more callbacks", partial(side, cbs=idle), against, 0.68)
        yield Row(f"{name}: fast_step=False", partial(side, fast_step=False), against, 0.82)
        yield Row(f"{name}: without progress", partial(side, bar=False), against)
        yield Row(f"{name}: forward and backward alone", partial(floor, batches), against)
        yield Row(
            f"{name}: a model of 4 ms",
            partial(ours, opt_func, larger_model, few),
            partial(bare, opt_func, larger_model, few),
            0.96,
        )


if __name__ == "__main__":
    compare(rows(), arguments(__doc__, pairs=15))
