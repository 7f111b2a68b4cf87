"""The time of a step with `Learner(compile=True)` against the same learner without.

The first fit of each side, in which the compiled one compiles, is left out of the pairs and its
seconds are printed. Both sides have the schedule change rate and momentum for each update.

    python tests/benchmarks/compiled.py
"""

from __future__ import annotations

from functools import partial

import torch
from bare_loop import OPTIMIZERS, Batches, make_batches, tiny_model
from pairs import Row, arguments, clock, compare
from step import MakeModel
from torch import nn

from onecycle import Learner
from onecycle.vision import digits_cnn


def small_cnn() -> nn.Module:
    """Make a small convolutional network with seeded weights."""
    torch.manual_seed(0)
    return digits_cnn()


def image_batches(steps: int) -> Batches:
    """Make batches of 64 grey images of 8 x 8 pixels."""
    torch.manual_seed(1)
    return [(torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))) for _ in range(steps)]


class Side:
    """A learner that is fitted again and again.

    Args:
        opt: The name of the optimizer.
        model: Makes the model.
        batches: What an epoch has.
        compiled: Whether it is compiled.
    """

    def __init__(self, opt: str, model: MakeModel, batches: Batches, *, compiled: bool) -> None:
        self.batches = batches
        dls, loss = (batches, None), nn.functional.cross_entropy
        self.learn = Learner(dls, model(), loss, OPTIMIZERS[opt], compile=compiled)

    def __call__(self) -> float:
        """Fit for an epoch; return seconds for each step."""
        with self.learn.no_bar():
            start = clock()
            self.learn.fit_one_cycle(1, 1e-3)
            return (clock() - start) / len(self.batches)


def main() -> None:
    """Print the table."""
    options = arguments(__doc__, pairs=5)
    rows = []
    models = {"tiny": (tiny_model, make_batches()), "CNN": (small_cnn, image_batches(100))}
    for model, (make, batches) in models.items():
        for opt in OPTIMIZERS:
            side = partial(Side, opt, make, batches)
            compiled = side(compiled=True)
            seconds = compiled() * len(batches)
            print(f"{model}, {opt}: the first epoch took {seconds:.1f} s", flush=True)
            rows.append(Row(f"{model}, {opt}: compile=True", compiled, side(compiled=False)))
    compare(rows, options)


if __name__ == "__main__":
    main()
