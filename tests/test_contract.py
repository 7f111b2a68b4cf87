"""Every exported callback keeps the rules that every callback must keep."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from image_learner import image_learner
from torch import nn
from torch.optim.lr_scheduler import StepLR

import onecycle
from onecycle import (
    Callback,
    CancelFit,
    CSVLogger,
    Learner,
    LRFinder,
    MomentumCycler,
    OneCycleSchedule,
    ParamScheduler,
    SaveModel,
    Stage,
    linear,
)
from onecycle.testing import check_callback, toy_learner

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
    """Return what makes a callback, with the arguments that it cannot do without."""
    arguments = {
        CSVLogger: [folder / "log.csv"],
        SaveModel: [folder / "best.pt"],
        onecycle.Checkpoint: [folder / "checkpoints", "3 updates"],
        OneCycleSchedule: [0.1],
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


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_every_exported_callback_keeps_the_contract(kind: type[Callback], tmp_path: Path) -> None:
    if kind is LRFinder:
        pytest.skip("takes part in range tests only, and changes what they change")
    check_callback(maker(kind, tmp_path), image_learner if kind in FOR_IMAGES else toy_learner)


def test_every_exported_callback_is_found() -> None:
    assert {MomentumCycler, SaveModel, onecycle.Recorder, onecycle.Progress} <= set(EXPORTED)
    assert len(EXPORTED) >= 14


class LeavesGradients(Callback):
    def cleanup_fit(self, learn: Learner) -> None:
        self.model = learn.model

    def after_fit(self, learn: Learner) -> None:
        learn.stepper.zero_grad = lambda: None
        for p in learn.model.parameters():
            p.grad = p.detach().clone()


class SwallowsErrors(Callback):
    def cleanup_fit(self, learn: Learner) -> None:
        if learn.n_updates == 3:
            raise CancelFit("hides what happened")


class ForgetsItsState(Callback):
    n = 0

    def after_step(self, learn: Learner) -> None:
        self.n += 1

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n}


class CountsInRangeTests(Callback):
    stage = Stage.PREPARE
    n = 0

    def after_step(self, learn: Learner) -> None:
        type(self).n += 1

    def state_dict(self) -> dict[str, int]:
        return {"n": self.n}


@pytest.mark.parametrize(
    "kind", [LeavesGradients, SwallowsErrors, ForgetsItsState, CountsInRangeTests]
)
def test_the_contract_check_finds_a_callback_that_breaks_a_rule(kind: type[Callback]) -> None:
    with pytest.raises((AssertionError, onecycle.OnecycleError)):
        check_callback(kind)


def test_the_toy_learner_is_the_same_each_time() -> None:
    first, second = toy_learner(), toy_learner()
    for learn in (first, second):
        learn.fit_one_cycle(2, 0.1)
    assert first.validate() == second.validate()
