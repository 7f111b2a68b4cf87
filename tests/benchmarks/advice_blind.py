"""A sixth set of tasks of `advice.py`, written by one who had not seen what it advises on them."""

from __future__ import annotations

import argparse
import inspect
import math
import re
from collections import Counter
from functools import cache, partial

import torch
from advice_models import Data, mlp, random, scaled, split, summed_squares
from torch import Tensor, nn
from torch.nn import functional as F


def generator(seed: int) -> torch.Generator:
    """Make a generator that starts from a seed."""
    return torch.Generator().manual_seed(seed)


@cache
def hidden_words(length: int = 16, words: int = 160) -> Data:
    """Cut a module's source into rows of words; one in five is hidden, and is to be told."""
    found = re.findall(r"\w+|[^\w\s]", inspect.getsource(argparse))
    code = {word: i for i, (word, _) in enumerate(Counter(found).most_common(words - 2), 2)}
    text = torch.tensor([code.get(word, 1) for word in found])
    rows = text[: len(text) // length * length].view(-1, length)
    rows = rows[torch.randperm(len(rows), generator=generator(80))]
    hide = torch.rand(rows.shape, generator=generator(81)) < 0.2
    hide[:, 0] |= ~hide.any(1)
    return split(rows.masked_fill(hide, 0), rows.masked_fill(~hide, -100), valid=200)


def regions(n: int) -> Data:
    """Make a function that is linear in each of five regions, and jumps between them."""
    x = random(n + 300, 5, seed=82)
    near = torch.cdist(x, random(5, 5, seed=83)).argmin(1)
    slope, level = random(5, 5, seed=84)[near], 2 * random(5, 1, seed=85)[near]
    return split(x, (x * slope).sum(1, keepdim=True) + level + 0.1 * random(n + 300, 1, seed=86))


def cells(n: int, size: int = 20) -> Data:
    """Make drops of twenty cells, as raw counts of light; in half, one to three cells are ill."""
    x = random(n + 300, size, 12, seed=87)
    ill = torch.randint(2, (n + 300, 1), generator=generator(88))
    many = ill * torch.randint(1, 4, (n + 300, 1), generator=generator(89))
    inside = (torch.arange(size) < many).float().unsqueeze(2)
    sort = 3 * F.normalize(random(12, seed=90), dim=0)
    return split(300 + 60 * (x + inside * sort), ill.float())


def noisy_digits() -> Data:
    """Add noise of any size to digits; a second channel tells the size, the target is the noise."""
    (x, _), (xv, _) = scaled(1.0, False)

    def noisy(x: Tensor, seed: int) -> tuple[Tensor, ...]:
        size = 0.1 * 20 ** torch.rand(len(x), 1, 1, 1, generator=generator(seed))
        noise = random(*x.shape, seed=seed + 1)
        return torch.cat([x + size * noise, size.log().expand_as(x)], 1), noise

    return noisy(x, 91), noisy(xv, 93)


def spoken(n: int, frames: int = 28, symbols: int = 6) -> Data:
    """Make frames of features of four symbols one after another, each of unknown length."""
    said = torch.randint(symbols, (n + 300, 4), generator=generator(95))
    ends = torch.randint(4, 8, (n + 300, 4), generator=generator(96)).cumsum(1)
    place = (torch.arange(frames).view(1, -1, 1) >= ends.unsqueeze(1)).sum(2)
    silent = torch.full((n + 300, 1), symbols)
    sound = torch.cat([said, silent], 1).gather(1, place)
    sounds = torch.cat([random(symbols, 10, seed=97), torch.zeros(1, 10)])
    return split(sounds[sound] + 0.5 * random(n + 300, frames, 10, seed=98), said + 1)


def patients(n: int) -> Data:
    """Make what was measured of patients, when they died or were lost from sight, and which."""
    x = random(n + 300, 10, seed=99)
    risk = x @ random(10, 1, seed=100) / 2 + x[:, :1] * x[:, 1:2]
    chance = torch.rand(2, n + 300, 1, generator=generator(101)).clamp(min=1e-6)
    death, lost = -chance[0].log() / risk.exp(), -4 * chance[1].log()
    measured = (x + 3) * torch.logspace(-1, 1.6, 10)[random(10, seed=140).argsort()]
    return split(measured, torch.minimum(death, lost), (death < lost).float())


def bent(n: int) -> Data:
    """Make a curve that is bent back, so that one input has up to three answers."""
    y = torch.rand(n + 300, 1, generator=generator(102))
    x = y + 0.3 * torch.sin(6.28 * y) + 0.03 * random(n + 300, 1, seed=103)
    return split(x, y)


def weather(n: int, length: int = 24) -> Data:
    """Follow Lorenz's equations in their own units; the target is the point eight steps on."""
    point = 8 * random(n + 300, 3, seed=104) + torch.tensor([0.0, 0.0, 25.0])
    path = []
    for _ in range(200 + 2 * (length + 8)):
        a, b, c = point.unbind(1)
        speed = torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)
        point = point + 0.01 * speed
        path.append(point)
    rows = torch.stack(path[200::2], 2)
    return split(rows[:, :, :length], rows[:, :, length + 7])


