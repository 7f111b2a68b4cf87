import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState, trained
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, Adagrad, AdamW
from torch.utils.data import DataLoader, TensorDataset

from onecycle import Callback, Learner, RangeTests, Stage, TensorLoader
from onecycle.testing import toy_learner

OPTIMIZERS = {"SGD": partial(SGD, momentum=0.9), "AdamW": AdamW}


def sweep(learn: Any, **options: Any) -> RangeTests:
    result = learn.lr_find(**({"start_lr": 1e-4, "num_it": 15, "show_plot": False} | options))
    assert isinstance(result, RangeTests)
    return result


def find(learn: Learner) -> list[float]:
    return learn.lr_find(1e-4, num_it=15, show_plot=False).losses.tolist()


def watcher(seen: list[Any], name: str) -> Callback:
    callback = Callback(before_step=lambda learn: seen.append(learn.groups.get(name)))
    callback.stage, callback.during = Stage.PREPARE, "train"
    return callback


@pytest.mark.parametrize("opt_func", OPTIMIZERS.values(), ids=OPTIMIZERS)
class TestASweep:
    def test_over_weight_decays_is_a_test_of_a_learner_with_each(self, opt_func: Any) -> None:
        decays = [0.0, 0.1, 10.0]
        tests = sweep(toy_learner(opt_func=opt_func), wds=decays)
        assert list(tests) == decays
        alone = [find(toy_learner(opt_func=opt_func, wd=decay)) for decay in decays]
        assert [test.losses.tolist() for test in tests.values()] == alone
        assert alone[0] != alone[1] != alone[2]

    def test_over_momenta_is_a_test_of_a_learner_with_each(self, opt_func: Any) -> None:
        momenta = [0.5, 0.9, 0.99]
        tests = sweep(toy_learner(opt_func=opt_func), moms=momenta)
        assert list(tests) == momenta
        alone = []
        for momentum in momenta:
            learn = toy_learner(opt_func=opt_func)
            learn.groups.set("momentum", momentum)
            alone.append(find(learn))
        assert [test.losses.tolist() for test in tests.values()] == alone
        assert alone[0] != alone[1] != alone[2]

    @pytest.mark.parametrize("setting", [{"wds": [0.3, 0.0]}, {"moms": [0.8, 0.5]}], ids=str)
    @pytest.mark.parametrize("wd", [0.0, 0.1])
    def test_leaves_nothing_behind(self, wd: float, setting: Any, opt_func: Any) -> None:
        learn = toy_learner(opt_func=opt_func, wd=wd)
        learn.fit(1)
        before = LearnerState(learn)
        sweep(learn, **setting, valid=True)
        assert before.changes(LearnerState(learn)) == []

    def test_changes_no_bit_of_the_fit_after_it(self, opt_func: Any) -> None:
        bare = toy_learner(opt_func=opt_func, wd=0.0)
        torch.manual_seed(0)
        bare.fit_one_cycle(1, wd=0.1)
        expected = trained(bare)
        tested = toy_learner(opt_func=opt_func, wd=0.0)
        torch.manual_seed(0)
        sweep(tested, wds=[0.2, 0.3])
        tested.fit_one_cycle(1, wd=0.1)
        assert trained(tested) == expected

    def test_leaves_nothing_behind_when_it_is_interrupted(self, opt_func: Any) -> None:
        calls = []

        def stop(learn: Any) -> None:
            calls.append(learn.n_updates)
            if len(calls) == 20:
                raise KeyboardInterrupt

        callback = Callback(after_step=stop)
        callback.stage = Stage.PREPARE
        learn = toy_learner(opt_func=opt_func, wd=0.0)
        learn.fit(1)
        learn.cbs.append(callback)
        before = LearnerState(learn)
        with pytest.raises(KeyboardInterrupt):
            sweep(learn, wds=[0.2, 0.3])
        assert len(calls) == 20
        assert before.changes(LearnerState(learn)) == []


@pytest.mark.parametrize(("option", "name"), [("wds", "weight_decay"), ("moms", "momentum")])
def test_each_setting_is_in_force_in_every_group(option: str, name: str) -> None:
    seen: list[Any] = []
    learn = toy_learner(
        cbs=(watcher(seen, name),), splitter=lambda m: [m[0].parameters(), m[2].parameters()]
    )
    sweep(learn, end_lr=1e-2, **{option: [0.5, 0.25]})
    assert seen == [[0.5, 0.5]] * 15 + [[0.25, 0.25]] * 15


def pieces(kind: str, batch_size: int) -> Learner:
    torch.manual_seed(0)
    x = torch.randn(60, 2)
    y = x.sum(1, keepdim=True)
    train: Any = TensorLoader(x, y, batch_size=batch_size, shuffle=True)
    if kind == "DataLoader":
        data = TensorDataset(x, y)
        train = DataLoader(data, batch_size, shuffle=True, generator=torch.Generator())
    return Learner((train, None), nn.Linear(2, 1), mse_loss, lr=0.1, device="cpu", seed=0)


@pytest.mark.parametrize("kind", ["TensorLoader", "DataLoader"])
def test_a_sweep_over_batch_sizes_is_a_test_of_a_learner_with_each(kind: str) -> None:
    learn = pieces(kind, 4)
    with learn.no_bar():
        learn.fit(1)
    before = LearnerState(learn)
    sweep(learn, batch_sizes=[4, 10, 60])
    assert before.changes(LearnerState(learn)) == []

    sizes = [4, 10, 60]
    tests = sweep(pieces(kind, 4), batch_sizes=sizes)
    alone = [find(pieces(kind, size)) for size in sizes]
    assert list(tests) == sizes
    assert [test.losses.tolist() for test in tests.values()] == alone
    assert alone[0] != alone[1] != alone[2]


