"""`CudaGraph` on the CPU, with a stand-in for the capture, and on a GPU where there is one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_stand_in import StandIn, seeded
from image_learner import image_learner
from learner_state import trained
from seeded_learner import make_learner
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW

from onecycle import (
    SWA,
    AttributeScheduler,
    BackendFlags,
    BatchSizeSchedule,
    Callback,
    CancelBatch,
    CancelFit,
    CancelStep,
    ChannelsLast,
    Checkpoint,
    CudaGraph,
    GradientAccumulation,
    GradientClip,
    Learner,
    MixedPrecision,
    MixUp,
    ProgressiveResizing,
    TensorLoader,
    TerminateOnNonFinite,
    linear,
    speed_profile,
)
from onecycle.callbacks import cuda_graph
from onecycle.cuda_graphs import batches as graphed
from onecycle.cuda_graphs import capture
from onecycle.cuda_graphs.batches import Results
from onecycle.cuda_graphs.capture import Cuda
from onecycle.optim.fast import FastStepper
from onecycle.testing import check_callback, toy_learner

MakeLearner = Callable[..., Learner]


class NoCapture(StandIn):
    """Fails in the middle of a capture, and leaves casts of weights that are none in autocast."""

    error: type[BaseException] = RuntimeError

    def capture(self, function: Callable[[], Any], *, draws: bool = True) -> Any:
        weights = [(p, p.detach().clone()) for p in self.learn.model.parameters()]
        buffers = [(buffer, buffer.clone()) for buffer in self.learn.model.buffers()]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for p, _ in weights:
                p.fill_(torch.nan)
            with torch.enable_grad():
                function()
            for tensor, before in (*weights, *buffers):
                tensor.copy_(before)
        for p, _ in weights:
            p.grad = torch.full_like(p, torch.nan)
        raise self.error("operation not permitted when stream is capturing\nand more")


#: Four batches an epoch, the last one smaller: three are for warm-up, the others are replayed.
def fitted(
    cbs: tuple[Callback, ...] = (),
    make: MakeLearner = make_learner,
    fit: Callable[[Learner, list[Callback]], None] = lambda learn, cbs: learn.fit_one_cycle(
        3, 0.05, cbs=cbs
    ),
    **options: Any,
) -> dict[str, Any]:
    """Return all that a fit ends in."""
    learn = seeded(make, **options)
    fit(learn, list(cbs))
    return trained(learn)


sgd = partial(SGD, momentum=0.9)
two_groups = {"splitter": lambda model: [model[:2].parameters(), model[2:].parameters()]}


@pytest.mark.parametrize(
    "options",
    [
        {"opt_func": sgd},
        {"opt_func": AdamW},
        {"opt_func": sgd, "fast_step": True},
        {"opt_func": AdamW, "fast_step": True, "wd": 0.1, **two_groups},
        {"opt_func": torch.optim.RMSprop},
    ],
    ids=["SGD", "AdamW", "fast SGD", "fast AdamW, two groups", "RMSprop"],
)
def test_a_fit_with_a_graph_ends_in_the_same_bits(options, stand_in, caplog) -> None:
    assert fitted((CudaGraph(),), **options) == fitted(**options)
    assert (stand_in.captures, stand_in.replays) == (1, 3 * 3 - 3)
    assert caplog.messages == [] or "only the learning rate is cycled" in caplog.text


@pytest.mark.parametrize(
    "make_cbs",
    [
        lambda: [GradientClip(0.1)],
        lambda: [MixedPrecision("bf16")],
        lambda: [TerminateOnNonFinite()],
        lambda: [TerminateOnNonFinite("skip")],
        lambda: [SWA(0.3)],
        lambda: [MixedPrecision("bf16"), GradientClip(max_value=0.01), SWA(0.3)],
    ],
)
@pytest.mark.parametrize("last", [False, True])
def test_other_callbacks_do_with_a_graph_what_they_do_without(make_cbs, last, stand_in) -> None:
    graph = CudaGraph()
    cbs = [*make_cbs(), graph] if last else [graph, *make_cbs()]
    assert fitted(tuple(cbs)) == fitted(tuple(make_cbs()))
    assert (stand_in.captures, stand_in.replays) == (1, 6)


def test_the_speed_profile_is_captured(stand_in, monkeypatch) -> None:
    monkeypatch.setattr(BackendFlags, "applies_to", lambda self, device: True)
    plain = fitted((*speed_profile("bf16"),), image_learner)
    assert fitted((CudaGraph(), *speed_profile("bf16")), image_learner) == plain
    assert (stand_in.captures, stand_in.replays) == (1, 3 * 8 - 3)


@pytest.mark.parametrize(
    ("make_cb", "replays"),
    [(ChannelsLast, 3 * 8 - 3), (partial(ProgressiveResizing, linear(4, 8)), 12 - 3)],
    ids=["channels last", "growing"],
)
def test_images_that_a_callback_changes_are_what_the_graph_sees(make_cb, replays, stand_in):
    plain = fitted((make_cb(),), image_learner)
    assert fitted((CudaGraph(), make_cb()), image_learner) == plain
    assert (stand_in.captures, stand_in.replays) == (1, replays)


def test_a_loss_that_is_kept_does_not_change_and_a_prediction_does(stand_in) -> None:
    learn, losses, preds = seeded(), [], []

    def keep(learn: Learner) -> None:
        if learn.training:
            losses.append(learn.loss)
            preds.append(learn.pred)

    learn.fit(2, cbs=[CudaGraph(), Callback(after_batch=keep)])
    assert [float(loss) for loss in losses] == learn.recorder.history["train_loss"].values.tolist()
    replayed = [pred for pred in preds[4:] if len(pred) == 8]
    assert stand_in.replays == 3
    assert len({pred.data_ptr() for pred in replayed}) == 1
    assert not any(pred.requires_grad for pred in replayed)


def test_a_stand_in_that_replays_nothing_is_noticed(stand_in, monkeypatch) -> None:
    """The negative control: the results of the fits above come from the graph."""
    capture = StandIn.capture
    monkeypatch.setattr(
        StandIn, "capture", lambda self, function: (capture(self, function)[0], lambda: None)
    )
    assert fitted((CudaGraph(),)) != fitted()


class FromDict(Learner):
    """Reads the batch that it is given, and a number in it that changes."""

    def predict_batch(self, batch: Any) -> Any:
        return {"y": self.model(batch["x"]) * batch["scale"], "n": len(batch)}

    def compute_loss(self, pred: Any, batch: Any) -> Tensor:
        return mse_loss(pred["y"], batch["y"])


def dict_learner(scales: tuple[int, ...] = (1,) * 8, **options: Any) -> Learner:
    x = torch.randn(len(scales), 4, 3, generator=torch.Generator().manual_seed(0))
    batches = [{"x": part, "y": part[:, :1], "scale": k} for part, k in zip(x, scales, strict=True)]
    return FromDict((batches, batches), nn.Linear(3, 1), device="cpu", seed=0, **options)


@pytest.mark.parametrize(
    ("scales", "replays"), [((1,) * 8, 5), ((1, 2, 1, 2, 1, 2, 1, 1), 2)], ids=["same", "changing"]
)
def test_a_learners_own_methods_are_captured_with_the_batch_they_get(scales, replays, stand_in):
    make = partial(dict_learner, scales)
    fit = lambda learn, cbs: learn.fit(1, cbs=cbs)  # noqa: E731 - short, and used twice
    assert fitted((CudaGraph(),), make, fit) == fitted((), make, fit)
    assert stand_in.replays == replays


def test_a_batch_whose_parts_become_another_tensor_is_not_replayed(stand_in) -> None:
    """At first the model's input is the batch's own tensor, which is copied once."""

    def double(learn: Learner) -> None:
        if learn.n_updates >= 6:
            learn.xb = learn.xb * 2

    change = Callback(before_batch=double)
    options: dict[str, Any] = {"make": toy_learner, "fit": lambda learn, cbs: learn.fit(1, cbs=cbs)}
    assert fitted((change, CudaGraph()), **options) == fitted((change,), **options)
    assert stand_in.replays == 3


# A graph that another pass must not use, or that does not hold any more --------------------


def test_range_tests_and_inference_within_a_fit_run_as_ever(stand_in) -> None:
    def look(learn: Learner) -> None:
        if learn.n_updates == 7:
            learn.lr_find(num_it=4, show_plot=False)
            learn.validate(learn.dls.train)

    assert fitted((CudaGraph(), Callback(after_step=look))) == fitted((Callback(after_step=look),))
    assert (stand_in.captures, stand_in.replays) == (1, 6)


def test_who_calls_the_learners_own_methods_gets_the_learners_own(stand_in) -> None:
    """After a batch was replayed, a callback looks at it again, in its own way."""
    looked: list[bool] = []

    def look(learn: Learner) -> None:
        if learn.n_updates != 7:
            return
        with torch.random.fork_rng(devices=[]):
            learn.model.eval()
            pred = learn.predict_batch(learn.batch)
            loss = learn.compute_loss(pred, learn.batch)
            learn.model.train()
        looked.append(loss.requires_grad and pred is not learn.pred)

    cb = Callback(before_step=look)
    assert fitted((CudaGraph(), cb)) == fitted((cb,))
    assert (looked, stand_in.replays) == ([True, True], 6)


def test_a_range_test_is_not_captured(stand_in) -> None:
    learn = seeded(cbs=[CudaGraph()])
    learn.lr_find(num_it=6, show_plot=False)
    assert stand_in.captures == 0


class Freeze(Callback):
    """Freezes a layer, or puts one in evaluation mode, at the beginning of an epoch."""

    def __init__(self, epoch: int, what: str) -> None:
        self.epoch, self.what = epoch, what

    def before_epoch(self, learn: Learner) -> None:
        if learn.epoch != self.epoch:
            return
        if self.what == "freeze":
            learn.model[0].requires_grad_(False)
        elif self.what == "mode":
            learn.freeze_norms([learn.model[1]])
        elif self.what == "replace":
            learn.model[0].weight.data = learn.model[0].weight.data.clone()


@pytest.mark.parametrize(
    ("what", "captures"), [("freeze", 2), ("mode", 2), ("replace", 2), ("nothing", 1)]
)
def test_a_model_that_is_another_one_in_a_later_epoch_is_captured_anew(what, captures, stand_in):
    fit = lambda learn, cbs: learn.fit(5, cbs=cbs)  # noqa: E731 - short, and used twice
    graphed = fitted((Freeze(2, what), CudaGraph()), fit=fit)
    assert graphed == fitted((Freeze(2, what),), fit=fit)
    assert stand_in.captures == captures


def test_batches_that_grow_are_captured_anew_with_each_size(stand_in) -> None:
    fit = lambda learn, cbs: learn.fit(5, cbs=cbs)  # noqa: E731 - short, and used twice
    cbs = (BatchSizeSchedule({0: 3, 1: 4, 3: 6}),)
    assert fitted((*cbs, CudaGraph()), fit=fit) == fitted(cbs, fit=fit)
    assert stand_in.captures == 3


def test_batches_that_are_cancelled_or_wait_leave_no_gradient_to_the_next(stand_in) -> None:
    """Without ``batches_per_update``, only the first batch of an update is replayed."""

    def cancel(learn: Learner) -> None:
        if learn.training and (learn.epoch, learn.iter) in ((1, 1), (2, 0)):
            raise CancelBatch

    def postpone(learn: Learner) -> None:
        if learn.epoch == 2 and learn.batches_in_window < 2:
            raise CancelStep

    cbs = Callback(before_batch=cancel), Callback(after_backward=postpone)
    assert fitted((CudaGraph(), *cbs)) == fitted(cbs)
    assert (stand_in.captures, stand_in.replays) == (1, 3)


@pytest.mark.parametrize(
    "look",
    [
        lambda learn: learn.lr_find(num_it=2, show_plot=False),
        lambda learn: learn.validate(learn.dls.train),
    ],
    ids=["range test", "inference"],
)
def test_what_runs_in_the_place_of_a_cancelled_batch_is_not_replayed(look, stand_in) -> None:
    def cancel(learn: Learner) -> None:
        if learn.training and learn.running == "fit" and learn.n_updates == 8:
            raise CancelBatch

    last = Callback(before_batch=cancel, after_cancel_batch=look)
    fit = lambda learn, cbs: learn.fit(3, cbs=cbs)  # noqa: E731 - short, and used twice
    assert fitted((CudaGraph(), last), fit=fit) == fitted((last,), fit=fit)
    assert stand_in.replays == 3  # and the third epoch is cancelled batch by batch


def test_gradients_of_a_batch_that_a_newcomer_cancels_are_not_those_of_the_next(stand_in) -> None:
    def cancel(learn: Learner) -> None:
        if (learn.epoch, learn.iter) == (1, 2):  # the next one is smaller, and not replayed
            raise CancelBatch

    def join(learn: Learner) -> None:
        if learn.n_updates == 5:
            learn.join_fit(Callback(after_loss=cancel), [])

    joins = Callback(after_step=join)
    fit = lambda learn, cbs: learn.fit(2, cbs=cbs)  # noqa: E731 - short, and used twice
    assert fitted((CudaGraph(), joins), fit=fit) == fitted((joins,), fit=fit)
    assert stand_in.replays == 3


def test_gradients_are_scaled_as_a_callback_wants(stand_in) -> None:
    def halve(learn: Learner) -> None:
        learn.stepper.grad_factor = 0.5

    half = Callback(after_backward=halve)
    plain = fitted(opt_func=SGD)
    assert fitted((CudaGraph(), half), opt_func=SGD) == fitted((half,), opt_func=SGD) != plain
    assert stand_in.replays == 6


class Watched(torch.autograd.Function):
    """Changes nothing, and notes whether the backward pass runs under autocast."""

    seen: list[Any]

    @staticmethod
    def forward(_: Any, pred: Tensor) -> Tensor:
        Watched.seen.append(("forward", pred.dtype, torch.is_autocast_enabled("cpu")))
        return pred.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        Watched.seen.append(("backward", gradient.dtype, torch.is_autocast_enabled("cpu")))
        return gradient


def test_mixed_precision_is_captured_as_it_runs_in_the_loop(stand_in) -> None:
    seen = []
    for graph in ([CudaGraph()], []):
        Watched.seen = []
        learn = seeded(check=False)  # which would call the loss once more
        learn.loss_func = lambda pred, yb: mse_loss(Watched.apply(pred), yb)
        learn.dls.valid = None
        learn.fit(2, cbs=[*graph, MixedPrecision("bf16")])
        seen.append(set(Watched.seen))
    assert stand_in.captures == 1
    expected = {("forward", torch.float32, True), ("backward", torch.float32, False)}
    assert seen == [expected, expected]


def test_a_post_mortem_looks_into_the_batch_and_not_at_the_graph(stand_in) -> None:
    def spoil(learn: Learner) -> None:
        if learn.n_updates == 6:
            learn.xb.fill_(torch.nan)

    found = []
    for cbs in ([CudaGraph()], []):
        stop = TerminateOnNonFinite()
        learn = seeded()
        learn.fit(2, cbs=[*cbs, Callback(before_batch=spoil), stop])
        found.append((stop.post_mortem, learn.stop_reason))
    (graphed, reason), (plain, plain_reason) = found
    assert stand_in.replays == 3
    assert reason == plain_reason
    assert graphed.failure is None
    assert graphed.bad_module == "0 (Linear)"
    assert str(graphed) == str(plain)


# Fits without a graph ------------------------------------------------------------------------


class Wrapped(Callback):
    def forward_context(self, learn: Any) -> AbstractContextManager[Any]:
        return nullcontext()


def hooked(learn: Learner) -> None:
    learn.model[0].register_forward_hook(lambda *_: None)


def hooked_backwards(learn: Learner) -> None:
    learn.model[3].register_full_backward_hook(lambda *_: None)


def hooked_parameter(learn: Learner) -> None:
    learn.model[0].weight.register_hook(lambda gradient: gradient * 2)


def hooked_after_accumulation(learn: Learner) -> None:
    def double(p: Tensor) -> None:
        p.grad *= 2

    learn.model[0].weight.register_post_accumulate_grad_hook(double)


def compiled(learn: Learner) -> None:
    learn.model[0].compile(backend="eager")


def compiled_loss(learn: Learner) -> None:
    learn.loss_func = torch.compile(learn.loss_func, backend="eager")


def dropout_schedule(learn: Learner) -> Callback:
    return AttributeScheduler(learn.model[2], "p", linear(0.5, 0.0))


def adding(event: str) -> Callable[[Learner], Callback]:
    return lambda learn: Callback(**{event: lambda learn: None})


REASONS: list[tuple[Callable[[Learner], Callback | None], str]] = [
    (lambda learn: GradientAccumulation(2), "gradients of several batches are accumulated"),
    (lambda learn: MixedPrecision("fp16", init_scale=8.0), "the gradient scaler of fp16"),
    (lambda learn: MixUp(), "MixUp handles after_loss, and that Python would run once only"),
    (lambda learn: Wrapped(), "Wrapped has a forward_context"),
    (
        dropout_schedule,
        "AttributeScheduler drives 'p' of Dropout, which a graph takes for constant",
    ),
    (adding("after_pred"), "handles after_pred"),
    (adding("after_loss"), "handles after_loss"),
    (adding("before_backward"), "handles before_backward"),
    (hooked, "Linear has a hook"),
    (hooked_backwards, "Linear has a hook"),
    (hooked_parameter, "a parameter has a hook"),
    (hooked_after_accumulation, "a parameter has a hook"),
    (compiled, "the model or the loss is compiled"),
    (compiled_loss, "the model or the loss is compiled"),
]


@pytest.mark.parametrize(("change", "reason"), REASONS)
@torch.compiler.set_stance("force_eager")  # what is compiled runs all the same, and at once
def test_a_fit_that_no_graph_can_hold_is_as_without_and_says_why(
    change, reason, stand_in, caplog
) -> None:
    found = []
    for graph in ([CudaGraph()], []):
        learn = seeded()
        added = change(learn)
        learn.fit(2, cbs=[*graph, *([added] if isinstance(added, Callback) else [])])
        found.append(trained(learn))
    assert found[0] == found[1]
    said = [message for message in caplog.messages if message.startswith("CudaGraph")]
    assert len(said) == 1
    assert said[0].startswith("CudaGraph: this fit runs without a graph: ")
    assert reason in said[0]
    assert stand_in.captures == 0


@pytest.mark.parametrize(
    "scheduled",
    [
        lambda learn: (
            clip := GradientClip(1.0),
            AttributeScheduler(clip, "max_norm", linear(1, 2)),
        ),
        lambda learn: (AttributeScheduler(learn.model[0], "bias", linear(0.1, 0.2)),),
    ],
    ids=["of a callback", "tensor"],
)
def test_a_schedule_that_reaches_a_graph_is_no_reason(scheduled, stand_in) -> None:
    found = []
    for graph in ([CudaGraph()], []):
        learn = seeded()
        learn.fit(2, cbs=[*graph, *scheduled(learn)])
        found.append(trained(learn))
    assert found[0] == found[1]
    assert stand_in.captures == 1


def test_a_hook_of_all_modules_is_a_reason(stand_in, caplog) -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        fitted((CudaGraph(),))
    finally:
        hook.remove()
    assert "there is a hook of all modules" in caplog.text
    assert stand_in.captures == 0


def test_without_cuda_a_fit_is_as_without_and_says_why(caplog) -> None:
    assert fitted((CudaGraph(),)) == fitted()
    assert caplog.messages == [
        "CudaGraph: this fit runs without a graph: the device is cpu, and a graph needs CUDA"
    ]


@pytest.mark.parametrize("cbs", [(), (MixedPrecision("bf16"),)], ids=["fp32", "bf16"])
def test_a_capture_that_fails_costs_a_message_and_nothing_else(
    cbs, stand_in, monkeypatch, caplog
) -> None:
    plain = fitted(cbs)
    monkeypatch.setattr(cuda_graph, "Cuda", NoCapture)
    assert fitted((*cbs, CudaGraph())) == plain
    assert caplog.messages == [
        "CudaGraph: this fit runs without a graph: the capture failed with RuntimeError: "
        "operation not permitted when stream is capturing"
    ]


class Fake:
    """Notes what is called on it, in one list for all."""

    calls: list[str]

    def __init__(self, name: str, fails: str = "") -> None:
        self.name, self.fails = name, fails

    def note(self, what: str) -> None:
        Fake.calls.append(f"{self.name} {what}")
        if what == self.fails:
            raise RuntimeError("failed due to a previous error")

    def __enter__(self) -> None:
        self.note("begins")

    def __exit__(self, *_: object) -> None:
        self.note("ends")

    def wait_stream(self, other: Fake) -> None:
        self.note(f"waits for {other.name}")

    def replay(self) -> None:
        self.note("is replayed")

    def reset(self) -> None:
        self.note("is reset")

    def clone_state(self) -> str:
        return "a copy"

    def graphsafe_get_state(self) -> str:
        return "its own state"

    def graphsafe_set_state(self, state: str) -> None:
        self.note(f"has {state}")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Put fakes in the place of what torch.cuda has; give the capture."""
    Fake.calls, captured = [], Fake("capture")
    capture._stream.cache_clear()
    modes = []
    for name, made in {
        "Stream": lambda device: Fake("side"),
        "current_stream": lambda device: Fake("current"),
        "stream": lambda stream: stream,
        "CUDAGraph": lambda: Fake("graph"),
        "graph_pool_handle": lambda: "pool",
        "graph": lambda graph, *, pool, stream, capture_error_mode: (
            modes.append((graph.name, pool, stream.name, capture_error_mode)) or captured
        ),
        "default_generators": [Fake("other generator"), Fake("generator")],
    }.items():
        monkeypatch.setattr(torch.cuda, name, made)
    for name in ("endAllocateToPool", "releasePool"):
        made = lambda device, pool, name=name: Fake.calls.append(f"{name} {device} {pool}")  # noqa: E731
        monkeypatch.setattr(torch._C, f"_cuda_{name}", made, raising=False)
    yield captured
    capture._stream.cache_clear()
    assert modes in ([], [("graph", "pool", "side", "thread_local")])


