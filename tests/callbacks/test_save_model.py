import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from scripted import same, scripted_learner, weights

from onecycle import Callback, CancelFit, Checkpoint, SaveModel, Stage, TerminateOnNonFinite
from onecycle.checkpoints import fit_files
from onecycle.testing import toy_learner


class Keep(Callback):
    """Keeps a copy of the weights of every epoch, in memory."""

    def __init__(self):
        self.epochs = []

    def after_epoch(self, learn):
        self.epochs.append(weights(learn))


def in_file(path):
    return torch.load(path, weights_only=True)["model"]


def full_disk(monkeypatch, calls, where="replace"):
    """Let the writes with these numbers, from 0, fail as they do on a full disk."""
    seen = iter(range(100))
    if where == "replace":
        replace = Path.replace

        def failing(self, target):
            if next(seen) in calls:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", failing)
    else:
        save = torch.save

        def failing(state, path):
            if next(seen) in calls:
                path.write(b"half")
                raise RuntimeError("PytorchStreamWriter failed writing file")
            save(state, path)

        monkeypatch.setattr(torch, "save", failing)


# The best


@pytest.mark.parametrize(
    ("values", "options", "best"),
    [
        ([3, 1, 2, 1], {"mode": "min"}, 1),
        ([3, 1, 4, 4], {"mode": "max"}, 2),
        ([float("nan"), 1, 2, 3], {"mode": "min"}, 1),
        ([1.0, 0.9, 0.4, 0.3], {"mode": "min", "min_delta": 0.5}, 2),
    ],
)
def test_file_and_model_have_the_best_epochs_weights_bit_for_bit(tmp_path, values, options, best):
    learn, keep, path = scripted_learner(values), Keep(), tmp_path / "best.pt"
    learn.fit(4, lr=0.1, cbs=[keep, SaveModel(path, "score", **options)])
    assert not same(keep.epochs[best], keep.epochs[-1]) or best == 3
    assert same(in_file(path), keep.epochs[best])
    assert same(weights(learn), keep.epochs[best])


def test_without_restore_best_the_model_keeps_its_last_weights(tmp_path):
    learn, keep, path = scripted_learner([2, 1, 3]), Keep(), tmp_path / "best.pt"
    learn.fit(3, cbs=[keep, SaveModel(path, "score", mode="min", restore_best=False)])
    assert same(in_file(path), keep.epochs[1])
    assert same(weights(learn), keep.epochs[2])


def test_restoring_leaves_the_optimizer_and_the_record_as_they_are(tmp_path):
    learn, other = scripted_learner([2, 1, 3]), scripted_learner([2, 1, 3])
    learn.fit(3, cbs=[SaveModel(tmp_path / "best.pt", "score", mode="min")])
    other.fit(3)
    mine, plain = learn.opt.state_dict()["state"], other.opt.state_dict()["state"]
    assert all(same(mine[i], plain[i]) for i in plain)
    assert learn.recorder.history["train_loss"].values.tolist() == (
        other.recorder.history["train_loss"].values.tolist()
    )


def test_saved_file_loads_into_a_fresh_learner(tmp_path):
    learn = toy_learner()
    learn.fit(2, cbs=[SaveModel(tmp_path / "best.pt")])
    fresh = toy_learner()
    fresh.load(tmp_path / "best.pt")
    assert fresh.validate() == learn.validate()


def test_cancelled_fit_gets_the_best_weights_back_and_a_failed_one_does_not(tmp_path):
    def stop(error):
        def at_last(learn):
            if learn.epoch == 2:
                raise error

        return Callback(after_epoch=at_last)

    for error, expected in ((CancelFit("enough"), 1), (KeyboardInterrupt(), 2)):
        learn, keep = scripted_learner([2, 1, 3]), Keep()
        save = SaveModel(tmp_path / "best.pt", "score", mode="min")
        with contextlib.suppress(KeyboardInterrupt):
            learn.fit(3, cbs=[keep, save, stop(error)])
        assert same(weights(learn), keep.epochs[expected])


