"""The file of results of `advice.py`, and the table that is made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from advice_tasks import Task

#: What is worst: no suggestion, or a loss that is not finite.
WORST = 2.0


class Lines:
    """A file of JSON lines: what is there, and what is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text().splitlines() if path.exists() else []
        self.done = [json.loads(line) for line in text]

    def find(self, **keys: Any) -> dict[str, Any] | None:
        """Return the line that has these values, or None."""
        return next((d for d in self.done if all(d.get(k) == v for k, v in keys.items())), None)

    def add(self, **line: Any) -> dict[str, Any]:
        """Write a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.done.append(line)
        return line


def key(task: Task) -> str:
    """Name a task in the file."""
    return f"{task.name} ({task.optimizer})"


class Regrets:
    """The regret of peaks, one task and seed each.

    Args:
        lines: The file.
        task: The task.
        seed: The seed.
    """

    def __init__(self, lines: Lines, task: Task, seed: int) -> None:
        own = [d for d in lines.done if d["task"] == key(task) and d["seed"] == seed]
        self._before = next(d["loss"] for d in own if d["kind"] == "before")
        self._losses = {d["lr"]: d["loss"] for d in own if d["kind"] == "fit"}
        self.grid = sorted(lr for lr in self._losses if _is_third(lr))
        self._rivals = {d["name"]: d["loss"] for d in own if d["kind"] == "rival"}
        self._best = min(self._losses[lr] for lr in self.grid)

    @property
    def best(self) -> float:
        """The best peak of the grid."""
        return min(self.grid, key=self._losses.__getitem__)

    def at(self, lr: float | None) -> float:
        """Return the regret of a peak; off the ends of the grid nothing trains, or all diverges."""
        if lr is None or lr > self.grid[-1] * 1.01:
            return WORST
        if lr < self.grid[0] * 0.99 and float(f"{lr:.6g}") not in self._losses:
            return 1.0
        return self._of(self._losses[min(self._losses, key=lambda o: abs(math.log(o / lr)))])

    def of_rival(self, name: str) -> float:
        """Return the regret of an optimizer that is given no rate."""
        return self._of(self._rivals[name])

    def _of(self, loss: float) -> float:
        return min((loss - self._best) / (self._before - self._best), WORST)


def _is_third(lr: float) -> bool:
    return abs(3 * math.log10(lr) - round(3 * math.log10(lr))) < 1e-4


def table(lines: Lines, tasks: Sequence[Task], seeds: Sequence[int], half: str) -> str:
    """Write a row for each rule: the regret of each task is its mean over the seeds."""
    regrets = {(t.name, t.optimizer, s): Regrets(lines, t, s) for t in tasks for s in seeds}
    said = {(d["task"], d["seed"]): d for d in lines.done if d["kind"] == "advice"}

    def by_task(lr: Callable[[Task, int], float | None], of: Sequence[Task] = tasks) -> list[float]:
        return [mean(regrets[t.name, t.optimizer, s].at(lr(t, s)) for s in seeds) for t in of]

    def row(name: str, found: list[float], more: str = "") -> str:
        over = sum(value > 0.1 for value in found)
        numbers = f"{mean(found):.3f} | {median(found):.3f} | {max(found):.2f}"
        return f"| {name} | {numbers} | {over} of {len(found)} | {more} |"

    rows = [
        f"| {half} half | mean | median | worst | above 0.1 | updates |",
        "|---|---|---|---|---|---|",
    ]
    for rule in next(iter(said.values()))["said"]:
        found = by_task(lambda t, s, rule=rule: said[key(t), s]["said"][rule])
        name = {"default (knee)": "cost", "confirm=50": "cost_confirmed"}.get(rule)
        costs = [said[key(t), s][name] if name else 100 for t in tasks for s in seeds]
        rows.append(row(rule, found, f"{median(costs):g}, at most {max(costs)}"))
    for optimizer in sorted({task.optimizer for task in tasks}):
        of = [task for task in tasks if task.optimizer == optimizer]
        fixed = min(
            (10 ** (third / 3) for third in range(-15, 7)),
            key=lambda lr: mean(by_task(lambda t, s: lr, of)),
        )
        ours = mean(by_task(lambda t, s: said[key(t), s]["said"]["default (knee)"], of))
        name = f"{optimizer}: the best fixed peak, {fixed:.2g} (default: {ours:.3f})"
        rows.append(row(name, by_task(lambda t, s, lr=fixed: lr, of)))
    rivals = sorted({d["name"] for d in lines.done if d["kind"] == "rival"})
    of = [task for task in tasks if task.optimizer == "AdamW"]
    for name in rivals:
        found = [mean(regrets[t.name, t.optimizer, s].of_rival(name) for s in seeds) for t in of]
        rows.append(row(f"AdamW tasks: {name}", found))
    chance = by_task(lambda t, s: _best_of_others(regrets, t, s, seeds))
    rows.append(row("chance: the best peak of the other seeds", chance))
    return "\n".join(rows)


def _best_of_others(
    regrets: dict[tuple[str, str, int], Regrets], task: Task, seed: int, seeds: Sequence[int]
) -> float:
    others = [regrets[task.name, task.optimizer, s] for s in seeds if s != seed]
    peaks = sorted({peak for other in others for peak in other.grid})
    return min(peaks, key=lambda lr: mean(other.at(lr) for other in others))
