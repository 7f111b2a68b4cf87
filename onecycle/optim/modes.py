"""Training and evaluation mode: of a model whose parts may stay as they are, and of optimizers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from weakref import WeakSet

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

log = logging.getLogger("onecycle")

#: The models of which it was said that their parts in evaluation mode are put in training mode.
_TOLD: WeakSet[nn.Module] = WeakSet()
#: The models of which it was said that statistics of frozen layers move.
_TOLD_MOVING: WeakSet[nn.Module] = WeakSet()


def put_in_training(
    model: nn.Module, kept: Sequence[nn.Module], frozen: Sequence[nn.Module]
) -> list[nn.Module]:
    """Put a model in training mode, but for the parts that a person put in evaluation mode.

    Those are seen where the model itself is in training mode and they are not. Where it is in
    evaluation mode as a whole, as validation leaves it, they are the same as before.

    Args:
        model: The model.
        kept: The parts that stayed in evaluation mode so far.
        frozen: The layers that stay in it because `Learner.freeze_to` says so.

    Returns:
        The parts that stay in evaluation mode.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2), nn.Dropout())
        >>> _ = model[0].eval()
        >>> kept = put_in_training(model, [], [])
        >>> [part.training for part in model], kept == [model[0]]
        ([False, True, True], True)
        >>> _ = model.eval()
        >>> put_in_training(model, kept, []) == kept
        True
    """
    in_training = [part for part in model.modules() if part.training]
    in_evaluation = [part for part in model.modules() if not part.training]
    try:
        kept = _put_in_training(model, in_training, in_evaluation, kept, frozen)
    except BaseException:  # by Ctrl-C too: half of it would be taken for a wish by the next fit
        for parts, flag in ((in_training, True), (in_evaluation, False)):
            for part in parts:
                part.training = flag
        raise
    _tell_moving(model)
    return list(kept)


def _put_in_training(
    model: nn.Module,
    in_training: Sequence[nn.Module],
    in_evaluation: Sequence[nn.Module],
    kept: Sequence[nn.Module],
    frozen: Sequence[nn.Module],
) -> Sequence[nn.Module]:
    was_training = model.training
    model.train()
    trained = [part for part in model.modules() if part.training]
    if was_training:
        # By hand: not as the model's own train() leaves it, nor as freeze_to did.
        by_freezing = {id(part) for part in frozen} - {id(part) for part in kept}
        stays = [part for part in in_evaluation if part.training and id(part) not in by_freezing]
        _tell_kept(model, stays, kept)
        kept = stays
    elif in_training:
        _tell_undone(model, in_training, in_evaluation)
    for part in (*kept, *frozen):
        part.eval()
    held = {id(part) for part in (*kept, *frozen)}
    for part in trained:  # what is within them, and trains all the same
        part.training = id(part) not in held
    return kept


def freeze_norms(
    model: nn.Module,
    norms: Sequence[nn.Module],
    kept: Sequence[nn.Module],
    frozen: Sequence[nn.Module],
) -> list[nn.Module]:
    """Put layers in evaluation mode, and those that were frozen before back in the model's.

    Args:
        model: The model.
        norms: The layers that are frozen from now on.
        kept: As for `put_in_training`.
        frozen: The layers that were frozen so far.

    Returns:
        The parts that stay in evaluation mode because a person put them there: ``kept``, and
        those of the layers that were in it, while the model was in training mode.
    """
    by_hand = [n for n in norms if model.training and not n.training and n not in frozen]
    stays = [*kept, *(norm for norm in by_hand if norm not in kept)]
    for norm in frozen:
        if norm not in stays:
            norm.train(model.training)
    for norm in norms:
        norm.eval()
    return stays


def _tell_kept(model: nn.Module, stays: Sequence[nn.Module], before: Sequence[nn.Module]) -> None:
    if {id(part) for part in stays} - {id(part) for part in before}:
        log.warning(
            "in evaluation mode, and so it stays in training: %s (learn.model.train() before the "
            "fit puts all of the model in training mode)",
            _outermost(model, stays),
        )


def _tell_undone(
    model: nn.Module, in_training: Sequence[nn.Module], in_evaluation: Sequence[nn.Module]
) -> None:
    """Say once that parts in evaluation mode are no wish, where the mode makes a difference."""
    if model not in _TOLD and any(isinstance(p, (_NormBase, _DropoutNd)) for p in in_evaluation):
        _TOLD.add(model)
        log.warning(
            "the model is in evaluation mode, but for %s: all of it is put in training mode (for "
            "parts that are to stay in evaluation mode: learn.model.train(), then part.eval())",
            _outermost(model, in_training),
        )


def _tell_moving(model: nn.Module) -> None:
    """Say once that statistics of frozen layers follow the data all the same."""
    moving = [
        part
        for part in model.modules()
        if isinstance(part, _NormBase)
        and part.training
        and part.track_running_stats
        and not any(p.requires_grad for p in part.parameters())
        and [*part.parameters()]
    ]
    if moving and model not in _TOLD_MOVING:
        _TOLD_MOVING.add(model)
        log.warning(
            "frozen, but not in evaluation mode: %s; the running statistics follow the data "
            "(learn.model.train(), then part.eval() before the fit keeps them)",
            _outermost(model, moving),
        )


def _outermost(model: nn.Module, parts: Sequence[nn.Module]) -> str:
    """Name those of these parts that are in none of the others."""
    ids = {id(part) for part in parts}
    found: list[str] = []
    for name, module in model.named_modules():
        if id(module) in ids and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(map(repr, found[:3])) + more


def switch(opt: Optimizer, *, training: bool) -> None:
    """Put an optimizer in training or evaluation mode, if it has them; the weights change with it.

    Those that are called schedule-free do: they train at one point and are evaluated at another.

    Args:
        opt: The optimizer.
        training: Which of the two.
    """
    if has_modes(opt):
        (opt.train if training else opt.eval)()  # type: ignore[attr-defined]


def has_modes(opt: Optimizer) -> bool:
    """Tell whether an optimizer has a training and an evaluation mode.

    Args:
        opt: The optimizer.
    """
    return callable(getattr(opt, "train", None)) and callable(getattr(opt, "eval", None))
