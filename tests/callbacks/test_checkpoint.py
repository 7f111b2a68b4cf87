"""Checkpoints are taken when they are due, and at no other moment."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from abandoned import temporary_name

from onecycle import Callback, Checkpoint, GradientAccumulation
from onecycle.callbacks import checkpoint as checkpoint_module
from onecycle.checkpoints import fit_files
from onecycle.testing import toy_learner


@pytest.mark.parametrize(
    ("every", "updates"),
    [
        ("5 updates", [5, 10, 15]),
        ("1 update", [*range(1, 17)]),
        ("2 epochs", [16]),
        ("1 epoch", [8, 16]),
        ("100 updates", []),
        ("1000 minutes", []),
        (("1 epoch", "5 updates"), [5, 8, 10, 15, 16]),
        (["2 epochs", "1000 minutes"], [16]),
        ("0.0 minutes", None),
    ],
)
def test_checkpoints_are_taken_as_often_as_asked(every, updates, tmp_path):
    if updates is None:
        with pytest.raises(ValueError, match="every must be like"):
            Checkpoint(tmp_path, every)
        return
    toy_learner(n_batches=8).fit(2, cbs=[Checkpoint(tmp_path, every, keep=99)])
    files = fit_files.find(tmp_path)[::-1]
    assert [fit_files.read(f)["counters"]["total_updates"] for f in files] == updates


def test_minutes_are_those_since_the_last_checkpoint(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now[0])

    def tick(learn):
        now[0] += 30

    cbs = [Checkpoint(tmp_path, "1.5 minutes", keep=99), Callback(after_step=tick)]
    toy_learner(n_batches=8).fit(1, cbs=cbs)
    files = fit_files.find(tmp_path)[::-1]
    assert [fit_files.read(f)["counters"]["total_updates"] for f in files] == [3, 6]


def test_of_several_rules_each_is_kept_and_minutes_begin_anew_with_any(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now[0])

    def tick(learn):
        now[0] += 30

    both = Checkpoint(tmp_path, ("1 epoch", "1.5 minutes"), keep=99)
    toy_learner(n_batches=4).fit(2, cbs=[both, Callback(after_step=tick)])
    files = fit_files.find(tmp_path)[::-1]
    assert [fit_files.read(f)["counters"]["total_updates"] for f in files] == [3, 4, 7, 8]


def test_no_checkpoint_is_taken_while_gradients_wait(tmp_path):
    learn = toy_learner(n_batches=8)
    learn.fit(1, cbs=[GradientAccumulation(3), Checkpoint(tmp_path, "1 update", keep=99)])
    positions = [fit_files.read(f)["position"] for f in fit_files.find(tmp_path)]
    assert [p["batches"] for p in positions] == [8, 6, 3]


def test_keep_leaves_the_newest_files_and_nothing_of_killed_writers(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / temporary_name("checkpoint-000007.pt", dead.pid)).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    learn = toy_learner(n_batches=8)
    learn.fit(1, cbs=[Checkpoint(tmp_path, "1 update", keep=2)])
    names = ["checkpoint-000006.pt", "checkpoint-000007.pt", "notes.txt"]
    assert sorted(os.listdir(tmp_path)) == names
    learn.fit(1, cbs=[Checkpoint(tmp_path, "8 updates", keep=2)])
    names = ["checkpoint-000007.pt", "checkpoint-000008.pt", "notes.txt"]
    assert sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize(
    "arguments",
    [
        ("5",),
        ("five updates",),
        ("0 updates",),
        ("1.5 epochs",),
        (5,),
        ("1 update", 0),
        ("-1 epoch",),
        ("1 update", 1.5),
        ((),),
        (("1 epoch", "2 epochs"),),
        (("1 epoch", 5),),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, tmp_path):
    with pytest.raises((ValueError, TypeError), match=r"must (be|have)"):
        Checkpoint(tmp_path, *arguments)


def test_a_file_as_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="expected a folder"):
        Checkpoint(tmp_path / "file")


def test_a_state_that_could_not_be_read_back_is_refused_at_the_first_checkpoint(tmp_path):
    class Unsafe(Callback):
        def state_dict(self):
            return {"learner": object()}

    with pytest.raises(TypeError, match="the state_dict of Unsafe, at 'learner', is a object"):
        toy_learner().fit(1, cbs=[Unsafe(), Checkpoint(tmp_path)])
    assert fit_files.find(tmp_path) == []


def test_every_checkpoint_is_one_that_can_be_read_again(tmp_path):
    class Later(Callback):
        n, best = 0, None

        def after_epoch(self, learn):
            self.n += 1
            self.best = [None, np.float64(0.5), object()][self.n - 1]

        def state_dict(self):
            return {"best": self.best}

    with pytest.raises(TypeError, match="the state_dict of Later, at 'best'"):
        toy_learner().fit(5, cbs=[Later(), Checkpoint(tmp_path)])
    states = [dict(fit_files.read(file)["callbacks"])["Later"] for file in fit_files.find(tmp_path)]
    assert states == [{"best": 0.5}, {"best": None}]


def test_a_folder_that_is_named_like_a_checkpoint_is_no_failed_write(tmp_path, caplog):
    for number in (0, 3, 7):
        (tmp_path / f"checkpoint-{number:06d}.pt").mkdir()
    toy_learner(n_batches=8).fit(1, cbs=[Checkpoint(tmp_path, "1 update", keep=2)])
    files = fit_files.find(tmp_path)
    assert [file.name for file in files] == ["checkpoint-000015.pt", "checkpoint-000014.pt"]
    assert len(list(tmp_path.iterdir())) == 5
    assert caplog.records == []
    toy_learner(n_batches=8).fit(1, resume=tmp_path)  # reads the newest file


def test_old_files_that_cannot_be_removed_are_said_once_and_are_no_failed_write(
    tmp_path, monkeypatch, caplog
):
    def refuse(self, missing_ok=False):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    toy_learner(n_batches=8).fit(1, cbs=[Checkpoint(tmp_path, "1 update", keep=2)])
    assert len(fit_files.find(tmp_path)) == 8
    (record,) = caplog.records
    assert record.message.startswith(f"Checkpoint: older files stay in {tmp_path}: ")
