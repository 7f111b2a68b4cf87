import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Rprop

from onecycle import DataLoaders, Diagnosis, Learner, LRFindResult, Plateau, accuracy
from onecycle.studies.diagnosis import find_plateau, judge, widest
from onecycle.testing import toy_learner
from onecycle.vision import digits

momentum_sgd = partial(SGD, momentum=0.9)


def diagnose(learn: Learner, **options: Any) -> Diagnosis:
    return learn.diagnose(**({"num_it": 30, "lr_usual": 0.01, "wds": ()} | options))


def linear_test(name: str, values: Any) -> LRFindResult:
    """Return a range test at the rates 1, 2, 3, ... with these values of a metric."""
    measured = np.array(values, np.float64)
    lrs = np.arange(1.0, len(measured) + 1)
    metrics = {} if name == "valid_loss" else {name: measured}
    return LRFindResult(
        lrs=lrs,
        losses=measured,
        smoothed=measured,
        suggestions={},
        lr_min=None,
        lr_max=None,
        reason=None,
        stop_reason="",
        linear=True,
        valid_losses=measured,
        metrics=metrics,
    )


def plateau(lo: float | None, hi: float | None, *, is_open: bool = False) -> Plateau:
    return Plateau(np.array([1.0, 60.0]), np.zeros(2), lo, hi, is_open=is_open, share=1.0)


class TestThePlateau:
    #: From 0.1 up to 0.9, so that 0.75 of the gain is kept from 0.7 on: the 31st to the 50th.
    CURVE = (*[0.1] * 20, *[0.5] * 10, *[0.9] * 10, *[0.71] * 10, *[0.69] * 50)

    def find(self, values: Any, name: str = "accuracy", num_it: int = 100) -> Plateau:
        less = name != "accuracy"
        test = linear_test(name, values)
        return find_plateau(test, name, less_is_better=less, window=1, num_it=num_it)

    def test_is_where_three_quarters_of_the_gain_is_kept(self) -> None:
        found = self.find(self.CURVE)
        assert found.span == (31.0, 50.0)
        assert (found.is_open, found.share) == (False, 1.0)

    @pytest.mark.parametrize("name", ["valid_loss", "error_rate"])
    def test_of_what_should_be_less_is_that_of_its_negative(self, name: str) -> None:
        found = self.find([1 - value for value in self.CURVE], name)
        assert found.span == (31.0, 50.0)
        assert found.smoothed.min() == pytest.approx(0.1)

    @pytest.mark.parametrize("blown_up", [1e30, math.inf, math.nan])
    def test_is_the_same_however_far_the_loss_explodes_after_it(self, blown_up: float) -> None:
        losses = [1 - value for value in self.CURVE[:50]]
        assert self.find([*losses, *[0.9] * 50], "valid_loss").span == (31.0, 50.0)
        assert self.find([*losses, *[blown_up] * 50], "valid_loss").span == (31.0, 50.0)

    def test_goes_over_a_dip_and_tells_how_much_of_it_is_high(self) -> None:
        values = list(self.CURVE)
        values[35:40] = [0.2] * 5
        found = self.find(values)
        assert found.span == (31.0, 50.0)
        assert found.share == 15 / 20

    def test_is_open_where_the_test_ended_as_planned(self) -> None:
        assert self.find(self.CURVE[:45], num_it=45).is_open
        assert not self.find(self.CURVE[:45], num_it=46).is_open  # it diverged

    def test_is_none_where_nothing_is_learned(self) -> None:
        noise = np.random.default_rng(0).uniform(0, 0.2, 100)
        test = linear_test("accuracy", noise)
        found = find_plateau(test, "accuracy", less_is_better=False, window=10, num_it=100)
        assert found.span is None
        assert (found.is_open, found.share) == (False, 0.0)

    def test_is_none_where_no_loss_is_finite(self) -> None:
        assert self.find([math.nan] * 5, "valid_loss").span is None
        assert self.find([math.inf], "valid_loss").span is None

    def test_is_found_in_the_mean_of_the_neighbours_that_there_are(self) -> None:
        values = np.random.default_rng(0).uniform(0, 1, 30) + np.arange(30)
        start = values[:4].mean()
        clipped = np.maximum(values, start)
        by_hand = [clipped[max(0, i - 2) : i + 2].mean() for i in range(30)]
        test = linear_test("accuracy", values)
        found = find_plateau(test, "accuracy", less_is_better=False, window=4, num_it=30)
        assert found.smoothed == pytest.approx(by_hand)


