"""Whether `Learner.diagnose` is right: its answer against fits of equal length.

For each case and seed the learner is diagnosed, and then fitted from the same weights and in the
same number of updates: at the constant usual rate; by one cycle with the peak that the diagnosis
gives, or where it gives none with three times the usual rate; and by one cycle with the usual rate
as peak, which tells what the falling rate does alone. One cycle wins, or loses, where the mean
difference of the pairs is over twice its standard error. "yes" should win, "no" should not.

    python tests/benchmarks/diagnose.py --seeds 5
    ONECYCLE_DATA=folder python tests/benchmarks/diagnose.py --seeds 3 --own-decay lenet cifar

The second line runs the cases with these words in their names; MNIST and CIFAR-10 need the data.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from onecycle import DataLoaders, Diagnosis, Learner, TensorLoader, accuracy, lenet
from onecycle.vision import cifar10, digits, digits_cnn, mnist

momentum_sgd = partial(SGD, momentum=0.9)


def mlp(
    depth: int = 2, activation: type[nn.Module] = nn.ReLU, *, norm: bool = False, n_in: int = 64
) -> nn.Sequential:
    """Make a plain network of ``depth`` hidden layers with 64 units."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers.append(nn.Linear(64 if i else n_in, 64))
        layers += [nn.BatchNorm1d(64)] if norm else []
        layers.append(activation())
    return nn.Sequential(*layers, nn.Linear(64 if depth else n_in, 10))


def cnn(*, norm: bool) -> nn.Sequential:
    """Make a network of three convolutions for CIFAR-10."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1)]
        layers += [nn.BatchNorm2d(c_out)] if norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def subset(dls: DataLoaders, n_train: int, n_valid: int) -> DataLoaders:
    """Take the first images of each loader after a seeded permutation, in batches of 64."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for loader, n in ((dls.train, n_train), (dls.valid, n_valid)):
        assert isinstance(loader, TensorLoader)
        assert loader.transform is not None
        x, y = loader.tensors
        chosen = torch.randperm(len(y), generator=generator)[:n]
        parts.append(loader.transform((x[chosen], y[chosen])))
    (x, y), (x_valid, y_valid) = parts
    return DataLoaders(
        TensorLoader(x, y, batch_size=64, shuffle=True),
        TensorLoader(x_valid, y_valid, batch_size=250),
    )


def split(x: Tensor, y: Tensor) -> DataLoaders:
    """Train on three quarters of the samples, in batches of 50, and validate on the others."""
    n = len(x) * 3 // 4
    return DataLoaders(
        TensorLoader(x[:n], y[:n], batch_size=50, shuffle=True),
        TensorLoader(x[n:], y[n:], batch_size=250),
    )


def spirals() -> DataLoaders:
    """Make two spirals of 1000 points each, in each other."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.rand(2000, generator=generator).sqrt() * 3 * math.pi
    label = torch.arange(2000) % 2
    angle = turn + math.pi * label
    x = turn[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / 5
    return split(x + 0.05 * torch.randn(2000, 2, generator=generator), label)


def ill_conditioned() -> DataLoaders:
    """Make a linear regression whose 20 inputs have scales from 1 to 0.01, and equal shares."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.logspace(0, -2, 20)
    x = torch.randn(2000, 20, generator=generator) * scales
    weights = torch.randn(20, 1, generator=generator) / scales[:, None]
    return split(x, x @ weights + 0.1 * torch.randn(2000, 1, generator=generator))


@cache
def load(name: str) -> DataLoaders:
    """Return the data of a case, each made once."""
    folder = os.environ.get("ONECYCLE_DATA", "data")
    if name == "mnist":
        return subset(mnist(folder, download=False), 1000, 500)
    if name == "cifar10":
        return subset(cifar10(folder, download=False), 2000, 500)
    made: dict[str, Callable[[], DataLoaders]] = {
        "digits": digits,
        "spirals": spirals,
        "ill_conditioned": ill_conditioned,
    }
    return made[name]()


@dataclass(frozen=True)
class Case:
    """A model, its data and its optimizer."""

    data: str
    model: Callable[[], nn.Module]
    opt_func: Callable[..., torch.optim.Optimizer]
    epochs: int

    def learner(self, seed: int) -> Learner:
        """Make it, the same for the same seed."""
        torch.manual_seed(seed)
        regression = self.data == "ill_conditioned"
        return Learner(
            load(self.data),
            self.model(),
            nn.functional.mse_loss if regression else nn.functional.cross_entropy,
            self.opt_func,
            metrics=[] if regression else [accuracy],
            device="cpu",
            seed=seed,
        )


