import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout

import fastprogress.fastprogress as fastprogress
import pytest
import torch
from screen import Clock, Terminal
from torch import nn

from onecycle import (
    Callback,
    CancelEpoch,
    CancelFit,
    CancelValid,
    Learner,
    Progress,
    Recorder,
    Throughput,
)
from onecycle.callbacks import progress
from onecycle.data.loaders import TensorLoader
from onecycle.errors import MissingCallbackError
from onecycle.record.metrics import mse
from onecycle.testing import toy_learner

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def on_screen(written: str) -> list[str]:
    """Play what was written on a terminal that knows carriage return and newline."""
    lines = [""]
    column = 0
    for char in written:
        if char == "\n":
            lines.append("")
            column = 0
        elif char == "\r":
            column = 0
        else:
            lines[-1] = lines[-1][:column].ljust(column) + char + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def raising(error: BaseException, *, epoch: int = 0, batch: int = 4) -> Callback:
    def raise_it(learn: Learner) -> None:
        if learn.training and (learn.epoch, learn.iter) == (epoch, batch):
            raise error

    return Callback(after_loss=raise_it)


# The table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("validates", [True, False])
def test_throughput_is_a_column_where_it_is_asked_for(capsys: Capture, validates: bool) -> None:
    learn = toy_learner(metrics=[])
    learn.dls.valid = learn.dls.valid if validates else None
    learn.fit(2, cbs=[Throughput(), Progress()])
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    losses = ["train_loss", "valid_loss"] if validates else ["train_loss"]
    assert header == ["epoch", *losses, "samples_per_s", "time"]
    rates = learn.recorder.history["samples_per_s"].values
    assert [row[-2] for row in rows] == [progress.number(rate) for rate in rates]


def test_each_epoch_is_one_plain_line_where_the_output_is_no_terminal(
    capsys: Capture, clock: Clock
) -> None:
    learn = toy_learner(n_batches=4)
    after_each_epoch: list[dict[str, float]] = []
    look = Callback(after_epoch=lambda learn: after_each_epoch.append(learn.validate()))
    learn.fit(2, lr=0.05, cbs=[Progress(), look, clock.callback(0.5)])
    means = learn.recorder.history["train_loss"].values.reshape(2, 4).mean(axis=1)
    first, second = (f"{v['valid_loss']:13.6f}{v['mse']:13.6f}" for v in after_each_epoch)
    assert capsys.readouterr().out.split("\n") == [
        "epoch   train_loss   valid_loss          mse     time",
        f"    0{means[0]:13.6f}{first}     0:04",
        f"    1{means[1]:13.6f}{second}     0:04",
        "",
    ]


def test_an_output_that_is_no_terminal_gets_no_carriage_return(
    capsys: Capture,
) -> None:
    learn = toy_learner()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, cbs=[Progress(), raising(KeyboardInterrupt(), epoch=1)])
    out = capsys.readouterr().out
    assert "\r" not in out
    assert out.count("\n") == 2


def test_train_loss_is_the_mean_over_the_updates_of_this_epoch_alone(
    capsys: Capture,
) -> None:
    learn = toy_learner(n_batches=4, metrics=[])
    learn.dls.valid = None
    learn.fit(3, lr=0.05)
    learn.fit(1, lr=0.05, cbs=[Progress()])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["epoch", "train_loss", "time"]
    assert row.split()[1] == f"{sum(learn.recorder.history['train_loss'].values[12:]) / 4:.6f}"


def test_a_metric_with_a_long_name_keeps_the_columns_aligned(
    capsys: Capture,
) -> None:
    learn = toy_learner(metrics=[nn.functional.binary_cross_entropy_with_logits, mse])
    learn.fit(2, cbs=[Progress()])
    lines = capsys.readouterr().out.splitlines()
    assert len({tuple(m.end() for m in re.finditer(r"\S+", line)) for line in lines}) == 1


