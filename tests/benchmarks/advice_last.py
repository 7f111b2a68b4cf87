"""The last tasks of `advice.py`: written before they were run, run after the rule was fixed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from advice_models import Data, bags, characters, cnn, masks, mlp, random, scaled, split
from torch import Tensor, nn
from torch.nn import functional as F


def labels_of_many() -> Data:
    """Make several labels of each digit: which it is, even, above four."""
    (x, y), (xv, yv) = scaled(1.0)

    def labels(y: Tensor) -> Tensor:
        more = torch.stack([y % 2 == 0, y > 4], 1)
        return torch.cat([F.one_hot(y, 10), more], 1).float()

    return (x, labels(y)), (xv, labels(yv))


def counts(n: int) -> Data:
    """Make counts whose logarithmic mean is curved."""
    x = random(n + 300, 8, seed=21)
    mean = torch.exp(1.5 * torch.sin(x @ random(8, 1, seed=22) / 2) + 0.5)
    generator = torch.Generator().manual_seed(23)
    return split(x, torch.poisson(mean, generator=generator))


def waves(n: int) -> Data:
    """Make noisy waves of four shapes, of random phase and pitch."""
    generator = torch.Generator().manual_seed(24)
    kind = torch.randint(4, (n + 300,), generator=generator)
    phase, pitch = torch.rand(2, n + 300, 1, generator=generator)
    angle = 6.28 * (phase + (2 + 2 * pitch) * torch.linspace(0, 1, 64))
    sine = torch.sin(angle)
    shapes = torch.stack([sine, sine.sign(), torch.asin(sine) / 1.57, sine.abs() * 2 - 1])
    wave = shapes[kind, torch.arange(n + 300)]
    return split((wave + 0.3 * random(n + 300, 64, seed=25))[:, None], kind)


def ratings(n: int) -> Data:
    """Make ratings of items by people, of three hidden tastes."""
    generator = torch.Generator().manual_seed(26)
    person, item = torch.randint(60, (2, n + 300), generator=generator)
    tastes, kinds = random(60, 3, seed=27), random(60, 3, seed=28)
    score = 3 + (tastes[person] * kinds[item]).sum(1) + 0.3 * random(n + 300, seed=29)
    return split(torch.stack([person, item], 1), score)


def curve(n: int) -> Data:
    """Make a curve of one input, with several turns."""
    x = 2 * torch.rand(n + 300, 1, generator=torch.Generator().manual_seed(30)) - 1
    y = torch.sin(8 * x) + 0.5 * torch.sin(21 * x) + 0.05 * random(n + 300, 1, seed=31)
    return split(x, y)


def additions(n: int, length: int = 12) -> Data:
    """Make sequences in which the two marked numbers are to be added."""
    generator = torch.Generator().manual_seed(32)
    value = torch.rand(n + 300, length, generator=generator)
    mark = torch.zeros_like(value)
    half = length // 2
    for start in (0, half):
        at = start + torch.randint(half, (n + 300, 1), generator=generator)
        mark.scatter_(1, at, 1.0)
    return split(torch.stack([value, mark], 2), (value * mark).sum(1, keepdim=True))


def taught(n: int) -> Data:
    """Make the soft answers of a fixed network, to be learnt by another."""
    x = random(n + 300, 24, seed=33)
    hidden = torch.relu(x @ random(24, 40, seed=34) / 4)
    return split(x, F.softmax(hidden @ random(40, 6, seed=35) / 2, 1))


def triples(n: int) -> Data:
    """Take to each digit one of its own class and one of another."""
    (x, y), _ = scaled(1.0)
    generator = torch.Generator().manual_seed(36)
    rows = []
    for i in range(n + 200):
        same, other = ((y == y[i]).nonzero()[:, 0], (y != y[i]).nonzero()[:, 0])
        one, two = (k[torch.randint(len(k), (1,), generator=generator)] for k in (same, other))
        rows.append(torch.stack([x[i], x[one[0]], x[two[0]]]))
    return split(torch.stack(rows), y[: n + 200], valid=200)


class WindowModel(nn.Module):
    """Tell the next character from the eight before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(96, 12), mlp(96, 80, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.embed(x).flatten(1))


