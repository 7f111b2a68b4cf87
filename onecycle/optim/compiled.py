"""`torch.compile` for model and optimizer step, such that a schedule recompiles nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from onecycle.arguments import check_flag, shown
from onecycle.optim.bound import BoundStepper, Group
from onecycle.optim.fast import FastStepper
from onecycle.optim.sharded import check_plain_compile
from onecycle.optim.stepper import Stepper

log = logging.getLogger("onecycle")

_Update = Callable[[list[Any]], None]


class CompiledSteps:
    """Makes steppers whose optimizer step is compiled, once for all fits of a learner.

    torch takes the numbers in an optimizer's groups for constants, so that its own step, compiled,
    is compiled anew for a value that changes from update to update, until torch gives up. Here
    they are put into tensors before each update: one for each number of each group, on the CPU,
    where nobody waits for them. The groups keep their numbers, so that all else (schedules, the
    record, files) is as without compilation.

    Args:
        **options: What ``torch.compile`` takes.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._update: _Update | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of, which compiles for itself."""
        return {"_options": self._options, "_update": None}

    def compile_again(self, model: nn.Module) -> None:
        """Compile a copy of the model, which torch copies without what was compiled."""
        compile_model(model, **self._options)

    def __call__(self, opt: Optimizer) -> Stepper:
        """Return a stepper for a fit.

        Args:
            opt: The same one each time.
        """
        if self._update is None:
            update = _sgd if isinstance(opt, SGD) else _adam
            self._update = torch.compile(_with_own_code(update), **self._options)
        return CompiledStepper(opt, self._update)


class CompiledStepper(BoundStepper):
    """Makes an update of SGD, Adam or AdamW with a compiled function.

    Args:
        opt: The optimizer.
        update: Makes the update of all groups.
    """

    kind = "compiled step"

    def __init__(self, opt: Optimizer, update: _Update) -> None:
        super().__init__(opt)
        self._compiled = update

    @staticmethod
    def why_not(opt: Optimizer) -> str | None:
        """Say why the step of an optimizer is not compiled; ``None`` if it is.

        Args:
            opt: The optimizer.
        """
        name = type(opt).__name__
        if type(opt) not in (SGD, Adam, AdamW):
            return f"{name} is not SGD, Adam or AdamW of torch"
        if any(group.get("amsgrad") for group in opt.param_groups):
            return f"{name} has amsgrad=True"
        if any(group.get("differentiable") for group in opt.param_groups):
            return f"{name} has differentiable=True"
        if any(p.is_complex() for group in opt.param_groups for p in group["params"]):
            return f"{name} has complex parameters"
        return None

    def make_group(self, group: dict[str, Any]) -> Group:
        """Return one of the optimizer's groups, with its numbers in tensors."""
        return _CompiledGroup(self.opt, group)

    def update(self, gradients: list[list[Tensor]]) -> None:
        """Make the update of all groups at once."""
        groups = zip(self.groups, gradients, strict=True)
        self._compiled([group.arguments(given) for group, given in groups if given])


class _CompiledGroup(Group):
    """A group with its numbers in tensors of its own."""

    def __init__(self, opt: Optimizer, group: dict[str, Any]) -> None:
        super().__init__(opt, group)
        # In float64, as Python's own numbers; parameters keep their dtype all the same.
        self._numbers = [torch.zeros((), dtype=torch.float64) for _ in self.numbers()]

    def arguments(self, gradients: list[Tensor]) -> tuple[Any, ...]:
        """Return what the compiled function takes: tensors, and flags that do not change."""
        group = self.group
        for tensor, value in zip(self._numbers, self.numbers().values(), strict=True):
            tensor.fill_(value)
        if "betas" in group:
            kept = [*self.kept.values()]
            flags: tuple[Any, ...] = (
                group["eps"],
                group["decoupled_weight_decay"],
                group["maximize"],
            )
        else:
            kept = [self.buffers()]
            flags = (group["nesterov"], group["maximize"])
        return (self.params, gradients, *kept, self._numbers, flags)


# The formulas stand in `onecycle.cuda_graphs.step` too, there over all parameters at once, which a
# graph needs. Compiled, that form takes 1.09 to 1.14 of the time of this one for AdamW (models of 4
# to 167 parameters) and 0.96 to 1.05 for SGD; in a graph, this form launches each operation of
# each parameter.


def _sgd(groups: list[Any]) -> None:
    """Update as ``torch.optim.SGD`` does, with numbers that are tensors."""
    for params, gradients, buffers, numbers, (nesterov, maximize) in groups:
        lr, weight_decay, momentum, dampening = numbers
        for i, p in enumerate(params):
            g = -gradients[i] if maximize else gradients[i]
            g = g + p * weight_decay
            if buffers:
                buffer = buffers[i].mul_(momentum).add_(g * (1 - dampening))
                g = g + buffer * momentum if nesterov else buffer
            p.sub_(g * lr)


