"""What the words of a command line mean, each refused with a sentence before anything is read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from onecycle.cli.problem import Problem
from onecycle.processes import is_launched, n_processes
from onecycle.schedules.shapes import Schedule, constant, join
from onecycle.vision.named import NAMED

#: Sides of growing images are multiples of it.
_MULTIPLE = 4


def at_least_one(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """Read a seed, from 0 to 2**32 - 1."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a seed from 0 to 2**32 - 1; got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """Read a number above 0."""
    return _number(text, "above 0", least=None)


def not_negative(text: str) -> float:
    """Read a number of at least 0."""
    return _number(text, "of at least 0", least=0.0)


def _number(text: str, expected: str, least: float | None) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    is_large = value > 0 if least is None else value >= least
    if not is_large or value == float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number {expected}; got {text!r}")
    return value


def rate(text: str) -> float | None:
    """Read a learning rate; ``None`` for ``auto``."""
    return None if text == "auto" else positive(text)


def device(text: str) -> torch.device:
    """Read the name of a device that is there."""
    try:
        found = torch.device(text)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise argparse.ArgumentTypeError(f"there is no device {text!r}: {reason}") from None
    return found


def words(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Return what reads words of a list, with commas between them."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        unknown = [word for word in found if word not in known]
        if unknown or len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(known)}, each once, with commas between; got {text!r}"
            )
        return found

    return read


class Sizes:
    """The sides of images over a fit: one, or several with the point from which each holds.

    Attributes:
        text: As it was written.
        largest: The largest side.
        schedule: For `ProgressiveResizing`; ``None`` where there is one side.
    """

    def __init__(self, text: str) -> None:
        pairs = [_size(text, part) for part in text.split(",")]
        sides, points = [side for side, _ in pairs], [point for _, point in pairs]
        if points[0] != 0 or sorted(set(points)) != points or points[-1] >= 1:
            raise argparse.ArgumentTypeError(
                "expected points that begin with @0 and grow, all below 1, as in "
                f"128@0,224@0.4; got {text!r}"
            )
        if len(sides) > 1 and any(side % _MULTIPLE for side in sides):
            raise argparse.ArgumentTypeError(
                f"sides that change must be multiples of {_MULTIPLE}; got {text!r}"
            )
        self.text, self.largest = text, max(sides)
        self.schedule: Schedule | None = None
        if len(sides) > 1:
            lengths = [b - a for a, b in zip(points, [*points[1:], 1.0], strict=True)]
            parts = zip(lengths, sides, strict=True)
            self.schedule = join([(length, constant(float(side))) for length, side in parts])


def _size(text: str, part: str) -> tuple[int, float]:
    side, _, point = part.partition("@")
    try:
        return at_least_one(side), not_negative(point or "0")
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a side in pixels, or several as in 128@0,224@0.4; got {text!r}"
        ) from None


def package_version() -> str:
    """Return the version of the package, and of torch."""
    try:
        own = version("onecycle")
    except PackageNotFoundError:  # a checkout that is not installed
        own = "of a checkout"
    return f"onecycle {own}, torch {torch.__version__}"


# What must be there -------------------------------------------------------------------------


def named(data: str) -> str | None:
    """Return the data set of torchvision that is meant, or ``None`` for a folder of images."""
    if (Path(data) / "train").is_dir():
        return None
    return {name.lower(): name for name in NAMED}.get(data.lower())


def check_data(data: str) -> None:
    """Refuse a folder that has no images to train on, by a look at its folders alone."""
    folder = Path(data)
    if named(data) is not None:
        return
    if not folder.is_dir():
        raise Problem(
            f"there is no folder {folder}: give one with train/<class>/ and valid/<class>/, or "
            f"one of {', '.join(NAMED)}"
        )
    for names in (("train",), ("valid", "test")):
        if not any((folder / name).is_dir() for name in names):
            raise Problem(f"{folder} has no folder {names[0]}: expected {names[0]}/<class>/")


def check_model(arch: str, weights: Path | None) -> None:
    """Refuse a model that nobody knows, and a file of weights that is not there."""
    from onecycle.cli.models import names

    if arch not in names():
        near = [name for name in names() if name.startswith(arch[:4])][:8]
        hint = f"did you mean one of {', '.join(near)}?" if near else "see torchvision.models"
        raise Problem(f"there is no model {arch!r}: {hint}")
    if weights is not None and not weights.is_file():
        raise Problem(f"there is no file of weights {weights}")


def check_processes() -> None:
    """Refuse several processes that do not know each other, each with a model of its own."""
    if n_processes() > 1 and not is_launched():
        raise Problem(
            f"this is one of {n_processes()} processes, and does not know the others: start them "
            "by torchrun -m onecycle ..."
        )


def check_folder(option: str, folder: Path) -> None:
    """Refuse a folder that nothing can be written into, whether it is there or is to be made."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        raise Problem(f"{option} {folder}: {there} is a file: expected a folder, or a new name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Problem(f"{option} {folder}: {there} cannot be written to: name another folder")


def check_picture(option: str, path: Path) -> None:
    """Refuse the name of a picture that could not be drawn, or not be written."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.is_dir() or path.suffix.lower().removeprefix(".") not in known:
        raise Problem(f"{option} {path}: expected a file that ends in one of .{', .'.join(known)}")
    check_folder(option, path.parent)
