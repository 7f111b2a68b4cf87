import pytest

from onecycle import Callback, Checkpoint, Progress, Recorder, TerminateOnNonFinite, When
from onecycle.core.events import EVENTS
from onecycle.errors import CancelBatch, CancelFit
from onecycle.parallel.agreed import AgreedHandlers, agreed_events
from onecycle.testing import toy_learner


class Others:
    """Stands in for the processes: says what another one raised."""

    rank = 0

    def __init__(self, said=None, landing=None):
        self.said, self.landing, self.asked = said, landing, 0

    def most(self, value):
        self.asked += 1
        return max(value, int(self.said is not None or self.landing is not None))

    def gather(self, value):
        return [value, (self.said, self.landing)]


class Own(Callback):
    def after_batch(self, learn): ...

    def before_step(self, learn): ...


class OfTheLibrary(Progress):
    def after_epoch(self, learn): ...


def test_only_what_is_the_users_must_agree(tmp_path):
    assert agreed_events([Recorder(), Progress(), Checkpoint(tmp_path)]) == set()
    assert agreed_events([Own()]) == {"after_batch", "before_step"}
    assert agreed_events([Callback(after_step=lambda learn: None)]) == {"after_step"}
    assert agreed_events([When(after_step=lambda learn: None, every=2)]) >= {"after_step"}
    assert "after_epoch" in agreed_events([OfTheLibrary()])


def heard(others, handlers, events=("after_batch",)):
    learn = toy_learner()
    table = AgreedHandlers(
        [Callback(after_batch=each) for each in handlers], "train", others, {*events}
    )
    (hear,) = table.after_batch
    hear(learn)


def test_a_cancel_of_another_process_acts_here_when_all_have_heard():
    told = []
    with pytest.raises(CancelFit, match="there") as caught:
        heard(Others((5, "CancelFit", "there")), [told.append])
    assert len(told) == 1
    assert caught.value.raised_by == "a callback of process 1"


def test_of_several_cancels_the_widest_acts():
    def leave(learn):
        raise CancelBatch("here")

    with pytest.raises(CancelFit):
        heard(Others((5, "CancelFit", "there")), [leave])
    with pytest.raises(CancelBatch, match="here"):
        heard(Others((1, "CancelBatch", "there")), [leave])  # of equals that of the first process


def test_where_nobody_cancels_one_number_is_asked_for():
    others = Others()
    heard(others, [lambda learn: None])
    assert others.asked == 1


def test_an_event_on_which_others_agree_is_agreed_on_without_a_handler():
    with pytest.raises(CancelFit):
        heard(Others((5, "CancelFit", "there")), [])


def test_every_cancel_is_known_by_its_name():
    from onecycle import errors
    from onecycle.errors import Cancel

    assert all(getattr(errors, kind.__name__) is kind for kind in Cancel.__subclasses__())
    assert "cleanup_fit" in EVENTS


@pytest.mark.parametrize("cancels_here", [True, False])
def test_all_come_to_what_asks_the_others_or_none(cancels_here):
    told = []

    def leave(learn):
        if cancels_here:
            raise CancelBatch("here")

    class Asks(TerminateOnNonFinite):
        def after_loss(self, learn):
            told.append(learn)

    Asks.__module__ = "onecycle.callbacks"
    said = None if cancels_here else (CancelBatch.width, "CancelBatch", "here")
    others = Others(said)
    early = Callback(after_loss=leave)
    table = AgreedHandlers([early, Asks()], "train", others, {"after_loss"})
    with pytest.raises(CancelBatch, match="here"):
        table.after_loss[0](toy_learner())
    assert not told
    assert others.asked == 1
