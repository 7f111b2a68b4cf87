"""The public names are complete, sorted and documented."""

import ast
import inspect
from pathlib import Path

import pytest

import onecycle


def test_all_lists_each_public_name_once_in_order() -> None:
    assert onecycle.__all__ == sorted(set(onecycle.__all__))


def test_every_imported_name_is_public() -> None:
    tree = ast.parse(Path(onecycle.__file__).read_text())
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == set(onecycle.__all__)


@pytest.mark.parametrize("name", onecycle.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert len(inspect.getdoc(getattr(onecycle, name)) or "") > 20


@pytest.mark.parametrize("name", onecycle.__all__)
def test_every_public_method_has_a_docstring(name: str) -> None:
    thing = getattr(onecycle, name)
    if not inspect.isclass(thing):
        assert callable(thing)
        return
    missing = [
        method
        for method, function in vars(thing).items()
        if inspect.isfunction(function) and not method.startswith("_") and not function.__doc__
    ]
    assert missing == []
