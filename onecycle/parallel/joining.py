"""Which processes a learner trains with, found when it is made."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from onecycle.arguments import Default, check_one_of
from onecycle.processes import Processes, join, local_device, n_processes

log = logging.getLogger("onecycle")

#: How several processes train one model: each has all of it, or a part of every parameter.
Parallel = Literal["ddp", "fsdp"]
#: As given to a `Learner`; ``None``: the accelerator.
Device = str | torch.device | None


def joined(parallel: Parallel | Default | None, device: Device) -> tuple[Processes | None, Device]:
    """Let this process join the others of its job, and say on which device it trains.

    Args:
        parallel: As given to the `Learner`.
        device: Likewise.

    Returns:
        The processes, ``None`` where this one trains alone; and the device, by ``LOCAL_RANK``
        where none was given.

    Raises:
        ValueError: If ``parallel`` is nothing known.

    Example:
        >>> joined(None, "cpu")
        (None, 'cpu')
    """
    if parallel is not Default.OWN and parallel is not None:
        check_one_of("parallel", parallel, ("ddp", "fsdp"))
    processes = None if parallel is None else join()
    if processes is None:
        if n_processes() > 1:
            log.warning(
                "this is one of %d processes, and each trains a copy of its own on all data%s",
                n_processes(),
                ", as parallel=None says"
                if parallel is None
                else ": a launcher such as torchrun sets RANK, MASTER_ADDR and MASTER_PORT, by "
                "which they would train together",
            )
        return None, device
    return processes, local_device() if device is None else device
