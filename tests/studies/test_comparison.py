import re
import statistics
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState
from seeded_learner import make_learner, make_model, record
from torch.optim import SGD

from onecycle import Callback, CancelFit, Comparison, Learner, ParamScheduler, constant, linear
from onecycle.record.history import History
from onecycle.testing import toy_learner

SGD_M = partial(SGD, momentum=0.9)


def step_by_hand(learn: Learner, n_epoch: int) -> None:
    """Hold 0.05, a tenth of it from position 1/2, and again from position 3/4."""

    def set_rate(learn: Any) -> None:
        pos = learn.n_updates / (learn.n_updates_planned - 1)
        learn.groups.set("lr", 0.05 * 0.1 ** ((pos >= 0.5) + (pos >= 0.75)))

    learn.fit(n_epoch, cbs=[Callback(before_batch=set_rate)])


#: By name, what a person would write for the same policy.
BY_HAND = {
    "constant": lambda learn, n: learn.fit(n, 0.05),
    "step": step_by_hand,
    "flat_cos": lambda learn, n: learn.fit_flat_cos(n, 0.05),
    "one_cycle": lambda learn, n: learn.fit_one_cycle(n, 0.05),
}


def alone(seed: int, fit: Any, n_epoch: int, **options: Any) -> History:
    torch.manual_seed(seed)
    learn = make_learner(seed=seed, **options)
    fit(learn, n_epoch)
    return learn.recorder.history


def same(a: History, b: History) -> bool:
    """Tell whether two records agree: losses to the bit, hyperparameters to rounding."""
    for name in ("lr", "momentum"):
        assert np.allclose(a[name].values, b[name].values, rtol=1e-12, atol=0)
    return record(a).keys() == record(b).keys() and all(
        np.allclose(a[name].values, b[name].values, rtol=1e-5, atol=0) for name in a
    )


class TestEachRun:
    def test_of_a_name_is_that_fit_of_a_new_learner(self) -> None:
        learn = make_learner(opt_func=SGD_M)
        result = learn.compare(2, 0.05, seeds=[0, 5], init=make_model)
        assert list(result.runs) == ["constant", "step", "flat_cos", "one_cycle"]
        for name, runs in result.runs.items():
            for seed, history in runs.items():
                expected = alone(seed, BY_HAND[name], 2, opt_func=SGD_M)
                assert same(history, expected)
                if name != "step":
                    assert record(history) == record(expected)
        assert not np.allclose(
            result.runs["constant"][0]["train_loss"].values,
            result.runs["one_cycle"][0]["train_loss"].values,
            rtol=1e-3,
        )

    def test_of_a_schedule_or_a_function_is_that_fit_of_a_new_learner(self) -> None:
        falling = linear(0.08, 0.0)

        def with_decay(learn: Learner, n_epoch: int) -> None:
            learn.fit(n_epoch, 0.02, wd=0.1)

        policies = {"falling": falling, "decay": with_decay, "cycle": "one_cycle"}
        learn = make_learner(opt_func=SGD_M)
        result = learn.compare(2, 0.05, policies, [7], init=make_model)
        by_hand = {
            "falling": lambda learn, n: learn.fit(n, cbs=[ParamScheduler({"lr": falling})]),
            "decay": with_decay,
            "cycle": BY_HAND["one_cycle"],
        }
        for label, fit in by_hand.items():
            expected = alone(7, fit, 2, opt_func=SGD_M)
            assert record(result.runs[label][7]) == record(expected)

    def test_has_the_learner_s_rate_where_none_is_given_in_each_group(self) -> None:
        learn = make_learner(
            opt_func=SGD_M,
            lr=[0.02, 0.04],
            splitter=lambda m: [m[:3].parameters(), m[3].parameters()],
        )
        policies = {"constant": "constant", "schedule": constant(0.3), "1cycle": "one_cycle"}
        result = learn.compare(1, policies=policies, seeds=[0])
        rates = {label: runs[0]["lr"].values for label, runs in result.runs.items()}
        assert (rates["constant"] == [0.02, 0.04]).all()
        assert np.allclose(rates["schedule"], [0.15, 0.3], rtol=1e-12)
        assert rates["1cycle"][0].tolist() == [0.02 / 25, 0.04 / 25]

    def test_has_no_momentum_cycle_where_there_is_no_momentum(self, caplog: Any) -> None:
        result = make_learner(opt_func=SGD).compare(1, 0.05, ["one_cycle"], [0])
        assert result.runs["one_cycle"][0]["momentum"].values.max() == 0
        assert caplog.messages == []


