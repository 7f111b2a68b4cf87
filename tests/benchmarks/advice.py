"""How good the advice of a range test is: its regret, on tasks whose best peaks are known.

Regret is (loss from the suggested peak - loss from the best peak of a grid) / (loss before
training - best), with the validation loss at the end of one cycle: 0 is perfect, 1 is as if not
trained. It is clipped at 2; no suggestion and a loss that is not finite count 2. The grid has three
peaks a decade, as far as there is something to see, for each task (`advice_tasks.py`) and seed.

    python tests/benchmarks/advice.py grid --out advice.jsonl       # the fits of the grids
    python tests/benchmarks/advice.py fits --out advice.jsonl       # and those at what is suggested
    python tests/benchmarks/advice.py rivals --out advice.jsonl     # those without a rate
    python tests/benchmarks/advice.py table --out advice.jsonl

Every line of the file is one fit, or what the rules say; what is there already is not done again.
"""

from __future__ import annotations

import argparse
import io
import logging
import math
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import torch
from advice_rivals import rival_fit, rivals
from advice_table import Lines, key, table
from advice_tasks import TASKS, Task

from onecycle import LRFindResult, minimum, slide, steep, valley

SEEDS = (0, 1, 2)
HALVES = ("develop", "unseen", "fresh", "last", "after", "blind")
#: The calls whose rates are fitted; of the other rules the nearest fit counts.
OURS = ("default (knee)", "confirm=50")
#: Where the grid begins, as a power of ten in thirds.
CENTRE = {"SGD": -3, "AdamW": -6, "RMSprop": -6, "Muon": -5}


def fit(task: Task, seed: int, lr: float) -> float:
    """Return the validation loss at the end of one cycle; infinite where it is not finite."""
    learn = task.learner(seed)
    learn.dls.valid, valid = None, learn.dls.valid
    with redirect_stdout(io.StringIO()), learn.no_bar():
        learn.fit_one_cycle(task.epochs, lr)
    loss = learn.validate(valid)["valid_loss"]
    return loss if math.isfinite(loss) else math.inf


def kept_fit(lines: Lines, task: Task, seed: int, lr: float) -> float:
    """Return the loss of a fit, from the file if it is there."""
    keys = {"kind": "fit", "task": key(task), "seed": seed, "lr": float(f"{lr:.6g}")}
    found = lines.find(**keys)
    if found is None:
        began = process_time()
        loss = fit(task, seed, keys["lr"])
        found = lines.add(**keys, loss=loss, seconds=round(process_time() - began, 2))
    return float(found["loss"])


def before(lines: Lines, task: Task, seed: int) -> float:
    """Return the validation loss before training."""

    def made() -> dict[str, Any]:
        return {"loss": task.learner(seed).validate()["valid_loss"]}

    return float(lines.once(made, kind="before", task=key(task), seed=seed)["loss"])


def grid(lines: Lines, task: Task, seed: int) -> None:
    """Fit from the middle to both sides, until three peaks in a row are hopeless."""
    start = before(lines, task, seed)
    losses: list[float] = []
    for step in (1, -1):
        hopeless, third = 0, CENTRE[task.optimizer] + (step < 0) * step
        while hopeless < 3 and -18 <= third <= 9:
            losses.append(kept_fit(lines, task, seed, 10 ** (third / 3)))
            best = min(losses)
            hopeless = hopeless + 1 if losses[-1] > best + 0.7 * abs(start - best) else 0
            third += step


def advice(lines: Lines, task: Task, seed: int) -> dict[str, Any]:
    """Return what each rule suggests, and what the default and the confirmed call cost."""
    return lines.once(lambda: _advice(task, seed), kind="advice", task=key(task), seed=seed)


def _advice(task: Task, seed: int) -> dict[str, Any]:
    learn = task.learner(seed)
    with learn.no_bar():
        default = learn.lr_find(show_plot=False)
        confirmed = learn.lr_find(show_plot=False, confirm=50)
        rules = learn.lr_find(show_plot=False, suggest_funcs=(minimum, valley, slide, steep))
    said = {
        "default (knee)": default.suggestion,
        "confirm=50": confirmed.suggestion,
        **rules.suggestions,
        "vote of the four": None if rules.vote is None else rules.vote.lr,
    }
    return {"said": said, "cost": _cost(default), "cost_confirmed": _cost(confirmed)}


def against(lines: Lines, task: Task, seed: int) -> None:
    """Fit what promises to need no rate, on a task of AdamW."""
    for name in rivals() if task.optimizer == "AdamW" else ():
        keys = {"kind": "rival", "task": key(task), "seed": seed, "name": name}
        if lines.find(**keys) is None:
            lines.add(**keys, loss=rival_fit(task, name, seed))


def _cost(found: LRFindResult) -> int:
    """Return the updates that a call made."""
    return found.num_it if found.note is None else int(found.note.split("; ")[-1].split()[0])


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["grid", "fits", "rivals", "table"])
    parser.add_argument("--out", type=Path, default=Path("advice.jsonl"))
    parser.add_argument("--half", choices=HALVES, default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("onecycle").setLevel(logging.ERROR)
    lines = Lines(options.out)
    for half in HALVES if options.half is None else [options.half]:
        tasks = [task for task in TASKS if task.half == half]
        if options.what == "table":
            print(table(lines, tasks, options.seeds, half))
            continue
        for task, seed in product(tasks, options.seeds):
            if options.what == "grid":
                grid(lines, task, seed)
            elif options.what == "rivals":
                against(lines, task, seed)
            else:
                said = advice(lines, task, seed)["said"]
                for lr in {said[rule] for rule in OURS} - {None}:
                    kept_fit(lines, task, seed, lr)


if __name__ == "__main__":
    main()