class TestTheAnswer:
    @pytest.mark.parametrize(
        ("found", "answer"),
        [
            (plateau(1.5, 5.0), "yes"),
            (plateau(1.5, 10.0, is_open=True), "yes"),
            (plateau(1.5, 4.9), "unsure"),
            (plateau(1.5, 3.0), "unsure"),
            (plateau(0.9, 10.0), "unsure"),  # high below the usual rate too
            (plateau(1.5, 2.9), "no"),
            (plateau(0.5, 2.9), "no"),
            (plateau(1.5, 2.9, is_open=True), "unsure"),  # the test went no further
            (plateau(None, None), "no"),
        ],
    )
    def test_goes_by_the_ends_of_the_plateau(self, found: Plateau, answer: str) -> None:
        assert judge(found, 1.0, "accuracy")[0] == answer

    def test_gives_its_numbers(self) -> None:
        _, sentence = judge(plateau(0.3, 1.5), 0.25, "accuracy")
        assert sentence == "accuracy stays high from 0.3 up to 1.5, 6 times the usual 0.25"

    @pytest.mark.parametrize(
        ("ends", "chosen"),
        [
            ({0.1: 4.0, 0.0: 5.9}, 0.1),  # not clearly wider
            ({0.1: 4.0, 0.0: 6.1}, 0.0),
            ({0.1: 4.0, 0.0: 9.0, 0.01: 8.0}, 0.01),  # about equal: the larger decay
            ({0.1: None, 0.0: 9.0}, 0.0),
            ({0.1: None, 0.0: None}, 0.1),
        ],
    )
    def test_is_for_another_weight_decay_only_if_that_is_clearly_wider(
        self, ends: dict[float, float | None], chosen: float
    ) -> None:
        plateaus = {wd: plateau(None if hi is None else 1.0, hi) for wd, hi in ends.items()}
        assert widest(plateaus, 0.1) == chosen

    def test_says_which_weight_decay_narrows_the_plateau(self) -> None:
        found = diagnose(toy_learner(16, opt_func=SGD, wd=3.0), num_it=40, wds=[0.0])
        assert (found.answer, found.weight_decay) == ("yes", 0.0)
        assert found.sentence.endswith("at a weight decay of 0, where 3 narrows the plateau")

    def test_is_unsure_where_there_is_no_usual_rate(self) -> None:
        learn = toy_learner(loss_func=lambda pred, yb: pred.sum() * float("nan"))
        found = diagnose(learn, lr_usual=None)
        assert (found.answer, found.lr_usual, found.lr_max) == ("unsure", None, None)
        assert "give lr_usual" in found.sentence
        assert found.plateaus == {}
        assert repr(found).splitlines() == ["super-convergence: unsure", found.sentence]
        found.plot().figure.canvas.draw()


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    learn = toy_learner(64, opt_func=momentum_sgd, wd=0.01)
    return diagnose(learn, num_it=60, lr_usual=0.004, wds=[0.0])


