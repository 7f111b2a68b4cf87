"""What is kept of many batches on the device, and read late: weighted means, and whether NaN came."""

import math

import torch
from torch import Tensor

from onecycle.record.weights import Weight

#: The values that are kept on the device before they are put together.
_KEPT = 256


def _wide(value: Tensor) -> torch.dtype:
    """Return the dtype to add up in: many batches lose digits in float32, which is all MPS has."""
    return torch.float32 if value.device.type == "mps" else torch.float64


class WeightedMean:
    """A mean of device values, weighted by what each is the mean of, that is read late.

    A weight may be a tensor on the device, which is not read either. A value of weight 0 is left
    out, be it NaN: it is the mean of nothing.

    Attributes:
        is_empty: Whether no value came.

    Example:
        >>> mean = WeightedMean()
        >>> mean.add(torch.tensor(1.0), 3)
        >>> mean.add(torch.tensor(5.0), torch.tensor(1))
        >>> mean.add(torch.tensor(math.nan), 0)
        >>> mean.compute()
        tensor(2., dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every value."""
        self.is_empty = True
        self._total: Tensor | None = None
        self._count: Weight = 0
        self._kept: list[Tensor] = []
        self._weight: float = 0
        self._weighted: list[tuple[Tensor, Tensor]] = []

    def add(self, value: Tensor | float, weight: Weight) -> None:
        """Take in a mean.

        Args:
            value: The mean, a 0-dim tensor or a float.
            weight: How many samples, or tokens, it is the mean of: a number or a 0-dim tensor.
        """
        if isinstance(value, Tensor):  # a copy, since it may be written to again and again
            self.keep((value.detach() if value.requires_grad else value).clone(), weight)
        elif isinstance(weight, Tensor):
            self.keep(torch.tensor(value, dtype=torch.float64), weight)
        else:
            self.is_empty = False
            self._add(torch.tensor(value, dtype=torch.float64), weight, 1)

    def keep(self, value: Tensor, weight: Weight) -> None:
        """Take in a mean that nobody writes to afterwards; many are added up at once, later.

        Args:
            value: The mean, a 0-dim tensor without a graph.
            weight: How many samples, or tokens, it is the mean of.
        """
        self.is_empty = False
        if isinstance(weight, Tensor):
            self._weighted.append((value, weight))
            if len(self._weighted) == _KEPT:
                self._add_weighted()
            return
        if weight != self._weight or len(self._kept) == _KEPT:
            self._add_kept()
            self._weight = weight
        self._kept.append(value)

    def compute(self) -> Tensor:
        """Return the mean as a 0-dim tensor, still on its device; NaN if nothing counts."""
        self._add_kept()
        self._add_weighted()
        return torch.tensor(math.nan) if self._total is None else self._total / self._count

    def _add_kept(self) -> None:
        if self._kept:
            kept, self._kept = torch.stack(self._kept), []
            self._add(kept.sum(dtype=_wide(kept)), self._weight, len(kept))

    def _add_weighted(self) -> None:
        if self._weighted:
            values, weights = map(torch.stack, zip(*self._weighted, strict=True))
            self._weighted = []
            weights = weights.to(values.device)
            parts = values.to(_wide(values)) * weights
            self._add(parts.where(weights > 0, 0).sum(), 1, 0)
            self._count = self._count + weights.sum()

    def _add(self, total: Tensor, weight: float, n: int) -> None:
        """Add the total of n values of one weight."""
        if not weight:
            total = torch.zeros_like(total)
        if self._total is None:
            self._total = total.to(_wide(total)) * weight
        else:
            self._total = torch.add(self._total, total, alpha=weight)
        self._count = self._count + n * weight


class NanWatch:
    """Tells whether there was NaN in any of many tensors, and is read late.

    One operator a tensor: its sum, which is NaN where it holds NaN, or infinities of both signs.

    Example:
        >>> watch = NanWatch()
        >>> watch.keep(torch.tensor([1.0, math.inf]))
        >>> watch.found().item()
        False
        >>> watch.keep(torch.tensor([1.0, math.nan]))
        >>> watch.found().item()
        True
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every tensor."""
        self._kept: list[Tensor] = []
        self._found: Tensor | None = None

    def keep(self, tensor: Tensor) -> None:
        """Look at a tensor, of the device and dtype of the others."""
        self._kept.append((tensor.detach() if tensor.requires_grad else tensor).sum())
        if len(self._kept) == _KEPT:
            self.found()

    def found(self) -> Tensor:
        """Return the answer as a 0-dim tensor of bool, still on its device."""
        if self._kept:
            found = torch.stack(self._kept).isnan().any()
            self._found, self._kept = found if self._found is None else found | self._found, []
        return torch.tensor(False) if self._found is None else self._found
