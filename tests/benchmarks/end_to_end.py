"""Three epochs of MNIST with validation: what a user gets, against the loop written by hand.

Ours is `vision.mnist`, `vision.lenet` and `fit_one_cycle` with their defaults. The loop by hand
has the same network, batch size, rate and 1cycle policy, a DataLoader with torchvision's
transforms, and torch's defaults. Both end with the accuracy on the 10,000 test images. Each side
runs in a process of its own, since ours leaves malloc with other thresholds than it has in a plain
program (`onecycle.core.heap`). The data are read from `$ONECYCLE_DATA`, in `MNIST/raw`.

    ONECYCLE_DATA=data python tests/benchmarks/end_to_end.py --pairs 3
"""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial

import torch
from pairs import Row, arguments, clock, compare, in_own_process
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor

from onecycle import Learner, accuracy
from onecycle.vision import lenet, mnist

EPOCHS, BATCH, LR = 3, 512, 3e-3
CROSS_ENTROPY = nn.functional.cross_entropy


def ours(data: str) -> tuple[float, float]:
    """Train with the defaults of the package; return seconds with data loading, and accuracy."""
    torch.manual_seed(0)
    start = clock()
    learn = Learner(mnist(data, BATCH, download=False), lenet(), CROSS_ENTROPY, metrics=[accuracy])
    with redirect_stdout(io.StringIO()):
        learn.fit_one_cycle(EPOCHS, LR)
    return clock() - start, float(learn.recorder.history["accuracy"].values[-1])


def bare(data: str) -> tuple[float, float]:
    """Train as torch's tutorials do; return seconds with data loading, and accuracy."""
    torch.manual_seed(0)
    start = clock()
    transform = Compose([ToTensor(), Normalize((0.1307,), (0.3081,))])
    train, valid = (MNIST(data, train=part, transform=transform) for part in (True, False))
    loader, valid_loader = DataLoader(train, BATCH, shuffle=True), DataLoader(valid, BATCH)
    model = lenet().to(memory_format=torch.contiguous_format)
    opt = AdamW(model.parameters(), lr=LR)
    schedule = OneCycleLR(opt, LR, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        model.train()
        for xb, yb in loader:
            loss = CROSS_ENTROPY(model(xb), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            schedule.step()
        model.eval()
        correct, loss_sum = 0, 0.0
        with torch.no_grad():
            for xb, yb in valid_loader:
                pred = model(xb)
                loss_sum += CROSS_ENTROPY(pred, yb).item() * len(xb)
                correct += (pred.argmax(1) == yb).sum().item()
    return clock() - start, correct / len(valid)


def timed(side: Callable[[str], tuple[float, float]], data: str, seen: list[float]) -> float:
    """Run a side, add its accuracy to those seen, and return its seconds."""
    seconds, reached = in_own_process(side, data)
    seen.append(reached)
    return seconds


def main() -> None:
    """Print the row, and the accuracies."""
    options = arguments(__doc__, pairs=3)
    data = os.environ.get("ONECYCLE_DATA")
    if data is None:
        raise SystemExit("set ONECYCLE_DATA to the folder that has MNIST/raw")
    mine: list[float] = []
    theirs: list[float] = []
    row = Row(
        "LeNet, 3 epochs of MNIST",
        partial(timed, ours, data, mine),
        partial(timed, bare, data, theirs),
        0.5,
        warm_up=False,
    )
    compare([row], options)
    for name, seen in {"ours": mine, "by hand": theirs}.items():
        print(f"{name}: accuracy {statistics.mean(seen):.4f} ({min(seen):.4f} to {max(seen):.4f})")


if __name__ == "__main__":
    main()