def sound(n: int) -> Data:
    """Make moments of two seconds of sound, and the pressure then: chirps under an envelope."""
    time = 2 * torch.rand(n + 300, 1, generator=generator(105)) - 1
    chirp = torch.sin(90 * time + 40 * time**2) + 0.4 * torch.sin(240 * time)
    return split(time, chirp * torch.exp(-2 * (time - 0.2) ** 2))


def houses(n: int) -> Data:
    """Make houses and their prices in thousands: about 300, with a long tail."""
    x = random(n + 300, 9, seed=106)
    worth = x @ random(9, 1, seed=107) / 6 + 0.3 * torch.tanh(x[:, :1] * x[:, 1:2])
    return split(x, 300 * torch.exp(worth + 0.1 * random(n + 300, 1, seed=108)))


def hires(n: int) -> Data:
    """Make the hours and weekdays of hires of bicycles, the weather, and how many were hired."""
    hour = torch.randint(24, (n + 300,), generator=generator(109))
    day = torch.randint(7, (n + 300,), generator=generator(110))
    warm = random(n + 300, 2, seed=111)
    level = 2.5 + torch.sin((hour - 8) / 3.8) - (day > 4) * torch.cos(hour / 3.8)
    level = level + 0.4 * warm[:, 0] - 0.2 * warm[:, 0] ** 2 + 0.2 * warm[:, 1]
    x = torch.cat([F.one_hot(hour, 24), F.one_hot(day, 7), warm], 1)
    return split(x, torch.poisson(level.exp(), generator=generator(112)).unsqueeze(1))


def posts(n: int, words: int = 1500) -> Data:
    """Make posts of 30 words, most of them common, as rows of length one; and for or against."""
    common = 1 / torch.arange(4.0, words + 4)
    found = torch.multinomial(common, 30 * (n + 300), True, generator=generator(113))
    x = torch.zeros(n + 300, words)
    x.scatter_add_(1, found.view(n + 300, 30), torch.ones(n + 300, 30))
    x = F.normalize(x * (common.sum() / common).log(), dim=1)
    score = x @ random(words, 1, seed=114) + 0.3 * random(n + 300, 1, seed=115)
    return split(x, score.sign())


def cloths(n: int) -> Data:
    """Make pictures of five cloths: noise, each smeared in its own way."""
    kind = torch.randint(5, (n + 300,), generator=generator(116))
    filters = random(5, 1, 3, 3, seed=117)
    noise = random(1, n + 300, 12, 12, seed=118)
    smeared = torch.stack([F.conv2d(noise[0][:, None], f[None]) for f in filters])
    picture = smeared[kind, torch.arange(n + 300)]
    return split(picture / picture.std() + 0.3 * random(n + 300, 1, 10, 10, seed=119), kind)


def couples(n: int) -> Data:
    """Make couples of digits as two channels, half of them of one class; the target tells which."""
    (x, y), _ = scaled(1.0, False)
    first = torch.randint(len(x), (n + 300,), generator=generator(120))
    second = torch.randint(len(x), (n + 300,), generator=generator(121))
    for i in range(0, n + 300, 2):
        same = (y == y[first[i]]).nonzero()[:, 0]
        second[i] = same[second[i] % len(same)]
    order = torch.randperm(n + 300, generator=generator(122))
    x, y = torch.cat([x[first], x[second]], 1), (y[first] == y[second]).float()
    return split(x[order], y[order])


def blobs(n: int) -> Data:
    """Make pictures of a bright blob of any width, height and place, from zero to one."""
    at, size = torch.rand(2, n + 300, 2, 1, generator=generator(123))
    near = torch.exp(-(((torch.linspace(0, 1, 16) - at) / (0.1 + 0.3 * size)) ** 2))
    picture = (near[:, 0, :, None] * near[:, 1, None]).unsqueeze(1)
    return split(picture, picture)


