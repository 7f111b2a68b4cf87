"""A callback hears of an event when the rule says so, and at no other time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onecycle import (
    Callback,
    CancelFit,
    Checkpoint,
    GradientClip,
    MixUp,
    OneCycleSchedule,
    Recorder,
    When,
)
from onecycle.testing import toy_learner


class Heard(Callback):
    def __init__(self) -> None:
        self.updates: list[int] = []
        self.epochs: list[int] = []
        self.ends = 0

    def after_step(self, learn: Any) -> None:
        self.updates.append(learn.n_updates)

    def after_epoch(self, learn: Any) -> None:
        self.epochs.append(learn.epoch)

    def cleanup_fit(self, learn: Any) -> None:
        self.ends += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates = state["updates"]


@pytest.mark.parametrize(
    ("rule", "updates", "epochs"),
    [
        ({"every": 7}, [7, 14, 21, 28], []),
        ({"once": True}, [1], [0]),
        ({"every": 2, "once": True}, [2], [1]),
        ({"after": 2}, [*range(21, 31)], [2]),
        ({"before": 1}, [*range(1, 11)], [0]),
        ({"after": 0.9}, [27, 28, 29, 30], [2]),
        ({"before": 0.1, "every": 2}, [2], []),
        ({"after": 1, "before": 2, "every": 5}, [15, 20], []),
        ({"after": 1.0}, [30], [2]),
    ],
)
def test_a_rule_picks_updates_and_epochs(rule: Any, updates: Any, epochs: Any) -> None:
    heard = Heard()
    toy_learner(n_batches=10).fit(3, cbs=[When(heard, **rule)])
    assert (heard.updates, heard.epochs, heard.ends) == (updates, epochs, 1)


def test_every_fit_is_counted_anew() -> None:
    heard, learn = Heard(), toy_learner(n_batches=4)
    for _ in range(2):
        learn.fit(1, cbs=[When(heard, every=3)])
    assert heard.updates == [3, 3]


def test_a_resumed_fit_goes_on_counting(tmp_path: Path) -> None:
    def stop(learn: Any) -> None:
        if learn.n_updates == 8:
            raise CancelFit("here")

    cut, whole = Heard(), Heard()
    cbs = [Checkpoint(tmp_path, every="1 update"), When(cut, every=3)]
    toy_learner(n_batches=5).fit(3, cbs=[*cbs, Callback(before_batch=stop)])
    resumed = toy_learner(n_batches=5)
    resumed.fit(3, cbs=[When(after := Heard(), every=3)], resume=tmp_path)
    toy_learner(n_batches=5).fit(3, cbs=[When(whole, every=3)])
    assert after.updates == whole.updates == [3, 6, 9, 12, 15]


def test_it_stands_where_the_callback_stands() -> None:
    class Stops(Heard):
        during = "train"
        requires = (Recorder,)

    kind = When(Stops())
    assert (kind.stage, kind.during, kind.requires) == (Stops.stage, "train", (Recorder,))


@pytest.mark.parametrize(
    ("arguments", "rule", "error", "message"),
    [
        ([], {}, TypeError, "give a callback, or functions"),
        ([Heard()], {"after_step": print}, TypeError, "not both"),
        ([Heard], {}, TypeError, "must be a Callback object"),
        ([OneCycleSchedule(0.1)], {}, TypeError, "must hear of every event"),
        ([Recorder()], {}, TypeError, "must hear of every event"),
        ([Checkpoint("runs")], {}, TypeError, "must hear of every event"),
        ([MixUp()], {}, TypeError, "must hear of every event"),
        ([GradientClip(1.0)], {}, TypeError, "must hear of every event"),
        ([When(Heard())], {}, TypeError, "must hear of every event"),
        ([Heard()], {"every": 0}, ValueError, "every must be at least 1"),
        ([Heard()], {"after": -1}, ValueError, "after must be an epoch"),
        ([Heard()], {"before": 1.5}, ValueError, "before must be an epoch"),
        ([Heard()], {"after": True}, ValueError, "after must be an epoch"),
        ([Heard()], {"once": 1}, TypeError, "once must be True or False"),
    ],
)
def test_a_rule_that_is_none_is_refused(
    arguments: Any, rule: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        When(*arguments, **rule)


def test_a_fraction_needs_a_fit_of_known_length() -> None:
    learn = toy_learner()
    learn.dls.train = iter(list(learn.dls.train))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs its length"):
        learn.fit(1, cbs=[When(Heard(), after=0.5)])


@pytest.mark.parametrize("make", [Callback, When])
def test_functions_are_called_by_the_same_rules_and_counted_anew_in_each_fit(make: Any) -> None:
    updates: list[int] = []
    epochs: list[int] = []
    looks = make(
        every=7,
        after=0.2,
        after_step=lambda learn: updates.append(learn.n_updates),
        after_fit=lambda learn: epochs.append(learn.epoch),
    )
    learn = toy_learner(n_batches=10, cbs=(looks,))
    learn.fit(2)
    learn.fit(3)
    assert updates == [7, 14, 7, 14, 21, 28]
    assert epochs == [1, 2]


@pytest.mark.parametrize("make", [Callback, When])
def test_a_resumed_fit_goes_on_counting_calls_of_functions(make: Any, tmp_path: Path) -> None:
    def watched(found: list[int]) -> Callback:
        made: Callback = make(every=7, after_step=lambda learn: found.append(learn.n_updates))
        return made

    def stop(learn: Any) -> None:
        if learn.n_updates == 10:
            raise CancelFit

    found: list[int] = []
    learn = toy_learner(n_batches=10)
    keep = Checkpoint(tmp_path, every="1 update")
    learn.fit(3, cbs=[watched(found), keep, Callback(after_batch=stop)])
    toy_learner(n_batches=10).fit(3, cbs=[watched(found)], resume=tmp_path)
    assert found == [7, 14, 21, 28]


def test_a_callback_of_functions_is_the_same_as_ever_without_a_rule() -> None:
    def look(learn: Any) -> None:
        pass

    plain = Callback(after_step=look)
    assert plain.after_step is look
    assert not hasattr(plain, "before_fit")
    assert (plain.plan(None), plain.state_dict()) == ({}, {})
    for wrong in ({"every": 0}, {"after": -1}, {"before": "1"}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            Callback(after_step=look, **wrong)
