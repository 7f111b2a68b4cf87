import json
import time

import pytest
import torch

from onecycle import Callback, GradientAccumulation, Timeline, When
from onecycle.callbacks.traces import PartTime, part_times
from onecycle.testing import toy_learner

pytestmark = pytest.mark.slow

SLOW = 0.004  # seconds, far above what a part of a toy takes


def wait(*args):
    time.sleep(SLOW)


class Sleeper(Callback):
    def before_step(self, learn):
        wait()


class SlowLoader:
    """Gives the batches of a loader, each late."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        for batch in self.loader:
            wait()
            yield batch

    def __len__(self):
        return len(self.loader)


def times(timeline):
    return {part.name: part.host / timeline.n_batches for part in timeline.parts}


def slow_data(learn):
    learn.dls.train = SlowLoader(learn.dls.train)


def slow_model(learn):
    learn.model.register_forward_hook(wait)


def slow_loss(learn):
    loss_func = learn.loss_func

    def loss(pred, target):
        wait()
        return loss_func(pred, target)

    learn.loss_func = loss


def slow_backward(learn):
    next(learn.model.parameters()).register_hook(wait)


def slow_step(learn):
    learn.opt.register_step_pre_hook(wait)


def slow_callback(learn):
    learn.cbs.append(Sleeper())


@pytest.mark.parametrize(
    ("slow", "part"),
    [
        (slow_data, "data"),
        (slow_model, "forward"),
        (slow_loss, "loss"),
        (slow_backward, "backward"),
        (slow_step, "step"),
        (slow_callback, "Sleeper"),
    ],
)
def test_what_is_slow_is_found_where_it_is(slow, part):
    learn, timeline = toy_learner(n_batches=12), Timeline(batches=6)
    slow(learn)
    learn.fit(1, cbs=[timeline])
    assert timeline.n_batches == 6
    found = times(timeline)
    assert found.pop(part) >= SLOW
    assert max(found, key=found.get) != part
    assert sum(found.values()) < SLOW * 3  # the profiler's own time included, on a busy machine


def test_table_adds_up_and_names_the_parts_in_the_order_of_a_batch():
    timeline = Timeline(batches=4, skip=2)
    assert str(timeline) == "nothing was measured yet"
    toy_learner().fit(1, cbs=[timeline, GradientAccumulation(2)])
    rows = [line.split() for line in str(timeline).splitlines()]
    assert rows[0] == ["part", "host", "ms", "share", "device", "ms"]
    names = [row[0] for row in rows[1:-2]]
    assert names[:6] == ["data", "transfer", "forward", "loss", "backward", "step"]
    assert names[-1] == "other"
    assert {"Recorder", "GradientAccumulation"} <= set(names[6:-1])
    assert "Timeline" not in names
    assert sum(float(row[1]) for row in rows[1:-2]) == pytest.approx(float(rows[-2][2]), abs=0.01)
    assert rows[-1] == ["for", "one", "of", "4", "batches"]
    labels = [label.get_text() for label in timeline.plot().get_yticklabels()]
    assert labels == [part.name for part in timeline.parts]


def test_trace_is_one_that_browsers_read_and_training_has_the_same_bits(tmp_path):
    learn, plain = toy_learner(), toy_learner()
    learn.fit(2, cbs=[Timeline(tmp_path / "new" / "trace.json", batches=3)])
    plain.fit(2)
    assert all(map(torch.equal, learn.model.parameters(), plain.model.parameters()))
    events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
    assert any(event.get("cat") == "cpu_op" for event in events)


def test_a_short_pass_ends_it_and_a_fit_that_is_too_short_says_so(said):
    timeline = Timeline(batches=50, skip=5)
    toy_learner(n_batches=8).fit(1, cbs=[timeline])
    assert timeline.n_batches == 3
    timeline = Timeline(skip=5)
    toy_learner(n_batches=5).fit(1, cbs=[timeline])
    assert timeline.n_batches == 0
    assert said()[-1].startswith("Timeline measured nothing: the fit has no batch after the firs")


def test_profiler_is_stopped_after_an_error():
    def fail(learn):
        if learn.n_updates == 6:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        toy_learner().fit(1, cbs=[Timeline(), Callback(after_step=fail)])
    with torch.profiler.profile(acc_events=True) as profile:  # one is allowed at a time
        torch.ones(1) + 1
    assert profile.events()


def test_a_callback_in_a_filter_goes_by_the_name_of_the_filter():
    timeline = Timeline(batches=4, skip=2)
    toy_learner().fit(1, cbs=[When(Sleeper(), every=2), timeline])
    assert times(timeline)["When"] >= SLOW / 2


def python(number, parent, name, begin, end):
    ids = {"Python id": number, "Python parent id": parent}
    return {
        "ph": "X",
        "cat": "python_function",
        "name": name,
        "ts": begin,
        "dur": end - begin,
        "args": ids,
    }


def test_what_the_device_did_is_counted_where_it_was_given_from_any_thread():
    loop = "x/onecycle/core/loop.py"
    trace = [
        python(1, None, f"{loop}(10): _train_batch", 0, 100),
        python(2, 1, f"{loop}(20): _predict", 10, 40),
        python(3, 2, "x/onecycle/core/state.py(5): predict_batch", 10, 40),
        python(4, 1, "x/onecycle/optim/stepper.py(5): backward", 50, 90),
    ]
    for correlation, at, duration in ((1, 20, 300), (2, 60, 500), (3, 95, 7), (4, None, 9)):
        if at is not None:
            launch = {"ph": "X", "cat": "cuda_runtime", "ts": at, "dur": 1, "tid": correlation}
            trace.append({**launch, "args": {"correlation": correlation}})
        kernel = {"ph": "X", "cat": "kernel", "ts": 1000, "dur": duration}
        trace.append({**kernel, "args": {"correlation": correlation}})
    assert part_times(trace, {}, 1e-4) == (
        PartTime("forward", pytest.approx(30e-6), pytest.approx(300e-6)),
        PartTime("backward", pytest.approx(40e-6), pytest.approx(500e-6)),
        PartTime("other", pytest.approx(30e-6), pytest.approx(16e-6)),
    )


@pytest.mark.parametrize(("option", "value"), [("batches", 0), ("skip", -1), ("path", 3)])
def test_what_cannot_be_is_refused(option, value):
    with pytest.raises((ValueError, TypeError), match=option):
        Timeline(**{option: value})
