"""Models by name, and weights out of a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onecycle.cli.problem import Problem
from onecycle.vision.models import digits_cnn, resnet9, resnet56

_OWN: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": partial(digits_cnn, in_channels=3),
    "resnet9": resnet9,
    "resnet56": resnet56,
}


@cache
def names() -> list[str]:
    """List the models that are known: torchvision's for classes, and those of the package."""
    import torchvision

    return [*_OWN, *torchvision.models.list_models(module=torchvision.models)]


def make(arch: str, n_classes: int) -> nn.Module:
    """Make a model with random weights.

    Args:
        arch: One of `names`.
        n_classes: Classes to tell apart.
    """
    if arch in _OWN:
        return _OWN[arch](n_classes=n_classes)
    import torchvision

    builder = torchvision.models.get_model_builder(arch)
    options: dict[str, Any] = {"weights": None, "num_classes": n_classes}
    # A second output for the loss, which only their paper's training takes, and slow first weights.
    extra = {"aux_logits": False, "init_weights": False}
    takes = inspect.signature(inspect.unwrap(builder)).parameters
    if arch in ("googlenet", "inception_v3") and "kwargs" in takes:
        options |= extra
    model: nn.Module = builder(**options)
    return model


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Give a model the weights of a file of torch, or of `Learner.save`; runs no code from it.

    Args:
        model: The model.
        path: A state by names, as ``torch.save(model.state_dict(), path)`` writes it.

    Returns:
        What has another shape in the file, as the last layer for other classes, and stays random.

    Raises:
        Problem: If the file is none, or of another model.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Problem(f"{path} cannot be read as weights: {type(error).__name__}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    own = model.state_dict()
    if not isinstance(state, dict) or set(state) != set(own):
        other = sorted(set(own) ^ set(state))[:3] if isinstance(state, dict) else "no state"
        raise Problem(f"{path} holds the weights of another model: {other}")
    fits = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == own[k].shape}
    model.load_state_dict({**own, **fits})
    return [name for name in own if name not in fits]
