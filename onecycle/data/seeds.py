"""`seed_everything`: one number for all randomness of a script."""

from __future__ import annotations

import random

import numpy as np
import torch

from onecycle.arguments import shown


def seed_everything(seed: int) -> int:
    """Seed Python's, NumPy's and torch's generators, torch's on every device.

    Call it before models and learners are made: a `Learner` without ``seed=`` draws its own from
    torch, so that the order of the data follows too. The workers of a DataLoader seed their own
    generators (Python's, NumPy's and torch's) from torch's, which covers random transforms in
    them. What a fit then computes is the same each time on the same machine with the same
    versions; some kernels on a GPU are not, but for ``torch.use_deterministic_algorithms(True)``.

    Args:
        seed: From 0 to 2**32 - 1, which NumPy allows.

    Returns:
        The seed, for ``Learner(seed=...)`` or a log.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of range.

    Example:
        >>> seed_everything(7)
        7
        >>> one = random.random(), np.random.rand(), torch.rand(()).item()
        >>> _ = seed_everything(7)
        >>> one == (random.random(), np.random.rand(), torch.rand(()).item())
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer; got {shown(seed)}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1; got {shown(seed)}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed
