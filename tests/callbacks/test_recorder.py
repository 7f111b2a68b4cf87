import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onecycle import Callback, CancelBatch, CancelFit, CancelStep, CancelValid, Recorder
from onecycle.testing import toy_learner


def history(learn):
    return learn.recorder.history


def test_every_update_is_recorded_once_and_the_count_begins_at_one():
    learn = toy_learner(3)
    learn.fit(2)
    for name in ("train_loss", "lr", "momentum"):
        assert history(learn)[name].updates.tolist() == [1, 2, 3, 4, 5, 6]
        assert history(learn)[name].values.shape == (6,)
    for name in ("valid_loss", "mse"):
        assert history(learn)[name].updates.tolist() == [3, 6]


def test_the_record_goes_on_over_several_fits():
    learn = toy_learner(3)
    learn.fit(1, lr=0.1)
    learn.fit(2, lr=0.2)
    assert history(learn)["lr"].updates.tolist() == list(range(1, 10))
    assert history(learn)["lr"].values.tolist() == [0.1] * 3 + [0.2] * 6
    assert history(learn)["valid_loss"].updates.tolist() == [3, 6, 9]


def test_the_recorded_loss_is_that_of_the_batch_before_the_update():
    learn, losses = toy_learner(4), []

    def compute(learn):
        with torch.no_grad():
            losses.append(F.mse_loss(learn.model(learn.xb), learn.yb).item())

    spy = Callback(before_batch=compute)
    spy.during = "train"
    learn.fit(1, cbs=[spy])
    assert history(learn)["train_loss"].values.tolist() == losses


def test_the_recorded_rate_is_the_one_that_made_the_update():
    learn = toy_learner(3, opt_func=torch.optim.SGD)
    moved, before = [], {}
    weight = learn.model[2].bias
    learn.fit_one_cycle(
        1,
        0.1,
        moms=False,
        cbs=[
            Callback(
                before_step=lambda learn: before.update(w=weight.item(), g=weight.grad.item()),
                after_step=lambda learn: moved.append((before["w"] - weight.item()) / before["g"]),
            )
        ],
    )
    assert history(learn)["lr"].values == pytest.approx(moved, rel=1e-2)


def test_validation_is_the_mean_over_samples_whatever_the_batches():
    learn = toy_learner(2)
    x, y = learn.dls.valid.tensors
    learn.dls.valid = [(x[:1], y[:1]), (x[1:], y[1:])]
    learn.fit(1)
    with torch.no_grad():
        expected = F.mse_loss(learn.model(x), y).item()
    assert history(learn)["valid_loss"].values == pytest.approx([expected], rel=1e-6)
    assert history(learn)["mse"].values == pytest.approx([expected], rel=1e-6)


def test_several_groups_have_a_column_each():
    learn = toy_learner(3, splitter=lambda model: [model[0].parameters(), model[2].parameters()])
    learn.fit(2, lr=[0.1, 0.2])
    assert history(learn)["lr"].values.tolist() == [[0.1, 0.2]] * 6
    assert history(learn)["momentum"].values.shape == (6, 2)
    assert history(learn)["train_loss"].values.shape == (6,)


def test_an_optimizer_without_momentum_has_no_such_series():
    learn = toy_learner(2, opt_func=torch.optim.Adagrad)
    learn.fit(1)
    with pytest.raises(KeyError, match=r"'momentum'.*train_loss, lr, valid_loss, mse"):
        history(learn)["momentum"]


def test_without_validation_there_is_no_valid_loss():
    learn = toy_learner(2)
    learn.dls.valid = None
    learn.fit(1)
    assert set(history(learn)) == {"train_loss", "lr", "momentum"}


def test_an_update_that_was_not_made_is_not_recorded():
    def some(learn):
        if learn.iter == 0:
            raise CancelBatch
        if learn.iter == 2:
            raise CancelStep

    learn = toy_learner(4)
    learn.fit(1, cbs=[Callback(before_step=some)])
    assert history(learn)["train_loss"].updates.tolist() == [1, 2]


def test_an_update_that_was_made_is_recorded_whatever_comes_after_it():
    def stop(learn):
        raise CancelFit

    for event in ("after_step", "after_batch"):
        learn = toy_learner(4)
        learn.fit(1, cbs=[Callback(**{event: stop})])
        assert history(learn)["train_loss"].updates.tolist() == [1]


def test_a_validation_pass_that_was_cut_short_records_what_it_saw():
    def stop(learn):
        if learn.iter == 1:
            raise CancelValid

    learn = toy_learner(3)
    canceller = Callback(before_batch=stop)
    canceller.during = "valid"
    learn.fit(1, cbs=[canceller])
    x, y = next(iter(learn.dls.valid))
    with torch.no_grad():
        assert history(learn)["valid_loss"].values == pytest.approx(
            [F.mse_loss(learn.model(x), y).item()]
        )


def test_a_validation_pass_without_a_batch_records_nothing():
    def stop(learn):
        raise CancelValid

    learn = toy_learner(3)
    learn.fit(1, cbs=[Callback(before_validate=stop)])
    assert len(history(learn).get("valid_loss", ())) == 0


def test_the_record_survives_an_error():
    def fail(learn):
        if learn.n_updates == 2:
            raise KeyError

    learn = toy_learner(4)
    with pytest.raises(KeyError):
        learn.fit(1, cbs=[Callback(after_batch=fail)])
    assert history(learn)["train_loss"].updates.tolist() == [1, 2]
    learn.fit(1)
    assert history(learn)["train_loss"].updates.tolist() == [1, 2, 3, 4, 5, 6]


