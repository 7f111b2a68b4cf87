"""Freezing: which groups train, and which normalization layers stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from onecycle.optim.build import norm_parameters, ready_state

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer


def freeze_to(learn: Trainer, n: int, *, train_bn: bool) -> None:
    """Freeze the groups before one of them: see `Learner.freeze_to`."""
    count = len(learn.groups)
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"freeze_to takes the number of a parameter group; got {n!r}")
    if not -count <= n < count:
        raise ValueError(
            f"cannot freeze to parameter group {n}: expected {-count} to {count - 1}, since the "
            f"splitter made {count} (Learner's splitter= makes more)\n{learn.groups.table()}"
        )
    norms = norm_parameters(learn.model) if train_bn else set()
    for g in range(count):
        for parameter in learn.groups.params(g):
            parameter.requires_grad_(g >= n % count or id(parameter) in norms)
    learn.freeze_norms([] if train_bn else _frozen_norms(learn.model))
    ready_state(learn.opt)  # a callback may thaw groups in the middle of a fit


def _frozen_norms(model: nn.Module) -> list[nn.Module]:
    """List the layers with running statistics of which no parameter trains.

    One that has no parameters goes with the smallest module around it that has some.
    """
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            around, parameters = name, list(module.parameters())
            while not parameters:
                around = around.rpartition(".")[0]
                parameters = list(model.get_submodule(around).parameters())
            if not any(parameter.requires_grad for parameter in parameters):
                found.append(module)
    return found
