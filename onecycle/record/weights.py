"""What the loss of a batch counts, where several are averaged: samples, tokens, or nothing."""

from __future__ import annotations

import inspect
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from numbers import Real
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle.data.nested import map_tensors, split_batch
from onecycle.data.sizes import TARGET_NAMES

log = logging.getLogger("onecycle")

#: How much a batch counts: a number, or a 0-dim tensor on the device, which is not read.
Weight = float | Tensor

#: Losses that are means over the targets that are not ``ignore_index``.
_MEANS_OF_VALID = (
    F.cross_entropy,
    F.nll_loss,
    nn.CrossEntropyLoss.forward,
    nn.NLLLoss.forward,
)

#: What a loss function may use and not change.
_UNCHANGED = (BuiltinFunctionType, FunctionType, ModuleType, type, Tensor, Real, str, torch.dtype)


class TokenWeight:
    """Counts the valid targets of a batch: see `token_weight`."""

    def __init__(
        self,
        ignore_index: int = -100,
        class_weight: Tensor | None = None,
        *,
        target: int | str | None = None,
        shift: bool = False,
    ) -> None:
        self.ignore_index, self.class_weight = ignore_index, class_weight
        self.target, self.shift = target, shift

    def __call__(self, pred: Any, batch: Any) -> Tensor:
        """Return the number of valid targets, or the sum of their class weights."""
        target = self._target_in(batch)
        if not isinstance(target, Tensor) or target.is_floating_point():
            came = target.dtype if isinstance(target, Tensor) else type(target).__name__
            raise TypeError(
                f"token_weight counts the class indices in one tensor of targets; got {came}: "
                "say where they are in the batch with token_weight(target=...)"
            )
        return self.count(target[..., 1:] if self.shift else target)

    def count(self, target: Tensor) -> Tensor:
        """Return the same of a tensor of class indices, without waiting for the device."""
        valid = target != self.ignore_index
        if self.class_weight is None:
            return valid.sum()
        if self.class_weight.device != target.device:
            self.class_weight = self.class_weight.to(target.device)
        return (self.class_weight[target.where(valid, 0)] * valid).sum()

    def _target_in(self, batch: Any) -> Any:
        if self.target is not None:
            has_items = isinstance(batch, Mapping | tuple | list)
            return batch[self.target] if has_items else getattr(batch, str(self.target))
        if type(batch) in (tuple, list):
            if len(batch) <= 2:
                return split_batch(batch)[1]
        else:
            for name in TARGET_NAMES:
                if isinstance(batch, Mapping) and name in batch:
                    return batch[name]
                if not isinstance(batch, Mapping) and hasattr(batch, name):
                    return getattr(batch, name)
        raise ValueError(
            f"token_weight cannot tell which part of a {type(batch).__name__} has the targets: say "
            "so with token_weight(target=...), a position or a name"
        )


def token_weight(
    ignore_index: int = -100,
    class_weight: Tensor | None = None,
    *,
    target: int | str | None = None,
    shift: bool = False,
) -> TokenWeight:
    """Make the weight of a loss that is a mean over valid targets: tokens, pixels, labels.

    Given to a learner as ``loss_weight=``, it lets each valid target count the same, in whichever
    batch it is: accumulated batches make the update of one large batch, and the validation loss is
    the loss per token. For ``nn.CrossEntropyLoss`` and ``nn.NLLLoss`` and their functions it is in
    force by itself; give it for a loss of one's own that is such a mean, or to have metrics that
    are functions weighted likewise.

    Args:
        ignore_index: Targets of this value do not count.
        class_weight: The weight of each class, shape ``(classes,)``, where the loss has one: its
            mean is over the weights of the targets.
        target: Where in the batch the class indices are, as a position or a name: by default the
            second of two parts, or ``labels``, ``label``, ``targets``, ``target``, ``y``.
        shift: Leave out the first target of each sequence, the last dimension, as language models
            do which are given their own input as labels.

    Returns:
        A function ``(pred, batch) -> 0-dim tensor``.

    Example:
        >>> weight = token_weight()
        >>> weight(None, (torch.zeros(2, 3), torch.tensor([[4, 1, -100], [2, -100, -100]])))
        tensor(3)
        >>> rare = token_weight(class_weight=torch.tensor([1.0, 10.0]))
        >>> rare(None, {"x": None, "labels": torch.tensor([0, 1, 1, -100])})
        tensor(21.)
    """
    return TokenWeight(ignore_index, class_weight, target=target, shift=shift)


