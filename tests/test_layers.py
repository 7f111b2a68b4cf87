"""The house: imports run strictly downward, nothing is delegated or patched."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import onecycle

PACKAGE = Path(onecycle.__file__).parent

GROUND = -1
LEVELS = {
    "arguments": GROUND,
    "errors": GROUND,
    "events": GROUND,
    "files": GROUND,
    "heap": GROUND,
    "capture": 0,
    "schedules": 0,
    "explanations": 0,
    "history": 0,
    "metrics": 0,
    "nested": 0,
    "plots": 0,
    "predictions": 0,
    "schedule_plot": 0,
    "seeded": 0,
    "settings": 2,
    "smoothing": 0,
    "suggestions": 0,
    "data": 1,
    "callback": 0,
    "checks": 1,
    "handlers": 1,
    "hyperparams": 1,
    "monitor": 1,
    "optimizers": 1,
    "policies": 1,
    "state": 1,
    "stepper": 1,
    "restore": 1,
    "spreads": 1,
    "summary": 1,
    "torch_schedules": 1,
    "transfer": 1,
    "assembly": 2,
    "bound_step": 2,
    "captured_step": 4,
    "compiled": 4,
    "fast_step": 3,
    "graphed": 2,
    "loop": 2,
    "post_mortem": 2,
    "model_files": 1,
    "checkpoint_files": 2,
    "valid_probe": 2,
    "callbacks": 2,
    "callbacks.images": 2,
    "callbacks.recorder": 2,
    "callbacks.param_schedule": 2,
    "callbacks.attribute_schedule": 2,
    "callbacks.gradients": 2,
    "callbacks.cuda_graph": 5,
    "callbacks.landing": 4,
    "callbacks.resume": 4,
    "trials": 4,
    "recipes": 4,
    "comparison": 5,
    "regularization": 5,
    "speed": 4,
    "diagnosis": 4,
    "experiments": 4,
    "tta": 4,
    "studies": 6,
    "learner": 7,
    "vision.augment": 5,
    "vision.datasets": 5,
    "vision.models": 5,
    "vision": 6,
    "testing": 8,
    "cli": 8,
    "__main__": 9,
    "": 9,
}


def level_of(module: str) -> int:
    """Return the level of a module, named without the package."""
    if module.startswith("callbacks.") and module not in LEVELS:
        return 3
    return LEVELS[module]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(tree: ast.Module) -> list[tuple[str, int]]:
    """List what a module imports from the package, and where, without what is for types only."""
    found: list[tuple[str, int]] = []
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "onecycle":
            base = (node.module or "").removeprefix("onecycle").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                path = PACKAGE / inner.replace(".", "/")
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                found.append((inner if is_module else base, node.lineno))
        elif isinstance(node, ast.Import):
            found += [
                (alias.name.removeprefix("onecycle").removeprefix("."), node.lineno)
                for alias in node.names
                if alias.name.split(".")[0] == "onecycle"
            ]
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


def upward_imports(name: str, tree: ast.Module) -> list[str]:
    """List the imports of a module that do not run downward."""
    return [
        f"line {line}: {name or 'onecycle'} imports {other or 'onecycle'}"
        for other, line in imported(tree)
        if level_of(other) >= level_of(name)
    ]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_from_lower_levels(path: Path) -> None:
    assert upward_imports(module_name(path), ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "from onecycle.learner import Learner",
        "import onecycle.learner",
        "from onecycle import Learner",
        "from onecycle.optim.stepper import Stepper",
        "def f():\n    from onecycle.core.loop import Loop",
    ],
)
def test_an_upward_or_sideways_import_is_found(source: str) -> None:
    assert len(upward_imports("restore", ast.parse(source))) == 1


def test_an_import_for_types_is_allowed_upward() -> None:
    source = "if TYPE_CHECKING:\n    from onecycle.core.loop import Loop"
    assert upward_imports("restore", ast.parse(source)) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_nothing_is_imported_by_star_or_delegated(path: Path) -> None:
    tree = ast.parse(path.read_text())
    stars = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    for_types = [
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    ]
    delegation = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name in ("__getattr__", "__getattribute__", "__setattr__")
        and node not in for_types
    ]
    assert stars == []
    assert delegation == []


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


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_file_is_over_400_lines_and_no_function_over_40(path: Path) -> None:
    source = path.read_text().splitlines()
    tree = ast.parse(path.read_text())
    long = [
        f"{node.name}: {code_lines(node, source)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and code_lines(node, source) > 40
    ]
    assert long == []
    assert code_lines(tree, source) <= (300 if module_name(path) == "loop" else 400)


def test_importing_onecycle_loads_neither_torchvision_nor_matplotlib() -> None:
    code = "import sys, onecycle; print({'torchvision', 'matplotlib'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout.strip() == "set()"
