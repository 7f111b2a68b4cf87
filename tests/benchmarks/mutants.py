"""Change the code at random places, one at a time, and see whether a test notices.

The changes are mutmut's (a number, an operator, an argument, a value that is assigned), and two
more, which it does not make: a statement is left out, and a condition always or never holds. Texts
are left alone, those of errors and of the log too, and so are types. A seed draws the sample. Each
change is made in a copy of the tree, and runs against the tests of its room; one that no test
notices is printed. What was run is kept, so that the program goes on where it was ended.

    python tests/benchmarks/mutants.py --sample 300 --seed 0 --results mutants.jsonl
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import SimpleQueue

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper
from mutmut.mutation.file_mutation import Mutation, MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("onecycle", "tests", "setup.cfg", "pyproject.toml", "README.md")

#: By the beginning of a path: the tests of that room, those that find the most first.
TESTS = {
    "onecycle/optim/groups.py": (
        "tests/optim/test_groups.py",
        "onecycle/optim/groups.py",
        "tests/optim/test_build.py",
    ),
    "onecycle/schedules/": ("tests/schedules", "onecycle/schedules"),
    "onecycle/core/restore.py": (
        "tests/core/test_restore.py",
        "onecycle/core/restore.py",
        "tests/checkpoints/test_snapshot.py",
    ),
    "onecycle/core/": (
        "tests/core",
        "onecycle/core",
        "tests/training/test_trainer.py",
        "tests/training/test_freezing.py",
        "tests/callbacks/test_landing.py",
    ),
}

TEXTS = m.SimpleString() | m.FormattedString() | m.ConcatenatedString()
#: What only says something, or only says what type something has.
SAID = m.OneOf(
    TEXTS,
    m.Raise(),
    m.Annotation(),
    m.Import(),
    m.ImportFrom(),
    m.If(test=m.Name("TYPE_CHECKING")),
    m.Assign(value=TEXTS),
    m.AugAssign(value=TEXTS),
    m.Call(func=m.Attribute(value=m.Name("log") | m.Name("warnings"))),
    m.Call(func=m.Attribute(attr=m.Name("add_note"))),
    m.Call(func=m.Name("cast") | m.Name("TypeVar")),
    m.Decorator(decorator=m.Name("overload")),
    m.Assign(value=m.Subscript(value=m.Name("Callable") | m.Name("Literal"))),
    m.Assign(value=m.BinaryOperation(operator=m.BitOr())),
)


def left_out(node: cst.Expr) -> Iterator[cst.CSTNode]:
    """Leave out a statement that is no docstring."""
    yield cst.Pass()


def forced(node: cst.If) -> Iterator[cst.CSTNode]:
    """Let a condition always or never hold."""
    for value in ("True", "False"):
        yield node.with_changes(test=cst.Name(value))


class Changes(MutationVisitor):
    """Finds every change of a module, but for what is only said."""

    def __init__(self) -> None:
        operators = [*mutation_operators, (cst.Expr, left_out), (cst.If, forced)]
        super().__init__(operators, IgnoredCode(set(), set(), set()))

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, SAID) or m.matches(node, m.Expr(value=SAID)):
            return False
        return super().on_visit(node)


def only_says_less(before: cst.CSTNode, after: cst.CSTNode) -> bool:
    """Tell whether a call loses a text, or a check the name that it would speak of."""
    if not (isinstance(before, cst.Call) and isinstance(after, cst.Call)):
        return False
    kept = {id(argument) for argument in after.args}
    lost = [argument for argument in before.args if id(argument) not in kept]
    is_check = isinstance(before.func, cst.Name) and before.func.value.startswith("check_")
    return any(
        m.matches(argument.value, TEXTS)
        and (is_check or " " in cst.Module([]).code_for_node(argument.value))
        for argument in lost
    )


@dataclass(frozen=True)
class Mutant:
    """A changed module."""

    path: str
    code: str
    #: The lines that differ, those of the original first.
    diff: str

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.path}\n{self.code}".encode()).hexdigest()[:16]


class Source:
    """A module with all its changes, each made only when it is asked for."""

    def __init__(self, path: str) -> None:
        self.path, self.code = path, (ROOT / path).read_text()
        visitor = Changes()
        self.module = MetadataWrapper(cst.parse_module(self.code)).visit(visitor)
        self.changes = [
            change
            for change in visitor.mutations
            if not only_says_less(change.original_node, change.mutated_node)
        ]
        self.meanings = {ast.dump(ast.parse(self.code))}

    def mutant(self, change: Mutation) -> Mutant | None:
        """Make a change; ``None`` where it makes no other code than those before."""
        changed = self.module.deep_replace(change.original_node, change.mutated_node)
        assert isinstance(changed, cst.Module)
        try:
            meaning = ast.dump(ast.parse(changed.code))
        except SyntaxError:
            return None
        if meaning in self.meanings:
            return None
        self.meanings.add(meaning)
        return Mutant(self.path, changed.code, difference(self.code, changed.code))


def drawn(sources: list[Source], n: int, seed: int) -> list[Mutant]:
    """Draw so many changes of all, without those that make the same code."""
    every = [(source, change) for source in sources for change in source.changes]
    random.Random(seed).shuffle(every)
    made = (source.mutant(change) for source, change in every)
    return list(islice((mutant for mutant in made if mutant is not None), n))


def difference(before: str, after: str) -> str:
    """Write down the lines that differ, with the number of the first."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))
    number = lines[2].split()[1].lstrip("-").partition(",")[0]
    return f"{number}: " + " ".join(" ".join(line.split()) for line in lines[3:] if line[0] in "-+")


