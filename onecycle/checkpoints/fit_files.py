"""The state of a fit in a file: captured, written, found again, compared and put back."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from onecycle.checkpoints.archives import Hashed, read_archive, write_archive
from onecycle.checkpoints.fit_plan import callbacks_of
from onecycle.checkpoints.learner_fields import check_fields, field_states, load_fields
from onecycle.checkpoints.module_state import check_fits, growing, take_shapes
from onecycle.checkpoints.opt_state import load_opt_state, opt_misfit, opt_state
from onecycle.checkpoints.readable import readable
from onecycle.checkpoints.well_formed import malformed
from onecycle.core.restore import RngState
from onecycle.errors import CheckpointError
from onecycle.files import atomic_write, remove_abandoned
from onecycle.optim.build import ready_state
from onecycle.optim.loss_module import named_parts
from onecycle.optim.modes import switch
from onecycle.optim.sharded import parts_of

if TYPE_CHECKING:
    from onecycle.core.callback import Callback
    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: The version of the files. All versions begin with the line that `_header` makes.
FORMAT = 3

_HEADER = re.compile(rb"onecycle checkpoint (\d{1,6}) ([0-9a-f]{64})\n")
_NAME = re.compile(r"checkpoint-(\d+)\.pt")
_COUNTERS = (
    "n_updates",
    "n_skipped",
    "total_updates",
    "stop_reason",
    "seed",
    "n_epoch",
    "max_updates",
    "n_updates_planned",
    "n_updates_scheduled",
)


# What is in a file ------------------------------------------------------------------------


def capture(
    learn: Loop, plan: dict[str, Any], batches: int | None, pass_rng: dict[str, Any]
) -> dict[str, Any]:
    """Return all of a fit that training changes, as plain values and tensors.

    Tensors are those of the learner, not copies: write them before training goes on.

    Args:
        learn: The learner, between two updates.
        plan: What the fit is, as plain values: a resumed one is compared with it.
        batches: The batches done in this training pass; ``None`` when the epoch is done.
        pass_rng: The random states when the training pass began: loaders may draw from them.
    """
    done = int(batches is None)
    named = named_parts(learn.model, learn.loss_module).items()
    return {
        "plan": plan,
        "position": {
            "epoch": learn.epoch + done,
            "total_epochs": learn.total_epochs + done,
            "batches": batches,
            "n_iter": learn.n_iter,
            "training": learn.training,
        },
        "counters": {name: getattr(learn, name) for name in _COUNTERS},
        "modules": [
            {"state": module.state_dict(), "buffers": _other_buffers(module)}
            for module in _modules(learn)
        ],
        "opt": opt_state(learn),
        "frozen": [n for n, p in named if not p.requires_grad],
        "frozen_by_groups": [n for n, p in named if p in learn.groups.frozen],
        "frozen_norms": [n for n, m in learn.model.named_modules() if m in learn.frozen_norms],
        "callbacks": [[name, state] for name, _, state in _callbacks(learn) if state],
        "pass_rng": pass_rng,
        "rng": RngState().state_dict(),
        "extra": {"buffers": learn.first_buffers, "fields": field_states(learn)[0]},
    }


def restore(learn: Loop, state: dict[str, Any]) -> None:
    """Put back, in place, what `capture` returned; the random states are the caller's part.

    Args:
        learn: A learner that `check_modules` and `check_opt` have accepted.
        state: What `capture` returned.

    Raises:
        CheckpointError: If an optimizer with a state of its own form does not take it.
    """
    restore_counters(learn, state)
    switch(learn.opt, training=state["position"]["training"])  # the weights are those of the mode
    free = growing(learn.first_buffers, state["extra"].get("buffers"))
    for module, found, shapes in zip(_modules(learn), state["modules"], free, strict=False):
        take_shapes(module, found["state"], shapes)
        module.load_state_dict(parts_of(found["state"], module.state_dict()))
        for name in {**_other_buffers(module), **found["buffers"]}:
            owner, _, last = name.rpartition(".")
            value = found["buffers"].get(name)
            kept = None if value is None else value.to(learn.device)
            module.get_submodule(owner).register_buffer(last, kept, persistent=False)
    frozen = set(state["frozen"])
    for name, parameter in named_parts(learn.model, learn.loss_module).items():
        parameter.requires_grad_(name not in frozen)
        if name in state["frozen_by_groups"]:
            learn.groups.frozen.add(parameter)
    learn.freeze_norms(learn.model.get_submodule(name) for name in state["frozen_norms"])
    try:
        load_opt_state(learn, state["opt"])
    except ValueError as error:
        raise CheckpointError(
            f"the optimizer's state does not fit {type(learn.opt).__name__}: {error}"
        ) from error
    load_fields(learn, state["extra"].get("fields", {}))
    ready_state(learn.opt)
    _restore_callbacks(learn, state)


def restore_counters(learn: Loop, state: dict[str, Any]) -> None:
    """Put the learner where the fit was: its epoch, its next batch, its updates, its length.

    Args:
        learn: The learner.
        state: What `capture` returned.
    """
    position, counters = state["position"], state["counters"]
    learn.epoch, learn.total_epochs = position["epoch"], position["total_epochs"]
    learn.iter, learn.n_iter = position["batches"] or 0, position["n_iter"]
    for name in _COUNTERS:
        setattr(learn, name, counters[name])


def _restore_callbacks(learn: Loop, state: dict[str, Any]) -> None:
    """Give each callback its state: the first of a class the first one's, and so on.

    One that is new or gone is named: in a warning, where it has a say in how the fit ends.
    """
    left, spoke = list(state["callbacks"]), callbacks_of(state["plan"])
    for name, callback, own in _callbacks(learn):
        i = next((i for i, entry in enumerate(left) if entry[0] == name), None)
        if i is not None:
            callback.load_state_dict(left.pop(i)[1])
        elif own:
            level = logging.WARNING if callback.plan(learn) else logging.INFO
            log.log(level, "resume: %s begins anew, it was not in the interrupted fit", name)
    for name, _ in left:
        level = logging.WARNING if name in spoke else logging.INFO
        log.log(level, "resume: the state of %s is left out, it is not in this fit", name)


def _modules(learn: Loop) -> list[nn.Module]:
    return [module for module in (learn.model, learn.loss_module) if module is not None]


def _other_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that ``state_dict`` leaves out, as they were registered so."""
    saved = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def _callbacks(learn: Loop) -> list[tuple[str, Callback, dict[str, Any]]]:
    return [(type(cb).__name__, cb, cb.state_dict()) for cb in learn.cbs if cb.takes_part_in("fit")]


