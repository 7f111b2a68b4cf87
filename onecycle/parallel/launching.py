"""`launch`: start a function in several processes, from a notebook or a script."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from onecycle.arguments import check_count, shown


def launch(train: Callable[..., Any], *arguments: Any, processes: int) -> list[Any]:
    """Run a function in several processes that train one model, as ``torchrun`` runs a script.

    torch's own launcher starts them on this machine: what ends in one of them ends in all. The
    function makes its own data and its own `Learner`, which finds the other processes by itself.

    Args:
        train: A function of a module that can be imported, for each process imports it anew.
        *arguments: What it is called with; they must be such as can be pickled.
        processes: How many; on CUDA at most one for each device.

    Returns:
        What the function returned, by process.

    Raises:
        TypeError, ValueError: For what no other process could import, or no number of processes.
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: If one fails, with the
            error of that one.

    Example:
        >>> launch(lambda: None, processes=2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: train must be a function of a module, which each process can import; ...
    """
    if isinstance(train, type) or not callable(train):
        raise TypeError(f"train must be a function; got {shown(train)}")
    check_count("processes", processes)
    module, name = getattr(train, "__module__", ""), getattr(train, "__qualname__", "")
    is_cell = module == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    if is_cell or "<" in name or not name:
        raise ValueError(
            "train must be a function of a module, which each process can import; got "
            f"{name or train!r}: write it to a file, with %%writefile training.py as the first "
            "line of its cell, and then: from training import train"
        )
    # Here, for it takes a while, and few ask for it.
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id=uuid4().hex,
        max_restarts=0,
        start_method="spawn",
    )
    found = elastic_launch(config, train)(*arguments)
    return [found[rank] for rank in range(processes)]