def test_broken_weights_are_replaced_by_the_best(tmp_path):
    loss_func = torch.nn.functional.mse_loss
    learn, keep = toy_learner(loss_func=lambda *of: loss_func(*of) * scale), Keep()
    scale = 1.0

    def break_it(learn):
        nonlocal scale
        scale = float("nan") if learn.epoch == 2 else 1.0

    watch = [TerminateOnNonFinite(), SaveModel(tmp_path / "best.pt")]
    learn.fit(4, lr=0.01, cbs=[keep, *watch, Callback(before_train=break_it)])
    assert "nan at update 17 " in learn.stop_reason
    assert same(weights(learn), keep.epochs[1])


def test_second_fit_begins_anew(tmp_path):
    learn, keep, path = scripted_learner([1, 2, 8, 7]), Keep(), tmp_path / "best.pt"
    save = SaveModel(path, "score", mode="min")
    learn.fit(2, cbs=[keep, save])
    assert same(in_file(path), keep.epochs[0])
    learn.fit(2, cbs=[keep, save])
    assert same(in_file(path), keep.epochs[3])  # 7, the best of this fit, though 1 was better


def test_train_loss_can_be_monitored_without_validation(tmp_path):
    learn, keep, path = toy_learner(), Keep(), tmp_path / "best.pt"
    learn.dls.valid = None
    learn.fit(3, lr=0.3, cbs=[keep, SaveModel(path, "train_loss")])
    means = learn.recorder.history["train_loss"].values.reshape(3, -1).mean(1)
    assert same(in_file(path), keep.epochs[means.argmin()])


def test_validation_loss_without_validation_is_refused(tmp_path):
    learn = toy_learner()
    learn.dls.valid = None
    with pytest.raises(ValueError, match="'valid_loss' cannot be monitored"):
        learn.fit(1, cbs=[SaveModel(tmp_path / "best.pt")])
    assert learn.total_updates == 0


def test_it_saves_after_everybody_else():
    assert SaveModel("best.pt").stage is Stage.SAVE


# Every few epochs


def test_every_counts_the_epochs_of_the_learners_life_and_overwrites_nothing(tmp_path):
    learn, keep = toy_learner(n_batches=2), Keep()
    learn.dls.valid = None
    save = SaveModel(tmp_path / "epoch-{epoch:02d}.pt", every=2)
    learn.fit(3, cbs=[keep, save])
    learn.fit(3, cbs=[keep, save])
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["epoch-02.pt", "epoch-04.pt", "epoch-06.pt"]
    for file, epoch in zip(files, (1, 3, 5), strict=True):
        assert same(in_file(file), keep.epochs[epoch])
    assert same(weights(learn), keep.epochs[-1])  # nothing is restored


def test_path_without_placeholder_holds_the_latest(tmp_path):
    learn, keep = toy_learner(n_batches=2), Keep()
    learn.fit(3, cbs=[keep, SaveModel(tmp_path / "last.pt", every=1)])
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
    assert same(in_file(tmp_path / "last.pt"), keep.epochs[2])


def test_epoch_in_the_path_of_the_best_keeps_each_best(tmp_path):
    learn, keep = scripted_learner([3, 4, 2]), Keep()
    learn.fit(3, cbs=[keep, SaveModel(tmp_path / "best-{epoch}.pt", "score", mode="min")])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best-1.pt", "best-3.pt"]
    assert same(weights(learn), keep.epochs[2])


# What cannot work


@pytest.mark.parametrize("path", ["x-{step}.pt", "x-{}.pt", "x-{0}.pt", "x-{epoch:s}.pt", "x-{.pt"])
def test_unknown_placeholder_is_refused(path):
    with pytest.raises(ValueError, match=r"may hold \{epoch\} and \{update\} and no other"):
        SaveModel(path)


def test_folder_as_path_is_refused(tmp_path):
    for path in (tmp_path, f"{tmp_path}/", f"{tmp_path}/new/"):
        with pytest.raises(ValueError, match="is a folder"):
            SaveModel(path)


def test_arguments_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="leave out monitor"):
        SaveModel("a.pt", "accuracy", every=2)
    with pytest.raises(ValueError, match="every must be at least 1; got 0"):
        SaveModel("a.pt", every=0)
    with pytest.raises(ValueError, match="mode must be"):
        SaveModel("a.pt", mode="best")


# A full disk


