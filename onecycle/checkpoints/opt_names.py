"""Optimizers whose parameters have names, and how their groups are matched by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from onecycle.checkpoints.description import name_of
from onecycle.optim.loss_module import LOSS
from onecycle.optim.several import each_of

if TYPE_CHECKING:
    from onecycle.core.state import LoopState
    from onecycle.optim.groups import ParamGroups


def parameter_names(learn: LoopState) -> dict[int, str]:
    """Name every parameter of the model, the loss function and the optimizer.

    Args:
        learn: The learner.

    Returns:
        Names by the id of the parameter: as ``model.named_parameters()`` has them; with
        ``loss_func.`` before, those of a loss module; by position, as in ``opt.0.3``, what the
        optimizer holds besides. Of several names of a shared weight it is the first in the
        alphabet, whatever the order of the layers.
    """
    named: dict[int, str] = {}
    for prefix, module in (("", learn.model), (LOSS, learn.loss_module)):
        if module is not None:
            own = dict(module.named_parameters(remove_duplicate=False))
            for name in sorted(own):
                named.setdefault(id(own[name]), prefix + name)
    groups = [learn.groups.params(g) for g in range(len(learn.groups))]
    named.update(_by_position("opt", groups, named))
    twice = [name for name, n in Counter(named.values()).items() if n > 1]
    if twice:
        raise ValueError(
            f"two parameters would have the name {twice[0]!r} in a file: give the part of the "
            "model that is called so another name"
        )
    return named


def opt_name(opt: Optimizer) -> str:
    """Name the class of an optimizer, or of each of several.

    Args:
        opt: The optimizer.
    """
    return " and ".join(name_of(type(each)) for each in each_of(opt))


def _by_position(
    prefix: str, groups: Sequence[Sequence[Tensor]], named: Mapping[int, str]
) -> dict[int, str]:
    found = {}
    for g, params in enumerate(groups):
        others = [p for p in params if id(p) not in named]
        found.update({id(p): f"{prefix}.{g}.{i}" for i, p in enumerate(others)})
    return found


@dataclass(frozen=True)
class NamedOptimizer:
    """An optimizer, and the names of what it trains.

    Attributes:
        opt: The optimizer.
        names: Names by the id of the parameter.
        elsewhere: The ids of the parameters whose values are saved with a module.
        groups: Those of the learner, whose groups weight decay may have divided.
    """

    opt: Optimizer
    names: Mapping[int, str]
    elsewhere: frozenset[int]
    groups: ParamGroups | None = None

    def held(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {self.names[id(p)]: p for group in self.opt.param_groups for p in group["params"]}

    def beside(self) -> list[str]:
        """List the parameters that are saved with no module."""
        return [name for name, p in self.held().items() if id(p) not in self.elsewhere]

    def group_names(self) -> list[list[str]]:
        """Return the names in each of the ``param_groups``."""
        return [[self.names[id(p)] for p in group["params"]] for group in self.opt.param_groups]

    def order(self, theirs: Iterable[Iterable[str]]) -> list[int] | None:
        """Match groups by what they hold.

        Returns:
            For each of the optimizer's groups the index of the other's; ``None`` where they
            differ. Groups that `ParamGroups.separate_decay` would make count as made.
        """
        sets = [frozenset(names) for names in theirs]
        for own in self._divisions():
            if Counter(own) == Counter(sets):
                left = list(enumerate(sets))
                return [left.pop([part for _, part in left].index(part))[0] for part in own]
        return None

    def _divisions(self) -> Iterator[list[frozenset[str]]]:
        if self.groups is None:
            yield [frozenset(names) for names in self.group_names()]
            return
        for divided in (self.groups.divided(), self.groups.divided(finely=True)):
            yield [frozenset(self.names[id(p)] for p in params) for params in divided]

    def inner(self) -> dict[str, NamedOptimizer]:
        """Return the optimizers in the fields of this one, by path, as in ``"base.inner"``."""
        found: dict[str, NamedOptimizer] = {}
        for path, opt in optimizers_within(self.opt).items():
            groups = [group["params"] for group in opt.param_groups]
            names = {**self.names, **_by_position(f"opt.{path}", groups, self.names)}
            found[path] = NamedOptimizer(opt, names, self.elsewhere)
        return found


def named_optimizer(learn: LoopState) -> NamedOptimizer:
    """Return the optimizer of a learner with the names of its parameters."""
    own = frozenset(id(p) for p in learn.model.parameters())
    return NamedOptimizer(learn.opt, parameter_names(learn), own, learn.groups)


def named_other(opt: Optimizer, path: str, named: Mapping[int, str]) -> NamedOptimizer:
    """Return another optimizer with names.

    Args:
        opt: The optimizer.
        path: What it is called: parameters that have no name yet are named after it.
        named: The names of those whose values are saved with a module.
    """
    groups = [group["params"] for group in opt.param_groups]
    names = {**named, **_by_position(path, groups, named)}
    return NamedOptimizer(opt, names, frozenset(named))


def optimizers_within(opt: Optimizer) -> dict[str, Optimizer]:
    """Return the optimizers that one holds in its fields, also in lists, and they in theirs.

    Args:
        opt: The optimizer.

    Returns:
        Each of them once, by its path.
    """
    found: dict[str, Optimizer] = {}
    waiting: list[tuple[str, Any]] = list(vars(opt).items())
    while waiting:
        path, value = waiting.pop(0)
        if isinstance(value, Optimizer):
            if value is not opt and all(value is not other for other in found.values()):
                found[path] = value
                waiting += [(f"{path}.{name}", part) for name, part in vars(value).items()]
        elif isinstance(value, list | tuple) and any(isinstance(v, Optimizer) for v in value):
            waiting += [(f"{path}.{i}", part) for i, part in enumerate(value)]
        elif type(value) is dict and any(isinstance(v, Optimizer) for v in value.values()):
            waiting += [(f"{path}.{name}", part) for name, part in value.items()]
    return found


def packed_groups(opt: Optimizer, whole: Any) -> list[dict[str, Any]] | None:
    """Return the groups of a ``state_dict`` of torch's form; ``None`` for another form."""
    if not isinstance(whole, dict) or not isinstance(whole.get("state"), dict):
        return None
    groups = whole.get("param_groups")
    sizes = [len(group["params"]) for group in opt.param_groups]
    if not isinstance(groups, list) or [len(group.get("params", ())) for group in groups] != sizes:
        return None
    return groups
