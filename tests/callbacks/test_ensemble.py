import io

import pytest
import torch
from learner_state import LearnerState
from scripted import same, weights
from torch import Tensor, nn

from onecycle import (
    Callback,
    CancelFit,
    GradientAccumulation,
    Learner,
    ParamScheduler,
    Recorder,
    SnapshotEnsemble,
    TensorLoader,
    TorchScheduler,
    accuracy,
    error_rate,
    linear,
    top_k_accuracy,
)
from onecycle.testing import toy_learner


def classifier(n_batches: int = 4) -> Learner:
    """Make a learner that sorts noisy points into three classes, with batch norm and dropout."""
    torch.manual_seed(0)
    x = torch.randn(8 * n_batches, 4)
    y = (x[:, :3] + 0.7 * torch.randn(len(x), 3)).argmax(1)
    layers = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    train = TensorLoader(x, y, batch_size=8, shuffle=True)
    valid = TensorLoader(x, y, batch_size=8)
    model = nn.Sequential(*layers)
    learn = Learner((train, valid), model, nn.functional.cross_entropy, device="cpu", seed=0)
    learn.cbs = [cb for cb in learn.cbs if isinstance(cb, Recorder)]
    return learn


class AtUpdates(Callback):
    """Keeps the weights after some updates."""

    def __init__(self, *updates: int) -> None:
        self.updates, self.kept = updates, []

    def after_step(self, learn: Learner) -> None:
        if learn.n_updates in self.updates:
            self.kept.append(weights(learn))


def fitted() -> tuple[Learner, SnapshotEnsemble]:
    learn, ensemble = classifier(), SnapshotEnsemble()
    learn.fit_sgdr(3, 1, 0.05, cbs=[ensemble])
    return learn, ensemble


def member_probabilities(learn: Learner, ensemble: SnapshotEnsemble) -> list[Tensor]:
    """Predict in one batch, by torch alone."""
    x = torch.cat([xb for xb, _ in learn.dls.valid])
    found = []
    for member in ensemble.members:
        other = classifier().model.eval()
        other.load_state_dict(member)
        with torch.no_grad():
            found.append(other(x).softmax(1))
    return found


# Members


def test_sgdr_gives_the_weights_after_the_last_update_of_each_cycle():
    learn, ensemble, at = classifier(), SnapshotEnsemble(), AtUpdates(4, 12, 28)
    learn.fit_sgdr(3, 1, 0.05, cbs=[ensemble, at])
    assert len(at.kept) == len(ensemble.members) == 3
    assert all(map(same, ensemble.members, at.kept))
    assert not same(ensemble.members[0], ensemble.members[1])


def test_accumulation_moves_no_end_of_a_cycle():
    learn, ensemble, at = classifier(), SnapshotEnsemble(), AtUpdates(2, 6)
    learn.fit_sgdr(2, 1, 0.05, cbs=[ensemble, at, GradientAccumulation(2)])
    assert len(ensemble.members) == 2
    assert all(map(same, ensemble.members, at.kept))


def test_a_schedule_of_torch_gives_its_cycles_too():
    restarts = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    learn, ensemble, at = classifier(), SnapshotEnsemble(), AtUpdates(4, 8, 12)
    scheduler = TorchScheduler(lambda opt: restarts(opt, T_0=4))
    learn.fit(3, 0.05, cbs=[scheduler, ensemble, at])
    assert len(ensemble.members) == 3
    assert all(map(same, ensemble.members, at.kept))


def test_one_cycle_and_a_constant_rate_give_one_member():
    learn, ensemble = classifier(), SnapshotEnsemble()
    learn.fit_one_cycle(3, 0.05, moms=False, cbs=[ensemble])
    assert len(ensemble.members) == 1
    assert same(ensemble.members[0], weights(learn))
    learn.fit(2, cbs=[ensemble, ParamScheduler({"lr": linear(0.03, 0.03)})])
    assert len(ensemble.members) == 1
    assert same(ensemble.members[0], weights(learn))


def test_a_cancelled_fit_gives_no_member_for_the_cycle_it_breaks_off():
    def cancel(learn: Learner) -> None:
        if learn.n_updates == 14:
            raise CancelFit("enough")

    learn, ensemble = classifier(), SnapshotEnsemble()
    learn.fit_sgdr(3, 1, 0.05, cbs=[ensemble, Callback(after_step=cancel)])
    assert len(ensemble.members) == 2


def test_members_are_copies_on_the_cpu_that_later_training_does_not_change():
    learn, ensemble = fitted()
    before = [{name: value.clone() for name, value in m.items()} for m in ensemble.members]
    learn.fit(1, 0.1)
    assert all(map(same, ensemble.members, before))
    assert {value.device.type for m in ensemble.members for value in m.values()} == {"cpu"}


def test_training_is_bit_for_bit_as_without_an_ensemble():
    with_it, without = classifier(), classifier()
    for learn, cbs in ((with_it, [SnapshotEnsemble()]), (without, [])):
        torch.manual_seed(1)
        learn.fit_sgdr(2, 1, 0.05, cbs=cbs)
    assert same(weights(with_it), weights(without))


# Predictions


def test_predictions_are_the_mean_of_the_members_probabilities():
    learn, ensemble = fitted()
    expected = torch.stack(member_probabilities(learn, ensemble)).mean(0)
    found = ensemble.get_preds(learn)
    torch.testing.assert_close(found.preds, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.targets, torch.cat([yb for _, yb in learn.dls.valid]))
    assert type(found) is type(learn.get_preds())
    # Negative control: neither the last member alone nor the mean of scores gives that.
    assert not torch.allclose(learn.get_preds().preds.softmax(1), expected, atol=1e-3)


def test_a_shuffled_loader_gives_every_member_the_same_order():
    learn, ensemble = fitted()
    found = ensemble.get_preds(learn, learn.dls.train)
    assert torch.equal(found.targets, learn.get_preds(learn.dls.train).targets)


def test_predicting_and_measuring_leave_the_learner_as_it_was_bit_for_bit():
    learn, ensemble = fitted()
    learn.model.train()
    before = LearnerState(learn)
    ensemble.get_preds(learn)
    ensemble.evaluate(learn, learn.dls.train)
    assert before.changes(LearnerState(learn)) == []
    learn.model.load_state_dict(ensemble.members[0])  # negative control
    assert before.changes(LearnerState(learn)) != []


def test_an_error_while_predicting_leaves_the_learners_own_weights():
    learn, ensemble = fitted()
    before = weights(learn)
    with pytest.raises(RuntimeError):
        ensemble.get_preds(learn, [(torch.zeros(8, 5), torch.zeros(8))])
    assert same(weights(learn), before)


# The report


def test_the_report_compares_the_ensemble_with_its_best_member():
    learn, ensemble = fitted()
    targets = torch.cat([yb for _, yb in learn.dls.valid])
    each = member_probabilities(learn, ensemble)
    expected = [(probs.argmax(1) == targets).float().mean().item() for probs in each]
    together = (sum(each).argmax(1) == targets).float().mean().item()
    report = ensemble.evaluate(learn)
    assert report.metric == "accuracy"
    assert report.members == pytest.approx(expected)
    assert report.ensemble == pytest.approx(together)
    assert report.gain == pytest.approx(together - max(expected))
    wrong = ensemble.evaluate(learn, metric=error_rate)
    assert wrong.gain == pytest.approx(report.gain)  # less is better, and says the same
    assert wrong.ensemble == pytest.approx(1 - together)


def test_the_report_prints_as_a_table():
    learn, ensemble = fitted()
    lines = str(ensemble.evaluate(learn, metric=accuracy)).splitlines()
    names = [line.split()[0] for line in lines]
    assert names == ["accuracy", *["member"] * 3, "ensemble", "gain"]
    wide = str(ensemble.evaluate(learn, metric=top_k_accuracy(2))).splitlines()
    assert len({len(line) for line in lines}) == len({len(line) for line in wide}) == 1


# Restart, and what is refused


@pytest.mark.parametrize("loaded", [True, False])
def test_members_and_the_end_of_a_cycle_survive_a_restart(loaded):
    learn, first, file = classifier(), SnapshotEnsemble(), io.BytesIO()

    def save(learn: Learner) -> None:
        if learn.n_updates == 12:  # the second cycle is done, and its member not yet taken
            torch.save(first.state_dict(), file)

    learn.fit_sgdr(3, 1, 0.05, cbs=[first, Callback(after_step=save)])
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = SnapshotEnsemble()
    load = Callback(before_train=lambda learn: second.load_state_dict(state))
    classifier().fit(1, 0.05, cbs=[second, load] if loaded else [second])
    assert len(second.members) == (3 if loaded else 1)
    if loaded:
        assert same(second.members[0], first.members[0])


def test_an_ensemble_without_a_member_says_what_to_do():
    with pytest.raises(ValueError, match="pass it to a fit"):
        SnapshotEnsemble().get_preds(classifier())


def test_predictions_that_are_no_scores_of_classes_are_refused():
    learn, ensemble = toy_learner(), SnapshotEnsemble()
    learn.fit(1, cbs=[ensemble])
    with pytest.raises(ValueError, match=r"two classes or more; got \(64, 1\)"):
        ensemble.get_preds(learn)


class Turning:
    """A loader that gives other targets each time."""

    turn = 0

    def __iter__(self):
        self.turn += 1
        return iter([(torch.zeros(8, 4), torch.full((8,), self.turn))])


def test_a_loader_that_gives_other_targets_each_time_is_refused():
    learn, ensemble = fitted()
    with pytest.raises(ValueError, match="does not shuffle"):
        ensemble.get_preds(learn, Turning())