class VariationalAutoencoder(nn.Module):
    """Encode digits by a mean and a deviation, draw, and decode."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = mlp(64, 48, 12), mlp(6, 48, 64)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_var = self.encode(x).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * torch.exp(log_var / 2)
        return torch.cat([self.decode(drawn), mean, log_var], 1)


class Factors(nn.Module):
    """Multiply the factors of people and items."""

    def __init__(self) -> None:
        super().__init__()
        self.people, self.items = nn.Embedding(60, 8), nn.Embedding(60, 8)
        nn.init.normal_(self.people.weight, std=0.3)
        nn.init.normal_(self.items.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return (self.people(x[:, 0]) * self.items(x[:, 1])).sum(1) + 3


class Block(nn.Module):
    """Add a normalised hidden layer to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Adder(nn.Module):
    """Read a sequence, and say one number of its end."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(2, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Triplets(nn.Module):
    """Embed the three of a triple by one network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(64, 64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.body(x[:, i]) for i in range(3)], 1)


def variational(pred: Tensor, x: Tensor) -> Tensor:
    """Add the squares of the pixels and the distance from a normal distribution."""
    mean, log_var = pred[:, 64:70], pred[:, 70:]
    distance = (mean**2 + log_var.exp() - 1 - log_var).sum(1) / 2
    return (((pred[:, :64] - x) ** 2).sum(1) + distance).mean()


def overlap(pred: Tensor, target: Tensor) -> Tensor:
    """One less the overlap of what is predicted with what is there."""
    found = torch.sigmoid(pred)
    return 1 - (2 * (found * target).sum() + 1) / (found.sum() + target.sum() + 1)


def quantile(pred: Tensor, target: Tensor) -> Tensor:
    """Weigh what lies above nine times what lies below."""
    gap = target - pred
    return torch.maximum(0.9 * gap, -0.1 * gap).mean()


def likelihood(pred: Tensor, target: Tensor) -> Tensor:
    """Take the second output for the logarithm of the variance."""
    log_var = pred[:, 1:]
    return (0.5 * (log_var + (target - pred[:, :1]) ** 2 * torch.exp(-log_var))).mean()


def apart(pred: Tensor, _: Tensor) -> Tensor:
    """Ask the own class to lie nearer than the other by one."""
    return F.triplet_margin_loss(pred[:, 0], pred[:, 1], pred[:, 2])


def divergence(pred: Tensor, target: Tensor) -> Tensor:
    """Tell how far the answers lie from the teacher's."""
    return F.kl_div(F.log_softmax(pred, 1), target, reduction="batchmean")


def windows(n: int) -> Data:
    """Cut text into windows of eight characters and the next one."""
    (x, _), (xv, _) = characters(8, n)
    return (x[:, :8], _next(n)[0]), (xv[:, :8], _next(n)[1])


def _next(n: int) -> tuple[Tensor, Tensor]:
    (_, y), (_, yv) = characters(8, n)
    return y[:, -1], yv[:, -1]


def residual() -> nn.Sequential:
    """Make a residual network without biases."""
    blocks = [Block(48) for _ in range(4)]
    return nn.Sequential(nn.Linear(64, 48, bias=False), *blocks, nn.Linear(48, 10, bias=False))