class TestRefused:
    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"wds": [0.1], "moms": [0.9]}, "one thing is varied at a time"),
            ({"moms": [0.9], "batch_sizes": [4]}, "one thing is varied at a time"),
            ({"batch_sizes": [4, 0]}, "batch_size must be at least 1; got 0"),
            ({"wds": []}, "a list of 1 or more values of weight_decay"),
            ({"wds": 0.1}, "a list of 1 or more values of weight_decay"),
            ({"wds": [0.1, 0.2, 0.1]}, "comes twice"),
            ({"wds": [0.1, -0.2]}, "must be finite and not negative"),
            ({"moms": [0.9, 1.0]}, "must be below 1"),
        ],
    )
    def test_settings_that_cannot_be_are_before_the_first_test(
        self, setting: Any, message: str
    ) -> None:
        seen: list[Any] = []
        learn = toy_learner(cbs=(watcher(seen, "lr"),))
        with pytest.raises(ValueError, match=message):
            sweep(learn, **setting)
        assert seen == []

    def test_what_is_no_integer_is(self) -> None:
        with pytest.raises(TypeError, match=r"batch_size must be an integer; got 4.0"):
            sweep(toy_learner(), batch_sizes=[4.0])

    def test_what_is_no_number_is(self) -> None:
        with pytest.raises(TypeError, match="must be a number"):
            sweep(toy_learner(), wds=[0.1, None])

    def test_a_loader_of_unknown_kind_is(self) -> None:
        learn = toy_learner()
        learn.dls.train = list(learn.dls.train)
        with pytest.raises(TypeError, match="cannot change the batch size of a list"):
            sweep(learn, batch_sizes=[4, 8])

    def test_momentum_is_where_the_optimizer_has_none(self) -> None:
        with pytest.raises(ValueError, match="Adagrad has no hyperparameter 'momentum'"):
            sweep(toy_learner(opt_func=Adagrad), moms=[0.8, 0.9])


@pytest.fixture(scope="module")
def tests() -> RangeTests:
    learn = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9))
    return sweep(learn, start_lr=1e-5, num_it=100, wds=[0.0, 0.5], valid=True)


class TestTheTable:
    def test_has_a_line_for_each_setting(self, tests: RangeTests) -> None:
        header, *lines = repr(tests).splitlines()
        assert header.split()[0] == "weight_decay"
        assert len(lines) == 2
        for line, (decay, test) in zip(lines, tests.items(), strict=True):
            first, suggestion, spread, lr_max, lowest, stop = re.split(r"\s{2,}", line.strip())
            assert float(first) == decay
            assert float(suggestion) == pytest.approx(test.suggestion, rel=0.005)
            interval = pytest.approx(test.spreads["knee"], rel=0.005)
            assert tuple(map(float, spread.split(" to "))) == interval
            assert float(lr_max) == pytest.approx(test.lr_max, rel=0.005)
            assert float(lowest) == pytest.approx(np.nanmin(test.smoothed), rel=5e-4)
            assert stop == test.stop_reason

    def test_has_a_line_where_nothing_was_found(self) -> None:
        bad = toy_learner(loss_func=lambda pred, yb: pred.sum() * float("nan"))
        lines = repr(sweep(bad, moms=[0.5, 0.9])).splitlines()
        assert [line.split()[:5] for line in lines[1:]] == [
            ["0.5", "none", "none", "none", "nan"],
            ["0.9", "none", "none", "none", "nan"],
        ]
        assert lines[1].endswith("batch 1: the loss is nan")


class TestThePlot:
    def test_has_a_smoothed_curve_for_each_setting_and_a_dashed_one_for_validation(
        self, tests: RangeTests
    ) -> None:
        ax = tests.plot()
        assert len(ax.lines) == 4
        for i, test in enumerate(tests.values()):
            train, valid = ax.lines[2 * i : 2 * i + 2]
            assert np.array_equal(np.asarray(train.get_xdata()), test.lrs)
            assert np.array_equal(np.asarray(train.get_ydata()), test.smoothed)
            assert test.valid_smoothed is not None
            assert np.array_equal(np.asarray(valid.get_ydata()), test.valid_smoothed)
            assert (train.get_linestyle(), valid.get_linestyle()) == ("-", "--")
            assert train.get_color() == valid.get_color()
        legend = ax.get_legend()
        assert legend is not None
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels == ["weight_decay 0", "weight_decay 0.5"]
        assert ax.get_xscale() == "log"

    def test_is_drawn_where_it_is_told_and_by_the_recorder_too(self) -> None:
        import matplotlib.pyplot as plt

        learn = toy_learner()
        tests = sweep(learn, moms=[0.5, 0.9])
        assert learn.recorder.lr_find_result is tests
        _, ax = plt.subplots()
        assert tests.plot(ax) is ax
        assert len(learn.recorder.plot_lr_find().lines) == len(ax.lines) == 2

    @pytest.mark.parametrize("show", [True, False])
    def test_is_shown_once_unless_told_otherwise(self, show: bool) -> None:
        import matplotlib.pyplot as plt

        sweep(toy_learner(), moms=[0.5, 0.9], show_plot=show)
        assert len(plt.get_fignums()) == int(show)

    def test_is_drawn_where_no_loss_was_finite(self) -> None:
        bad = toy_learner(loss_func=lambda pred, yb: pred.sum() * float("nan"))
        ax = sweep(bad, moms=[0.5, 0.9]).plot()
        ax.figure.canvas.draw()
        assert len(ax.lines) == 2
