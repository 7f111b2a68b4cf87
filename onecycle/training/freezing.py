"""Freezing: which groups train, and which normalization layers stay as they are; and the head."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from onecycle.arguments import check_flag, check_is, shown
from onecycle.optim.build import norm_parameters, ready_state
from onecycle.optim.groups import MORE_GROUPS
from onecycle.optim.loss_module import named_parts

if TYPE_CHECKING:
    from onecycle.training.trainer import Trainer

log = logging.getLogger("onecycle")

#: What the last part of a model is called where it is the head: in torchvision, and mostly.
_HEADS = ("fc", "classifier", "head", "heads")
#: Further heads, of models that have several.
_AUXILIARY = ("aux1", "aux2", "AuxLogits", "aux_classifier")


def require_body_and_head(learn: Trainer, verb: str) -> None:
    """Refuse to freeze all groups but the last where there is one.

    Raises:
        ValueError: Saying how to make more.
    """
    if len(learn.groups) == 1:
        raise ValueError(
            f"{verb} lets the last parameter group train alone, and there is one: nothing would "
            f"be frozen; {MORE_GROUPS}\n{learn.groups.table()}"
        )


def freeze(learn: Trainer, *, train_bn: bool) -> None:
    """Freeze all groups but the last: see `Learner.freeze`."""
    require_body_and_head(learn, "freeze")
    freeze_to(learn, -1, train_bn=train_bn)


def freeze_to(learn: Trainer, n: int, *, train_bn: bool) -> None:
    """Freeze the groups before one of them: see `Learner.freeze_to`."""
    count = len(learn.groups)
    check_flag("train_bn", train_bn)
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(
            f"freeze_to takes the number of a parameter group: n must be an integer; got {shown(n)}"
        )
    if not -count <= n < count:
        raise ValueError(
            f"cannot freeze to parameter group {n}: expected {-count} to {count - 1}, since the "
            f"splitter made {count} (Learner's splitter= makes more)\n{learn.groups.table()}"
        )
    if n < 0:
        require_body_and_head(learn, "freeze_to")
    norms = norm_parameters(learn.model) if train_bn else set()
    trains = {
        p: g >= n % count or id(p) in norms for g in range(count) for p in learn.groups.params(g)
    }
    ours = learn.groups.frozen
    by_hand = {p for p, train in trains.items() if not p.requires_grad and p not in ours}
    thawed = [p for p in by_hand if trains[p]]
    _tell(learn, thawed, "frozen by hand, and so it stays: %s (unfreeze() lets all train)")
    for parameter, train in trains.items():
        parameter.requires_grad_(train and parameter not in by_hand)
    ours.clear()
    ours.update(p for p, train in trains.items() if not train and p not in by_hand)
    learn.freeze_norms([] if train_bn else _frozen_norms(learn.model))
    ready_state(learn.opt)  # a callback may thaw groups in the middle of a fit


def unfreeze(learn: Trainer) -> None:
    """Let all groups train, with what was frozen by hand: see `Learner.unfreeze`."""
    parameters = [p for g in range(len(learn.groups)) for p in learn.groups.params(g)]
    by_hand = [p for p in parameters if not p.requires_grad and p not in learn.groups.frozen]
    _tell(learn, by_hand, "frozen by hand, and trained from now on: %s")
    for parameter in parameters:
        parameter.requires_grad_(True)
    freeze_to(learn, 0, train_bn=True)


def _tell(learn: Trainer, parameters: Iterable[nn.Parameter], message: str) -> None:
    found = {id(p) for p in parameters}
    named = named_parts(learn.model, learn.loss_module)
    names = [name for name, p in named.items() if id(p) in found]
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        log.warning(message, ", ".join(map(repr, names[:3])) + more)


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


# The head -----------------------------------------------------------------------------------


def head_splitter(model: nn.Module) -> list[list[nn.Parameter]]:
    """Split the parameters of a model into body and head: a ``splitter`` of `Learner`.

    The head is what the model itself names, by ``get_classifier()`` as timm's do, or all besides
    its ``base_model``, as in transformers. Else it is the last part of the model, if that is called
    ``fc``, ``classifier``, ``head`` or ``heads``, as in torchvision, with auxiliary heads; or the
    last part that has parameters of an ``nn.Sequential``.

    Args:
        model: The model; one within another, such as a wrapper's, is looked into.

    Returns:
        The parameters of the body, and those of the head.

    Raises:
        ValueError: If it cannot tell which part is the head, or one of the two has no parameters.

    Example:
        >>> from torchvision.models import resnet18
        >>> body, head = head_splitter(resnet18(num_classes=5))
        >>> len(body), [tuple(p.shape) for p in head]
        (60, [(5, 512), (5,)])
    """
    check_is("model", model, nn.Module)
    in_head = {id(module) for part in _head_parts(model) for module in part.modules()}
    # What both use, such as embeddings, is the body's.
    in_body = {
        id(p)
        for module in model.modules()
        if id(module) not in in_head
        for p in module.parameters(recurse=False)
    }
    parameters = list(model.parameters())
    groups = [[p for p in parameters if (id(p) in in_body) is body] for body in (True, False)]
    if not all(groups):
        raise ValueError(
            f"{type(model).__name__} has no {'head' if groups[0] else 'body'} with parameters of "
            f"its own, as far as head_splitter can tell; {_INSTEAD}"
        )
    return groups


_INSTEAD = (
    "give splitter= a function of the model that returns two lists of its parameters, such as "
    "lambda model: [model.body.parameters(), model.head.parameters()]"
)


def _head_parts(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model's head; none where nothing says which they are."""
    children = {n: part for n, part in model.named_children() if [*part.parameters()]}
    classifier, base = getattr(model, "get_classifier", None), getattr(model, "base_model", None)
    if callable(classifier):
        found = classifier()
        return [*found] if isinstance(found, tuple | list) else [found]
    if len(children) == 1 and not [*model.parameters(recurse=False)]:
        return _head_parts(*children.values())
    if isinstance(base, nn.Module) and base is not model:
        return [part for part in children.values() if part is not base]
    further = [children.pop(name) for name in _AUXILIARY if name in children]
    last = next(reversed(children), "")
    is_known = last in _HEADS or isinstance(model, nn.Sequential)
    return [children[last], *further] if last and is_known else []
