"""What a learner is made with, refused before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from onecycle.arguments import (
    check_callable,
    check_count,
    check_flags,
    check_not_negative,
    class_hint,
    shown,
)
from onecycle.core.callback import Callback
from onecycle.core.checks import check_callbacks
from onecycle.optim.loss_module import tell_hidden


def check_parts(model: nn.Module, loss_func: object, cbs: Sequence[Callback]) -> None:
    """Refuse what is no model, no loss function, or no list of callbacks; tell what a loss hides.

    Raises:
        TypeError: Naming what came.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module; got a {type(model).__name__}{class_hint(model)}"
        )
    if isinstance(loss_func, type) or not (loss_func is None or callable(loss_func)):
        came = f"{shown(loss_func)}{class_hint(loss_func)}"
        raise TypeError(f"loss_func must be called with (pred, yb); got {came}")
    tell_hidden(model, loss_func)
    check_callbacks(cbs)


def check_options(
    *,
    opt: object,
    wd: float | None,
    splitter: object,
    n_inp: int | None,
    seed: int | None,
    **flags: bool,
) -> None:
    """Refuse options of a learner that cannot be.

    Raises:
        TypeError, ValueError: Naming the option, and what came.
    """
    is_optimizer = hasattr(opt, "param_groups") and hasattr(opt, "step")
    if opt is not None and (isinstance(opt, type) or not is_optimizer):
        raise TypeError(
            f"opt must be an optimizer that exists; got {shown(opt)}: a class of them is given "
            "as opt_func="
        )
    if wd is not None:
        check_not_negative("wd", wd)
    if splitter is not None:
        check_callable("splitter", splitter, "model")
    if n_inp is not None:
        check_count("n_inp", n_inp)
    if seed is not None:
        check_count("seed", seed, least=0)
    check_flags(**flags)