def test_warm_up_runs_on_the_stream_of_the_capture_after_and_before_the_current_one(fakes) -> None:
    results = Results(None, torch.zeros(()), [])
    cuda = Cuda(torch.device("cuda", 1))
    assert cuda.run(lambda: Fake.calls.append("run") or results) is results
    assert Fake.calls == [
        "side waits for current",
        "side begins",
        "run",
        "side ends",
        "current waits for side",
    ]


def test_a_capture_gives_results_and_replay(fakes) -> None:
    results = Results(None, torch.zeros(()), [])
    cuda = Cuda(torch.device("cuda", 1))
    found, replay = cuda.capture(lambda: Fake.calls.append("captured") or results)
    assert found is results
    replay()
    assert Fake.calls == [
        "side begins",
        "capture begins",
        "captured",
        "capture ends",
        "side ends",
        "current waits for side",
        "graph is replayed",
    ]


def fail() -> Results:
    raise ValueError("what went wrong")


@pytest.mark.parametrize("fails", ["", "ends"])
def test_a_failed_capture_is_ended_with_its_own_error_and_leaves_nothing(fails, fakes) -> None:
    fakes.fails = fails
    with pytest.raises(ValueError, match="what went wrong"):
        Cuda(torch.device("cuda", 1)).capture(fail)
    assert Fake.calls == [
        "side begins",
        "capture begins",
        "capture ends",
        "side ends",
        "graph is reset",
        "endAllocateToPool 1 pool",
        "releasePool 1 pool",
        "generator has a copy",
    ]


