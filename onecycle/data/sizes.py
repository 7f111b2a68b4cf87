"""How many samples a batch has."""

from __future__ import annotations

import logging
from collections.abc import Sized
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

log = logging.getLogger("onecycle")


def warn_of_single_sample(model: nn.Module, dl: Any) -> None:
    """Warn if the last batch has one sample: batch norm mostly fails on it, an epoch from here."""
    kinds = (nn.BatchNorm1d, nn.LazyBatchNorm1d)
    name = next((name for name, m in model.named_modules() if isinstance(m, kinds)), None)
    size = getattr(dl, "batch_size", None)
    if name is None or not isinstance(size, int) or size < 2 or getattr(dl, "drop_last", True):
        return
    samples = dl.sampler if isinstance(dl, DataLoader) else getattr(dl, "tensors", ((),))[0]
    if isinstance(samples, Sized) and len(samples) % size == 1:
        log.warning(
            "the last training batch has one sample (of %d, by %d), with which the batch norm %r "
            "fails unless its input has a length besides channels: use drop_last=True, or another "
            "batch size",
            len(samples),
            size,
            name,
        )
