import pickle
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from onecycle.record.predictions import Predictions

X = torch.arange(3.0)
FOUND = Predictions(X[:, None], {"labels": X, "ids": ["a", "b", "c"]}, losses=X)


def test_they_unpack_as_predictions_and_targets() -> None:
    preds, targets = replace(FOUND, losses=None)
    assert preds is FOUND.preds
    assert targets is FOUND.targets


def test_with_losses_they_unpack_as_predictions_targets_and_losses() -> None:
    preds, targets, losses = FOUND
    assert preds is FOUND.preds
    assert targets is FOUND.targets
    assert losses is FOUND.losses


def test_what_was_not_asked_for_is_none() -> None:
    found = Predictions(X, X)
    assert found.losses is found.inputs is None


def test_they_print_as_what_they_hold_and_no_numbers() -> None:
    assert repr(FOUND) == (
        "Predictions(preds=(3, 1) float32, targets=dict of {labels: (3,) float32, "
        "ids: list of (str, str, str)}, losses=(3,) float32)"
    )


@pytest.mark.parametrize("copied", [deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_has_the_same_numbers_in_its_own_memory(copied: Any) -> None:
    other = copied(FOUND)
    other.require_same_targets(FOUND)
    assert torch.equal(other.preds, FOUND.preds)
    assert torch.equal(other.losses, FOUND.losses)
    assert other.preds.data_ptr() != FOUND.preds.data_ptr()


@pytest.mark.parametrize(
    "targets",
    [X, (X, "a"), [X, None], {"labels": X, "ids": ["a"]}, ["a", "b"], [{"boxes": X}], None],
)
def test_equal_targets_belong_together(targets: Any) -> None:
    Predictions(X, targets).require_same_targets(Predictions(X, deepcopy(targets)))


@pytest.mark.parametrize(
    ("targets", "others"),
    [
        (X, X + 1),
        (X, X[:2]),
        (X, None),
        ((X, "a"), (X, "b")),
        ([X], [X, X]),
        ({"labels": X}, {"labels": -X - 1}),
        ({"labels": X}, {"label": X}),
        ([{"boxes": X}], [{"boxes": X[:1]}]),
        (["a", "b"], ["b", "a"]),
    ],
)
def test_other_targets_are_refused_also_within_dicts_and_lists(targets: Any, others: Any) -> None:
    found = Predictions(X, targets)
    with pytest.raises(ValueError, match="other targets in another pass"):
        found.require_same_targets(replace(found, targets=others))
