import copy

import matplotlib
import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine

from onecycle.schedules.plot import plot_schedule
from onecycle.schedules.policies import one_cycle
from onecycle.schedules.shapes import constant, linear
from onecycle.schedules.torch_like import torch_one_cycle


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def trained_optimizer(lrs=(0.1,), opt_class=torch.optim.SGD):
    """An optimizer with one group for each rate, after one step, so that it has state."""
    torch.manual_seed(0)
    groups = [{"params": [torch.nn.Parameter(torch.randn(3))], "lr": lr} for lr in lrs]
    opt = opt_class(groups, lr=1.0, momentum=0.9)
    take_step(opt)
    return opt


def take_step(opt):
    for group in opt.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    opt.step()


def test_a_schedule_is_drawn_over_the_fraction_of_training():
    schedule = one_cycle(0.3)
    ax = plot_schedule(schedule, steps=37)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == np.linspace(0, 1, 37).tolist()
    assert line.get_ydata().tolist() == [schedule(p) for p in np.linspace(0, 1, 37)]
    assert ax.get_xlabel() == "fraction of training"
    assert ax.get_ylabel() == "value"
    assert ax.get_legend() is None


def test_any_function_of_an_array_is_a_schedule():
    (line,) = plot_schedule(np.square, steps=3).lines
    assert line.get_ydata().tolist() == [0, 0.25, 1]


def test_several_schedules_get_a_legend_with_their_names():
    ax = plot_schedule({"a": linear(0, 1), "b": linear(1, 0)})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert [line.get_ydata()[0] for line in ax.lines] == [0, 1]
    ax = plot_schedule([linear(0, 1), np.cos])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0: Linear", "1: cos"]


def test_it_draws_where_it_is_told_and_returns_that():
    _, (left, right) = plt.subplots(1, 2)
    assert plot_schedule(linear(0, 1), ax=right) is right
    assert plot_schedule(linear(1, 0), ax=right) is right
    assert (len(left.lines), len(right.lines)) == (0, 2)
    assert plt.get_fignums() == [1]


def test_the_figure_is_never_shown(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: pytest.fail("show() was called"))
    plot_schedule(linear(0, 1))


def test_one_cycle_of_torch_is_drawn_over_its_steps_and_not_beyond():
    scheduler = lr_scheduler.OneCycleLR(trained_optimizer(), max_lr=1.0, total_steps=40)
    ax = plot_schedule(scheduler)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == list(range(40))
    expected = torch_one_cycle(40, max_lr=1.0)(np.arange(40) / 39)
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "learning rate")


MAKERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.95),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, 0.8),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [3, *range(5, 40)], 0.9),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.1, 9),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.1, total_iters=25),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 25, 2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=50),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 11),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(
        opt, base_lr=0.1, max_lr=1.0, step_size_up=7, mode="triangular2"
    ),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=60),
    "SWALR": lambda opt: SWALR(opt, swa_lr=0.01, anneal_epochs=25),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.ConstantLR(opt, 0.1, 5), lr_scheduler.ExponentialLR(opt, 0.9)],
        milestones=[5],
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(opt, 0.1, total_iters=9), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "a sequence in a chain": lambda opt: lr_scheduler.ChainedScheduler(
        [MAKERS["SequentialLR"](opt), lr_scheduler.StepLR(opt, 2, 0.5)]
    ),
}


def test_every_scheduler_of_torch_that_follows_no_metric_is_among_those_that_are_drawn():
    bases = {"LRScheduler", "ReduceLROnPlateau"}
    assert {*lr_scheduler.__all__} - bases <= MAKERS.keys()


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_drawn_rates_are_those_that_a_training_then_has(make):
    opt = trained_optimizer((0.1, 0.1))
    scheduler = make(opt)
    for _ in range(4):
        take_step(opt)
        scheduler.step()
    (line,) = plot_schedule(scheduler, steps=30).lines
    rates = []
    for _ in range(30):
        rates.append(opt.param_groups[0]["lr"])
        take_step(opt)
        scheduler.step()
    assert line.get_xdata().tolist() == list(range(4, 34))
    assert line.get_ydata().tolist() == rates
    assert len(set(rates)) > (1 if make is MAKERS["ConstantLR"] else 8)


HOLD_A_CYCLE = {
    "chained": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(opt, 1.0), cycle_of(40, opt)]
    ),
    "second": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt), cycle_of(33, opt)], milestones=[7]
    ),
    "first, and not left": lambda opt: lr_scheduler.SequentialLR(
        opt, [cycle_of(40, opt), lr_scheduler.ConstantLR(opt)], milestones=[90]
    ),
}


