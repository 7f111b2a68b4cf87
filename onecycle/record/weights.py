"""How much the loss of a batch counts in a mean of several: its samples, or valid targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle.arguments import check_callable, check_count, check_flag, check_is
from onecycle.data.nested import split_batch
from onecycle.data.sizes import TARGET_NAMES

#: How much a batch counts: a number, or a 0-dim tensor on the device, which is not read.
Weight = float | Tensor

#: torch's losses that are means over the targets that are not ``ignore_index``.
_MEANS_OF_VALID = (
    F.cross_entropy,
    F.nll_loss,
    nn.CrossEntropyLoss.forward,
    nn.NLLLoss.forward,
)
_IGNORED = -100  # by default, of torch and of those who follow it


class TokenWeight:
    """Counts the valid targets of a batch: see `token_weight`."""

    def __init__(
        self, ignore_index: int, class_weight: Tensor | None, target: int | str | None, shift: bool
    ) -> None:
        self.ignore_index, self.class_weight = ignore_index, class_weight
        self.target, self.shift = target, shift

    def __repr__(self) -> str:
        """Show which targets it counts."""
        given = f"ignore_index={self.ignore_index}"
        if self.class_weight is not None:
            given += f", class_weight of {self.class_weight.numel()} classes"
        given += f", target={self.target!r}" if self.target is not None else ""
        return f"token_weight({given}{', shift=True' if self.shift else ''})"

    def __call__(self, pred: Any, batch: Any) -> Tensor:
        """Return the number of valid targets, or the sum of their class weights."""
        target = targets_in(batch) if self.target is None else _part(batch, self.target)
        if not isinstance(target, Tensor) or not is_of_indices(target):
            came = target.dtype if isinstance(target, Tensor) else type(target).__name__
            raise TypeError(
                f"token_weight counts class indices in one tensor of targets; got {came}, in a "
                f"{type(batch).__name__}: say where they are with token_weight(target=...), a "
                "position or a name"
            )
        target = target[..., 1:] if self.shift else target
        return valid_sum(target, self.ignore_index, self.class_weight)


def token_weight(
    ignore_index: int = _IGNORED,
    class_weight: Tensor | None = None,
    *,
    target: int | str | None = None,
    shift: bool = False,
) -> TokenWeight:
    """Make the weight of a loss that is a mean over valid targets: tokens, pixels, labels.

    Given to a learner as ``loss_weight=``, it lets each valid target count the same, in whichever
    batch it is: accumulated batches make the update of one large batch, and the validation loss is
    the loss per token. `Learner.loss_weight` says for which losses it is in force by itself; give
    it for a loss of your own, or of the model's own, that is such a mean.

    Args:
        ignore_index: Targets of this value do not count.
        class_weight: The weight of each class, shape ``(classes,)``, where the loss has one: its
            mean is over the weights of the targets.
        target: Where in the batch the class indices are, as a position or a name: by default the
            second of two parts, or ``labels``, ``label``, ``targets``, ``target``, ``y``.
        shift: Leave out the first target of each sequence, the last dimension, as language models
            do whose labels are their own input.

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
    check_count("ignore_index", ignore_index, least=-(2**63))
    if class_weight is not None:
        check_is("class_weight", class_weight, Tensor, "torch.ones(10)")
    if target is not None and not isinstance(target, str):
        check_count("target", target, least=0)
    return TokenWeight(ignore_index, class_weight, target, check_flag("shift", shift))


def valid_sum(target: Tensor, ignore_index: int, class_weight: Tensor | None) -> Tensor:
    """Count the targets that are not ignored, or add up their class weights; no host waits.

    Args:
        target: Class indices, of any shape.
        ignore_index: Which ones do not count.
        class_weight: The weight of each class, shape ``(classes,)``, or ``None``.
    """
    valid = target != ignore_index
    if class_weight is None:
        return valid.sum()
    weights = class_weight.to(target.device, torch.promote_types(class_weight.dtype, torch.float32))
    return (weights[target.where(valid, 0)] * valid).sum()


def targets_in(batch: Any) -> Any:
    """Return the targets of a batch: the second of two parts, or what is called so; or ``None``.

    Args:
        batch: A whole batch.

    Example:
        >>> targets_in(("text", "labels")), targets_in({"text": 1, "labels": 2}), targets_in("text")
        ('labels', 2, None)
    """
    if type(batch) in (tuple, list):
        return split_batch(batch)[1] if len(batch) == 2 else None
    has_items = isinstance(batch, Mapping)
    for name in TARGET_NAMES:
        if name in batch if has_items else hasattr(batch, name):
            return _part(batch, name)
    return None


def _part(batch: Any, where: int | str) -> Any:
    has_items = isinstance(batch, Mapping | list) or type(batch) is tuple
    return batch[where] if has_items else getattr(batch, str(where))


def is_of_indices(target: Any) -> bool:
    """Tell whether a target is a tensor of class indices, not of probabilities or numbers."""
    return isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()


