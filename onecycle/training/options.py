"""What a learner is made with: what is refused before anything is made of it, and what is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from onecycle.arguments import (
    check_callable,
    check_count,
    check_flag,
    check_momenta,
    check_not_negative,
    class_hint,
    shown,
)
from onecycle.callbacks.progress import Progress
from onecycle.callbacks.recorder import Recorder
from onecycle.core.callback import Callback
from onecycle.core.checks import check_callbacks
from onecycle.optim.loss_module import tell_hidden


def _check_parts(model: nn.Module, loss_func: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module; got a {type(model).__name__}{class_hint(model)}"
        )
    if isinstance(loss_func, type) or not (loss_func is None or callable(loss_func)):
        came = f"{shown(loss_func)}{class_hint(loss_func)}"
        raise TypeError(f"loss_func must be called with (pred, yb); got {came}")
    tell_hidden(model, loss_func)


def check_options(
    model: nn.Module,
    loss_func: object,
    cbs: Sequence[Callback],
    opt: object,
    wd: float | None,
    moms: Sequence[float],
    splitter: object,
    n_inp: int | None,
    seed: int | None,
    check: bool,
) -> None:
    """Refuse what is none of the arguments of a learner; tell what a loss function hides.

    Raises:
        TypeError, ValueError: Naming the option, and what came.
    """
    _check_parts(model, loss_func)
    check_callbacks(cbs)
    is_optimizer = hasattr(opt, "param_groups") and hasattr(opt, "step")
    is_other = isinstance(opt, type) or not (
        is_optimizer or isinstance(opt, list | tuple | Mapping)
    )
    if opt is not None and is_other:
        raise TypeError(
            "opt must be an optimizer that exists, or a list or dict of them; got "
            f"{shown(opt)}: a class is given as opt_func="
        )
    check_momenta(moms)
    if wd is not None:
        check_not_negative("wd", wd)
    if splitter is not None:
        check_callable("splitter", splitter, "model")
    if n_inp is not None:
        check_count("n_inp", n_inp)
    if seed is not None:
        check_count("seed", seed, least=0)
    check_flag("check", check)


def with_defaults(cbs: Sequence[Callback]) -> list[Callback]:
    """Put a Recorder and a Progress before the callbacks, unless they have their own."""
    defaults: list[Callback] = [Recorder(), Progress()]
    return [new for new in defaults if not any(isinstance(cb, type(new)) for cb in cbs)] + [*cbs]
