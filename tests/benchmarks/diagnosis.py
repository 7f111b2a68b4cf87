"""Whether `Learner.diagnose` is right: its answer against other fits of equal length.

Each case is diagnosed, short fits under seeds 0 to 2 included. Then the same kinds of fit are made
under seeds 10 to 14, which the diagnosis has not seen: at the constant usual rate; by one cycle to
the rate that `minimum` suggests; by one cycle to the diagnosed peak, or where there is none to
three times the usual rate. The peak wins, or loses, where its mean lead over the better of the
others, seed by seed, is over twice its standard error. A "yes" that loses is wrong, and a "no" that
wins.

    nice -n 5 python tests/benchmarks/diagnosis.py fits.jsonl
    python tests/benchmarks/diagnosis.py fits.jsonl --table

Thresholds were chosen on the cases of `CHOSEN_ON`; those of `SHOWN_ON` were run once, afterwards.
A line of the file is a case, and a case that is in it is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.optim import SGD, AdamW, RMSprop

from onecycle import DataLoaders, Diagnosis, Learner, TensorLoader, accuracy
from onecycle.studies.verification import ShortFit, epochs_of, verify
from onecycle.vision import digits

momentum_sgd = partial(SGD, momentum=0.9)
UPDATES, LATER_SEEDS = 200, range(10, 15)


def mlp(
    depth: int = 2,
    activation: type[nn.Module] = nn.ReLU,
    *,
    norm: bool = False,
    n_in: int = 64,
    n_out: int = 10,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Make a plain network of ``depth`` hidden layers with 64 units."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers.append(nn.Linear(64 if i else n_in, 64))
        layers += [nn.BatchNorm1d(64)] if norm else []
        layers += [activation(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(64 if depth else n_in, n_out))


def cnn(*, norm: bool = False) -> nn.Sequential:
    """Make a network of two convolutions for 8x8 images."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((1, 8), (8, 16)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1)]
        layers += [nn.BatchNorm2d(c_out)] if norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


class Residual(nn.Module):
    """Three residual blocks with layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
            for _ in range(3)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = x.flatten(1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Recurrent(nn.Module):
    """A GRU over sequences of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(1, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.gru(x)[0][:, -1])


