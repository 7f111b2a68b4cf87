"""Of several processes the first one writes, and a restarted run goes on in its run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import onecycle

WORKER = """
import sys
import torch.distributed as dist
from onecycle import Callback, Checkpoint, JSONLines
from onecycle.testing import toy_learner

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

def fail(learn):
    if learn.n_updates == 8:
        raise RuntimeError("on purpose")

def fit(*cbs, **options):
    tracker = JSONLines(f"{folder}/run-{rank}.jsonl", name="run")
    saves = Checkpoint(f"{folder}/checkpoints-{rank}", "3 updates")
    toy_learner(n_batches=5).fit(2, 0.1, cbs=[tracker, saves, *cbs], **options)

try:
    fit(Callback(after_pred=fail, during="train"))
except RuntimeError as error:
    assert "on purpose" in str(error)
fit(resume=f"{folder}/checkpoints-{rank}")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_first_of_two_processes_writes_and_a_restart_goes_on_in_its_file(tmp_path):
    root = str(Path(onecycle.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    lines = [json.loads(line) for line in (tmp_path / "run-0.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines if "run" in line] == ["run"]
    assert [line["update"] for line in lines if "update" in line] == [*range(1, 11)]
    assert not (tmp_path / "run-1.jsonl").exists()
