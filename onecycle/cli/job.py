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
from onecycle.cli.options import NAMED, Sizes, check_data, check_model, check_processes
from onecycle.cli.problem import Problem
from onecycle.core.callback import Callback
from onecycle.data.loaders import DataLoaders, TensorLoader
from onecycle.data.seeds import seed_everything
from onecycle.learner import Learner
from onecycle.record.metrics import accuracy
from onecycle.vision.resizing import ProgressiveResizing

#: The side of images in pixels, where nothing else is said.
_SIDE = 224


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work; reads no image and writes nothing."""
    check_processes()
    check_data(options.data)
    check_model(options.arch, options.weights)
    own = NAMED[options.data] if is_named(options) else None
    if options.resize is None:
        options.resize = Sizes(str(own or _SIDE))
    if own is not None and options.resize.largest != own:
        raise Problem(
            f"the images of {options.data} have {own} pixels: --resize must end there, as in "
            f"{own // 2}@0,{own}@0.5; got {options.resize.text}"
        )


def is_named(options: argparse.Namespace) -> bool:
    """Tell whether the data are one of the sets that are known by name."""
    return options.data in NAMED and not Path(options.data).is_dir()


def told(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Say what data and what model a command is about to take, in pairs of a word and a line."""
    cache = options.cache or Path(options.data) / ".onecycle"
    kept = f"in {options.data_dir}" if is_named(options) else f"decoded once, into {cache}"
    weights = "random weights" if options.weights is None else f"weights of {options.weights}"
    augment = " and ".join(options.augment) or "no augmentation"
    return [
        ("data", f"{options.data}, {kept}; images of {options.resize.text} pixels; {augment}"),
        ("model", f"{options.arch}, {weights}, {options.precision}, seed {options.seed}"),
    ]


def show(lines: list[tuple[str, str]]) -> None:
    """Print pairs of a word and a line."""
    for word, line in lines:
        print(f"  {word:<8} {line}", flush=True)


def make_learner(options: argparse.Namespace, cbs: list[Callback]) -> Learner:
    """Load the images, make the model, and print how large both are.

    Args:
        options: What `check` has let pass.
        cbs: Callbacks besides those that the options ask for.
    """
    dls = _load(options)
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
    if is_named(options):
        return vision.cifar10(options.data_dir, options.batch_size)
    device = options.device
    if device is None and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    cache = True if options.cache is None else options.cache
    side: int = options.resize.largest
    return vision.image_folder(options.data, side, options.batch_size, device, cache=cache)


def _prepared(options: argparse.Namespace) -> list[Callback]:
    known = {"flip": vision.RandomFlip, "crop": vision.RandomCrop}
    cbs: list[Callback] = [known[word]() for word in options.augment]
    if options.resize.schedule is not None:
        cbs.append(ProgressiveResizing(options.resize.schedule))
    if options.precision != "fp32":
        cbs.append(MixedPrecision(options.precision))
    return cbs
