"""TF32 and cuDNN's benchmark: in force in every run, and as the user had them after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
import torch
from interrupted_lines import Lines
from torch import nn

import onecycle.core.loop
from onecycle import BackendFlags, Callback, CancelFit, Learner, Stage
from onecycle.core.events import EVENTS
from onecycle.testing import check_callback, toy_learner

BACKENDS: Any = torch.backends
FILE = inspect.getfile(BackendFlags)


class Everywhere(BackendFlags):
    """Sets the flags on the CPU too: they are there, and mean nothing."""

    def applies_to(self, device: torch.device) -> bool:
        return True


def older() -> tuple[Any, ...]:
    """Return what torch's older interface says; it raises where the newer one contradicts it."""
    found = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        lambda: BACKENDS.cudnn.allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("raises")
    return tuple(found)


def newer() -> tuple[Any, ...]:
    """Return what torch's newer interface says, and the benchmark flag."""
    products = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
    others = (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.cudnn, BACKENDS)
    found = [owner.fp32_precision for owner in (*products, *others)]
    return (*found, BACKENDS.cudnn.benchmark)


def flags() -> tuple[Any, ...]:
    return older() + newer()


def is_on() -> bool:
    """Tell whether TF32 and the benchmark are in force, by both interfaces."""
    on = older() == ("high", True, True) and newer()[:3] == ("tf32",) * 3
    return on and newer()[-1] is True


def nothing_said() -> None:
    """Leave the flags as torch begins."""


def said_in_the_older_way() -> None:
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.allow_tf32 = False
    BACKENDS.cudnn.benchmark = True


def said_in_the_newer_way() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def said_once_for_all() -> None:
    BACKENDS.fp32_precision = "tf32"


USERS = [nothing_said, said_in_the_older_way, said_in_the_newer_way, said_once_for_all]


@pytest.fixture(autouse=True)
def flags_of_a_new_process() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32, BACKENDS.cudnn.benchmark = True, False
    BACKENDS.cuda.matmul.fp32_precision = BACKENDS.mkldnn.matmul.fp32_precision = "none"
    BACKENDS.fp32_precision = "none"


def watcher() -> tuple[Callback, list[bool]]:
    """Return a callback that notes in every batch and at every update whether the flags are on."""
    seen: list[bool] = []
    in_forward, in_backward = ("before_batch", "after_pred"), ("before_backward", "after_backward")
    events = (*in_forward, *in_backward, "before_step", "after_step", "after_epoch", "after_fit")
    return Callback(**{event: lambda learn: seen.append(is_on()) for event in events}), seen


# --- in force, and put back ----------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
def test_they_are_on_in_the_whole_fit_and_the_users_own_after_it(user: Callable[[], None]) -> None:
    user()
    before = flags()
    watch, seen = watcher()
    learn = toy_learner(cbs=(Everywhere(), watch))
    learn.fit(1)
    assert seen == [True] * (8 * 6 + 8 * 2 + 2)
    assert flags() == before


def test_torch_as_a_new_process_has_it_is_not_what_is_looked_for() -> None:
    watch, seen = watcher()
    toy_learner(cbs=(watch,)).fit(1)
    assert not any(seen)


def test_without_the_older_interface_it_would_raise_in_a_fit() -> None:
    """The control for `is_on`: why the flags are not set by the newer interface alone."""
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    assert older() == ("raises", "raises", True)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, CancelFit])
def test_they_are_the_users_own_after_an_error_in_any_event(error: type[BaseException]) -> None:
    said_in_the_newer_way()
    before = flags()

    def fail(learn: Learner) -> None:
        raise error

    for event in EVENTS:
        failing = Callback(**{event: fail})
        failing.stage = Stage.PREPARE
        for cbs in ([Everywhere(), failing], [failing, Everywhere()]):
            with suppress(error, onecycle.OnecycleError):
                toy_learner(n_batches=1).fit(1, cbs=cbs)
            assert flags() == before, event


def test_flags_that_outlast_a_fit_would_be_noticed() -> None:
    class NeverPutsBack(Everywhere):
        def cleanup_fit(self, learn: Learner) -> None:
            pass

    before = flags()
    toy_learner(n_batches=1).fit(1, cbs=[NeverPutsBack()])
    assert flags() != before


def test_what_a_callback_sets_in_a_fit_does_not_outlast_it() -> None:
    before = flags()

    def switch_off(learn: Learner) -> None:
        torch.set_float32_matmul_precision("highest")

    toy_learner(cbs=(Everywhere(),)).fit(1, cbs=[Callback(before_train=switch_off)])
    assert flags() == before


def test_two_of_them_are_as_one() -> None:
    before = flags()
    watch, seen = watcher()
    toy_learner(cbs=(Everywhere(), watch)).fit(1, cbs=[Everywhere()])
    assert all(seen)
    assert flags() == before


def test_a_clean_up_that_was_cut_short_is_made_good_by_the_next_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut_short(*args: Any) -> None:
        raise KeyboardInterrupt

    before = flags()
    learn = toy_learner(cbs=(Everywhere(),))
    with monkeypatch.context() as patch:
        patch.setattr(onecycle.core.loop, "clean_up", cut_short)
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1)
    assert is_on()
    learn.get_preds()
    learn.lr_find(num_it=2, show_plot=False)
    learn.fit(1)
    assert flags() == before


# --- range tests and inference -------------------------------------------------------------------


