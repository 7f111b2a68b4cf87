"""The bars of range tests and of the fits of studies."""

from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import fastprogress.fastprogress as fastprogress
import pytest
from screen import Clock, Terminal
from torch.optim import SGD

from onecycle import Callback, Learner, Progress
from onecycle.callbacks import run_bar
from onecycle.callbacks.run_bar import RunBar
from onecycle.testing import toy_learner


class Slow(Callback):
    """Lets a second go by with each batch of training."""

    runs_in = frozenset(("fit", "range_test"))
    during = "train"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def before_batch(self, learn: Learner) -> None:
        self._clock.now += 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run_bar, "perf_counter", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def watched(clock: Clock, **options: Any) -> Learner:
    learn = toy_learner(64, 32, opt_func=SGD, cbs=(Slow(clock),), wd=0.01, **options)
    learn.cbs.append(Progress())
    return learn


def shown(terminal: Terminal, run: Callable[[], object]) -> list[str]:
    """Return by its label, in order, each bar that was written."""
    with redirect_stdout(terminal):
        run()
    bars = [part for part in terminal.getvalue().split("\r") if " |" in part]
    return list(dict.fromkeys(part.split(" |")[0] for part in bars))


def test_a_range_test_shows_a_bar_with_its_updates_and_the_loss(
    terminal: Terminal, clock: Clock
) -> None:
    learn = watched(clock)
    assert shown(terminal, lambda: learn.lr_find(1e-4, 0.1, 20, show_plot=False)) == ["range test"]
    written = terminal.getvalue()
    assert "[7/20 " in written
    found = learn.recorder.lr_find_result
    assert f"loss {found.losses[6]:.4f}" in written  # type: ignore[union-attr]
    assert written.split("\r")[-2].strip() == ""  # gone at the end


def test_each_test_of_a_sweep_says_which_of_how_many_it_is(
    terminal: Terminal, clock: Clock
) -> None:
    learn = watched(clock)
    run = partial(learn.lr_find, 1e-4, 0.1, 12, show_plot=False, wds=[0.0, 0.1, 0.2])
    assert shown(terminal, run) == ["range test 1/3", "range test 2/3", "range test 3/3"]


def test_a_diagnosis_shows_its_tests_and_its_fits(terminal: Terminal, clock: Clock) -> None:
    learn = watched(clock)
    run = partial(learn.diagnose, 1.0, 60, lr_usual=0.01, wds=[0.0], n_epoch=1, seeds=[0])
    labels = shown(terminal, run)
    assert labels[:3] == [f"range test {i}/3" for i in (1, 2, 3)]
    assert [label.split(":")[0] for label in labels[3:]] == [f"fit {i}/3" for i in (1, 2, 3)]


def test_a_comparison_and_a_report_show_each_fit(terminal: Terminal, clock: Clock) -> None:
    learn = watched(clock)
    run = partial(learn.compare, 1, 0.01, ["constant", "one_cycle"], seeds=[0, 5])
    assert shown(terminal, run) == [
        f"fit {i}/4: {policy}, seed {seed}"
        for i, (policy, seed) in enumerate(
            [("constant", 0), ("constant", 5), ("one_cycle", 0), ("one_cycle", 5)], 1
        )
    ]
    report = Terminal()
    run = partial(learn.regularization_report, 0.01, wds=[0.0, 0.1], seeds=[0, 1])
    labels = shown(report, run)
    assert labels[0] == "fit 1/4: weight_decay 0, seed 0"
    assert labels[-1] == "fit 4/4: weight_decay 0.1, seed 1"


def test_without_bars_there_are_none(terminal: Terminal, clock: Clock) -> None:
    learn = watched(clock)
    with learn.no_bar():
        assert shown(terminal, lambda: learn.lr_find(1e-4, 0.1, 20, show_plot=False)) == []
        assert shown(terminal, lambda: learn.compare(1, 0.01, ["constant"], seeds=[0])) == []
    assert terminal.getvalue() == ""


def test_a_short_test_has_no_bar(terminal: Terminal, clock: Clock) -> None:
    learn = toy_learner()
    learn.cbs.append(Progress())
    assert shown(terminal, lambda: learn.lr_find(1e-4, 0.1, 20, show_plot=False)) == []


def test_an_error_takes_the_bar_away(terminal: Terminal, clock: Clock) -> None:
    def fail(learn: Learner) -> None:
        if learn.n_updates == 5:
            raise KeyboardInterrupt

    class Fails(Slow):
        def after_batch(self, learn: Learner) -> None:
            fail(learn)

    learn = watched(clock)
    learn.cbs.append(Fails(clock))
    with redirect_stdout(terminal):
        with pytest.raises(KeyboardInterrupt):
            learn.lr_find(1e-4, 0.1, 20, show_plot=False)
        print("next")
    assert terminal.getvalue().endswith("\rnext\n")
    assert not any(isinstance(callback, RunBar) for callback in learn.cbs)


def test_a_notebook_shows_the_bar_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    outputs, seen = list[str](), list[str]()

    class Output:
        def update(self, content: str) -> None:
            outputs[-1] = content
            seen.append(content)

    def display(content: str, display_id: bool = False) -> Output:
        outputs.append(content)
        return Output()

    monkeypatch.setattr(fastprogress, "IN_NOTEBOOK", True)
    monkeypatch.setattr(fastprogress, "display", display, raising=False)
    monkeypatch.setattr(fastprogress, "HTML", str, raising=False)
    watched(clock).lr_find(1e-4, 0.1, 20, show_plot=False)
    assert any("max='20'" in content and "range test loss" in content for content in seen)
    assert outputs[-1] == ""


def test_what_is_measured_is_the_same_with_and_without_a_bar(
    terminal: Terminal, clock: Clock
) -> None:
    learn = watched(clock)
    with redirect_stdout(terminal):
        with_bar = learn.lr_find(1e-4, 0.1, 20, show_plot=False)
    with learn.no_bar():
        without = learn.lr_find(1e-4, 0.1, 20, show_plot=False)
    assert with_bar.losses.tolist() == without.losses.tolist()