def check_modules(learn: Loop, state: dict[str, Any], path: Path) -> None:
    """Refuse a state of another model or loss function, before any of it is loaded.

    Args:
        learn: The learner.
        state: What `capture` returned.
        path: The file it comes from, for the message.

    Raises:
        CheckpointError: Naming what differs.
    """
    own = _modules(learn)
    if len(state["modules"]) != len(own):
        raise CheckpointError(f"{path}: only one of the two loss functions is a torch module")
    free = growing(learn.first_buffers, state["extra"].get("buffers"))
    for module, found, shapes in zip(own, state["modules"], free, strict=False):
        of = "model" if module is learn.model else "loss function"
        check_fits(path, found["state"], module.state_dict(), of, shapes)
        buffers = _other_buffers(module)  # more of them may be made in training
        known = {name: part for name, part in found["buffers"].items() if name in buffers}
        check_fits(path, known, buffers, of, shapes)
    norms = {name for name, _ in learn.model.named_modules()}
    if unknown := set(state["frozen_norms"]) - norms:
        raise CheckpointError(f"{path} holds another model: it has no layer {min(unknown)!r}")


def check_opt(learn: Loop, state: dict[str, Any], path: Path) -> None:
    """Refuse a state of an optimizer that does not fit, before any of it is loaded.

    Args:
        learn: The learner.
        state: What `capture` returned.
        path: The file it comes from, for the message.

    Raises:
        CheckpointError: Naming what does not fit.
    """
    misfit = opt_misfit(learn, state["opt"])
    if misfit is not None:
        raise CheckpointError(
            f"{path}: the optimizer's state does not fit {type(learn.opt).__name__}: {misfit}"
        )
    check_fields(learn, state["extra"].get("fields", {}), path)


