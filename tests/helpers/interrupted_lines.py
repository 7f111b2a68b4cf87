"""Ctrl-C at any line of the package, by a trace."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import onecycle

PACKAGE = str(Path(onecycle.__file__).parent)


@cache
def spared(path: str) -> set[int]:
    """Return the lines of a file that a trace can interrupt, and a signal cannot.

    Python looks for signals where a function begins, after calls and at the ends of loops: not
    where a with statement, at whose lines a trace stops a second time, is about to call
    ``__exit__``. It does look where `surely` begins: there a signal has to come within a tenth of
    a microsecond. In the last lines of a fit, the batch stays in memory until the next one.
    """
    tree = ast.parse(Path(path).read_text())
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.With):
            lines |= set(range(node.lineno, node.body[0].lineno))
        if isinstance(node, ast.FunctionDef) and node.name in ("surely", "forget_batch"):
            lines |= set(range(node.lineno, (node.end_lineno or 0) + 1))
        if isinstance(node, ast.FunctionDef) and node.name == "run_fit":
            ends = (each for each in ast.walk(node) if isinstance(each, ast.Try))
            lines |= {line.lineno for end in ends for line in end.finalbody}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "surely":
            lines.add(node.lineno)
    return lines


class Lines:
    """Counts the lines of the package that run, and interrupts one of them.

    Attributes:
        n: How many have run.
        runs: By file and line the numbers under which it ran.
    """

    def __init__(self, at: int | None = None) -> None:
        self.n, self.at = 0, at
        self.runs: dict[tuple[str, int], list[int]] = {}

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE):
            return None
        if event == "line" and frame.f_lineno not in spared(path):
            self.n += 1
            self.runs.setdefault((path, frame.f_lineno), []).append(self.n)
            if self.n == self.at:
                raise KeyboardInterrupt
        return self

    @contextmanager
    def traced(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)