@pytest.mark.parametrize("user", USERS)
def test_they_are_on_in_a_range_test(user: Callable[[], None]) -> None:
    user()
    before = flags()
    watch, seen = watcher()
    watch.stage = Stage.PREPARE
    learn = toy_learner(cbs=(Everywhere(), watch))
    learn.lr_find(num_it=4, show_plot=False)
    assert len(seen) > 20
    assert all(seen)
    assert flags() == before


def learner_that_notes(*cbs: Callback) -> tuple[Learner, list[bool]]:
    """Return a learner, and a list of whether the flags were on when its model was called."""
    seen: list[bool] = []
    learn = toy_learner(cbs=cbs, check=False)
    learn.model.register_forward_pre_hook(lambda module, args: seen.append(is_on()))
    return learn, seen


@pytest.mark.parametrize("user", USERS)
def test_they_are_on_in_inference_and_the_users_own_after_it(user: Callable[[], None]) -> None:
    user()
    before = flags()
    learn, seen = learner_that_notes(Everywhere())
    learn.get_preds()
    learn.validate()
    learn.predict(torch.ones(4))
    assert seen == [True] * (8 + 8 + 1)
    assert flags() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_they_are_the_users_own_after_an_error_in_inference(error: type[BaseException]) -> None:
    def fail(module: nn.Module, args: Any) -> None:
        raise error

    before = flags()
    learn, seen = learner_that_notes(Everywhere())
    learn.model[1].register_forward_pre_hook(fail)
    with pytest.raises(error):
        learn.get_preds()
    assert seen == [True]
    assert flags() == before


def test_an_interrupt_while_they_are_set_for_inference_puts_them_back() -> None:
    class Interrupted(Everywhere):
        def switch_on(self) -> None:
            super().switch_on()
            raise KeyboardInterrupt

    before = flags()
    learn, _ = learner_that_notes(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        learn.get_preds()
    assert flags() == before


def test_they_stay_on_in_a_fit_after_a_range_test_and_inference_within_it() -> None:
    before = flags()
    watch, in_events = watcher()
    learn, in_model = learner_that_notes(Everywhere(), watch)
    look = Callback(
        after_pred=lambda learn: learn.get_preds([learn.batch]),
        after_step=lambda learn: learn.lr_find(num_it=2, show_plot=False),
    )
    learn.fit(1, cbs=[look])
    n_valid = 8
    assert len(in_model) == 8 * (1 + 1 + 2) + n_valid * (1 + 1)
    assert all(in_model)
    assert all(in_events)
    assert flags() == before


def test_they_stay_on_in_a_fit_after_a_range_test_that_failed_before_it_set_them() -> None:
    class FailsInRangeTests(Callback):
        stage = Stage.PREPARE

        def before_fit(self, learn: Learner) -> None:
            if learn.running == "range_test":
                raise ValueError("deliberate")

    def look(learn: Learner) -> None:
        with pytest.raises(ValueError, match="deliberate"):
            learn.lr_find(num_it=2, show_plot=False)

    before = flags()
    watch, seen = watcher()
    learn = toy_learner(cbs=(FailsInRangeTests(), Everywhere(), watch))
    learn.fit(1, cbs=[Callback(after_step=look)])
    assert all(seen)
    assert flags() == before


class LinesOfTheFlags(Lines):
    """Interrupts a line of the callback itself."""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        here = frame.f_code.co_filename == FILE
        return super().__call__(frame, event, arg) if here else None


@pytest.mark.parametrize("call", ["fit", "get_preds", "lr_find"])
def test_they_are_the_users_own_after_ctrl_c_at_any_line(call: str) -> None:
    before = flags()
    arguments = {"fit": {"n_epoch": 1}, "lr_find": {"num_it": 2, "show_plot": False}}
    for at in range(1, 1000):
        learn = toy_learner(n_batches=1, cbs=(Everywhere(),))
        try:
            with LinesOfTheFlags(at).traced():
                getattr(learn, call)(**arguments.get(call, {}))
        except KeyboardInterrupt:
            assert flags() == before, f"line {at}"
        else:
            break
    assert 40 < at < 1000


# --- what is chosen ------------------------------------------------------------------------------


def test_each_of_the_two_can_be_left_as_it_is() -> None:
    found = {}
    for tf32, benchmark in ((True, False), (False, True)):
        note = Callback(after_pred=lambda learn, key=tf32: found.update({key: flags()}))
        toy_learner(cbs=(Everywhere(tf32=tf32, benchmark=benchmark), note)).fit(1)
    assert older() == ("highest", False, True)
    assert found[True][:3] == ("high", True, True)
    assert found[True][-1] is False
    assert found[False][:-1] == flags()[:-1]
    assert found[False][-1] is True


def test_they_are_for_cuda_devices_alone() -> None:
    kinds = {"cuda": True, "cuda:1": True, "cpu": False, "mps": False, "xpu": False, "meta": False}
    found = {kind: BackendFlags().applies_to(torch.device(kind)) for kind in kinds}
    assert found == kinds
    watch, seen = watcher()
    toy_learner(cbs=(BackendFlags(), watch)).fit(1)
    assert not any(seen)


def test_results_are_those_without_it_bit_for_bit_on_the_cpu() -> None:
    records = []
    for cbs in ((), (BackendFlags(),)):
        learn = toy_learner(cbs=cbs)
        learn.fit(2)
        records.append((learn.recorder.history["train_loss"].values.tolist(), learn.validate()))
    assert records[0] == records[1]


def test_the_contract_is_kept_where_flags_are_set_too() -> None:
    before = flags()
    check_callback(Everywhere)
    assert flags() == before
