"""Every exported callback keeps the rules that every callback must keep."""

from pathlib import Path

import pytest
from exported_callbacks import EXPORTED, FOR_IMAGES, maker
from image_learner import image_learner

import onecycle
from onecycle import Callback, CancelFit, Learner, LRFinder, MomentumCycler, SaveModel, Stage
from onecycle.testing import check_callback, toy_learner


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
