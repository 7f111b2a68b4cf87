"""The CIFAR-10 speed run as a user writes it: the best accuracy within a budget of time.

The recipe: `resnet9`, on a CPU a narrow one; labels smoothed by 0.1; images mirrored and shifted on
the device; Nesterov SGD in one cycle; bf16; an average of the last weights; and the mean prediction
over six views of each test image. `ours` has all of it, with `Learner` and callbacks alone. With
``--bare`` the loop written by hand takes turns with it: the same network, loss, augmentation,
optimizer and cycle, in bf16 and channels last too; a DataLoader transforms the images one by one.
Each fit is then in a process of its own.

Both use the whole budget: a rehearsal tells the time of an update, and the fit is one cycle over
as many updates as the budget has room for. The clock runs while a model trains, not while the data
are loaded, during rehearsals, or while a model is judged.

    python tests/benchmarks/cifar10_speed.py --data data --minutes 5 --seeds 3 --bare

On a GPU the question is turned round: how long takes the shortest fit that reaches 94 % of what
these data allow? A long fit shows their ceiling; then try ever fewer epochs.

    python tests/benchmarks/cifar10_speed.py --data data --epochs 100 --seeds 3
    python tests/benchmarks/cifar10_speed.py --data data --epochs 6 --seeds 20

On JPEG-compressed copies of the images, accuracies differ from those of the official files.

Source: David Page, "How to train your ResNet", 2018: davidcpage/cifar10-fast.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial

import torch
from cifar10_by_hand import LOSS, PCT_START, WEIGHT_DECAY, Fit, bare, now, torch_loaders
from pairs import in_own_process
from torch import Tensor
from torch.optim import SGD

from onecycle import (
    EMA,
    Callback,
    DataLoaders,
    Learner,
    MixedPrecision,
    RandomCrop,
    RandomFlip,
    accuracy,
)
from onecycle.vision import cifar10, resnet9

#: The updates of a fit that nobody looks at: the first ones of a process are slower.
WARM_UP = 10


def ours(dls: DataLoaders, options: argparse.Namespace, updates: int, seed: int) -> Fit:
    """Train with a learner; judge the weights as trained, their average, and that with views."""
    torch.manual_seed(seed)
    trained: dict[str, Tensor] = {}

    def keep(learn: Learner) -> None:  # the average will take their place
        trained.update(deepcopy(learn.model.state_dict()))

    sgd = partial(SGD, momentum=0.9, nesterov=True)
    images = [RandomFlip(), RandomCrop(2)]
    cbs = [*images, MixedPrecision("bf16"), EMA(0.99), Callback(after_train=keep)]
    learn = Learner(
        (dls.train, None),
        resnet9(width=options.width),
        LOSS,
        sgd,
        metrics=[accuracy],
        cbs=cbs,
        wd=WEIGHT_DECAY,
        wd_bn_bias=True,
        device=options.device,
        seed=seed,
    )
    start = now()
    with learn.no_bar():
        learn.fit_one_cycle(None, options.lr, pct_start=PCT_START, max_updates=updates)
    seconds = now() - start

    def judge() -> list[float]:
        average, views = learn.validate(dls.valid)["accuracy"], learn.tta(dls.valid)
        learn.model.load_state_dict(trained)
        plain = learn.validate(dls.valid)["accuracy"]
        return [plain, average, float(accuracy(views.preds, views.targets))]

    return seconds, judge


def room_for(minutes: float, fit: Callable[[int, int], Fit]) -> int:
    """Return the updates that a budget has room for, by a rehearsal of a hundred."""
    (few, _), (many, _) = fit(WARM_UP, 0), fit(WARM_UP + 100, 0)
    return max(WARM_UP, int(60 * minutes * 100 / (many - few)))  # starts of a fit are in both


@cache
def loaders(data: str, batch: int, device: torch.device) -> DataLoaders:
    """Load the images, once for a process."""
    dls = cifar10(data, batch, device=device)
    dls.train.drop_last = True
    return dls


def one_run(side: str, options: argparse.Namespace, seed: int) -> list[float]:
    """Rehearse, train and judge; return the epochs, the seconds and the accuracies in percent."""
    torch.backends.cudnn.benchmark = True
    dls = loaders(options.data, options.batch, options.device)
    if side == "ours":
        fit = partial(ours, dls, options)
    else:
        fit = partial(bare, torch_loaders(dls, options.workers), options)
    fit(WARM_UP, 0)
    epoch = len(dls.train)
    updates = epoch * options.epochs if options.epochs else room_for(options.minutes, fit)
    seconds, judge = fit(updates, seed)
    return [updates / epoch, seconds, *(100 * value for value in judge())]


def main() -> None:
    """Run the fits in turns, and print a line for each, then means and standard deviations."""
    options = arguments()
    print(
        f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads, "
        f"width {options.width}, batch {options.batch}, lr {options.lr:g}"
    )
    print("side  seed  epochs  seconds  trained  average    views")
    lines: dict[str, list[list[float]]] = {"ours": []} | ({"bare": []} if options.bare else {})
    for seed in range(options.seeds):
        for name in lines:
            # In turns each in a process of its own: ours leaves malloc with other thresholds.
            run = partial(in_own_process, one_run) if options.bare else one_run
            lines[name].append(run(name, options, seed))
            print_line(name, str(seed), lines[name][-1])
    for name, runs in lines.items():
        columns = list(zip(*runs, strict=True))
        print_line(name, "mean", [statistics.mean(column) for column in columns])
        if options.seeds > 1:
            print_line(name, "std", [statistics.stdev(column) for column in columns])


def print_line(name: str, seed: str, line: list[float]) -> None:
    """Print a line of the table."""
    epochs, seconds, *accuracies = line
    values = "".join(f"{value:9.2f}" for value in accuracies)
    print(f"{name:<5}{seed:>5}{epochs:8.1f}{seconds:9.1f}{values}", flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("ONECYCLE_DATA", "data"))
    parser.add_argument("--device", type=torch.device, default=found)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=5.0, help="of training (%(default)s)")
    budget.add_argument("--epochs", type=int, help="instead of a budget of time")
    parser.add_argument("--seeds", type=int, default=1, help="how many (%(default)s)")
    parser.add_argument("--bare", action="store_true", help="take turns with a loop by hand")
    parser.add_argument("--width", type=int, help="of resnet9 (24 on a CPU, else 64)")
    parser.add_argument("--batch", type=int, default=128, help="samples (%(default)s)")
    parser.add_argument("--lr", type=float, default=0.3, help="the peak (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of the bare loop's DataLoader")
    options = parser.parse_args()
    options.width = options.width or (24 if options.device.type == "cpu" else 64)
    return options


if __name__ == "__main__":
    main()
