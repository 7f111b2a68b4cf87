"""What an experiment may vary: hyperparameters, the batch size, the dropout of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from onecycle.arguments import check_fraction, shown
from onecycle.data.loaders import with_batch_size

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)


def check_settings(learn: Loop, name: str, settings: Sequence[Any], *, least: int = 1) -> None:
    """Refuse settings that cannot be, before the first of them is tried.

    Args:
        learn: The learner.
        name: ``"batch_size"`` of the training loader, ``"dropout"`` of every dropout module, or a
            hyperparameter in ``learn.groups``.
        settings: Its values; a hyperparameter's are each for all parameter groups.
        least: How many there must be.

    Raises:
        ValueError: If there are too few or one comes twice, if one is not allowed, or if the
            optimizer has no such hyperparameter or the model no dropout.
        TypeError: If a value is no number, or the training loader is of a kind whose batch size
            cannot be changed.
    """
    is_list = isinstance(settings, list | tuple | range) or getattr(settings, "ndim", 0) == 1
    if not is_list or len(settings) < least:
        raise ValueError(
            f"expected a list of {least} or more values of {name}; got {shown(settings)}"
        )
    for setting in settings:
        _check(learn, name, setting)
    if len(set(settings)) < len(settings):
        raise ValueError(f"a value of {name} comes twice, and would be one: {settings!r}")


def _check(learn: Loop, name: str, setting: Any) -> None:
    if name == "batch_size":
        with_batch_size(learn.dls.train, setting)
    elif name == "dropout":
        check_fraction("a dropout", setting)
        if not _dropouts(learn):
            raise ValueError(
                f"the model has no nn.Dropout: add one, or leave dropouts out; got {shown(setting)}"
            )
    else:
        learn.groups.get(name)  # refuses what the optimizer does not have
        learn.groups.expand(name, setting)


def put_in_force(learn: Loop, name: str, setting: Any) -> None:
    """Set what `check_settings` has passed.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner()
        >>> put_in_force(learn, "weight_decay", 0.1)
        >>> learn.groups.get("weight_decay")
        [0.1]
    """
    if name == "batch_size":
        learn.dls.train = with_batch_size(learn.dls.train, setting)
    elif name == "dropout":
        for module in _dropouts(learn):
            module.p = setting
    else:
        learn.groups.set(name, setting)


def _dropouts(learn: Loop) -> list[Any]:
    return [module for module in learn.model.modules() if isinstance(module, _DROPOUTS)]
