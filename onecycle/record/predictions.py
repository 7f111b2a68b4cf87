"""`Predictions`: what inference over a whole loader returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onecycle.explanations import describe


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """What `Learner.get_preds` returns; it unpacks as ``preds, targets``.

    With the losses, it unpacks as ``preds, targets, losses``.

    Each attribute has an entry for every sample: a tensor of shape ``(samples, ...)``, or a list
    where the samples differ in shape or are no tensors; a tuple or dict of such where there are
    several.

    Attributes:
        preds: The predictions.
        targets: The targets; ``None`` where the loader has none.
        losses: The loss of each sample, shape ``(samples,)``; ``None`` where not asked for.
        inputs: What the model was given; ``None`` where not asked for.

    Example:
        >>> preds, targets = Predictions(torch.zeros(3, 1), ["a", "b", "c"])
        >>> targets
        ['a', 'b', 'c']
    """

    preds: Any
    targets: Any
    losses: Tensor | None = None
    inputs: Any = None

    def __iter__(self) -> Iterator[Any]:
        both = (self.preds, self.targets)
        return iter(both if self.losses is None else (*both, self.losses))

    def __repr__(self) -> str:
        given = {name: part for name, part in vars(self).items() if part is not None}
        parts = ", ".join(f"{name}={describe(part)}" for name, part in given.items())
        return f"Predictions({parts})"

    def require_same_targets(self, other: "Predictions") -> None:
        """Refuse predictions of another pass that are not of the same samples.

        Raises:
            ValueError: If the targets of the two passes differ.
        """
        if not _are_same(self.targets, other.targets):
            raise ValueError(
                "the loader gave other targets in another pass, so that the predictions do not "
                "belong together: pass one that does not shuffle or augment on its own"
            )


def _are_same(one: Any, other: Any) -> bool:
    """Tell whether two nested values are equal, as far as that can be told."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_are_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_are_same, one, other))
    if isinstance(one, str | int | float | None):
        return bool(one == other)
    return type(one) is type(other)
