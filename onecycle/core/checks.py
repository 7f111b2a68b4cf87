"""What is refused before a fit begins, each with one clear error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from torch import nn

from onecycle.arguments import check_takes_learn
from onecycle.core.callback import Callback
from onecycle.core.events import EVENTS
from onecycle.errors import MissingCallbackError
from onecycle.optim.loss_module import tell_hidden

log = logging.getLogger("onecycle")


def check_callbacks(cbs: Sequence[Callback]) -> None:
    """Refuse what is no list of callbacks.

    Raises:
        TypeError: Naming what came, with the hint to make an object of a class.
    """
    if isinstance(cbs, Callback | type):
        raise TypeError(f"cbs must be a list of Callback objects; got {cbs!r}: write [...] around")
    for callback in cbs:
        if not isinstance(callback, Callback):
            hint = " (write it with parentheses)" if isinstance(callback, type) else ""
            raise TypeError(f"cbs must be Callback objects; got {callback!r}{hint}")
        for name in EVENTS:
            check_takes_learn(callback, name)


def check_requirements(callbacks: Iterable[Callback]) -> None:
    """Refuse a list of callbacks in which one lacks another that it requires.

    Raises:
        MissingCallbackError: Naming both, and what to do.
    """
    present = list(callbacks)
    for callback in present:
        for needed in callback.requires:
            if not any(isinstance(other, needed) for other in present):
                raise MissingCallbackError(
                    f"{type(callback).__name__} requires {needed.__name__}, which takes no part "
                    f"in this fit: add {needed.__name__}() to the learner's or the fit's cbs"
                )


def check_parts(model: nn.Module, loss_func: object, cbs: Sequence[Callback]) -> None:
    """Refuse what is no model, no loss function, or no list of callbacks; tell what a loss hides.

    Raises:
        TypeError: Naming what came.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    if isinstance(loss_func, type) or not (loss_func is None or callable(loss_func)):
        hint = " (write it with parentheses)" if isinstance(loss_func, type) else ""
        raise TypeError(f"loss_func must be called with (pred, yb); got {loss_func!r}{hint}")
    tell_hidden(model, loss_func)
    check_callbacks(cbs)