class LossWeights:
    """Tells how much the loss of a batch counts, where that is not its number of samples.

    Args:
        loss_func: The loss function.
        given: ``(pred, batch) -> weight``, which decides alone; ``None`` to see what the loss
            function averages over.
        sees_loss: Whether the loss is what the loss function returns.

    Raises:
        ValueError: If the loss function says that it is a sum, and ``given`` not what is counted.
    """

    def __init__(
        self,
        loss_func: object,
        given: Callable[[Any, Any], Weight] | None = None,
        sees_loss: bool = True,
    ) -> None:
        if given is not None:
            check_callable("loss_weight", given, "pred", "batch")
        self._given, self._sees_loss = given, sees_loss
        self._loss_func, self._found = loss_func, self._look_at(loss_func)

    def __call__(self, loss_func: object, pred: Any, batch: Any, yb: Any) -> Weight | None:
        """Return the weight of a batch; ``None`` for its number of samples.

        Args:
            loss_func: The loss function.
            pred: What the model says of the batch.
            batch: The whole batch.
            yb: What the loss function compares with.
        """
        if self._given is not None:
            given = self._given(pred, batch)
            if given is None:  # which a function without a return gives, and does not mean
                check_weight(given)
            return given
        found = self._found if loss_func is self._loss_func else self._look_at(loss_func)
        if found is None or not isinstance(yb, Tensor):
            return None
        function, options = found
        if yb.ndim < 2 and function is F.cross_entropy and not options:  # the usual case, in short
            return None
        ignored, weight = _ignored_and_weight(function, options)
        # Labels of whole samples are hardly ever ignored, and counting them costs two operators.
        if yb.ndim < 2 and weight is None and ignored == _IGNORED:
            return None
        return valid_sum(yb, ignored, weight) if is_of_indices(yb) else None

    def _look_at(self, loss_func: object) -> tuple[object, dict[str, Any]] | None:
        if self._given is not None or not self._sees_loss:
            return None
        if _reduction(*unwrapped(loss_func)) == "sum":
            raise ValueError(
                'the loss function has reduction="sum", and grows with the batch: validation, the '
                "record and accumulation take means of batches that need not be of one size; use "
                'reduction="mean", or give loss_weight=, which says how much a batch counts'
            )
        return mean_of_valid(loss_func)


def check_weight(weight: Any) -> None:
    """Refuse what is no weight of a batch.

    Raises:
        TypeError: If it is no number and no tensor of one.
        ValueError: If it is negative or not finite.
    """
    if isinstance(weight, Tensor) and not weight.ndim:
        return
    if not isinstance(weight, Real):
        came = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)
        raise TypeError(f"loss_weight must be a number or a tensor of no dimension; got {came}")
    if not 0 <= float(weight) < float("inf"):
        raise ValueError(f"loss_weight must be finite and at least 0; got {weight}")


def weight_beside(loss: Tensor, weight: Weight) -> Weight:
    """Return a weight to reckon with: a number above 0, or a tensor that fits the loss.

    Args:
        loss: A 0-dim tensor.
        weight: What ``loss_weight`` of the learner returned.

    Raises:
        TypeError, ValueError: If that is no weight.
    """
    check_weight(weight)
    if isinstance(weight, Tensor) or not weight:
        dtype = torch.promote_types(loss.dtype, torch.float32)
        return torch.as_tensor(weight).to(loss.device, dtype)
    return weight


def mean_of_valid(loss_func: object) -> tuple[object, dict[str, Any]] | None:
    """Return the function and its options, for a loss of torch that is a mean over valid targets.

    They are read again for each batch: a module's may change.
    """
    function, options = unwrapped(loss_func)
    asked = getattr(type(function), "forward", function)  # a subclass may have one of its own
    is_known = any(asked is known for known in _MEANS_OF_VALID)
    is_mean = _reduction(function, options) == "mean"
    return (function, options) if is_known and is_mean else None


def ignored_index(loss_func: object) -> int | None:
    """Return which class index a loss ignores; ``None`` where that is not known.

    Example:
        >>> ignored_index(nn.CrossEntropyLoss(ignore_index=255)), ignored_index(nn.MSELoss())
        (255, None)
    """
    found = mean_of_valid(loss_func)
    return None if found is None else _ignored_and_weight(*found)[0]


def counts_any(loss_func: object, target: Any) -> bool:
    """Tell whether a loss is a mean of anything in a target; one of nothing is NaN.

    Example:
        >>> counts_any(F.cross_entropy, torch.tensor([-100, 2]))
        True
        >>> counts_any(F.cross_entropy, torch.tensor(-100))
        False
    """
    found = mean_of_valid(loss_func)
    if found is None or not is_of_indices(target):
        return True
    return bool(valid_sum(target, *_ignored_and_weight(*found)) > 0)


def _ignored_and_weight(function: object, options: Mapping[str, Any]) -> tuple[int, Tensor | None]:
    weight = options.get("weight", getattr(function, "weight", None))
    return options.get("ignore_index", getattr(function, "ignore_index", _IGNORED)), weight


def unwrapped(loss_func: object) -> tuple[object, dict[str, Any]]:
    """Return what a partial calls, and the options that it gives."""
    options: dict[str, Any] = {}
    while isinstance(loss_func, partial):
        options = {**loss_func.keywords, **options}
        loss_func = loss_func.func
    return loss_func, options


def _reduction(function: object, options: Mapping[str, Any]) -> Any:
    own = getattr(function, "reduction", "mean") if isinstance(function, nn.Module) else "mean"
    return options.get("reduction", own)
