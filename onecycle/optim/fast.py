"""`FastStepper`: backward and a fused optimizer's update, with nothing around the kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from onecycle.explanations import explain_backward_error
from onecycle.optim.bound import BoundStepper, Group
from onecycle.optim.stepper import is_torchs, is_watched

#: What the kernels were called with when this was written, by the names of their arguments.
_ARGUMENTS = {
    "_fused_sgd_": "self grads momentum_buffer_list weight_decay momentum lr dampening nesterov "
    "maximize is_first_step grad_scale found_inf",
    "_fused_adam_": "self grads exp_avgs exp_avg_sqs max_exp_avg_sqs state_steps lr beta1 beta2 "
    "weight_decay eps amsgrad maximize grad_scale found_inf",
}
_ARGUMENTS["_fused_adamw_"] = _ARGUMENTS["_fused_adam_"]

#: A number would be made a tensor anew for each of Adam's counts.
_ONE_STEP = torch.ones((), device="cpu")

#: What is left out if it is torch's own; ``None`` if somebody had replaced it already.
_BACKWARD, _AUTOGRAD_BACKWARD = (
    function if is_torchs(function) else None
    for function in (Tensor.backward, torch.autograd.backward)
)


class FastStepper(BoundStepper):
    """Makes an update by calling engine and fused kernel themselves: the same bits, less Python.

    For SGD, Adam and AdamW of torch that are fused. What the short way does not cover is the
    optimizer's, as for every `BoundStepper`. The autograd engine is given the loss, with a gradient
    of 1 that is made once; a loss that is no plain tensor goes through ``Tensor.backward``, and
    every loss does where somebody has replaced that.

    While a profiler, anomaly mode, or a mode for torch's functions or operators is on, torch's own
    backward and step are called whole. Given up is its log of the autograd graph. The engine and
    the kernels are private to torch: where one takes other arguments than known it is not called.

    Args:
        opt: The optimizer.
    """

    kind = "fast step"

    def __init__(self, opt: Optimizer) -> None:
        super().__init__(opt)
        self._engine = _engine()
        self._one: Tensor | None = None
        self._counts: list[Tensor] = []

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those that wait."""
        one = self._one
        if (
            self._engine is None
            or is_watched()
            or type(loss) is not Tensor
            or loss.ndim
            or Tensor.backward is not _BACKWARD
            or torch.autograd.backward is not _AUTOGRAD_BACKWARD
        ):
            super().backward(loss)
            return
        if one is None or one.dtype != loss.dtype or one.device != loss.device or one._version:
            if not loss.is_floating_point():
                super().backward(loss)
                return
            self._one = one = torch.ones_like(loss)  # anew too if a hook has changed it in place
        try:
            _differentiate(self._engine, loss, one)
        except RuntimeError as error:
            explain_backward_error(error, loss)
            raise

    @staticmethod
    def why_not(opt: Optimizer) -> str | None:
        """Say why the short way is not for an optimizer; ``None`` if it is.

        Args:
            opt: The optimizer.
        """
        name = type(opt).__name__
        if type(opt) not in (SGD, Adam, AdamW):
            return f"{name} is not SGD, Adam or AdamW of torch"
        if not all(group.get("fused") for group in opt.param_groups):
            return f"{name} is not fused"
        for option in ("amsgrad", "foreach", "differentiable"):
            if any(group.get(option) for group in opt.param_groups):
                return f"{name} has {option}=True"
        for group in opt.param_groups:
            params: list[nn.Parameter] = group["params"]
            for p in params:
                if type(p) not in (Tensor, nn.Parameter):
                    return f"a parameter is a {type(p).__name__}, no plain tensor"
            if len({(p.device, p.dtype) for p in params}) > 1:
                return "a parameter group has several devices or dtypes"
            if any(
                isinstance(group[key], Tensor) for key in ("lr", "weight_decay") if key in group
            ):
                return "a hyperparameter is a tensor"
        return _changed_kernel(
            ("_fused_sgd_",) if type(opt) is SGD else ("_fused_adam_", "_fused_adamw_")
        )

    def make_group(self, group: dict[str, Any]) -> Group:
        """Return one of the optimizer's groups, to be stepped."""
        kind = _SGDGroup if isinstance(self.opt, SGD) else _AdamGroup
        return kind(self.opt, group)

    def _bind(self) -> None:
        super()._bind()
        self._counts = [count for group in self.groups for count in group.kept.get("step", ())]

    def update(self, gradients: list[list[Tensor]]) -> None:
        """Make the update: one call counts it for all groups, and a kernel moves each."""
        if self._counts:
            _count(self._counts)
        for group, given in zip(self.groups, gradients, strict=True):
            if given:
                group.move(given)


def _count(steps: list[Tensor]) -> None:
    torch._foreach_add_(steps, _ONE_STEP if steps[0].is_cpu else 1)


class _FastGroup(Group):
    def step(self, gradients: list[Tensor]) -> None:
        """Make the whole update of this group alone, as a graph records it."""
        if counts := self.kept.get("step"):
            _count(counts)
        self.move(gradients)

    def move(self, gradients: list[Tensor]) -> None:
        """Move what trains, by the counts of updates that are there."""
        raise NotImplementedError


class _SGDGroup(_FastGroup):
    def move(self, gradients: list[Tensor]) -> None:
        group = self.group
        torch._fused_sgd_(
            self.params,
            gradients,
            self.buffers(),
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
        )


class _AdamGroup(_FastGroup):
    def move(self, gradients: list[Tensor]) -> None:
        group, kept = self.group, self.kept
        beta1, beta2 = group["betas"]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        kernel(
            self.params,
            gradients,
            kept["exp_avg"],
            kept["exp_avg_sq"],
            [],
            kept["step"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )


@cache
def _engine() -> Any:
    """Return torch's autograd engine, or ``None`` if it is not called as it was."""
    engine = getattr(torch.autograd.Variable, "_execution_engine", None)
    leaf = torch.ones((), device="cpu", requires_grad=True)
    try:
        _differentiate(engine, leaf, torch.ones((), device="cpu"))
    except (AttributeError, RuntimeError, TypeError):
        return None
    return None if leaf.grad is None else engine


def _differentiate(engine: Any, loss: Tensor, one: Tensor) -> None:
    retain_graph = create_graph = False
    engine.run_backward(
        (loss,),
        (one,),
        retain_graph,
        create_graph,
        (),
        allow_unreachable=True,
        accumulate_grad=True,
    )


def _changed_kernel(names: tuple[str, ...]) -> str | None:
    """Say which kernel is missing or takes other arguments in this version of torch."""
    for name in names:
        operator = getattr(torch.ops.aten, name, None)
        schema = None if operator is None else operator.default._schema
        if schema is None or " ".join(a.name for a in schema.arguments) != _ARGUMENTS[name]:
            return f"torch {torch.__version__} has another {name} than the one that is known"
    return None
