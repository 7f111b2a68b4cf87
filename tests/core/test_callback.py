import pytest
from torch import nn

from onecycle import Callback, Stage, UnknownEventError
from onecycle.core.events import EVENTS
from onecycle.core.handlers import Handlers
from onecycle.testing import toy_learner


class Note(Callback):
    """Writes its name down at some events."""

    def __init__(self, name, log, stage=Stage.REACT):
        self.stage = stage
        note = lambda learn: log.append(name)  # noqa: E731
        super().__init__(before_fit=note, after_step=note, cleanup_fit=note)


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_can_be_handled_by_a_method_and_by_a_function(event):
    method = type("C", (Callback,), {event: lambda self, learn: None})()
    function = Callback(**{event: lambda learn: None})
    for callback in (method, function):
        assert len(getattr(Handlers([callback], "train"), event)) == 1


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("after_bach", "after_batch"),
        ("before_epochs", "before_epoch"),
        ("cleanup_fitt", "cleanup_fit"),
        ("after_cancel_valid", "after_cancel_validate"),
        ("after_validation", "after_validate"),
    ],
)
def test_a_misspelt_event_is_refused_when_the_class_is_made_with_the_nearest_name(wrong, right):
    with pytest.raises(UnknownEventError, match=f"Wrong defines '{wrong}'.*'{right}'"):
        type("Wrong", (Callback,), {wrong: lambda self, learn: None})
    with pytest.raises(UnknownEventError, match=f"'{wrong}'.*'{right}'"):
        Callback(**{wrong: lambda learn: None})


@pytest.mark.parametrize(
    ("there", "here"),
    [
        ("on_train_epoch_end", "'after_epoch'"),  # Lightning
        ("on_validation_epoch_end", "'after_validate'"),
        ("on_before_optimizer_step", "'before_step'"),
        ("on_epoch_end", "'after_epoch'"),  # Keras
        ("on_train_batch_end", "'after_batch'"),
        ("on_step_end", "'after_step'"),  # transformers
        ("begin_batch", "'before_batch'"),  # fastai
        ("training_step", "compute_loss"),
        ("configure_optimizers", "opt_func="),
        ("order", "Stage.PREPARE"),
    ],
)
def test_a_name_of_another_library_is_answered_with_the_name_here(there, here):
    with pytest.raises(UnknownEventError, match=here) as error:
        type("Foreign", (Callback,), {there: lambda self, learn: None})
    others = {"'before_epoch'", "'after_epoch'", "'before_batch'", "'after_batch'"} - {here}
    assert not any(other in str(error.value) for other in others)


def test_a_handler_that_does_not_take_the_learner_is_refused_before_anything_runs():
    class Old(Callback):
        def after_batch(self):
            pass

    with pytest.raises(TypeError, match=r"add learn, as in def after_batch\(self, learn\)"):
        toy_learner(cbs=(Old(),))
    with pytest.raises(TypeError, match="after_epoch is called with the learner"):
        toy_learner().fit(1, cbs=[Callback(after_epoch=lambda: None)])


def test_a_callback_shows_its_arguments_in_one_short_line():
    class Watch(Callback):
        def __init__(self, every, model):
            self.every, self.model = every, model

    shown = repr(Watch(3, nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)])))
    assert shown == "Watch(every=3, model=a Sequential)"


def test_an_event_of_another_framework_is_refused_with_the_list_of_events():
    with pytest.raises(UnknownEventError, match=r"the events are before_fit, .*after_cancel_fit"):

        class Foreign(Callback):
            def on_xyzzy(self, learn):
                pass


def test_a_misspelt_event_is_refused_also_when_a_mixin_brings_it():
    class Mixin:
        def after_bach(self, learn):
            pass

    with pytest.raises(UnknownEventError, match="after_batch"):

        class Mixed(Mixin, Callback):
            pass


def test_a_misspelt_event_is_a_type_error_as_well():
    with pytest.raises(TypeError):
        Callback(after_bach=print)


def test_methods_that_do_not_look_like_events_are_free():
    class Free(Callback):
        def afterwards(self):
            return 1

    assert Free().afterwards() == 1


@pytest.mark.parametrize("during", ["training", None, "Valid"])
def test_an_unknown_during_is_refused_when_the_class_is_made(during):
    with pytest.raises(ValueError, match=r"Wrong\.during must be"):
        type("Wrong", (Callback,), {"during": during})


@pytest.mark.parametrize("runs_in", [frozenset(("fits",)), "fit"])
def test_an_unknown_run_is_refused_when_the_class_is_made(runs_in):
    with pytest.raises(ValueError, match=r"Wrong\.runs_in must be"):
        type("Wrong", (Callback,), {"runs_in": runs_in})


def test_stages_come_first_and_then_list_order():
    log = []
    given = [("save", 3), ("react1", 2), ("prepare1", 0), ("record", 1), ("react2", 2)]
    given += [("prepare2", 0)]
    cbs = [Note(name, log, Stage(stage)) for name, stage in given]
    toy_learner(n_batches=1).fit(1, cbs=cbs)
    ordered = ["prepare1", "prepare2", "record", "react1", "react2", "save"]
    assert log == ordered + ordered + ordered[::-1]  # before_fit, after_step, cleanup_fit


def test_the_callbacks_of_a_fit_come_after_those_of_the_learner_within_a_stage():
    log = []
    learn = toy_learner(n_batches=1, cbs=(Note("own", log),))
    learn.fit(1, cbs=[Note("fit", log)])
    assert log[:2] == ["own", "fit"]


@pytest.mark.parametrize(
    ("stage", "runs_in", "expected"),
    [
        (Stage.PREPARE, None, {"fit", "range_test", "inference"}),
        (Stage.RECORD, None, {"fit"}),
        (Stage.REACT, None, {"fit"}),
        (Stage.SAVE, None, {"fit"}),
        (Stage.PREPARE, frozenset(("fit",)), {"fit"}),
        (Stage.REACT, frozenset(("inference",)), {"inference"}),
        (Stage.SAVE, frozenset(("range_test", "fit")), {"range_test", "fit"}),
    ],
)
def test_only_preparing_callbacks_take_part_outside_fits_unless_they_say_otherwise(
    stage, runs_in, expected
):
    runs = set()
    running = ["fit"]
    callback = Callback(before_batch=lambda learn: runs.add(running[0]))
    callback.stage, callback.runs_in = stage, runs_in
    learn = toy_learner(n_batches=3, cbs=(callback,), check=False)
    learn.fit(1)
    running[0] = "range_test"
    learn.lr_find(num_it=3, show_plot=False)
    running[0] = "inference"
    learn.validate()
    assert runs == expected


def test_inference_fires_batch_events_only():
    seen = []
    callback = Callback(**{e: lambda learn, e=e: seen.append(e) for e in EVENTS})
    callback.stage = Stage.PREPARE
    learn = toy_learner(n_batches=2, cbs=(callback,))
    learn.validate()
    batch = ["before_batch", "after_pred", "after_loss", "after_batch"]
    assert seen == batch * 2


def test_a_function_and_a_class_see_the_same_learner():
    learn, seen = toy_learner(n_batches=1), []
    learn.fit(1, cbs=[Callback(after_step=seen.append)])
    assert seen == [learn]


def test_a_callback_made_from_functions_can_be_for_training_batches_alone():
    seen = []
    watch = Callback(after_batch=lambda learn: seen.append(learn.training), during="train")
    toy_learner(n_batches=3).fit(1, cbs=[watch])
    assert seen == [True] * 3