@pytest.mark.parametrize("where", ["replace", "save"])
def test_full_disk_does_not_end_the_fit_nor_harm_the_good_file(
    tmp_path, monkeypatch, caplog, where
):
    learn, keep, path = scripted_learner([4, 3, 2, 1]), Keep(), tmp_path / "best.pt"
    full_disk(monkeypatch, {1, 2, 3}, where)
    learn.fit(4, cbs=[keep, SaveModel(path, "score", mode="min")])
    assert learn.total_updates == 8
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]
    assert same(in_file(path), keep.epochs[0])
    first, last = [record.message for record in caplog.records if record.levelno > logging.INFO]
    assert first.startswith(f"SaveModel: could not write {path}, the fit goes on: ")
    assert last == f"SaveModel: 3 of 4 files could not be written to {path}"


def test_best_that_could_not_be_written_does_not_count(tmp_path, monkeypatch):
    learn, keep, path = scripted_learner([4, 1, 3, 2.5]), Keep(), tmp_path / "best.pt"
    full_disk(monkeypatch, {1})
    learn.fit(4, cbs=[keep, SaveModel(path, "score", mode="min")])
    assert same(in_file(path), keep.epochs[3])  # 1 was lost; 3 and 2.5 are better than 4
    assert same(weights(learn), keep.epochs[3])


def test_file_of_an_earlier_fit_is_not_restored_where_nothing_was_written(tmp_path, monkeypatch):
    path = tmp_path / "best.pt"
    toy_learner(n_batches=3).fit(1, lr=0.5, cbs=[SaveModel(path)])
    learn, keep = scripted_learner([1, 1]), Keep()
    full_disk(monkeypatch, range(9))
    learn.fit(2, cbs=[keep, SaveModel(path, "score", mode="max")])
    assert same(weights(learn), keep.epochs[1])


def test_best_of_the_first_fit_is_not_restored_after_a_second_that_wrote_nothing(
    tmp_path, monkeypatch
):
    learn, keep = scripted_learner([1, 2, 3, 4]), Keep()
    save = SaveModel(tmp_path / "best.pt", "score", mode="max")
    learn.fit(2, cbs=[keep, save])
    full_disk(monkeypatch, range(9))
    learn.fit(2, cbs=[keep, save])
    assert same(weights(learn), keep.epochs[3])


# Restart


def test_state_of_plain_values_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "best.pt"
    first = SaveModel(path, "score", mode="min", restore_best=False)
    keep = Keep()
    scripted_learner([1, 2]).fit(2, lr=0.1, cbs=[keep, first])
    state = first.state_dict()
    (kept,) = state["kept"]
    assert state["monitor"] == {"seen": 2, "best": 1.0}
    assert kept == {
        "epoch": 1,
        "update": 2,
        "value": 1.0,
        "checksum": path.read_bytes()[-64:].decode(),
    }

    learn = scripted_learner([4, 3])
    second = SaveModel(path, "score", mode="min")
    state["monitor"]["seen"] = 0  # this learner's record is empty

    def resume(learn):
        if learn.epoch == 0:
            second.load_state_dict(state)

    learn.fit(2, cbs=[second, Callback(before_train=resume)])
    assert same(in_file(path), keep.epochs[0])  # 4 and 3 are no better than the 1 before
    assert same(weights(learn), keep.epochs[0])


# Whose file it is


class Late(Callback):
    """Made from functions, and heard after everybody else."""

    stage = Stage.SAVE


def resumed_in(folder, fate):
    """Train until an interrupt in the third of five epochs, and go on in another folder."""

    def kill(learn):
        if learn.epoch == 2:
            raise KeyboardInterrupt

    def cbs(folder):
        save = SaveModel(folder / "best.pt", "score", mode="min")
        return [save, Checkpoint(folder / "checkpoints")]

    with contextlib.suppress(KeyboardInterrupt):
        first = scripted_learner([3, 1, 4, 5, 2])
        first.fit(5, 0.1, cbs=[*cbs(folder), Callback(after_train=kill)])
    folder = fate(folder)
    learn, keep = scripted_learner([4, 5, 2]), Keep()
    learn.fit(5, 0.1, cbs=[keep, *cbs(folder)], resume=folder / "checkpoints")
    return learn, keep, folder / "best.pt"