CASES = {
    "MLP 2, SGD": Case("digits", mlp, momentum_sgd, 6),
    "MLP 2, SGD without momentum": Case("digits", mlp, SGD, 6),
    "MLP 2, SGD, momentum 0.98": Case("digits", mlp, partial(SGD, momentum=0.98), 6),
    "MLP 2, AdamW": Case("digits", mlp, AdamW, 6),
    "MLP 3 with BatchNorm, SGD": Case("digits", partial(mlp, 3, norm=True), momentum_sgd, 6),
    "MLP 5, AdamW": Case("digits", partial(mlp, 5), AdamW, 8),
    "MLP 5, SGD": Case("digits", partial(mlp, 5), momentum_sgd, 8),
    "MLP 5 tanh, SGD": Case("digits", partial(mlp, 5, nn.Tanh), momentum_sgd, 8),
    "MLP 12 tanh, SGD": Case("digits", partial(mlp, 12, nn.Tanh), momentum_sgd, 10),
    "MLP 12 tanh, AdamW": Case("digits", partial(mlp, 12, nn.Tanh), AdamW, 10),
    "MLP 2 sigmoid, SGD": Case("digits", partial(mlp, 2, nn.Sigmoid), momentum_sgd, 8),
    "logistic regression, SGD": Case("digits", partial(mlp, 0), momentum_sgd, 6),
    "spirals, MLP 2 tanh, SGD": Case("spirals", partial(mlp, 2, nn.Tanh, n_in=2), momentum_sgd, 8),
    "ill-conditioned regression, SGD": Case(
        "ill_conditioned", partial(nn.Linear, 20, 1), momentum_sgd, 6
    ),
    "digits_cnn, SGD": Case("digits", digits_cnn, momentum_sgd, 4),
    "digits_cnn, AdamW": Case("digits", digits_cnn, AdamW, 4),
    "lenet on MNIST, SGD": Case("mnist", lenet, momentum_sgd, 6),
    "CNN with BatchNorm on cifar, SGD": Case("cifar10", partial(cnn, norm=True), momentum_sgd, 5),
    "CNN on cifar, SGD": Case("cifar10", partial(cnn, norm=False), momentum_sgd, 5),
}


def fit(case: Case, seed: int, kind: str, lr: float) -> float:
    """Fit, and return the validation metric, more of which is better."""
    learn = case.learner(seed)
    with learn.no_bar():
        if kind == "constant":
            learn.fit(case.epochs, lr)
        else:
            learn.fit_one_cycle(case.epochs, lr)
    found = learn.validate()
    return found.get("accuracy", -found["valid_loss"])


@dataclass
class Outcome:
    """What the seeds of one case gave."""

    found: list[Diagnosis] = field(default_factory=list)
    constant: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    usual: list[float] = field(default_factory=list)

    def add(self, case: Case, seed: int, **options: Any) -> None:
        """Diagnose and fit with one more seed."""
        learn = case.learner(seed)
        with learn.no_bar():
            found = learn.diagnose(**options)
        if found.lr_usual is None:
            self.found.append(found)
            return
        peak = found.lr_max or 3 * found.lr_usual
        self.found.append(found)
        self.constant.append(fit(case, seed, "constant", found.lr_usual))
        self.usual.append(fit(case, seed, "one cycle", found.lr_usual))
        self.large.append(fit(case, seed, "one cycle", peak))

    def result(self) -> str:
        """Say whether one cycle with the large peak wins, beyond the spread of the seeds."""
        pairs = torch.tensor(self.large) - torch.tensor(self.constant)
        pairs = pairs.nan_to_num(-1e9)
        if len(pairs) < 2:
            return "not run"
        mean, error = float(pairs.mean()), float(pairs.std()) / math.sqrt(len(pairs))
        return "wins" if mean > 2 * error else "loses" if mean < -2 * error else "no difference"

    def answer(self) -> str:
        """Return the answer that most seeds gave, "unsure" where none has more than half."""
        answer, count = Counter(found.answer for found in self.found).most_common(1)[0]
        return answer if 2 * count > len(self.found) else "unsure"

    def verdict(self) -> str:
        """Say whether the answer is right."""
        answer, result = self.answer(), self.result()
        if answer == "unsure" or result == "not run":
            return "-"
        return "right" if (answer == "yes") == (result == "wins") else "WRONG"


def shown(values: list[float]) -> str:
    """Show the mean and the standard deviation."""
    numbers = torch.tensor(values).abs()
    if len(numbers) < 2:
        return "-"
    return f"{float(numbers.mean()):.4g} ± {float(numbers.std()):.2g}"


def row(name: str, outcome: Outcome) -> str:
    """Show a case as a line of the table."""
    ratios = [
        f"{p.lr_hi / found.lr_usual:.1f}" if p.lr_hi and found.lr_usual else "none"
        for found in outcome.found
        for p in [found.plateaus.get(found.weight_decay)]
        if p is not None
    ]
    answers = Counter(found.answer for found in outcome.found)
    cells = [
        name,
        " ".join(f"{count} {answer}" for answer, count in answers.items()),
        " ".join(ratios),
        shown(outcome.constant),
        shown(outcome.usual),
        shown(outcome.large),
        outcome.result(),
        outcome.verdict(),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run the cases that are asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="run the cases with one of these in their names")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--own-decay", action="store_true", help="try no other weight decay: a third of the time"
    )
    arguments = parser.parse_args()
    options = {"wds": ()} if arguments.own_decay else {}
    torch.set_num_threads(1)
    logging.getLogger("onecycle").setLevel(logging.ERROR)
    start = time.perf_counter()
    verdicts: Counter[str] = Counter()
    print(
        "| case | answers | plateau's end / usual rate | constant usual rate "
        "| one cycle to the usual | one cycle to the diagnosed peak | which | answer |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, case in CASES.items():
        needs_data = case.data in ("mnist", "cifar10") and "ONECYCLE_DATA" not in os.environ
        if needs_data or (arguments.words and not any(w in name for w in arguments.words)):
            continue
        outcome = Outcome()
        for seed in range(arguments.seeds):
            outcome.add(case, seed, **options)
        print(row(name, outcome), flush=True)
        verdicts[outcome.verdict()] += 1
    print(f"{dict(verdicts)} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
