"""Two hundred damaged files: none loads, none runs code, and each is named."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import LearnerState
from tiny_learner import tiny

from onecycle import Checkpoint, CheckpointError, Learner
from onecycle.checkpoints import fit_files, model_files

N = 100  # of each of the two kinds of files
MARKER = "it-ran-code"

#: What makes another content of a good one.
Damage = Callable[[bytes, random.Random], bytes]


class RunsCode:
    def __reduce__(self) -> Any:
        return os.mkdir, (MARKER,)


def torch_file(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(RunsCode()))
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def truncated(good: bytes, rng: random.Random) -> bytes:
    return good[: rng.randrange(len(good))]


def flipped(good: bytes, rng: random.Random) -> bytes:
    bad = bytearray(good)
    for bit in rng.sample(range(8 * len(good)), rng.choice([1, 1, 2, 50])):
        bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


def overwritten(good: bytes, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(good)), rng.randrange(1, 4096)
    hole = rng.randbytes(n) if rng.random() < 0.5 else bytes(n)
    return (good[:at] + hole + good[at + n :])[: len(good)]


def of_something_else(good: bytes, rng: random.Random) -> bytes:
    contents = [
        b"",
        b"\n",
        rng.randbytes(1000),
        b"ein Text\n" * 50,
        zip_file(),
        pickle.dumps([1, 2, 3]),
        torch_file(torch.ones(3)),
        torch_file({"weight": torch.ones(3)}),
        torch_file({"format": model_files.FORMAT}),
    ]
    return rng.choice(contents)


def malicious(good: bytes, rng: random.Random) -> bytes:
    version = model_files.FORMAT
    state = {"format": version, "model": RunsCode(), "opt": {}, "plan": RunsCode()}
    return rng.choice(
        [
            pickle.dumps(RunsCode()),
            pickle.dumps(state, protocol=2),
            torch_file(state),
            torch_file(RunsCode()),
            zip_file(),
        ]
    )


def with_checksum(damage: Damage) -> Damage:
    """Damage the payload of a checkpoint, and give it the checksum that it then has."""

    def damaged(good: bytes, rng: random.Random) -> bytes:
        payload = damage(good.split(b"\n", 1)[1], rng)
        return fit_files._header(payload) + payload

    return damaged


def newer_checkpoint(good: bytes, rng: random.Random) -> bytes:
    payload = good.split(b"\n", 1)[1]
    return fit_files._header(payload, fit_files.FORMAT + rng.randrange(1, 9)) + payload


def newer_model(good: bytes, rng: random.Random) -> bytes:
    state = torch.load(io.BytesIO(good), weights_only=True)
    return torch_file(state | {"format": model_files.FORMAT + rng.randrange(1, 9)})


DAMAGES = [truncated, flipped, overwritten, of_something_else, malicious]
OF_CHECKPOINTS: list[Damage] = [
    *DAMAGES,
    with_checksum(truncated),
    with_checksum(of_something_else),
    with_checksum(malicious),
    newer_checkpoint,
]
OF_MODELS: list[Damage] = [*DAMAGES, newer_model]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder, in which no code of a file may leave its marker."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="ignore"):  # torch's, of files that it does not know
        yield tmp_path
    assert not (tmp_path / MARKER).exists()


def refused(call: Callable[[], object], path: Path) -> str:
    """Return what is wrong with how a call refuses a file."""
    try:
        call()
    except CheckpointError as error:
        said = str(error)
        return "" if str(path) in said and "\n" not in said else f"says {said!r}"
    except Exception as error:
        return f"came as {error!r}"
    return "was loaded"


def damaged(good: bytes, damages: list[Damage]) -> Iterator[tuple[str, bytes]]:
    for i in range(N):
        rng = random.Random(i)
        damage = damages[i % len(damages)]
        content = damage(good, rng)
        assert content != good
        yield f"{i} {damage.__qualname__}", content


def checkpoints(folder: Path) -> list[Path]:
    """Write a folder of three checkpoints; the newest comes first."""
    torch.manual_seed(1)
    tiny().fit(2, cbs=[Checkpoint(folder, "1 updates")])
    return fit_files.find(folder)


def test_no_damaged_checkpoint_is_resumed_from(here: Path) -> None:
    newest, *_ = checkpoints(here / "runs")
    learn, broken = tiny(), []
    before = LearnerState(learn)
    for name, content in damaged(newest.read_bytes(), OF_CHECKPOINTS):
        newest.write_bytes(content)
        if wrong := refused(lambda: learn.fit(2, resume=newest), newest):
            broken.append(f"{name}: {wrong}")
    assert broken == []
    assert before.changes(LearnerState(learn)) == []


def test_no_damaged_file_of_a_model_is_loaded(here: Path) -> None:
    path = here / "model.pt"
    learn, broken = tiny(), []
    learn.fit(1)
    learn.save(path)
    before = LearnerState(learn)
    for name, content in damaged(path.read_bytes(), OF_MODELS):
        path.write_bytes(content)
        if wrong := refused(lambda: learn.load(path), path):
            broken.append(f"{name}: {wrong}")
    assert broken == []
    assert before.changes(LearnerState(learn)) == []


def test_the_newest_good_file_serves_and_the_damaged_ones_are_named(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest, second, third = checkpoints(here / "runs")
    good = newest.read_bytes(), second.read_bytes()
    whole = tiny()
    torch.manual_seed(1)
    whole.fit(2)
    for i in range(10):
        rng = random.Random(i)
        newest.write_bytes(rng.choice(DAMAGES)(good[0], rng))
        second.write_bytes(rng.choice(DAMAGES)(good[1], rng))
        caplog.clear()
        learn = tiny()
        with caplog.at_level(logging.INFO, "onecycle"):
            learn.fit(2, resume=here / "runs")
        said = [record.getMessage() for record in caplog.records]
        passed_over = [line for line in said if line.startswith("resume: passed over")]
        assert [str(path) in line for path, line in zip((newest, second), passed_over, strict=True)]
        assert any(line.startswith(f"resume: from {third}") for line in said)
        assert torch.equal(learn.model[0].weight, whole.model[0].weight)  # type: ignore[index]


def test_the_malicious_files_would_run_code_if_they_were_read_without_care(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for content in {malicious(b"", random.Random(i)) for i in range(20)}:
        with contextlib.suppress(Exception):
            torch.load(io.BytesIO(content), weights_only=False)
        (tmp_path / MARKER).rmdir()


def test_the_check_finds_a_file_that_is_loaded(here: Path) -> None:
    learn: Learner = tiny()
    learn.save(here / "model.pt")
    assert refused(lambda: learn.load(here / "model.pt"), here / "model.pt") == "was loaded"