def test_a_comparison_leaves_nothing_behind() -> None:
    learn = make_learner("DataLoader", opt_func=SGD_M)
    learn.fit(1)
    before = LearnerState(learn)
    learn.compare(1, 0.05, seeds=[0, 1], init=make_model)
    assert before.changes(LearnerState(learn)) == []


class TestTheBudget:
    @pytest.mark.parametrize("epochs", [1, 3])
    def test_of_a_function_is_checked(self, epochs: int) -> None:
        learn = toy_learner(n_batches=2)
        before = LearnerState(learn)
        message = rf"'mine' trained for {epochs} epoch\(s\), and a comparison is at equal budget: 2"
        with pytest.raises(ValueError, match=message):
            learn.compare(2, 0.1, {"mine": lambda learn, n: learn.fit(epochs, 0.1)}, [0])
        assert before.changes(LearnerState(learn)) == []

    def test_may_be_left_unused_by_a_run_that_stops(self) -> None:
        def stop(learn: Any) -> None:
            raise CancelFit("good enough")

        learn = toy_learner(n_batches=2)
        policies = {
            "stopped": lambda learn, n: learn.fit(n, 0.1, cbs=[Callback(after_epoch=stop)]),
            "whole": "constant",
        }
        result = learn.compare(3, 0.1, policies, [0])
        lengths = [len(runs[0]["train_loss"]) for runs in result.runs.values()]
        assert lengths == [2, 6]
        assert len(result.plot().lines) == 2


def scripted(updates: list[int], **series: list[float]) -> History:
    history = History()
    for name, values in series.items():
        for update, value in zip(updates, values, strict=True):
            history.series(name).append(update, value)
    return history


@pytest.fixture
def result() -> Comparison:
    """Return two policies under three seeds: the second never gets far, and once diverges."""
    at = [10, 20, 30]
    good = {
        1: scripted(at, accuracy=[0.5, 0.9, 0.96], valid_loss=[0.9, 0.4, 0.3]),
        2: scripted(at, accuracy=[0.9, 0.8, 0.92], valid_loss=[0.8, 0.5, 0.2]),
        3: scripted(at, accuracy=[0.6, 0.7, 0.88], valid_loss=[0.7, 0.6, 0.4]),
    }
    nan = float("nan")
    bad = {
        1: scripted(at, accuracy=[0.5, 0.5, 0.5], valid_loss=[1, 1, 1]),
        2: scripted(at, accuracy=[0.4, 0.5, 0.6], valid_loss=[1, nan, nan]),
        3: scripted(at, accuracy=[0.4, 0.5, 0.7], valid_loss=[1, 1, 1]),
    }
    return Comparison({"good": good, "bad": bad}, "accuracy", False, target=0.9)


class TestTheTimeToTheTarget:
    def test_is_the_first_validation_that_reaches_it(self, result: Comparison) -> None:
        assert result.updates_to_target("good") == {1: 20, 2: 10, 3: None}
        assert result.epochs_to_target("good") == {1: 2, 2: 1, 3: None}
        assert result.updates_to_target("bad") == {1: None, 2: None, 3: None}

    def test_counts_downward_where_less_is_better(self, result: Comparison) -> None:
        loss = Comparison(result.runs, "valid_loss", True, target=0.4)
        assert loss.updates_to_target("good") == {1: 20, 2: 30, 3: 30}
        assert loss.updates_to_target("bad") == {1: None, 2: None, 3: None}

    def test_is_none_without_a_target(self, result: Comparison) -> None:
        none = Comparison(result.runs, "accuracy", False)
        assert none.epochs_to_target("good") == {1: None, 2: None, 3: None}

    @pytest.mark.parametrize(
        ("options", "less"),
        [
            ({}, True),
            ({"metric": "valid_loss"}, True),
            ({"metric": "mse", "mode": "max"}, False),
        ],
    )
    def test_goes_by_the_metric_s_name_or_the_mode(self, options: Any, less: bool) -> None:
        found = toy_learner(n_batches=2).compare(2, 0.1, ["constant"], [0], target=1e6, **options)
        assert found.less_is_better is less
        assert found.updates_to_target("constant") == {0: 2 if less else None}


