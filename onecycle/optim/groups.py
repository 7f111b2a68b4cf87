"""Hyperparameters by name over parameter groups: what an optimizer has, and can cycle.

Two kinds of groups meet here. The *splitter's groups* are what a person means: body and head,
say. The optimizer's own ``param_groups`` are finer where weight decay is not 0, since norms and
biases then stand in groups of their own without it. Everything public speaks of the splitter's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isclose
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from onecycle.arguments import NO_RATE, shown
from onecycle.optim.late_state import fill_late_state
from onecycle.optim.members import Members, spared_members
from onecycle.optim.wrapped import add_group

log = logging.getLogger("onecycle")

#: One number, one for each group, or ``slice(lo, hi)``: geometric steps from lo to hi.
GroupValues = float | Sequence[float] | slice

#: What to do where one group is too few.
MORE_GROUPS = (
    "make the Learner with splitter=, a function of the model that returns the parameters of body "
    "and head, such as onecycle.head_splitter (also with opt=: of its groups, those that differ in "
    "weight decay alone are one)"
)

_BELOW_ONE = ("momentum", "beta1", "beta2", "beta3")
_NO_MOMENTUM = "Adagrad, Adadelta, ASGD, Rprop and Adafactor have no momentum"


@dataclass(frozen=True)
class Slot:
    """Where one hyperparameter of one of the optimizer's ``param_groups`` is kept.

    Attributes:
        group: The optimizer's own dict.
        key: The key in it.
        index: The place within a tuple such as Adam's ``betas``; ``None`` for a plain value.
    """

    group: dict[str, Any] = field(repr=False)  # it holds the parameters
    key: str
    index: int | None = None

    def get(self) -> float:
        """Return the value in force."""
        value = self.group[self.key]
        return float(value if self.index is None else value[self.index])

    def set(self, value: float) -> None:
        """Put a value in force; a tensor is filled in place, so that others see it too."""
        old = self.group[self.key]
        if self.index is not None:
            if isinstance(old[self.index], Tensor):
                old[self.index].fill_(value)
            else:
                self.group[self.key] = (*old[: self.index], value, *old[self.index + 1 :])
        elif isinstance(old, Tensor):
            old.fill_(value)
        else:
            self.group[self.key] = value


@dataclass(frozen=True)
class ScaledSlot(Slot):
    """Where a rate is kept that is a multiple of the one that is set.

    Attributes:
        scale: The multiple; at least 0.
    """

    scale: float = 1.0

    def get(self) -> float:
        """Return the value that was set; 0 where the scale is 0."""
        return super().get() / self.scale if self.scale else 0.0

    def set(self, value: float) -> None:
        """Put a multiple of a value in force."""
        super().set(value * self.scale)


def _slot(group: dict[str, Any], name: str) -> Slot | None:
    """Find a hyperparameter by the name people use for it, or ``None``."""
    betas = group.get("betas")
    if name == "momentum" and "momentum" not in group and betas is not None:
        return Slot(group, "betas", 0)
    if betas is not None and name in ("beta1", "beta2", "beta3") and int(name[-1]) <= len(betas):
        return Slot(group, "betas", int(name[-1]) - 1)
    value = group.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Slot(group, name) if is_number or isinstance(value, Tensor) else None


class ParamGroups:
    """An optimizer's hyperparameters by name, one value for each of the splitter's groups.

    ``"momentum"`` means what the optimizer has: ``momentum`` of SGD, RMSprop and Muon, ``beta1``
    of the Adam family. Other names are those of the optimizer: ``"lr"``, ``"weight_decay"``,
    ``"eps"``, ``"beta2"``.

    A number ``lr_scale`` in one of the ``param_groups`` makes its rate that multiple of its
    group's, as timm's layer decay has it. Where several of them are one of the splitter's groups,
    and their rates differ without it, they keep their ratios to the first one's.

    What is added by ``opt.add_param_group`` later joins the last group, with a rate in the ratio
    to that group's in which it was added.

    Attributes:
        frozen: The parameters that `Learner.freeze_to` froze; others that take no gradient were
            frozen by hand.

    Args:
        opt: The optimizer.
        exempt: The ids of parameters that must not decay. Where a group decays, they are moved
            into one of their own beside it, at once or when it begins to decay.
        members: Which of the optimizer's ``param_groups`` are in each of the splitter's; by
            default each is one.

    Raises:
        ValueError: If rates within one of the splitter's groups have no ratio, since the first
            of them is 0.

    Example:
        >>> import torch
        >>> body, head = torch.zeros(3, requires_grad=True), torch.zeros(1, requires_grad=True)
        >>> opt = torch.optim.Adam([{"params": [body]}, {"params": [head]}], lr=1e-3)
        >>> groups = ParamGroups(opt)
        >>> groups.set("lr", slice(1e-4, 1e-2))
        >>> groups.get("lr"), groups.get("momentum")
        ([0.0001, 0.01], [0.9, 0.9])
    """

    def __init__(
        self, opt: Optimizer, exempt: Container[int] = (), members: Members | None = None
    ) -> None:
        self.opt = opt
        self.frozen: set[nn.Parameter] = set()
        self._members = [[i] for i in range(len(opt.param_groups))] if members is None else members
        # Themselves and not their ids: those of a copy are others.
        every = [p for group in opt.param_groups for p in group["params"]]
        self._exempt = [p for p in every if id(p) in exempt]
        self._spared = spared_members(opt, self._members)
        self._ratios: dict[int, float] = {}
        self._lent: dict[str, tuple[list[float], list[float]]] = {}
        for member in self._members:
            self._keep_ratios(member)
        self.separate_decay()

    def __len__(self) -> int:
        """Return the number of the splitter's groups."""
        return len(self._members)

    def __repr__(self) -> str:
        """Show the rates in force, one for each group, and of what."""
        rates = ", ".join(f"{rate:.4g}" for rate in self.in_force("lr"))
        return f"ParamGroups({type(self.opt).__name__}, lr=[{rates}])"

    @property
    def members(self) -> Members:
        """Which of the optimizer's ``param_groups`` are in each of the splitter's."""
        known = sum(map(len, self._members))
        for i in range(known, len(self.opt.param_groups)):
            self._join_last(i)
        return self._members

    def _join_last(self, i: int) -> None:
        groups, last = self.opt.param_groups, self._members[-1]
        rate, own = float(groups[last[0]]["lr"]), float(groups[i]["lr"])
        if rate and own != rate:
            self._ratios[i] = own / rate * self._scale(last[0])
        last.append(i)
        log.warning(
            "a parameter group was added to the optimizer: it is part of group %d from now on, "
            "with %.4g times its rate (for a group of its own, make the Learner with all of them, "
            "freeze those that must wait, and thaw them in a callback)",
            len(self) - 1,
            self._scale(i),
        )

    def _keep_ratios(self, member: list[int]) -> None:
        """Let rates that differ within a group keep the ratios that they have."""
        groups = self.opt.param_groups
        rates = {i: float(groups[i]["lr"]) for i in member if "lr_scale" not in groups[i]}
        first = next(iter(rates.values()), 0.0)
        for i, rate in rates.items():
            if rate != first:
                if not first:
                    raise ValueError(
                        f"the rates {listed([*rates.values()])} in one of the splitter's groups "
                        "have no ratio to the first: give the optimizer rates above 0"
                    )
                self._ratios[i] = rate / first

    def _scale(self, i: int) -> float:
        return float(self.opt.param_groups[i].get("lr_scale", self._ratios.get(i, 1.0)))

    def own_rates(self) -> list[float]:
        """Return the rate of each group that the optimizer has, for what it is to be set to.

        Those of timm have not been multiplied by ``lr_scale`` yet, those of an optimizer that was
        in use have.
        """
        groups = self.opt.param_groups
        scales = [float(group.get("lr_scale", 1.0)) for group in groups]
        raw = [float(group["lr"]) for group in groups]
        base = [rate / scale if scale else rate for rate, scale in zip(raw, scales, strict=True)]
        is_new, is_used = (all(isclose(r, each[0]) for r in each) for each in (raw, base))
        if set(scales) != {1.0} and is_new == is_used:
            log.warning(
                "the groups of opt= have lr_scale, and their rates (%s) are taken as they are "
                "before it is applied: give lr= to set them",
                listed(raw),
            )
        rates = base if is_used and not is_new else raw
        return [rates[member[0]] for member in self.members]

    def names(self) -> list[str]:
        """List the hyperparameters that every group has as a number."""
        first = self.opt.param_groups[0]
        betas = [f"beta{i + 1}" for i in range(len(first.get("betas", ())))]
        names = [
            key
            for key in (*first, *betas)
            if key not in ("params", "lr_scale") and self._everywhere(key)
        ]
        if self.has_momentum() and "momentum" not in names:
            names.append("momentum")
        return names

    def canonical(self, name: str) -> str:
        """Return the one name of a hyperparameter that has two: Adam's beta1 is its momentum."""
        is_momentum = name == "beta1" and "momentum" not in self.opt.param_groups[0]
        return "momentum" if is_momentum else name

    def slots(self, name: str, group: int) -> list[Slot]:
        """Return where a hyperparameter of one group is kept: one place, or more.

        A group without weight decay because it holds norms and biases is no place for
        ``"weight_decay"``.

        Raises:
            ValueError: If the optimizer has no such hyperparameter.
        """
        found = []
        for i in self.members[group]:
            param_group = self.opt.param_groups[i]
            slot = _slot(param_group, name)
            if slot is None:
                raise ValueError(
                    f"{type(self.opt).__name__} has no hyperparameter {name!r}; "
                    f"it has {', '.join(self.names())}"
                    + (f" ({_NO_MOMENTUM})" if name == "momentum" else "")
                )
            if name == "lr" and (scale := self._scale(i)) != 1.0:
                slot = ScaledSlot(slot.group, slot.key, slot.index, scale)
            if not (name == "weight_decay" and self._is_spared(i)):
                found.append(slot)
        return found

    def _is_spared(self, i: int) -> bool:
        return i in self._spared or bool(self.opt.param_groups[i].get("no_decay"))

    def get(self, name: str) -> list[float]:
        """Return a hyperparameter's value in each group, as it was set; 0 where no place decays."""
        slots = [self.slots(name, g) for g in range(len(self))]
        return [places[0].get() if places else 0.0 for places in slots]

    def shown(self, name: str, group: int) -> Slot:
        """Return where a rate or momentum of one group is read as the optimizer has it.

        That is the first place where it is kept, with an ``lr_scale`` applied.
        """
        slot = self.slots(name, group)[0]
        return Slot(slot.group, slot.key, slot.index)

    def in_force(self, name: str) -> list[float]:
        """Return a rate or momentum of each group as the optimizer has it."""
        return [self.shown(name, g).get() for g in range(len(self))]

    def set(self, name: str, values: GroupValues) -> None:
        """Set a hyperparameter in every group.

        Args:
            name: As in `names`.
            values: One number for all, a sequence with one for each group, or a slice.

        Raises:
            ValueError: If the number of values is not that of the groups, or one is not allowed.
        """
        for g, value in enumerate(self.expand(name, values)):
            for slot in self.slots(name, g):
                slot.set(value)
        if name == "weight_decay":
            self.separate_decay()
        elif name == "momentum":
            fill_late_state(self.opt)

    @contextmanager
    def lent(self, name: str) -> Iterator[None]:
        """Run a fit that may change a hyperparameter: the next fit begins as this one did.

        What is set by hand between two fits is kept.
        """
        if name not in self.names():
            yield
            return
        self.put_back(name)
        began = self.get(name)
        try:
            yield
        finally:
            self._lent[name] = began, self.get(name)

    def put_back(self, name: str) -> None:
        """Set a hyperparameter to what it was before the fit that has left it as it is now."""
        if name in self._lent:
            began, left = self._lent[name]
            if left == self.get(name) != began:
                self.set(name, began)

    def make_ready(self, names: Iterable[str]) -> None:
        """Make room for what schedules will set.

        Args:
            names: The hyperparameters.
        """
        if "weight_decay" in names:
            self.separate_decay(everywhere=True)
        fill_late_state(self.opt, *names)

    def separate_decay(self, *, everywhere: bool = False) -> None:
        """Move what must not decay out of every group that does.

        Only there, since a second group costs time in every update.

        Args:
            everywhere: Also out of groups that do not decay yet, but may.
        """
        exempt = set(map(id, self._exempt))
        for member in self.members:
            for i in tuple(member):
                group = self.opt.param_groups[i]
                without = [p for p in group["params"] if id(p) in exempt]
                may_decay = "weight_decay" in group and (everywhere or group["weight_decay"])
                if self._is_spared(i) or not without or not may_decay:
                    continue
                spared = {"weight_decay": 0.0, "no_decay": True}
                if len(without) == len(group["params"]):
                    group |= spared
                    continue
                group["params"] = [p for p in group["params"] if id(p) not in exempt]
                member.append(len(self.opt.param_groups))  # known, before it is there
                self._ratios |= {member[-1]: self._ratios[i]} if i in self._ratios else {}
                add_group(self.opt, {**group, **spared, "params": without})

    def divided(self, *, finely: bool = False) -> list[list[nn.Parameter]]:
        """Return what each of the optimizer's own groups holds.

        Args:
            finely: As `separate_decay` everywhere would leave them, in another order.
        """
        groups = [list(group["params"]) for group in self.opt.param_groups]
        if not finely:
            return groups
        exempt = set(map(id, self._exempt))
        for i in [i for member in self.members for i in member]:
            if "weight_decay" in self.opt.param_groups[i] and not self._is_spared(i):
                without = [p for p in groups[i] if id(p) in exempt]
                if 0 < len(without) < len(groups[i]):
                    groups[i] = [p for p in groups[i] if id(p) not in exempt]
                    groups.append(without)
        return groups

    def has_momentum(self) -> bool:
        """Tell whether the optimizer has momentum, or beta1, at all."""
        return self._everywhere("momentum")

    def _everywhere(self, name: str) -> bool:
        """Tell whether each group has a hyperparameter, of whichever optimizer it is."""
        return all(_slot(group, name) is not None for group in self.opt.param_groups)

    def momentum_is_on(self) -> bool:
        """Tell whether the optimizer has momentum and it is above 0 in every group."""
        return self.has_momentum() and min(self.get("momentum")) > 0

    def expand(self, name: str, values: GroupValues) -> list[float]:
        """Give one value for each group.

        ``slice(lo, hi)`` becomes geometric steps from lo (first group) to hi (last group), of which
        there must be two or more; ``slice(hi)`` becomes hi for the last group and hi / 10 for the
        others (fastai's meaning).

        Raises:
            TypeError: If a value is no number.
            ValueError: If the count is wrong, or a value is negative or not finite.
        """
        n = len(self)
        if isinstance(values, slice):
            values = _steps(name, values, n)
        elif isinstance(values, str | bytes) or not (
            isinstance(values, Sequence) or bool(getattr(values, "ndim", False))
        ):
            values = [values] * n  # type: ignore[list-item]
        result = [check_value(name, value) for value in cast("Sequence[float]", values)]
        if len(result) != n:
            raise ValueError(
                f"expected one {name}, or {n} of them, one for each parameter group; "
                f"got {len(result)}: {result}\n{self.table()}"
            )
        return result

    def table(self) -> str:
        """Return a readable table of the groups: tensors, parameters, lr, decay, trainable."""
        decay = self.get("weight_decay") if "weight_decay" in self.names() else [0.0] * len(self)
        lines = ["group  tensors  parameters  trainable          lr  weight_decay"]
        for g, lr in enumerate(self.in_force("lr")):
            params = self.params(g)
            trainable = sum(p.numel() for p in params if p.requires_grad)
            lines.append(
                f"{g:>5}  {len(params):>7}  {sum(p.numel() for p in params):>10,}"
                f"  {trainable:>9,}  {lr:>10.4g}  {decay[g]:>12.4g}"
            )
        return "\n".join(lines)

    def params(self, group: int) -> list[nn.Parameter]:
        """Return the parameters of one of the splitter's groups."""
        return [p for i in self.members[group] for p in self.opt.param_groups[i]["params"]]


