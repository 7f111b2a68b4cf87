"""Fits of 2 and 4 processes, each with a part of the model; each job is started once."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from started import HELPERS, Job

from onecycle import callbacks

MODULE = "sharded_checks"
#: What more than two processes can do otherwise than two: among them parts of which one is empty.
FOR_FOUR = (
    "check_the_norm_that_clips_is_over_all_parts",
    "check_the_same_number_ends_in_the_same_bits",
    "check_begin_for_others",
    "check_another_number_goes_on",
)


def checks() -> list[str]:
    tree = ast.parse((HELPERS / f"{MODULE}.py").read_text())
    named = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in named if name.startswith("check_")]


CASES = [(4, name) for name in FOR_FOUR] + [(2, name) for name in checks()]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@cache
def found(world: int, folder: Path) -> list[dict[str, str]]:
    return Job(MODULE, world, folder, *(name for each, name in CASES if each == world)).found()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "name"), CASES, ids=[f"{name[6:]}-{world}" for world, name in CASES]
)
def test_processes_with_a_part_each_have_the_answer_of_one(
    world: int, name: str, folder: Path
) -> None:
    said = [each.get(name, "it was not reached") for each in found(world, folder)]
    assert said == [""] * world, "\n".join(said)


def test_what_copies_or_replaces_parameters_needs_the_whole_model() -> None:
    kinds = {kind for kind in vars(callbacks).values() if isinstance(kind, type)}
    found = {kind.__name__ for kind in kinds if getattr(kind, "needs_whole_model", False)}
    assert found == {"ChannelsLast", "CudaGraph", "MicroBatches", "SnapshotEnsemble"}
