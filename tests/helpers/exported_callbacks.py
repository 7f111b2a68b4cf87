"""Every exported callback, and how to make one."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from trial import Trial

import onecycle
from onecycle import Callback, CSVLogger, OneCycleSchedule, ParamScheduler, SaveModel, linear

EXPORTED = sorted(
    (
        thing
        for name in onecycle.__all__
        if inspect.isclass(thing := getattr(onecycle, name))
        and issubclass(thing, Callback)
        and thing is not Callback
    ),
    key=lambda kind: kind.__name__,
)


def maker(kind: type[Callback], folder: Path) -> Callable[[], Callback]:
    """Return what makes a callback, with the arguments that it cannot do without.

    Skips the test where a tracker's package is missing.
    """
    if kind in (onecycle.MLflow, onecycle.WandB):
        pytest.skip("a run takes seconds: see tests/integration/test_trackers.py")
    if kind in PACKAGES:
        pytest.importorskip(PACKAGES[kind])
    arguments = {
        onecycle.ActivationCheckpointing: [["*"]],
        onecycle.BatchSizeSchedule: [{0: 16, 1: 32}],
        onecycle.When: [Callback(after_step=torch.is_tensor)],
        CSVLogger: [folder / "log.csv"],
        SaveModel: [folder / "best.pt"],
        onecycle.Checkpoint: [folder / "checkpoints", "3 updates"],
        onecycle.JSONLines: [folder / "run.jsonl"],
        onecycle.TensorBoard: [folder / "runs"],
        onecycle.MLflow: ["experiment"],
        onecycle.WandB: ["project"],
        OneCycleSchedule: [0.1],
        onecycle.OptunaPruning: [Trial()],
        ParamScheduler: [{"weight_decay": linear(0.1, 0.0)}],
        onecycle.GradientAccumulation: [2],
        onecycle.LandOnInterrupt: [5],
        onecycle.AttributeScheduler: [nn.Dropout(0.5), "p", linear(0.5, 0.0)],
        onecycle.Cutout: [4],
        onecycle.ProgressiveResizing: [linear(4, 8)],
        onecycle.TorchScheduler: [lambda opt: StepLR(opt, 2)],
        onecycle.PlannedScheduler: [lambda n: {"lr": onecycle.torch_step(n, lr=0.1, step_size=2)}],
    }
    return lambda: kind(*arguments.get(kind, []))


#: What those need that speak to other packages.
PACKAGES = {
    onecycle.OptunaPruning: "optuna",
    onecycle.MLflow: "mlflow",
    onecycle.TensorBoard: "tensorboard",
    onecycle.WandB: "wandb",
}

#: Those that need images, or class labels.
FOR_IMAGES = (
    onecycle.ChannelsLast,
    onecycle.CutMix,
    onecycle.Cutout,
    onecycle.LabelSmoothing,
    onecycle.ProgressiveResizing,
    onecycle.RandomCrop,
    onecycle.RandomFlip,
)
