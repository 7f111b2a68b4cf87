"""A file of a fit is read whole or refused by name, and none that is good is harmed."""

import errno
import hashlib
import io
import os
import pickle
import random
import re
import zipfile

import pytest
import torch

from onecycle import Checkpoint, CheckpointError
from onecycle.checkpoints import fit_files
from onecycle.testing import toy_learner


@pytest.fixture
def folder(tmp_path):
    toy_learner().fit(2, 0.1, cbs=[Checkpoint(tmp_path, "5 updates")])
    assert len(fit_files.find(tmp_path)) == 3
    return tmp_path


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("it-ran-code",))


def with_header(payload, version=fit_files.FORMAT):
    return fit_files._header(payload, version) + payload


def malicious(good, rng):
    return with_header(pickle.dumps(RunsCode()))


def malicious_zip(good, rng):
    buffer = io.BytesIO()
    torch.save({"plan": RunsCode()}, buffer)
    return with_header(buffer.getvalue())


def malicious_bare(good, rng):
    return pickle.dumps(RunsCode())


def other_content(good, rng):
    buffer = io.BytesIO()
    torch.save({"format": 1, "model": {}}, buffer)
    return with_header(buffer.getvalue())


DAMAGES = {
    "empty": lambda good, rng: b"",
    "truncated": lambda good, rng: good[: rng.randrange(1, len(good))],
    "longer": lambda good, rng: good + b"\0",
    "bit flipped": lambda good, rng: flipped(good, rng.randrange(8 * len(good))),
    "bit of the header flipped": lambda good, rng: flipped(good, rng.randrange(8 * 87)),
    "zeros in the middle": lambda good, rng: good[:500] + bytes(512) + good[1012:],
    "text": lambda good, rng: b"this is no checkpoint\n" * 100,
    "pickle": malicious_bare,
    "malicious pickle with a good checksum": malicious,
    "malicious torch file with a good checksum": malicious_zip,
    "another file of torch with a good checksum": other_content,
}


def flipped(data, bit):
    byte = data[bit // 8] ^ (1 << bit % 8)
    return data[: bit // 8] + bytes([byte]) + data[bit // 8 + 1 :]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_the_one_before_it_serves(
    damage, seed, folder, said, monkeypatch
):
    monkeypatch.chdir(folder)
    newest, before, _ = fit_files.find(folder)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes(), random.Random(f"{damage}{seed}")))
    with pytest.raises(CheckpointError, match=re.escape(str(newest))):
        toy_learner().fit(2, 0.1, resume=newest)
    learn = toy_learner()
    learn.fit(2, 0.1, resume=folder)
    assert learn.total_updates == 16
    passed_over = [line for line in said() if line.startswith("resume: passed over")]
    assert len(passed_over) == 1
    assert str(newest) in passed_over[0]
    assert any(line.startswith(f"resume: from {before}") for line in said())
    assert not (folder / "it-ran-code").exists()


def test_the_malicious_files_would_run_code_if_they_were_read_without_care(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(malicious_bare(b"", None))
    assert (tmp_path / "it-ran-code").exists()


def test_where_no_file_can_be_read_nothing_begins(folder):
    for file in fit_files.find(folder):
        file.write_bytes(file.read_bytes()[:-1])
    learn = toy_learner()
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        learn.fit(2, 0.1, resume=folder)
    assert learn.total_updates == 0


@pytest.mark.parametrize(("version", "advice"), [(4, "update it"), (2, "finish that fit")])
def test_a_file_of_another_format_is_refused_with_both_versions(folder, version, advice):
    newest = fit_files.find(folder)[0]
    payload = newest.read_bytes().split(b"\n", 1)[1]
    newest.write_bytes(with_header(payload, version))
    for path in (newest, folder):
        words = f"has format {version}; this onecycle reads 3: {advice}"
        with pytest.raises(CheckpointError, match=words):
            toy_learner().fit(2, 0.1, resume=path)


def test_a_checkpoint_holds_a_checksum_over_all_of_it(folder):
    content = fit_files.find(folder)[0].read_bytes()
    header, payload = content.split(b"\n", 1)
    assert header.split()[-1].decode() == hashlib.sha256(b"3\n" + payload).hexdigest()
    (folder / "payload.zip").write_bytes(payload)
    assert zipfile.is_zipfile(folder / "payload.zip")


@pytest.mark.parametrize("failing", [[1], [0, 1, 2], [2]])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file"),
    ],
)
def test_on_a_full_disk_the_fit_goes_on_and_no_good_file_is_harmed(
    failing, error, tmp_path, monkeypatch, said
):
    write, calls = fit_files.atomic_write, iter(range(99))

    def full(path):
        if next(calls) in failing:
            raise error
        return write(path)

    monkeypatch.setattr(fit_files, "atomic_write", full)
    learn = toy_learner()
    learn.fit(2, 0.1, cbs=[Checkpoint(tmp_path, "5 updates", keep=9)])
    assert learn.total_updates == 16
    assert len(fit_files.find(tmp_path)) == 3 - len(failing)
    for file in fit_files.find(tmp_path):
        fit_files.read(file)
    assert said() == [
        f"Checkpoint: could not write to {tmp_path}, the fit goes on: {error}",
        f"Checkpoint: {len(failing)} of 3 checkpoints could not be written to {tmp_path}",
    ]
