"""Whether the printed spread of a rate holds: over many range tests of a task, with other seeds.

The spread of the rule `knee` is the interval in which it lies on 80 % of the curves that are
resampled from one test. It holds where the median rate of all the tests of the task lies in it.

    python tests/benchmarks/advice_spreads.py --tests 100            # the develop half

A test counts if the rule sees a valley; a task, if half of its tests or more do. Losses, and all
else, are drawn anew in each test: another seed gives other weights and another order of batches.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

import torch
from advice_table import Lines, key
from advice_tasks import TASKS, Task

#: The kind of each develop task, by how its name begins; the first that fits.
KINDS = {
    "perceptron": "perceptrons",
    "wide": "perceptrons",
    "deep tanh": "deep tanh",
    "CNN": "CNNs",
    "transformer": "transformers",
    "LSTM": "recurrent nets",
    "GRU": "recurrent nets",
    "detector": "detectors",
    "segmenter": "segmenter",
    "autoencoder": "autoencoders",
    "linear": "linear",
    "softmax": "linear",
    "new head": "new head",
    "rare class": "rare class",
    "pairs": "pairs",
    "embedding bag": "embedding bag",
}


def kind_of(task: Task) -> str:
    """Return the kind of a task; its name where no other is of it."""
    return next((kind for name, kind in KINDS.items() if task.name.startswith(name)), task.name)


def test(lines: Lines, task: Task, seed: int) -> dict[str, Any]:
    """Return the rate of `knee` and its spread, from the file if they are there."""

    def made() -> dict[str, Any]:
        learn = task.learner(seed)
        with learn.no_bar():  # the rule that is first is another one: no cycles are made
            result = learn.lr_find(show_plot=False, suggest_funcs=("minimum", "knee"))
        return {"lr": result.suggestions["knee"], "spread": result.spreads["knee"]}

    return lines.once(made, kind="test", task=key(task), seed=seed)


def row(name: str, tasks: Iterable[list[dict[str, Any]]]) -> str:
    """Return a row of the table: means over the tasks."""
    held, widths, deviations = [], [], []
    for tests in tasks:
        middle = median(d["lr"] for d in tests)
        held.append(mean(low <= middle <= high for low, high in (d["spread"] for d in tests)))
        widths.append(mean(math.log10(high / low) for low, high in (d["spread"] for d in tests)))
        deviations.append(pstdev(math.log10(d["lr"]) for d in tests))
    share = f"{mean(held):.2f} ({min(held):.2f} to {max(held):.2f})"
    return f"| {name} | {len(held)} | {share} | {mean(widths):.2f} | {mean(deviations):.2f} |"


def main() -> None:
    """Make the tests, and print the table by kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", default="develop")
    parser.add_argument("--tests", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("spreads.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("onecycle").setLevel(logging.ERROR)
    lines = Lines(options.out)
    kinds: dict[str, list[list[dict[str, Any]]]] = defaultdict(list)
    for task in TASKS:
        if task.half == options.half:
            tests = [test(lines, task, seed) for seed in range(options.tests)]
            clear = [found for found in tests if found["lr"] is not None]
            if 2 * len(clear) >= len(tests):
                kinds[kind_of(task)].append(clear)
    print("| kind | tasks | held | width, decades | deviation of the rate, decades |")
    print("|---|---|---|---|---|")
    for kind, tasks in kinds.items():
        print(row(kind, tasks))
    print(row("all", [tests for tasks in kinds.values() for tests in tasks]))


if __name__ == "__main__":
    main()
