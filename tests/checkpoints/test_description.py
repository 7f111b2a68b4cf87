"""Functions and objects are told apart by name and plain fields, and are the same elsewhere."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, l1_loss, mse_loss

from onecycle import linear
from onecycle.checkpoints.description import described, name_of, plain
from onecycle.schedules.shapes import Schedule

HERE = __name__.partition(".")[0]


def weighted(weight, scale=1.0):
    def loss(pred, y):
        return scale * cross_entropy(pred, y, weight=weight)

    return loss


class Focal:
    def __init__(self, gamma):
        self.gamma, self._calls = gamma, [gamma]

    def __call__(self, pred, y):
        return pred

    def alone(self, pred, y):
        return y


class Mean(nn.Module):
    def __init__(self, part, weight=0.5):
        super().__init__()
        self.part, self.weight = part, weight


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (mse_loss, l1_loss),
        (partial(cross_entropy, label_smoothing=0.1), partial(cross_entropy, label_smoothing=0.2)),
        (partial(mse_loss), mse_loss),
        (weighted([1.0, 2.0]), weighted([1.0, 3.0])),
        (weighted(None, 1.0), weighted(None, 2.0)),
        (weighted(torch.tensor([1.0, 5.0])), weighted(torch.tensor([1.0, 6.0]))),
        (weighted(np.arange(3)), weighted(np.arange(3) + 1)),
        (weighted(torch.arange(99)), weighted(torch.arange(99) + 1)),
        (weighted(mse_loss), weighted(l1_loss)),
        (weighted(weighted(1)), weighted(weighted(2))),
        (weighted(nn.HuberLoss(delta=1.0)), weighted(nn.HuberLoss(delta=2.0))),
        (lambda p, y: p.abs(), lambda p, y: p.square()),
        (lambda p, y: 0.5 * p, lambda p, y: 0.25 * p),
        (lambda p, y, w=1: w, lambda p, y, w=2: w),
        (Focal(1.0), Focal(2.0)),
        (Focal(1.0), nn.Identity()),
        (Focal(1.0).alone, Focal(1.0).__call__),
        (Focal(1.0).alone, Focal(2.0).alone),
        (partial(mse_loss, Focal(1.0)), partial(mse_loss, Focal(2.0))),
        (nn.HuberLoss(delta=1.0), nn.HuberLoss(delta=2.0)),
        (Mean(nn.HuberLoss(delta=1.0)), Mean(nn.HuberLoss(delta=2.0))),
        (torch.optim.SGD, torch.optim.Adam),
        (torch.float16, torch.bfloat16),
        (linear(0.0, 1.0), linear(0.0, 2.0)),
    ],
)
def test_what_computes_something_else_is_described_otherwise(one, other):
    assert described(one) != described(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: weighted(torch.tensor([1.0, 5.0], dtype=torch.bfloat16)),
        lambda: weighted(object()),
        lambda: weighted({"a": [1, (2, 3)], "b": {4}}),
        lambda: weighted(list(range(100))),
        lambda: weighted(np.array([object()])),
        lambda: Focal(1.0),
        lambda: Focal(1.0).alone,
        lambda: Mean(nn.Sequential(nn.Linear(2, 2), nn.L1Loss())),
        lambda: partial(Focal(1.0), pred=object()),
        lambda: lambda p, y: p,
        lambda: torch.compile(mse_loss, backend="eager"),
        lambda: torch.nn.functional.logsigmoid,
        lambda: None,
    ],
)
def test_the_same_made_twice_is_described_alike_and_without_an_address(make):
    one, other = make(), make()  # both alive, so at two addresses
    assert described(one) == described(other)
    assert " at 0x" not in described(one)
    assert "\n" not in described(one)


@pytest.mark.slow
def test_it_is_the_same_in_another_process():
    code = (
        "from onecycle.checkpoints.description import described; from functools import partial\n"
        "from torch.nn import HuberLoss; import torch\n"
        "print(described(partial(HuberLoss(delta=0.3), {'b', 'a', 'c'}, torch.arange(50))))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(said) == 1


def test_training_a_loss_is_no_change_of_it():
    loss = Mean(nn.Linear(2, 2))
    before = described(loss)
    nn.init.zeros_(loss.part.weight)
    loss.eval()
    assert described(loss) == before


def test_what_holds_itself_is_described():
    held: list[object] = []
    held.append(held)
    assert described(weighted(held)).startswith(f"{HERE}.weighted.<locals>.loss(")

    def again(n):
        return again(n - 1)

    assert "again" in described(again)


def test_a_field_can_be_left_out():
    one, other = (described(Focal(g), without=frozenset(["gamma"])) for g in (1.0, 2.0))
    assert one == other == f"{HERE}.Focal()"


def test_names_are_those_of_the_package_and_torchs_are_without():
    assert name_of(torch.optim.AdamW) == "AdamW"
    assert name_of(np.random.Generator) == "numpy.Generator"
    assert name_of(Focal) == f"{HERE}.Focal"


@dataclass(frozen=True)
class Nameless(Schedule):
    height: float = 1.0

    def _values(self, p):
        return self.height * p


def test_plain_values_keep_their_numbers_and_the_rest_is_text():
    given = {"a": np.float64(0.1), "b": (1, None, True), "c": mse_loss, "d": linear(0.0, 1.0)}
    assert plain(given) == {
        "a": 0.1,
        "b": [1, None, True],
        "c": "mse_loss",
        "d": {"kind": "linear", "start": 0.0, "end": 1.0},
    }
    assert type(plain(np.float64(0.1))) is float
    assert plain(Nameless(2.0)) == f"{HERE}.Nameless(height=2.0)"
    assert plain(Nameless(2.0).scaled(0.5)) != plain(Nameless(3.0).scaled(0.5))