def test_an_allocator_that_has_left_the_capture_hides_no_error(fakes, monkeypatch) -> None:
    def not_recording(device: int, pool: str) -> None:
        raise RuntimeError("not currently recording")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording)
    with pytest.raises(ValueError, match="what went wrong"):
        Cuda(torch.device("cuda", 1)).capture(fail)
    assert "releasePool 1 pool" not in Fake.calls


@pytest.mark.parametrize("function", [lambda: None, fail], ids=["captured", "failed"])
def test_what_draws_nothing_is_captured_with_a_copy_of_the_generators_state(
    function, fakes
) -> None:
    with suppress(ValueError):
        Cuda(torch.device("cuda", 1)).capture(function, draws=False)
    assert Fake.calls[0] == "generator has a copy"
    assert Fake.calls[-1] == "generator has its own state"


def test_all_fits_on_a_device_have_one_stream(fakes, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or Fake("side"))
    for index in (0, 1, 0, 1):
        Cuda(torch.device("cuda", index))
    assert made == [torch.device("cuda", 0), torch.device("cuda", 1)]


def test_only_cuda_has_graphs() -> None:
    assert Cuda.serves(torch.device("cuda", 0))
    assert not Cuda.serves(torch.device("cpu"))


CPU = torch.device("cpu")