def _adam(groups: list[Any]) -> None:
    """Update as ``torch.optim.Adam`` and ``AdamW`` do, with numbers that are tensors."""
    for params, gradients, means, squares, steps, numbers, (eps, decoupled, maximize) in groups:
        lr, weight_decay, beta1, beta2 = numbers
        for i, p in enumerate(params):
            g = -gradients[i] if maximize else gradients[i]
            step = steps[i].add_(1)
            if decoupled:
                p.mul_(1 - lr * weight_decay)
            else:
                g = g + p * weight_decay
            mean = means[i].mul_(beta1).add_(g * (1 - beta1))
            square = squares[i].mul_(beta2).add_(g * g * (1 - beta2))
            size = lr / (1 - beta1**step)
            p.sub_(mean * size / ((square / (1 - beta2**step)).sqrt() + eps))


def choose_stepper(
    model: nn.Module, opt: Optimizer, fast_step: bool, compile: bool | str
) -> Callable[[Optimizer], Stepper]:
    """Return what makes the stepper of each fit; compile the model if that is asked for.

    Args:
        model: The model, on its device.
        opt: Its optimizer.
        fast_step: As given to the `Learner`.
        compile: Likewise.

    Raises:
        TypeError, ValueError: If ``compile`` is nothing known.
        RuntimeError: If there is no compiler for this platform.
    """
    check_flag("fast_step", fast_step)
    options = compile_options(compile)
    if options is None and not fast_step:
        return partial(Stepper, reason="fast_step=False")
    if options is None:
        return partial(_fast_stepper, model)
    check_plain_compile(model, compile)
    compile_model(model, **options)
    if reason := CompiledStepper.why_not(opt):
        log.warning("compile: the model is compiled, the step is not: %s", reason)
    return CompiledSteps(**options)


def _fast_stepper(model: nn.Module, opt: Optimizer) -> Stepper:
    """Make the stepper of a fit: the fast one, unless the model has been compiled by its owner."""
    parts = model.modules()
    if any(part._compiled_call_impl is not None or hasattr(part, "_orig_mod") for part in parts):
        return Stepper(opt, reason="the model is compiled")
    return FastStepper(opt)


def compile_options(compile: bool | str) -> dict[str, Any] | None:
    """Return what ``torch.compile`` is given; ``None`` where nothing is to be compiled.

    Args:
        compile: ``True``, ``False``, or a mode of ``torch.compile``.

    Raises:
        TypeError, ValueError: If it is none of these.

    Example:
        >>> compile_options(False), compile_options(True), compile_options("max-autotune")
        (None, {}, {'mode': 'max-autotune'})
    """
    if isinstance(compile, bool):
        return {} if compile else None
    if not isinstance(compile, str):
        raise TypeError(f"compile is True, False or a mode of torch.compile; got {shown(compile)}")
    modes = torch._inductor.list_mode_options()
    if compile not in modes:
        raise ValueError(
            f"compile is True, False or one of {', '.join(modes)}; got {shown(compile)}"
        )
    return {"mode": compile}


def compile_model(model: nn.Module, **options: Any) -> None:
    """Compile a model in place; the names in its ``state_dict`` stay as they are.

    Args:
        model: The model, on its device.
        **options: What ``torch.compile`` takes.

    Raises:
        ValueError: If the model is compiled already.
        RuntimeError: If there is no compiler for this platform.
    """
    if model._compiled_call_impl is not None or hasattr(model, "_orig_mod"):
        raise ValueError("the model is compiled already: leave out compile=, or torch.compile")
    problem = _missing_compiler(next(model.parameters()).device)
    if problem is not None:
        raise RuntimeError(f"compile= cannot work here, leave it out: {problem}")

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch's

    # As model.compile() does, but through a function that is not torch's: torch 2.11 passes over
    # its own, and would not compile an nn.Sequential.
    model._compiled_call_impl = torch.compile(_with_own_code(call), **options)


def _with_own_code(function: Any) -> Any:
    """Copy a function: torch counts what it compiles by code, and stops at eight for all of it."""
    code = function.__code__.replace(co_name=f"compiled_{function.__name__.strip('_')}")
    return FunctionType(code, function.__globals__, closure=function.__closure__)


def _missing_compiler(device: torch.device) -> str | None:
    from torch._dynamo.eval_frame import is_dynamo_supported

    if not is_dynamo_supported():
        return "torch.compile does not support this platform"
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:
            return f"torch found no C++ compiler ({type(error).__name__})"
    return None


def uncompiled() -> AbstractContextManager[Any]:
    """Run what ``torch.compile`` compiled as it is written, so that no hook is compiled into it."""
    # Nothing is compiled where nobody imported the compiler, which takes seconds.
    is_used = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_used else nullcontext()
