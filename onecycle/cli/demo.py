"""Find a learning rate, train a small CNN with one cycle, and print its accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
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
    how = result.note or "knee: where the losses end their fall, well below where they turn up"
    print(f"  it suggests {result.suggestion:.2e} ({how})")
    print(f"  other rules: {others}; a cycle may reach {result.lr_max:.1e}")
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
