"""The parser of the command line, and what runs a command."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onecycle.cli import options as read
from onecycle.cli.demo import RECIPES, demo
from onecycle.cli.find import find
from onecycle.cli.predict import predict
from onecycle.cli.problem import Problem
from onecycle.cli.train import TRACKERS, train
from onecycle.errors import OnecycleError
from onecycle.processes import rank
from onecycle.vision.named import NAMED

#: Where a run is that has no other place.
RUN = Path("onecycle_run")

_DATA = (
    "a folder with train/<class>/ and valid/<class>/ (or test), or of torchvision: "
    + ", ".join(NAMED)
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; by default those of the process.

    Returns:
        The exit status: 0; 2 for what the message on standard error says; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may not be text
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (Problem, OnecycleError, ImportError, OSError, ValueError, RuntimeError) as error:
        who = f"onecycle [process {rank()}]" if rank() else "onecycle"
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("onecycle: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onecycle", description="Train PyTorch models with the 1cycle policy."
    )
    parser.add_argument("--version", action="version", version=read.package_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(_command(commands, "train", train, "train a model on a folder of images"))
    _add_find(_command(commands, "find", find, "find a learning rate for a folder of images"))
    _add_predict(_command(commands, "predict", predict, "say what is to be seen in images"))
    _add_demo(_command(commands, "demo", demo, "find a learning rate and train a small CNN"))
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], words: str
) -> argparse.ArgumentParser:
    says = (sys.modules[run.__module__].__doc__ or "").partition("\n")[0]
    command: argparse.ArgumentParser = commands.add_parser(name, help=words, description=says)
    command.set_defaults(run=run)
    return command


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", metavar="DIR", help=_DATA)
    command.add_argument(
        "--arch", required=True, help="a model of torchvision, as resnet18; or resnet9, resnet56"
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help="default: random weights")
    command.add_argument(
        "--resize",
        type=read.Sizes,
        metavar="SIDES",
        help="side of the images in pixels, or several with the part of the fit from which each "
        "holds, as 128@0,224@0.4 (default: 224; of a data set by name what it has)",
    )
    command.add_argument(
        "--batch-size",
        type=read.at_least_one,
        default=64,
        help="images in a batch, of each process under torchrun (default: 64)",
    )
    command.add_argument("--wd", type=read.not_negative, help="weight decay (default: AdamW's)")
    command.add_argument(
        "--augment",
        type=read.words("flip", "crop"),
        default=(),
        metavar="WORDS",
        help="flip, crop, or flip,crop (default: none)",
    )
    command.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: fp32)"
    )
    _add_places(command)
    command.add_argument("--seed", type=read.seed, default=0, help="(default: 0)")
    command.add_argument("--device", type=read.device, help="default: the accelerator, if any")


def _add_places(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where the decoded images are kept (default: .onecycle in the folder of images)",
    )
    command.add_argument(
        "--root",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="where a data set by name is, or is downloaded to (default: data)",
    )


def _add_train(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    command.add_argument("--epochs", type=read.at_least_one, required=True)
    command.add_argument(
        "--lr-max",
        type=read.rate,
        default="auto",
        help="the peak of the learning rate, or auto: what a range test suggests (default: auto)",
    )
    command.add_argument(
        "--policy",
        choices=("cosine", "linear", "three_phase", "smith", "torch"),
        default="cosine",
        help="the shape of the cycle (default: cosine)",
    )
    command.add_argument(
        "--checkpoint",
        type=Path,
        default=RUN,
        metavar="RUN",
        help=f"folder of the run; the same command goes on with one that was broken off "
        f"(default: {RUN})",
    )
    command.add_argument(
        "--tracker",
        type=read.words(*TRACKERS),
        default=("csv",),
        metavar="NAMES",
        help=f"what the fit is written to: {', '.join(TRACKERS)} (default: csv). All are in RUN; "
        "but wandb sends to its server unless WANDB_MODE is offline, and mlflow writes to "
        "MLFLOW_TRACKING_URI where that is set",
    )


def _add_find(command: argparse.ArgumentParser) -> None:
    _add_common(command)
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the test to a picture too")


def _add_predict(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", metavar="RUN", type=Path, help="folder of onecycle train")
    command.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="image files")
    command.add_argument(
        "--top", type=read.at_least_one, default=3, help="classes to show (default: 3)"
    )
    command.add_argument("--device", type=read.device, help="default: the CPU")


def _add_demo(command: argparse.ArgumentParser) -> None:
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
    command.add_argument("--epochs", type=read.at_least_one, help="default: 5 (mnist 3)")
    command.add_argument(
        "--lr-max", type=read.positive, help="default: what the range test suggests"
    )
    command.add_argument(
        "--batch-size", type=read.at_least_one, help="default: 64 (mnist 512, cifar10 256)"
    )
    command.add_argument("--seed", type=int, default=0, help="of weights and data order")
    command.add_argument("--device", help="default: the accelerator if there is one")
    command.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)"
    )
