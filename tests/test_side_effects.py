"""A public method of the learner either trains, or leaves all training state bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import LearnerState, trained
from tiny_learner import tiny

from onecycle import Callback, Learner, Recorder, constant, plot_schedule
from onecycle.core.loop import Loop
from onecycle.core.state import LoopState
from onecycle.training.trainer import Trainer
from onecycle.training.turns import Turns

#: What trains, or is meant to change something.
CHANGES = {
    "fine_tune",
    "fit",
    "fit_clr_beta",
    "fit_flat_cos",
    "fit_one_cycle",
    "fit_sgdr",
    "forget_batch",
    "freeze",
    "freeze_norms",
    "freeze_to",
    "go_on_with_rng",
    "join_fit",
    "leave_fit",
    "land",
    "load",
    "plan_pass",
    "plan_updates",
    "recorder.load_state_dict",
    "run_fit",
    "set_mode",
    "unfreeze",
    "to_fp16",
}

#: What is called in the middle of a batch only, by the loop.
OF_THE_LOOP = {
    "batch_size",
    "compute_loss",
    "compute_losses",
    "count_batches",
    "loss_weight",
    "make_handlers",
    "measure_batch",
    "predict_batch",
    "run_validation",
    "stored_beside",
    "whole_batch_size",
}

#: By method the calls that leave nothing behind.
CALLS: dict[str, list[Callable[[Learner, Path], Any]]] = {
    "added_cbs": [lambda learn, _: enter(learn.added_cbs([Callback()]))],
    "compare": [lambda learn, _: learn.compare(1, 0.01, ["constant"], seeds=[0, 1])],
    "diagnose": [lambda learn, _: learn.diagnose(0.1, 20, wds=[0.1], lr_usual=0.01, verify=False)],
    "epoch_length": [lambda learn, _: learn.epoch_length(1)],
    "epoch_lengths": [lambda learn, _: learn.epoch_lengths()],
    "epochs_left": [lambda learn, _: learn.epochs_left()],
    "find_batch_size": [lambda learn, _: learn.find_batch_size(3)],
    "get_preds": [
        lambda learn, _: learn.get_preds(),
        lambda learn, _: learn.get_preds(learn.dls.train, inference_mode=True),
    ],
    "infer": [lambda learn, _: learn.infer(learn.dls.train, lambda learn: None)],
    "lr_find": [
        lambda learn, _: learn.lr_find(num_it=6),
        lambda learn, _: learn.lr_find(num_it=4, valid=True, show_plot=False),
        lambda learn, _: learn.lr_find(num_it=3, wds=[0.0, 0.1], show_plot=False),
        lambda learn, _: learn.lr_find(num_it=3, moms=[0.5], linear=True, show_plot=False),
        lambda learn, _: learn.lr_find(num_it=3, batch_sizes=[2], show_plot=False),
    ],
    "confusion_matrix": [lambda learn, _: confuse(learn)],
    "show_batch": [lambda learn, _: learn.show_batch(2)],
    "show_results": [lambda learn, _: learn.show_results(2)],
    "top_losses": [lambda learn, _: learn.top_losses(2)],
    "check": [lambda learn, _: learn.check(), lambda learn, _: learn.check(batches=2)],
    "no_bar": [lambda learn, _: enter(learn.no_bar())],
    "predict": [lambda learn, _: learn.predict(torch.zeros(4))],
    "regularization_report": [
        lambda learn, _: learn.regularization_report(0.01, wds=[0.0, 0.1], seeds=[0, 1])
    ],
    "removed_cbs": [lambda learn, _: enter(learn.removed_cbs(Recorder))],
    "shortfall": [lambda learn, _: learn.shortfall()],
    "save": [lambda learn, folder: learn.save(folder / "model.pt")],
    "export": [lambda learn, folder: learn.export(folder / "model.onecycle")],
    "show_training_loop": [lambda learn, _: learn.show_training_loop()],
    "summary": [lambda learn, _: str(learn.summary())],
    "tta": [lambda learn, _: learn.tta(transforms=[lambda x: x, lambda x: -x])],
    "updates_left": [lambda learn, _: learn.updates_left()],
    "validate": [
        lambda learn, _: learn.validate(),
        lambda learn, _: learn.validate(learn.dls.train),
    ],
    "recorder.plot_loss": [lambda learn, _: learn.recorder.plot_loss()],
    "recorder.plot_lr_find": [lambda learn, _: learn.recorder.plot_lr_find()],
    "recorder.plot_metrics": [lambda learn, _: learn.recorder.plot_metrics()],
    "recorder.plot_sched": [lambda learn, _: learn.recorder.plot_sched()],
    "recorder.state_dict": [lambda learn, _: learn.recorder.state_dict()],
    "recorder.takes_part_in": [lambda learn, _: learn.recorder.takes_part_in("fit")],
    "recorder.forward_context": [lambda learn, _: learn.recorder.forward_context(learn)],
    "recorder.to_csv": [lambda learn, folder: learn.recorder.to_csv(folder / "record.csv")],
    "recorder.to_frame": [lambda learn, _: learn.recorder.to_frame()],
    "plot_schedule": [lambda learn, _: plot_schedule(constant(0.1))],
}

#: What makes fits of its own, which nobody can do within a fit.
NOT_WITHIN_A_FIT = {"compare", "find_batch_size", "regularization_report"}

EVERY_CALL = [(name, call) for name, calls in CALLS.items() for call in calls]
IDS = [f"{name} {calls.index(call) + 1}" for name, calls in CALLS.items() for call in calls]


def confuse(learn: Learner) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"scores of shape|deliberate"):
        learn.confusion_matrix()


def enter(block: AbstractContextManager[None]) -> None:
    with block:
        pass


def public_methods(*kinds: type, prefix: str = "") -> set[str]:
    """List the public methods that the classes themselves define."""
    return {
        prefix + name
        for kind in kinds
        for name, thing in vars(kind).items()
        if callable(thing) and not name.startswith(("_", "before_", "after_", "cleanup_"))
    }


def test_every_public_method_either_trains_or_is_known_to_leave_nothing_behind() -> None:
    found = public_methods(Learner, Trainer, Turns, Loop, LoopState)
    found |= public_methods(Recorder, prefix="recorder.")
    assert found - CALLS.keys() - CHANGES - OF_THE_LOOP == set()
    assert CHANGES & CALLS.keys() == set()
    gone = (CALLS.keys() | CHANGES | OF_THE_LOOP) - found
    assert gone <= {"plot_schedule", "recorder.takes_part_in", "recorder.forward_context"}


def settled(learn: Learner) -> LearnerState:
    """Return the state, after what a mere look at the record reads from the device."""
    for series in learn.recorder.history.values():
        series.values  # noqa: B018 - reads what waits
    return LearnerState(learn)


@pytest.mark.parametrize(("name", "call"), EVERY_CALL, ids=IDS)
class TestWithoutSideEffects:
    def test_every_object_and_bit_is_as_before(self, name: str, call: Any, tmp_path: Path) -> None:
        learn = tiny()
        learn.fit(1)
        learn.lr_find(num_it=3, show_plot=False)
        before = settled(learn)
        call(learn, tmp_path)
        assert before.changes(LearnerState(learn)) == []

    def test_called_between_two_updates_the_fit_ends_in_the_same_bits(
        self, name: str, call: Any, tmp_path: Path
    ) -> None:
        def look(learn: Learner) -> None:
            before = settled(learn)
            if name in NOT_WITHIN_A_FIT:
                with pytest.raises(RuntimeError, match="is running"):
                    call(learn, tmp_path)
            else:
                call(learn, tmp_path)
            assert before.changes(LearnerState(learn)) == []

        ends = []
        for events in ({}, {"after_step": look, "after_epoch": look}):
            torch.manual_seed(2)
            learn = tiny()
            learn.fit(1)
            learn.lr_find(num_it=3, show_plot=False)
            learn.fit_one_cycle(2, 0.01, cbs=[Callback(**events)])
            ends.append(trained(learn))
        assert ends[0] == ends[1]

    def test_also_after_an_error_inside(self, name: str, call: Any, tmp_path: Path) -> None:
        learn = tiny()
        learn.fit(1)
        learn.lr_find(num_it=3, show_plot=False)
        n = 0

        def fail(module: Any, args: Any) -> None:
            nonlocal n
            n += 1
            if n == 2:
                torch.rand(3)
                raise RuntimeError("deliberate")

        learn.model[2].register_forward_pre_hook(fail)  # type: ignore[index]
        before = settled(learn)
        with suppress(RuntimeError):
            call(learn, tmp_path)
        assert before.changes(LearnerState(learn)) == []


def test_the_comparison_finds_a_call_that_trains() -> None:
    learn = tiny()
    before = LearnerState(learn)
    learn.fit(1)
    assert any("model" in path for path in before.changes(LearnerState(learn)))
