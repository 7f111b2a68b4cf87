"""The optimizer's step as a graph: on the CPU with a stand-in for the capture, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from graph_stand_in import StandIn, seeded
from learner_state import trained
from seeded_learner import loaders
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adam, AdamW, Optimizer

from onecycle import (
    Callback,
    CancelStep,
    CudaGraph,
    GradientClip,
    Learner,
    OneCycleSchedule,
    ParamScheduler,
    cosine,
    linear,
)
from onecycle.callbacks import cuda_graph
from onecycle.cuda_graphs import step as captured_step

Fit = Callable[[Learner, list[Callback]], None]


def smooth_learner(**options: Any) -> Learner:
    """Make a learner in which rounding stays rounding.

    A bias before a batch normalisation has a gradient of rounding errors, of which Adam makes
    steps of full size; so there is none.
    """
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    given = {"device": "cpu", "seed": 99, "lr": 0.01} | options
    return Learner(loaders("TensorLoader"), model, mse_loss, **given)


def one_cycle(learn: Learner, cbs: list[Callback]) -> None:
    learn.fit_one_cycle(3, 0.05, cbs=cbs)


def only_rates(learn: Learner, cbs: list[Callback]) -> None:
    learn.fit(3, cbs=[*cbs, OneCycleSchedule(0.05)])


def result(cbs: list[Callback], fit: Fit = one_cycle, **options: Any) -> list[Tensor]:
    """Return the weights, buffers and optimizer state that a fit ends in."""
    learn = seeded(smooth_learner, **options)
    fit(learn, cbs)
    return [tensor.detach().double() for tensor in StandIn.trained()]


#: What a fit in float32 may differ by, when its operations are rounded in another order.
agree = partial(torch.testing.assert_close, rtol=2e-5, atol=1e-6)

nesterov = partial(SGD, momentum=0.9, nesterov=True)
damped = partial(SGD, momentum=0.9, dampening=0.1, weight_decay=0.1)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"opt_func": partial(SGD, momentum=0.9)},
    "nesterov": {"opt_func": nesterov},
    "dampening": {"opt_func": damped},
    "maximize": {"opt_func": partial(SGD, momentum=0.9, maximize=True), "loss": -1.0},
    "Adam": {"opt_func": Adam, "wd": 0.1},
    "AdamW": {"opt_func": AdamW},
    "two groups": {
        "opt_func": AdamW,
        "wd": 0.1,
        "splitter": lambda model: [model[:1].parameters(), model[1:].parameters()],
    },
}


def result_of(name: str, cbs: list[Callback], **options: Any) -> list[Tensor]:
    """Return what a fit with one of the optimizers ends in; a loss may be turned round."""
    given = dict(OPTIMIZERS[name])
    sign = given.pop("loss", 1.0)

    def fit(learn: Learner, cbs: list[Callback]) -> None:
        own = learn.loss_func
        learn.loss_func = lambda pred, yb: sign * own(pred, yb)
        one_cycle(learn, cbs)

    return result(cbs, fit, **given, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_cycle_of_rate_and_momentum_ends_as_with_torchs_step(name, stand_in) -> None:
    plain = result_of(name, [])

    agree(result_of(name, [CudaGraph(step=True)]), plain)
    # The batch; its update with torch's kernels, and from the second replay on with tensors.
    assert (stand_in.captures, stand_in.replays) == (3, 2 * (3 * 3 - 3))


@pytest.mark.parametrize("opt_func", [SGD, nesterov, AdamW], ids=["plain", "nesterov", "AdamW"])
def test_while_only_the_rate_changes_the_graph_is_torchs_fused_kernel(
    opt_func, stand_in, monkeypatch
) -> None:
    for name in ("_sgd", "_adam"):
        monkeypatch.setattr(captured_step, name, None)
    plain = result([], only_rates, opt_func=opt_func)

    agree(result([CudaGraph(step=True)], only_rates, opt_func=opt_func), plain)
    assert (stand_in.captures, stand_in.replays) == (2, 12)


def test_numbers_that_are_not_filled_are_noticed(stand_in, monkeypatch) -> None:
    """The negative control: what a graph computes with are the numbers in its tensors."""
    plain = result([], opt_func=nesterov)
    monkeypatch.setattr(captured_step._Numbers, "fill", lambda self: None)

    with pytest.raises(AssertionError):
        agree(result([CudaGraph(step=True)], opt_func=nesterov), plain)


@pytest.mark.parametrize(
    ("opt_func", "schedules", "captures"),
    [
        (nesterov, {"weight_decay": linear(0.1, 0.0)}, 3),
        (damped, {"dampening": cosine(0.0, 0.5)}, 3),
        (AdamW, {"beta2": linear(0.99, 0.9), "weight_decay": linear(0.0, 0.1)}, 3),
    ],
    ids=["weight decay", "dampening", "beta2 and decay"],
)
def test_other_schedules_reach_the_graph(opt_func, schedules, captures, stand_in) -> None:
    def fit(learn: Learner, cbs: list[Callback]) -> None:
        learn.fit(3, cbs=[*cbs, ParamScheduler(schedules)])

    options: dict[str, Any] = {"opt_func": opt_func, "wd": 0.1}
    agree(result([CudaGraph(step=True)], fit, **options), result([], fit, **options))
    assert stand_in.captures == captures


@pytest.mark.parametrize(
    ("opt_func", "change"),
    [
        (damped, {"momentum": 0.0}),
        (nesterov, {"nesterov": False}),
        (partial(AdamW, weight_decay=0.5), {"decoupled_weight_decay": False}),
        (AdamW, {"maximize": True}),
    ],
    ids=["no momentum", "no nesterov", "coupled decay", "maximize"],
)
def test_an_option_that_is_set_in_a_fit_reaches_the_update(opt_func, change, stand_in) -> None:
    def set_option(learn: Learner) -> None:
        if learn.n_updates == 7:
            for group in learn.opt.param_groups:
                group.update(change)

    def fit(learn: Learner, cbs: list[Callback]) -> None:
        learn.fit(3, 0.01, cbs=[*cbs, Callback(after_step=set_option)])

    options: dict[str, Any] = {"opt_func": opt_func}
    plain = result([], fit, **options)
    agree(result([CudaGraph(step=True)], fit, **options), plain)
    with pytest.raises(AssertionError):
        agree(result([], lambda learn, cbs: learn.fit(3, 0.01, cbs=cbs), **options), plain)


def test_a_schedule_of_a_number_that_no_graph_takes_leaves_the_step_outside(
    stand_in, caplog
) -> None:
    def fit(learn: Learner, cbs: list[Callback]) -> None:
        learn.fit(3, cbs=[*cbs, ParamScheduler({"eps": linear(1e-3, 1e-1)})])

    agree(result([CudaGraph(step=True)], fit), result([], fit))
    assert stand_in.captures == 2
    assert [m for m in caplog.messages if m.startswith("CudaGraph")] == [
        "CudaGraph: the optimizer's step is not captured: "
        "a number changes that no graph takes as a tensor, such as eps"
    ]


def test_callbacks_stand_between_the_gradients_and_the_step(stand_in) -> None:
    def skip(learn: Learner) -> None:
        if learn.n_updates == 5 and not learn.n_skipped:
            raise CancelStep

    def cbs() -> list[Callback]:
        return [GradientClip(0.1), Callback(before_step=skip)]

    plain, clipped = result([]), result(cbs())
    agree(result([CudaGraph(step=True), *cbs()]), clipped)
    with pytest.raises(AssertionError):
        agree(clipped, plain)


def test_a_layer_that_is_frozen_later_does_not_move_any_more(stand_in) -> None:
    def freeze(learn: Learner) -> None:
        if learn.epoch == 2:
            learn.model[0].requires_grad_(False)

    frozen = Callback(before_epoch=freeze)
    agree(result([CudaGraph(step=True), frozen]), result([frozen]))


def test_a_state_that_is_loaded_in_mid_fit_is_what_goes_on(stand_in) -> None:
    def load(learn: Learner) -> None:
        if learn.n_updates == 7:
            state = learn.opt.state_dict()
            for part in state["state"].values():
                part["exp_avg"] = torch.full_like(part["exp_avg"], 0.5)
            learn.opt.load_state_dict(state)

    loaded = Callback(after_step=load)
    plain = result([loaded], opt_func=AdamW)
    agree(result([CudaGraph(step=True), loaded], opt_func=AdamW), plain)


def test_while_a_step_hook_is_registered_torch_makes_the_updates(stand_in) -> None:
    calls = []

    def note(opt: Optimizer, *_: Any) -> None:
        calls.append(opt)

    def fit(learn: Learner, cbs: list[Callback]) -> None:
        learn.opt.register_step_post_hook(note)
        one_cycle(learn, cbs)

    result([CudaGraph(step=True)], fit)
    assert len(calls) == 12
    assert (stand_in.captures, stand_in.replays) == (1, 6)


@pytest.mark.parametrize(
    ("opt_func", "reason"),
    [
        (torch.optim.RMSprop, "RMSprop is not SGD, Adam or AdamW of torch"),
        (partial(AdamW, fused=False), "AdamW is not fused"),
    ],
)
def test_a_step_that_no_graph_can_hold_is_as_ever_and_says_why(
    opt_func, reason, stand_in, caplog
) -> None:
    found = []
    for cbs in ([CudaGraph(step=True)], []):
        learn = seeded(opt_func=opt_func)
        learn.fit(3, cbs=cbs)
        found.append(trained(learn))
    assert found[0] == found[1]
    assert caplog.messages == [f"CudaGraph: the optimizer's step is not captured: {reason}"]
    assert (stand_in.captures, stand_in.replays) == (1, 6)


class NoStep(StandIn):
    """Captures batches, and no updates."""

    def capture(self, function: Callable[[], Any], *, draws: bool = True) -> Any:
        if draws:
            return super().capture(function)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_a_step_whose_capture_fails_is_made_all_the_same(stand_in, monkeypatch, caplog) -> None:
    plain = result([])
    monkeypatch.setattr(cuda_graph, "Cuda", NoStep)

    for graphed, own in zip(result([CudaGraph(step=True)]), plain, strict=True):
        assert torch.equal(graphed, own)
    assert caplog.messages == [
        "CudaGraph: the optimizer's step is not captured: RuntimeError: "
        "operation not permitted when stream is capturing"
    ]
    assert stand_in.replays == 6


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


@needs_cuda
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_real_graph_of_the_step_ends_as_without_one(name) -> None:
    plain = result_of(name, [], device="cuda")

    agree(result_of(name, [CudaGraph(step=True)], device="cuda"), plain)