def cycle_of(total_steps, opt):
    return lr_scheduler.OneCycleLR(opt, max_lr=1.0, total_steps=total_steps)


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("steps_made", [0, 3, 12])
@pytest.mark.parametrize("make", HOLD_A_CYCLE.values(), ids=HOLD_A_CYCLE)
def test_what_holds_a_cycle_of_torch_is_not_drawn_beyond_its_end(make, steps_made):
    opt = trained_optimizer()
    scheduler = make(opt)
    for _ in range(steps_made):
        take_step(opt)
        scheduler.step()
    (line,) = plot_schedule(scheduler).lines
    assert line.get_xdata().tolist() == list(range(steps_made, 40))
    assert line.get_ydata()[-1] == pytest.approx(4e-6)  # 1 / 25 / 1e4: the end of the cycle
    for _ in range(steps_made, 40):
        take_step(opt)
        scheduler.step()
    assert opt.param_groups[0]["lr"] > line.get_ydata()[-1]  # the jump that it was kept from


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_a_cycle_that_gives_way_before_its_end_sets_no_limit():
    opt = trained_optimizer()
    first, second = cycle_of(40, opt), lr_scheduler.ExponentialLR(opt, 0.9)
    scheduler = lr_scheduler.SequentialLR(opt, [first, second], milestones=[40])
    (line,) = plot_schedule(scheduler).lines
    assert line.get_xdata().tolist() == list(range(100))


def test_groups_with_other_rates_are_drawn_apart():
    scheduler = lr_scheduler.ExponentialLR(trained_optimizer((0.1, 0.2)), gamma=0.5)
    ax = plot_schedule(scheduler, steps=3)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["group 0", "group 1"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [
        [0.1, 0.05, 0.025],
        [0.2, 0.1, 0.05],
    ]
    ax = plot_schedule({"exp": scheduler}, steps=3)
    assert ax.get_legend().get_texts()[1].get_text() == "exp group 1"


def frozen(scheduler, opt):
    """Everything of a scheduler and an optimizer that a plot might touch."""
    own = {key: value for key, value in vars(scheduler).items() if key != "optimizer"}
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in opt.param_groups
    ]
    tensors = [tensor for group in opt.param_groups for tensor in group["params"]]
    buffers = [state["momentum_buffer"] for state in opt.state.values()]
    ids = [id(item) for item in (*opt.param_groups, opt.state, *tensors, *buffers)]
    values = [tensor.detach().tolist() for tensor in tensors + buffers]
    return copy.deepcopy((own, groups, values)), ids, set(vars(opt))


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR", "LambdaLR", "CyclicLR"])
def test_drawing_leaves_the_scheduler_and_its_optimizer_as_they_are(name):
    opt = trained_optimizer((0.1, 0.2))
    scheduler = MAKERS[name](opt)
    before = frozen(scheduler, opt)
    plot_schedule(scheduler, steps=20)
    assert frozen(scheduler, opt) == before
    scheduler.step()
    assert frozen(scheduler, opt) != before, "the comparison is blind"


def test_drawing_copies_no_parameters_and_no_state(monkeypatch):
    scheduler = MAKERS["OneCycleLR"](trained_optimizer())
    copied = []
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", lambda self, memo: copied.append(self))
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(self))
    plot_schedule(scheduler)
    assert copied == []


def test_a_rate_that_is_a_tensor_can_be_drawn_and_stays():
    parameter = torch.nn.Parameter(torch.zeros(1))
    rate = torch.tensor(0.5)
    opt = torch.optim.Adam([parameter], lr=rate, capturable=False, foreach=False)
    scheduler = lr_scheduler.ExponentialLR(opt, gamma=0.5)
    (line,) = plot_schedule(scheduler, steps=3).lines
    assert line.get_ydata().tolist() == [0.5, 0.25, 0.125]
    assert opt.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


def test_what_cannot_be_drawn_is_refused():
    opt = trained_optimizer()
    scheduler = lr_scheduler.ExponentialLR(opt, gamma=0.5)
    with pytest.raises(ValueError, match="steps must be at least 2; got 1"):
        plot_schedule(linear(0, 1), steps=1)
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_schedule([])
    with pytest.raises(TypeError, match="schedules and torch schedulers together"):
        plot_schedule([linear(0, 1), scheduler])
    with pytest.raises(TypeError, match="ReduceLROnPlateau follows a metric"):
        plot_schedule(lr_scheduler.ReduceLROnPlateau(opt))
    with pytest.raises(TypeError, match=r"must be a function of \(positions\); got 0\.1"):
        plot_schedule(0.1)
    assert plt.get_fignums() == []


def test_a_new_figure_makes_room_for_its_labels():
    assert isinstance(
        plot_schedule(one_cycle(1.0)).figure.get_layout_engine(), ConstrainedLayoutEngine
    )


def test_whole_numbers_are_drawn_as_the_rates_that_they_are():
    ax = plot_schedule(lambda p: (np.asarray(p) > 0.5).astype(int), steps=5)
    drawn = np.asarray(ax.get_lines()[0].get_ydata(orig=True))
    assert drawn.dtype == np.float64
    assert drawn.tolist() == [0, 0, 0, 1, 1]


def test_several_curves_have_colours_that_anybody_can_tell_apart() -> None:
    ax = plot_schedule([constant(1.0), constant(2.0), constant(3.0)])
    assert [line.get_color() for line in ax.lines] == ["#0072B2", "#D55E00", "#009E73"]
