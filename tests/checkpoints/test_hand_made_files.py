"""A file made by hand, under a valid checksum, is refused by name and changes nothing."""

from __future__ import annotations

import random

import hand_made
import pytest
import torch

from onecycle import CheckpointError
from onecycle.checkpoints import archives

pytestmark = pytest.mark.filterwarnings("ignore:Validating sparse tensor")


@pytest.fixture(scope="module", params=hand_made.KINDS)
def kind_and_state(request, tmp_path_factory):
    return request.param, hand_made.good(request.param, tmp_path_factory.mktemp("good"))


def test_there_are_more_than_two_hundred_of_them():
    assert sum(len(hand_made.edits(kind)) for kind in hand_made.KINDS) > 200


def test_a_sample_of_them_is_refused_and_nothing_changes(kind_and_state, tmp_path):
    kind, state = kind_and_state
    found = hand_made.edits(kind)
    wrong = {}
    for name in random.Random(0).sample(sorted(found), 30):
        hand_made.write(kind, hand_made.edited(state, found[name]), tmp_path / "file")
        wrong[name] = hand_made.outcome(kind, tmp_path / "file")
    assert {name: what for name, what in wrong.items() if what} == {}


def test_without_an_edit_the_file_is_loaded(kind_and_state, tmp_path):
    kind, state = kind_and_state
    hand_made.write(kind, state, tmp_path / "file")
    assert hand_made.outcome(kind, tmp_path / "file") == "was loaded"


def test_what_would_fill_the_memory_is_refused_before_it_is_unpacked(
    kind_and_state, tmp_path, monkeypatch
):
    kind, state = kind_and_state
    loaded, load = [], torch.load
    monkeypatch.setattr(
        archives.torch, "load", lambda *args, **options: loaded.append(1) or load(*args, **options)
    )
    read = {}
    for name, content in hand_made.bombs(state, 10**6).items():
        (tmp_path / "file").write_bytes(hand_made.sealed(kind, content))
        loaded.clear()
        with pytest.raises(CheckpointError, match="could run code or fill the memory"):
            hand_made.take(kind, hand_made.learner(), tmp_path / "file")
        read[name] = bool(loaded)
    # What is expanded or of itself takes no memory until it is copied.
    assert read == {
        "unpacked": False,
        "bytes of a number": False,
        "expanded": True,
        "of itself": True,
    }


def test_the_model_is_readable_whatever_the_optimizer_holds(tmp_path):
    state = hand_made.good("model", tmp_path)
    edits = dict(hand_made.of_optimizer(("opt",)))
    # All of a file with a tensor that is larger than itself is refused.
    taken = [name for name in edits if "expanded" not in name]
    for name in random.Random(1).sample(taken, 25):
        hand_made.write("model", hand_made.edited(state, edits[name]), tmp_path / "file")
        learn = hand_made.learner()
        learn.load(tmp_path / "file", with_opt=False)
        for key, value in learn.model.state_dict().items():
            assert torch.equal(value, state["model"][key]), name
