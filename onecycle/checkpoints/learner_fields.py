"""What trains beside the learner's model and optimizer: the fields that a subclass gives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from onecycle.checkpoints.module_state import check_fits
from onecycle.checkpoints.opt_misfit import misfit_of
from onecycle.checkpoints.opt_names import (
    NamedOptimizer,
    named_other,
    optimizers_within,
    parameter_names,
)
from onecycle.checkpoints.opt_state import load_state, state_of
from onecycle.checkpoints.readable import readable
from onecycle.errors import CheckpointError

if TYPE_CHECKING:
    from onecycle.core.state import LoopState

#: The fields that the learner has by itself, and that are saved otherwise, or are no state.
_KNOWN = frozenset(
    (
        *("model", "loss_func", "opt", "groups", "cbs", "metrics", "dls", "dl", "stepper"),
        *("make_stepper", "_first_batch", "batch", "xb", "yb", "pred"),
    )
)


def field_states(learn: LoopState) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the states of what a subclass has in its fields: optimizers, modules, and others.

    Others are those that have ``state_dict`` and ``load_state_dict``, such as schedulers of torch.
    They are found in lists, tuples and dicts of a field too.

    Args:
        learn: The learner.

    Returns:
        The states by the name of the field, and by name why one could not be read again.
    """
    states, left_out = {}, {}
    for name, value in _fields(learn).items():
        try:
            states[name] = readable(_state(learn, name, value), f"learn.{name}")
        except TypeError as error:
            left_out[name] = str(error)
    return states, left_out


def check_fields(learn: LoopState, states: Any, path: Any) -> None:
    """Refuse states of fields that do not fit, before any of them is loaded.

    Args:
        learn: The learner.
        states: What should be the states that `field_states` returned.
        path: The file they come from, for the message.

    Raises:
        CheckpointError: Naming what does not fit.
    """
    fields = _fields(learn)
    if not isinstance(states, dict) or not all(isinstance(s, dict) for s in states.values()):
        raise CheckpointError(f"{path} was not written by Checkpoint")
    if gone := states.keys() - fields.keys():
        raise CheckpointError(f"{path} has the state of learn.{min(gone)}, which is not there")
    for name, state in states.items():
        value, misfit = fields[name], None
        if isinstance(value, Optimizer):
            misfit = misfit_of(_named(learn, name, value), state)
        elif isinstance(value, nn.Module):
            check_fits(path, state, value.state_dict(), f"learn.{name}")
        if misfit is not None:
            raise CheckpointError(f"{path}: the state of learn.{name} does not fit: {misfit}")


def load_fields(learn: LoopState, states: dict[str, Any]) -> None:
    """Load the states that `field_states` returned, and `check_fields` accepted.

    Args:
        learn: The learner.
        states: The states.
    """
    fields = _fields(learn)
    for name, state in states.items():
        value = fields[name]
        if isinstance(value, Optimizer):
            load_state(_named(learn, name, value), state)
        else:
            value.load_state_dict(state)


def _state(learn: LoopState, name: str, value: Any) -> Any:
    if isinstance(value, Optimizer):
        return state_of(_named(learn, name, value))
    return value.state_dict()


def _named(learn: LoopState, path: str, opt: Optimizer) -> NamedOptimizer:
    names = parameter_names(learn)
    for field, value in _fields(learn).items():
        if isinstance(value, nn.Module):
            for name, p in value.named_parameters():
                names.setdefault(id(p), f"{field}.{name}")
    return named_other(opt, path, names)


def _fields(learn: LoopState) -> dict[str, Any]:
    """Return what has a state, by the name of its field; each of them once."""
    roots = (learn.model, learn.loss_module)
    seen = {id(module) for root in roots if root is not None for module in root.modules()}
    seen |= {id(each) for each in (learn.opt, *optimizers_within(learn.opt).values())}
    seen |= {id(each) for each in (*learn.cbs, *learn.metrics, *learn.dls.loaders())}
    found: dict[str, Any] = {}
    for name, value in vars(learn).items():
        for path, part in () if name in _KNOWN else _parts(name, value):
            if _has_state(part) and id(part) not in seen:
                seen.add(id(part))
                found[path] = part
    return found


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if type(value) is dict:
        yield from ((f"{name}.{key}", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{name}.{i}", part) for i, part in enumerate(value))
    else:
        yield name, value


def _has_state(value: Any) -> bool:
    if isinstance(value, type):
        return False
    return all(callable(getattr(value, name, None)) for name in ("state_dict", "load_state_dict"))
