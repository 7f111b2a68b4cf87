"""`FastStepper`: backward and a fused optimizer's update, with nothing around the kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from onecycle.explanations import explain_backward_error
from onecycle.stepper import Stepper, is_extended

#: What the kernels were called with when this was written, by the names of their arguments.
_ARGUMENTS = {
    "_fused_sgd_": "self grads momentum_buffer_list weight_decay momentum lr dampening nesterov "
    "maximize is_first_step grad_scale found_inf",
    "_fused_adam_": "self grads exp_avgs exp_avg_sqs max_exp_avg_sqs state_steps lr beta1 beta2 "
    "weight_decay eps amsgrad maximize grad_scale found_inf",
}
_ARGUMENTS["_fused_adamw_"] = _ARGUMENTS["_fused_adam_"]


class FastStepper(Stepper):
    """Makes an update by calling engine and fused kernel themselves: the same bits, less Python.

    For SGD, Adam and AdamW of torch that are fused. The state stays the optimizer's own and is
    saved and loaded as ever. The optimizer's own step makes every update that the short way does
    not cover: the first one of a parameter, which creates its state, and any while step hooks are
    registered. In the same way the autograd engine is given the loss, with a gradient of 1 that is
    made once; a loss that is no plain tensor goes through ``Tensor.backward``.

    Given up are torch's checks in each update, of sparse gradients for one, its profiler range and
    its log of the autograd graph. The engine and the kernels are private to torch: where one takes
    other arguments than known it is not called.

    Attributes:
        reason: Why the optimizer's own step makes all updates, in a sentence; ``None`` where it
            does not.

    Args:
        opt: The optimizer.
    """

    def __init__(self, opt: Optimizer) -> None:
        super().__init__(opt)
        self.reason = self.why_not(opt)
        self._engine = _engine()
        self._one: Tensor | None = None
        self._groups: list[Any] = []  # of what `_make_group` returns
        self._state: Any = None
        self._n_states = 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those that wait."""
        one = self._one
        if self._engine is None or type(loss) is not Tensor or loss.ndim:
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

    def step(self) -> bool:
        """Step the optimizer."""
        if self.reason is not None or is_extended(self.opt):
            return super().step()
        gradients = self._gradients()
        if gradients is None:
            self._bind()
            gradients = self._gradients() if all(g.has_state() for g in self._groups) else None
        if gradients is None:
            super().step()
        else:
            with torch.no_grad():
                self._update(gradients)
        return True

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
        if any(group.get("amsgrad") for group in opt.param_groups):
            return f"{name} has amsgrad=True"
        for group in opt.param_groups:
            params: list[nn.Parameter] = group["params"]
            if len({(p.device, p.dtype) for p in params}) > 1:
                return "a parameter group has several devices or dtypes"
            if any(
                isinstance(group[key], Tensor) for key in ("lr", "weight_decay") if key in group
            ):
                return "a hyperparameter is a tensor"
        return _changed_kernel(
            ("_fused_sgd_",) if type(opt) is SGD else ("_fused_adam_", "_fused_adamw_")
        )

    def _make_group(self, group: dict[str, Any]) -> Group:
        kind = _SGDGroup if isinstance(self.opt, SGD) else _AdamGroup
        return kind(self.opt, group)

    def _update(self, gradients: list[list[Tensor]]) -> None:
        for group, given in zip(self._groups, gradients, strict=True):
            if given:
                group.step(given)

    def _bind(self) -> None:
        """Make the lists that the kernels take, of what has a gradient now."""
        self._state, self._n_states = self.opt.state, len(self.opt.state)
        self._groups = [self._make_group(group) for group in self.opt.param_groups]

    def _gradients(self) -> list[list[Tensor]] | None:
        """Return the gradients of each group, or ``None`` where the lists are no longer right."""
        opt = self.opt
        if (
            opt.state is not self._state
            or len(self._state) != self._n_states
            or len(opt.param_groups) != len(self._groups)
        ):
            return None
        gradients = []
        for group, now in zip(self._groups, opt.param_groups, strict=True):
            given = group.gradients(now)
            if given is None:
                return None
            gradients.append(given)
        return gradients


class Group:
    """One of the optimizer's groups: those of its parameters that train, and their states.

    Hyperparameters are read from the group, and tensors from the states, for each update: both
    may be replaced. A dict costs less to look into than torch's step to go through.

    Args:
        opt: The optimizer.
        group: One of its ``param_groups``.
    """

    def __init__(self, opt: Optimizer, group: dict[str, Any]) -> None:
        self.group, self._given = group, group["params"]
        self._has_momentum = group.get("momentum", 0) != 0
        self.params = [p for p in self._given if p.grad is not None]
        self._frozen = [p for p in self._given if p.grad is None]
        self.states = [opt.state.get(p, {}) for p in self.params]

    def has_state(self) -> bool:
        """Tell whether there is all that an update needs."""
        key = "exp_avg" if "betas" in self.group else "momentum_buffer"
        needs_none = key == "momentum_buffer" and not self._has_momentum
        return needs_none or all(state.get(key) is not None for state in self.states)

    def gradients(self, now: dict[str, Any]) -> list[Tensor] | None:
        """Return the gradients, or ``None`` if it is no longer this group and what it trains."""
        if now is not self.group or now["params"] is not self._given:
            return None
        if (now.get("momentum", 0) != 0) is not self._has_momentum:  # there may be no buffers
            return None
        gradients = [g for p in self.params if (g := p.grad) is not None]
        if len(gradients) != len(self.params) or any(p.grad is not None for p in self._frozen):
            return None
        return gradients

    def buffers(self) -> list[Tensor]:
        """Return SGD's momentum buffers; none where there is no momentum."""
        return [state["momentum_buffer"] for state in self.states] if self._has_momentum else []


class _SGDGroup(Group):
    def step(self, gradients: list[Tensor]) -> None:
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


class _AdamGroup(Group):
    def step(self, gradients: list[Tensor]) -> None:
        group, states = self.group, self.states
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        kernel(
            self.params,
            gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
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
