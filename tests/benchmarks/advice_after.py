"""More tasks of `advice.py`, of other kinds, written by one who had not seen what it advises."""

from __future__ import annotations

from functools import partial

import torch
from advice_models import (
    Data,
    Recurrent,
    characters,
    cnn,
    images,
    mlp,
    random,
    regression,
    scaled,
    split,
    train_on_digits,
)
from torch import Tensor, nn
from torch.nn import functional as F


def graphs(n: int, nodes: int = 10) -> Data:
    """Make graphs as rows of features and neighbours; nodes answer to those they are joined to."""
    x = random(n + 300, nodes, 6, seed=41)
    joined = (random(n + 300, nodes, nodes, seed=42) > 1.0).float().triu(1)
    joined = joined + joined.transpose(1, 2)
    score = torch.tanh(x @ random(6, 5, seed=43) / 3 + joined @ x @ random(6, 5, seed=44) / 3)
    y = score.mean(1) @ random(5, 1, seed=45)
    return split(torch.cat([x, joined], 2), y / y.std())


def clouds(n: int) -> Data:
    """Make sets of 16 points, stretched in one of five ways; a fourth coordinate is always one."""
    kind = torch.randint(5, (n + 300,), generator=torch.Generator().manual_seed(46))
    points = random(n + 300, 16, 3, seed=47) @ random(5, 3, 3, seed=48)[kind]
    return split(torch.cat([points, torch.ones(n + 300, 16, 1)], 2), kind)


def people(n: int, classes: int = 40) -> Data:
    """Make noisy features of forty people."""
    who = torch.randint(classes, (n + 300,), generator=torch.Generator().manual_seed(49))
    hidden = random(classes, 12, seed=50)[who] + 0.4 * random(n + 300, 12, seed=51)
    return split(torch.tanh(hidden @ random(12, 48, seed=52) / 3), who)


def turned(n: int) -> Data:
    """Turn the digits by a quarter."""
    (x, y), (xv, yv) = images()
    return (x[:n].rot90(1, (2, 3)), y[:n]), (xv.rot90(1, (2, 3)), yv)