def spectra(n: int, channels: int = 100) -> Data:
    """Make spectra of four substances over a ground that drifts, and how much there is of each."""
    share = torch.rand(n + 300, 4, generator=generator(124))
    at, wave = torch.tensor([[0.2], [0.35], [0.6], [0.8]]), torch.linspace(0, 1, channels)
    peaks = torch.exp(-((wave - at) ** 2) / 0.02)
    ground = 1 + 0.5 * random(n + 300, 1, seed=125) + 0.2 * random(n + 300, 1, seed=126) * wave
    x = share @ peaks + ground + 0.01 * random(n + 300, channels, seed=127)
    return split(x - x.mean(0), share - 0.5)


def games(n: int) -> Data:
    """Make positions, the move that was made of four, and the points that it brought."""
    x = random(n + 300, 8, seed=128)
    move = torch.randint(4, (n + 300,), generator=generator(129))
    worth = 40 * torch.tanh(x @ random(8, 12, seed=130) / 3) @ random(12, 4, seed=131) / 3
    points = worth.gather(1, move[:, None])[:, 0] + 10 * random(n + 300, seed=132)
    return split(x, move, points)


def states(n: int, length: int = 24) -> Data:
    """Make noisy series of a system that stays in one of three states for a while."""
    change = torch.rand(n + 300, length, generator=generator(133)) < 0.15
    step = torch.randint(1, 3, (n + 300, length), generator=generator(134))
    state = (change * step).cumsum(1) % 3
    mean = random(3, 4, seed=135)[state]
    return split(mean + 1.5 * random(n + 300, length, 4, seed=136), state)


def lookups(n: int, held: int = 6, kinds: int = 10) -> Data:
    """Make lists of keys and their values, then a key to look up; its value is the target."""
    keys = torch.rand(n + 300, kinds, generator=generator(137)).argsort(1)[:, :held]
    values = torch.randint(kinds, (n + 300, held), generator=generator(138))
    asked = torch.randint(held, (n + 300, 1), generator=generator(139))
    pairs = torch.cat([F.one_hot(keys, kinds), F.one_hot(values, kinds)], 2)
    query = F.one_hot(keys.gather(1, asked), kinds)
    query = torch.cat([query, torch.zeros_like(query)], 2)
    return split(torch.cat([pairs, query], 1).float(), values.gather(1, asked)[:, 0])


def halves() -> Data:
    """Take the upper half of each digit for input, and the lower one for target."""
    (x, _), (xv, _) = scaled(1.0)
    return (x[:, :32], x[:, 32:]), (xv[:, :32], xv[:, 32:])


class WordTransformer(nn.Module):
    """A transformer that sees the words on both sides of the hidden ones."""

    def __init__(self, width: int = 24, length: int = 16, words: int = 160) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 3 * width, 0.0, F.gelu, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.bias = nn.Parameter(torch.zeros(words))
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the words at each place, by the embedding itself."""
        h: Tensor = self.body(self.embed(x) + self.place)
        return (h @ self.embed.weight.T + self.bias).transpose(1, 2)


class Experts(nn.Module):
    """Weigh what eight linear experts say by a gate."""

    def __init__(self, inputs: int = 5, experts: int = 8) -> None:
        super().__init__()
        self.experts, self.gate = nn.Linear(inputs, experts), mlp(inputs, 24, experts)

    def forward(self, x: Tensor) -> Tensor:
        """Return one number."""
        said: Tensor = self.experts(x) * F.softmax(self.gate(x), 1)
        return said.sum(1, keepdim=True)


class AttentionPool(nn.Module):
    """Embed the members of a set, and weigh each by a gated attention."""

    def __init__(self, inputs: int = 12, width: int = 24) -> None:
        super().__init__()
        self.embed = mlp(inputs, width, width, act=nn.ReLU)
        self.look, self.gate = nn.Linear(width, 16), nn.Linear(width, 16)
        self.weigh, self.head = nn.Linear(16, 1), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the score of the set."""
        h = self.embed(x)
        weight = self.weigh(torch.tanh(self.look(h)) * torch.sigmoid(self.gate(h)))
        score: Tensor = self.head((F.softmax(weight, 1) * h).sum(1))
        return score


