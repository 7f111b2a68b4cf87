"""The models and data of `advice.py`: made here, or shipped with Python and the package."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onecycle.vision import digits

#: Tensors to train on and tensors to validate on, each a tuple of inputs and targets.
Data = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


@cache
def images() -> Data:
    """Return the digits that ship with the package: 1,437 and 360 images of 8x8."""
    dls, generator = digits(), torch.Generator().manual_seed(0)
    mixed = []
    for x, y in (dls.train.tensors, dls.valid.tensors):  # they come class by class
        order = torch.randperm(len(x), generator=generator)
        mixed.append((x[order], y[order]))
    return mixed[0], mixed[1]


def scaled(scale: float, flat: bool = True, n: int = 1437, shift: float = 0.0) -> Data:
    """Return the digits as rows, or images, of another scale."""
    (x, y), (xv, yv) = images()
    x, xv = (x * scale + shift)[:n], xv * scale + shift
    return ((x.flatten(1), y[:n]), (xv.flatten(1), yv)) if flat else ((x, y[:n]), (xv, yv))


def rebuilt(scale: float, shift: float = 0.0) -> Data:
    """Return the digits as inputs and as targets, for an autoencoder."""
    (x, _), (xv, _) = scaled(scale, shift=shift)
    return (x, x), (xv, xv)


def split(*tensors: Tensor, valid: int = 300) -> Data:
    """Take the last samples to validate."""
    return tuple(t[:-valid] for t in tensors), tuple(t[-valid:] for t in tensors)


def random(*shape: int, seed: int) -> Tensor:
    """Draw normal numbers that are the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def regression(n: int, scale: float = 1.0, skew: float = 0.0, unit: float = 1.0) -> Data:
    """Make targets from twelve inputs by a curved function; ``skew`` makes their tails long."""
    x = random(n + 300, 12, seed=1)
    y = torch.tanh(x @ random(12, 8, seed=2) / 2) @ random(8, 1, seed=3)
    y = y + 0.1 * random(n + 300, 1, seed=4)
    return split(x * scale, (torch.exp(skew * y) if skew else y) * unit)


def columns(n: int) -> Data:
    """Make a regression whose inputs have units from 0.1 to 30, as in a table nobody scaled."""
    x = random(n + 300, 10, seed=5)
    y = x @ random(10, 1, seed=6) + 0.3 * random(n + 300, 1, seed=7)
    return split(x * torch.logspace(-1, 1.5, 10), y)


def rare(n: int) -> Data:
    """Make two classes, one in twenty samples of the second."""
    x = random(n + 300, 20, seed=8)
    score = x @ random(20, 1, seed=9) / 4.5 + 0.3 * random(n + 300, 1, seed=10)
    return split(x, (score > 1.7).float())