def paths(only: str) -> list[str]:
    """List the files to change."""
    found = {
        str(path.relative_to(ROOT))
        for start in TESTS
        for path in ([ROOT / start] if start.endswith(".py") else (ROOT / start).glob("*.py"))
    }
    return sorted(path for path in found if only in path and not path.endswith("__init__.py"))


def tests_of(path: str) -> tuple[str, ...]:
    """Return the tests of a file's room: its own first."""
    tests = next(tests for start, tests in TESTS.items() if path.startswith(start))
    folder, name = path.removeprefix("onecycle/").rsplit("/", 1)
    own = f"tests/{folder}/test_{name}"
    return (own, *tests) if (ROOT / own).exists() and own not in tests else tests


def copy_of_the_tree() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(tree: Path, tests: tuple[str, ...], limit: float) -> tuple[str, float]:
    """Run tests until the first fails; tell whether they passed, and how long that took."""
    # A changed file may have the size and the second of the one before it: no bytecode is kept.
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not data", *tests]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "too long", limit
    # Not only 1, for a failed test: code that cannot be imported ends pytest in other ways.
    return ("survived" if code == 0 else "caught"), time.monotonic() - began


class Trials:
    """Runs changes in copies of the tree, and keeps what came of each."""

    def __init__(self, results: Path, jobs: int, *, again: bool) -> None:
        self.results = results
        self.known: dict[str, str] = {}
        if results.exists():
            rows = map(json.loads, results.read_text().splitlines())
            self.known = {row["key"]: row["outcome"] for row in rows}
        if again:
            self.known = {key: each for key, each in self.known.items() if each != "survived"}
        self.jobs, self.limit = jobs, 600.0
        self.trees: SimpleQueue[Path] = SimpleQueue()

    def run(self, sample: list[Mutant]) -> None:
        """Run those that were not run yet."""
        left = [mutant for mutant in sample if mutant.key not in self.known]
        folders = [copy_of_the_tree() for _ in range(self.jobs)] if left else []
        try:
            if left:
                tests = tuple({test: None for each in left for test in tests_of(each.path)})
                outcome, seconds = run(folders[0], tests, self.limit)
                if outcome != "survived":
                    raise RuntimeError("a test fails without any change")
                self.limit = 30 + 3 * seconds
            for folder in folders:
                self.trees.put(folder)
            with ThreadPoolExecutor(self.jobs) as pool:
                for done, _ in enumerate(pool.map(self.try_one, left), 1):
                    print(f"{done} of {len(left)} run", end="\r", file=sys.stderr, flush=True)
        finally:
            for folder in folders:
                shutil.rmtree(folder)

    def try_one(self, mutant: Mutant) -> None:
        tree, tests = self.trees.get(), tests_of(mutant.path)
        file = tree / mutant.path
        try:
            file.write_text(mutant.code)
            outcome, seconds = run(tree, tests, self.limit)
        finally:
            shutil.copy(ROOT / mutant.path, file)
            self.trees.put(tree)
        row = {"key": mutant.key, "path": mutant.path, "diff": mutant.diff, "outcome": outcome}
        with self.results.open("a") as out:
            out.write(json.dumps({**row, "seconds": round(seconds, 1)}) + "\n")
        self.known[mutant.key] = outcome


def main() -> int:
    """Run the sample, print the table and what survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=300, help="how many changes")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at once")
    parser.add_argument("--only", default="", help="only files whose path holds this")
    parser.add_argument("--again", action="store_true", help="run anew what survived before")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    args = parser.parse_args()
    sources = [Source(path) for path in paths(args.only)]
    sample = drawn(sources, args.sample, args.seed)
    trials = Trials(args.results, args.jobs, again=args.again)
    trials.run(sample)
    kinds = ("caught", "too long", "survived")
    print(f"{'file':36}{'changes':>8}" + "".join(f"{kind:>10}" for kind in kinds))
    for path in [*paths(args.only), ""]:
        counts = Counter(trials.known[each.key] for each in sample if each.path.startswith(path))
        total = sum(len(source.changes) for source in sources if source.path.startswith(path))
        print(f"{path or 'all':36}{total:>8}" + "".join(f"{counts[kind]:>10}" for kind in kinds))
    for mutant in sorted(sample, key=lambda each: (each.path, int(each.diff.split(":")[0]))):
        if trials.known[mutant.key] == "survived":
            print(f"{mutant.path}:{mutant.diff}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
