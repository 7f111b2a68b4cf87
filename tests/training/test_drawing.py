"""The loop is drawn with each callback at its events."""

from onecycle import Callback, Stage, When
from onecycle.testing import toy_learner
from onecycle.training.drawing import draw_loop


def test_the_drawing_shows_each_callback_at_its_events_in_order():
    class First(Callback):
        stage = Stage.PREPARE
        during = "valid"

        def before_batch(self, learn):
            pass

        def after_step(self, learn):
            pass

    lines = draw_loop([Callback(after_step=toy_learner), First()]).splitlines()
    assert [line.strip() for line in lines if "First" in line] == [
        f"fire after_step: First, Callback from {toy_learner!r}",
        "fire before_batch: First",
    ]
    assert lines[5].strip() == "fire before_batch"  # of training


def test_a_callback_that_is_called_now_and_then_is_named_as_itself():
    class Looks(Callback):
        def after_step(self, learn):
            pass

    lines = draw_loop(
        [When(Looks(), every=3), Callback(after_step=toy_learner, every=2)]
    ).splitlines()
    named = [line.strip() for line in lines if "after_step" in line]
    assert named == [f"fire after_step: Looks, Callback from {toy_learner!r}"]
