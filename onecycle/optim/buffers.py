"""Buffers: those that take shape in training (queues, what is ``None`` at first), and copies."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

#: Buffers by name, and the shape of each; ``None`` for one that is not there yet.
Shapes = dict[str, list[int] | None]


def buffer_shapes(module: nn.Module | None) -> Shapes:
    """Return the shapes of the buffers of a module.

    Taken when a learner is made, they tell a buffer that grows in training from one that another
    model has in another size. Those of torch's own layers never grow, and are left out.

    Args:
        module: The model, or the module of the loss function, if there is one.

    Example:
        >>> class Remembers(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm = nn.BatchNorm1d(3)
        ...         self.register_buffer("seen", None)
        >>> buffer_shapes(Remembers())
        {'seen': None}
    """
    shapes: Shapes = {}
    for path, part in () if module is None else module.named_modules():
        own = {} if type(part).__module__.startswith("torch.") else part._buffers
        for name, buffer in own.items():
            if buffer is None or not is_lazy(buffer):
                shapes[f"{path}.{name}" if path else name] = (
                    None if buffer is None else list(buffer.shape)
                )
    return shapes


class KeptBuffers:
    """What the buffers of modules hold now, as the statistics of batch norm, to be put back.

    Args:
        *roots: The modules; ``None`` among them stands for none. What is lazy has nothing yet.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> kept = KeptBuffers(norm, None)
        >>> _ = norm(torch.ones(3, 2))
        >>> kept.put_back()
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """

    def __init__(self, *roots: nn.Module | None) -> None:
        buffers = [b for root in roots if root is not None for b in root.buffers()]
        buffers = [] if any(map(is_lazy, buffers)) else buffers
        self._kept = [(buffer, buffer.clone()) for buffer in buffers]

    def put_back(self) -> None:
        """Put it back, in place."""
        with torch.no_grad():
            for buffer, value in self._kept:
                buffer.copy_(value)
