import csv
import errno
import resource

import pytest
from scripted import Scripted

from onecycle import Callback, CancelValid, CSVLogger, ReduceLROnPlateau
from onecycle.callbacks import loggers
from onecycle.testing import toy_learner


def read(path):
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def column(path, name):
    header, rows = read(path)
    return [float(row[header.index(name)]) for row in rows]


def test_rows_equal_the_record_bit_for_bit(tmp_path):
    learn, path = toy_learner(n_batches=5), tmp_path / "new" / "log.csv"
    learn.fit_one_cycle(3, 0.1, cbs=[CSVLogger(path)])
    history = learn.recorder.history
    assert read(path)[0] == ["epoch", "train_loss", "valid_loss", "mse", "seconds", "lr"]
    assert column(path, "epoch") == [1, 2, 3]
    losses = history["train_loss"].values
    assert column(path, "train_loss") == [losses[i : i + 5].mean() for i in (0, 5, 10)]
    assert column(path, "valid_loss") == history["valid_loss"].values.tolist()
    assert column(path, "mse") == history["mse"].values.tolist()
    assert column(path, "lr") == history["lr"].values[[4, 9, 14]].tolist()


def test_seconds_are_those_of_the_epoch_validation_included(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(loggers.time, "perf_counter", lambda: clock[0])

    def tick(learn):
        clock[0] += 1.0 if learn.training else 0.5

    learn, path = toy_learner(n_batches=4), tmp_path / "log.csv"
    learn.fit(2, cbs=[CSVLogger(path), Callback(after_batch=tick)])
    assert column(path, "seconds") == [6.0, 6.0]


def test_several_groups_have_a_column_each(tmp_path):
    def halves(model):
        return [list(model[0].parameters()), list(model[2].parameters())]

    learn, path = toy_learner(splitter=halves), tmp_path / "log.csv"
    learn.fit(1, lr=[0.25, 0.5], cbs=[CSVLogger(path)])
    header, rows = read(path)
    assert header[-2:] == ["lr_0", "lr_1"]
    assert rows[0][-2:] == ["0.25", "0.5"]


def test_rate_is_the_one_in_force_though_another_callback_lowers_it_after_the_epoch(tmp_path):
    learn, path = toy_learner(metrics=[Scripted([1, 1, 1], "score")]), tmp_path / "log.csv"
    reduce = ReduceLROnPlateau("score", mode="max", factor=0.5)
    learn.fit(3, lr=0.8, cbs=[reduce, CSVLogger(path)])
    assert column(path, "lr") == [0.8, 0.8, 0.4]


def test_without_validation_there_are_no_columns_of_it(tmp_path):
    learn, path = toy_learner(), tmp_path / "log.csv"
    learn.dls.valid = None
    learn.fit(1, cbs=[CSVLogger(path)])
    assert read(path)[0] == ["epoch", "train_loss", "seconds", "lr"]


def test_cell_is_empty_where_validation_was_cancelled(tmp_path):
    def cancel(learn):
        if learn.epoch == 0:
            raise CancelValid("not this time")

    learn, path = toy_learner(), tmp_path / "log.csv"
    learn.fit(2, cbs=[CSVLogger(path), Callback(before_validate=cancel)])
    _, rows = read(path)
    assert rows[0][2:4] == ["", ""]
    assert float(rows[1][2]) == learn.recorder.history["valid_loss"].values[0]


def test_header_is_there_before_the_first_batch_and_each_row_after_its_epoch(tmp_path):
    lines, path = [], tmp_path / "log.csv"

    def look(learn):
        lines.append(len(path.read_text().splitlines()))

    toy_learner().fit(3, cbs=[CSVLogger(path), Callback(before_epoch=look, after_epoch=look)])
    assert lines == [1, 2, 2, 3, 3, 4]


def test_rows_survive_an_error_in_the_next_epoch(tmp_path):
    def fail(learn):
        if learn.epoch == 2:
            raise RuntimeError("the machine is on fire")

    path = tmp_path / "log.csv"
    with pytest.raises(RuntimeError, match="fire"):
        toy_learner().fit(3, cbs=[CSVLogger(path), Callback(after_loss=fail)])
    assert column(path, "epoch") == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_later_fits_of_the_same_logger_add_their_rows(tmp_path):
    learn, path = toy_learner(), tmp_path / "log.csv"
    path.write_text("what was there before\n")
    logger = CSVLogger(path)
    learn.fit(2, cbs=[logger])
    learn.fit(1, cbs=[logger])
    assert column(path, "epoch") == [1, 2, 3]
    assert column(path, "valid_loss") == learn.recorder.history["valid_loss"].values.tolist()


def test_append_keeps_the_rows_that_are_there(tmp_path):
    learn, path = toy_learner(), tmp_path / "log.csv"
    learn.fit(2, cbs=[CSVLogger(path, append=True)])
    before = path.read_text()
    learn.fit(1, cbs=[CSVLogger(path, append=True)])
    assert path.read_text().startswith(before)
    assert column(path, "epoch") == [1, 2, 3]
    learn.fit(1, cbs=[CSVLogger(path)])
    assert column(path, "epoch") == [4]


def test_append_takes_an_empty_file_as_a_new_one(tmp_path):
    path = tmp_path / "log.csv"
    path.touch()
    toy_learner().fit(1, cbs=[CSVLogger(path, append=True)])
    assert column(path, "epoch") == [1]


def test_append_to_other_columns_is_refused_and_both_are_named(tmp_path):
    learn, path = toy_learner(), tmp_path / "log.csv"
    path.write_text("epoch,accuracy\n1,0.5\n")
    with pytest.raises(ValueError, match=r"columns epoch, accuracy; this fit has epoch, train_lo"):
        learn.fit(1, cbs=[CSVLogger(path, append=True)])
    assert learn.total_updates == 0
    assert path.read_text() == "epoch,accuracy\n1,0.5\n"


def test_folder_as_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        CSVLogger(tmp_path)


def test_full_disk_does_not_end_the_fit_and_the_next_epoch_writes_the_missing_row(
    tmp_path, monkeypatch, caplog
):
    learn, path, rows = toy_learner(), tmp_path / "log.csv", []
    write = loggers.atomic_write

    def full(path):
        if learn.epoch == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path)

    monkeypatch.setattr(loggers, "atomic_write", full)
    look = Callback(after_epoch=lambda learn: rows.append(len(read(path)[1])))
    learn.fit(3, cbs=[CSVLogger(path), look])
    assert rows == [1, 1, 3]
    assert [r.message for r in caplog.records] == [
        f"CSVLogger: could not write {path}, the fit goes on: [Errno 28] No space left on device"
    ]


