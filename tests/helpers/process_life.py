"""One life of a training in one of several processes: it may be killed at any moment.

    python -m process_life FOLDER LIFE KIND BATCH_SIZE [DIES]

``KIND`` is ``bits``, with batch norm and dropout, or ``numbers``, in which any number of processes
has the same. The samples of each batch are written down, and how it ends. With ``DIES`` the last
process kills itself once, after so many updates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from learner_state import trained
from together import N, X, Y
from torch import nn
from torch.nn import functional as F

from onecycle import Callback, Checkpoint, GradientClip, Learner, TensorLoader, seed_everything

EPOCHS = 36
#: Samples of a batch of all processes.
WHOLE = 12


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 3)]
    if kind == "bits":
        layers[1:1] = [nn.BatchNorm1d(32), nn.Dropout(0.3)]
    return nn.Sequential(*layers).double()


def train(folder: Path, life: str, kind: str, batch_size: int, dies: int | None) -> None:
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    # What is not restored differs from life to life.
    seed_everything(os.getpid() if any(folder.glob("checkpoints/*.pt")) else 7)
    data = TensorLoader(X, Y, torch.arange(N), batch_size=batch_size, shuffle=True)
    learn = Learner(
        (data, None),
        net(kind),
        lambda pred, y, i: F.cross_entropy(pred, y),
        seed=3,
        n_inp=1,
        device="cpu",
        check=False,
    )
    learn.cbs = [learn.recorder]
    with (folder / f"seen-{life}-{world}-{rank}").open("w") as seen:

        def keep(learn: Any) -> None:
            own = learn.batch[2].tolist() if learn.has_samples else []
            seen.write(json.dumps([learn.total_updates, own]) + "\n")
            seen.flush()
            dead = folder / "dead"
            if dies == learn.total_updates and rank == world - 1 and not dead.exists():
                dead.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        where = folder / "checkpoints"
        cbs = [GradientClip(0.5), Callback(after_batch=keep), Checkpoint(where, "5 updates")]
        learn.fit_one_cycle(EPOCHS, 0.05, cbs=cbs, resume=where)
    parts = trained(learn).items()
    bits = {name: hashlib.sha256(pickle.dumps(part)).hexdigest() for name, part in parts}
    flat = torch.cat([p.detach().reshape(-1) for p in learn.model.parameters()]).tolist()
    end = folder / f"end-{rank}.json"
    end.with_suffix(".tmp").write_text(json.dumps({"bits": bits, "parameters": flat}))
    end.with_suffix(".tmp").rename(end)


def live(folder: str, life: str, kind: str, batch_size: str, dies: str | None = None) -> None:
    """Live a life, by the arguments of the command."""
    logging.getLogger("onecycle").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    life = os.environ.get("TORCHELASTIC_RESTART_COUNT", life)
    train(Path(folder), life, kind, int(batch_size), None if dies is None else int(dies))


if __name__ == "__main__":
    live(*sys.argv[1:])
