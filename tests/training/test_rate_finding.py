"""What `lr_find` does beyond one test: by hand, with everything put back."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from learner_state import LearnerState
from scripted_loss import Scripted
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from watcher import watcher

from onecycle import Callback, Learner, Stage, TensorLoader, valley
from onecycle.range_test.mini_cycles import FAR, MiniCycles
from onecycle.testing import toy_learner


def noisy_learner(valid: bool = True, **options: Any) -> Learner:
    """Make a learner whose losses are noisier than they fall: batches of two samples."""
    torch.manual_seed(0)
    x = torch.randn(240, 6)
    y = torch.exp(1.5 * x.sum(1, keepdim=True) / 6**0.5)
    train = TensorLoader(x[:200], y[:200], batch_size=2, shuffle=True)
    held = TensorLoader(x[200:], y[200:], batch_size=20) if valid else None
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    given: dict[str, Any] = {"opt_func": AdamW, "device": "cpu", "seed": 0} | options
    learn = Learner((train, held), model, mse_loss, **given)
    learn.cbs = learn.cbs[:1]  # no progress bar
    return learn


def counted(learn: Learner) -> list[float]:
    """Keep the rate of each update that is made."""
    seen: list[float] = []
    watch = watcher(after_step=lambda learn: seen.append(learn.groups.get("lr")[-1]))
    learn.cbs.append(watch)
    return seen


class TestWithoutAValley:
    def test_a_test_that_shows_one_makes_its_updates_and_no_more(self) -> None:
        learn = toy_learner(100, 32)
        seen = counted(learn)
        result = learn.lr_find(show_plot=False)
        assert len(seen) == len(result.losses) <= 100
        assert result.note is None
        assert result.cycles is None
        assert result.suggestion == result.suggestions["knee"]

    @pytest.mark.parametrize("valid", [True, False])
    def test_two_long_cycles_decide_and_a_line_says_what_they_cost(self, valid: bool) -> None:
        learn = noisy_learner(valid)
        seen = counted(learn)
        result = learn.lr_find(show_plot=False)
        assert result.cycles is not None
        assert result.cycles.peaks[1] == pytest.approx(FAR * result.cycles.peaks[0])
        assert result.cycles.believed in result.cycles.peaks
        assert len(seen) == len(result.losses) + 300
        assert result.note is not None
        assert result.note.startswith("the test shows no valley: 2 cycles of 150 updates; ")
        assert result.note.endswith("; 400 updates in all")
        assert result.note in repr(result)
        assert result.suggestion == result.cycles.lr == result.suggestions["mini_cycles"]
        assert "knee" not in result.suggestions
        assert result.reason is None
        assert result.lr_min == result.suggestion / 10
        low, high = result.spreads["mini_cycles"] or (0, 0)
        assert low < result.suggestion < high

    def test_the_rate_trains_where_the_fall_is_hidden(self) -> None:
        learn = noisy_learner()
        before = learn.validate()["valid_loss"]
        found = learn.lr_find(show_plot=False).suggestion
        learn.fit_one_cycle(4, found)
        assert learn.validate()["valid_loss"] < 0.9 * before

    def test_a_cycle_is_that_of_a_fit_of_its_length(self) -> None:
        result = noisy_learner().lr_find(show_plot=False)
        assert result.cycles is not None
        for peak, loss in zip(result.cycles.peaks, result.cycles.losses, strict=True):
            learn = noisy_learner()
            learn.fit_one_cycle(None, peak, max_updates=150)
            assert learn.validate()["valid_loss"] == loss

    def test_without_a_loader_the_mean_of_the_last_training_losses_counts(self) -> None:
        result = noisy_learner(valid=False).lr_find(show_plot=False)
        assert result.cycles is not None
        assert result.cycles.measured == "training loss"
        for peak, loss in zip(result.cycles.peaks, result.cycles.losses, strict=True):
            learn = noisy_learner(valid=False)
            learn.fit_one_cycle(None, peak, max_updates=150)
            values = learn.recorder.history["train_loss"].values
            assert loss == pytest.approx(values[-30:].mean(), rel=1e-6)

    def test_where_nothing_moves_sgd_is_asked_for_its_gradients(self) -> None:
        make = partial(
            toy_learner, 100, 32, opt_func=partial(SGD, momentum=0.9), loss_func=_thousandth_of_mse
        )
        learn = make()
        seen = counted(learn)
        result = learn.lr_find(1e-7, 1e-2, show_plot=False)
        assert len(seen) == 100 + 10 + 2 * 145
        assert str(result.note).endswith("400 updates in all")
        assert result.cycles is not None
        loss, square = _loss_and_gradient(make(), 10)
        assert result.cycles.believed == pytest.approx(2 * 0.1 * loss / square, rel=0.3)
        assert result.suggestion is not None
        assert result.suggestion > 1

    def test_where_the_loss_still_falls_at_the_last_rate_cycles_go_beyond_it(self) -> None:
        learn = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9))
        seen = counted(learn)
        result = learn.lr_find(1e-7, 2e-2, show_plot=False)
        assert result.cycles is not None
        assert result.cycles.peaks[1] > 2e-2
        assert result.suggestion == result.cycles.lr
        assert "the test shows no end of the fall" in str(result.note)
        assert len(seen) == 400

    def test_where_no_cycle_trains_the_believed_peak_is_the_answer_and_unsure(self) -> None:
        learn = toy_learner(8, 8, loss_func=_loss_of_noise)
        result = learn.lr_find(show_plot=False)
        assert result.cycles is not None
        assert not result.cycles.has_trained
        assert result.suggestion == result.cycles.believed
        assert "unsure: they hardly trained" in str(result.note)
        assert f"{result.suggestion:.1e} is only believed" in repr(result)

    def test_where_nothing_changes_the_loss_there_is_no_rate_and_a_reason(self) -> None:
        learn = toy_learner(8, 8, loss_func=lambda pred, yb: 0 * pred.sum() + 2.0)
        result = learn.lr_find(show_plot=False)
        assert result.suggestion is None
        assert "never falls clearly" in str(result.reason)

    @pytest.mark.parametrize("options", [{"linear": True}, {"num_it": 40}, {"wds": [0.0, 0.1]}])
    def test_linear_short_and_several_tests_do_without(self, options: Any) -> None:
        learn = noisy_learner()
        seen = counted(learn)
        learn.lr_find(show_plot=False, **options)
        assert len(seen) <= options.get("num_it", 100) * len(options.get("wds", [0]))

    def test_other_rules_do_without(self) -> None:
        learn = noisy_learner()
        seen = counted(learn)
        assert learn.lr_find(show_plot=False, suggest_funcs=[valley]).suggestion is None
        assert len(seen) <= 100

    def test_a_loss_that_never_was_finite_is_not_tried_again(self) -> None:
        learn = toy_learner(loss_func=Scripted([math.nan] * 2))
        result = learn.lr_find(show_plot=False, confirm=50)
        assert "not finite from the first batch on" in str(result.reason)


def _thousandth_of_mse(pred: Tensor, yb: Tensor) -> Tensor:
    return mse_loss(pred, yb) / 1000


def _loss_of_noise(pred: Tensor, yb: Tensor) -> Tensor:
    """Depend on the prediction by less than can be seen under the noise of the targets."""
    return 1e-9 * pred.square().mean() + 10 + yb.mean()


def _loss_and_gradient(learn: Learner, n: int) -> tuple[float, float]:
    """Return the mean loss of a few batches, and the mean square of the norm of their gradients."""
    losses, squares = [], []
    for _, (xb, yb) in zip(range(n), learn.dls.train, strict=False):
        loss = learn.loss_func(learn.model(xb), yb)
        found = torch.autograd.grad(loss, list(learn.model.parameters()))
        losses.append(float(loss.detach()))
        squares.append(sum(float((g**2).sum()) for g in found))
    return sum(losses) / n, sum(squares) / n


class TestConfirm:
    def test_tries_twice_and_half_the_suggestion_in_cycles_of_three_times_as_many(self) -> None:
        alone = toy_learner(100, 32).lr_find(show_plot=False).suggestion
        learn = toy_learner(100, 32)
        seen = counted(learn)
        result = learn.lr_find(show_plot=False, confirm=50)
        assert isinstance(result.cycles, MiniCycles)
        assert alone is not None
        assert {2 * alone / FAR, 2 * alone} <= set(result.cycles.peaks)
        assert result.cycles.believed == alone
        assert len(result.cycles.peaks) <= 3
        assert result.suggestion == result.cycles.lr
        assert result.cycles.peaks[0] <= result.cycles.lr <= result.cycles.peaks[-1]
        assert result.suggestions["knee"] == alone
        assert len(seen) == len(result.losses) + 150 * len(result.cycles.peaks)
        for peak, loss in zip(result.cycles.peaks, result.cycles.losses, strict=True):
            by_hand = toy_learner(100, 32)
            by_hand.fit_one_cycle(None, peak, max_updates=150)
            assert by_hand.validate()["valid_loss"] == loss

    def test_where_the_test_shows_no_turn_the_pair_for_a_cycle_ends_at_the_advice(self) -> None:
        learn = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9))
        result = learn.lr_find(1e-7, 2e-2, show_plot=False, confirm=20)
        assert "the test shows no end of the fall" in str(result.note)
        assert result.lr_max == result.suggestion
        assert result.lr_min == result.lr_max / 10
        assert "|" not in result.to_text().splitlines()[-6]

    def test_cycles_that_decide_nothing_leave_the_vote(self) -> None:
        learn = toy_learner(100, 32)
        learn.dls.valid = [(xb, yb + 1e4) for xb, yb in learn.dls.valid]  # nothing lowers it
        result = learn.lr_find(show_plot=False, confirm=20)
        assert "none of them trained" in str(result.note)
        assert result.vote is not None
        assert result.suggestion == result.suggestions["knee"]

    def test_a_suggestion_below_the_first_rate_says_so(self) -> None:
        result = toy_learner(100, 32, opt_func=partial(SGD, momentum=0.9)).lr_find(
            5e-2, 10, show_plot=False
        )
        assert result.suggestion is not None
        assert result.suggestion < 5e-2
        assert "below the first rate of the test, 5.0e-02: try a lower start_lr" in repr(result)

    def test_a_test_without_a_valley_is_followed_by_three_cycles_at_most(self) -> None:
        learn = noisy_learner()
        seen = counted(learn)
        result = learn.lr_find(show_plot=False, confirm=50)
        assert isinstance(result.cycles, MiniCycles)
        assert len(seen) == len(result.losses) + 150 * len(result.cycles.peaks) <= 560
        assert str(result.note).endswith(f"; {len(seen)} updates in all")

    def test_each_group_keeps_its_ratio(self) -> None:
        pairs: list[tuple[float, ...]] = []
        watch = watcher(after_step=lambda learn: pairs.append(tuple(learn.groups.get("lr"))))
        learn = toy_learner(
            100,
            32,
            lr=[0.001, 0.01],
            splitter=lambda m: [m[0].parameters(), m[2].parameters()],
            cbs=(watch,),
        )
        learn.lr_find(show_plot=False, confirm=20)
        assert all(low / high == pytest.approx(0.1) for low, high in pairs)

    @pytest.mark.parametrize("make", [noisy_learner, partial(toy_learner, 100, 32)])
    def test_leaves_nothing_behind(self, make: Any) -> None:
        learn = make()
        learn.fit(1)
        before = LearnerState(learn)
        learn.lr_find(show_plot=False, confirm=20)
        assert before.changes(LearnerState(learn)) == []

    def test_leaves_nothing_behind_when_it_is_interrupted(self) -> None:
        learn, steps = toy_learner(100, 32), []

        def stop(learn: Any) -> None:
            steps.append(1)
            if len(steps) == 130:
                raise KeyboardInterrupt

        callback = Callback(after_step=stop)
        callback.stage = Stage.PREPARE
        learn.cbs.append(callback)
        before = LearnerState(learn)
        with pytest.raises(KeyboardInterrupt):
            learn.lr_find(show_plot=False, confirm=50)
        assert len(steps) == 130
        assert before.changes(LearnerState(learn)) == []

    def test_the_same_call_says_the_same(self) -> None:
        learn = toy_learner(100, 32)
        said = [learn.lr_find(show_plot=False, confirm=20).cycles for _ in range(2)]
        assert said[0].losses == said[1].losses

    def test_of_several_tests_or_too_few_updates_is_refused(self) -> None:
        with pytest.raises(ValueError, match="confirm is for one test"):
            toy_learner().lr_find(show_plot=False, confirm=50, wds=[0.0, 0.1])
        with pytest.raises(ValueError, match="confirm must be at least 10; got 5"):
            toy_learner().lr_find(show_plot=False, confirm=5)
