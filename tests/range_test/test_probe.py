"""A range test that validates: by hand, with nothing left behind."""

import itertools
import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import LearnerState
from scripted_loss import Scripted
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset
from watcher import watcher

from onecycle import Callback, Learner, LRFinder, Stage, TensorLoader, mae
from onecycle.record.smoothing import smooth
from onecycle.testing import toy_learner


class Net(nn.Module):
    """A model whose training draws random numbers, and whose evaluation differs from it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from torch's own generator."""

    def __init__(self, n: int) -> None:
        self.x = torch.linspace(-1, 1, 4 * n).reshape(n, 4)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + 0.1 * torch.randn(4), self.x[i].sum(0, keepdim=True)


def noisy_learner(valid: Any = None, **options: Any) -> Learner:
    torch.manual_seed(0)
    train = DataLoader(Noisy(40), batch_size=8, shuffle=True)
    valid = DataLoader(Noisy(20), batch_size=8, shuffle=True) if valid is None else valid
    given: dict[str, Any] = {"metrics": [mae], "device": "cpu", "seed": 0} | options
    return Learner((train, train if valid == "train" else valid), Net(), mse_loss, **given)


class TestWithValidation:
    def test_losses_and_metrics_are_those_of_the_next_batch_by_hand(self) -> None:
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
        valid = TensorLoader(x, x.sum(1, keepdim=True), batch_size=8)  # batches of 8, 8 and 4
        weights: list[dict[str, Tensor]] = []
        keep = watcher(after_step=lambda learn: weights.append(deepcopy(learn.model.state_dict())))
        result = noisy_learner(valid, cbs=[keep]).lr_find(
            1e-4, 1.0, 12, show_plot=False, valid=True
        )

        model, losses, errors = Net().eval(), [], []
        for state, (xb, yb) in zip(weights, itertools.cycle(list(valid)), strict=False):
            model.load_state_dict(state)
            with torch.no_grad():
                pred = model(xb)
            losses.append(mse_loss(pred, yb).item())
            errors.append((pred - yb).abs().mean().item())
        assert len(losses) == 12
        assert result.valid_losses is not None
        assert result.valid_losses.tolist() == losses
        assert list(result.metrics) == ["mae"]
        assert result.metrics["mae"].tolist() == errors

    @pytest.mark.parametrize("valid", [None, "train"], ids=["own loader", "training loader"])
    def test_does_not_change_a_bit_of_the_training_losses(self, valid: Any) -> None:
        alone = noisy_learner(valid).lr_find(1e-4, 1.0, 20, show_plot=False)
        both = noisy_learner(valid).lr_find(1e-4, 1.0, 20, show_plot=False, valid=True)
        assert both.losses.tolist() == alone.losses.tolist()
        assert both.suggestions == alone.suggestions
        assert both.stop_reason == alone.stop_reason
        assert alone.valid_losses is None
        assert alone.metrics == {}

    def test_training_losses_would_show_a_number_that_validation_drew(self) -> None:
        draw = watcher(after_step=lambda learn: torch.rand(1))
        alone = noisy_learner().lr_find(1e-4, 1.0, 20, show_plot=False)
        moved = noisy_learner(cbs=[draw]).lr_find(1e-4, 1.0, 20, show_plot=False)
        assert moved.losses.tolist() != alone.losses.tolist()

    @pytest.mark.parametrize("valid", [None, "train"], ids=["own loader", "training loader"])
    def test_leaves_nothing_behind(self, valid: Any) -> None:
        learn = noisy_learner(valid)
        learn.fit(1)
        learn.model.body[1].eval()
        before = LearnerState(learn)
        learn.lr_find(1e-4, 1.0, 12, show_plot=False, valid=True)
        assert before.changes(LearnerState(learn)) == []

    def test_leaves_nothing_behind_when_validation_fails(self) -> None:
        learn = noisy_learner([(torch.ones(2, 4), torch.ones(2, 1)), (torch.ones(2, 3), None)])
        before = LearnerState(learn)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            learn.lr_find(1e-4, 1.0, 12, show_plot=False, valid=True)
        assert before.changes(LearnerState(learn)) == []

    def test_puts_the_flag_of_each_module_back_before_the_next_batch(self) -> None:
        flags: list[list[bool]] = []
        watch = watcher(
            before_batch=lambda learn: learn.model.body[1].eval(),
            after_batch=lambda learn: flags.append([m.training for m in learn.model.modules()]),
        )
        learn = noisy_learner(cbs=[watch])
        learn.lr_find(1e-4, 1.0, 3, show_plot=False, valid=True)
        assert flags == [[True, True, True, False, True, True]] * 3

    def test_fires_no_event_of_a_fit(self) -> None:
        heard: list[str] = []
        callback = Callback(
            before_validate=lambda learn: heard.append("before_validate"),
            after_validate=lambda learn: heard.append("after_validate"),
            before_batch=lambda learn: heard.append("train" if learn.training else "valid"),
            after_step=lambda learn: heard.append("step"),
        )
        callback.stage = Stage.PREPARE
        learn = noisy_learner(cbs=[callback])
        learn.lr_find(1e-4, 1.0, 2, show_plot=False, valid=True)
        # The callbacks that prepare batches prepare those of validation too, and no more.
        assert sorted(heard) == ["step", "step", "train", "train", "valid", "valid"]

    @pytest.mark.parametrize("read_every", [1, 8])
    def test_has_a_value_for_each_update_up_to_the_stop(
        self, read_every: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepare = LRFinder.before_fit

        def as_on_a_device(self: LRFinder, learn: Any) -> None:
            prepare(self, learn)
            self._read_every = read_every

        monkeypatch.setattr(LRFinder, "before_fit", as_on_a_device)
        losses = itertools.chain.from_iterable((math.nan if i == 6 else 1.0, 2.0) for i in range(9))
        result = toy_learner(loss_func=Scripted(losses)).lr_find(
            num_it=9, show_plot=False, valid=True
        )
        assert result.stop_reason == "batch 7: the loss is nan"
        assert result.valid_losses is not None
        assert result.valid_losses.tolist() == [2.0] * 7
        assert len(result.metrics["mse"]) == len(result.losses) == 7

    def test_without_a_validation_loader_is_refused(self) -> None:
        learn = toy_learner()
        learn.dls.valid = None
        with pytest.raises(ValueError, match="no validation loader: give it DataLoaders"):
            learn.lr_find(show_plot=False, valid=True)

    def test_of_an_empty_loader_is_refused(self) -> None:
        learn = toy_learner()
        learn.dls.valid = iter(())
        with pytest.raises(ValueError, match="validation loader gave no batch"):
            learn.lr_find(show_plot=False, valid=True)

    def test_is_drawn_smoothed_with_the_metrics_on_a_second_axis(self) -> None:
        result = noisy_learner().lr_find(1e-4, 1.0, 30, show_plot=False, valid=True)
        ax = result.plot()
        twin = next(axes for axes in ax.figure.axes if axes is not ax)
        drawn = {line.get_label(): line.get_ydata() for line in ax.lines}
        assert result.valid_losses is not None
        expected = smooth(result.valid_losses)
        assert np.array_equal(drawn["validation loss, smoothed"], expected)
        (line,) = twin.lines
        assert np.array_equal(line.get_ydata(), smooth(result.metrics["mae"]))
        legend = [text.get_text() for text in ax.get_legend().get_texts()]
        assert {"loss, smoothed", "validation loss, smoothed", "mae"} <= set(legend)