class Denoiser(nn.Module):
    """Go down to half the size and up again, and join what was seen on the way."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv2d(2, width, 3, 1, 1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.low = nn.Conv2d(2 * width, 2 * width, 3, 1, 1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.leave = nn.Conv2d(2 * width, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the noise."""
        wide = F.silu(self.enter(x))
        low = F.silu(self.low(F.silu(self.down(wide))))
        noise: Tensor = self.leave(torch.cat([wide, F.silu(self.up(low))], 1))
        return noise


class Listener(nn.Module):
    """Tell at each frame which symbol is heard, or none."""

    def __init__(self, inputs: int = 10, width: int = 32, symbols: int = 6) -> None:
        super().__init__()
        self.near, self.far = nn.Conv1d(inputs, width, 5, 1, 2), nn.Conv1d(width, width, 5, 1, 2)
        self.head = nn.Linear(width, symbols + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of each frame."""
        h = F.relu(self.far(F.relu(self.near(x.transpose(1, 2)))))
        scores: Tensor = self.head(h.transpose(1, 2))
        return scores


class Dilated(nn.Module):
    """Read a series of raw values by convolutions that reach further and further back."""

    def __init__(self, inputs: int = 3, width: int = 24) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv1d(inputs, width, 1), nn.Linear(width, inputs)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the point to come."""
        h = self.enter(x)
        for i, layer in enumerate(self.layers):
            h = h + F.relu(layer(F.pad(h, (2**i, 0))))
        point: Tensor = self.head(h[:, :, -1])
        return point


class Sine(nn.Module):
    """A layer that ends in the sine of what is thirty times as fast."""

    def __init__(self, inputs: int, width: int, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sines."""
        return torch.sin(30 * self.linear(x))


class FixedUp(nn.Module):
    """Add two convolutions to the input, of which the second starts at zero; nothing is normed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(width, width, 3, 1, 1) for _ in range(2))
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        more: Tensor = self.last(F.relu(self.first(F.relu(x))))
        return x + more


class Siamese(nn.Module):
    """Embed both of a couple by one network with GroupNorm; returns how far apart they are."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the distances."""
        h = self.body(x.flatten(0, 1).unsqueeze(1)).view(len(x), 2, -1)
        return F.pairwise_distance(h[:, 0], h[:, 1])


class Tagger(nn.Module):
    """Read a series from both ends, and tell the state at each step."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body = nn.LSTM(4, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the states at each step."""
        scores: Tensor = self.head(self.body(x)[0])
        return scores.transpose(1, 2)


class Lookup(nn.Module):
    """Let the rows attend to one another; matrices only."""

    def __init__(self, inputs: int = 20, width: int = 32, kinds: int = 10) -> None:
        super().__init__()
        linear = partial(nn.Linear, bias=False)
        self.embed, self.head = linear(inputs, width), linear(width, kinds)
        self.maps = linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the values."""
        h = self.embed(x)
        query, key, value = self.maps(h).chunk(3, 2)
        h = h + F.scaled_dot_product_attention(query, key, value)
        scores: Tensor = self.head(F.rms_norm(h[:, -1], h.shape[-1:]))
        return scores


class Gated(nn.Module):
    """Add a gated hidden layer to the input; matrices only."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum."""
        value, gate = self.up(F.rms_norm(x, x.shape[-1:])).chunk(2, 1)
        more: Tensor = self.down(value * F.silu(gate))
        return x + more


def sines(width: int = 64) -> nn.Sequential:
    """Make a network of sines for one moment."""
    layers = [Sine(1, width, True), *(Sine(width, width, False) for _ in range(2))]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def fixed_up(width: int = 12) -> nn.Sequential:
    """Make a residual network for cloths without any norm; its head starts at zero too."""
    stem = [nn.Conv2d(1, width, 3, 2, 1), *(FixedUp(width) for _ in range(2)), nn.ReLU()]
    head = nn.Linear(width, 5)
    nn.init.zeros_(head.weight)
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def picture_autoencoder(width: int = 6) -> nn.Sequential:
    """Make a convolutional network with BatchNorm that squeezes a picture into twelve numbers."""
    down = [nn.Conv2d(1, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    down += [nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU()]
    code = [nn.Flatten(), nn.Linear(32 * width, 12), nn.Linear(12, 32 * width)]
    up = [nn.Unflatten(1, (2 * width, 4, 4)), nn.BatchNorm2d(2 * width), nn.ReLU()]
    up += [nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*down, *code, *up, nn.ConvTranspose2d(width, 1, 4, 2, 1))


def gated(width: int = 32) -> nn.Sequential:
    """Make two gated layers and a matrix."""
    layers = [Gated(width, 48) for _ in range(2)]
    return nn.Sequential(*layers, nn.Linear(width, 32, bias=False))


def transcript(pred: Tensor, said: Tensor) -> Tensor:
    """Sum over all ways in which the symbols may lie along the frames."""
    n, frames, _ = pred.shape
    long, short = torch.full((n,), frames), torch.full((n,), said.shape[1])
    return F.ctc_loss(F.log_softmax(pred, 2).transpose(0, 1), said, long, short)


def survival(pred: Tensor, time: Tensor, died: Tensor) -> Tensor:
    """Tell who dies from those who were still in sight then, as Cox does."""
    order = time[:, 0].argsort(descending=True)
    risk, died = pred[order, 0], died[order, 0]
    return ((torch.logcumsumexp(risk, 0) - risk) * died).sum() / died.sum().clamp(min=1)


def mixture(pred: Tensor, target: Tensor) -> Tensor:
    """Take the outputs for the weights, means and log deviations of normal distributions."""
    weight, mean, log_std = pred.chunk(3, 1)
    each = F.log_softmax(weight, 1) - log_std - ((target - mean) / log_std.exp()) ** 2 / 2
    return 0.5 * math.log(2 * math.pi) - torch.logsumexp(each, 1).mean()


def squared_hinge(pred: Tensor, side: Tensor) -> Tensor:
    """Square what is missing to a margin of one."""
    return F.relu(1 - side * pred).square().mean()


def margin(distance: Tensor, same: Tensor) -> Tensor:
    """Draw the same together, and push others apart up to a distance of one."""
    return (same * distance**2 + (1 - same) * F.relu(1 - distance) ** 2).mean()


def move_made(pred: Tensor, move: Tensor, points: Tensor) -> Tensor:
    """Compare the points with what was foretold of the move that was made."""
    return F.huber_loss(pred.gather(1, move[:, None])[:, 0], points)


_xent, _bce, _mse = F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss
_silu, _tanh = partial(mlp, act=nn.SiLU), partial(mlp, act=nn.Tanh)

#: Name, optimizer, batch size, epochs, data, model, loss.
BLIND = [
    ("hidden words", "AdamW", 32, 6, hidden_words, WordTransformer, _xent),
    ("experts", "AdamW", 64, 14, partial(regions, 1920), Experts, _mse),
    ("cells", "AdamW", 8, 2, partial(cells, 1600), AttentionPool, _bce),
    ("noise of digits", "AdamW", 16, 3, noisy_digits, Denoiser, _mse),
    ("transcripts", "AdamW", 32, 3, partial(spoken, 1920), Listener, transcript),
    (
        "survival",
        "AdamW",
        128,
        20,
        partial(patients, 2560),
        partial(_silu, 10, 128, 128, 1),
        survival,
    ),
    ("mixture", "AdamW", 256, 40, partial(bent, 2560), partial(_tanh, 1, 32, 15), mixture),
    ("raw weather", "AdamW", 8, 2, partial(weather, 1200), Dilated, _mse),
    ("sines of sound", "AdamW", 256, 40, partial(sound, 2048), sines, _mse),
    ("prices", "AdamW", 4, 2, partial(houses, 1000), partial(mlp, 9, 48, 48, 1), F.l1_loss),
    ("hires", "SGD", 32, 6, partial(hires, 1920), partial(mlp, 33, 32, 1), F.poisson_nll_loss),
    (
        "posts, squared hinge",
        "SGD",
        32,
        4,
        partial(posts, 4000),
        partial(mlp, 1500, 1),
        squared_hinge,
    ),
    ("cloths, nothing normed", "SGD", 32, 4, partial(cloths, 1600), fixed_up, _xent),
    ("couples", "SGD", 64, 6, partial(couples, 1920), Siamese, margin),
    (
        "autoencoder of blobs",
        "SGD",
        16,
        2,
        partial(blobs, 1600),
        picture_autoencoder,
        summed_squares,
    ),
    ("spectra", "SGD", 8, 3, partial(spectra, 1600), partial(mlp, 100, 4), _mse),
    ("games", "RMSprop", 32, 8, partial(games, 1920), partial(mlp, 8, 64, 64, 4), move_made),
    ("states", "RMSprop", 16, 2, partial(states, 1600), Tagger, _xent),
    ("lookups", "Muon", 64, 6, partial(lookups, 1920), Lookup, _xent),
    ("lower halves", "Muon", 64, 7, halves, gated, _mse),
]