class TestADiagnosis:
    def test_is_made_from_linear_tests_of_each_weight_decay(self, found: Diagnosis) -> None:
        learn = toy_learner(64, opt_func=momentum_sgd)
        options = {"stop_div": False, "show_plot": False, "linear": True, "valid": True}
        tests = learn.lr_find(0.04 / 60, 0.04, 60, wds=[0.01, 0.0], **options)
        assert list(found.plateaus) == [0.01, 0.0]
        for wd, plateau in found.plateaus.items():
            again = find_plateau(tests[wd], "mse", less_is_better=True, window=64, num_it=60)
            assert np.array_equal(plateau.lrs, tests[wd].lrs)
            assert plateau.smoothed.shape == again.smoothed.shape
        first, second = (p.smoothed for p in found.plateaus.values())
        assert not np.array_equal(first, second)

    def test_compares_with_the_rate_that_minimum_suggests(self) -> None:
        learn = toy_learner(64, 32)
        suggested = learn.lr_find(show_plot=False).minimum
        found = learn.diagnose(num_it=20, wds=())
        assert found.lr_usual == suggested
        assert suggested is not None
        assert found.plateaus[0.01].lrs[-1] == pytest.approx(10 * suggested)

    def test_gives_a_peak_a_third_of_the_plateau_s_end(self, found: Diagnosis) -> None:
        hi = found.plateaus[0.01].lr_hi
        assert hi is not None
        assert found.answer == "yes"
        assert found.lr_max == hi / 3

    def test_prints_a_line_for_each_weight_decay(self, found: Diagnosis) -> None:
        answer, sentence, header, *lines = repr(found).splitlines()
        assert answer == "super-convergence: yes; peak for one cycle: lr_max=0.013"
        assert sentence == found.sentence
        assert header.split()[0] == "weight_decay"
        for line, (wd, plateau) in zip(lines, found.plateaus.items(), strict=True):
            first, lo, hi, ratio, share, best, end = line.split()
            assert float(first) == wd
            assert float(lo) == pytest.approx(plateau.lr_lo, rel=0.005)
            assert float(hi) == pytest.approx(plateau.lr_hi, rel=0.005)
            assert plateau.is_open
            assert ratio == ">10"
            assert share == f"{plateau.share:.0%}"
            assert float(best) == pytest.approx(plateau.smoothed.min(), rel=1e-3)
            assert float(end) == pytest.approx(plateau.smoothed[-1], rel=1e-3)

    def test_is_drawn_with_its_plateau_where_it_is_told(self, found: Diagnosis) -> None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
        assert found.plot(ax) is ax
        legend = ax.get_legend()
        assert legend is not None
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels[1:3] == ["weight_decay 0.01", "weight_decay 0"]
        assert labels[3:] == ["usual rate: 0.004", "peak for one cycle: 0.013"]
        assert np.array_equal(np.asarray(ax.lines[0].get_ydata()), found.plateaus[0.01].smoothed)

    def test_measures_the_loss_where_there_is_no_metric_or_it_is_told_to(self) -> None:
        assert diagnose(toy_learner(metrics=[])).metric == "valid_loss"
        assert diagnose(toy_learner()).metric == "mse"
        assert diagnose(toy_learner(), metric="valid_loss").metric == "valid_loss"

    def test_needs_no_optimizer_with_weight_decay(self) -> None:
        assert list(diagnose(toy_learner(opt_func=Rprop)).plateaus) == [0.0]

    @pytest.mark.parametrize("opt_func", [momentum_sgd, AdamW])
    def test_leaves_nothing_behind(self, opt_func: Any) -> None:
        learn = toy_learner(opt_func=opt_func)
        learn.fit(1)
        before, shown = LearnerState(learn), learn.lr_find(num_it=15, show_plot=False)
        learn.diagnose(num_it=20, wds=[0.0, 0.3])
        assert before.changes(LearnerState(learn)) == []
        assert learn.recorder.lr_find_result is shown


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_it": 19}, "num_it must be at least 20"),
            ({"metric": "accuracy"}, "metric must be one of valid_loss, mse; got 'accuracy'"),
            ({"end_lr": 0.0}, "end_lr must be positive"),
            ({"lr_usual": -1.0}, "lr_usual must be positive"),
            ({"wds": [-0.1]}, "must be finite and not negative"),
        ],
    )
    def test_is_what_cannot_be(self, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            diagnose(toy_learner(), **options)

    def test_is_a_learner_without_validation(self) -> None:
        learn = toy_learner()
        learn.dls.valid = None
        with pytest.raises(ValueError, match="no validation loader: give it DataLoaders"):
            diagnose(learn)

    def test_is_a_weight_decay_where_the_optimizer_has_none(self) -> None:
        with pytest.raises(ValueError, match="Rprop has no hyperparameter 'weight_decay'"):
            diagnose(toy_learner(opt_func=Rprop), wds=[0.1])


def five_layers(opt_func: Any, seed: int, dls: DataLoaders) -> Learner:
    """Make a plain network without normalization: AdamW copes with its depth, SGD hardly."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(5):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    return Learner(dls, model, cross_entropy, opt_func, metrics=[accuracy], device="cpu", seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize(("opt_func", "answer"), [(AdamW, "yes"), (momentum_sgd, "no")])
def test_one_cycle_to_a_large_peak_wins_after_a_yes_and_loses_after_a_no(
    opt_func: Any, answer: str
) -> None:
    """The peak is the diagnosis's, or where it gives none three times the usual rate."""
    dls, answers, leads = digits(), list[str](), list[float]()
    for seed in range(5):
        learners = [five_layers(opt_func, seed, dls) for _ in range(3)]
        with learners[0].no_bar():
            found = learners[0].diagnose(wds=())
        answers.append(found.answer)
        if found.lr_usual is None:
            continue
        with learners[1].no_bar(), learners[2].no_bar():
            learners[1].fit(8, found.lr_usual)
            learners[2].fit_one_cycle(8, found.lr_max or 3 * found.lr_usual)
        constant, cycle = (learn.validate()["accuracy"] for learn in learners[1:])
        leads.append(cycle - constant)
    assert answers.count(answer) >= 3
    assert {*answers} <= {answer, "unsure"}
    assert len(leads) >= 4
    mean, error = float(np.mean(leads)), float(np.std(leads, ddof=1)) / math.sqrt(len(leads))
    assert (mean if answer == "yes" else -mean) > 2 * error