class LossWeights:
    """Tells how much the loss of a batch counts, where that is not its number of samples.

    Args:
        given: ``(pred, batch) -> weight``, which decides alone; ``None`` to see what the loss
            function averages over.

    Attributes:
        given: The same.
    """

    def __init__(self, given: Callable[[Any, Any], Weight] | None = None) -> None:
        self.given = given
        self._loss_func: object = None
        self._valid: TokenWeight | None = None
        self._was_told = False

    def __call__(
        self, loss_func: object, pred: Any, batch: Any, n_inp: int | None
    ) -> Weight | None:
        """Return the weight of a batch; ``None`` for its number of samples.

        Args:
            loss_func: The loss function.
            pred: What the model says of the batch.
            batch: The whole batch.
            n_inp: As for a learner.
        """
        if self.given is not None:
            return self.given(pred, batch)
        if loss_func is not self._loss_func:  # asked once for each
            self._loss_func, self._valid = loss_func, valid_targets(loss_func)
        if self._valid is None:
            return None
        target = split_batch(batch, n_inp)[1]
        if not isinstance(target, Tensor) or target.is_floating_point():  # of probabilities
            return None
        if target.ndim > 1 and not self._was_told:
            self._was_told = True
            log.info(
                "the loss is a mean over the targets that are not %d: a batch counts as many as it "
                "has; metrics that are functions are weighted by samples (by valid targets too "
                "with loss_weight=token_weight(...))",
                self._valid.ignore_index,
            )
        return self._valid.count(target)

    def look(self, loss_func: Callable[..., Tensor] | None, pred: Any, target: Any) -> None:
        """Refuse a loss that has no mean over batches, and warn of one whose mean is unclear.

        Args:
            loss_func: The loss function, ``None`` where the loss comes from elsewhere. It may be
                called again, on copies of some of the samples.
            pred: What the model says of a batch.
            target: Its targets.

        Raises:
            ValueError: If the loss is a sum over the batch.
        """
        if self.given is not None:
            return
        targets = () if target is None else target if isinstance(target, tuple) else (target,)
        if loss_func is not None and is_sum(loss_func, pred, targets):
            raise ValueError(
                "the loss is a sum over the batch, and grows with it: batches of several sizes, or "
                'of one update, have no mean of it; use reduction="mean" or divide it by the '
                "number of samples (or tell what a batch counts with loss_weight=)"
            )
        if self._valid is None and valid_targets(loss_func) is None:
            _warn_of_ignored(target)


def _warn_of_ignored(target: Any) -> None:
    if isinstance(target, Mapping):
        target = next((target[name] for name in TARGET_NAMES if name in target), None)
    if not isinstance(target, Tensor) or target.dtype != torch.int64 or target.ndim < 2:
        return
    if bool((target == -100).any()):  # read once a fit
        log.warning(
            "some targets are -100, by which losses mean ignored ones, and each batch counts as "
            "many as it has samples: if the loss is a mean over the tokens or pixels that are "
            "valid, use Learner(..., loss_weight=token_weight())"
        )


def check_weight(weight: Any) -> None:
    """Refuse what is no weight of a batch.

    Raises:
        TypeError: If it is no number and no tensor of one.
        ValueError: If it is negative.
    """
    if isinstance(weight, Tensor) and not weight.ndim:
        return
    if not isinstance(weight, Real):
        came = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)
        raise TypeError(f"loss_weight must be a number or a tensor of no dimension; got {came}")
    if not weight >= 0:
        raise ValueError(f"loss_weight must be at least 0; got {weight}")


# What a loss function averages over ---------------------------------------------------------


def valid_targets(loss_func: object) -> TokenWeight | None:
    """Return what counts the valid targets, for a loss of torch that is a mean over them.

    Args:
        loss_func: Cross entropy or negative log likelihood, as a module, a function or a partial
            of one; for any other the answer is ``None``.

    Example:
        >>> valid_targets(nn.CrossEntropyLoss(ignore_index=0)).ignore_index
        0
        >>> valid_targets(nn.MSELoss()) is None
        True
    """
    function, options = _unwrapped(loss_func)
    asked = getattr(type(function), "forward", function)  # a subclass may have another one
    if not any(asked is known for known in _MEANS_OF_VALID):
        return None
    if _option(function, options, "reduction", "mean") != "mean":
        return None
    return TokenWeight(
        _option(function, options, "ignore_index", -100),
        _option(function, options, "weight", None),
    )


def is_sum(loss_func: Callable[..., Tensor], pred: Any, targets: tuple[Any, ...]) -> bool:
    """Tell whether a loss is a sum over the batch: if it says so, or doubles with the batch.

    The second is tried on the CPU, with four samples and their copies, and a copy of the loss where
    it is a module; not where the loss may notice that it is asked again, as an object of one's own.

    Args:
        loss_func: Called with ``(pred, *targets)``.
        pred: What the model says of a batch.
        targets: Its targets.

    Example:
        >>> pred, target = torch.zeros(8, 2), torch.ones(8, 2)
        >>> is_sum(lambda pred, target: (pred - target).square().sum(), pred, (target,))
        True
        >>> is_sum(lambda pred, target: (pred - target).square().mean(), pred, (target,))
        False
    """
    if _option(*_unwrapped(loss_func), "reduction", None) == "sum":
        return True
    tensors: list[Tensor] = []
    map_tensors(lambda tensor: tensors.append(tensor) or tensor, (pred, targets))
    sizes = {tensor.size(0) if tensor.ndim else 0 for tensor in tensors}
    if len(sizes) != 1 or 0 in sizes or not _may_be_asked_again(loss_func, ()):
        return False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = deepcopy(loss_func).cpu() if isinstance(loss_func, nn.Module) else loss_func
            one, two, three = (float(own(*_copies((pred, *targets), n))) for n in (1, 2, 3))
    except Exception:  # whatever it is that this loss cannot do without the batch that it was for
        return False
    # Three as well: a loss that contrasts samples may double by chance.
    doubles = math.isclose(two, 2 * one, rel_tol=1e-3) and math.isclose(three, 3 * one, rel_tol=1e-3)
    return doubles and 0 < abs(one) < math.inf


