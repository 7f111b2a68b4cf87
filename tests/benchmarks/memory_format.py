"""The time of a fit with `ChannelsLast` against one without, for a small CNN on the CPU.

Both sides take turns (A, B, A, B, ...) on one thread, and the ratio is taken pair by pair, of
processor time, so that other work on the machine counts for little.

    python tests/benchmarks/memory_format.py --pairs 9
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from onecycle import Callback, ChannelsLast, Learner, TensorLoader


def make_model() -> nn.Module:
    """Make a CNN of three convolutions with batch normalisation, for images of 32x32."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def measure(*cbs: Callback) -> tuple[float, float]:
    """Return the seconds and the last loss of a fit of four batches of 128."""
    torch.manual_seed(0)
    images, labels = torch.randn(512, 3, 32, 32), torch.randint(10, (512,))
    loader = TensorLoader(images, labels, batch_size=128)
    learn = Learner((loader, None), make_model(), cross_entropy, cbs=cbs, device="cpu", seed=0)
    with learn.no_bar():
        learn.fit(1, lr=1e-3, max_updates=1)  # the first is slower
        start = time.process_time()
        learn.fit(1, lr=1e-3)
    seconds = time.process_time() - start
    return seconds, float(learn.recorder.history["train_loss"].values[-1])


def main() -> None:
    """Print the ratio with its quartiles, and how far apart the losses are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    torch.set_num_threads(1)
    ratios, apart = [], 0.0
    for _ in range(parser.parse_args().pairs):
        (plain, loss), (last, other) = measure(), measure(ChannelsLast())
        ratios.append(last / plain)
        apart = max(apart, abs(other - loss) / loss)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ratio {middle:.2f} ({low:.2f} to {high:.2f}); losses differ by {apart:.1e} at most")


if __name__ == "__main__":
    main()
