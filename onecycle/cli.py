"""The command line: ``onecycle demo`` trains a real model by the 1cycle policy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from onecycle import vision
from onecycle.data.loaders import DataLoaders, n_batches
from onecycle.learner import Learner
from onecycle.range_test.knee import knee
from onecycle.range_test.result import LRFindResult, written
from onecycle.range_test.rules import minimum, slide, steep, valley
from onecycle.record.metrics import accuracy


@dataclass(frozen=True)
class Recipe:
    """What the demo trains on one data set, and for how long.

    Attributes:
        load: Makes the loaders of a folder and a batch size.
        model: Makes the model.
        epochs: How many epochs; ``batch_size`` how many images a batch.
    """

    load: Callable[[Path, int], DataLoaders]
    model: Callable[[], nn.Module]
    epochs: int
    batch_size: int


RECIPES = {
    "digits": Recipe(lambda _, size: vision.digits(size), vision.digits_cnn, 5, 64),
    "mnist": Recipe(vision.mnist, vision.lenet, 3, 512),
    "cifar10": Recipe(vision.cifar10, lambda: vision.digits_cnn(in_channels=3), 5, 256),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; by default those of the process.

    Returns:
        The exit status: 0, or 2 for what the message on standard error says.
    """
    options = _parser().parse_args(arguments)
    try:
        demo(options)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"onecycle: {error}", file=sys.stderr)
        return 2
    return 0


def demo(options: argparse.Namespace) -> None:
    """Find a learning rate, train with one cycle, and show what happened."""
    recipe = RECIPES[options.data]
    torch.manual_seed(options.seed)
    dls = recipe.load(options.data_dir, options.batch_size or recipe.batch_size)
    learn = Learner(
        dls,
        recipe.model(),
        cross_entropy,
        metrics=[accuracy],
        device=options.device,
        seed=options.seed,
    )
    held_out = learn.get_preds().targets
    size = sum(p.numel() for p in learn.model.parameters())
    print(
        f"{options.data}: {n_batches(dls.train)} batches to train on, {len(held_out):,} images "
        f"held out; a CNN of {size:,} parameters on {learn.device}, seed {options.seed}"
    )
    result = find_rate(learn)
    lr_max = options.lr_max or result.suggestion or 1e-3
    epochs = options.epochs or recipe.epochs
    print(f"\nTraining: learn.fit_one_cycle({epochs}, lr_max={lr_max:.3g})")
    learn.fit_one_cycle(epochs, lr_max)
    options.out.mkdir(parents=True, exist_ok=True)
    picture, record = options.out / "onecycle_demo.png", options.out / "onecycle_demo.csv"
    draw(learn, result, picture)
    learn.recorder.to_csv(record)
    print(f"\nWrote {picture} and {record}")
    print(
        f"Accuracy on {len(held_out):,} images it never trained on: "
        f"{100 * learn.validate()['accuracy']:.2f} %"
    )


def find_rate(learn: Learner) -> LRFindResult:
    """Run the range test, and say what it suggests and why."""
    print("\nRange test: the learning rate rises over 100 updates; then everything is put back")
    result = learn.lr_find(suggest_funcs=(knee, valley, slide, minimum, steep), show_plot=False)
    print(f"  it ended after {len(result.lrs)} updates: {result.stop_reason}")
    if result.reason is not None:
        print(f"  {result.reason}; a rate of 1e-3 is taken")
        return result
    others = ", ".join(f"{rule} {written(lr)}" for rule, lr in list(result.suggestions.items())[1:])
    how = result.note or "knee: where the losses have made nine tenths of their fall"
    print(f"  it suggests {result.suggestion:.2e} ({how})")
    print(f"  other rules: {others}; the loss turns up at {result.lr_max:.1e}")
    return result


def draw(learn: Learner, result: LRFindResult, path: Path) -> None:
    """Draw the range test, the schedule and the losses into one picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    test, schedule, losses = figure.subplots(1, 3)
    result.plot(test).set_title("Range test")
    learn.recorder.plot_sched(schedule).set_title("Learning rate and momentum")
    learn.recorder.plot_loss(losses).set_title("Loss")
    figure.savefig(path, dpi=120)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onecycle", description="Train PyTorch models with the 1cycle policy."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "demo",
        help="find a learning rate and train a small CNN with one cycle",
        description="Find a learning rate, train a small CNN with one cycle, print its accuracy "
        "on images it never trained on, and write onecycle_demo.png and onecycle_demo.csv.",
    )
    command.add_argument(
        "--data", choices=RECIPES, default="digits", help="digits comes with the package"
    )
    command.add_argument(
        "--data-dir",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="where mnist and cifar10 are, or are downloaded to (default: data)",
    )
    command.add_argument("--epochs", type=_at_least_one, help="default: 5 (mnist 3)")
    command.add_argument("--lr-max", type=_positive, help="default: what the range test suggests")
    command.add_argument(
        "--batch-size", type=_at_least_one, help="default: 64 (mnist 512, cifar10 256)"
    )
    command.add_argument("--seed", type=int, default=0, help="of weights and data order")
    command.add_argument("--device", help="default: the accelerator if there is one")
    command.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)"
    )
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0; got {text!r}")
    return value
