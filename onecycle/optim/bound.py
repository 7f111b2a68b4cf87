"""`BoundStepper`: the base of steppers that make an update from lists made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecycle.optim.stepper import Stepper, is_extended, is_watched


class BoundStepper(Stepper):
    """Makes an update of what is found in the optimizer once, as long as that stays right.

    The state stays the optimizer's own and is saved and loaded as ever. The optimizer's own step
    makes every update that the short way does not cover: the first one of a parameter, which
    creates its state, and any while step hooks are registered, somebody looks on, or a gradient is
    no plain tensor.

    Attributes:
        reason: Why the optimizer's own step makes all updates, in a sentence; ``None`` where it
            does not.
        groups: Of what `make_group` returns.

    Args:
        opt: The optimizer.
    """

    def __init__(self, opt: Optimizer) -> None:
        super().__init__(opt, self.why_not(opt))
        self.groups: list[Any] = []
        self._state: Any = None
        self._n_states = 0

    @staticmethod
    def why_not(opt: Optimizer) -> str | None:
        """Say why the short way is not for an optimizer; ``None`` if it is.

        Args:
            opt: The optimizer.
        """
        raise NotImplementedError

    def make_group(self, group: dict[str, Any]) -> Group:
        """Return one of the optimizer's ``param_groups``, to be stepped."""
        raise NotImplementedError

    def update(self, gradients: list[list[Tensor]]) -> None:
        """Make the update.

        Args:
            gradients: Of each group; none where nothing of a group trains.
        """
        raise NotImplementedError

    def step(self) -> bool:
        """Step the optimizer."""
        if self.reason is not None or is_extended(self.opt) or is_watched():
            return super().step()
        gradients = self._gradients()
        if gradients is None:
            self._bind()
            is_ready = self.reason is None and all(g.has_state() for g in self.groups)
            gradients = self._gradients() if is_ready else None
        if gradients is None:
            super().step()
        else:
            with torch.no_grad():
                self.update(gradients)
        return True

    def _bind(self) -> None:
        """Make the lists that the kernels take, of what has a gradient now."""
        self._state, self._n_states = self.opt.state, len(self.opt.state)
        self.reason = self.why_not(self.opt)  # options of a group may have been changed since
        self.groups = [self.make_group(group) for group in self.opt.param_groups]

    def _gradients(self) -> list[list[Tensor]] | None:
        """Return the gradients of each group, or ``None`` where the lists are no longer right."""
        opt = self.opt
        if (
            opt.state is not self._state
            or len(self._state) != self._n_states
            or len(opt.param_groups) != len(self.groups)
        ):
            return None
        gradients = []
        for group, now in zip(self.groups, opt.param_groups, strict=True):
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
        self._fused, self._amsgrad = group.get("fused"), group.get("amsgrad")
        self.params = [p for p in self._given if p.grad is not None]
        self._frozen = [p for p in self._given if p.grad is None]
        self.states = [opt.state.get(p, {}) for p in self.params]

    def has_state(self) -> bool:
        """Tell whether there is all that an update needs, in plain tensors."""
        if not all(map(_is_plain, self.params)):
            return False
        key = "exp_avg" if "betas" in self.group else "momentum_buffer"
        needs_none = key == "momentum_buffer" and not self._has_momentum
        return needs_none or all(state.get(key) is not None for state in self.states)

    def gradients(self, now: dict[str, Any]) -> list[Tensor] | None:
        """Return the gradients, or ``None`` if it is no longer this group and what it trains."""
        if now is not self.group or now["params"] is not self._given:
            return None
        if (now.get("momentum", 0) != 0) is not self._has_momentum:  # there may be no buffers
            return None
        if now.get("fused") is not self._fused or now.get("amsgrad") is not self._amsgrad:
            return None
        gradients = [
            g for p in self.params if type(g := p.grad) is Tensor and g.layout is torch.strided
        ]
        if len(gradients) != len(self.params) or any(p.grad is not None for p in self._frozen):
            return None
        return gradients

    def numbers(self) -> dict[str, float]:
        """Return by name the numbers in force that a schedule may change for each update."""
        group = self.group
        if "betas" in group:
            beta1, beta2 = group["betas"]
            own = {"beta1": beta1, "beta2": beta2}
        else:
            own = {"momentum": group["momentum"], "dampening": group["dampening"]}
        return {"lr": group["lr"], "weight_decay": group["weight_decay"], **own}

    def buffers(self) -> list[Tensor]:
        """Return SGD's momentum buffers; none where there is no momentum."""
        return [state["momentum_buffer"] for state in self.states] if self._has_momentum else []


def _is_plain(parameter: Tensor) -> bool:
    """Tell whether the kernels may take a parameter and its gradient: no subclass, not sparse."""
    gradient = parameter.grad
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and type(gradient) is Tensor
        and gradient.layout is torch.strided
    )
