"""What ``find`` and ``train`` have in common: loaders, a model and a learner, from options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from onecycle import vision
from onecycle.callbacks.precision import MixedPrecision
from onecycle.cli import models
from onecycle.cli.options import (
    Sizes,
    check_data,
    check_folder,
    check_model,
    check_processes,
    named,
)
from onecycle.core.callback import Callback
from onecycle.data.loaders import DataLoaders, TensorLoader
from onecycle.data.seeds import seed_everything
from onecycle.learner import Learner
from onecycle.processes import is_follower, join
from onecycle.record.metrics import accuracy
from onecycle.vision.named import NAMED, named_images
from onecycle.vision.resizing import ProgressiveResizing

#: The side of images in pixels, where nothing else is said.
_SIDE = 224


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work; reads no image and writes nothing."""
    check_processes()
    check_data(options.data)
    check_model(options.arch, options.weights)
    name = named(options.data)
    if name is None:
        check_folder("--cache", _cache(options))
    else:
        check_folder("--root", options.root)
    if options.weights is not None:
        models.load_weights(models.make(options.arch, 2), options.weights)
    if options.resize is None:
        options.resize = Sizes(str(_SIDE if name is None else NAMED[name].side))


def _cache(options: argparse.Namespace) -> Path:
    found: Path = options.cache or Path(options.data) / ".onecycle"
    return found


def told(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Say what data and what model a command is about to take, in pairs of a word and a line."""
    kept = f"decoded once, into {_cache(options)}"
    if (name := named(options.data)) is not None:
        kept = f"torchvision.datasets.{name} in {options.root}"
    weights = "random weights" if options.weights is None else f"weights of {options.weights}"
    augment = " and ".join(options.augment) or "no augmentation"
    return [
        ("data", f"{options.data}, {kept}; images of {options.resize.text} pixels; {augment}"),
        ("model", f"{options.arch}, {weights}, {options.precision}, seed {options.seed}"),
    ]


def say(text: str) -> None:
    """Print a text; of several processes the first one does."""
    if not is_follower():
        print(text, flush=True)


def show(lines: list[tuple[str, str]]) -> None:
    """Print pairs of a word and a line."""
    for word, line in lines:
        say(f"  {word:<8} {line}")


def make_learner(options: argparse.Namespace, cbs: list[Callback]) -> Learner:
    """Load the images, make the model, and print how large both are.

    Args:
        options: What `check` has let pass.
        cbs: Callbacks besides those that the options ask for.
    """
    processes = join()
    # What is downloaded or decoded is so by the first of several; the others find it.
    first = None if processes is None else processes.after_first(lambda: _load(options), "data")
    dls = _load(options) if first is None else first
    seed_everything(options.seed)
    model = models.make(options.arch, len(dls.classes or ()))
    left = [] if options.weights is None else models.load_weights(model, options.weights)
    n_train, n_valid = (len(_images(dl)) for dl in (dls.train, dls.valid))
    size = sum(p.numel() for p in model.parameters())
    lines = [("found", f"{n_train:,} images to train on, {n_valid:,} to validate")]
    lines.append(("", f"{len(dls.classes or ())} classes; {size:,} parameters"))
    if left:
        lines.append(("", f"random, since they have another shape in the file: {', '.join(left)}"))
    show(lines)
    return Learner(
        dls,
        model,
        cross_entropy,
        metrics=[accuracy],
        cbs=[*_prepared(options), *cbs],
        wd=options.wd,
        device=options.device,
        seed=options.seed,
    )


def _images(loader: object) -> Tensor:
    return cast(TensorLoader, loader).tensors[0]


def _load(options: argparse.Namespace) -> DataLoaders:
    device = options.device
    if device is None and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    side, size = options.resize.largest, options.batch_size
    if (name := named(options.data)) is not None:
        return named_images(name, options.root, side, size, device)
    return vision.image_folder(options.data, side, size, device, cache=_cache(options))


def _prepared(options: argparse.Namespace) -> list[Callback]:
    known = {"flip": vision.RandomFlip, "crop": vision.RandomCrop}
    cbs: list[Callback] = [known[word]() for word in options.augment]
    if options.resize.schedule is not None:
        cbs.append(ProgressiveResizing(options.resize.schedule))
    if options.precision != "fp32":
        cbs.append(MixedPrecision(options.precision))
    return cbs