def test_neither_range_test_nor_inference_writes_to_the_record():
    learn = toy_learner(3)
    learn.lr_find(num_it=5, show_plot=False)
    learn.validate()
    learn.get_preds()
    assert not len(history(learn))


def test_recording_changes_no_bit_of_the_training():
    with_record, without = toy_learner(4), toy_learner(4)
    with_record.fit_one_cycle(2, 0.1)
    with without.removed_cbs(Recorder):
        without.fit_one_cycle(2, 0.1)
    for p, q in zip(with_record.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_loss_grad_that_is_rewritten_does_not_change_the_record():
    learn, before = toy_learner(2), []

    def double(learn):
        before.append(learn.loss.item())
        learn.loss_grad = learn.loss_grad * 2

    learn.fit(1, cbs=[Callback(before_backward=double)])
    assert history(learn)["train_loss"].values.tolist() == before


def test_the_record_is_given_back_by_its_state():
    learn, other = toy_learner(3), toy_learner(3)
    learn.fit(1)
    other.recorder.load_state_dict(learn.recorder.state_dict())
    for name in history(learn):
        assert np.array_equal(history(learn)[name].values, history(other)[name].values)
        assert np.array_equal(history(learn)[name].updates, history(other)[name].updates)
    other.total_updates = 3
    other.fit(1)
    assert history(other)["lr"].updates.tolist() == [1, 2, 3, 4, 5, 6]


def test_the_plots_draw_what_was_recorded():
    learn = toy_learner(10)
    learn.fit_one_cycle(2, 0.1)
    loss = learn.recorder.plot_loss()
    assert any(np.array_equal(line.get_xdata(), np.arange(1, 21)) for line in loss.get_lines())
    lrs = history(learn)["lr"].values
    sched = learn.recorder.plot_sched()
    assert any(np.array_equal(line.get_ydata(), lrs) for line in sched.get_lines())
    metric = learn.recorder.plot_metrics()
    assert any(np.array_equal(line.get_xdata(), [10, 20]) for line in metric.figure.axes[0].lines)


def test_any_series_can_be_drawn_by_its_name_each_group_as_a_line():
    learn = toy_learner(5, splitter=lambda model: [[p] for p in model.parameters()])
    learn.recorder.history.series("distance").append(3, 0.5)
    learn.fit(1, slice(1e-3, 1e-2))
    lines = learn.recorder.plot_metrics(names=["distance", "lr"]).lines
    n = history(learn)["lr"].width
    assert [line.get_label() for line in lines] == ["distance", *(f"lr_{g}" for g in range(n))]
    assert np.array_equal(lines[0].get_xydata(), [[3, 0.5]])
    assert np.array_equal(lines[n].get_ydata(), history(learn)["lr"].values[:, n - 1])
    with pytest.raises(KeyError, match="distnce"):
        learn.recorder.plot_metrics(names=["distnce"])
    with pytest.raises(TypeError, match="names must be a list"):
        learn.recorder.plot_metrics(names="lr")


@pytest.mark.parametrize(
    ("n", "remembered"), [(3, 1.05), (21, 1.05), (40, 2), (100, 5), (1000, 50), (3000, 50)]
)
def test_the_loss_is_smoothed_over_50_updates_and_in_short_records_over_a_twentieth(n, remembered):
    learn = toy_learner(2)
    losses = np.random.default_rng(0).normal(2, 1, n)
    series = history(learn).series("train_loss")
    for update, loss in enumerate(losses, 1):
        series.append(update, loss)
    drawn = {line.get_label(): line.get_ydata() for line in learn.recorder.plot_loss().lines}
    share = 1 / remembered
    mean, weight = 0.0, 0.0
    for loss, smoothed in zip(losses, drawn["training, smoothed"], strict=True):
        mean, weight = (1 - share) * mean + share * loss, (1 - share) * weight + share
        assert smoothed == pytest.approx(mean / weight, rel=1e-9)


def test_plots_of_nothing_say_so():
    learn = toy_learner(2, metrics=[])
    learn.fit(1)
    with pytest.raises(ValueError, match="no metric was recorded"):
        learn.recorder.plot_metrics()
    with pytest.raises(ValueError, match="no range test"):
        learn.recorder.plot_lr_find()


def test_each_learner_has_one_recorder_of_its_own():
    mine = Recorder()
    assert toy_learner(cbs=(mine,)).recorder is mine
    first, second = toy_learner(2), toy_learner(2)
    first.fit(1)
    assert len(history(first)["lr"]) == 2
    assert not len(history(second))


def test_the_frame_has_a_row_for_each_update(tmp_path):
    pytest.importorskip("pandas")
    learn = toy_learner(3)
    learn.fit(2)
    assert len(learn.recorder.to_frame()) == 6
    learn.recorder.to_csv(tmp_path / "record.csv")
    assert len((tmp_path / "record.csv").read_text().splitlines()) == 7


def test_the_rows_of_a_record_are_those_of_the_table() -> None:
    learn = toy_learner(n_batches=5)
    learn.fit(2)
    losses, valid, mse = (history(learn)[n].values for n in ("train_loss", "valid_loss", "mse"))
    by_hand = [[losses[5 * i : 5 * i + 5].mean(), valid[i], mse[i]] for i in range(2)]
    np.testing.assert_allclose(learn.recorder.values, by_hand, rtol=1e-12)


def test_a_record_has_a_row_for_each_validation_of_a_fit() -> None:
    learn = toy_learner()
    assert learn.recorder.values == []
    learn.fit(1)
    assert len(learn.recorder.values) == 1
    learn.validate()  # which records nothing
    assert len(learn.recorder.values) == 1
