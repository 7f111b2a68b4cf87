"""A model and its optimizer in a file: whole or not there, read without running code."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecycle.errors import CheckpointError
from onecycle.files import atomic_write

if TYPE_CHECKING:
    from onecycle.optim.groups import ParamGroups

#: The version of the files.
FORMAT = 1

#: The length of the checksum that a file ends with: of SHA-256, in hexadecimal digits.
_DIGITS = 64


def write_model(path: str | Path, model: nn.Module, opt: Optimizer) -> None:
    """Write the states of a model and its optimizer.

    Args:
        path: Where to write; a file that is there is replaced.
        model: The model.
        opt: Its optimizer.
    """
    state = {
        "format": FORMAT,
        "model": model.state_dict(),
        "opt": opt.state_dict(),
        "opt_class": type(opt).__name__,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(_sealed(buffer.getvalue()))


def _sealed(archive: bytes) -> bytes:
    """Put a checksum into the comment of a zip archive, which torch and others pass over.

    torch does not look at the checksums that an archive has for its parts: it would load a tensor
    with a flipped bit.
    """
    body = archive[:-2] + _DIGITS.to_bytes(2, "little")  # the length of the comment comes last
    return body + hashlib.sha256(body).hexdigest().encode()


def read_model(path: str | Path, model: nn.Module, groups: ParamGroups | None) -> None:
    """Load what `write_model` wrote.

    Args:
        path: The file.
        model: Takes the model's state.
        groups: Those of the optimizer that takes the optimizer's state, if any does.

    Raises:
        CheckpointError: If the file is none of ours, or does not fit; nothing is loaded then.
        OSError: If the file cannot be opened.
    """
    state = _read(path)
    check_fits(path, state["model"], model.state_dict())
    if groups is not None:
        _load_opt(path, state, groups)
    model.load_state_dict(state["model"])


def _read(path: str | Path) -> dict[str, Any]:
    content = Path(path).read_bytes()
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own words fill a page, and advise to switch the protection off.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, of another kind, or holds "
            "more than tensors and plain values, which could run code"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise CheckpointError(f"{path} was not written by Learner.save")
    if state["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']}; this onecycle reads up to {FORMAT}: update it"
        )
    parts = {"model": dict, "opt": dict, "opt_class": str}
    if not all(isinstance(state.get(name), kind) for name, kind in parts.items()):
        raise CheckpointError(f"{path} was not written by Learner.save")
    if hashlib.sha256(content[:-_DIGITS]).hexdigest().encode() != content[-_DIGITS:]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    return state


def _load_opt(path: str | Path, state: dict[str, Any], groups: ParamGroups) -> None:
    found = state["opt_class"]
    try:
        if found != type(groups.opt).__name__:
            raise ValueError(f"it is that of {found}")
        load_opt_state(state["opt"], groups)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the optimizer's state does not fit {type(groups.opt).__name__}: {error}; "
            "load(path, with_opt=False) takes the model alone"
        ) from error


def load_opt_state(state: dict[str, Any], groups: ParamGroups) -> None:
    """Load an optimizer's ``state_dict``, or refuse it and leave the optimizer as it was.

    The dicts of its groups stay the same objects: schedules and the recorder hold them.

    Args:
        state: What ``opt.state_dict()`` returned.
        groups: The groups of the optimizer that takes it.

    Raises:
        ValueError, KeyError, TypeError: If it does not fit.
    """
    opt = groups.opt
    if len(state["param_groups"]) > len(opt.param_groups):
        groups.separate_decay(everywhere=True)  # as the fit before the saving had done
    own = opt.param_groups
    opt.load_state_dict(state)
    for group, loaded in zip(own, opt.param_groups, strict=True):
        if group is not loaded:
            group.clear()
            group.update(loaded)
    opt.param_groups = own


def check_fits(path: str | Path, found: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse a model's state before any of it is loaded: torch would load half of it.

    Args:
        path: The file it comes from, for the message.
        found: The state.
        own: What ``model.state_dict()`` returns now.

    Raises:
        CheckpointError: Naming what differs.
    """
    missing, unknown = own.keys() - found.keys(), found.keys() - own.keys()
    other = [name for name in own.keys() & found.keys() if _shape(own[name]) != _shape(found[name])]
    if missing or unknown or other:
        raise CheckpointError(
            f"{path} holds another model: missing {sorted(missing)[:3]}, unknown "
            f"{sorted(unknown)[:3]}, of another shape {sorted(other)[:3]}"
        )


def _shape(value: Any) -> torch.Size | None:
    """Return a tensor's shape; a module's extra state has none."""
    return value.shape if isinstance(value, Tensor) else None