class Words(nn.Module):
    """A bag of words."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(200, 16), mlp(1, n_in=16, n_out=4)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.bag(x))


def autoencoder() -> nn.Sequential:
    """Make a network that squeezes 64 pixels into 8 numbers."""
    sizes = [(64, 32), (32, 8), (8, 32), (32, 64)]
    layers = [layer for n, m in sizes for layer in (nn.Linear(n, m), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def split(x: Tensor, y: Tensor, batch_size: int = 50) -> DataLoaders:
    """Train on three quarters of the samples, and validate on the others."""
    n = len(x) * 3 // 4
    return DataLoaders(
        TensorLoader(x[:n], y[:n], batch_size=batch_size, shuffle=True),
        TensorLoader(x[n:], y[n:], batch_size=250),
    )


def seeded() -> torch.Generator:
    """Return a generator of the data."""
    return torch.Generator().manual_seed(0)


def spirals() -> DataLoaders:
    """Make two spirals of 1000 points each, in each other."""
    generator = seeded()
    turn = torch.rand(2000, generator=generator).sqrt() * 3 * math.pi
    label = torch.arange(2000) % 2
    angle = turn + math.pi * label
    x = turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / 5
    return split(x + 0.05 * torch.randn(2000, 2, generator=generator), label)


def ill_conditioned() -> DataLoaders:
    """Make a linear regression whose 20 inputs have scales from 1 to 0.01, and equal shares."""
    generator = seeded()
    scales = torch.logspace(0, -2, 20)
    x = torch.randn(2000, 20, generator=generator) * scales
    weights = torch.randn(20, 1, generator=generator) / scales[:, None]
    return split(x, x @ weights + 0.1 * torch.randn(2000, 1, generator=generator))


def waves() -> DataLoaders:
    """Make a regression on the sine of a sum."""
    x = torch.rand(2000, 4, generator=seeded()) * 2 - 1
    return split(x, (3 * x.sum(1, keepdim=True)).sin())


def rare() -> DataLoaders:
    """Make two classes of which one has a share of 6 %."""
    x = torch.randn(3000, 10, generator=seeded())
    return split(x, (x[:, :3].sum(1) > 2.7).long())


def sequences() -> DataLoaders:
    """Make sequences of 12 numbers, and whether their first half has the larger sum."""
    x = torch.randn(2000, 12, 1, generator=seeded())
    return split(x, (x[:, :6].sum((1, 2)) > x[:, 6:].sum((1, 2))).long())


def words() -> DataLoaders:
    """Make texts of 20 words, each class with 20 words of its own among 200."""
    generator = seeded()
    y = torch.randint(4, (2000,), generator=generator)
    x = torch.randint(200, (2000, 20), generator=generator)
    own = torch.rand(2000, 20, generator=generator) < 0.15
    return split(torch.where(own, x % 20 + 20 * y[:, None], x), y)


def images(batch_size: int = 64, *, as_targets: bool = False, n: int = 10_000) -> DataLoaders:
    """Return the digits, or with the images as their own targets."""
    dls = digits()
    parts = []
    for loader in (dls.train, dls.valid):
        assert isinstance(loader, TensorLoader)
        x, y = loader.tensors if loader.transform is None else loader.transform(loader.tensors)
        x, y = x[:n], y[:n]
        parts.append((x, x.flatten(1)) if as_targets else (x, y))
    return DataLoaders(
        TensorLoader(*parts[0], batch_size=batch_size, shuffle=True),
        TensorLoader(*parts[1], batch_size=180),
    )


@cache
def load(make: Callable[[], DataLoaders]) -> DataLoaders:
    """Return the data of a case, each made once."""
    return make()


@dataclass(frozen=True)
class Case:
    """A model, its data and its optimizer."""

    data: Callable[[], DataLoaders]
    model: Callable[[], nn.Module]
    opt_func: Callable[..., torch.optim.Optimizer]
    is_regression: bool = False

    def learner(self) -> Learner:
        """Make it, always the same."""
        torch.manual_seed(0)
        loss = mse_loss if self.is_regression else cross_entropy
        metrics = [] if self.is_regression else [accuracy]
        return Learner(
            load(self.data),
            self.model(),
            loss,
            self.opt_func,
            metrics=metrics,
            device="cpu",
            seed=0,
        )


squeezed = partial(images, as_targets=True)
small_batches = partial(images, 8, n=400)

#: The cases that thresholds were chosen on.
CHOSEN_ON = {
    "MLP 2, SGD": Case(images, mlp, momentum_sgd),
    "MLP 2, SGD without momentum": Case(images, mlp, SGD),
    "MLP 2, AdamW": Case(images, mlp, AdamW),
    "MLP 3 with BatchNorm, SGD": Case(images, partial(mlp, 3, norm=True), momentum_sgd),
    "MLP 5, AdamW": Case(images, partial(mlp, 5), AdamW),
    "MLP 5, SGD": Case(images, partial(mlp, 5), momentum_sgd),
    "MLP 5 tanh, SGD": Case(images, partial(mlp, 5, nn.Tanh), momentum_sgd),
    "MLP 2 sigmoid, SGD": Case(images, partial(mlp, 2, nn.Sigmoid), momentum_sgd),
    "logistic regression, SGD": Case(images, partial(mlp, 0), momentum_sgd),
    "spirals, MLP 2 tanh, SGD": Case(spirals, partial(mlp, 2, nn.Tanh, n_in=2), momentum_sgd),
    "ill-conditioned regression, SGD": Case(
        ill_conditioned, partial(nn.Linear, 20, 1), momentum_sgd, is_regression=True
    ),
    "CNN, AdamW": Case(images, cnn, AdamW),
}

#: The cases that the thresholds are shown on.
SHOWN_ON = {
    "MLP 2, SGD, momentum 0.98": Case(images, mlp, partial(SGD, momentum=0.98)),
    "MLP 12 tanh, AdamW": Case(images, partial(mlp, 12, nn.Tanh), AdamW),
    "MLP 2, SGD, batches of 8": Case(small_batches, mlp, momentum_sgd),
    "MLP 2 with dropout 0.3, RMSprop": Case(images, partial(mlp, dropout=0.3), RMSprop),
    "CNN, SGD": Case(images, cnn, momentum_sgd),
    "CNN with BatchNorm, AdamW": Case(images, partial(cnn, norm=True), AdamW),
    "residual MLP with LayerNorm, SGD": Case(images, Residual, momentum_sgd),
    "autoencoder, AdamW": Case(squeezed, autoencoder, AdamW, is_regression=True),
    "GRU on sequences, AdamW": Case(sequences, Recurrent, AdamW),
    "bag of words, AdamW": Case(words, Words, AdamW),
    "waves, MLP 3 tanh, RMSprop": Case(
        waves, partial(mlp, 3, nn.Tanh, n_in=4, n_out=1), RMSprop, is_regression=True
    ),
    "a rare class, MLP 2, SGD": Case(rare, partial(mlp, n_in=10, n_out=2), momentum_sgd),
}


def run(name: str, case: Case, part: str) -> dict[str, Any]:
    """Diagnose a case and make its later fits; return what is written down of it."""
    began = time.process_time()
    learn = case.learner()
    with learn.no_bar():
        found = learn.diagnose(num_it=UPDATES, init=case.model)
        guess = learn.diagnose(num_it=UPDATES, verify=False)
        later = later_fits(learn, guess, case)
    plateau = guess.plateaus.get(guess.weight_decay)
    return {
        "case": name,
        "part": part,
        "answer": found.answer,
        "guess": guess.answer,
        "sentence": found.sentence,
        "less": found.less_is_better,
        "lr_usual": guess.lr_usual,
        "lr_hi": None if plateau is None else plateau.lr_hi,
        "share": None if plateau is None else plateau.share,
        "weight_decay": guess.weight_decay,
        "fits": {fit: ends.tolist() for fit, ends in found.fits.items()},
        "later": {fit: ends.tolist() for fit, ends in later.items()},
        "seconds": round(time.process_time() - began, 1),
    }


def later_fits(learn: Learner, guess: Diagnosis, case: Case) -> dict[str, Any]:
    """Make the fits under other seeds, that of the peak last."""
    usual = guess.lr_usual
    if usual is None:
        return {}
    peak = guess.lr_max or 3 * usual
    other = guess.lr_max is not None and guess.weight_decay in list(guess.plateaus)[1:]
    fits = [ShortFit("constant", usual, is_cycle=False)]
    if guess.lr_suggested is not None:
        fits.append(ShortFit("suggestion", guess.lr_suggested))
    fits.append(ShortFit("peak", peak, weight_decay=guess.weight_decay if other else None))
    return verify(
        learn,
        fits,
        epochs_of(learn, UPDATES),
        LATER_SEEDS,
        init=case.model,
        metric=guess.metric,
    )


def result(later: Mapping[str, list[float]], *, less: bool) -> str:
    """Say whether the peak wins, beyond the spread of the seeds, over the better of the others."""
    if not later:
        return "not run"
    values = {name: np.array(ends) * (-1 if less else 1) for name, ends in later.items()}
    means = {n: v.mean() if np.isfinite(v).all() else -math.inf for n, v in values.items()}
    best = max((name for name in values if name != "peak"), key=means.__getitem__)
    if not math.isfinite(means["peak"]):
        return "loses"
    if not math.isfinite(means[best]):
        return "wins"
    leads = values["peak"] - values[best]
    lead, error = leads.mean(), leads.std(ddof=1) / math.sqrt(len(leads))
    return "wins" if lead > 2 * error else "loses" if lead < -2 * error else "no difference"


def verdict(answer: str, which: str) -> str:
    """Say whether an answer is right."""
    wrong = (answer, which) in (("yes", "loses"), ("no", "wins"))
    right = (answer, which) in (("yes", "wins"), ("no", "loses"), ("no", "no difference"))
    return "WRONG" if wrong else "right" if right else "-"


def table(lines: list[dict[str, Any]]) -> str:
    """Write every fit of every case as a table."""
    rows = [
        "| case | guess | answer | plateau's end / usual rate | constant | one cycle to the "
        "suggestion | one cycle to the peak | which wins later | answer is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        fits, which = list(line["fits"].values()), result(line["later"], less=line["less"])
        ratio = "none" if not line["lr_hi"] else f"{line['lr_hi'] / line['lr_usual']:.1f}"
        cells = [line["case"], line["guess"], line["answer"], ratio]
        for i, name in enumerate(("constant", "suggestion", "peak")):
            first = _each(fits[i]) if len(fits) == 3 else "no fit"
            cells.append(f"{first}; {_each(line['later'].get(name, []))}")
        rows.append("| " + " | ".join([*cells, which, verdict(line["answer"], which)]) + " |")
    return "\n".join(rows)


def _each(ends: list[float]) -> str:
    return " ".join(f"{end:.3g}" for end in ends) or "none"


def main() -> None:
    """Run what is not in the file yet, or print the tables of what is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="where the cases are written, one a line")
    parser.add_argument("--table", action="store_true", help="print the tables, run nothing")
    parser.add_argument("--part", choices=("chosen", "shown"), help="run these cases alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("onecycle").setLevel(logging.ERROR)
    text = arguments.file.read_text() if arguments.file.exists() else ""
    done = [json.loads(line) for line in text.splitlines()]
    for part, cases in (("chosen", CHOSEN_ON), ("shown", SHOWN_ON)):
        if arguments.part in (None, part) and not arguments.table:
            for name, case in cases.items():
                if name not in {line["case"] for line in done}:
                    done.append(run(name, case, part))
                    with arguments.file.open("a") as file:
                        file.write(json.dumps(done[-1]) + "\n")
        of_part = [line for line in done if line["part"] == part]
        print(f"{part}\n{table(of_part)}\n{sum(line['seconds'] for line in of_part):.0f} s")


if __name__ == "__main__":
    main()
