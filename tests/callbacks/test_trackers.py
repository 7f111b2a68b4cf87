import json
import logging
import sys

import numpy as np
import pytest

from onecycle import (
    Callback,
    CancelFit,
    Checkpoint,
    JSONLines,
    MLflow,
    SaveModel,
    TensorBoard,
    WandB,
)
from onecycle.callbacks import trackers
from onecycle.testing import toy_learner


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path):
    return [line for line in lines(path) if "update" in line]


def series(path, name):
    found = [(row["update"], float(row[name])) for row in rows(path) if name in row]
    return [update for update, _ in found], [value for _, value in found]


def same_as_record(path, history, names):
    for name in names:
        updates, values = series(path, name)
        assert updates == history[name].updates.tolist()
        assert values == history[name].values.tolist()


class KilledError(Exception):
    pass


def kill_at(update):
    def kill(learn):
        if learn.training and learn.n_updates == update:
            raise KilledError

    return Callback(after_pred=kill)


# What every tracker does, seen in the file of JSON lines -------------------------------------


def test_every_series_of_the_record_is_written_with_the_same_bits(tmp_path):
    learn, path = toy_learner(n_batches=5), tmp_path / "new" / "run.jsonl"
    learn.fit_one_cycle(3, 0.1, cbs=[JSONLines(path)])
    assert [row["update"] for row in rows(path)] == [*range(1, 16)]
    same_as_record(
        path, learn.recorder.history, ["train_loss", "lr", "momentum", "valid_loss", "mse"]
    )
    assert series(path, "epoch") == ([5, 10, 15], [1, 2, 3])


def test_groups_have_a_name_each(tmp_path):
    learn = toy_learner(splitter=lambda m: [m[0].parameters(), m[2].parameters()])
    learn.fit(1, [0.25, 0.5], cbs=[JSONLines(tmp_path / "run.jsonl")])
    assert series(tmp_path / "run.jsonl", "lr_0")[1] == [0.25] * 8
    assert series(tmp_path / "run.jsonl", "lr_1")[1] == [0.5] * 8


