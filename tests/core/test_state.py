"""What a callback reads on the learner, and what a person's own learner may override."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from onecycle import Callback, Learner, TensorLoader
from onecycle.testing import toy_learner


def test_a_learner_that_has_not_run_stands_at_nothing():
    learn = toy_learner()
    numbers = ("epoch", "iter", "n_updates", "n_skipped", "total_updates", "total_epochs")
    assert [getattr(learn, name) for name in (*numbers, "batches_in_window", "n_epoch")] == [0] * 8
    unknown = ("n_iter", "n_updates_planned", "n_updates_scheduled", "steps_per_epoch")
    unknown += ("max_updates", "rng", "stop_reason", "running", "batch", "xb", "yb", "pred", "loss")
    unknown += ("loss_grad", "update_loss")
    assert [getattr(learn, name) for name in unknown] == [None] * len(unknown)
    assert learn.batches_per_update == 1
    assert (learn.training, learn.is_cancelled, learn.event) == (False, False, "")
    assert learn.frozen_norms == learn.eval_parts == []
    assert learn.dl is learn.dls.train


def test_the_share_of_a_fit_that_is_done_counts_its_batches():
    shares, learn = [], toy_learner(4)
    look = Callback(before_batch=lambda learn: shares.append(learn.pct_train))
    look.during = "train"
    learn.fit(2, cbs=[look])
    assert shares == [i / 8 for i in range(8)]


def test_the_share_of_a_fit_that_its_updates_end_is_the_position_of_its_schedules():
    shares, learn = [], toy_learner(4)
    look = Callback(before_batch=lambda learn: shares.append((learn.pct_train, learn.pos)))
    look.during = "train"
    learn.fit(None, max_updates=6, cbs=[look])
    assert shares == [(i / 5, i / 5) for i in range(6)]


def test_the_updates_that_are_left_count_those_made_and_those_skipped():
    learn = toy_learner()
    assert learn.updates_left() is None
    learn.max_updates = 10
    assert learn.updates_left() == 10
    learn.n_updates, learn.n_skipped = 4, 3
    assert learn.updates_left() == 3
    learn.n_updates = 9
    assert learn.updates_left() == 0


@pytest.mark.parametrize(
    ("made", "planned", "position"), [(0, 5, "0"), (1, 5, "0"), (3, 5, "0.5"), (0, 1, "0")]
)
def test_a_schedule_that_fell_short_is_told_with_the_position_of_its_last_update(
    made, planned, position
):
    learn = toy_learner()
    learn.n_updates, learn.n_updates_planned, learn.n_skipped = made, planned, 2
    said = f"{made} of {planned} planned updates were made, 2 skipped: the schedule ended at "
    assert learn.shortfall() == f"{said}position {position}"


@pytest.mark.parametrize(("made", "planned"), [(5, 5), (6, 5), (5, None)])
def test_a_schedule_that_reached_its_end_or_has_none_is_not_told(made, planned):
    learn = toy_learner()
    learn.n_updates, learn.n_updates_planned = made, planned
    assert learn.shortfall() == ""


@pytest.mark.parametrize(
    "returned",
    [lambda loss: {"loss": loss, "more": 1}, lambda loss: SimpleNamespace(loss=loss), torch.clone],
    ids=["in a mapping", "as an attribute", "alone"],
)
def test_a_model_may_return_its_own_loss(returned):
    class SelfMade(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            return returned(F.mse_loss(self.layer(x), x[:, :1]))

    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = SelfMade()
    first = F.mse_loss(model.layer(x[:4]), x[:4, :1]).item()
    learn = Learner((TensorLoader(x, batch_size=4), None), model, device="cpu", seed=0)
    with learn.no_bar():
        learn.fit(10, 0.05)
    losses = learn.recorder.history["train_loss"].values
    assert losses[0] == pytest.approx(first, rel=1e-6)
    assert losses[-1] < losses[0] / 2


def test_what_is_overridden_gets_the_batch_and_the_prediction():
    seen = []

    class Own(Learner):
        def predict_batch(self, batch):
            assert batch is self.batch
            return self.model(batch["x"])

        def compute_loss(self, pred, batch):
            assert pred is self.pred
            assert batch is self.batch
            seen.append(self.training)
            return F.mse_loss(pred, batch["y"])

    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    batches = [{"x": x[i : i + 4], "y": x[i : i + 4, :1]} for i in (0, 4)]
    torch.manual_seed(0)
    learn = Own((batches, batches[:1]), nn.Linear(4, 1), device="cpu", seed=0)
    with learn.no_bar():
        learn.fit(1)
    assert (seen.count(True), seen[-1]) == (2, False)


def test_shapes_that_broadcast_are_told_of_at_the_first_batch_of_a_learners_life(caplog):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    train = TensorLoader(x, x.sum(1), batch_size=4)  # targets of shape (4,), predictions (4, 1)
    told = []

    def squared(pred, target):
        return (pred - target).pow(2).mean()

    learn = Learner((train, None), nn.Linear(4, 1), squared, device="cpu", seed=0)
    count = Callback(after_loss=lambda learn: told.append("broadcast" in caplog.text))
    with learn.no_bar():
        learn.fit(1, cbs=[count])
        learn.fit(1)
    assert told == [True] * 4
    assert sum("broadcast" in message for message in caplog.messages) == 1
