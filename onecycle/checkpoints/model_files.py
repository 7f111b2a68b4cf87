"""A model and its optimizer in a file: whole or not there, read without running code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parameter import is_lazy

from onecycle.checkpoints.module_state import (
    check_fits,
    differing,
    growing,
    renamed_state,
    take_shapes,
)
from onecycle.checkpoints.opt_state import by_own_names, load_opt_state, opt_misfit, opt_state
from onecycle.checkpoints.readable import readable
from onecycle.checkpoints.sealed import check_format, read_sealed, write_sealed
from onecycle.core.restore import Capture
from onecycle.errors import CheckpointError
from onecycle.optim.sharded import parts_of, whole
from onecycle.optim.wrapped import with_inner
from onecycle.processes import is_follower

if TYPE_CHECKING:
    from onecycle.core.state import LoopState

log = logging.getLogger("onecycle")

#: The version of the files.
FORMAT = 2

#: In place of an optimizer's state: why it is not there.
_LEFT_OUT = "left out"


def write_model(path: str | Path, learn: LoopState) -> str:
    """Write the states of a model, its loss function and its optimizer, as they are.

    A state of the optimizer that could not be read again is left out, which a warning says.

    Args:
        path: Where to write; a file that is there is replaced.
        learn: The learner.

    Returns:
        The checksum of the file, by which it can be told from any other.

    Raises:
        TypeError: If the model has state that could not be read again.
    """
    state = {
        "format": FORMAT,
        "model": readable(_whole(learn, learn.model.state_dict()), "the state of the model"),
        "loss": readable(
            _whole(learn, loss_state(learn.loss_module)), "the state of the loss function"
        ),
        "opt": _readable_opt(path, learn),
        "extra": {"buffers": learn.first_buffers},  # what a reader may pass over
    }
    if learn.sharded is None or learn.processes is None:
        return write_sealed(path, state)
    return learn.processes.from_first(partial(write_sealed, path, state))


def _whole(learn: LoopState, state: Any) -> Any:
    """Return a state whose tensors are whole: where they are cut, the first process gets them."""
    return state if learn.sharded is None else whole(state, keeps=not is_follower())


def _readable_opt(path: str | Path, learn: LoopState) -> dict[str, Any]:
    try:
        found: dict[str, Any] = readable(
            _whole(learn, opt_state(learn)), "the state of the optimizer"
        )
    except TypeError as error:
        log.warning("save: %s holds the model without the optimizer: %s", path, error)
        return {_LEFT_OUT: str(error)}
    return found


def read_model(
    path: str | Path, learn: LoopState, *, with_opt: bool, checksum: str | None = None
) -> None:
    """Load what `write_model` wrote.

    Args:
        path: The file.
        learn: The learner that takes it.
        with_opt: Whether it takes the optimizer's state too. Without it, a loss function may be
            another one than that of the file, and is left alone.
        checksum: What `write_model` returned, where no other file will do. Of several processes
            the first one then reads for all, which must call this: the others may not see it.

    Raises:
        CheckpointError: If the file is none of ours, or does not fit; nothing is loaded then.
        OSError: If the file cannot be opened.
    """
    read = partial(_read, path, checksum)
    others = None if checksum is None else learn.processes
    state = read() if others is None else others.from_first(read)
    own, own_loss = learn.model.state_dict(), loss_state(learn.loss_module)
    model, loss = renamed_state(state["model"], own), renamed_state(state["loss"], own_loss)
    free, free_of_loss = growing(learn.first_buffers, state["extra"].get("buffers"))
    check_fits(path, model, own, free=free)
    differs = differing(loss, own_loss, free_of_loss)
    if differs and with_opt:
        raise CheckpointError(
            f"{path} holds another loss function: {differs}; load(path, with_opt=False) takes the "
            "model alone"
        )
    opt = _fitting_opt(path, state["opt"], learn) if with_opt else None
    with _unchanged_by_failure(path, learn):
        if opt is not None:
            load_opt_state(learn, opt)
        take_shapes(learn.model, model, free)
        learn.model.load_state_dict(parts_of(model, own))
        if learn.loss_module is not None and not differs:
            take_shapes(learn.loss_module, loss, free_of_loss)
            learn.loss_module.load_state_dict(parts_of(loss, own_loss), strict=False)
    if differs:
        log.warning("%s holds another loss function, which is left out: %s", path, differs)


@contextmanager
def _unchanged_by_failure(path: str | Path, learn: LoopState) -> Iterator[None]:
    """Run a block that loads a file, and put the modules back if it fails.

    What is compared before lets nothing fail that torch does; a module's own methods may.
    """
    modules = [m for root in (learn.model, learn.loss_module) if root for m in root.modules()]
    lazy = [t for m in modules for t in (*m.parameters(), *m.buffers()) if is_lazy(t)]
    held = Capture(ignored=lazy)
    held.add([vars(module) for module in modules])
    opt = Capture(ignored=[p for group in learn.opt.param_groups for p in group["params"]])
    opt.add([vars(each) for each in with_inner(learn.opt)])
    try:
        yield
    except BaseException as error:
        held.restore()
        opt.restore()
        if not isinstance(error, Exception):
            raise
        raise CheckpointError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def loss_state(loss: nn.Module | None) -> dict[str, Any]:
    """Return what training changes in a loss function: parameters, and buffers that may move.

    Those of torch's own losses, such as the weights of classes, are arguments, and no state.

    Args:
        loss: The module of the loss function, if there is one.

    Example:
        >>> import torch
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
    def check(state: Any) -> None:
        check_format(path, state, FORMAT, "Learner.save")
        if not all(isinstance(state.get(name), dict) for name in ("model", "loss", "opt", "extra")):
            raise CheckpointError(f"{path} was not written by Learner.save")

    return read_sealed(path, check, checksum=checksum)


def _fitting_opt(path: str | Path, found: dict[str, Any], learn: LoopState) -> dict[str, Any]:
    """Return the state of the optimizer by the names of the learner, or refuse it."""
    if _LEFT_OUT in found:
        misfit: str | None = f"it was left out of the file: {found[_LEFT_OUT]}"
    else:
        found = by_own_names(learn, found)
        misfit = opt_misfit(learn, found)
    if misfit is not None:
        raise CheckpointError(
            f"{path}: the optimizer's state does not fit {type(learn.opt).__name__}: {misfit}; "
            "load(path, with_opt=False) takes the model alone"
        )
    return found
