"""What a snapshot ensemble gains over its best member, and over one long cycle, on MNIST.

For each seed a LeNet trains on the first 2000 images in cycles (SGD with momentum, batch 64), and
another one for as many epochs in a single cycle. Both are measured on the 10,000 test images,
which took no part in anything: the best member is the best on them, so that the gain over it is
less than over a member that one could have chosen.

    ONECYCLE_DATA=data python tests/benchmarks/ensemble.py --seeds 5
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics

import torch
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from onecycle import DataLoaders, EnsembleReport, Learner, SnapshotEnsemble, TensorLoader, accuracy
from onecycle.vision import lenet, mnist

IMAGES = 2000
LR_MAX = 0.02


def train(dls: DataLoaders, seed: int, cycles: int, epochs: int) -> EnsembleReport:
    """Train in so many cycles of so many epochs; return what the members and the ensemble reach."""
    torch.manual_seed(seed)
    opt_func = functools.partial(SGD, momentum=0.9)
    images, labels = dls.train.tensors
    part = TensorLoader(
        images[:IMAGES],
        labels[:IMAGES],
        batch_size=64,
        shuffle=True,
        transform=dls.train.transform,
    )
    learn = Learner((part, None), lenet(), cross_entropy, opt_func, device="cpu", seed=seed)
    ensemble = SnapshotEnsemble()
    with learn.no_bar():
        learn.fit_sgdr(cycles, epochs, LR_MAX, cycle_mult=1, cbs=[ensemble])
    return ensemble.evaluate(learn, dls.valid, metric=accuracy)


def spread(values: list[float]) -> str:
    """Write the mean and the range of values in percent."""
    mean, low, high = (100 * f(values) for f in (statistics.mean, min, max))
    return f"{mean:6.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=2, help="of each cycle")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dls = mnist(os.environ["ONECYCLE_DATA"], batch_size=500, download=False)
    rows: dict[str, list[float]] = {"best member": [], "ensemble": [], "gain": [], "one cycle": []}
    for seed in range(args.seeds):
        found = train(dls, seed, args.cycles, args.epochs)
        alone = train(dls, seed, 1, args.cycles * args.epochs)
        rows["best member"].append(max(found.members))
        rows["ensemble"].append(found.ensemble)
        rows["gain"].append(found.gain)
        rows["one cycle"].append(alone.ensemble)
        print(f"seed {seed}: one cycle {alone.ensemble:.4f}\n{found}\n", flush=True)
    print(f"{args.cycles} cycles of {args.epochs} epochs, {args.seeds} seeds, in percent:")
    for name, values in rows.items():
        print(f"{name:<12} {spread(values)}")


if __name__ == "__main__":
    main()