@cache
def characters(length: int, n: int) -> Data:
    """Cut the source of two modules of the standard library into rows of characters."""
    text = (inspect.getsource(inspect) + inspect.getsource(json)).lower()
    codes = torch.tensor([min(max(ord(c) - 31, 0), 95) for c in text])
    rows = codes[: len(codes) // (length + 1) * (length + 1)].view(-1, length + 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    return split(rows[:n, :-1], rows[:n, 1:], valid=100)


def bags(n: int, words: int = 400) -> Data:
    """Make texts of 12 words whose class is that of most of them."""
    generator = torch.Generator().manual_seed(11)
    kind = torch.randint(5, (words,), generator=generator)
    label = torch.randint(5, (n + 300,), generator=generator)
    bag = torch.randint(words, (n + 300, 12), generator=generator)
    for i in range(n + 300):
        own = (kind == label[i]).nonzero()[:, 0]
        bag[i, :4] = own[torch.randint(len(own), (4,), generator=generator)]
    return split(bag, label)


def canvases(n: int) -> Data:
    """Put digits at random places of a 16x16 canvas; targets are label and corner."""
    (x, y), _ = images()
    x, y = x[: n + 200], y[: n + 200]
    at = torch.randint(9, (len(x), 2), generator=torch.Generator().manual_seed(12))
    canvas = torch.zeros(len(x), 1, 16, 16)
    for i, (row, column) in enumerate(at.tolist()):
        canvas[i, :, row : row + 8, column : column + 8] = x[i] + 0.8
    return split(canvas, y, at / 8, valid=200)


def masks(n: int) -> Data:
    """Make digits under noise, to be told apart from their ground pixel by pixel."""
    (x, _), _ = images()
    x = x[: n + 200]
    return split(x + 1.0 * random(*x.shape, seed=13), (x > 0).float(), valid=200)


def pairs(n: int) -> Data:
    """Make two noisy views of each digit."""
    (x, y), _ = images()
    x = x[: n + 200].flatten(1)
    views = [x + 0.5 * random(*x.shape, seed=seed) for seed in (14, 15)]
    return split(torch.stack(views, 1), y[: n + 200], valid=200)


def mlp(
    *widths: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True, norm: bool = False
) -> nn.Sequential:
    """Make a perceptron."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers.append(nn.Linear(widths[i], widths[i + 1], bias=bias))
        if i < len(widths) - 2:
            layers += [nn.BatchNorm1d(widths[i + 1])] if norm else []
            layers.append(act())
    return nn.Sequential(*layers)


def cnn(out: int, side: int, *, norm: bool, widths: tuple[int, ...] = (12, 24)) -> nn.Sequential:
    """Make a small convolutional network."""
    layers: list[nn.Module] = []
    for wide_in, wide_out in zip((1, *widths[:-1]), widths, strict=True):
        layers.append(nn.Conv2d(wide_in, wide_out, 3, 2, 1))
        layers += [nn.BatchNorm2d(wide_out)] if norm else []
        layers.append(nn.ReLU())
    cells = (side // 2 ** len(widths)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * cells, out))


class Transformer(nn.Module):
    """A small causal transformer over characters."""

    def __init__(self, width: int = 32, depth: int = 1, length: int = 24) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(96, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 96)
        self.register_buffer("mask", torch.triu(torch.full((length, length), -torch.inf), 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place.weight
        return self.head(self.body(h, mask=self.mask)).transpose(1, 2)


class Recurrent(nn.Module):
    """An LSTM or GRU over characters."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(96, 24)
        self.body = kind(24, width, batch_first=True)
        self.head = nn.Linear(width, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x))[0]).transpose(1, 2)


class Twins(nn.Module):
    """Embed both views of a pair by one network; returns their similarities."""

    def __init__(self, body: nn.Module, sharpness: float = 10.0) -> None:
        super().__init__()
        self.body, self.sharpness = body, sharpness

    def forward(self, views: Tensor) -> Tensor:
        one, other = (F.normalize(self.body(views[:, i]), dim=1) for i in (0, 1))
        return one @ other.T * self.sharpness


def contrast(similarities: Tensor, _: Tensor) -> Tensor:
    """Tell each sample's own view from the others' of the batch."""
    own = torch.arange(len(similarities))
    return F.cross_entropy(similarities, own)


def detection(pred: Tensor, label: Tensor, corner: Tensor) -> Tensor:
    """Add the loss of the class and that of the corner."""
    return F.cross_entropy(pred[:, :10], label) + 5 * F.l1_loss(pred[:, 10:], corner)


def summed_squares(pred: Tensor, target: Tensor) -> Tensor:
    """Sum the squares over the pixels, as autoencoders often do."""
    return ((pred - target) ** 2).flatten(1).sum(1).mean()


def train_on_digits(net: nn.Module, data: Data, *, lr: float, updates: int, batch: int) -> None:
    """Train a network for a while, as somebody did before."""
    (x, y), _ = data
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(updates):
        rows = torch.randint(len(x), (batch,))
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        opt.step()
        opt.zero_grad()


def pretrained(widths: tuple[int, ...], classes: int) -> nn.Sequential:
    """Train a body to tell the parity and size of digits, and give it a new head."""
    body, head = mlp(*widths, act=nn.ReLU), nn.Linear(widths[-1], 10)
    net = nn.Sequential(body, nn.ReLU(), head)
    train_on_digits(net, scaled(1.0), lr=2e-3, updates=60, batch=128)
    return nn.Sequential(body, nn.ReLU(), nn.Linear(widths[-1], classes))