def leaf() -> Tensor:
    return torch.zeros(2, requires_grad=True)


@pytest.mark.parametrize(
    ("make", "is_equal"),
    [
        (lambda: (torch.randn(2, 3), None, "text", 1, {"a": [torch.zeros(2)]}), True),
        (lambda: (torch.zeros(int(torch.randint(1, 10**6, ()))),), False),
        (lambda: {"scale": float(torch.rand(()))}, False),
        (lambda: torch.zeros(2).to_sparse(), False),
        (leaf, False),
        (lambda: torch.zeros(2, device="meta"), False),
        (set, False),
    ],
)
def test_batches_are_alike_but_for_the_numbers_in_their_tensors(make, is_equal) -> None:
    first, second = {}, {}
    one, other = make(), make()
    forms = graphed._form(one, CPU, first), graphed._form(other, CPU, second)
    assert (forms[0] == forms[1]) is is_equal
    assert len(first) == 2 or not is_equal


def test_batches_of_another_layout_or_with_a_tensor_twice_are_not_alike() -> None:
    x = torch.zeros(2, 2)

    def form(value: Any) -> Any:
        return graphed._form(value, CPU, {})

    assert form((x, x)) != form((x, x.clone()))
    assert form(x) != form(x.t())
    assert form(x) != form(x.double())
    assert form([x]) != form((x,))


