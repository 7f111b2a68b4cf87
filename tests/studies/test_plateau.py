import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState

from onecycle import Callback, DataLoaders, Learner, Plateau, TensorLoader
from onecycle.studies.plateau import (
    SAMPLE,
    FixedSample,
    Measured,
    draw_sample,
    find_plateau,
    running_median,
)
from onecycle.testing import toy_learner


class TestThePlateau:
    #: From 0.1 up to 0.9, so that 0.75 of the gain is kept from 0.7 on: the 31st to the 50th.
    CURVE = (*[0.1] * 20, *[0.5] * 10, *[0.9] * 10, *[0.71] * 10, *[0.69] * 50)

    def find(self, values: Any, *, less: bool = False, n_planned: int = 100) -> Plateau:
        measured = np.array(values, np.float64)
        lrs = np.arange(1.0, len(measured) + 1)
        start = 0.9 if less else 0.1
        return find_plateau(lrs, measured, start, less_is_better=less, n_planned=n_planned)

    def test_is_where_three_quarters_of_the_gain_is_kept(self) -> None:
        found = self.find(self.CURVE)
        assert found.span == (31.0, 50.0)
        assert (found.is_open, found.share) == (False, 1.0)

    def test_of_what_should_be_less_is_that_of_its_negative(self) -> None:
        found = self.find([1 - value for value in self.CURVE], less=True)
        assert found.span == (31.0, 50.0)
        assert found.smoothed.min() == pytest.approx(0.1)

    @pytest.mark.parametrize("blown_up", [1e30, math.inf, math.nan])
    def test_is_the_same_however_far_the_loss_explodes_after_it(self, blown_up: float) -> None:
        losses = [1 - value for value in self.CURVE[:50]]
        assert self.find([*losses, *[blown_up] * 50], less=True).span == (31.0, 50.0)

    def test_is_judged_by_no_single_measurement(self) -> None:
        values = np.array(self.CURVE)
        values[[5, 90]] = 0.95  # two lucky ones, far from the plateau
        values[[33, 45]] = 0.2
        found = self.find(values)
        assert found.span == (31.0, 50.0)
        assert found.share == 18 / 20

    def test_ends_where_three_measurements_in_a_row_are_low_whatever_comes_later(self) -> None:
        values = list(self.CURVE)
        values[35:42] = [0.2] * 7
        found = self.find(values)
        assert found.span == (31.0, 35.0)

    def test_is_open_where_the_test_ended_as_planned(self) -> None:
        assert self.find(self.CURVE[:45], n_planned=45).is_open
        assert not self.find(self.CURVE[:45], n_planned=46).is_open  # it diverged

    def test_is_found_in_noise_about_once_in_a_hundred_tests(self) -> None:
        rng, found = np.random.default_rng(0), 0
        for _ in range(400):
            start, *values = rng.normal(size=51)
            curve = np.array(values)
            plateau = find_plateau(
                np.arange(50.0), curve, start, less_is_better=False, n_planned=50
            )
            found += plateau.span is not None
        assert found <= 12

    def test_is_none_where_no_loss_is_finite(self) -> None:
        assert self.find([math.nan] * 5, less=True).span is None
        assert self.find([math.inf], less=True).span is None
        assert self.find([], less=True).span is None

    def test_median_is_that_of_the_neighbours_that_there_are(self) -> None:
        values = np.random.default_rng(0).uniform(size=20)
        by_hand = [sorted(values[max(0, i - 2) : i + 3]) for i in range(20)]
        expected = [(v[(len(v) - 1) // 2] + v[len(v) // 2]) / 2 for v in by_hand]
        assert running_median(values) == pytest.approx(expected)


class TestTheSample:
    def learner(self, n: int, batch_size: int) -> Learner:
        learn = toy_learner()
        x = torch.arange(n * 4.0).reshape(n, 4) / n
        learn.dls = DataLoaders(
            learn.dls.train, TensorLoader(x, x.sum(1, keepdim=True), batch_size=batch_size)
        )
        return learn

    def test_is_spread_over_the_pass_and_large_enough(self) -> None:
        n = 20 * SAMPLE
        batches = draw_sample(self.learner(n, 50))
        assert sum(len(xb) for xb, _ in batches) == SAMPLE
        firsts = [float(xb[0, 0]) * n / 4 for xb, _ in batches]
        assert firsts[0] == 0
        assert firsts[-1] == pytest.approx(n - 50)
        assert max(np.diff(firsts)) < 1.2 * n / 9

    def test_is_all_there_is_of_a_small_set(self) -> None:
        batches = draw_sample(self.learner(100, 16))
        assert sum(len(xb) for xb, _ in batches) == 100

    def test_of_an_unknown_length_is_the_beginning(self) -> None:
        learn = self.learner(20 * SAMPLE, 50)

        class Endless:
            def __iter__(self) -> Any:
                while True:
                    yield torch.zeros(100, 4), torch.zeros(100, 1)

        learn.dls.valid = Endless()
        assert len(draw_sample(learn)) == 5

    def test_is_measured_before_the_first_update_and_then_now_and_then(self) -> None:
        learn, measured = toy_learner(), Measured()
        sample, by_hand = draw_sample(learn), []

        class Look(Callback):
            runs_in = frozenset(("range_test",))

            def after_step(self, learn: Learner) -> None:
                if learn.n_updates % 5 == 0:
                    by_hand.append(learn.validate())

        before = LearnerState(learn)
        by_hand.append(learn.validate())
        with learn.added_cbs([FixedSample(sample, 5, measured), Look()]):
            learn.lr_find(1e-3, 0.1, 23, show_plot=False)
        assert measured.updates == [0, 5, 10, 15, 20]
        for name in ("valid_loss", "mse"):
            expected = [found[name] for found in by_hand]
            assert measured.series(name) == pytest.approx(expected, rel=1e-6)
        assert before.changes(LearnerState(learn)) == []
