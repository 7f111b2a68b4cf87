"""`BoundStepper`: the base of steppers that make an update from lists made once."""

from __future__ import annotations

from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecycle.optim.stepper import Stepper, is_watched

#: Options that choose how torch makes an update: none is looked up in a kernel's arguments.
_CHOICES = ("fused", "foreach", "amsgrad", "capturable", "differentiable")


class BoundStepper(Stepper):
    """Makes an update of what is found in the optimizer once, as long as that stays right.

    The state stays the optimizer's own and is saved and loaded as ever. The optimizer's own step
    makes every update that the short way does not cover: the first one of a parameter, which
    creates its state, and any while step hooks are registered, somebody looks on, or a gradient is
    no plain tensor. Whatever is changed in the optimizer between two updates, the next one is that
    of its own step: options, numbers, groups, states and what trains are looked at each time.

    Attributes:
        reason: Why the optimizer's own step makes all updates, in a sentence; ``None`` where it
            does not.
        groups: Of what `make_group` returns; none where the short way is not open.

    Args:
        opt: The optimizer.
    """

    def __init__(self, opt: Optimizer) -> None:
        super().__init__(opt, self.why_not(opt))
        self.groups: list[Any] = []
        self._state: Any = None
        self._states: list[Any] = []

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

    def describe(self) -> str:
        """Say what makes the next update, and why where the short way is not taken."""
        reason = self.reason
        if reason is None and self.is_extended():
            reason = "the optimizer's step has hooks, or was wrapped or replaced"
        elif reason is None and is_watched():
            reason = "a profiler, anomaly mode or another mode looks on"
        return self.kind if reason is None else f"{Stepper.kind}: {reason}"

    def step(self) -> bool:
        """Step the optimizer."""
        if self.reason is not None or self.is_extended() or is_watched():
            return super().step()
        gradients = self._gradients()
        if gradients is None:
            self._bind()
            gradients = self._gradients()
        if gradients is None:
            super().step()
        else:
            with torch.set_grad_enabled(False):  # the same as no_grad, which makes two of these
                self.update(gradients)
        return True

    def _bind(self) -> None:
        """Make the lists that the kernels take, of what has a gradient now."""
        self._state, self._states = self.opt.state, [*self.opt.state.values()]
        self.reason = self.why_not(self.opt)  # options of a group may have been changed since
        groups = [self.make_group(group) for group in self.opt.param_groups]
        is_ready = self.reason is None and all(group.is_ready() for group in groups)
        self.groups = groups if is_ready else []

    def _gradients(self) -> list[list[Tensor]] | None:
        """Return the gradients of each group, or ``None`` where the lists are no longer right."""
        opt, states = self.opt, self._states
        if (
            opt.state is not self._state
            or len(self._state) != len(states)
            or not all(map(is_, self._state.values(), states))
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

    Numbers are read from the group for each update, and what the states have is compared: both may
    be replaced. A dict costs less to look into than torch's step to go through.

    Attributes:
        group: The optimizer's.
        params: Those that train.
        kept: By name, what the kernels take of the states of these: a list of tensors each.

    Args:
        opt: The optimizer.
        group: One of its ``param_groups``.
    """

    def __init__(self, opt: Optimizer, group: dict[str, Any]) -> None:
        self.group, self._given = group, group["params"]
        self._choices_of = itemgetter(*(name for name in _CHOICES if name in group))
        self._choices = self._choices_of(group)
        self._has_momentum = group.get("momentum", 0) != 0
        self._members = [*self._given]
        self.params = [p for p in self._members if p.grad is not None]
        self._frozen = [p for p in self._members if p.grad is None]
        self._states = [opt.state.get(p, {}) for p in self.params]
        of_sgd = ("momentum_buffer",) if self._has_momentum else ()
        names = ("exp_avg", "exp_avg_sq", "step") if "betas" in group else of_sgd
        self.kept = {name: [state.get(name) for state in self._states] for name in names}
        self._kept = [(itemgetter(name), kept) for name, kept in self.kept.items()]

    def is_ready(self) -> bool:
        """Tell whether there is all that an update needs, in plain tensors that fit."""
        return all(map(_is_plain, self.params)) and all(
            type(tensor) is Tensor and (name == "step" or tensor.dtype == p.dtype)
            for name, kept in self.kept.items()
            for p, tensor in zip(self.params, kept, strict=True)
        )

    def gradients(self, now: dict[str, Any]) -> list[Tensor] | None:
        """Return the gradients, or ``None`` if it is no longer this group and what it trains."""
        members = self._members
        if now is not self.group or now["params"] is not self._given:
            return None
        if len(self._given) != len(members) or not all(map(is_, self._given, members)):
            return None
        if (now.get("momentum", 0) != 0) is not self._has_momentum:  # there may be no buffers
            return None
        if self._choices_of(now) != self._choices or not self._has_kept():
            return None
        gradients = [
            g for p in self.params if type(g := p.grad) is Tensor and g.layout is torch.strided
        ]
        if len(gradients) != len(self.params):
            return None
        if self._frozen and any(p.grad is not None for p in self._frozen):
            return None
        return gradients

    def _has_kept(self) -> bool:
        """Tell whether the states have the tensors that they had."""
        try:
            for get, kept in self._kept:
                if not all(map(is_, map(get, self._states), kept)):
                    return False
        except KeyError:
            return False
        return True

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
        return self.kept.get("momentum_buffer", [])


def _is_plain(parameter: Tensor) -> bool:
    """Tell whether the kernels may take a parameter and its gradient: no subclass, not sparse."""
    gradient = parameter.grad
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and type(gradient) is Tensor
        and gradient.layout is torch.strided
    )
