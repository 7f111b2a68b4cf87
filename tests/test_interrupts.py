"""Ctrl-C at any moment: the record is whole, and the learner is ready at once."""

from __future__ import annotations

import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from afterwards import left_behind, not_ready
from interrupted_lines import Lines
from learner_state import LearnerState
from tiny_learner import tiny

from onecycle import Callback, Learner


@pytest.fixture(autouse=True)
def gradients_on() -> Iterator[None]:
    """Let no test that fails here switch gradients off in all that come after it."""
    yield
    torch.set_grad_enabled(True)


def fit(learn: Learner) -> None:
    learn.fit(2, lr=0.01)


INFERENCE: dict[str, Callable[[Learner], Any]] = {
    "lr_find": lambda learn: learn.lr_find(num_it=4, show_plot=False),
    "lr_find with validation": lambda learn: learn.lr_find(num_it=2, valid=True, show_plot=False),
    "validate": lambda learn: learn.validate(),
    "get_preds": lambda learn: learn.get_preds(learn.dls.train),
}


def fitted() -> Learner:
    learn = tiny()
    learn.fit(1)
    return learn


def moments(call: Callable[[Learner], Any], learn: Learner, n: int | None) -> list[int]:
    """Return so many lines of a call, drawn with a seed; all of them: at two starts and the end.

    A line that runs for each batch stands in many places between the second and the last time
    that it runs, and they are alike.
    """
    lines = Lines()
    with lines.traced():
        call(learn)
    if n is None:
        return sorted({at for runs in lines.runs.values() for at in (*runs[:2], runs[-1])})
    return sorted(random.Random(0).sample(range(1, lines.n + 1), n))


def interrupted(learn: Learner, call: Callable[[Learner], Any], at: int) -> str:
    """Interrupt a call at one of its lines; return where that was.

    What is kept for the life of the process is not made again: a call may end before that line.
    """
    lines = Lines(at)
    try:
        with lines.traced():
            call(learn)
    except KeyboardInterrupt as error:
        last = traceback.extract_tb(error.__traceback__)[-2]
        return f"line {at}, {last.filename}:{last.lineno}"
    assert lines.n < at, f"the interrupt at line {at} of {lines.n} was lost"
    return f"after all {lines.n} lines"


def check_fits(n: int | None) -> None:
    broken = []
    for at in moments(fit, tiny(), n):
        torch.manual_seed(1)
        learn = tiny()
        place = interrupted(learn, fit, at)
        wrong = left_behind(learn, None) or not_ready(learn, Callback, None)
        broken += [f"{place}: {rule}" for rule in wrong]
    assert broken == []


def check_inference(name: str, n: int | None) -> None:
    call = INFERENCE[name]
    broken = []
    for at in moments(call, fitted(), n):
        torch.manual_seed(1)
        learn = fitted()
        before = LearnerState(learn)
        place = interrupted(learn, call, at)
        broken += [f"{place}: {path}" for path in before.changes(LearnerState(learn))]
    assert broken == []


def test_ctrl_c_at_any_line_of_a_fit_leaves_a_whole_record_and_a_learner_that_fits() -> None:
    check_fits(60)


@pytest.mark.parametrize("name", INFERENCE)
def test_ctrl_c_at_any_line_of_what_has_no_effect_leaves_no_effect(name: str) -> None:
    check_inference(name, 25)


@pytest.mark.slow
def test_ctrl_c_at_every_line_of_a_fit_leaves_a_whole_record_and_a_learner_that_fits() -> None:
    check_fits(None)


@pytest.mark.slow
@pytest.mark.parametrize("name", INFERENCE)
def test_ctrl_c_at_every_line_of_what_has_no_effect_leaves_no_effect(name: str) -> None:
    check_inference(name, None)


def struck(learn: Learner, call: Callable[[Learner], Any], seconds: float) -> bool:
    """Let a signal interrupt a call after some time; tell whether it came before the end.

    A signal is heard where a function begins. The beginnings of what puts things back are spared,
    as by a trace: a tenth of a microsecond each, before it can do anything about it.
    """

    def strike(signum: int, frame: FrameType | None) -> None:
        assert frame is not None
        begins = frame.f_lineno == frame.f_code.co_firstlineno
        if not (begins and frame.f_code.co_name in ("surely", "__exit__")):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call(learn)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGALRM, before)
    return False


def seconds_of(call: Callable[[Learner], Any]) -> float:
    learn, found = tiny(), []
    for _ in range(4):
        began = time.perf_counter()
        call(learn)
        found.append(time.perf_counter() - began)
    return min(found)


# Where Python drops an exception, as in a finalizer, the interrupt is lost and the call goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_at_any_moment_of_a_fit_leaves_a_whole_record_and_a_learner_that_fits() -> None:
    rng, longest, n_struck = random.Random(0), seconds_of(fit), 0
    for _ in range(50):
        torch.manual_seed(1)
        learn = tiny()
        n_struck += struck(learn, fit, rng.uniform(0, longest))
        assert left_behind(learn, None) == []
        assert not_ready(learn, Callback, None) == []
    assert n_struck > 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", INFERENCE)
def test_a_signal_at_any_moment_of_what_has_no_effect_leaves_no_effect(name: str) -> None:
    call = INFERENCE[name]
    rng, longest, n_struck = random.Random(0), seconds_of(call), 0
    learn = fitted()
    for _ in range(30):
        before = LearnerState(learn)
        n_struck += struck(learn, call, rng.uniform(0, longest))
        assert before.changes(LearnerState(learn)) == []
    assert n_struck > 3


def test_a_block_that_ctrl_c_kept_from_being_left_puts_no_old_callbacks_back_later() -> None:
    learn = tiny()
    before = learn.cbs
    around, within = learn.added_cbs([Callback()]), learn.added_cbs([Callback()])
    with around:
        within.__enter__()  # and Ctrl-C comes before the block that it opens
    assert learn.cbs is before
    del within  # as when the error that held it is gone
    assert learn.cbs is before
