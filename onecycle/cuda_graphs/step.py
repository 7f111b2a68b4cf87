"""`CapturedStepper`: an update as a CUDA graph, its numbers in device tensors. Experimental."""

from __future__ import annotations

import logging
from collections.abc import Callable
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from onecycle.optim.bound import Group
from onecycle.optim.fast import FastStepper

if TYPE_CHECKING:
    from onecycle.cuda_graphs.capture import Cuda

log = logging.getLogger("onecycle")

_Pairs = list[tuple[Group, list[Tensor]]]


class CapturedStepper(FastStepper):
    """Replays the update of SGD, Adam or AdamW, with the numbers of its groups as they are then.

    Rate, momentum and decay are in tensors on the device, filled before a replay if they have
    changed. As long as only rates change, the graph has torch's fused kernels; from the first
    change of another number on, it has operations that take all of them as tensors. Weights agree
    with those of the fused step to rounding: the kernels read these numbers as float32.

    A graph holds for tensors in their places, gradients too. Where one of them is another, the
    update is captured anew; so this is for gradients that a graph has written.

    Experimental: no GPU has run it yet.

    Args:
        opt: The optimizer, one that a `FastStepper` can step.
        cuda: What captures an update.
    """

    kind = "captured step"

    def __init__(self, opt: Optimizer, cuda: Cuda) -> None:
        super().__init__(opt)
        self._cuda = cuda
        self._graph: _Graph | None = None
        self._only_rates, self._is_off = True, False

    def update(self, gradients: list[list[Tensor]]) -> None:
        """Make the update by a replay."""
        pairs = [(g, given) for g, given in zip(self.groups, gradients, strict=True) if given]
        if self._graph is None or not self._graph.holds_for(pairs):
            self._capture(pairs)
        if self._graph is None:
            super().update(gradients)
            return
        for numbers in self._graph.numbers:
            numbers.fill()
        self._graph.replay()

    def _capture(self, pairs: _Pairs) -> None:
        before, self._graph = self._graph, None
        if self._is_off:
            return
        if before is not None and before.constants != _constants(pairs):
            self._give_up("a number changes that no graph takes as a tensor, such as eps")
            return
        self._only_rates &= before is None or not before.is_cycled()
        numbers = [_Numbers(group, given[0].device) for group, given in pairs]
        update = _fused if self._only_rates else _sgd if isinstance(self.opt, SGD) else _adam

        def compute() -> None:
            for (group, given), each in zip(pairs, numbers, strict=True):
                update(group, given, each.tensors)

        try:
            _, replay = self._cuda.capture(compute, draws=False)
        except Exception as error:
            lines = str(error).splitlines() or [""]
            self._give_up(f"{type(error).__name__}: {lines[0]}")
        else:
            self._graph = _Graph(pairs, numbers, replay, self._only_rates)

    def _give_up(self, reason: str) -> None:
        self._is_off = True
        log.warning("CudaGraph: the optimizer's step is not captured: %s", reason)


