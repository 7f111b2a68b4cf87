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

from onecycle import Callback, Diagnosis, Learner, Plateau, Progress, accuracy
from onecycle.studies.diagnosis import judge, widest
from onecycle.studies.plateau import find_plateau
from onecycle.studies.verification import verdict
from onecycle.testing import toy_learner
from onecycle.vision import digits

momentum_sgd = partial(SGD, momentum=0.9)


def diagnose(learn: Learner, **options: Any) -> Diagnosis:
    own = {"num_it": 30, "lr_usual": 0.01, "wds": (), "verify": False}
    return learn.diagnose(**(own | options))


def plateau(
    lo: float | None, hi: float | None, *, is_open: bool = False, share: float = 1.0
) -> Plateau:
    lrs, zeros = np.array([1.0, 60.0]), np.zeros(2)
    return Plateau(lrs, zeros, zeros, lo, hi, is_open=is_open, share=share)


class TestTheGuess:
    @pytest.mark.parametrize(
        ("found", "answer"),
        [
            (plateau(1.5, 5.0), "yes"),
            (plateau(1.5, 10.0, is_open=True), "yes"),
            (plateau(1.5, 10.0, share=0.81), "yes"),
            (plateau(1.5, 10.0, share=0.79), "unsure"),  # ragged
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
        assert judge(found, 1.0, "accuracy", 60.0)[0] == answer

    def test_gives_its_numbers(self) -> None:
        _, sentence = judge(plateau(0.3, 1.5), 0.25, "accuracy", 2.5)
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
        found = diagnose(toy_learner(16, opt_func=SGD, wd=90.0), num_it=40, wds=[0.0])
        assert (found.answer, found.weight_decay) == ("yes", 0.0)
        assert found.sentence.endswith("at a weight decay of 0, where 90 narrows the plateau")

    def test_is_unsure_where_there_is_no_usual_rate(self) -> None:
        learn = toy_learner(loss_func=lambda pred, yb: pred.sum() * float("nan"))
        found = diagnose(learn, lr_usual=None)
        assert (found.answer, found.lr_usual, found.lr_max) == ("unsure", None, None)
        assert "give lr_usual" in found.sentence
        assert found.plateaus == {}
        assert repr(found).splitlines() == [
            "super-convergence: unsure (a guess: no fit was made)",
            found.sentence,
        ]
        found.plot().figure.canvas.draw()


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    learn = toy_learner(60, opt_func=SGD, wd=0.01)
    return diagnose(learn, num_it=60, lr_usual=0.01, wds=[0.0])


class TestADiagnosis:
    def test_is_made_from_a_linear_test_of_each_weight_decay(self, found: Diagnosis) -> None:
        learn = toy_learner(60, opt_func=SGD, wd=0.01)
        tests = learn.lr_find(0.1 / 60, 0.1, 60, wds=[0.01, 0.0], linear=True, show_plot=False)
        assert list(found.plateaus) == [0.01, 0.0]
        for wd, plateau in found.plateaus.items():
            assert np.array_equal(plateau.lrs, tests[wd].lrs)
        first, second = (p.values for p in found.plateaus.values())
        assert not np.array_equal(first, second)

    def test_measures_the_whole_of_a_small_validation_set(self, found: Diagnosis) -> None:
        learn = toy_learner(60, opt_func=SGD, wd=0.01)
        ends: list[dict[str, float]] = []

        class Look(Callback):
            runs_in = frozenset(("range_test",))

            def after_step(self, learn: Learner) -> None:
                ends.append(learn.validate())

        start = learn.validate()["mse"]
        with learn.added_cbs([Look()]):
            learn.lr_find(0.1 / 60, 0.1, 60, linear=True, show_plot=False)
        by_hand = np.array([end["mse"] for end in ends])
        lrs = found.plateaus[0.01].lrs
        again = find_plateau(lrs, by_hand, start, less_is_better=True, n_planned=60)
        assert found.plateaus[0.01].values == pytest.approx(by_hand, rel=1e-5)
        assert found.plateaus[0.01].span == again.span

    def test_compares_with_the_rate_that_minimum_suggests(self) -> None:
        learn = toy_learner(64, 32)
        suggested = learn.lr_find(show_plot=False).minimum
        found = learn.diagnose(num_it=20, wds=(), verify=False)
        assert found.lr_usual == found.lr_suggested == suggested
        assert suggested is not None
        assert found.plateaus[0.01].lrs[-1] == pytest.approx(10 * suggested)

    def test_gives_a_peak_a_third_of_the_plateau_s_end(self, found: Diagnosis) -> None:
        hi = found.plateaus[0.01].lr_hi
        assert hi is not None
        assert found.answer == "yes"
        assert found.lr_max == hi / 3

    def test_prints_a_line_for_each_weight_decay(self, found: Diagnosis) -> None:
        answer, sentence, header, *lines = repr(found).splitlines()
        assert answer == (
            "super-convergence: yes (a guess: no fit was made); peak for one cycle: lr_max=0.033"
        )
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
        assert labels[3:] == ["usual rate: 0.01", "peak for one cycle: 0.033"]
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
        learn.diagnose(num_it=20, wds=[0.0, 0.3], lr_usual=0.01)
        learn.diagnose(num_it=20, wds=[0.0, 0.3], verify=False)
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


class TestTheFits:
    def diagnose(self, **options: Any) -> Diagnosis:
        learn = toy_learner(64, 32, opt_func=SGD, wd=0.01)
        return learn.diagnose(num_it=60, **({"lr_usual": 0.01, "end_lr": 1.0, "wds": ()} | options))

    def test_are_those_of_the_usual_rate_the_suggestion_and_the_peak(self) -> None:
        found = self.diagnose(n_epoch=1, seeds=[3, 4])
        assert not found.is_guess
        suggested, peak = found.lr_suggested, found.plateaus[0.01].lr_hi
        assert suggested is not None
        assert peak is not None
        names = ["constant 0.01", f"one cycle to {suggested:.2g}", f"one cycle to {peak / 3:.2g}"]
        assert list(found.fits) == names
        for name, train in {
            names[0]: lambda learn: learn.fit(1, 0.01),
            names[1]: lambda learn: learn.fit_one_cycle(1, suggested, moms=False),
            names[2]: lambda learn: learn.fit_one_cycle(1, peak / 3, moms=False),
        }.items():
            for end, seed in zip(found.fits[name], (3, 4), strict=True):
                learn = toy_learner(64, 32, opt_func=SGD, wd=0.01)
                torch.manual_seed(seed)
                learn.seed = seed
                train(learn)
                assert end == learn.validate()["mse"]

    def test_are_as_long_as_a_test_or_as_long_as_they_are_told(self) -> None:
        lengths = set[int]()
        learn = toy_learner(64, 32, opt_func=SGD, wd=0.01)
        learn.cbs.append(Callback(after_fit=lambda learn: lengths.add(learn.n_updates)))
        learn.diagnose(1.0, 70, lr_usual=0.01, wds=(), seeds=[0])
        assert lengths == {128}  # two epochs of 64
        lengths.clear()
        learn.diagnose(1.0, 70, lr_usual=0.01, wds=(), seeds=[0], n_epoch=1)
        assert lengths == {64}

    def test_are_counted_before_they_start(self, capsys: pytest.CaptureFixture[str]) -> None:
        learn = toy_learner(64, 32, opt_func=SGD, wd=0.01)
        learn.cbs.append(Progress())
        learn.diagnose(1.0, 60, lr_usual=0.01, wds=(), seeds=[0, 1])
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == "6 fits of 1 epoch(s): 3 kinds, 2 seeds"
        assert [", seed 0:" in line for line in lines] == [True, False] * 3
        with learn.no_bar():
            learn.diagnose(1.0, 60, lr_usual=0.01, wds=(), seeds=[0, 1])
        assert capsys.readouterr().out == ""

    def test_are_none_where_no_rate_is_large(self) -> None:
        found = self.diagnose(end_lr=0.035)
        assert (found.answer, found.is_guess, found.lr_max) == ("no", True, None)
        assert "is no large one" in found.sentence

    def test_cannot_be_made_within_a_fit(self) -> None:
        def look(learn: Learner) -> None:
            with pytest.raises(RuntimeError, match="verify=False"):
                learn.diagnose()

        toy_learner(cbs=[Callback(after_step=look)]).fit(1)

    @pytest.mark.parametrize(
        ("peak", "answer"),
        [
            ([0.90, 0.91, 0.92], "yes"),
            ([0.85, 0.86, 0.84], "unsure"),  # ahead by 0.017, with a spread of 0.015
            ([0.83, 0.83, 0.84], "no"),
            ([0.83, 0.83, 0.84 - 1e-3], "no"),
            ([0.99, 0.99, math.nan], "no"),
        ],
    )
    def test_decide_by_more_than_the_spread_over_the_seeds(
        self, peak: list[float], answer: str
    ) -> None:
        ends = {
            "constant": np.array([0.5, 0.5, 0.5]),
            "cycle": np.array([0.82, 0.83, 0.84]) + np.array([0.0, 0.01, 0.0]),
            "peak": np.array(peak),
        }
        assert verdict(ends, "peak", less_is_better=False, metric="accuracy")[0] == answer
        less = {name: 1 - values for name, values in ends.items()}
        assert verdict(less, "peak", less_is_better=True, metric="error")[0] == answer

    def test_win_against_what_diverges(self) -> None:
        ends = {"constant": np.array([math.nan, 0.9]), "peak": np.array([0.1, 0.2])}
        assert verdict(ends, "peak", less_is_better=False, metric="accuracy")[0] == "yes"


def perceptron(seed: int) -> Learner:
    """Make a plain network for the digits; SGD without momentum trains it at large rates only."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    return Learner(digits(), model, cross_entropy, SGD, metrics=[accuracy], device="cpu", seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", [0, 10, 20])
def test_the_peak_of_a_yes_beats_the_other_fits_under_seeds_that_it_has_not_seen(
    first_seed: int,
) -> None:
    learn = perceptron(first_seed)
    with learn.no_bar():
        seeds = range(first_seed, first_seed + 3)
        found = learn.diagnose(seeds=seeds, wds=())
        assert found.answer in ("yes", "unsure"), found
        assert found.lr_usual is not None
        assert found.lr_max is not None
        ends = {"constant": list[float](), "peak": list[float]()}
        for seed in range(first_seed + 3, first_seed + 8):
            for name, train in {
                "constant": lambda learn: learn.fit(9, found.lr_usual),
                "peak": lambda learn: learn.fit_one_cycle(9, found.lr_max, moms=False),
            }.items():
                other = perceptron(seed)
                with other.no_bar():
                    train(other)
                ends[name].append(other.validate()["accuracy"])
    assert np.mean(ends["peak"]) > np.mean(ends["constant"])
