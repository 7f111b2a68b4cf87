"""What a checkpoint costs: against ``torch.save``, one sync and one checksum pass by hand.

The same state of a model of 25 million parameters with AdamW's moments, written in turns (A B A B)
to the same disk; and with ``background=True`` the time that the loop waits, against one copy of the
state. The ratio is taken pair by pair and given as its median. The clock is that on the wall.

    python tests/benchmarks/checkpoint.py --pairs 7
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onecycle import Checkpoint, Learner
from onecycle.checkpoints import fit_files

WIDTH, LAYERS = 1000, 25


def learner() -> Learner:
    """Make a learner of 25 million parameters whose optimizer has made a step."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    x = torch.randn(4, WIDTH)
    learn = Learner(([(x, x)], None), model, nn.functional.mse_loss, device="cpu", seed=0)
    with learn.no_bar():
        learn.fit(1, 1e-4)
    return learn


def seconds(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def by_hand(state: dict[str, Any], path: Path) -> None:
    """Write a state with torch, sync the file, and read it for its checksum."""
    torch.save(state, path)
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def copied_by_hand(value: Any) -> Any:
    """Copy the tensors of a nested value."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied_by_hand(part) for key, part in value.items()}
    return [copied_by_hand(part) for part in value] if isinstance(value, list | tuple) else value


def main() -> int:
    """Measure, and print both rows; the exit status is 1 where a ratio is above its target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    learn, folder = learner(), Path(tempfile.mkdtemp(prefix="checkpoint-", dir="."))
    taken = {}
    for background in (False, True):
        taken[background] = Checkpoint(folder / str(background), keep=1, background=background)
        taken[background].before_fit(learn)
        taken[background].before_train(learn)
    state = fit_files.capture(learn, {}, None, {})

    def checkpoint(background: bool) -> None:
        taken[background]._save(learn, None)

    good = True
    for title, target, ours, theirs in (
        ("written", 1.1, partial(checkpoint, False), partial(by_hand, state, folder / "file")),
        ("waited for", 1.2, partial(checkpoint, True), partial(copied_by_hand, state)),
    ):
        ours(), theirs()
        pairs = []
        for _ in range(args.pairs):
            taken[True].wait_for_write()
            a = seconds(theirs)
            b = seconds(ours)
            taken[True].wait_for_write()
            pairs.append((a, b))
        ratio = statistics.median(b / a for a, b in pairs)
        both = [statistics.median(times) for times in zip(*pairs, strict=True)]
        print(
            f"{title:12} {both[1]:.3f} s, by hand {both[0]:.3f} s: {ratio:.2f} (at most {target})"
        )
        good &= ratio <= target
    shutil.rmtree(folder)
    return not good


if __name__ == "__main__":
    sys.exit(main())