@pytest.fixture
def limited(tmp_path):
    """A path under which nothing can be written: its folder would have to be made in a file."""
    (tmp_path / "file").write_bytes(b"")
    return tmp_path / "file" / "log.csv"


def test_a_folder_that_cannot_be_written_to_does_not_end_the_fit(limited, caplog):
    learn = toy_learner()
    learn.fit(3, cbs=[CSVLogger(limited)])
    assert learn.total_epochs == 3
    first, last = [record.message for record in caplog.records]
    assert first.startswith(f"CSVLogger: could not write {limited}, the fit goes on: ")
    assert last == f"CSVLogger: the last rows could not be written to {limited}"


def test_on_a_disk_that_is_really_full_the_old_rows_stay_and_the_fit_goes_on(tmp_path, caplog):
    learn, path = toy_learner(), tmp_path / "log.csv"
    logger = CSVLogger(path, append=True)
    learn.fit(60, cbs=[CSVLogger(path)])
    before = path.read_bytes()
    assert len(before) > 4096
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        learn.fit(2, cbs=[logger])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert learn.total_epochs == 62
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]
    assert "the fit goes on: [Errno 27] File too large" in caplog.records[0].message
    learn.fit(1, cbs=[logger])
    assert path.read_bytes().startswith(before)
    assert column(path, "epoch") == [*range(1, 64)]


def test_restart_puts_the_file_back_to_where_the_state_was_taken(tmp_path):
    path, states, files = tmp_path / "log.csv", [], []
    logger = CSVLogger(path)

    def keep(learn):
        states.append(logger.state_dict())
        files.append(path.read_text())

    toy_learner().fit(3, cbs=[logger, Callback(after_epoch=keep)])
    again = CSVLogger(path)
    again.load_state_dict(states[1])
    assert again.state_dict() == states[1]
    assert path.read_text() == files[1]
