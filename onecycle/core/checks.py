"""What is refused before a fit begins, each with one clear error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from torch import nn

from onecycle.arguments import (
    check_callable,
    check_count,
    check_not_negative,
    check_takes_learn,
    shown,
)
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
    if not isinstance(cbs, list | tuple):
        hint = ": write [...] around" if isinstance(cbs, Callback | type) else ""
        raise TypeError(f"cbs must be a list of Callback objects; got {shown(cbs)}{hint}")
    for callback in cbs:
        if not isinstance(callback, Callback):
            hint = " (write it with parentheses)" if isinstance(callback, type) else ""
            raise TypeError(f"cbs must be Callback objects; got {shown(callback)}{hint}")
        for name in EVENTS:
            check_takes_learn(callback, name)


def checked_callbacks(cbs: Sequence[Callback] | None) -> Sequence[Callback]:
    """Return the callbacks of one fit; none for ``None``."""
    if cbs is None:
        return ()
    check_callbacks(cbs)
    return cbs


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
        hint = " (write it with parentheses)" if isinstance(model, type) else ""
        raise TypeError(
            f"model must be a torch.nn.Module; got {shown(model)}, a {type(model).__name__}{hint}"
        )
    if isinstance(loss_func, type) or not (loss_func is None or callable(loss_func)):
        hint = " (write it with parentheses)" if isinstance(loss_func, type) else ""
        raise TypeError(f"loss_func must be called with (pred, yb); got {shown(loss_func)}{hint}")
    tell_hidden(model, loss_func)
    check_callbacks(cbs)


def check_options(
    *, wd: float | None, splitter: object, n_inp: int | None, seed: int | None, opt: object
) -> None:
    """Refuse options of a learner that cannot be, before anything is made of them.

    Raises:
        TypeError, ValueError: Naming the option, and what came.
    """
    if wd is not None:
        check_not_negative("wd", wd)
    if splitter is not None:
        check_callable("splitter", splitter, "model")
    if n_inp is not None:
        check_count("n_inp", n_inp)
    if seed is not None:
        check_count("seed", seed, least=0)
    is_optimizer = hasattr(opt, "param_groups") and hasattr(opt, "step")
    if opt is not None and (isinstance(opt, type) or not is_optimizer):
        raise TypeError(
            f"opt must be an optimizer that exists; got {shown(opt)}: a class of them is given "
            "as opt_func="
        )


def check_between_updates(event: str) -> None:
    """Refuse to change the weights, if only for a while, where a backward pass still needs them.

    Args:
        event: The event of a fit from which that is asked.

    Raises:
        RuntimeError: If it lies between the forward and the backward pass of a batch.
    """
    if event in ("after_pred", "after_loss", "before_backward"):
        raise RuntimeError(
            f"a range test in {event} would change the weights that the backward pass of "
            "this batch still needs: call lr_find between two updates, as in after_step"
        )
