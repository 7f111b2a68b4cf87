"""What a checkpoint says of the processes that made it, and how others go on with it."""

from __future__ import annotations

from typing import Any

import torch

from onecycle.core.restore import RngState
from onecycle.data.generators import order_seed, seed_all
from onecycle.parallel.shards import Shards
from onecycle.processes import Processes

#: Under which name it stands among what a reader may pass over.
NAME = "processes"


def shared_state(
    processes: Processes | None, shards: Shards | None, loader: Any, state: dict[str, Any]
) -> dict[str, Any]:
    """Return what a checkpoint of several processes holds besides: every process calls this.

    Args:
        processes: The processes; ``None`` for one that trains alone.
        shards: What they share; ``None`` where nothing is shared.
        loader: The training loader.
        state: The state of the fit, with the random states of this process.

    Returns:
        The samples of a batch of all, the loaders' own batches in it, and the random states of each
        process; nothing for one that trains alone.
    """
    if shards is None:
        return {}
    own = {"rng": state["rng"], "pass_rng": state["pass_rng"]}
    return {
        NAME: {
            "batch_size": shards.batch_size_of(loader),
            "items": shards.items,
            "streams": [own] if processes is None else processes.gather(own),
        }
    }


def batches_of(state: dict[str, Any]) -> tuple[int | None, int]:
    """Return of the fit in a checkpoint the samples of a batch, and the loader's batches in it."""
    found = state["extra"].get(NAME)
    if found is None:
        return state["plan"].get("batch_size"), 1
    return found["batch_size"], found["items"]


def take_own_streams(state: dict[str, Any], processes: Processes | None) -> None:
    """Put the random states of this process in a state, in place of the first one's.

    Where the checkpoint was made by another number of processes, those of the first one serve,
    and each of the others goes on with a stream of its own that follows from them.

    Args:
        state: What a checkpoint holds.
        processes: The processes; ``None`` for one that trains alone.
    """
    streams = state["extra"].get(NAME, {}).get("streams", [])
    if processes is None:
        return
    if len(streams) == processes.world:
        state.update(streams[processes.rank])
    elif not processes.is_first:
        now = RngState()
        try:
            for name in ("rng", "pass_rng"):
                RngState.from_state_dict(state[name]).restore()
                seed_all(order_seed(int(torch.randint(2**62, ())), processes.rank))
                state[name] = RngState().state_dict()
        finally:
            now.restore()