class TestTheTable:
    def test_has_mean_and_standard_deviation_of_the_last_values(self, result: Comparison) -> None:
        ends = result.final("good")
        assert ends.tolist() == [0.96, 0.92, 0.88]
        header, good, bad, note = repr(result).splitlines()
        assert header.split()[:4] == ["policy", "accuracy", "valid_loss", "updates"]
        assert header.endswith("updates (epochs) to accuracy >= 0.9")
        mean, spread = statistics.mean(ends), statistics.stdev(ends)
        assert f"{mean:.4g} +- {spread:.2g}" == "0.92 +- 0.04"
        assert re.split("  +", good) == ["good", "0.92 +- 0.04", "0.3 +- 0.1", "15 (1.5) in 2 of 3"]
        assert re.split("  +", bad) == ["bad", "0.6 +- 0.1", "nan +- nan", "never"]
        assert len({len(line) for line in (header, good, bad)}) == 1
        assert note == "mean +- standard deviation over 3 seed(s)"

    def test_has_no_spread_for_one_seed_and_no_time_without_a_target(self) -> None:
        learn = toy_learner(n_batches=2)
        found = learn.compare(1, 0.1, ["constant"], [0], metric="valid_loss")
        header, line, _ = repr(found).splitlines()
        assert header.split() == ["policy", "valid_loss"]
        (loss,) = found.final("constant")
        assert line.split() == ["constant", f"{loss:.4g}"]

    def test_has_nan_for_a_run_that_recorded_no_such_value(self, result: Comparison) -> None:
        assert np.isnan(result.final("good", "mse")).tolist() == [True] * 3


class TestThePlot:
    def test_has_the_mean_and_a_band_from_the_lowest_to_the_highest(
        self, result: Comparison
    ) -> None:
        ax = result.plot()
        good, bad, target = ax.lines
        assert good.get_xdata() == pytest.approx([10, 20, 30])
        assert good.get_ydata() == pytest.approx([2 / 3, 0.8, 0.92])
        assert bad.get_ydata() == pytest.approx([1.3 / 3, 0.5, 0.6])
        assert set(target.get_ydata()) == {0.9}
        band = ax.collections[0].get_paths()[0].vertices
        for update, low, high in [(10, 0.5, 0.9), (20, 0.7, 0.9), (30, 0.88, 0.96)]:
            ends = band[band[:, 0] == update][:, 1]
            assert (ends.min(), ends.max()) == pytest.approx((low, high))
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == ["good", "bad", "target 0.9"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimizer update", "accuracy")

    def test_has_a_gap_where_a_run_diverged(self, result: Comparison) -> None:
        ax = Comparison(result.runs, "valid_loss", True).plot()
        assert np.isnan(ax.lines[1].get_ydata()).tolist() == [False, True, True]
        ax.figure.canvas.draw()

    def test_has_no_curve_for_a_metric_that_was_not_recorded(self, result: Comparison) -> None:
        unknown = Comparison(result.runs, "mse", True, target=0.1)
        assert unknown.updates_to_target("good") == {1: None, 2: None, 3: None}
        assert [len(line.get_xdata()) for line in unknown.plot().lines[:2]] == [0, 0]

    def test_shows_the_last_three_quarters(self) -> None:
        at, values = list(range(10, 90, 10)), [0.1, 0.1, 0.8, 0.85, 0.9, 0.9, 0.9, 0.95]
        runs = {"a": {0: scripted(at, accuracy=values)}}
        low, high = Comparison(runs, "accuracy", False).plot().get_ylim()
        assert (low, high) == pytest.approx((0.8 - 0.0075, 0.95 + 0.0075))

    def test_is_drawn_where_it_is_told(self, result: Comparison) -> None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
        assert result.plot(ax) is ax


class TestRefusedBeforeTheFirstRun:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"n_epoch": 0}, ValueError, "n_epoch must be at least 1"),
            ({"lr": -1.0}, ValueError, "lr must be finite and not negative"),
            ({"policies": "step"}, TypeError, "a list of names among"),
            ({"policies": []}, TypeError, "a list of names among"),
            ({"policies": ["one_cycle", "onecycle"]}, ValueError, "a policy must be one of"),
            ({"policies": ["step", "step"]}, ValueError, "comes twice"),
            ({"policies": {"mine": 3}}, TypeError, "the policy 'mine' must be one of"),
            ({"policies": [constant(0.1)]}, TypeError, "a dict from labels"),
            ({"seeds": [1, 1]}, ValueError, "all different"),
            ({"metric": "accuracy"}, ValueError, "metric must be one of valid_loss, mse"),
            ({"target": float("nan")}, ValueError, "target must be finite"),
            ({"mode": "less"}, ValueError, "mode must be"),
        ],
    )
    def test_is_what_cannot_work(self, options: Any, error: Any, message: str) -> None:
        seen: list[Any] = []
        learn = toy_learner(cbs=(Callback(before_fit=seen.append),))
        with pytest.raises(error, match=message):
            learn.compare(**({"n_epoch": 1} | options))
        assert seen == []

    def test_is_a_learner_without_validation(self) -> None:
        learn = toy_learner()
        learn.dls.valid = None
        with pytest.raises(ValueError, match="the learner has no validation loader"):
            learn.compare(1)
