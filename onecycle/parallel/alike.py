"""What must be the same in all processes, or each would train on other data, or in another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from onecycle.core.loop import Loop
from onecycle.data.loaders import TensorLoader
from onecycle.data.nested import leaves
from onecycle.errors import OnecycleError
from onecycle.processes import Processes

#: So many rows of a tensor are looked at, and so many numbers of one that is an item.
_ROWS, _NUMBERS = 16, 4096
#: By which part sums of an optimizer's state may differ: devices round in their own ways.
_ROUNDING = 1e-3
#: By which part the norm of a weight may differ after a pass.
_DRIFT = 1e-5


def sign_of(value: Any) -> int:
    """Return a number that tells one item or list of indices from another, below 2**32.

    Example:
        >>> sign_of([1, 2]) == sign_of((1, 2)), sign_of([1, 2]) == sign_of([2, 1])
        (True, False)
    """
    found = 0
    for leaf in leaves(value):
        found = crc32(_bytes(leaf), found)
    return found


def _bytes(leaf: Any) -> bytes:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if isinstance(leaf, Tensor) and _can_be_read(leaf):
        numbers = leaf.detach().reshape(-1)[:_NUMBERS].cpu().contiguous()
        return f"{tuple(leaf.shape)}".encode() + numbers.view(torch.uint8).numpy().tobytes()
    is_plain = leaf is None or isinstance(leaf, int | float | str | bytes | np.generic)
    return repr(leaf).encode() if is_plain else type(leaf).__name__.encode()


def _can_be_read(tensor: Tensor) -> bool:
    is_usual = tensor.layout is torch.strided and not tensor.is_quantized
    return is_usual and not tensor.is_meta and not tensor.is_complex()


def check_data(processes: Processes, loaders: Mapping[str, Any]) -> None:
    """Refuse loaders whose data are not those of the other processes, as far as that is seen.

    Looked at are lengths, some rows of tensors, and the indices of subsets.

    Args:
        processes: The processes.
        loaders: By name those of a learner; every process calls this.

    Raises:
        ValueError: In every process.
    """
    said = processes.gather({name: _of_data(dl) for name, dl in loaders.items()})
    for number, each in enumerate(said):
        for name, own in each.items():
            if own != said[0].get(name):
                raise ValueError(
                    f"the {name or 'validation'} data of process {number} are not those of process "
                    "0: each takes its part of what is the same for all, so that samples would "
                    "come twice or not at all. Let all make the same data: a random split or "
                    "random numbers need a seed, as by torch.Generator().manual_seed(0)"
                )


def _of_data(dl: Any) -> list[Any]:
    """Return what shows which data a loader has, without loading a sample."""
    if isinstance(dl, TensorLoader):
        return [_rows(dl.tensors)]
    found: list[Any] = []
    data = getattr(dl, "dataset", None) if isinstance(dl, DataLoader) else None
    while data is not None and len(found) < 20:
        indices = getattr(data, "indices", None)
        try:
            length = len(data)
        except (TypeError, NotImplementedError):
            length = None
        is_listed = isinstance(indices, list | range)
        numbers = crc32(np.asarray(indices).tobytes()) if is_listed else None
        found.append((type(data).__name__, length, numbers, _rows(getattr(data, "tensors", ()))))
        data = getattr(data, "dataset", None)
    return found


def _rows(tensors: Any) -> list[int]:
    """Return signs of some rows of each tensor."""
    if not isinstance(tensors, tuple | list):
        return []
    known = [t for t in tensors if isinstance(t, Tensor) and t.ndim and _can_be_read(t)]
    steps = [max(1, len(t) // _ROWS) for t in known]
    return [sign_of([len(t), *t[::step]]) for t, step in zip(known, steps, strict=True)]


def check_weights(processes: Processes, learn: Loop) -> None:
    """Refuse to go on with weights or rates that are not those of the first process.

    They are the same as long as all add up their gradients, and step alike.

    Args:
        processes: The processes.
        learn: The learner, after a pass; every process calls this.

    Raises:
        OnecycleError: In every process.
    """
    rates = [float(group["lr"]) for group in learn.opt.param_groups]
    said = processes.gather((rates, _norms(learn)))
    for number, each in enumerate(said):
        is_near = [_are_near(own, first) for own, first in zip(each, said[0], strict=True)]
        if not all(is_near):
            raise OnecycleError(
                f"the {'weights' if is_near[0] else 'learning rates'} of process "
                f"{number} are no longer those of process 0: something changed them, or gradients "
                "that had been added up, otherwise in each process. What a callback or optimizer "
                "draws at random needs a generator of its own with one seed (the global ones "
                "differ, as dropout needs); what it decides by a batch must be decided by "
                "learn.loss in training, which is that of all"
            )


def _norms(learn: Loop) -> list[float]:
    """Return the norm of each weight that trains; none of parts, of which each has its own."""
    weights = [p.detach() for p in learn.stepper.params if p.numel()]
    if learn.sharded is not None or not weights:
        return []
    norms = [torch.linalg.vector_norm(p) for p in weights]
    return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]).tolist()


def _are_near(own: list[float], first: list[float]) -> bool:
    """Tell whether numbers are those of the first process, to rounding; NaN is as any other."""
    return len(own) == len(first) and all(
        math.isclose(a, b, rel_tol=_DRIFT) or not math.isfinite(a + b)
        for a, b in zip(own, first, strict=True)
    )


def check_state(processes: Processes, learn: Loop) -> None:
    """Refuse to train with optimizers that are not in one state: each would make other updates.

    Args:
        processes: The processes.
        learn: The learner, with all that a resume has put back; every process calls this.

    Raises:
        OnecycleError: In every process.
    """
    states = [*learn.opt.state.values()]
    kept = [t for state in states for t in state.values() if isinstance(t, Tensor) and t.numel()]
    # Of parts each process has its own.
    floats = [t.detach() for t in kept if t.is_floating_point() and learn.sharded is None]
    total = sum(float(torch.linalg.vector_norm(t)) for t in floats)
    trained = sum(p.requires_grad for p in learn.stepper.params)
    counted = [learn.total_updates, learn.total_epochs, trained, len(kept)]
    said = processes.gather((counted, total))
    for number, (each, norm) in enumerate(said):
        first, own = said[0]
        is_near = math.isclose(norm, own, rel_tol=_ROUNDING) or not math.isfinite(norm + own)
        if each != first or not is_near:
            raise OnecycleError(
                f"the optimizers of the processes are not in one state, and would make other "
                f"updates from here on: process 0 has made {first[0]} updates in {first[1]} "
                f"epochs and trains {first[2]} parameters, process {number} {each[0]} in {each[1]} "
                f"and {each[2]}. So it is after an error in a fit, or where one process alone has "
                "loaded a file or frozen a part: go on with resume=, let all do the same, or make "
                "the Learner anew"
            )
