"""For authors of callbacks, and for our own tests: a small learner, and a contract check."""

from __future__ import annotations

import torch
from torch import nn

from onecycle.callback import Callback
from onecycle.callbacks.progress import Progress
from onecycle.data import DataLoaders, TensorLoader
from onecycle.learner import Learner
from onecycle.metrics import mse


def toy_learner(
    n_batches: int = 8, batch_size: int = 8, *, cbs: tuple[Callback, ...] = (), **options: object
) -> Learner:
    """Make a learner that fits a line through seeded data on the CPU, without progress bars.

    Args:
        n_batches: The batches of an epoch.
        batch_size: The samples of a batch.
        cbs: Callbacks for every fit.
        **options: Anything that `Learner` takes.

    Returns:
        A learner over a model of two layers; two of them made alike train to the same bits.

    Example:
        >>> learn = toy_learner(n_batches=5)
        >>> learn.fit(2)
        >>> learn.total_updates
        10
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_batches * batch_size, 4, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(len(x), 1, generator=generator)
    loader = TensorLoader(x, y, batch_size=batch_size, shuffle=True)
    valid = TensorLoader(x, y, batch_size=batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    given = {"loss_func": nn.functional.mse_loss, "metrics": [mse], "device": "cpu", "seed": 0}
    learn = Learner(DataLoaders(loader, valid), model, cbs=cbs, **(given | options))  # type: ignore[arg-type]
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn
