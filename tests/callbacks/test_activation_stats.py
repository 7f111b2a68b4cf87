import numpy as np
import pytest
import torch
from image_learner import image_learner
from torch import nn

from onecycle import ActivationStats, Callback, Checkpoint, GradientAccumulation, Learner
from onecycle.callbacks import activation_stats
from onecycle.callbacks.activation_stats import BINS, FARTHEST
from onecycle.testing import toy_learner


class Outputs(Callback):
    """Keeps by update all that comes out of a layer in training, by a hook of its own."""

    during = "train"

    def __init__(self, layer):
        self.layer, self.found = layer, {}

    def before_fit(self, learn):
        self.learn = learn
        self.hook = learn.model.get_submodule(self.layer).register_forward_hook(self.see)

    def see(self, module, args, output):
        if module.training:
            part = output.detach().flatten()
            self.found.setdefault(self.learn.total_updates + 1, []).append(part)

    def cleanup_fit(self, learn):
        self.hook.remove()

    def values(self):
        return {update: torch.cat(parts).numpy() for update, parts in self.found.items()}


def test_mean_spread_and_dead_share_are_those_of_all_that_went_into_an_update():
    learn, stats, outputs = toy_learner(n_batches=12), ActivationStats(every=2), Outputs("1")
    learn.fit(2, 0.05, cbs=[stats, outputs, GradientAccumulation(3)])
    values = outputs.values()
    assert stats.names == ["1"]
    assert stats.updates.tolist() == [2, 4, 6, 8]
    for row, update in enumerate(stats.updates):
        x = values[update]
        assert len(x) == 3 * 8 * 8
        assert stats.means[row, 0] == pytest.approx(x.mean(), rel=1e-5)
        assert stats.stds[row, 0] == pytest.approx(x.std(), rel=1e-5)
        assert stats.dead[row, 0] == pytest.approx((np.abs(x) <= 0.05).mean(), rel=1e-6)


def test_histogram_is_that_of_numpy_with_what_is_far_out_in_the_last_bins():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) ** 5
    x[:3] = torch.tensor([1e6, -1e6, 2e5])
    found = activation_stats._Call.of(x).row()[3:].numpy()
    x = x.numpy()
    scaled = np.sign(x) * np.log1p(np.abs(x))
    limit = np.log1p(FARTHEST)
    counts, _ = np.histogram(np.clip(scaled, -limit, limit), BINS, (-limit, limit))
    np.testing.assert_allclose(found, counts / 5000, atol=1e-3)
    assert found.sum() == pytest.approx(1)
    assert found[-1] >= 2 / 5000
    assert found[0] >= 1 / 5000


def test_a_large_output_is_sampled_in_every_channel():
    x = torch.zeros(8, 64, 64, 64)
    x[:, 5] = 2.0
    row = activation_stats._Call.of(x).row()
    bins = row[3:]
    assert row[0].item() == pytest.approx(2 / 64, rel=1e-4)
    assert float(bins.max()) == pytest.approx(63 / 64, abs=2e-3)
    assert float(bins.sort().values[-2]) == pytest.approx(1 / 64, abs=2e-3)


def test_a_layer_that_is_called_twice_has_both_calls_in_one_measurement():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.last = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)

        def forward(self, x):
            return self.last(self.act(3 * self.act(self.first(x)) + 1))

    toy = toy_learner()
    learn = Learner(toy.dls, Twice(), nn.functional.mse_loss, device="cpu", seed=0)
    stats, outputs = ActivationStats(every=1), Outputs("act")
    with learn.no_bar():
        learn.fit(1, cbs=[stats, outputs])
    for row, update in enumerate(stats.updates):
        x = outputs.values()[update]
        assert len(x) == 2 * 8 * 8
        assert stats.means[row, 0] == pytest.approx(x.mean(), rel=1e-4)
        assert stats.stds[row, 0] == pytest.approx(x.std(), rel=1e-4)


def test_layers_are_those_that_are_named_and_else_activations_or_those_with_weights():
    stats = ActivationStats(["2", "0"], every=1)
    toy_learner().fit(1, cbs=[stats])
    assert (stats.names, stats.means.shape) == (["2", "0"], (8, 2))
    stats = ActivationStats(every=1)
    image_learner().fit(1, cbs=[stats])
    assert stats.names == ["0", "3"]  # it has no activation: its convolution and its linear layer


def test_a_layer_that_was_not_called_has_nan():
    learn, stats = toy_learner(), ActivationStats(["1", "3"], every=1)
    learn.model.append(nn.Identity())
    learn.predict_batch = lambda batch: learn.model[:3](learn.xb)
    learn.fit(1, cbs=[stats])
    assert np.isnan(stats.means[:, 1]).all()
    assert np.isfinite(stats.means[:, 0]).all()


@pytest.mark.parametrize(
    ("layers", "words"), [(["1", "9"], "has no layer '9'"), ([], "give layers=")]
)
def test_a_layer_that_is_not_there_is_refused_before_the_first_batch(layers, words):
    learn = toy_learner()
    with pytest.raises(ValueError, match=words):
        learn.fit(1, cbs=[ActivationStats(layers)])
    assert learn.total_updates == 0


def test_hooks_are_gone_after_an_error_and_training_has_the_same_bits():
    def fail(learn):
        raise RuntimeError("on purpose")

    learn, plain = toy_learner(), toy_learner()
    with pytest.raises(RuntimeError, match="on purpose"):
        learn.fit(1, cbs=[ActivationStats(), Callback(after_backward=fail)])
    assert not any(module._forward_hooks for module in learn.model.modules())
    learn, plain = toy_learner(), toy_learner()
    learn.fit(2, cbs=[ActivationStats(every=1)])
    plain.fit(2)
    assert all(map(torch.equal, learn.model.parameters(), plain.model.parameters()))


def test_a_resumed_fit_goes_on_with_what_was_measured(tmp_path):
    def fit(*cbs, **options):
        learn, stats = toy_learner(n_batches=5), ActivationStats(every=2)
        learn.fit(2, cbs=[stats, Checkpoint(tmp_path / "c", "3 updates"), *cbs], **options)
        return stats

    def fail(learn):
        if learn.n_updates == 7:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fit(Callback(after_step=fail))
    resumed = fit(resume=tmp_path / "c")
    whole = ActivationStats(every=2)
    toy_learner(n_batches=5).fit(2, cbs=[whole])
    assert resumed.updates.tolist() == whole.updates.tolist()
    np.testing.assert_array_equal(resumed.histograms, whole.histograms)
    np.testing.assert_array_equal(resumed.stds, whole.stds)


def test_values_are_read_in_blocks_alone(monkeypatch):
    monkeypatch.setattr(activation_stats, "_BLOCK", 3)
    stats, waiting = ActivationStats(every=1), []
    look = Callback(after_batch=lambda learn: waiting.append(len(stats._pending)), during="train")
    toy_learner(n_batches=7).fit(1, cbs=[stats, look])
    assert waiting == [1, 2, 0, 1, 2, 0, 1]
    assert len(stats.means) == 7


def test_counting_goes_on_where_algorithms_are_to_be_deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with activation_stats._counting():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_pictures_have_a_line_for_each_layer_and_a_column_for_each_update():
    stats = ActivationStats(["0", "1"], every=2)
    with pytest.raises(ValueError, match="nothing was measured"):
        stats.plot()
    toy_learner().fit(1, cbs=[stats])
    ax = stats.plot("dead")
    assert [line.get_label() for line in ax.lines] == ["0", "1"]
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), stats.dead[:, 1])
    ax = stats.plot_histogram("1")
    np.testing.assert_allclose(
        ax.collections[0].get_array().T.reshape(4, BINS), stats.histograms[:, 1], rtol=1e-6
    )
    assert ax.get_ylabel() == "activations of layer 1"
    with pytest.raises(ValueError, match="layer must be one of"):
        stats.plot_histogram("7")


class Others:
    """Stands in for processes: adds what another one has."""

    def __init__(self, theirs):
        self.theirs = theirs

    def add_up(self, sums):
        sums[0] += self.theirs
        return sums


@pytest.mark.parametrize("cut", [1, 20, 64])
def test_of_several_processes_values_are_measured_as_if_one_had_them_all(cut):
    values = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    whole = activation_stats._Call.of(values).row()
    mine = {0: activation_stats._Call.of(values[:cut])}
    theirs = activation_stats._Call.of(values[cut:]).sums() if cut < 64 else 0.0
    rows = activation_stats._rows_of_all(mine, 2, Others(theirs), torch.device("cpu"))
    assert torch.allclose(rows[0], whole, atol=1e-6)
    assert rows[1].isnan().all()  # a layer that none called