# Files ------------------------------------------------------------------------------------


def readable_parts(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a fit as a file can hold it.

    Args:
        state: What `capture` returned.

    Raises:
        TypeError: If it holds what could not be read again, naming what does.
    """
    parts = {
        part: readable(value, f"{part} of the fit")
        for part, value in state.items()
        if part != "callbacks"
    }
    parts["callbacks"] = [
        [name, readable(own, f"the state_dict of {name}")] for name, own in state["callbacks"]
    ]
    return parts


def write(path: Path, parts: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: Where.
        parts: What `readable_parts` returned.

    Raises:
        OSError, RuntimeError: If it cannot be written.
    """
    digest = _digest(FORMAT)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(_line(FORMAT, "0" * 64))
        write_archive(parts, Hashed(file, digest.update))
        file.seek(0)
        file.write(_line(FORMAT, digest.hexdigest()))


def _digest(version: int) -> Any:
    """Begin the checksum, which is over format and payload."""
    return hashlib.sha256(b"%d\n" % version)


def _line(version: int, digest: str) -> bytes:
    return b"onecycle checkpoint %d %s\n" % (version, digest.encode())


def _header(payload: Any, version: int = FORMAT) -> bytes:
    """Make the first line: the format, and the checksum."""
    digest = _digest(version)
    digest.update(payload)
    return _line(version, digest.hexdigest())


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; runs no code from the file.

    Args:
        path: The file.

    Returns:
        What `capture` returned, with all tensors on the CPU.

    Raises:
        CheckpointError: If it is damaged, none of ours, or written by another version.
        OSError: If it cannot be opened.
    """
    with path.open("rb") as file:
        line, payload = file.readline(200), file.read()
    header = _HEADER.fullmatch(line)
    if header is None:
        raise CheckpointError(f"{path} is no checkpoint of a fit, or its beginning is damaged")
    version = int(header[1])
    if line != _header(payload, version):
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    if version != FORMAT:
        advice = "update it" if version > FORMAT else "finish that fit with an earlier one"
        raise _OtherFormatError(
            f"{path} has format {version}; this onecycle reads {FORMAT}: {advice}"
        )
    try:
        state = read_archive(payload)
    except Exception as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain values, which could run code or fill the "
            "memory"
        ) from error
    wrong = malformed(state, _COUNTERS)
    if wrong is not None:
        raise CheckpointError(f"{path} was not written by Checkpoint: {wrong} has another form")
    found: dict[str, Any] = state
    return found


class _OtherFormatError(CheckpointError):
    """A file was written by another version: one beside it must not serve instead."""


def find(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    return [path for path in _named(folder) if path.is_file()]


def _named(folder: Path) -> list[Path]:
    """Return all that has the name of a checkpoint, the newest first."""
    if not folder.is_dir():
        return []
    numbered = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    found = [(int(match[1]), path) for match, path in numbered if match]
    return [path for _, path in sorted(found, reverse=True)]


def next_path(folder: Path) -> Path:
    """Return the path of the next checkpoint in a folder."""
    files = _named(folder)
    number = int(files[0].stem.rpartition("-")[2]) + 1 if files else 0
    return folder / f"checkpoint-{number:06d}.pt"


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what writers that were killed left behind."""
    remove_abandoned(folder)
    for file in find(folder)[keep:]:
        file.unlink(missing_ok=True)


def read_newest(path: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Read a checkpoint file, or the newest complete one of a folder.

    A file of the folder that cannot be read is named in the log, and the one before it serves.

    Args:
        path: The file or folder.

    Returns:
        The file and what is in it; ``None`` if there is nothing at ``path``.

    Raises:
        CheckpointError: If there are files, and none can be read, or one is of another version.
    """
    path = Path(path)
    if path.is_file():
        return path, read(path)
    files = find(path)
    for file in files:
        try:
            return file, read(file)
        except _OtherFormatError:
            raise
        except (CheckpointError, OSError) as error:
            log.warning("resume: passed over a file: %s", error)
    if files:
        raise CheckpointError(
            f"none of the {len(files)} checkpoints in {path} can be read: remove them to start "
            "from the beginning"
        )
    return None