class _Numbers:
    """The numbers of a group that a schedule may change, in tensors on the device.

    Attributes:
        tensors: By name, 0-dim tensors in float64: Adam subtracts powers of the betas from 1.

    Args:
        group: The group.
        device: Where its parameters are.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        self._group, self._values = group, group.numbers()
        self.tensors = {
            name: torch.full((), value, dtype=torch.float64, device=device)
            for name, value in self._values.items()
        }

    def is_cycled(self) -> bool:
        """Tell whether a number that is no rate is another one than in the tensors."""
        return {**self._group.numbers(), "lr": 0.0} != {**self._values, "lr": 0.0}

    def fill(self) -> None:
        """Put the numbers in force into the tensors.

        Each goes with the launch of a kernel. A copy from a buffer on the host could read what the
        host, which is ahead, has written there for a later update.
        """
        before, self._values = self._values, self._group.numbers()
        for name, value in self._values.items():
            if value != before[name]:
                self.tensors[name].fill_(value)


class _Graph:
    """A graph of an update, and what it holds for.

    Attributes:
        constants: The numbers that it takes for constant in any case.

    Args:
        pairs: The groups that are updated, each with its gradients.
        numbers: Those of the groups.
        replay: Makes the update.
        only_rates: Whether the graph takes all numbers but the rates for constant.
    """

    def __init__(
        self, pairs: _Pairs, numbers: list[_Numbers], replay: Callable[[], None], only_rates: bool
    ) -> None:
        self.numbers, self.replay, self._only_rates = numbers, replay, only_rates
        self.constants, self._tensors = _constants(pairs), _tensors(pairs)

    def holds_for(self, pairs: _Pairs) -> bool:
        """Tell whether a replay is the update of these groups and gradients."""
        tensors = _tensors(pairs)
        return (
            len(tensors) == len(self._tensors)
            and all(map(is_, tensors, self._tensors))
            and _constants(pairs) == self.constants
            and not (self._only_rates and self.is_cycled())
        )

    def is_cycled(self) -> bool:
        """Tell whether a number that is no rate has changed since the last replay."""
        return any(numbers.is_cycled() for numbers in self.numbers)


def _tensors(pairs: _Pairs) -> list[Tensor]:
    """List all tensors that an update reads and writes."""
    found: list[Tensor] = []
    for group, gradients in pairs:
        found += group.params
        found += gradients
        for kept in group.kept.values():
            found += kept
    return found


def _constants(pairs: _Pairs) -> list[Any]:
    """List the numbers of the groups that a graph takes for constant."""
    names = ("nesterov", "maximize", "eps", "decoupled_weight_decay")
    return [{key: group.group.get(key) for key in names} for group, _ in pairs]


# An update, with numbers that are tensors. The formulas stand in `optim.compiled` too: there they
# go through the parameters one by one, which a compiler fuses; a graph would launch each of
# their operations. Compiled, the form here is slower: 1.09 to 1.14 of the time for AdamW.


def _fused(group: Any, gradients: list[Tensor], numbers: dict[str, Tensor]) -> None:
    """Call torch's fused kernel, which takes one tensor: the rate."""
    own = group.group
    group.group = {**own, "lr": numbers["lr"].float()}
    try:
        group.step(gradients)
    finally:
        group.group = own


def _sgd(group: Group, gradients: list[Tensor], numbers: dict[str, Tensor]) -> None:
    """Update as ``torch.optim.SGD`` does."""
    options, params, buffers = group.group, group.params, group.buffers()
    lr, momentum = numbers["lr"].float(), numbers["momentum"].float()
    g: Any = torch._foreach_mul(params, numbers["weight_decay"].float())
    torch._foreach_add_(g, _descending(gradients, options))
    if buffers:
        torch._foreach_mul_(buffers, momentum)
        fresh = torch._foreach_mul(g, (1 - numbers["dampening"]).float())
        torch._foreach_add_(buffers, fresh)
        if options["nesterov"]:
            torch._foreach_add_(g, torch._foreach_mul(buffers, momentum))
        else:
            g = buffers
    torch._foreach_sub_(params, torch._foreach_mul(g, lr))


def _adam(group: Group, gradients: list[Tensor], numbers: dict[str, Tensor]) -> None:
    """Update as ``torch.optim.Adam`` and ``AdamW`` do."""
    options, params = group.group, group.params
    lr, decay, beta1, beta2 = (numbers[n] for n in ("lr", "weight_decay", "beta1", "beta2"))
    means, squares, steps = group.kept.values()
    g = _descending(gradients, options)
    if options["decoupled_weight_decay"]:
        torch._foreach_mul_(params, (1 - lr * decay).float())
    else:
        g = torch._foreach_add(g, torch._foreach_mul(params, decay.float()))
    torch._foreach_add_(steps, 1)
    _average_(means, g, beta1)
    _average_(squares, torch._foreach_mul(g, g), beta2)
    count = torch.stack(steps).double()
    sizes = (lr / (1 - beta1**count)).float().unbind()
    scales = (1 - beta2**count).float().unbind()
    roots = torch._foreach_sqrt(torch._foreach_div(squares, scales))
    torch._foreach_add_(roots, options["eps"])
    change = torch._foreach_div(torch._foreach_mul(means, sizes), roots)
    torch._foreach_sub_(params, change)


def _average_(averages: list[Tensor], values: Any, beta: Tensor) -> None:
    torch._foreach_mul_(averages, beta.float())
    torch._foreach_add_(averages, torch._foreach_mul(values, (1 - beta).float()))


def _descending(gradients: list[Tensor], options: dict[str, Any]) -> Any:
    return torch._foreach_neg(gradients) if options["maximize"] else gradients