def grouped_cnn() -> nn.Sequential:
    """Make a small network with GroupNorm."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def wave_cnn() -> nn.Sequential:
    """Make a small network of one dimension."""
    layers: list[nn.Module] = [nn.Conv1d(1, 12, 7, 2, 3), nn.ReLU(), nn.Conv1d(12, 16, 5, 2, 2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), mlp(64, 4))


def normed_segmenter() -> nn.Sequential:
    """Make a segmenter with BatchNorm."""
    layers: list[nn.Module] = [nn.Conv2d(1, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(12, 12, 3, 1, 1), nn.ReLU(), nn.Conv2d(12, 1, 1))


def dropped() -> nn.Sequential:
    """Make a perceptron that drops half of its units."""
    layers: list[nn.Module] = [nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.5), mlp(128, 10))


def one_embedding() -> nn.Sequential:
    """Make a bag of words whose embedding is trained and read by two layers."""
    return nn.Sequential(nn.EmbeddingBag(400, 24, mode="sum"), nn.ReLU(), mlp(24, 24, 5))


_bce = F.binary_cross_entropy_with_logits
_gelu: Callable[..., nn.Sequential] = partial(mlp, act=nn.GELU)

#: Name, optimizer, batch size, epochs, data, model, loss.
LAST = [
    ("next character", "AdamW", 64, 10, partial(windows, 2400), WindowModel, F.cross_entropy),
    ("labels of many", "SGD", 64, 12, labels_of_many, partial(mlp, 64, 64, 12), _bce),
    (
        "hinge",
        "SGD",
        32,
        6,
        partial(scaled, 1.0),
        partial(mlp, 64, 48, 10, norm=True),
        F.multi_margin_loss,
    ),
    ("counts", "AdamW", 32, 6, partial(counts, 1200), partial(mlp, 8, 32, 1), F.poisson_nll_loss),
    (
        "variational autoencoder",
        "AdamW",
        64,
        12,
        lambda: _same(scaled(1.0)),
        VariationalAutoencoder,
        variational,
    ),
    ("waves", "AdamW", 16, 3, partial(waves, 1600), wave_cnn, F.cross_entropy),
    ("waves", "SGD", 64, 12, partial(waves, 1600), wave_cnn, F.cross_entropy),
    ("factors", "SGD", 64, 8, partial(ratings, 3000), Factors, F.mse_loss),
    ("residual network", "Muon", 32, 5, partial(scaled, 1.0), residual, F.cross_entropy),
    (
        "quantile",
        "RMSprop",
        32,
        6,
        lambda: split(random(1500, 6, seed=37), _skewed()),
        partial(mlp, 6, 32, 1),
        quantile,
    ),
    (
        "perceptron of GELU, one wide layer",
        "AdamW",
        256,
        40,
        partial(scaled, 1.0),
        partial(_gelu, 64, 512, 10),
        F.cross_entropy,
    ),
    (
        "curve",
        "AdamW",
        32,
        10,
        partial(curve, 1000),
        partial(mlp, 1, 48, 48, 1, act=nn.Tanh),
        F.mse_loss,
    ),
    ("additions", "AdamW", 32, 8, partial(additions, 1200), Adder, F.mse_loss),
    ("additions", "SGD", 16, 4, partial(additions, 1600), Adder, F.mse_loss),
    ("taught", "SGD", 128, 20, partial(taught, 2000), partial(mlp, 24, 40, 6), divergence),
    ("triples", "AdamW", 64, 10, partial(triples, 1200), Triplets, apart),
    ("segmenter, overlap", "AdamW", 8, 2, partial(masks, 1200), normed_segmenter, overlap),
    (
        "deviation too",
        "AdamW",
        16,
        4,
        lambda: split(random(1500, 6, seed=37), _skewed()),
        partial(mlp, 6, 32, 2),
        likelihood,
    ),
    (
        "CNN with GroupNorm",
        "RMSprop",
        32,
        5,
        partial(scaled, 1.0, False),
        grouped_cnn,
        F.cross_entropy,
    ),
    ("half dropped", "SGD", 128, 24, partial(scaled, 1.0), dropped, F.cross_entropy),
    ("sums of words", "AdamW", 32, 5, partial(bags, 1600), one_embedding, F.cross_entropy),
    (
        "CNN of raw pixels",
        "SGD",
        32,
        5,
        partial(scaled, 8.0, False, shift=8.0),
        partial(cnn, 10, 8, norm=False),
        F.cross_entropy,
    ),
]


def _same(data: Data) -> Data:
    (x, _), (xv, _) = data
    return (x, x), (xv, xv)


def _skewed() -> Tensor:
    x = random(1500, 6, seed=37)
    return torch.sin(x @ random(6, 1, seed=38)) + (0.2 + x[:, :1].abs()) * random(1500, 1, seed=39)
