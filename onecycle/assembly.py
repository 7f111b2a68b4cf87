"""What a learner is put together from: modules on their device, and the optimizer's groups."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from onecycle.optim.build import (
    OptFunc,
    Splitter,
    build_optimizer,
    check_serves,
    norms_and_biases,
)
from onecycle.optim.groups import ParamGroups


def move_to(device: str | torch.device | None, *parts: object) -> None:
    """Move the modules among the parts to a device: the accelerator where none is named."""
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(device)


def param_groups(
    model: nn.Module,
    opt: Optimizer | None,
    opt_func: OptFunc,
    wd: float | None,
    splitter: Splitter | None,
    wd_bn_bias: bool,
) -> ParamGroups:
    """Return the parameter groups of an optimizer that exists, or of one built for the model."""
    if opt is None:
        opt = build_optimizer(model, opt_func, lr=1e-3, wd=wd, splitter=splitter)
        return ParamGroups(opt, exempt=() if wd_bn_bias else norms_and_biases(model))
    if wd is not None or splitter is not None:
        raise ValueError("opt= is used as it is: give wd and splitter to opt_func instead")
    check_serves(opt, model)
    return ParamGroups(opt)
