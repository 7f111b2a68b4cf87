"""What is refused before a fit begins, since nothing of it would train; and what is told."""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.optim import Optimizer

from onecycle.optim.loss_module import LOSS, named_parts

log = logging.getLogger("onecycle")


def check_trains(
    model: nn.Module, loss: nn.Module | None, opt: Optimizer, device: torch.device
) -> None:
    """Refuse a model that cannot train, or that is not where the batches go; warn of less.

    Args:
        model: The model.
        loss: The module of the loss function, if there is one.
        opt: The optimizer.
        device: Where the batches go.

    Raises:
        RuntimeError: If gradients are switched off where the caller is.
        ValueError: If all parameters are frozen, or the optimizer holds none of those that are
            not, or one is on another device.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "gradients are switched off here, by torch.no_grad() or since this is a validation "
            "batch, and nothing can train: call it elsewhere, as in after_epoch"
        )
    parameters = named_parts(model, loss)
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    if not trained:
        raise ValueError(
            "no parameter of the model takes a gradient: all are frozen; set requires_grad on "
            "those that should train"
        )
    for name, parameter in parameters.items():
        if parameter.device != device:
            raise ValueError(
                f"the model's parameter {name!r} is on {parameter.device}, and the batches go "
                f"to {device}: move the model back, or make a new Learner with device="
            )
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    left = [name for name, p in trained.items() if id(p) not in held]
    said = f"the optimizer does not hold {_some(left)}"
    if len(left) == len(trained):
        raise ValueError(
            f"{said}: nothing would train; make a new Learner after replacing parts of a model"
        )
    if left:
        of_loss = all(name.startswith(LOSS) for name in left)
        log.warning(
            "%s, which will not train: %s, or freeze them",
            said,
            "give opt= an optimizer that holds the loss function's parameters too"
            if of_loss
            else "make a new Learner after replacing parts of a model",
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(map(repr, names[:3]))}{more}"
