"""Fits of 2 and 4 processes over gloo; each job is started once for many checks."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import launched
import pytest
from started import HELPERS, LIMIT, ROOT, Job, found_once, free_port, shared_folder
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from onecycle import launch
from onecycle.callbacks.signals import EXIT_CODE
from onecycle.checkpoints import fit_files

pytestmark = pytest.mark.slow

#: By module what more than two processes can do otherwise than two; of parts one may be empty.
FOR_FOUR = {
    "equal_checks": {
        "check_accumulation_and_its_last_window",
        "check_a_last_batch_of_one_sample",
        "check_metrics_of_every_kind",
        "check_more_processes_than_validation_samples",
        "check_a_distributed_sampler_is_not_padded",
        "check_a_list_and_a_stream_by_position",
    },
    "loop_checks": {
        "check_optimizers_that_take_turns",
        "check_metrics_of_the_training_pass",
        "check_a_stream_that_was_cut_is_resumed",
        "check_a_stream_that_can_be_split",
        "check_a_share_goes_on_where_it_was",
    },
    "tool_checks": set(),
    "decision_checks": {
        "check_a_cancel_in_one_process_is_one_in_all",
        "check_an_error_in_one_process_ends_all",
        "check_the_statistics_of_batch_norm_are_the_first_ones",
    },
    "resume_checks": {
        "check_the_same_number_ends_in_the_same_bits",
        "check_several_go_on_for_one",
        "check_begin_for_others",
    },
    "sharded_checks": {
        "check_the_norm_that_clips_is_over_all_parts",
        "check_the_same_number_ends_in_the_same_bits",
        "check_begin_for_others",
    },
    "unusual_checks": {"check_what_trains_changes_within_a_fit"},
}


def checks_of(module: str) -> list[str]:
    tree = ast.parse((HELPERS / f"{module}.py").read_text())
    named = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in named if name.startswith("check_")]


CASES = [
    (world, f"{module}.{name}")
    for world in (4, 2)
    for module, for_four in FOR_FOUR.items()
    for name in checks_of(module)
    if world == 2 or name in for_four
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_folder(tmp_path_factory, "together")


def found(world: int, folder: Path) -> list[dict[str, str]]:
    if world == 2:  # which go on with what four have left
        found(4, folder)
    names = tuple(name for each, name in CASES if each == world)
    return found_once("all_checks", world, folder, names)


@pytest.mark.parametrize(("world", "name"), CASES)
def test_processes_have_the_answer_of_one(world: int, name: str, folder: Path) -> None:
    said = [each.get(name, "it was not reached") for each in found(world, folder)]
    assert said == [""] * world, "\n".join(said)


def test_every_check_for_four_processes_is_there() -> None:
    for module, for_four in FOR_FOUR.items():
        assert for_four <= set(checks_of(module))


def when_it_runs(job: Job) -> Job:
    until = time.monotonic() + LIMIT
    while not all((job.folder / f"runs-{rank}").exists() for rank in range(job.world)):
        if time.monotonic() > until or any(each.poll() is not None for each in job.processes):
            raise RuntimeError("\n".join(job.said(rank) for rank in range(job.world)))
        time.sleep(0.05)
    return job


def test_sigterm_to_one_process_ends_all_in_order_at_one_update(tmp_path: Path) -> None:
    job = when_it_runs(Job("killed_job", 2, tmp_path))
    job.kill(1, signal.SIGTERM)
    assert job.wait(120) == [EXIT_CODE] * 2
    found = fit_files.read_newest(tmp_path / "checkpoints")
    assert found is not None
    assert found[1]["counters"]["n_updates"] >= 20


@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_kill_of_one_process_the_other_ends_within_30_seconds(
    rank: int, tmp_path: Path
) -> None:
    job = when_it_runs(Job("killed_job", 2, tmp_path))
    job.kill(rank)
    codes = job.wait(30)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1, job.said(1 - rank)
    assert "another process of this job has ended" in job.said(1 - rank)


def test_two_agents_of_torchrun_make_one_job(tmp_path: Path) -> None:
    where = f"127.0.0.1:{free_port()}"
    agent = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
    ]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", where, "--rdzv-id", "1"]
    agent += ["--local-addr", "127.0.0.1", "-m", "equal_checks", str(tmp_path), "check_adamw"]
    path = f"{ROOT}{os.pathsep}{HELPERS}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    agents = [subprocess.Popen(agent, env=environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        assert [each.wait(LIMIT) for each in agents] == [0, 0]
    finally:
        for each in agents:
            each.kill()
    said = sorted((file.name, file.read_text()) for file in tmp_path.iterdir())
    right = '{"check_adamw": ""}'
    assert said == [("found-2-0.json", right), ("found-2-1.json", right)]


def test_launch_returns_what_each_process_trained() -> None:
    first, second = launch(launched.train, 2, processes=2)
    assert first == second
    assert len(first) == 2 * 3  # of 5 batches two make one


def test_an_error_in_a_launched_process_is_raised_with_its_words() -> None:
    with pytest.raises(ChildFailedError, match="nothing can be trained"):
        launch(launched.fail, processes=2)
