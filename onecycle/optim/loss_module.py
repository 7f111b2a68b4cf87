"""The module of a loss function: it trains, and has two modes, as the model does."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

log = logging.getLogger("onecycle")

#: What the names of a loss function's parameters begin with, beside those of the model.
LOSS = "loss_func."


def loss_module(model: nn.Module, loss_func: Any) -> nn.Module | None:
    """Return the module of a loss function; ``None`` for one without, or with one of the model's.

    Seen are a module, a method of one, and a ``functools.partial`` of either.

    Args:
        model: The model.
        loss_func: The loss function.

    Example:
        >>> model, loss = nn.Linear(2, 2), nn.CrossEntropyLoss()
        >>> found = [loss_module(model, f) for f in (loss, loss.forward, functools.partial(loss))]
        >>> [each is loss for each in found], loss_module(model, nn.functional.mse_loss)
        ([True, True, True], None)
    """
    found = _owner(loss_func)
    is_own = isinstance(found, nn.Module) and all(found is not m for m in model.modules())
    return found if is_own else None


def _owner(loss_func: Any) -> Any:
    while isinstance(loss_func, functools.partial):
        loss_func = loss_func.func
    return loss_func.__self__ if inspect.ismethod(loss_func) else loss_func


def own_parameters(model: nn.Module, loss: nn.Module | None) -> dict[str, nn.Parameter]:
    """Return by name the parameters of a loss function that are none of the model's.

    Args:
        model: The model.
        loss: What `loss_module` found.
    """
    known = {id(p) for p in model.parameters()}
    named = () if loss is None else loss.named_parameters(prefix=LOSS[:-1])
    return {name: p for name, p in named if id(p) not in known}


def named_parts(model: nn.Module, loss: nn.Module | None) -> dict[str, nn.Parameter]:
    """Return the parameters of a model and of its loss function by name, each of them once.

    Args:
        model: The model.
        loss: What `loss_module` found.
    """
    return dict(model.named_parameters()) | own_parameters(model, loss)


def tell_hidden(model: nn.Module, loss_func: Any) -> None:
    """Warn of a module that a loss function uses and does not show.

    One of no parameters and no layer with two modes, such as ``nn.CrossEntropyLoss``, may be
    hidden: nothing is lost by it.

    Args:
        model: The model.
        loss_func: The loss function.
    """
    seen = {id(m) for m in model.modules()}
    own = _owner(loss_func)
    if isinstance(own, nn.Module):
        seen |= {id(m) for m in own.modules()}
    for name, value in _held(loss_func).items():
        if isinstance(value, nn.Module) and id(value) not in seen and _is_worth_showing(value):
            log.warning(
                "the loss function uses %r (%s), which nobody sees in it: it is not trained, saved "
                "or put in evaluation mode; make the loss function a torch.nn.Module that has it, "
                "or, if it is to stay as it is, freeze it: requires_grad_(False).eval()",
                name,
                type(value).__name__,
            )


def _held(loss_func: Any) -> dict[str, Any]:
    """Return by name what a loss function refers to."""
    found: dict[str, Any] = {}
    while isinstance(loss_func, functools.partial):
        found |= {f"argument {i}": value for i, value in enumerate(loss_func.args)}
        found |= loss_func.keywords
        loss_func = loss_func.func
    owner = _owner(loss_func)
    if inspect.isfunction(owner):
        with suppress(ValueError):  # of a variable that has no value yet
            variables = inspect.getclosurevars(owner)
            found |= {**variables.globals, **variables.nonlocals}
    elif not isinstance(owner, nn.Module):
        found |= getattr(owner, "__dict__", {})
    return found


def _is_worth_showing(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters()) or any(
        m.training for m in module.modules() if isinstance(m, (_NormBase, _DropoutNd))
    )


@contextmanager
def in_evaluation(module: nn.Module | None) -> Iterator[None]:
    """Run a block with a module in evaluation mode, and put all its parts back in their modes.

    Args:
        module: What `loss_module` found.
    """
    flags = [] if module is None else [(part, part.training) for part in module.modules()]
    if module is not None:
        module.eval()
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag
