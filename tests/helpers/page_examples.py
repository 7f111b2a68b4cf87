"""The Python blocks of a page, and what they print."""

import contextlib
import io
import os
import re
from pathlib import Path
from typing import Any

#: A Python block, and the output that follows it, if any.
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", flags=re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:[.:]\d+)?(?:e[-+]\d+)?")


def examples(page: Path) -> list[tuple[str, str]]:
    """Return the blocks that are no dialogue, each with its output."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(code, output) for code, output in found if not code.startswith(">>>")]


def printed_by(code: str, names: dict[str, Any]) -> str:
    """Run a block in a namespace, and return what it prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        exec(compile(code, "a page", "exec"), names)
    return text.getvalue()


def words(text: str) -> list[str]:
    """Return what must be the same on every machine: another CPU rounds numbers otherwise."""
    lines = [line for line in text.splitlines() if not line.startswith("stop_reason")]
    return NUMBER.sub("#", "\n".join(lines)).split()


def run_all(page: Path, folder: Path, names: dict[str, Any]) -> list[tuple[str, str]]:
    """Run the blocks of a page one after the other; return what each should and did print."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return [(output, printed_by(code, names)) for code, output in examples(page)]
    finally:
        os.chdir(before)