def test_a_quantity_recorded_in_validation_gets_a_column_when_it_appears(
    capsys: Capture,
) -> None:
    def record(learn: Learner) -> None:
        learn.recorder.history.series("norm").append(learn.total_updates, 1.0)
        if learn.epoch > 0:
            learn.recorder.history.series("late").append(learn.total_updates, 0.25)

    each_update = Callback(after_step=record_each_update)
    learn = toy_learner()
    learn.fit(2, cbs=[Progress(), each_update, Callback(after_validate=record)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "epoch", "0", "epoch", "1"]
    assert " ".join(lines[3].split()) == "epoch train_loss valid_loss mse norm late time"
    assert lines[4].split()[4:6] == ["1.000000", "0.250000"]


def record_each_update(learn: Learner) -> None:
    learn.recorder.history.series("each_update").append(learn.total_updates, 2.0)


def test_what_an_epoch_did_not_compute_is_blank(capsys: Capture, clock: Clock) -> None:
    def no_validation(learn: Learner) -> None:
        if learn.epoch == 1:
            raise CancelValid

    def no_training(learn: Learner) -> None:
        if learn.epoch == 0:
            raise CancelEpoch

    learn = toy_learner(n_batches=2)
    cancels = Callback(before_train=no_training, before_validate=no_validation)
    learn.fit(2, cbs=[Progress(), cancels])
    lines = capsys.readouterr().out.splitlines()
    mean = sum(learn.recorder.history["train_loss"].values) / 2
    assert lines[1:] == ["    0" + " " * 39 + "     0:00", f"    1{mean:13.6f}" + " " * 31 + "0:00"]


def test_the_reason_of_a_cancel_is_the_last_line(capsys: Capture) -> None:
    toy_learner().fit(3, cbs=[Progress(), raising(CancelFit("good enough"), epoch=1)])
    assert capsys.readouterr().out.splitlines()[2:] == ["stop_reason: good enough"]


def test_a_range_test_and_validation_show_nothing(capsys: Capture) -> None:
    learn = toy_learner()
    learn.cbs.append(Progress())
    learn.lr_find(num_it=20, show_plot=False)
    learn.validate()
    assert capsys.readouterr().out == ""


def test_a_fit_without_recorder_is_refused() -> None:
    learn = toy_learner()
    with learn.removed_cbs(Recorder), pytest.raises(MissingCallbackError, match="Recorder"):
        learn.fit(1, cbs=[Progress()])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0:00"), (3, "0:03"), (59.6, "1:00"), (754, "12:34"), (3661, "1:01:01")],
)
def test_time_is_shown_as_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert progress.clock(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.000000"),
        (-999.5, "-999.500000"),
        (1e-4, "0.000100"),
        (-1.23456e-5, "-1.235e-05"),
        (123456.0, "1.235e+05"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_fit_their_column(value: float, shown: str) -> None:
    assert progress.number(value) == shown
    assert len(shown) <= 11


# Bars in a terminal --------------------------------------------------------------------------


def test_a_terminal_shows_the_table_alone_when_the_fit_is_done(
    terminal: Terminal, clock: Clock
) -> None:
    learn = toy_learner(n_batches=4)
    with redirect_stdout(terminal):
        learn.fit(3, cbs=[Progress(), clock.callback(1.0)])
    screen = on_screen(terminal.getvalue())
    assert [line.split()[0] for line in screen[:-1]] == ["epoch", "0", "1", "2"]
    assert screen[-1] == ""
    assert all(len(line) == len(screen[0]) for line in screen[:-1])


def test_a_terminal_bar_names_epoch_and_pass_and_the_latest_loss(
    terminal: Terminal, clock: Clock
) -> None:
    learn = toy_learner(n_batches=4)
    with redirect_stdout(terminal):
        learn.fit(2, lr=0.05, cbs=[Progress(), clock.callback(1.0)])
    lines = terminal.getvalue().split("\r")
    third = next(line for line in lines if line.startswith("epoch 2/2 train") and "[3/4" in line)
    assert f"loss {learn.recorder.history['train_loss'].values[6]:.4f}]" in third
    assert any(line.startswith("epoch 1/2 valid") for line in lines)


def test_a_bar_covers_what_was_written_before_it(terminal: Terminal, clock: Clock) -> None:
    learn = toy_learner(n_batches=4)
    with redirect_stdout(terminal):
        learn.fit(2, cbs=[Progress(), clock.callback(1.0)])
    bars = [
        line for line in terminal.getvalue().split("\r") if line.startswith("epoch 1/2 train |")
    ]
    assert len(bars) == 5
    assert {len(bar) for bar in bars} == {99}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken")])
def test_after_an_interrupted_fit_the_next_print_starts_on_a_fresh_line(
    terminal: Terminal, clock: Clock, error: BaseException
) -> None:
    learn = toy_learner()
    with redirect_stdout(terminal), pytest.raises(type(error)):
        learn.fit(1, cbs=[Progress(), clock.callback(1.0), raising(error)])
    with redirect_stdout(terminal):
        print("next")
    _, bar, *rest = on_screen(terminal.getvalue())
    assert rest == ["next", ""]
    assert "[4/8 " in bar


def test_the_fit_after_an_interrupted_one_shows_its_table_whole(
    terminal: Terminal, clock: Clock
) -> None:
    learn = toy_learner()
    learn.cbs.append(Progress())
    with redirect_stdout(terminal), pytest.raises(KeyboardInterrupt):
        learn.fit(1, cbs=[clock.callback(1.0), raising(KeyboardInterrupt())])
    with redirect_stdout(terminal):
        learn.fit(1, cbs=[clock.callback(1.0)])
    screen = on_screen(terminal.getvalue())
    assert [line.split()[0] for line in screen[:-1]] == ["epoch", "epoch", "epoch", "0"]


def test_an_error_before_the_table_begins_is_not_hidden(terminal: Terminal) -> None:
    def fail(learn: Learner) -> None:
        raise ValueError("before all")

    with redirect_stdout(terminal), pytest.raises(ValueError, match="before all"):
        toy_learner().fit(1, cbs=[Callback(before_fit=fail), Progress()])
    assert terminal.getvalue() == ""


def test_a_fit_cancelled_before_the_table_begins_says_why(terminal: Terminal) -> None:
    def cancel(learn: Learner) -> None:
        raise CancelFit("nothing to do")

    with redirect_stdout(terminal):
        toy_learner().fit(1, cbs=[Callback(before_fit=cancel), Progress()])
    assert terminal.getvalue() == "stop_reason: nothing to do\n"


def test_unknown_numbers_of_epochs_and_batches_are_left_out(
    terminal: Terminal, clock: Clock
) -> None:
    class Endless:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return itertools.repeat((torch.zeros(2, 4), torch.zeros(2, 1)), 3)

    learn = toy_learner()
    learn.dls.train = Endless()
    with redirect_stdout(terminal):
        learn.fit(None, max_updates=6, cbs=[Progress(), clock.callback(1.0)])
    written = terminal.getvalue()
    bars = [line for line in written.split("\r") if line.startswith("epoch 1 train")]
    assert "[2/6 " in bars[2]  # of an iterable of unknown length only the limit is known
    assert on_screen(written)[2].split()[0] == "1"

    with redirect_stdout(terminal):
        learn.fit(1, cbs=[Progress(), clock.callback(1.0)])
    assert "[2/? " in terminal.getvalue()


def test_a_narrow_terminal_gets_the_table_without_bars(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    with redirect_stdout(terminal):
        toy_learner().fit(1, cbs=[Progress()])
    assert "\r" not in terminal.getvalue()


# Bars in a notebook --------------------------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let fastprogress think it runs in one; return the latest content of each output."""
    outputs: list[str] = []

    class Output:
        def __init__(self, content: str) -> None:
            self.place = len(outputs)
            outputs.append(content)

        def update(self, content: str) -> None:
            outputs[self.place] = content

    def display(content: str, display_id: bool = False) -> Output:
        return Output(content)

    monkeypatch.setattr(fastprogress, "IN_NOTEBOOK", True)
    monkeypatch.setattr(fastprogress, "display", display, raising=False)
    monkeypatch.setattr(fastprogress, "HTML", str, raising=False)
    return outputs


def cells(html: str) -> list[list[str]]:
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in html.split("</tr>")[:-1]]


def test_a_notebook_shows_the_table_alone_when_the_fit_is_done(
    notebook: list[str], clock: Clock, capsys: Capture
) -> None:
    learn = toy_learner(n_batches=4)
    learn.fit(2, lr=0.05, cbs=[Progress(), clock.callback(1.0)])
    means = learn.recorder.history["train_loss"].values.reshape(2, 4).mean(axis=1)
    header, first, second = cells(notebook[-1])
    assert header == ["epoch", "train_loss", "valid_loss", "mse", "time"]
    assert first[:2] == ["0", f"{means[0]:.6f}"]
    assert second[:2] == ["1", f"{means[1]:.6f}"]
    assert second[-1] == "0:08"
    assert "<progress" not in notebook[-1]
    assert capsys.readouterr().out == ""


def test_a_notebook_keeps_the_interrupted_bar_and_the_finished_rows(
    notebook: list[str], clock: Clock
) -> None:
    learn = toy_learner(n_batches=6)
    stop = raising(CancelFit("loss < 1"), epoch=1)
    learn.fit(3, cbs=[Progress(), clock.callback(1.0), stop])
    assert notebook[-1].count("<progress") == 2
    assert "progress-bar-interrupted' max='6'" in notebook[-1]
    assert "value='1' class='' max='3'" in notebook[-1]
    assert "stop_reason: loss &lt; 1" in notebook[-1]
    assert len(cells(notebook[-1])) == 2


def test_a_notebook_shows_the_loss_of_the_latest_batch(notebook: list[str], clock: Clock) -> None:
    seen: list[str] = []
    learn = toy_learner(n_batches=4)
    look = Callback(after_batch=lambda learn: seen.append(notebook[-1]))
    learn.fit(1, lr=0.05, cbs=[Progress(), look, clock.callback(1.0)])
    loss = learn.recorder.history["train_loss"].values[2]
    assert f"epoch 1/1 train loss {loss:.4f}]" in seen[2]


# Cost ----------------------------------------------------------------------------------------


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> Callable[[], int]:
    original, calls = getattr(owner, name), itertools.count()

    def counted(self: object, *args: object) -> object:
        next(calls)
        return original(self, *args)

    monkeypatch.setattr(owner, name, counted)
    return lambda: next(calls)


def test_a_bar_is_refreshed_ten_times_a_second_at_most(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshes = count_calls(monkeypatch, fastprogress.ConsoleProgressBar, "update_bar")
    reads = count_calls(monkeypatch, torch.Tensor, "__float__")
    learn = toy_learner(n_batches=1000, batch_size=1, metrics=[])
    learn.dls.valid = None
    with redirect_stdout(terminal):
        learn.fit(1, cbs=[Progress(), clock.callback(1e-3)])
    assert 4 <= refreshes() <= 10
    assert 4 <= reads() <= 10


def test_short_passes_share_the_refreshes_of_a_long_one(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshes = count_calls(monkeypatch, fastprogress.ConsoleProgressBar, "update_bar")
    x = torch.ones(1, 4)
    loader = TensorLoader(x, x.sum(1, keepdim=True), batch_size=1)
    learn = Learner((loader, loader), nn.Linear(4, 1), nn.functional.mse_loss, device="cpu", seed=0)
    with redirect_stdout(terminal):
        learn.fit(500, cbs=[clock.callback(1e-3)])
    assert refreshes() <= 2 * (1 / progress.REFRESH + 1)  # a bar opened late is drawn twice
