"""A model and its optimizer in a file: whole or not there, read without running code."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from onecycle.checkpoints.opt_state import load_opt_state, opt_misfit, opt_state
from onecycle.checkpoints.readable import readable
from onecycle.errors import CheckpointError
from onecycle.files import atomic_write

if TYPE_CHECKING:
    from onecycle.core.state import LoopState

log = logging.getLogger("onecycle")

#: The version of the files.
FORMAT = 2

#: The length of the checksum that a file ends with: of SHA-256, in hexadecimal digits.
_DIGITS = 64


def write_model(path: str | Path, learn: LoopState) -> str:
    """Write the states of a model, its loss function and its optimizer, as they are.

    Args:
        path: Where to write; a file that is there is replaced.
        learn: The learner.

    Returns:
        The checksum of the file, by which it can be told from any other.

    Raises:
        TypeError: If the model or the optimizer has state that could not be read again.
    """
    state = {
        "format": FORMAT,
        "model": readable(learn.model.state_dict(), "the state of the model"),
        "loss": readable(loss_state(learn.loss_module), "the state of the loss function"),
        "opt": readable(opt_state(learn), "the state of the optimizer"),
        "extra": {},  # what a reader may pass over
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = _sealed(buffer.getvalue())
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return content[-_DIGITS:].decode()


def checksum_of(path: str | Path) -> str:
    """Return the checksum that a file of `write_model` ends with, without reading the rest.

    Raises:
        OSError: If the file cannot be opened.
    """
    with Path(path).open("rb") as file:
        file.seek(-min(_DIGITS, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return file.read().decode(errors="replace")


def _sealed(archive: bytes) -> bytes:
    """Put a checksum into the comment of a zip archive, which torch and others pass over.

    torch does not look at the checksums that an archive has for its parts: it would load a tensor
    with a flipped bit.
    """
    body = archive[:-2] + _DIGITS.to_bytes(2, "little")  # the length of the comment comes last
    return body + hashlib.sha256(body).hexdigest().encode()


def read_model(
    path: str | Path, learn: LoopState, *, with_opt: bool, checksum: str | None = None
) -> None:
    """Load what `write_model` wrote.

    Args:
        path: The file.
        learn: The learner that takes it.
        with_opt: Whether it takes the optimizer's state too. Without it, a loss function may be
            another one than that of the file, and is left alone.
        checksum: What `write_model` returned, where no other file will do.

    Raises:
        CheckpointError: If the file is none of ours, or does not fit; nothing is loaded then.
        OSError: If the file cannot be opened.
    """
    state = _read(path, checksum)
    check_fits(path, state["model"], learn.model.state_dict())
    differs = _differing(state["loss"], loss_state(learn.loss_module))
    if differs and with_opt:
        raise CheckpointError(
            f"{path} holds another loss function: {differs}; load(path, with_opt=False) takes the "
            "model alone"
        )
    if with_opt:
        _load_opt(path, state["opt"], learn)
    learn.model.load_state_dict(state["model"])
    if differs:
        log.warning("%s holds another loss function, which is left out: %s", path, differs)
    elif learn.loss_module is not None:
        learn.loss_module.load_state_dict(state["loss"], strict=False)


def loss_state(loss: nn.Module | None) -> dict[str, Any]:
    """Return what training changes in a loss function: parameters, and buffers that may move.

    Those of torch's own losses, such as the weights of classes, are arguments, and no state.

    Args:
        loss: The module of the loss function, if there is one.

    Example:
        >>> loss_state(nn.CrossEntropyLoss(torch.ones(3)))
        {}
    """
    if loss is None:
        return {}
    constant = [
        f"{name}.{buffer}".lstrip(".")
        for name, module in loss.named_modules()
        if type(module).__module__ == nn.modules.loss.__name__
        for buffer, _ in module.named_buffers(recurse=False)
    ]
    return {name: value for name, value in loss.state_dict().items() if name not in constant}


def _read(path: str | Path, checksum: str | None) -> dict[str, Any]:
    content = Path(path).read_bytes()
    if checksum is not None and content[-_DIGITS:] != checksum.encode():
        raise CheckpointError(f"{path} is not the file that was written: it has been replaced")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch's own words fill a page, and advise to switch the protection off.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, of another kind, or holds "
            "more than tensors and plain values, which could run code"
        ) from error
    version = state.get("format") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise CheckpointError(f"{path} was not written by Learner.save")
    if version != FORMAT:
        advice = "update it" if version > FORMAT else "load it with an earlier one"
        raise CheckpointError(
            f"{path} has format {version}; this onecycle reads {FORMAT}: {advice}"
        )
    if not all(isinstance(state.get(name), dict) for name in ("model", "loss", "opt")):
        raise CheckpointError(f"{path} was not written by Learner.save")
    if hashlib.sha256(content[:-_DIGITS]).hexdigest().encode() != content[-_DIGITS:]:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    found: dict[str, Any] = state
    return found


def _load_opt(path: str | Path, found: dict[str, Any], learn: LoopState) -> None:
    try:
        misfit = opt_misfit(learn, found)
        if misfit is not None:
            raise ValueError(misfit)
        load_opt_state(learn, found)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the optimizer's state does not fit {type(learn.opt).__name__}: {error}; "
            "load(path, with_opt=False) takes the model alone"
        ) from error


def check_fits(
    path: str | Path, found: dict[str, Any], own: dict[str, Any], of: str = "model"
) -> None:
    """Refuse a module's state before any of it is loaded: torch would load half of it.

    Args:
        path: The file it comes from, for the message.
        found: The state.
        own: What ``state_dict()`` of the module returns now.
        of: What the module is.

    Raises:
        CheckpointError: Naming what differs.
    """
    differs = _differing(found, own)
    if differs:
        raise CheckpointError(f"{path} holds another {of}: {differs}")


def _differing(found: dict[str, Any], own: dict[str, Any]) -> str:
    """Say in what two states of modules differ; nothing where one can be loaded for the other."""
    missing, unknown = own.keys() - found.keys(), found.keys() - own.keys()
    other = [name for name in own.keys() & found.keys() if not _fits(own[name], found[name])]
    if not (missing or unknown or other):
        return ""
    return (
        f"missing {sorted(missing)[:3]}, unknown {sorted(unknown)[:3]}, "
        f"of another shape {sorted(other)[:3]}"
    )


def _fits(own: Any, found: Any) -> bool:
    """Compare shapes; a module's extra state has none, and a lazy layer none yet."""
    if isinstance(own, Tensor) and isinstance(found, Tensor):
        return is_lazy(own) or (not is_lazy(found) and own.shape == found.shape)
    return isinstance(own, Tensor) == isinstance(found, Tensor)
