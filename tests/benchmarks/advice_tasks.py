"""The tasks of `advice.py`, and which half each is in.

The halves were fixed before any result was seen. A third part, ``FRESH``, was written after a
look at the unseen half had changed the rule, and before anything of its own was seen; a fourth,
``LAST``, when all three had been looked at, in the same way; a fifth, ``AFTER``, and a sixth,
``BLIND``, by ones who had seen no advice. Tasks of one kind are spread over both, and the
scales of inputs, losses, widths, depths and batches are chosen to put the best peaks far apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from advice_after import AFTER
from advice_blind import BLIND
from advice_last import LAST
from advice_models import (
    Data,
    Recurrent,
    Transformer,
    Twins,
    bags,
    canvases,
    characters,
    cnn,
    columns,
    contrast,
    detection,
    masks,
    mlp,
    pairs,
    pretrained,
    rare,
    rebuilt,
    regression,
    scaled,
    summed_squares,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Muon, RMSprop

from onecycle import DataLoaders, Learner, TensorLoader

OPTIMIZERS = {
    "SGD": partial(SGD, momentum=0.9),
    "AdamW": AdamW,
    "RMSprop": partial(RMSprop, momentum=0.9),
    "Muon": Muon,
}


@dataclass(frozen=True)
class Task:
    """One model, data set, loss and optimizer.

    Attributes:
        name: What it is.
        optimizer: A key of `OPTIMIZERS`.
        batch_size: The samples of a batch.
        epochs: The length of a fit.
        data: Makes the data, always the same.
        model: Makes the model, from the generator of torch.
        loss_func: The loss.
        half: ``"develop"``, ``"unseen"``, ``"fresh"``, ``"last"``, ``"after"`` or ``"blind"``.
    """

    name: str
    optimizer: str
    batch_size: int
    epochs: int
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss_func: Callable[..., Tensor]
    half: str = "develop"

    def learner(self, seed: int) -> Learner:
        """Make a learner; the seed governs weights, the order of the data and dropout."""
        train, valid = _made(self.data)
        torch.manual_seed(seed)
        model = self.model()
        dls = DataLoaders(
            TensorLoader(*train, batch_size=self.batch_size, shuffle=True, drop_last=True),
            TensorLoader(*valid, batch_size=100, drop_last=True),
        )
        options: dict[str, Any] = {"n_inp": 1, "device": "cpu", "seed": seed, "check": False}
        opt_func = OPTIMIZERS[self.optimizer]
        return Learner(dls, model, self.loss_func, opt_func, **options)


@cache
def _made(data: Callable[[], Data]) -> Data:
    return data()


_xent, _bce = F.cross_entropy, F.binary_cross_entropy_with_logits
_digits, _rows = partial(scaled, 1.0), partial(characters, 24, 1700)


def _segmenter() -> nn.Sequential:
    layers = [nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 1, 1))


def _bag() -> nn.Sequential:
    return nn.Sequential(nn.EmbeddingBag(400, 16), nn.Linear(16, 5))


DEVELOP = [
    Task("perceptron", "AdamW", 64, 8, _digits, partial(mlp, 64, 64, 10), _xent),
    Task("deep tanh", "SGD", 32, 6, _digits, partial(mlp, 64, *[48] * 8, 10, act=nn.Tanh), _xent),
    Task(
        "CNN with BatchNorm",
        "AdamW",
        32,
        5,
        partial(scaled, 1.0, False),
        partial(cnn, 10, 8, norm=True),
        _xent,
    ),
    Task("CNN", "SGD", 16, 3, partial(scaled, 1.0, False), partial(cnn, 10, 8, norm=False), _xent),
    Task("transformer", "AdamW", 16, 3, _rows, Transformer, _xent),
    Task(
        "detector",
        "AdamW",
        32,
        6,
        partial(canvases, 1200),
        partial(cnn, 12, 16, norm=True),
        detection,
    ),
    Task(
        "autoencoder of raw pixels",
        "AdamW",
        64,
        8,
        partial(rebuilt, 6.0, 5.0),
        partial(mlp, 64, 48, 12, 48, 64),
        summed_squares,
    ),
    Task("regression", "SGD", 8, 3, partial(regression, 800), partial(mlp, 12, 32, 1), F.mse_loss),
    Task(
        "regression, skewed",
        "AdamW",
        16,
        3,
        partial(regression, 1200, skew=1.0),
        partial(mlp, 12, 64, 64, 1),
        F.mse_loss,
    ),
    Task(
        "embedding bag",
        "SGD",
        32,
        5,
        partial(bags, 1600),
        lambda: nn.Sequential(nn.EmbeddingBag(400, 16), nn.Linear(16, 5)),
        _xent,
    ),
    Task(
        "linear, small inputs",
        "AdamW",
        128,
        16,
        partial(scaled, 0.01),
        partial(mlp, 64, 10),
        _xent,
    ),
    Task(
        "new head on a trained body",
        "AdamW",
        16,
        6,
        partial(scaled, 1.0, n=480),
        partial(pretrained, (64, 192, 192), 10),
        _xent,
    ),
    Task(
        "perceptron, batches of 4",
        "RMSprop",
        4,
        2,
        partial(scaled, 1.0, n=800),
        partial(mlp, 64, 32, 10),
        _xent,
    ),
    Task(
        "perceptron without biases",
        "Muon",
        64,
        8,
        _digits,
        partial(mlp, 64, 64, 64, 10, bias=False),
        _xent,
    ),
    Task("rare class", "SGD", 256, 16, partial(rare, 3000), partial(mlp, 20, 32, 1), _bce),
    Task(
        "pairs of views",
        "SGD",
        64,
        10,
        partial(pairs, 1200),
        lambda: Twins(mlp(64, 64, 16)),
        contrast,
    ),
    Task(
        "wide and deep perceptron", "AdamW", 64, 7, _digits, partial(mlp, 64, *[256] * 5, 10), _xent
    ),
    Task(
        "linear, unscaled table",
        "SGD",
        32,
        5,
        partial(columns, 1600),
        partial(mlp, 10, 1),
        F.mse_loss,
    ),
    Task("perceptron, long", "AdamW", 64, 30, _digits, partial(mlp, 64, 48, 48, 10), _xent),
    Task(
        "perceptron, long", "SGD", 32, 15, _digits, partial(mlp, 64, 48, 48, 10, norm=True), _xent
    ),
    Task("transformer of two layers", "AdamW", 32, 8, _rows, partial(Transformer, 48, 2), _xent),
    Task("GRU", "SGD", 16, 3, _rows, partial(Recurrent, nn.GRU), _xent),
    Task("GRU", "AdamW", 32, 6, _rows, partial(Recurrent, nn.GRU), _xent),
    Task("segmenter", "SGD", 32, 8, partial(masks, 1200), _segmenter, _bce),
    Task(
        "regression, batches of 4",
        "AdamW",
        4,
        1,
        partial(regression, 1200),
        partial(mlp, 12, 32, 32, 1),
        F.smooth_l1_loss,
    ),
    Task(
        "softmax of raw pixels",
        "SGD",
        64,
        10,
        partial(scaled, 40.0, shift=50.0),
        partial(mlp, 64, 10),
        _xent,
    ),
    Task(
        "embedding bag",
        "AdamW",
        16,
        4,
        partial(bags, 1200),
        lambda: nn.Sequential(nn.EmbeddingBag(400, 16), nn.Linear(16, 5)),
        _xent,
    ),
    Task("deep tanh", "AdamW", 16, 4, _digits, partial(mlp, 64, *[64] * 6, 10, act=nn.Tanh), _xent),
    Task(
        "detector",
        "SGD",
        16,
        4,
        partial(canvases, 1200),
        partial(cnn, 12, 16, norm=True),
        detection,
    ),
    Task(
        "autoencoder",
        "AdamW",
        128,
        24,
        partial(rebuilt, 1.0),
        partial(mlp, 64, 64, 8, 64, 64),
        F.mse_loss,
    ),
]
UNSEEN = [
    Task(
        "perceptron of raw pixels",
        "AdamW",
        32,
        5,
        partial(scaled, 40.0, shift=50.0),
        partial(mlp, 64, 96, 10),
        _xent,
    ),
    Task(
        "deep tanh, ten layers",
        "AdamW",
        32,
        6,
        _digits,
        partial(mlp, 64, *[48] * 9, 10, act=nn.Tanh),
        _xent,
    ),
    Task(
        "CNN with BatchNorm",
        "SGD",
        64,
        9,
        partial(scaled, 1.0, False),
        partial(cnn, 10, 8, norm=True),
        _xent,
    ),
    Task("CNN", "AdamW", 8, 2, partial(scaled, 1.0, False), partial(cnn, 10, 8, norm=False), _xent),
    Task("LSTM", "AdamW", 16, 2, _rows, partial(Recurrent, nn.LSTM), _xent),
    Task("segmenter", "AdamW", 16, 3, partial(masks, 1200), _segmenter, _bce),
    Task(
        "autoencoder",
        "RMSprop",
        32,
        5,
        partial(rebuilt, 1.0),
        partial(mlp, 64, 48, 12, 48, 64),
        summed_squares,
    ),
    Task(
        "regression, skewed",
        "SGD",
        16,
        3,
        partial(regression, 1200, skew=1.0),
        partial(mlp, 12, 64, 1),
        F.mse_loss,
    ),
    Task(
        "embedding bag, batches of 4",
        "AdamW",
        4,
        1,
        partial(bags, 1200),
        lambda: nn.Sequential(nn.EmbeddingBag(400, 16), nn.Linear(16, 5)),
        _xent,
    ),
    Task("rare class", "AdamW", 512, 40, partial(rare, 2860), partial(mlp, 20, 64, 64, 1), _bce),
    Task(
        "new head on a trained body",
        "SGD",
        32,
        12,
        partial(scaled, 1.0, n=480),
        partial(pretrained, (64, 128, 128), 10),
        _xent,
    ),
    Task(
        "pairs of views",
        "AdamW",
        32,
        6,
        partial(pairs, 1200),
        lambda: Twins(mlp(64, 64, 32, norm=True), 20.0),
        contrast,
    ),
    Task(
        "wide and deep perceptron", "SGD", 64, 7, _digits, partial(mlp, 64, *[256] * 5, 10), _xent
    ),
    Task(
        "softmax, small inputs", "SGD", 64, 10, partial(scaled, 0.02), partial(mlp, 64, 10), _xent
    ),
]
FRESH = [
    Task(
        "perceptron with BatchNorm",
        "SGD",
        16,
        5,
        partial(scaled, 1.0, n=600),
        partial(mlp, 64, 48, 48, 10, norm=True),
        _xent,
    ),
    Task("softmax, tiny inputs", "SGD", 32, 5, partial(scaled, 0.003), partial(mlp, 64, 10), _xent),
    Task("RNN", "AdamW", 32, 5, _rows, partial(Recurrent, nn.RNN, 32), _xent),
    Task(
        "autoencoder",
        "SGD",
        64,
        10,
        partial(rebuilt, 1.0),
        partial(mlp, 64, 48, 16, 48, 64),
        F.mse_loss,
    ),
    Task(
        "detector without BatchNorm",
        "RMSprop",
        32,
        5,
        partial(canvases, 1200),
        partial(cnn, 12, 16, norm=False),
        detection,
    ),
    Task("transformer", "SGD", 16, 2, _rows, Transformer, _xent),
    Task(
        "wide CNN",
        "AdamW",
        128,
        15,
        partial(scaled, 1.0, False),
        partial(cnn, 10, 8, norm=False, widths=(32, 64)),
        _xent,
    ),
    Task(
        "regression of large targets",
        "AdamW",
        32,
        6,
        partial(regression, 1200, unit=50.0),
        partial(mlp, 12, 64, 1),
        F.mse_loss,
    ),
    Task(
        "unscaled table",
        "AdamW",
        8,
        2,
        partial(columns, 1200),
        partial(mlp, 10, 32, 1),
        F.smooth_l1_loss,
    ),
    Task("rare class", "RMSprop", 64, 5, partial(rare, 3000), partial(mlp, 20, 32, 1), _bce),
    Task("twelve layers", "AdamW", 32, 5, _digits, partial(mlp, 64, *[40] * 12, 10), _xent),
    Task("embedding bag, batches of 8", "SGD", 8, 2, partial(bags, 1600), _bag, _xent),
]
TASKS = [
    *DEVELOP,
    *(replace(task, half="unseen") for task in UNSEEN),
    *(replace(task, half="fresh") for task in FRESH),
    *(Task(*fields, half="last") for fields in LAST),
    *(Task(*fields, half="after") for fields in AFTER),
    *(Task(*fields, half="blind") for fields in BLIND),
]
