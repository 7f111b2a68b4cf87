"""The public names are complete, sorted and documented."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import onecycle
from onecycle.testing import toy_learner


def test_all_lists_each_public_name_once_in_order() -> None:
    assert onecycle.__all__ == sorted(set(onecycle.__all__))


def test_every_imported_name_is_public() -> None:
    tree = ast.parse(Path(onecycle.__file__).read_text())
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == set(onecycle.__all__)


def undocumented(name: str, thing: object) -> list[str]:
    """List what has no docstring: the thing, or a public method or property of a class."""
    found = [] if len(inspect.getdoc(thing) or "") > 20 else [name]
    if not inspect.isclass(thing):
        return found if callable(thing) else [*found, f"{name} is no class and cannot be called"]
    for method, member in vars(thing).items():
        # A static method, a class method and a property hold the function that has the words.
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if inspect.isfunction(function) and not method.startswith("_") and not function.__doc__:
            found.append(f"{name}.{method}")
    return found


def test_every_public_name_method_and_property_has_a_docstring() -> None:
    names = onecycle.__all__
    assert [each for name in names for each in undocumented(name, getattr(onecycle, name))] == []


class Silent:
    def method(self) -> None:
        pass

    @classmethod
    def made(cls) -> None:
        pass

    @property
    def field(self) -> None:
        pass


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (Silent, ["it", "it.method", "it.made", "it.field"]),
        (lambda: None, ["it"]),
        (type("Short", (), {"__doc__": "Words."}), ["it"]),
        ("no function", ["it is no class and cannot be called"]),
    ],
)
def test_what_has_no_docstring_is_found(thing: object, expected: list[str]) -> None:
    assert undocumented("it", thing) == expected


def test_every_class_and_what_a_learner_shows_tells_what_it_is() -> None:
    classes = [
        each for each in map(onecycle.__dict__.get, onecycle.__all__) if inspect.isclass(each)
    ]
    assert [each for each in classes if each.__repr__ is object.__repr__] == []
    learn = toy_learner()
    data = onecycle.SeededDataset([1, 2, 3])  # type: ignore[arg-type]
    told = {
        "ParamGroups(AdamW, lr=[0.001])": learn.groups,
        "Stream(epoch=0, drawn=0)": learn.stream,
        "FastStepper(AdamW, fast step)": learn.stepper,
        "Slot(key='lr', index=None)": learn.groups.slots("lr", 0)[0],
        "SeededDataset(list, 3 samples)": data,
        "token_weight(ignore_index=0, class_weight of 2 classes, target='y', shift=True)": (
            onecycle.token_weight(0, torch.ones(2), target="y", shift=True)
        ),
    }
    assert {repr(each): each for each in told.values()} == told
