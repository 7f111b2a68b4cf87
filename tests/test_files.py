import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from abandoned import temporary_name

from onecycle import files
from onecycle.files import atomic_write, remove_abandoned


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_when_the_block_has_succeeded_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename is atomic on one file system only
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with atomic_write(str(tmp_path / "a" / "b" / "file")) as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_crash_in_the_block_leaves_the_old_file_and_no_other(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(error), atomic_write(target) as temporary:  # noqa: PT012
        temporary.write_bytes(b"ne")
        raise error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(*((os, call) if call == "fsync" else (Path, call)), full)
    with pytest.raises(OSError, match="no space left"), atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def rename(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", rename)
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
    assert calls == ["file", "rename", "folder"]


def test_a_folder_that_cannot_be_synced_does_not_undo_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not for folders")

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_mode_is_that_of_a_file_written_plainly(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "file") as temporary:  # noqa: PT011
        temporary.write_bytes(b"new")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").is_dir()


# What killed writers leave

WRITER = """
import sys
from onecycle.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer(tmp_path: Path):
    """A process that is in the middle of writing a file, and the name of its temporary one."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_live_writer_keeps_its_file_and_a_killed_one_is_cleaned_up_after(
    tmp_path: Path, writer
) -> None:
    process, name = writer
    files._tidy.cache_clear()
    with atomic_write(tmp_path / "other") as temporary:
        assert names(tmp_path) == sorted([name, temporary.name])
        remove_abandoned(tmp_path)  # neither another's nor our own
        temporary.write_bytes(b"whole")
    assert names(tmp_path) == [name, "other"]
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not waited for
    files._tidy.cache_clear()
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_bytes(b"whole")
    assert names(tmp_path) == ["file", "other"]


def test_a_process_that_was_given_the_id_of_a_dead_writer_does_not_keep_its_file(
    tmp_path: Path,
) -> None:
    begin = files._begin_of(os.getpid())
    alive = tmp_path / temporary_name("a", os.getpid(), begin)
    reused = tmp_path / temporary_name("a", os.getpid(), str(int(begin) - 1))
    for file in (alive, reused):
        file.write_bytes(b"half")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [alive.name]


def test_where_nothing_tells_when_a_process_began_that_it_lives_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(self: Path) -> str:
        raise FileNotFoundError

    file = tmp_path / temporary_name("a", os.getpid(), files._begin_of(os.getpid()))
    dead = tmp_path / temporary_name("a", 2**22 + 1)  # above all ids that Linux gives
    for each in (file, dead):
        each.write_bytes(b"half")
    monkeypatch.setattr(Path, "read_text", hidden)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [file.name]


def test_the_file_of_another_machine_is_removed_after_a_day_without_a_write(tmp_path: Path) -> None:
    young, old = (tmp_path / temporary_name(name, 1, machine="0" * 12) for name in "ab")
    for file, hours in ((young, 23), (old, 25)):
        file.write_bytes(b"half")
        os.utime(file, (time.time() - 3600 * hours,) * 2)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [young.name]


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    others = (".file.abc.tmp", "file.tmp", ".notes.swp", f"{temporary_name('a', 1)}.bak")
    for name in others:
        (tmp_path / name).write_bytes(b"")
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted(others)


def test_a_name_of_any_length_that_a_file_can_have_is_written(tmp_path: Path) -> None:
    for target in (tmp_path / ("x" * 255), tmp_path / ("ä" * 127)):
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"new")
        assert target.read_bytes() == b"new"
