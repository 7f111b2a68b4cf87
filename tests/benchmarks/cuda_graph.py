"""The time of a training step with `CudaGraph` against one without, on a GPU.

Small batches, so that what is measured is how long the GPU waits for Python. The warm-up and the
capture of each fit are part of its time. The clock is that on the wall, read when the GPU is done.

    python tests/benchmarks/cuda_graph.py
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from bare_loop import OPTIMIZERS, Batches, tiny_model
from pairs import Row, arguments, clock, compare
from step import MakeModel
from torch import nn

from onecycle import Callback, CudaGraph, Learner, lenet, resnet9

STEPS = 512
#: By name how a model is made, and the shape of its input.
MODELS: dict[str, tuple[MakeModel, tuple[int, ...]]] = {
    "tiny": (tiny_model, (32,)),
    "lenet": (lenet, (1, 28, 28)),
    "resnet9": (resnet9, (3, 32, 32)),
}


def make_batches(shape: tuple[int, ...], size: int = 32) -> Batches:
    """Make batches on the GPU; a few tensors come again and again."""
    torch.manual_seed(1)
    few = [
        (torch.randn(size, *shape, device="cuda"), torch.randint(0, 10, (size,), device="cuda"))
        for _ in range(8)
    ]
    return few * (STEPS // len(few))


class Side:
    """A learner that is fitted again and again.

    Args:
        opt: The name of the optimizer.
        model: Makes the model.
        batches: What an epoch has.
        cbs: What replays its batches, if anything does.
    """

    def __init__(
        self, opt: str, model: MakeModel, batches: Batches, cbs: Sequence[Callback] = ()
    ) -> None:
        torch.manual_seed(0)
        self.learn = Learner(
            (batches, None),
            model(),
            nn.functional.cross_entropy,
            OPTIMIZERS[opt],
            cbs=cbs,
            device="cuda",
            seed=0,
        )

    def __call__(self) -> float:
        """Fit for an epoch; return seconds for each step."""
        with self.learn.no_bar():
            torch.cuda.synchronize()
            start = clock()
            self.learn.fit_one_cycle(1, 1e-3)
            torch.cuda.synchronize()
            return (clock() - start) / STEPS


def main() -> None:
    """Print the table."""
    options = arguments(__doc__, pairs=9)
    options.wall = clock.wall = True  # the CPU's time says nothing of the GPU's
    if not torch.cuda.is_available():
        print("CudaGraph needs a GPU with CUDA, and there is none here: nothing is measured.")
        return
    rows = []
    for name, (model, shape) in MODELS.items():
        for opt in OPTIMIZERS:
            side = partial(Side, opt, model, make_batches(shape))
            plain = side()
            for graph in (CudaGraph(), CudaGraph(step=True)):
                what = "and its step" if graph.step else "batch"
                rows.append(Row(f"{name}, {opt}: CudaGraph, {what}", side([graph]), plain))
    compare(rows, options)


if __name__ == "__main__":
    main()
