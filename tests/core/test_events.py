"""The table of events says of each what its name and the drawing of the loop say."""

import pytest

from onecycle.core.events import BATCH_EVENTS, EVENTS, LOOP

#: The events whose name does not end with the part of the loop that they belong to.
OF_A_BATCH = ("after_pred", "after_loss", "before_backward", "after_backward")


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_belongs_to_the_part_that_its_name_ends_with(name: str) -> None:
    event = EVENTS[name]
    assert event.name == name
    assert event.scope == ("batch" if name in OF_A_BATCH else name.rsplit("_", 1)[1])
    assert event.when.endswith(".")


def test_the_events_are_those_of_the_drawing_in_its_order_and_one_for_each_cancel() -> None:
    drawn = [line.split()[1] for line in LOOP.splitlines() if line.split()[0] == "fire"]
    cancels = [name for name in EVENTS if name.startswith("after_cancel_")]
    assert list(EVENTS) == [*dict.fromkeys(drawn), *cancels]
    parts = {event.scope for event in EVENTS.values()}
    assert {name.removeprefix("after_cancel_") for name in cancels} == parts


def test_what_tells_of_something_done_is_heard_of_by_all() -> None:
    done = [f"after_{part}" for part in ("step", "batch", "train", "validate", "epoch", "fit")]
    assert [name for name, event in EVENTS.items() if event.reports] == done


def test_the_events_of_a_batch_are_those_that_training_and_validation_share() -> None:
    training, validation = LOOP.split("for each validation batch")
    both = [
        name for name in EVENTS if f"fire {name}\n" in training and f"fire {name}\n" in validation
    ]
    assert list(BATCH_EVENTS) == [*both, "after_cancel_batch"]
