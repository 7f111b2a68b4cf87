"""What it costs to have the package: the time of its import, and the distributions it brings.

The import is timed in processes of its own, after `import torch`, with the bytecode that pip
compiles when it installs a package. Without it, as where PYTHONDONTWRITEBYTECODE is set beside a
checkout, all modules are compiled anew, which takes three times as long again. Counted are the
distributions that `pip install onecycle` needs and `pip install torch` does not, from the metadata
of what is installed here.

    python tests/benchmarks/imports.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from pairs import arguments, quartiles

ROOT = Path(__file__).parents[2]


def cpu_seconds(bytecode: str) -> float:
    """Return the CPU seconds of the import in a new process, with the bytecode of a folder."""
    timed = "import torch, time; t = time.process_time(); import onecycle; "
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", timed + "print(time.process_time() - t)"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    return float(done.stdout)


def loaded() -> list[str]:
    """Return which of the libraries that are loaded when used come with the import."""
    code = "import sys, onecycle; print(*{'torchvision', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.split()


def closure(names: list[str]) -> set[str]:
    """Return what these distributions need, by their own metadata, without extras."""
    found: set[str] = set()
    left = list(names)
    while left:
        requirement = left.pop()
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        if name in found or not _applies(requirement):
            continue
        found.add(name)
        try:
            left += requires(name) or []
        except PackageNotFoundError:
            print(f"({name} is not installed here: counted without what it needs)")
    return found


def _applies(requirement: str) -> bool:
    """Tell whether a requirement is for this platform and no extra."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ";" not in requirement
    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


def main() -> None:
    """Print both rows."""
    options = arguments(__doc__, pairs=9)
    with tempfile.TemporaryDirectory() as bytecode:
        cold = cpu_seconds(bytecode)
        low, middle, high = quartiles([cpu_seconds(bytecode) for _ in range(options.pairs)])
    print(
        f"import onecycle after torch: {middle:.3f} s, CPU time ({low:.3f} to {high:.3f}, "
        f"{options.pairs} runs; target: at most 0.10), the first time {cold:.3f} s"
    )
    print(f"loaded with it: {', '.join(loaded()) or 'neither torchvision nor matplotlib'}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    beyond = closure(project["dependencies"]) - closure(["torch"])
    print(f"{len(beyond)} distributions beyond torch's (target: at most 13): {sorted(beyond)}")


if __name__ == "__main__":
    main()
