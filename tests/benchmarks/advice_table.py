"""The file of results of `advice.py`, and the table that is made of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from advice_tasks import Task

#: What is worst: no suggestion, or a loss that is not finite.
WORST = 2.0

#: The fixed peaks of which the best one is a row.
PEAKS = [10 ** (third / 3) for third in range(-15, 7)]


class Lines:
    """A file of JSON lines: what is there, and what is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text().splitlines() if path.exists() else []
        self.done = [json.loads(line) for line in text]

    def find(self, **keys: Any) -> dict[str, Any] | None:
        """Return the line that has these values, or None."""
        return next((d for d in self.done if all(d.get(k) == v for k, v in keys.items())), None)

    def once(self, make: Callable[[], dict[str, Any]], **keys: Any) -> dict[str, Any]:
        """Return the line that has these values; where there is none, make the rest of it."""
        return self.find(**keys) or self.add(**keys, **make())

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


class Table:
    """Rows of regrets: that of each task is its mean over the seeds.

    Args:
        lines: The file.
        tasks: The tasks.
        seeds: The seeds.
    """

    def __init__(self, lines: Lines, tasks: Sequence[Task], seeds: Sequence[int]) -> None:
        self.tasks, self.seeds = tasks, seeds
        self.said = {(d["task"], d["seed"]): d for d in lines.done if d["kind"] == "advice"}
        self.regrets = {(key(t), s): Regrets(lines, t, s) for t in tasks for s in seeds}
        self.rivals = [d for d in lines.done if d["kind"] == "rival" and d["seed"] in seeds]

    def means(
        self, regret: Callable[[Regrets, Task, int], float], optimizer: str | None = None
    ) -> list[float]:
        """Return the mean over the seeds for each task, or for those of one optimizer."""
        of = [t for t in self.tasks if optimizer in (None, t.optimizer)]
        return [mean(regret(self.regrets[key(t), s], t, s) for s in self.seeds) for t in of]

    def of_rule(self, rule: str, optimizer: str | None = None) -> list[float]:
        """Return those of what a rule suggests."""
        return self.means(lambda r, t, s: r.at(self.said[key(t), s]["said"][rule]), optimizer)

    def rules(self) -> list[str]:
        """Return a row for each rule, with its updates."""
        rows = []
        for rule in next(iter(self.said.values()))["said"]:
            name = {"default (knee)": "cost", "confirm=50": "cost_confirmed"}.get(rule)
            calls = [self.said[key(t), s] for t in self.tasks for s in self.seeds]
            costs = [call[name] if name else 100 for call in calls]
            cost = f"{median(costs):g}, at most {max(costs)}"
            rows.append(_row(rule, self.of_rule(rule), cost))
        return rows

    def optimizers(self) -> list[str]:
        """Return a row for each optimizer: the best fixed peak; and one for each rival."""
        rows = []
        for optimizer in sorted({task.optimizer for task in self.tasks}):
            fixed, found = min(
                ((lr, self.means(lambda r, t, s, lr=lr: r.at(lr), optimizer)) for lr in PEAKS),
                key=lambda pair: mean(pair[1]),
            )
            ours = mean(self.of_rule("default (knee)", optimizer))
            name = f"{optimizer}: the best fixed peak, {fixed:.2g} (default: {ours:.3f})"
            rows.append(_row(name, found))
        names = Counter(d["name"] for d in self.rivals)
        n = sum(task.optimizer == "AdamW" for task in self.tasks) * len(self.seeds)
        for name in [name for name in sorted(names) if names[name] == n]:
            found = self.means(lambda r, t, s, name=name: r.of_rival(name), "AdamW")
            rows.append(_row(f"AdamW tasks: {name}", found))
        return rows

    def chance(self) -> list[str]:
        """Return the row of what chance does, where there are other seeds."""
        if len(self.seeds) < 2:
            return []
        found = self.means(
            lambda r, t, s: r.at(_best_of([self.regrets[key(t), o] for o in self.seeds if o != s]))
        )
        return [_row("chance: the best peak of the other seeds", found)]


def table(lines: Lines, tasks: Sequence[Task], seeds: Sequence[int], half: str) -> str:
    """Write a row for each rule, each optimizer, each rival, and for chance."""
    made = Table(lines, tasks, seeds)
    head = [
        f"| {half} half | mean | median | worst | above 0.1 | updates |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *made.rules(), *made.optimizers(), *made.chance()])


def _row(name: str, found: list[float], more: str = "") -> str:
    over = sum(value > 0.1 for value in found)
    numbers = f"{mean(found):.3f} | {median(found):.3f} | {max(found):.2f}"
    return f"| {name} | {numbers} | {over} of {len(found)} | {more} |"


def _best_of(others: Sequence[Regrets]) -> float:
    peaks = sorted({peak for other in others for peak in other.grid})
    return min(peaks, key=lambda lr: mean(other.at(lr) for other in others))