def _copies(values: tuple[Any, ...], n: int) -> Any:
    return map_tensors(lambda t: torch.cat([t.detach()[:4].cpu()] * n), values)


def _unwrapped(loss_func: object) -> tuple[object, dict[str, Any]]:
    """Return what a partial calls, and the options that it gives."""
    options: dict[str, Any] = {}
    while isinstance(loss_func, partial):
        loss_func, options = loss_func.func, {**loss_func.keywords, **options}
    return loss_func, options


def _option(function: object, options: Mapping[str, Any], name: str, default: Any) -> Any:
    own = getattr(function, name, default) if isinstance(function, nn.Module) else default
    return options.get(name, own)


def _may_be_asked_again(value: object, users: tuple[object, ...]) -> bool:
    """Tell whether a loss function, or what it uses, has nothing that a call could change.

    Args:
        value: The loss function, or what one of its users uses.
        users: They.
    """
    if any(value is user for user in users):
        return True
    if isinstance(value, nn.Module):  # of which a copy is asked, if it is the loss itself
        is_small = sum(t.numel() for t in value.state_dict().values()) < 2**20
        return is_small and (not users or type(value).__module__ == nn.MSELoss.__module__)
    if isinstance(value, partial):
        used: list[object] = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, FunctionType) and not (value.__module__ or "").startswith("torch."):
        found = inspect.getclosurevars(value)
        used = [*found.nonlocals.values(), *found.globals.values()]
    else:
        return value is None or isinstance(value, _UNCHANGED)
    return all(_may_be_asked_again(each, (*users, value)) for each in used)


# Several batches in one update --------------------------------------------------------------


class Window:
    """The weights of the batches that make one update, and the mean of their losses.

    Args:
        n_batches: How many there will be, as far as is known.
        first: The weight of the first one.

    Example:
        >>> window = Window(2, first=3)
        >>> for loss, weight in ((torch.tensor(1.0), 3), (torch.tensor(5.0), 1)):
        ...     window.add(loss, weight)
        >>> window.mean
        tensor(2.)
    """

    def __init__(self, n_batches: int, first: Weight) -> None:
        some = first.where(first > 0, 1) if isinstance(first, Tensor) else first
        self._full = n_batches * some
        self._total: Weight = 0
        self._loss: Any = 0.0

    def share(self, weight: Weight) -> Weight:
        """Return the share of a batch in a window whose batches all count as the first."""
        return weight / self._full

    def add(self, loss: Tensor, weight: Weight) -> None:
        """Take in the loss of a batch; the mean of nothing, which is NaN, is left out."""
        part = loss * self.share(weight)
        self._loss = self._loss + (part.where(weight > 0, 0) if isinstance(weight, Tensor) else part)
        self._total = self._total + weight

    @property
    def factor(self) -> Weight:
        """What makes the shares of the batches so far add up to 1: 1 for a window as expected."""
        factor = self._full / self._total
        return factor.where(factor < math.inf, 0) if isinstance(factor, Tensor) else factor

    @property
    def mean(self) -> Tensor:
        """The mean loss of the batches so far; NaN if none of them counts."""
        mean: Tensor = self._loss * (self._full / self._total)
        return mean


def as_weight(weight: Weight, loss: Tensor) -> Weight:
    """Return a weight to reckon with: a number above 0, or a tensor beside the loss.

    Args:
        weight: What ``loss_weight`` returned.
        loss: The loss of the batch.
    """
    if isinstance(weight, Tensor) or not weight:
        dtype = torch.promote_types(loss.dtype, torch.float32)
        return torch.as_tensor(weight).to(loss.device, dtype)
    return weight


def shield(pred: Any, weight: Tensor) -> None:
    """Let no gradient of a batch that does not count reach the model: that may be NaN, as 0 / 0 is.

    Args:
        pred: What the model said of the batch.
        weight: That of the batch, which is not read.
    """

    def hook(gradient: Tensor) -> Tensor:
        return gradient.where(weight > 0, 0)

    def watch(tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor.register_hook(hook)
        return tensor

    map_tensors(watch, pred)
