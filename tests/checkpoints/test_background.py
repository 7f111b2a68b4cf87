"""Checkpoints that are written in the background are those of the moment they were taken."""

import errno
import threading

import pytest
import torch
from learner_state import trained

from onecycle import Callback, Checkpoint
from onecycle.checkpoints import fit_files
from onecycle.checkpoints.background import BackgroundWriter, copied
from onecycle.testing import toy_learner


def test_a_fit_is_resumed_from_each_of_them_in_the_same_bits(tmp_path):
    torch.manual_seed(1)
    whole = toy_learner()
    whole.fit(2, 0.1)
    torch.manual_seed(1)
    toy_learner().fit(2, 0.1, cbs=[Checkpoint(tmp_path, "1 update", keep=99, background=True)])
    files = fit_files.find(tmp_path)
    assert len(files) == 16
    for file in files[::3]:
        learn = toy_learner()
        learn.fit(2, 0.1, resume=file)
        assert trained(learn) == trained(whole), file.name


def test_the_end_of_a_fit_waits_and_so_does_its_failure(tmp_path, monkeypatch):
    write, go = fit_files.write, threading.Event()

    def slow(path, parts):
        assert threading.current_thread() is not threading.main_thread()
        go.wait(10)
        write(path, parts)

    def fail(learn):
        threading.Timer(0.2, go.set).start()
        raise LookupError

    monkeypatch.setattr(fit_files, "write", slow)
    with pytest.raises(LookupError):
        toy_learner().fit(
            2,
            0.1,
            cbs=[Checkpoint(tmp_path, "8 updates", background=True), Callback(after_epoch=fail)],
        )
    assert len(fit_files.find(tmp_path)) == 1


def test_a_write_that_fails_is_said_as_in_the_foreground(tmp_path, monkeypatch, caplog):
    error = OSError(errno.ENOSPC, "No space left on device")

    def full(path, parts):
        raise error

    monkeypatch.setattr(fit_files, "write", full)
    said = {}
    for background in (False, True):
        caplog.clear()
        learn = toy_learner()
        learn.fit(2, 0.1, cbs=[Checkpoint(tmp_path, "5 updates", background=background)])
        assert learn.total_updates == 16
        said[background] = caplog.messages
    assert said[True] == said[False] != []


def test_what_is_no_fault_of_the_disk_ends_the_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_files, "write", lambda path, parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        toy_learner().fit(1, 0.1, cbs=[Checkpoint(tmp_path, "2 updates", background=True)])


def test_work_waits_for_the_work_before_it():
    writer, done, go = BackgroundWriter(), [], threading.Event()
    writer.start(lambda: (go.wait(10), done.append(1)))
    threading.Timer(0.05, go.set).start()
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]


def test_a_copy_shares_no_memory_with_the_state():
    state = toy_learner().model.state_dict()
    made = copied({"model": state, "again": [state["0.weight"]], "n": 3})
    assert made["model"]._metadata == state._metadata
    assert made["again"][0].data_ptr() == made["model"]["0.weight"].data_ptr()
    kept = state["0.weight"].clone()
    state["0.weight"].zero_()
    assert torch.equal(made["model"]["0.weight"], kept)