def moved(folder):
    return folder.rename(folder.with_name("moved"))


def copied(folder):
    copy = folder.with_name("copied")
    shutil.copytree(folder, copy)
    toy_learner(n_batches=2).fit(1, 0.9, cbs=[SaveModel(folder / "best.pt")])  # the first goes on
    return copy


def said(caplog):
    messages = [record.message for record in caplog.records if record.levelno > logging.INFO]
    return [message for message in messages if not message.startswith("resume: from")]


@pytest.mark.parametrize("fate", [moved, copied])
def test_a_run_that_was_moved_or_copied_ends_with_its_own_best(tmp_path, caplog, fate):
    whole, keep = scripted_learner([3, 1, 4, 5, 2]), Keep()
    whole.fit(5, 0.1, cbs=[keep])
    (tmp_path / "a").mkdir()
    learn, again, path = resumed_in(tmp_path / "a", fate)
    assert len(again.epochs) == 3
    assert same(weights(learn), keep.epochs[1])
    assert same(in_file(path), keep.epochs[1])
    assert said(caplog) == []


def test_a_file_that_another_run_replaced_is_not_restored(tmp_path, caplog):
    def replace(learn):
        if learn.epoch == 2:
            toy_learner(n_batches=2).fit(1, 0.9, cbs=[SaveModel(path)])

    path, keep = tmp_path / "best.pt", Keep()
    learn = scripted_learner([3, 1, 4])
    save = SaveModel(path, "score", mode="min")
    learn.fit(3, 0.1, cbs=[keep, save, Callback(before_epoch=replace)])
    assert same(weights(learn), keep.epochs[2])
    assert not same(in_file(path), keep.epochs[1])
    (message,) = said(caplog)
    assert message.startswith("SaveModel: the best weights, of epoch 2 with score 1, are lost")
    assert message.endswith(f"{path} is not the file that was written: it has been replaced")


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"half"), "middle"])
def test_a_lost_or_damaged_file_ends_in_a_warning_and_the_last_weights(tmp_path, caplog, harm):
    def middle(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    def at_last(learn):
        if learn.epoch == 2:
            (middle if harm == "middle" else harm)(path)

    path, keep = tmp_path / "best.pt", Keep()
    learn = scripted_learner([3, 1, 4])
    save = SaveModel(path, "score", mode="min")
    learn.fit(3, 0.1, cbs=[keep, save, Callback(after_epoch=at_last)])
    assert same(weights(learn), keep.epochs[2])
    (message,) = said(caplog)
    assert "the best weights, of epoch 2 with score 1, are lost" in message


def test_a_best_that_is_newer_than_its_checkpoint_is_found_again(tmp_path, caplog):
    whole, keep = scripted_learner([3, 2, 1, 5]), Keep()
    whole.fit(4, 0.1, cbs=[keep])

    def kill(learn):  # between the file of the third epoch, and its checkpoint
        if learn.epoch == 2:
            raise KeyboardInterrupt

    first, path = scripted_learner([3, 2, 1, 5]), tmp_path / "best.pt"
    cbs = [SaveModel(path, "score", mode="min"), Late(after_epoch=kill), Checkpoint(tmp_path / "c")]
    with contextlib.suppress(KeyboardInterrupt):
        first.fit(4, 0.1, cbs=cbs)
    assert same(in_file(path), keep.epochs[2])
    learn = scripted_learner([1, 5])
    cbs = [SaveModel(path, "score", mode="min"), Checkpoint(tmp_path / "c")]
    learn.fit(4, 0.1, cbs=cbs, resume=tmp_path / "c")
    assert same(weights(learn), keep.epochs[2])
    assert said(caplog) == []


def test_a_best_that_did_not_come_along_is_said_when_the_run_goes_on(tmp_path, caplog):
    keep = Keep()
    learn = scripted_learner([1, 2])
    learn.fit(
        2, 0.1, cbs=[SaveModel(tmp_path / "best.pt", "score", mode="min"), Checkpoint(tmp_path)]
    )
    (tmp_path / "best.pt").unlink()
    for file in fit_files.find(tmp_path)[:1]:
        file.unlink()
    learn = scripted_learner([2])
    save = SaveModel(tmp_path / "best.pt", "score", mode="min")
    learn.fit(2, 0.1, cbs=[keep, save], resume=tmp_path)
    assert same(weights(learn), keep.epochs[-1])
    early, late = said(caplog)
    assert early.startswith("SaveModel: the best weights so far, of epoch 1, are not at ")
    assert late.startswith("SaveModel: the best weights, of epoch 1 with score 1, are lost")


def test_a_resume_that_looks_at_another_value_is_refused(tmp_path):
    path, folder = tmp_path / "best.pt", tmp_path / "c"
    toy_learner().fit(1, cbs=[SaveModel(path), Checkpoint(folder)])
    with pytest.raises(ValueError, match="monitor of SaveModel was valid_loss and is mse"):
        toy_learner().fit(1, cbs=[SaveModel(path, "mse"), Checkpoint(folder)], resume=folder)


# The k best


def test_keep_leaves_the_files_of_the_best_epochs_and_restores_the_best(tmp_path):
    learn, keep = scripted_learner([5, 3, float("nan"), 4, 1, 6, 2]), Keep()
    save = SaveModel(tmp_path / "{epoch}.pt", "score", mode="min", keep=3)
    learn.fit(7, 0.1, cbs=[keep, save])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2.pt", "5.pt", "7.pt"]
    for epoch in (2, 5, 7):
        assert same(in_file(tmp_path / f"{epoch}.pt"), keep.epochs[epoch - 1])
    assert same(weights(learn), keep.epochs[4])


def test_of_equal_epochs_the_earlier_ones_are_kept(tmp_path):
    learn = scripted_learner([1, 2, 2, 2, 3])
    save = SaveModel(tmp_path / "{epoch}.pt", "score", mode="max", keep=2)
    learn.fit(5, cbs=[save])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2.pt", "5.pt"]


def test_keep_goes_on_after_a_restart_and_removes_no_file_of_another_run(tmp_path):
    learn = scripted_learner([3, 4])
    save = SaveModel(tmp_path / "{epoch}.pt", "score", mode="min", keep=2)
    learn.fit(2, cbs=[save, Checkpoint(tmp_path / "c")])
    (tmp_path / "2.pt").write_bytes(b"of another run")
    again = scripted_learner([2, 1])
    save = SaveModel(tmp_path / "{epoch}.pt", "score", mode="min", keep=2)
    again.fit(4, cbs=[save], resume=tmp_path / "c", extend="keep")
    assert sorted(file.name for file in tmp_path.glob("*.pt")) == ["2.pt", "3.pt", "4.pt"]
    assert (tmp_path / "2.pt").read_bytes() == b"of another run"


def test_keep_needs_a_name_for_each_epoch(tmp_path):
    with pytest.raises(ValueError, match="keep=2 needs a file for each epoch"):
        SaveModel(tmp_path / "best.pt", keep=2)
    with pytest.raises(ValueError, match="leave out monitor"):
        SaveModel(tmp_path / "{epoch}.pt", every=2, keep=2)
    SaveModel(tmp_path / "best.pt", keep=1)


@pytest.mark.parametrize("path", [None, "", "  ", 5, b"best.pt", "a\0b", "x" * 300, True])
def test_what_is_no_path_is_refused(path):
    with pytest.raises((TypeError, ValueError), match="path must be a path"):
        SaveModel(path)


def test_listed_after_a_checkpoint_its_best_epoch_is_in_the_checkpoint_of_that_epoch(tmp_path):
    class KilledError(Exception):
        pass

    def fit(learn, folder, *cbs, **options):
        save = SaveModel(folder / "best.pt", "score", mode="min")
        learn.fit(3, lr=0.1, cbs=[Checkpoint(folder / "fit", "1 epoch"), save, *cbs], **options)
        return weights(learn)

    def kill(learn):
        if learn.epoch == 1:
            raise KilledError

    whole = fit(scripted_learner([1, 3, 2]), tmp_path / "whole")
    with pytest.raises(KilledError):
        fit(scripted_learner([1, 3, 2]), tmp_path / "killed", Callback(before_epoch=kill))
    resumed = scripted_learner([3, 2])
    assert same(fit(resumed, tmp_path / "killed", resume=tmp_path / "killed" / "fit"), whole)
