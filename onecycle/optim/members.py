"""Which of an optimizer's ``param_groups`` belong to which of the groups that a person means."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

from torch import nn
from torch.optim import Optimizer

from onecycle.optim.several import OWNER, each_of

#: For each of the splitter's groups the indices of the optimizer's ``param_groups`` in it.
Members = list[list[int]]


def members_of_split(opt: Optimizer, groups: Sequence[Collection[nn.Parameter]]) -> Members:
    """Find each of the splitter's groups among those of an optimizer.

    Args:
        opt: The optimizer.
        groups: The parameters of each of the splitter's groups.

    Raises:
        ValueError: If one of the optimizer's groups lies in several of the splitter's, or in none,
            or one of the splitter's has no parameter in the optimizer.

    Example:
        >>> import torch
        >>> body, head = nn.Linear(2, 2), nn.Linear(2, 1)
        >>> opt = torch.optim.SGD(
        ...     [{"params": [layer.weight]} for layer in (body, head)]
        ...     + [{"params": [layer.bias]} for layer in (body, head)]
        ... )
        >>> members_of_split(opt, [[*body.parameters()], [*head.parameters()]])
        [[0, 2], [1, 3]]
    """
    owner = {id(p): g for g, group in enumerate(groups) for p in group}
    members: Members = [[] for _ in groups]
    for i, param_group in enumerate(opt.param_groups):
        found = {owner.get(id(p)) for p in param_group["params"]}
        if not found:  # it may be filled later
            members[-1].append(i)
        elif len(found) == 1 and None not in found:
            members[found.pop() or 0].append(i)
        else:
            of = ", ".join("none" if g is None else str(g) for g in sorted(found, key=str))
            raise ValueError(
                f"the optimizer's group {i} holds parameters of the splitter's groups {of}, and "
                "has one rate for all: make its groups such that each lies in one of the "
                "splitter's, as with {'params': ...} for the weights and one for the biases of "
                "each; or leave opt= out, and give opt_func=, wd= and splitter="
            )
    empty = [g for g, member in enumerate(members) if not member]
    if empty:
        raise ValueError(
            f"the optimizer holds no parameter of the splitter's group {empty[0]}: give it all "
            "that splitter returns, and freeze those that must not train"
        )
    return members


def members_by_decay(opt: Optimizer, model: nn.Module) -> Members:
    """Take the groups of an optimizer for those that a person means, save those made for decay.

    Groups that agree in all hyperparameters but weight decay are one. Where they agree in that
    too, they are one if they cannot be body and head, as each has parameters of the model before
    some of the other's: weights and biases of all layers, with a weight decay of 0.

    Args:
        opt: The optimizer.
        model: The model.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> weights, biases = ([p for p in model.parameters() if p.ndim == n] for n in (2, 1))
        >>> groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
        >>> members_by_decay(torch.optim.AdamW(groups), model)
        [[0, 1]]
        >>> groups = [{"params": [*layer.parameters()]} for layer in model]
        >>> members_by_decay(torch.optim.AdamW(groups), model)
        [[0], [1]]
    """
    position = {id(p): i for i, p in enumerate(model.parameters())}
    alike: Members = []
    for i, group in enumerate(opt.param_groups):
        same = [m for m in alike if _differ_in_decay_alone(opt, opt.param_groups[m[0]], group)]
        if same:
            same[0].append(i)
        else:
            alike.append([i])
    members: Members = []
    for each in alike:
        groups = [opt.param_groups[i] for i in each]
        decays = {float(group.get("weight_decay", 0.0)) for group in groups}
        spans = [[position[id(p)] for p in g["params"] if id(p) in position] for g in groups]
        members += [each] if len(decays) > 1 or _interleave(spans) else [[i] for i in each]
    return sorted(members)


def _differ_in_decay_alone(opt: Optimizer, one: dict[str, Any], other: dict[str, Any]) -> bool:
    options = (key for each in each_of(opt) for key in each.defaults)
    names = {*options, "lr_scale", OWNER} - {"weight_decay"}
    return all(_plain(one.get(name)) == _plain(other.get(name)) for name in names)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _interleave(spans: Sequence[Sequence[int]]) -> bool:
    """Tell whether some of these lists of positions overlap, from their first to their last."""
    ends = sorted((min(span), max(span)) for span in spans if span)
    return any(after[0] < before[1] for before, after in pairwise(ends))


def spared_members(opt: Optimizer, members: Members) -> set[int]:
    """Return those of the optimizer's groups that do not decay, beside some that do.

    Args:
        opt: The optimizer.
        members: Which belong together.
    """
    decays = [float(group.get("weight_decay", 0.0)) for group in opt.param_groups]
    return {i for each in members if any(decays[j] for j in each) for i in each if not decays[i]}