def stripes(n: int) -> Data:
    """Make noisy pictures of stripes, of three directions and two colours."""
    generator = torch.Generator().manual_seed(53)
    kind = torch.randint(6, (n + 300,), generator=generator)
    phase = 6.28 * torch.rand(n + 300, 1, 1, generator=generator)
    turn = (kind % 3).view(-1, 1, 1) * 1.05
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    stripe = torch.sin(1.5 * (row * torch.cos(turn) + column * torch.sin(turn)) + phase)
    colour = torch.tensor([[1.0, 0.5, 0.2], [0.2, 0.5, 1.0]])[kind // 3].view(-1, 3, 1, 1)
    return split(stripe[:, None] * colour + 0.6 * random(n + 300, 3, 12, 12, seed=54), kind)


def orders(n: int, length: int = 8) -> Data:
    """Make rows of numbers below twelve, and the same in order."""
    x = torch.randint(12, (n + 300, length), generator=torch.Generator().manual_seed(55))
    return split(x, x.sort(1).values)


def picture(n: int) -> Data:
    """Make places of a picture with fine detail, and its brightness there."""
    at = 2 * torch.rand(n + 300, 2, generator=torch.Generator().manual_seed(56)) - 1
    a, b = at[:, :1], at[:, 1:]
    bright = torch.sin(9 * a + 2 * torch.sin(5 * b)) + 0.5 * torch.cos(14 * a * b)
    return split(at, bright + 0.05 * random(n + 300, 1, seed=57))


def core(n: int) -> Data:
    """Make two classes; the rare one is near the origin in three of eight inputs."""
    x = random(n + 300, 8, seed=58)
    return split(x, ((x[:, :3] ** 2).sum(1, keepdim=True) < 0.4).float())


def grades(n: int) -> Data:
    """Make five grades in order, each told by the four bounds it has passed."""
    x = random(n + 300, 10, seed=59)
    score = torch.tanh(x @ random(10, 6, seed=60) / 2).sum(1, keepdim=True)
    score = score / score.std() + 0.2 * random(n + 300, 1, seed=61)
    return split(x, (score > torch.tensor([-1.0, -0.3, 0.3, 1.0])).float())


def label_and_ink() -> Data:
    """Make two targets of each digit: its label, and its ink in a large unit."""
    (x, y), (xv, yv) = scaled(1.0)
    mean, std = x.sum(1).mean(), x.sum(1).std()
    ink, ink_v = (20 * (rows.sum(1) - mean) / std for rows in (x, xv))
    return (x, y, ink), (xv, yv, ink_v)


def tides(n: int, length: int = 16) -> Data:
    """Make series of two sines, and the four numbers that follow."""
    generator = torch.Generator().manual_seed(62)
    phase, size = 6.28 * torch.rand(2, n + 300, 1, 1, generator=generator)
    time = torch.arange(length + 4.0).view(1, -1, 1)
    level = torch.sin(0.5 * time + phase) + size / 6 * torch.sin(1.3 * time + 2 * phase)
    level = level + 0.1 * random(n + 300, length + 4, 1, seed=63)
    return split(level[:, :length], level[:, length:, 0])


def clicks(n: int, fields: int = 6, levels: int = 40) -> Data:
    """Make six one-hot fields, of which few levels are common, and whether one clicked."""
    generator = torch.Generator().manual_seed(64)
    level = (levels * torch.rand(n + 300, fields, generator=generator) ** 3).long()
    x = F.one_hot(level, levels).flatten(1).float()
    chance = torch.sigmoid(1.2 * x @ random(fields * levels, 1, seed=65) - 1)
    return split(x, (torch.rand(n + 300, 1, generator=generator) < chance).float())


def several(n: int) -> Data:
    """Make eight targets that are linear in sixteen inputs."""
    x = random(n + 300, 16, seed=66)
    y = x @ random(16, 8, seed=67) / 4 + 0.1 * random(n + 300, 8, seed=68)
    return split(x, y)


def mislabelled(n: int) -> Data:
    """Make six classes, and draw three labels of ten anew."""
    x = random(n + 300, 32, seed=69)
    label = (torch.tanh(x @ random(32, 16, seed=70) / 4) @ random(16, 6, seed=71)).argmax(1)
    generator = torch.Generator().manual_seed(72)
    other = torch.randint(6, label.shape, generator=generator)
    wrong = torch.rand(label.shape, generator=generator) < 0.3
    return split(x, torch.where(wrong, other, label))


class MessagePassing(nn.Module):
    """Send messages between the joined nodes of a graph twice, and say one number."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, width), nn.Linear(width, 1)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.sent = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each graph."""
        joined, h = x[:, :, 6:], self.embed(x[:, :, :6])
        for own, sent in zip(self.own, self.sent, strict=True):
            h = F.relu(own(h) + joined @ sent(h))
        return self.head(h.mean(1))


class SetModel(nn.Module):
    """Read each point alone, take their mean, and tell the class; without biases."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.each = mlp(4, width, width, bias=False)
        self.all = mlp(width, width, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes."""
        return self.all(self.each(x).mean(1))


class Mixing(nn.Module):
    """Mix the patches, then the channels, each by a small perceptron."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.across = mlp(patches, 2 * patches, patches, act=nn.GELU)
        self.along = mlp(width, 2 * width, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """Add both to the input."""
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.norms[1](x))


class Patches(nn.Module):
    """Cut a digit into 16 patches, embed each with its place, and read them by blocks."""

    def __init__(self, width: int, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, width), nn.Parameter(0.02 * torch.randn(16, width))
        self.body = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes."""
        patches = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        return self.head(self.body(self.embed(patches) + self.place).mean(1))


class Cosine(nn.Module):
    """Score classes by the angle between their directions and an embedding."""

    def __init__(self, body: nn.Module, width: int, classes: int, scale: float = 16.0) -> None:
        super().__init__()
        self.body, self.scale = body, scale
        self.directions = nn.Parameter(torch.randn(classes, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled cosines."""
        return self.scale * F.normalize(self.body(x), dim=1) @ F.normalize(self.directions, dim=1).T


class Sorter(nn.Module):
    """A transformer with dropout that puts numbers in order."""

    def __init__(self, width: int = 32, length: int = 8) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(12, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the numbers at each place."""
        return self.head(self.body(self.embed(x) + self.place.weight)).transpose(1, 2)


class Fourier(nn.Module):
    """Give a perceptron the sines and cosines of fixed random waves."""

    def __init__(self, waves: int = 48, pitch: float = 5.0) -> None:
        super().__init__()
        self.register_buffer("waves", pitch * torch.randn(2, waves))
        self.body = mlp(2 * waves, 64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the brightness."""
        angle = x @ self.waves
        return self.body(torch.cat([angle.sin(), angle.cos()], 1))


class SparseAutoencoder(nn.Module):
    """Rebuild digits from a wide code of which little should be used."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(64, width), nn.Linear(width, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pixels and then the code."""
        code = F.relu(self.encode(x))
        return torch.cat([self.decode(code), code], 1)


class Forecaster(nn.Module):
    """Read a series, and say what follows."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body, self.head = nn.GRU(1, width, batch_first=True), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the next four numbers."""
        return self.head(self.body(x)[0][:, -1])


class Shortcut(nn.Module):
    """Add two normalised convolutions to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
            layers.append(nn.ReLU())
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, without what is below zero."""
        return F.relu(x + self.body(x))


def mixer(width: int = 24) -> Patches:
    """Make a mixer of two blocks."""
    return Patches(width, Mixing(16, width), Mixing(16, width))


def patch_transformer(width: int = 32) -> Patches:
    """Make a transformer of patches, normalised first."""
    options = {"activation": F.gelu, "batch_first": True, "norm_first": True}
    return Patches(width, nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, **options))


def trained() -> nn.Sequential:
    """Train a network on upright digits, and give all of it."""
    net = cnn(10, 8, norm=True)
    train_on_digits(net, images(), lr=3e-3, updates=80, batch=64)
    return net


def colour_cnn() -> nn.Sequential:
    """Make a small network for pictures of three colours."""
    layers: list[nn.Module] = [nn.Conv2d(3, 12, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(12, 24, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 6))


def residual_cnn(width: int = 16) -> nn.Sequential:
    """Make a small residual network."""
    stem = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    ends = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*stem, Shortcut(width), nn.MaxPool2d(2), Shortcut(width), *ends)


def depthwise_cnn(width: int = 16) -> nn.Sequential:
    """Make a network whose wide filters see one channel each."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1), nn.ReLU6()]
    for step in (2, 1):
        layers += [nn.Conv2d(width, width, 3, step, 1, groups=width), nn.BatchNorm2d(width)]
        layers += [nn.ReLU6(), nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))


def focal(pred: Tensor, target: Tensor) -> Tensor:
    """Let what is told well already count for little."""
    loss = F.binary_cross_entropy_with_logits(pred, target, reduction="none")
    return (loss * (1 - torch.exp(-loss)) ** 2).mean()


def sparse(pred: Tensor, x: Tensor) -> Tensor:
    """Add the squares of the pixels and the size of the code."""
    return ((pred[:, :64] - x) ** 2).sum(1).mean() + 0.1 * pred[:, 64:].abs().sum(1).mean()


def two_scales(pred: Tensor, label: Tensor, ink: Tensor) -> Tensor:
    """Add the loss of the label and the squares of the ink, which are far larger."""
    return F.cross_entropy(pred[:, :10], label) + F.mse_loss(pred[:, 10], ink)


_xent, _bce, _mse = F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss
_rows, _pictures = partial(scaled, 1.0), partial(scaled, 1.0, False)
_large, _text = partial(regression, 1200, scale=100.0), partial(characters, 16, 1800)
_linear, _selu, _prelu = (partial(mlp, act=act) for act in (nn.Identity, nn.SELU, nn.PReLU))
_deep, _big = partial(_linear, 16, *[32] * 5, 8), partial(mlp, 32, 256, 256, 6)


def _same() -> Data:
    """Take the digits for inputs and for targets."""
    (x, _), (xv, _) = _rows()
    return (x, x), (xv, xv)


def _cosines() -> Cosine:
    """Make a perceptron that ends in directions."""
    return Cosine(mlp(48, 64, 24), 24, 40)


#: Name, optimizer, batch size, epochs, data, model, loss.
AFTER = [
    ("graphs", "AdamW", 32, 6, partial(graphs, 1600), MessagePassing, _mse),
    ("mixer of patches", "AdamW", 64, 7, _pictures, mixer, _xent),
    ("transformer of patches", "AdamW", 32, 4, _pictures, patch_transformer, _xent),
    ("cosines", "AdamW", 32, 5, partial(people, 2000), _cosines, _xent),
    ("all of a trained network", "AdamW", 16, 5, partial(turned, 640), trained, _xent),
    ("CNN of colours, batches of 4", "AdamW", 4, 2, partial(stripes, 800), colour_cnn, _xent),
    ("sorter with dropout", "AdamW", 32, 3, partial(orders, 1920), Sorter, _xent),
    ("Fourier features", "AdamW", 256, 30, partial(picture, 2560), Fourier, _mse),
    ("sparse autoencoder", "AdamW", 64, 12, _same, SparseAutoencoder, sparse),
    ("focal loss", "AdamW", 128, 12, partial(core, 3840), partial(mlp, 8, 64, 64, 1), focal),
    ("grades", "AdamW", 8, 3, partial(grades, 1200), partial(_prelu, 10, 48, 4), _bce),
    ("two scales", "SGD", 32, 8, label_and_ink, partial(mlp, 64, 64, 11), two_scales),
    ("forecast", "SGD", 16, 3, partial(tides, 1200), Forecaster, _mse),
    ("clicks, one-hot", "SGD", 64, 13, partial(clicks, 3200), partial(mlp, 240, 1), _bce),
    ("residual CNN", "SGD", 16, 2, _pictures, residual_cnn, _xent),
    ("deep linear", "SGD", 32, 8, partial(several, 1280), _deep, _mse),
    ("wrong labels", "SGD", 512, 15, partial(mislabelled, 6144), _big, _xent),
    ("regression of large inputs", "SGD", 16, 8, _large, partial(_selu, 12, 32, 1), _mse),
    ("LSTM", "RMSprop", 32, 3, _text, partial(Recurrent, nn.LSTM, 64), _xent),
    ("depthwise CNN", "RMSprop", 32, 5, _pictures, depthwise_cnn, _xent),
    ("sets", "Muon", 64, 6, partial(clouds, 1920), SetModel, _xent),
    ("wide perceptron", "Muon", 64, 7, _rows, partial(mlp, 64, 192, 10, bias=False), _xent),
]
