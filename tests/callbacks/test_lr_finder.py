import math
from typing import Any

import numpy as np
import pytest
import torch
from scripted_loss import Scripted, scripted
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import SGD
from watcher import watcher

from onecycle import (
    Callback,
    CancelStep,
    Learner,
    LRFinder,
    OneCycleSchedule,
    Stage,
    TensorLoader,
    minimum,
    slide,
    steep,
    valley,
)
from onecycle.testing import toy_learner

RULES = (valley, slide, minimum, steep)


def stop_by_hand(losses: list[float]) -> int | None:
    """Return the number of the batch at which the smoothed loss is over 4 times its best."""
    mean, best = 0.0, math.inf
    for n, loss in enumerate(losses, 1):
        mean = 0.98 * mean + 0.02 * loss
        smoothed = mean / (1 - 0.98**n)
        if n >= 10:
            if smoothed > 4 * best:
                return n
            best = min(best, smoothed)
    return None


class TestRates:
    def test_rise_exponentially_with_exact_ends(self) -> None:
        start, end, n = 1e-7, 10.0, 100
        lrs = LRFinder(start, end, n).lrs
        expected = [start * (end / start) ** (i / (n - 1)) for i in range(n)]
        assert lrs.tolist() == pytest.approx(expected, rel=1e-12)
        assert (lrs[0], lrs[-1]) == (start, end)
        assert (np.diff(lrs) > 0).all()

    def test_rise_linearly_with_exact_ends(self) -> None:
        lrs = LRFinder(0.1, 0.7, 7, linear=True).lrs
        assert lrs.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], rel=1e-12)
        assert (lrs[0], lrs[-1]) == (0.1, 0.7)

    @pytest.mark.parametrize("linear", [False, True])
    def test_are_in_force_at_each_update(self, linear: bool) -> None:
        seen: list[float] = []
        watch = watcher(before_step=lambda learn: seen.append(learn.opt.param_groups[-1]["lr"]))
        learn = toy_learner(cbs=(watch,))
        result = learn.lr_find(1e-4, 1e-2, 21, show_plot=False, linear=linear)
        assert seen == result.lrs.tolist()
        assert (seen[0], seen[-1]) == (1e-4, 1e-2)

    def test_keep_the_ratios_of_the_groups(self) -> None:
        seen: list[list[float]] = []
        watch = watcher(before_step=lambda learn: seen.append(learn.groups.get("lr")))
        learn = toy_learner(
            lr=[0.001, 0.004, 0.01],
            wd=0.1,
            splitter=lambda m: [[m[0].weight], [m[0].bias], list(m[2].parameters())],
            cbs=(watch,),
        )
        result = learn.lr_find(1e-4, 1e-2, 12, show_plot=False)
        assert [rates[2] for rates in seen] == result.lrs.tolist()
        for low, middle, last in seen:
            assert (low / last, middle / last) == pytest.approx((0.1, 0.4))

    def test_reach_every_group_of_an_optimizer_that_was_split_for_decay(self) -> None:
        seen: list[list[float]] = []
        watch = watcher(
            before_step=lambda learn: seen.append([g["lr"] for g in learn.opt.param_groups])
        )
        result = toy_learner(wd=0.1, cbs=(watch,)).lr_find(num_it=12, show_plot=False)
        assert seen == [[lr, lr] for lr in result.lrs[: len(seen)].tolist()]

    def test_win_over_a_schedule_among_the_callbacks(self) -> None:
        learn = toy_learner(cbs=(OneCycleSchedule(0.1),))
        seen: list[float] = []
        learn.cbs.append(watcher(before_step=lambda learn: seen.append(learn.groups.get("lr")[0])))
        result = learn.lr_find(1e-4, 1e-2, 12, show_plot=False)
        assert seen == result.lrs.tolist()

    def test_advance_with_updates_not_with_batches(self) -> None:
        seen: list[float] = []

        def postpone(learn: Any) -> None:
            if learn.batches_in_window < 2:
                raise CancelStep

        watch = watcher(
            after_backward=postpone,
            after_step=lambda learn: seen.append(learn.groups.get("lr")[0]),
        )
        result = toy_learner(cbs=(watch,)).lr_find(1e-4, 1e-2, 12, show_plot=False)
        assert seen == result.lrs.tolist()
        assert len(seen) == 12

    def test_wait_for_an_update_that_is_skipped(self) -> None:
        seen: list[float] = []

        def skip(learn: Any) -> None:
            seen.append(learn.groups.get("lr")[0])
            if len(seen) == 3:
                raise CancelStep("not this one")

        result = toy_learner(cbs=(watcher(before_step=skip),)).lr_find(
            1e-4, 1e-2, 12, show_plot=False
        )
        lrs = LRFinder(1e-4, 1e-2, 12).lrs.tolist()
        assert seen == [*lrs[:3], *lrs[2:11]]
        assert result.lrs.tolist() == lrs[:11]
        assert len(result.losses) == 11

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"start_lr": 0.0}, "0 < start_lr < end_lr"),
            ({"start_lr": 1.0, "end_lr": 1.0}, "0 < start_lr < end_lr"),
            ({"end_lr": math.inf}, "end_lr must be finite; got inf"),
            ({"start_lr": math.nan}, "start_lr must be finite; got nan"),
            ({"num_it": 1}, "num_it must be at least 2; got 1"),
        ],
    )
    def test_that_cannot_rise_are_refused(self, arguments: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LRFinder(**arguments)


class TestLosses:
    @staticmethod
    def pieces() -> tuple[nn.Module, SGD]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        return model, SGD(model.parameters(), lr=0.1, momentum=0.9)

    def test_are_those_of_a_bare_loop_over_the_same_batches(self) -> None:
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        loader = TensorLoader(x, x.sum(1, keepdim=True), batch_size=8, shuffle=True)
        model, opt = self.pieces()
        seen: list[Any] = []
        watch = watcher(before_batch=lambda learn: seen.append(learn.batch))
        learn = Learner((loader, None), model, mse_loss, opt=opt, device="cpu", seed=0, cbs=[watch])
        result = learn.lr_find(1e-4, 1.0, 20, show_plot=False)  # 8 batches an epoch: 3 epochs

        model, opt = self.pieces()
        losses = []
        for i, (xb, yb) in enumerate(seen):
            opt.param_groups[0]["lr"] = float(result.lrs[i])
            loss = mse_loss(model(xb), yb)
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        assert result.losses.tolist() == losses
        assert len(losses) == 20

    def test_come_from_the_batches_of_the_next_fit(self) -> None:
        seen: list[Tensor] = []
        learn = toy_learner(cbs=(watcher(before_batch=lambda learn: seen.append(learn.xb)),))
        learn.lr_find(1e-5, 1e-3, 16, show_plot=False)
        tested = list(seen)
        seen.clear()
        learn.fit(2)
        assert len(tested) == len(seen) == 16
        assert all(map(torch.equal, tested, seen))
        assert not torch.equal(tested[0], tested[8])  # another epoch, another order

    def test_are_smoothed_as_the_stop_rule_sees_them(self) -> None:
        result = toy_learner().lr_find(1e-4, 1e-2, 15, show_plot=False)
        mean, expected = 0.0, []
        for n, loss in enumerate(result.losses, 1):
            mean = 0.98 * mean + 0.02 * loss
            expected.append(mean / (1 - 0.98**n))
        assert result.smoothed.tolist() == pytest.approx(expected)

    def test_of_an_accumulated_update_are_read_once_an_update(self) -> None:
        def postpone(learn: Any) -> None:
            if learn.batches_in_window < 4:
                raise CancelStep

        result = toy_learner(cbs=(watcher(after_backward=postpone),)).lr_find(
            1e-4, 1e-2, 5, show_plot=False
        )
        assert len(result.losses) == len(result.lrs) == 5


class TestStopping:
    def test_at_four_times_the_best_smoothed_loss(self) -> None:
        losses = [2.0] * 15 + [2.0 * 1.5**i for i in range(30)]
        result = scripted(losses, 45)
        stop = stop_by_hand(losses)
        assert stop is not None
        assert 15 < stop < 45
        assert len(result.losses) == len(result.lrs) == stop
        assert result.stop_reason.startswith(f"batch {stop}: ")
        assert "4 times its best" in result.stop_reason

    def test_not_among_the_first_ten_batches(self) -> None:
        losses = [1.0, *[1000.0] * 11, *[1.0] * 8]
        assert len(scripted(losses, 20).losses) == 20

    def test_not_for_an_easy_first_batch(self) -> None:
        losses = [1e-6] + [1.0] * 29
        result = scripted(losses, 30)
        assert result.losses.tolist() == pytest.approx(losses)
        assert result.stop_reason == "all updates were made"

    def test_not_when_it_is_switched_off(self) -> None:
        losses = [1.0] * 12 + [1e6] * 8
        assert stop_by_hand(losses) == 13
        assert len(scripted(losses, 20).losses) == 13
        assert len(scripted(losses, 20, stop_div=False).losses) == 20

    @pytest.mark.parametrize("stop_div", [True, False])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("read_every", [1, 8, 100])
    def test_at_the_update_whose_loss_is_not_finite(
        self, read_every: int, bad: float, stop_div: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepare = LRFinder.before_fit

        def as_on_a_device(self: LRFinder, learn: Any) -> None:
            prepare(self, learn)
            self._read_every = read_every

        monkeypatch.setattr(LRFinder, "before_fit", as_on_a_device)
        result = scripted([1.0] * 6 + [bad] * 14, 20, stop_div=stop_div)
        assert result.stop_reason == f"batch 7: the loss is {bad}"
        assert len(result.losses) == len(result.lrs) == 7
        assert result.suggestion is None
        assert "non-finite" in str(result.reason)

    def test_for_a_skipped_update_only_if_its_loss_is_not_finite(self) -> None:
        def skip(learn: Any) -> None:
            if learn.iter in (2, 5):
                raise CancelStep

        learn = toy_learner(
            loss_func=Scripted([1.0] * 5 + [math.inf] * 9), cbs=(watcher(before_step=skip),)
        )
        result = learn.lr_find(num_it=12, show_plot=False)
        assert result.losses.tolist() == [1.0] * 4 + [math.inf]
        assert result.stop_reason == "batch 5: the loss is inf"

    def test_never_after_more_updates_than_asked_for(self) -> None:
        result = toy_learner(n_batches=1).lr_find(1e-5, 1e-3, 25, show_plot=False)
        assert len(result.losses) == 25


class TestWhoTakesPart:
    def test_callbacks_that_prepare_do_and_the_others_do_not(self) -> None:
        heard: list[str] = []
        cbs = []
        for stage in Stage:
            callback = Callback(
                before_fit=lambda learn, name=stage.name: heard.append(name),
                after_step=lambda learn, name=stage.name: heard.append(name),
                cleanup_fit=lambda learn, name=stage.name: heard.append(name),
            )
            callback.stage = stage
            cbs.append(callback)
        toy_learner(cbs=tuple(cbs)).lr_find(1e-5, 1e-3, 3, show_plot=False)
        assert heard == ["PREPARE"] * 5

    def test_nothing_is_validated(self) -> None:
        heard: list[str] = []
        callback = Callback(
            before_validate=lambda learn: heard.append("before_validate"),
            before_batch=lambda learn: heard.append("train" if learn.training else "valid"),
        )
        callback.stage = Stage.PREPARE
        toy_learner(n_batches=2, cbs=(callback,)).lr_find(1e-5, 1e-3, 5, show_plot=False)
        assert heard == ["train"] * 5

    def test_nothing_is_recorded_but_the_result(self) -> None:
        learn = toy_learner()
        result = learn.lr_find(show_plot=False)
        assert len(learn.recorder.history) == 0
        assert learn.recorder.lr_find_result is result
        assert learn.total_updates == learn.total_epochs == 0

    def test_a_learner_without_recorder_gets_its_result_all_the_same(self) -> None:
        learn = toy_learner()
        with learn.removed_cbs(type(learn.recorder)):
            result = learn.lr_find(1e-5, 1e-3, 5, show_plot=False)
        assert len(result.losses) == 5
        assert learn.recorder.lr_find_result is None


class TestWithinAFit:
    @staticmethod
    def fit(event: str, *, training: bool) -> tuple[list[Tensor], list[str]]:
        """Fit with a range test in an event; return the weights it ends with and what failed."""
        failed: list[str] = []

        def find(learn: Any) -> None:
            if learn.training is training and learn.n_updates >= 3:
                try:
                    learn.lr_find(1e-4, 1e-2, 12, show_plot=False)
                except RuntimeError as error:
                    failed.append(str(error))

        learn = toy_learner(n_batches=4)
        learn.fit(1, cbs=[Callback(**{event: find})])
        return list(learn.model.parameters()), failed

    @pytest.mark.parametrize("event", ["after_pred", "after_loss", "before_backward"])
    def test_is_refused_between_the_forward_and_the_backward_pass(self, event: str) -> None:
        weights, failed = self.fit(event, training=True)
        assert [f"a range test in {event} would change" in words for words in failed] == [True]
        assert "call lr_find between two updates, as in after_step" in failed[0]
        assert all(map(torch.equal, weights, self.fit("after_fit", training=True)[0]))

    @pytest.mark.parametrize("event", ["before_batch", "after_pred", "after_loss", "after_batch"])
    def test_is_refused_in_a_validation_batch(self, event: str) -> None:
        weights, failed = self.fit(event, training=False)
        assert [words.startswith("gradients are switched off here") for words in failed] == (
            [True] * 4
        )
        assert all(map(torch.equal, weights, self.fit("after_fit", training=True)[0]))

    @pytest.mark.parametrize(
        "event",
        ["before_batch", "after_backward", "before_step", "after_step", "after_batch"],
    )
    def test_runs_at_every_other_event_of_a_batch(self, event: str) -> None:
        weights, failed = self.fit(event, training=True)
        assert failed == []
        assert all(map(torch.equal, weights, self.fit("after_fit", training=True)[0]))

    def test_that_ended_in_an_error_between_the_passes_it_runs_again(self) -> None:
        def fail(learn: Any) -> None:
            raise KeyboardInterrupt

        learn = toy_learner()
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1, cbs=[Callback(after_loss=fail)])
        assert len(learn.lr_find(1e-4, 1e-2, 12, show_plot=False).losses) == 12
