"""The house: a folder is one idea, imports run downward, nothing is delegated or patched."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import onecycle

PACKAGE = Path(onecycle.__file__).parent
TOP = "__init__"

#: Rooms from the ground up. Those of a line do not know each other.
ORDER = (
    "errors, arguments, elsewhere, files, explanations, plots, processes",
    "schedules, data",
    "optim, record",
    "core",
    "parallel, checkpoints, cuda_graphs, vision",
    "range_test",
    "callbacks",
    "training",
    "studies, insight",
    "learner",
    "testing, cli",
    f"{TOP}, __main__",
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms.split(", ")}

MODULES = {
    ".".join(part for part in path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
SOURCES = {
    (name if name == TOP else name.removesuffix(f".{TOP}")): path.read_text()
    for name, path in MODULES.items()
}
TREES = {name: ast.parse(source) for name, source in SOURCES.items()}


def imported(tree: ast.Module, modules: Iterable[str]) -> list[tuple[str, int]]:
    """List the modules of the package that a module imports, and in which line.

    Imports within functions and for types count too. One of a submodule is none of its folder.
    """
    found: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            package, _, inner = base.partition(".")
            if package == "onecycle":
                whole = f"{inner}.{name}".strip(".")
                found.append((whole if whole in modules else inner or TOP, node.lineno))
    return found


def room_of(module: str) -> str:
    return module.partition(".")[0]


def faults(modules: Mapping[str, ast.Module]) -> list[str]:
    """List what breaks the order: unknown rooms, imports up or across, circles."""
    found = [f"{name}: no room of this name" for name in modules if room_of(name) not in FLOOR]
    below: dict[str, set[str]] = {}
    for name, tree in modules.items():
        below[name] = set()
        for other, line in imported(tree, modules):
            mine, theirs = room_of(name), room_of(other)
            below[name].add(other)
            if mine != theirs and FLOOR.get(theirs, -1) >= FLOOR.get(mine, -1):
                found.append(f"{name}:{line} imports {other}, which is not below it")
    return found + [f"circle: {' > '.join(circle)}" for circle in circles(below)]


def circles(below: Mapping[str, set[str]]) -> list[list[str]]:
    """Return a circle for each module that can be reached from itself."""
    found: dict[frozenset[str], list[str]] = {}
    for start in below:
        paths, seen = [[start]], {start}
        while paths:
            path = paths.pop()
            for other in sorted(below.get(path[-1], ())):
                if other == start:
                    found.setdefault(frozenset(path), path)
                elif other not in seen:
                    seen.add(other)
                    paths.append([*path, other])
    return list(found.values())


def test_imports_run_downward_without_a_circle() -> None:
    assert faults(TREES) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.heap", "from onecycle.learner import Learner"),
        ("core.heap", "import onecycle.learner"),
        ("core.heap", "from onecycle import Learner"),
        ("core.heap", "from onecycle.callbacks import Recorder"),
        ("core.heap", "if TYPE_CHECKING:\n    from onecycle.training.trainer import Trainer"),
        ("core.heap", "def f():\n    from onecycle.vision import augment"),
        ("optim.groups", "from onecycle.record.history import History"),
        ("files", "from onecycle.errors import CheckpointError"),
        ("helpers", "import torch"),
        ("new_flat_module", "import torch"),
        ("events", "import torch"),
    ],
)
def test_what_breaks_the_order_is_found(module: str, source: str) -> None:
    found = faults({**TREES, module: ast.parse(source)})
    assert found
    assert found[0].startswith(module)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_a_circle_of_any_length_is_found(length: int) -> None:
    ring = {
        f"core.ring{i}": ast.parse(f"from onecycle.core.ring{(i + 1) % length} import name")
        for i in range(length)
    }
    assert len(faults({**TREES, **ring})) == 1


def test_an_import_of_a_submodule_is_none_of_its_folder() -> None:
    folder = {
        "core.deep": ast.parse("from onecycle.core.deep.inner import name"),
        "core.deep.inner": ast.parse("import torch"),
        "core.user": ast.parse("from onecycle.core.deep import inner"),
    }
    assert faults({**TREES, **folder}) == []


def for_types(tree: ast.Module) -> set[ast.AST]:
    """Return the nodes that only a type checker reads."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if not isinstance(node.test, ast.UnaryOp)  # `if not TYPE_CHECKING` is run
        for inner in ast.walk(node)
    }


def delegates(node: ast.AST) -> bool:
    """Tell whether a function answers for another object; to refuse in words is none of that."""
    if not isinstance(node, ast.FunctionDef):
        return False
    returns = any(isinstance(inner, ast.Return | ast.Yield) for inner in ast.walk(node))
    refuses = node.name == "__getattr__" and not returns
    return node.name in ("__getattr__", "__getattribute__", "__setattr__") and not refuses


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return getattr(self.learn, name)", True),
        ("yield name", True),
        ("raise AttributeError(name)", False),
    ],
)
def test_a_getattr_that_can_only_refuse_is_no_delegation(body: str, expected: bool) -> None:
    assert delegates(ast.parse(f"def __getattr__(self, name): {body}").body[0]) is expected


def test_nothing_is_imported_by_star_or_relatively_or_delegated() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in set(ast.walk(tree)) - for_types(tree)
        if (isinstance(node, ast.ImportFrom) and (node.level or node.names[0].name == "*"))
        or delegates(node)
    ]
    assert found == []


def test_schedules_import_no_torch() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in set(ast.walk(tree)) - for_types(tree)
        if room_of(name) == "schedules" and isinstance(node, ast.Import | ast.ImportFrom)
        if "torch" in ast.unparse(node).replace("torch_like", "").split(".")[0].split()
    ]
    assert found == []


def code_lines(node: ast.AST, source: list[str]) -> int:
    """Count the lines of a piece of code without docstrings and blank lines."""
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", len(source))
    lines = {n for n in range(first, last + 1) if source[n - 1].strip()}
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef | ast.Module) and inner.body:
            head = inner.body[0]
            if isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant):
                lines -= set(range(head.lineno, (head.end_lineno or head.lineno) + 1))
    return len(lines)


def lengths() -> dict[str, int]:
    return {name: code_lines(tree, SOURCES[name].splitlines()) for name, tree in TREES.items()}


def test_no_file_is_over_400_lines_and_no_function_over_40() -> None:
    long = [f"{name}: {lines}" for name, lines in lengths().items() if lines > 400]
    for name, tree in TREES.items():
        source = SOURCES[name].splitlines()
        long += [
            f"{name}.{node.name}: {code_lines(node, source)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and code_lines(node, source) > 40
        ]
    assert long == []


def test_the_core_is_a_minimal_loop_of_at_most_1000_lines() -> None:
    assert sum(lines for name, lines in lengths().items() if room_of(name) == "core") <= 1000


def test_at_most_13_files_lie_outside_the_rooms() -> None:
    files = [path.name for path in PACKAGE.iterdir() if path.is_file()]
    assert len(files) <= 13, files


def test_importing_onecycle_loads_neither_torchvision_nor_matplotlib() -> None:
    code = "import sys, onecycle; print({'torchvision', 'matplotlib'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == "set()"
