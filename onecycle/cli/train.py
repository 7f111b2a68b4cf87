"""Train a model on a folder of images with one cycle; the folder of the run holds all of it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from onecycle.callbacks.checkpoint import Checkpoint
from onecycle.callbacks.json_lines import JSONLines
from onecycle.callbacks.loggers import CSVLogger
from onecycle.callbacks.mlflow import MLflow
from onecycle.callbacks.save_model import SaveModel
from onecycle.callbacks.tensor_board import TensorBoard
from onecycle.callbacks.wandb import WandB
from onecycle.cli import job
from onecycle.cli.options import check_folder, named
from onecycle.cli.predict import PREDICTOR
from onecycle.cli.problem import Problem
from onecycle.core.callback import Callback
from onecycle.files import atomic_write
from onecycle.learner import Learner
from onecycle.processes import is_follower, join
from onecycle.range_test.result import LRFindResult

#: What the epochs are written to, made of the folder of the run.
TRACKERS: dict[str, Callable[[Path], Callback]] = {
    "csv": lambda folder: CSVLogger(folder / "epochs.csv"),
    "jsonl": lambda folder: JSONLines(folder / "updates.jsonl"),
    "tensorboard": lambda folder: TensorBoard(folder / "tensorboard"),
    "wandb": lambda folder: WandB(
        "onecycle", name=folder.absolute().name, mode=_wandb_mode(), folder=folder
    ),
    "mlflow": lambda folder: MLflow("onecycle", name=folder.absolute().name, uri=_mlflow(folder)),
}

#: How often a run is saved: an epoch may take hours.
_OFTEN = ("1 epoch", "10 minutes")

#: The settings of a run, which must be the same when it goes on.
_SETTINGS = "run.json"


def train(options: argparse.Namespace) -> None:
    """Train, and write record, pictures, the best model and a predictor."""
    job.check(options)
    folder: Path = options.checkpoint
    check_folder("--checkpoint", folder)
    settings = _settings(options)
    cbs = [TRACKERS[name](folder) for name in options.tracker]
    known = _known_to_all(folder, settings)
    job.say("onecycle train: " + ("goes on with a run" if known else "a new run"))
    job.show([*job.told(options), *_told(options, known)])
    cbs.append(Checkpoint(folder / "checkpoints", _OFTEN, on_signal=True))
    cbs.append(SaveModel(folder / "best.pt", monitor="accuracy"))
    learn = job.make_learner(options, [])
    lr_max, result = options.lr_max or known.get("lr_found"), None
    if lr_max is None:
        result = learn.lr_find(show_plot=False)
        job.say(result.to_text())
        lr_max = _suggested(result)
        settings["lr_found"] = lr_max
    if not (known or is_follower()):
        _write(folder, settings)
        if result is not None:
            _draw(folder / "lr_find.png", result.plot)
    resume = folder / "checkpoints" if known else None
    learn.fit_one_cycle(options.epochs, lr_max, policy=options.policy, cbs=cbs, resume=resume)
    if not is_follower():
        _finish(learn, folder)


def _wandb_mode() -> Literal["online", "offline"]:
    return "offline" if os.environ.get("WANDB_MODE") == "offline" else "online"


def _mlflow(folder: Path) -> str:
    """Return the store that the environment names, or one in the folder of the run."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute()}/mlflow.db"


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what makes a run what it is, as a file holds it."""
    data = named(options.data) or str(Path(options.data).resolve())
    return {
        "data": data,
        "weights": None if options.weights is None else str(options.weights.resolve()),
        "resize": options.resize.text,
        "augment": list(options.augment),
        "tracker": list(options.tracker),
        **{name: getattr(options, name) for name in ("arch", "epochs", "lr_max", "policy")},
        **{name: getattr(options, name) for name in ("batch_size", "wd", "precision", "seed")},
    }


def _known_to_all(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what `_known` does: of several processes the first one looks for all."""
    processes = join()
    if processes is None:
        return _known(folder, settings)
    return processes.from_first(lambda: _known(folder, settings))


def _known(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the run that a folder holds, or refuse it; nothing if it is new."""
    file = folder / _SETTINGS
    if not file.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise Problem(f"--checkpoint {folder} is not empty, and holds no run: name another one")
        return {}
    try:
        known: dict[str, Any] = dict(json.loads(file.read_text()))
    except (ValueError, TypeError):
        raise Problem(f"{file} is damaged: name another folder as --checkpoint") from None
    other = [
        f"{name} was {known.get(name)}, and is {value} now"
        for name, value in settings.items()
        if known.get(name) != value
    ]
    if other:
        raise Problem(
            f"{folder} holds another run: {'; '.join(other)}. Name another folder as --checkpoint, "
            "or give the options of that run to go on with it"
        )
    return known


def _told(options: argparse.Namespace, known: dict[str, Any]) -> list[tuple[str, str]]:
    found = known.get("lr_found")
    rate = options.lr_max or (f"{found:.3g}, as found before" if found else "of a range test")
    return [
        ("fit", f"{options.epochs} epochs in batches of {options.batch_size}"),
        ("", f"one cycle, {options.policy}, AdamW, up to a rate {rate}"),
        ("writes", f"{options.checkpoint}: the record, pictures, best.pt and {PREDICTOR}"),
    ]


def _suggested(result: LRFindResult) -> float:
    if result.suggestion is None:
        raise Problem(f"the range test suggests no rate ({result.reason}): give --lr-max a number")
    return result.suggestion


def _write(folder: Path, settings: dict[str, Any]) -> None:
    with atomic_write(folder / _SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings, indent=1))


def _finish(learn: Learner, folder: Path) -> None:
    """Write what is known at the end, of the best epoch."""
    recorder = learn.recorder
    recorder.to_csv(folder / "record.csv")
    _draw(folder / "record.png", recorder.plot_sched, recorder.plot_loss, recorder.plot_metrics)
    learn.export(folder / PREDICTOR)
    confusion = learn.confusion_matrix()
    side = max(4.8, min(12.0, 1.8 + 0.3 * len(confusion.classes)))
    _draw(folder / "confusion.png", confusion.plot, width=1.2 * side, height=side)
    found = learn.validate()
    print(
        f"\nThe best epoch: accuracy {100 * found['accuracy']:.2f} %, "
        f"validation loss {found['valid_loss']:.4f}"
    )
    for actual, said, times in confusion.most_confused(3):
        print(f"  {actual} taken for {said}: {times}")
    print(f"Wrote {', '.join(sorted(file.name for file in folder.iterdir()))} to {folder}")


def _draw(
    path: Path, *plots: Callable[[Any], Any], width: float = 5.7, height: float = 4.2
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(plots), height), layout="constrained")
    axes = figure.subplots(1, len(plots), squeeze=False)[0]
    for plot, ax in zip(plots, axes, strict=True):
        plot(ax)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
