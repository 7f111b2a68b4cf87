"""What is kept of many batches on the device and read late: weighted means, and NaN."""

import math

import torch
from torch import Tensor

from onecycle.record.weights import Weight

#: The values that are kept on the device before they are put together.
_KEPT = 256
#: So many yes-or-nos of a batch are kept as they are; of more their mean, which takes less memory.
_FEW = 4096


def _wide(value: Tensor) -> torch.dtype:
    """Return the dtype to add up in: many batches lose digits in float32, which is all MPS has."""
    return torch.float32 if value.device.type == "mps" else torch.float64


def share(hits: Tensor) -> Tensor:
    """Return the share that is true, a 0-dim tensor of float32."""
    return hits.mean(dtype=torch.float32)


def _stacked(kept: list[Tensor]) -> Tensor:
    """Return means as one vector: those that are kept, or of yes-or-nos that are."""
    if any(each.shape != kept[0].shape for each in kept):
        return torch.stack([share(each) for each in kept])
    stacked = torch.stack(kept)
    if stacked.ndim == 1:
        return stacked
    return stacked.flatten(1).mean(1, dtype=torch.float32)  # the same bits: sums < 2**24


class WeightedMean:
    """A mean of device values, weighted by what each is the mean of, that is read late.

    A weight may be a tensor on the device, which is not read either. A value of weight 0 is left
    out, be it NaN: it is the mean of nothing.

    Attributes:
        count: The sum of the weights.

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
        self._total: Tensor | None = None
        self.count: Weight = 0
        self._kept: list[Tensor] = []
        self._weight: float = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, value: Tensor | float, weight: Weight) -> None:
        """Take in a mean.

        Args:
            value: The mean, a 0-dim tensor or a float.
            weight: How many samples, or tokens, it is the mean of: a number or a 0-dim tensor.
        """
        if isinstance(value, Tensor):  # a copy, since it may be written to again and again
            self.keep((value.detach() if value.requires_grad else value).clone(), weight)
        elif isinstance(weight, Tensor):
            self.keep(torch.tensor(value, dtype=_wide(weight), device=weight.device), weight)
        elif weight:
            self._add(torch.tensor(value, dtype=torch.float64), weight)
            self.count += weight

    def keep(self, value: Tensor, weight: Weight) -> None:
        """Take in a mean that nobody writes to afterwards; many are added up at once, later.

        Args:
            value: The mean, a 0-dim tensor without a graph.
            weight: How many samples, or tokens, it is the mean of.
        """
        if isinstance(weight, Tensor):
            self._pairs.append((value, weight))
            if len(self._pairs) == _KEPT:
                self._add_pairs()
        elif weight:
            if weight != self._weight or len(self._kept) == _KEPT:
                self._add_kept()
                self._weight = weight
            self._kept.append(value)
            self.count += weight

    def keep_share(self, hits: Tensor, weight: Weight) -> None:
        """Take in the share that is true of many yes-or-nos, as `keep` takes in a mean.

        Args:
            hits: A tensor of bool of any shape, with one value or more.
            weight: How many samples, or tokens, it is about.
        """
        is_small = hits.numel() <= _FEW and not isinstance(weight, Tensor)
        self.keep(hits if is_small else share(hits), weight)

    def compute(self) -> Tensor:
        """Return the mean as a 0-dim tensor, still on its device; NaN if nothing counts."""
        self._add_kept()
        self._add_pairs()
        return torch.tensor(math.nan) if self._total is None else self._total / self.count

    def parts(self) -> list[float]:
        """Read the sum of the values by their weights, and the sum of the weights."""
        self._add_kept()
        self._add_pairs()
        return [0.0 if self._total is None else float(self._total), float(self.count)]

    def take(self, total: float, count: float) -> None:
        """Take sums over more than this process in place of its own."""
        kept = torch.tensor(0.0) if self._total is None else self._total
        self._total, self.count = torch.tensor(total, dtype=_wide(kept), device=kept.device), count

    def _add_kept(self) -> None:
        if self._kept:
            kept, self._kept = _stacked(self._kept), []
            self._add(kept.sum(dtype=_wide(kept)), self._weight)

    def _add_pairs(self) -> None:
        if self._pairs:
            each = zip(*self._pairs, strict=True)
            values, weights = (kept.to(_wide(kept)) for kept in map(torch.stack, each))
            self._pairs, weights = [], weights.to(values.device)
            self._add((values * weights).where(weights > 0, 0).sum(), 1)
            self.count = self.count + weights.sum()

    def _add(self, value: Tensor, weight: float) -> None:
        if self._total is None:
            self._total = value.to(_wide(value)) * weight
        else:
            self._total = torch.add(self._total, value, alpha=weight)


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

    def take(self, found: bool) -> None:
        """Take what was found in more than this process."""
        self._kept, self._found = [], torch.tensor(found)

    def found(self) -> Tensor:
        """Return the answer as a 0-dim tensor of bool, still on its device."""
        if self._kept:
            found = torch.stack(self._kept).isnan().any()
            self._found, self._kept = found if self._found is None else found | self._found, []
        return torch.tensor(False) if self._found is None else self._found
