"""Optimizers that wrap another one, such as Lookahead and SAM, and share its groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from onecycle.optim.several import Optimizers


def with_inner(opt: Optimizer) -> list[Any]:
    """Return an optimizer and all that it holds in its fields, and they in theirs.

    Args:
        opt: The optimizer.

    Example:
        >>> import torch
        >>> class Wrapper(torch.optim.Optimizer):
        ...     def __init__(self, inner):
        ...         self.inner, self.param_groups = inner, inner.param_groups
        >>> inner = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
        >>> wrapper = Wrapper(inner)
        >>> with_inner(wrapper) == [wrapper, inner]
        True
    """
    found: list[Any] = []
    waiting: list[Any] = [opt]
    while waiting:
        holder = waiting.pop(0)
        if not any(holder is other for other in found):
            found.append(holder)
            waiting += [opt for value in vars(holder).values() for opt in _optimizers(value)]
    return found


def _optimizers(value: Any) -> list[Optimizer]:
    """Return what a field holds of optimizers: itself, or those in a list or dict."""
    parts = [*value.values()] if isinstance(value, dict) else value
    parts = parts if isinstance(parts, list | tuple) else [parts]
    return [part for part in parts if isinstance(part, Optimizer)]


def add_group(opt: Optimizer, group: dict[str, Any]) -> None:
    """Add a group to an optimizer, and to those in it that share its groups.

    A wrapper knows only of its own list: the inner optimizer, which makes the updates, would
    never step the new group.

    Args:
        opt: The optimizer.
        group: With its parameters and all hyperparameters.
    """
    known = {id(own) for own in opt.param_groups}
    several = [each for each in with_inner(opt) if isinstance(each, Optimizers)]
    members = [id(inner) for each in several for inner in with_inner(each)[1:]]
    sharing = [
        inner
        for inner in with_inner(opt)[1:]
        if any(id(own) in known for own in inner.param_groups) and id(inner) not in members
    ]
    opt.add_param_group(group)
    for inner in sharing:
        if not any(own is opt.param_groups[-1] for own in inner.param_groups):
            inner.param_groups.append(opt.param_groups[-1])
    for each in several:
        each.hand_out()


@contextmanager
def same_groups(opt: Optimizer) -> Iterator[None]:
    """Run a block that loads an optimizer's state, and keep its groups the same objects.

    ``load_state_dict`` makes a new list of new dicts. Schedules and the record hold the old ones,
    and so does an optimizer that wraps another or is wrapped: it would step at the rate of the
    file, whatever is scheduled. A state that several of them share, they share afterwards.

    Args:
        opt: The optimizer; those in it are looked after too.

    Raises:
        ValueError: If the block has changed the number of groups.
    """
    # One whose groups are a property is looked after where that leads to.
    fields: list[dict[str, Any]] = [holder.__dict__ for holder in with_inner(opt)]
    holders = [holder for holder in fields if "param_groups" in holder]
    before = [(h, h["param_groups"], list(h["param_groups"]), h.get("state")) for h in holders]
    yield
    for holder, groups, dicts, state in before:
        for own, loaded in zip(dicts, holder["param_groups"], strict=True):
            if own is not loaded:
                own.clear()
                own.update(loaded)
        holder["param_groups"] = groups
        sharing = [other for other, *_, shared in before if shared is state]
        loaded_states = [h["state"] for h in sharing if h.get("state") is not state]
        for other in sharing if loaded_states else ():
            other["state"] = loaded_states[-1]
    for _, groups, dicts, _ in before:
        groups[:] = dicts
