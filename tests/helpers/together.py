"""What the processes of a job check together: run as a module, each writes what it found."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle import Learner, Recorder, TensorLoader, accuracy
from onecycle.optim.sharded import whole

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
#: Samples of a batch of all processes.
WHOLE = 12
#: Samples and updates of an epoch; the last update has 5 samples.
N, UPDATES = 53, 5
#: After so long without an answer a collective fails.
PATIENCE = timedelta(seconds=30)

generator = torch.Generator().manual_seed(5)
X = torch.randn(N, 5, generator=generator, dtype=torch.float64)
Y = (X.sum(1) > 0).long() + (X[:, 0] > 1).long()

Check = Callable[[Path], None]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


def learner(alone: bool = False, dls: Any = None, model: Any = None, **options: Any) -> Learner:
    """Make a learner of this process's part, or one that trains alone on the batches of all."""
    size = WHOLE if alone else WHOLE // WORLD
    if dls is None:
        dls = loaders(size)
    options = {"metrics": [accuracy], "opt_func": sgd, "loss_func": F.cross_entropy} | options
    parallel = {"parallel": None} if alone else {}
    made = Learner(
        dls, model or net(), lr=0.1, seed=3, device="cpu", check=False, **options, **parallel
    )
    made.cbs = [callback for callback in made.cbs if isinstance(callback, Recorder)]
    return made


def loaders(size: int) -> tuple[TensorLoader, TensorLoader]:
    train = TensorLoader(X, Y, batch_size=size, shuffle=True)
    return train, TensorLoader(X[:29], Y[:29], batch_size=size)


def weights(learn: Learner) -> list[Tensor]:
    """Return copies of all parameters and buffers, whole where each process has a part."""
    return [whole(p.detach()).clone() for p in (*learn.model.parameters(), *learn.model.buffers())]


def distance(learn: Learner, other: Learner) -> float:
    """Return by how much weights and records of two learners differ at most."""
    mine, theirs = learn.recorder.history, other.recorder.history
    assert list(mine) == list(theirs), (list(mine), list(theirs))
    found = [
        float((a - b).abs().max()) for a, b in zip(weights(learn), weights(other), strict=True)
    ]
    for name in mine:
        assert mine[name].updates.tolist() == theirs[name].updates.tolist(), name
        found.append(float(np.abs(mine[name].values - theirs[name].values).max()))
    return max(found)


def same_bits(learn: Learner, other: Learner) -> None:
    for mine, theirs in zip(weights(learn), weights(other), strict=True):
        assert torch.equal(mine, theirs)
    for name, series in other.recorder.history.items():
        assert learn.recorder.history[name].values.tolist() == series.values.tolist(), name


def gathered(value: Any) -> list[Any]:
    found: list[Any] = [None] * WORLD
    dist.all_gather_object(found, value)
    return found


def flat(lists: Iterable[list[int]]) -> list[int]:
    return [each for part in lists for each in part]


def equal_everywhere(learn: Learner) -> None:
    """Fail unless weights and record have the same bits in every process."""
    record = {name: series.values.tolist() for name, series in learn.recorder.history.items()}
    others = gathered(([w.tolist() for w in weights(learn)], record, learn.stop_reason))
    assert all(other == others[0] for other in others), others


def run(checks: dict[str, Check]) -> None:
    """Run the checks that were asked for, and write what they found."""
    logging.getLogger("onecycle").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is imported lives to the end, and is looked through each time otherwise
    dist.init_process_group("gloo", timeout=PATIENCE)
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(checks)
    found = {}
    for name in names:
        own = folder / name.rpartition(".")[0]  # of the module, where there are several
        own.mkdir(exist_ok=True)
        try:
            checks[name](own)
            found[name] = ""
        except BaseException:
            found[name] = traceback.format_exc()[-2500:]
        try:
            dist.barrier()
        except RuntimeError as error:
            found[name] += f"the processes are apart: {error}"
            break
    (folder / f"found-{WORLD}-{RANK}.json").write_text(json.dumps(found))