def test_a_block_is_written_before_the_epoch_is_done_and_nothing_is_read_in_between(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(trackers, "BLOCK", 4)
    path, seen = tmp_path / "run.jsonl", []
    look = Callback(after_batch=lambda learn: seen.append(len(rows(path))))
    look.during, look.stage = "train", trackers.Stage.SAVE
    toy_learner(n_batches=10).fit(1, cbs=[JSONLines(path), look])
    assert seen == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    assert len(rows(path)) == 10


def test_settings_are_those_of_the_fit(tmp_path):
    path = tmp_path / "run.jsonl"
    toy_learner().fit_one_cycle(2, 0.5, wd=0.25, cbs=[JSONLines(path, name="first")])
    first = lines(path)[0]
    assert first["run"] == "first"
    expected = {
        "model": "Sequential",
        "parameters": 4 * 8 + 8 + 8 + 1,
        "opt": "AdamW",
        "weight_decay": 0.25,
        "batch_size": 8,
        "cycle.lr_max": 0.5,
        "n_epoch": 2,
        "seed": 0,
    }
    assert {name: first["settings"][name] for name in expected} == expected


def test_what_is_not_finite_is_written_in_strict_json(tmp_path):
    learn, path = toy_learner(n_batches=3), tmp_path / "run.jsonl"
    losses = [float("nan"), float("inf"), float("-inf")]
    spoil = Callback(
        before_step=lambda learn: setattr(learn, "update_loss", losses[learn.n_updates])
    )
    learn.fit(1, cbs=[JSONLines(path), spoil])
    assert [row["train_loss"] for row in rows(path)] == ["NaN", "Infinity", "-Infinity"]
    assert np.array_equal(series(path, "train_loss")[1], losses, equal_nan=True)


def test_range_tests_and_studies_write_nothing(tmp_path):
    path = tmp_path / "run.jsonl"
    learn = toy_learner(n_batches=4, cbs=(JSONLines(path),))
    learn.lr_find(show_plot=False)
    learn.compare(1, 0.1, ["constant"], seeds=[0])
    learn.validate()
    learn.check()
    assert not path.exists()
    learn.fit(1)
    assert len(rows(path)) == 4


def test_a_range_test_before_the_fit_is_written_once(tmp_path):
    learn, logger = toy_learner(), JSONLines(tmp_path / "run.jsonl")
    result = learn.lr_find(show_plot=False)
    learn.fit(2, cbs=[logger])
    learn.fit(1, cbs=[logger])
    found = [line for line in lines(logger.path) if "range_test" in line]
    assert [line["range_test"] for line in found] == [result.suggestions]


def test_what_was_recorded_before_the_first_fit_with_it_is_left_out(tmp_path):
    learn, logger = toy_learner(n_batches=4), JSONLines(tmp_path / "run.jsonl")
    learn.fit(1)
    learn.fit(1, cbs=[logger])
    learn.fit(1, cbs=[logger])
    assert series(logger.path, "train_loss")[0] == [*range(5, 13)]
    assert series(logger.path, "epoch") == ([8, 12], [2, 3])


def test_files_of_the_best_model_and_of_checkpoints_are_named_at_the_end(tmp_path):
    best, folder = SaveModel(tmp_path / "best-{epoch}.pt"), tmp_path / "checkpoints"
    learn, path = toy_learner(), tmp_path / "run.jsonl"
    learn.fit(2, 0.01, cbs=[JSONLines(path), best, Checkpoint(folder, "1 epoch")])
    files = lines(path)[-1]["files"]
    assert files == {"best_model": str(tmp_path / "best-2.pt"), "checkpoints": str(folder)}


def test_rows_before_an_error_and_before_a_cancel_are_in_the_file(tmp_path):
    path = tmp_path / "run.jsonl"
    with pytest.raises(KilledError):
        toy_learner(n_batches=5).fit(2, cbs=[JSONLines(path), kill_at(7)])
    assert series(path, "train_loss")[0] == [*range(1, 8)]

    def stop(learn):
        if learn.n_updates == 3:
            raise CancelFit

    toy_learner(n_batches=5).fit(2, cbs=[JSONLines(path), Callback(after_step=stop)])
    assert series(path, "train_loss")[0] == [1, 2, 3]


@pytest.mark.parametrize(("every", "order"), [("3 updates", 1), ("1 epoch", -1)])
def test_file_of_a_resumed_fit_is_that_of_one_that_was_never_interrupted(tmp_path, every, order):
    def fit(name, *cbs, **options):
        path = tmp_path / name
        both = [JSONLines(path, name="run"), Checkpoint(tmp_path / f"{name}-c", every)][::order]
        toy_learner(n_batches=5).fit(3, 0.1, cbs=[*both, *cbs], **options)
        return [line for line in lines(path) if "files" not in line]

    whole = fit("whole")
    with pytest.raises(KilledError):
        fit("broken", kill_at(12))
    assert fit("broken", resume=tmp_path / "broken-c") == whole


def test_a_file_that_is_gone_when_its_fit_is_resumed_is_written_anew_and_whole(tmp_path, said):
    path, folder = tmp_path / "run.jsonl", tmp_path / "checkpoints"
    cbs = [JSONLines(path), Checkpoint(folder, "3 updates")]
    with pytest.raises(KilledError):
        toy_learner(n_batches=5).fit(2, cbs=[*cbs, kill_at(8)])
    path.unlink()
    learn = toy_learner(n_batches=5)
    learn.fit(2, cbs=[JSONLines(path), Checkpoint(folder, "3 updates")], resume=folder)
    same_as_record(path, learn.recorder.history, ["train_loss", "lr", "valid_loss"])
    assert "JSONLines: the run is not there any more: a new one begins" in said()


def test_a_disk_that_is_full_for_a_while_does_not_end_the_fit_and_nothing_is_lost(
    tmp_path, monkeypatch, caplog
):
    learn, path = toy_learner(n_batches=4), tmp_path / "run.jsonl"
    flush = JSONLines.flush_run

    def full(logger):
        if logger._lines and learn.epoch == 1:
            logger._lines = []
            raise OSError(28, "No space left on device")
        return flush(logger)

    monkeypatch.setattr(JSONLines, "flush_run", full)
    learn.fit(3, cbs=[JSONLines(path)])
    same_as_record(path, learn.recorder.history, ["train_loss", "lr", "valid_loss"])
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "JSONLines: could not write, the fit goes on: [Errno 28] No space left on device"
    ]


def test_a_folder_as_file_and_a_name_that_is_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        JSONLines(tmp_path)
    with pytest.raises(TypeError, match="name must be a text"):
        JSONLines(tmp_path / "run.jsonl", name=3)


@pytest.mark.parametrize(
    ("make", "module"),
    [
        (lambda: TensorBoard("runs"), "tensorboard"),
        (lambda: WandB("project"), "wandb"),
        (lambda: MLflow("experiment"), "mlflow"),
    ],
)
def test_a_missing_package_gives_the_command_that_installs_it(monkeypatch, make, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"which is not installed: pip install 'onecycle\[track"):
        make()


def test_a_run_that_cannot_be_opened_is_not_closed_and_its_error_is_the_only_one(said):
    closed = []

    class Refused(trackers.Tracker):
        def open_run(self, name):
            raise ConnectionRefusedError("the server is away")

        def close_run(self, has_ended):
            closed.append(has_ended)

    with pytest.raises(ConnectionRefusedError, match="the server is away") as error:
        toy_learner(n_batches=3).fit(1, cbs=[Refused()])
    assert closed == []
    assert not any("then Refused failed" in note for note in error.value.__notes__)


def test_a_run_whose_settings_cannot_be_written_is_closed_as_one_that_failed():
    closed = []

    class Refused(trackers.Tracker):
        def open_run(self, name):
            return 1

        def write_settings(self, settings):
            raise ConnectionResetError("the server is gone")

        def close_run(self, has_ended):
            closed.append(has_ended)

    with pytest.raises(ConnectionResetError, match="the server is gone"):
        toy_learner(n_batches=3).fit(1, cbs=[Refused()])
    assert closed == [False]