def listed(values: Sequence[float]) -> str:
    """Write the values of the groups one after another, for messages.

    Example:
        >>> listed([0.1, 1 / 3])
        '0.1, 0.3333'
    """
    return ", ".join(f"{value:.4g}" for value in values)


def check_value(name: str, value: Any) -> float:
    """Return a hyperparameter as a float, or refuse it.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative or not finite, or a momentum or beta of 1 or more.
    """
    try:
        value = getattr(value, "item", lambda: value)()  # NumPy and torch scalars
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
    except (ValueError, RuntimeError):
        is_number = False
    if not is_number:
        hint = f": {NO_RATE}" if value is None and "lr" in name.split("_") else ""
        raise TypeError(f"{name} must be a number, or one for each group; got {shown(value)}{hint}")
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be finite and not negative; got {shown(value)}")
    if name in _BELOW_ONE and value >= 1:
        raise ValueError(f"{name} must be below 1; got {value!r}")
    return float(value)


def _steps(name: str, values: slice, n: int) -> list[float]:
    if values.stop is None or values.step is not None:
        hint = f": {NO_RATE}" if values.stop is None else ""
        raise ValueError(f"expected slice(hi) or slice(lo, hi) as {name}; got {values!r}{hint}")
    hi = check_value("the end of the slice", values.stop)
    if values.start is None:
        return [hi / 10] * (n - 1) + [hi]
    lo = check_value("the start of the slice", values.start)
    if lo == 0 or hi == 0:
        raise ValueError(f"the steps of a slice are geometric: both ends must be above 0: {values}")
    if n == 1:
        raise ValueError(
            f"slice({lo:g}, {hi:g}) spreads values over parameter groups, and there is one: give "
            f"one number, or {MORE_GROUPS}"
        )
    return [lo * (hi / lo) ** (g / (n - 1)) for g in range(n - 1)] + [hi]
