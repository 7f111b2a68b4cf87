"""What a snapshot ensemble gains over its best member, and over one long cycle, on MNIST.

For each seed a perceptron with two hidden layers, batch norm and dropout trains on 1000 images in
cycles of SGD with momentum, and another one for as many epochs in a single cycle. Both are
measured on the 10,000 test images, which took no part in anything: the best member is the best on
them, so that the gain over it is less than over a member that one could have chosen. As a control,
cycles also begin at a hundredth of the rate: too low to leave the minimum that the cycle before
found, so that the members are nearly one model and gain nothing together.

    ONECYCLE_DATA=data python tests/benchmarks/ensemble.py --seeds 5

Source: Huang et al., "Snapshot Ensembles: Train 1, get M for free", arXiv:1704.00109.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from onecycle import DataLoaders, EnsembleReport, Learner, SnapshotEnsemble, TensorLoader, accuracy
from onecycle.vision import mnist

IMAGES = 1000
LR_MAX = 0.2


def perceptron() -> nn.Sequential:
    """Make the model."""
    return nn.Sequential(nn.Flatten(), *layer(784, 300), *layer(300, 200), nn.Linear(200, 10))


def layer(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    """Make a hidden layer."""
    return nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU(), nn.Dropout(0.3)


def load(folder: str) -> DataLoaders:
    """Load MNIST: some of the training images, drawn at random, and all test images."""
    dls = mnist(folder, batch_size=500, download=False)
    images, labels = dls.train.tensors
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:IMAGES]
    train = TensorLoader(
        images[drawn],
        labels[drawn],
        batch_size=64,
        shuffle=True,
        drop_last=True,
        transform=dls.train.transform,
    )
    return DataLoaders(train, dls.valid)


def train(dls: DataLoaders, seed: int, lr_max: float, cycles: int, epochs: int) -> EnsembleReport:
    """Train in so many cycles of so many epochs; return what the members and the ensemble reach."""
    torch.manual_seed(seed)
    opt_func = functools.partial(SGD, momentum=0.9, weight_decay=1e-3)
    learn = Learner((dls.train, None), perceptron(), cross_entropy, opt_func, seed=seed)
    ensemble = SnapshotEnsemble()
    with learn.no_bar():
        learn.fit_sgdr(cycles, epochs, lr_max, cycle_mult=1, cbs=[ensemble])
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
    parser.add_argument("--epochs", type=int, default=20, help="of each cycle")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dls = load(os.environ["ONECYCLE_DATA"])
    print(f"torch {torch.__version__}, {args.cycles} cycles of {args.epochs} epochs, in percent:")
    for lr_max in (LR_MAX, LR_MAX / 100):
        found = [train(dls, s, lr_max, args.cycles, args.epochs) for s in range(args.seeds)]
        one = [train(dls, s, lr_max, 1, args.cycles * args.epochs) for s in range(args.seeds)]
        print(f"peak rate {lr_max:g}, {args.seeds} seeds, mean (range)")
        print(f"  best member     {spread([max(report.members) for report in found])}")
        print(f"  ensemble        {spread([report.ensemble for report in found])}")
        print(f"  gain            {spread([report.gain for report in found])}")
        print(f"  one long cycle  {spread([report.ensemble for report in one])}")


if __name__ == "__main__":
    main()