# Clean-up ------------------------------------------------------------------------------------


def stop_with(error: type[BaseException]) -> Callback:
    def stop(learn: Learner) -> None:
        if learn.n_updates == 6:
            raise error

    return Callback(after_step=stop)


def fit_again(learn: Learner) -> dict[str, Any]:
    """Fit without a graph, and check that nothing of it is there."""
    assert learn.stepper.forward_pass is None
    assert type(learn.stepper) is FastStepper
    assert all(p.grad is None for p in learn.model.parameters())
    replays = StandIn.replays
    learn.fit(1)
    assert StandIn.replays == replays
    return trained(learn)


@pytest.mark.parametrize("error", [None, CancelFit, ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_it_whatever_ends_the_fit(error, stand_in) -> None:
    found = []
    for graph in ([CudaGraph()], []):
        learn = seeded()
        stop = [] if error is None else [stop_with(error)]
        raised = None
        try:
            learn.fit(2, cbs=[*graph, *stop])
        except BaseException as caught:
            raised = type(caught)
        assert raised is (None if error is CancelFit else error)
        found.append(fit_again(learn))
    assert found[0] == found[1]
    assert stand_in.captures == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_error_of_the_capture_ends_the_fit(error, stand_in, monkeypatch) -> None:
    def stop(learn: Learner) -> None:
        if learn.n_updates == 4 and learn.training:  # the batch that would be captured
            raise error

    monkeypatch.setattr(cuda_graph, "Cuda", NoCapture)
    monkeypatch.setattr(NoCapture, "error", error)
    found = []
    for cb in (CudaGraph(), Callback(before_batch=stop)):
        learn = seeded()
        with pytest.raises(error):
            learn.fit(2, cbs=[cb])
        found.append(fit_again(learn))
    assert found[0] == found[1]


def test_a_method_that_was_put_on_the_learner_is_captured_and_stays(stand_in) -> None:
    learn = seeded()
    mine = partial(type(learn).predict_batch, learn)
    learn.predict_batch = mine  # type: ignore[method-assign]
    learn.fit(2, cbs=[CudaGraph()])
    assert learn.predict_batch is mine
    assert stand_in.captures == 1


def test_each_fit_captures_anew(stand_in) -> None:
    learn = seeded(cbs=[CudaGraph()])
    learn.fit(2)
    learn.fit(2)
    assert stand_in.captures == 2


def test_two_of_them_are_refused(stand_in) -> None:
    learn = seeded(cbs=[CudaGraph()])
    with pytest.raises(ValueError, match="keep one in cbs"):
        learn.fit(1, cbs=[CudaGraph()])
    learn.fit(2)
    assert stand_in.captures == 1


def test_a_resumed_fit_ends_in_the_same_bits(stand_in, tmp_path: Path) -> None:
    def fit(learn: Learner, cbs: list[Callback]) -> None:
        checkpoint = Checkpoint(tmp_path, "5 updates")
        learn.fit_one_cycle(3, 0.05, cbs=[*cbs, CudaGraph(), checkpoint], resume=tmp_path)

    whole = fitted((CudaGraph(),))
    with pytest.raises(ValueError):  # noqa: PT011 - it is the one below
        fitted((stop_with(ValueError),), fit=fit)
    assert fitted((), fit=fit) == whole


def test_it_keeps_the_contract_of_every_callback(stand_in) -> None:
    def learner() -> Learner:
        learn = toy_learner()
        StandIn.learn = learn
        return learn

    check_callback(CudaGraph, learner)
    assert stand_in.captures >= 2


# On a GPU ------------------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


def on_cuda(**options: Any) -> Learner:
    """Make a learner like `make_learner`, whose data are on the GPU."""
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(5)).cuda()
    loader = TensorLoader(x, x.sum(1, keepdim=True), batch_size=8, shuffle=True)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    given: dict[str, Any] = {"device": "cuda", "seed": 0, "lr": 0.01}
    learn = Learner((loader, loader), model, mse_loss, **(given | options))
    learn.cbs = [learn.recorder, *(options.get("cbs", ()))]
    return learn


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the replays of the real graphs."""
    replays: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(
        torch.cuda.CUDAGraph, "replay", lambda graph: (replays.append(1), replay(graph))[1]
    )
    return replays


@needs_cuda
@pytest.mark.parametrize("opt_func", [sgd, AdamW], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("cbs", [(), (GradientClip(0.1),), (MixedPrecision("bf16"),)])
def test_a_real_graph_ends_in_the_same_bits(opt_func, cbs, counted, caplog) -> None:
    graphed = fitted((CudaGraph(), *cbs), on_cuda, opt_func=opt_func)
    assert len(counted) == 6
    assert graphed == fitted(cbs, on_cuda, opt_func=opt_func)
    assert caplog.messages == []


@needs_cuda
def test_losses_of_a_real_graph_do_not_change(counted) -> None:
    learn, losses = seeded(on_cuda), []
    keep = Callback(after_step=lambda learn: losses.append(learn.loss))
    learn.fit(3, cbs=[CudaGraph(), keep])
    assert [float(loss) for loss in losses] == learn.recorder.history["train_loss"].values.tolist()
    assert len(set(map(float, losses))) == len(losses)


@needs_cuda
def test_a_capture_that_fails_leaves_the_gpu_and_its_random_numbers_usable(caplog) -> None:
    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.detach().sum()) < torch.inf else -x

    def make(**options: Any) -> Learner:
        learn = on_cuda(**options)
        learn.model.append(Waits())
        return learn

    assert fitted((CudaGraph(),), make) == fitted((), make)
    assert len(caplog.messages) == 1
    assert "the capture failed with" in caplog.text
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_a_replayed_batch_never_waits_for_the_gpu(counted) -> None:
    def watch(learn: Learner) -> None:
        if learn.training and learn.n_updates == 5:
            torch.cuda.set_sync_debug_mode("error")

    def stop(learn: Learner) -> None:
        if learn.n_updates == 12:
            torch.cuda.set_sync_debug_mode("default")

    learn = seeded(on_cuda)
    learn.dls.train.batch_size = 2  # 15 batches in one pass: what is between passes may wait
    watching = Callback(before_batch=watch), Callback(after_step=stop)
    try:
        learn.fit_one_cycle(1, 0.05, cbs=[CudaGraph(), *watching])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(counted) == 15 - 3


@needs_cuda
def test_every_reason_is_found_on_a_gpu_too(caplog) -> None:
    for change, reason in itertools.islice(REASONS, 5):
        caplog.clear()
        learn = seeded(on_cuda)
        learn.fit(1, cbs=[CudaGraph(), change(learn)])
        assert reason in caplog.text
