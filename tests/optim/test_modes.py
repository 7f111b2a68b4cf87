"""Parts that stay in evaluation mode, and optimizers that have two modes themselves."""

from functools import partial

import pytest
import torch
from learner_state import LearnerState
from torch import nn
from torch.nn.functional import mse_loss

from onecycle import SWA, Callback, Checkpoint, Learner
from onecycle.optim.modes import put_in_training
from onecycle.testing import toy_learner


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)), nn.Linear(8, 1)
    )


def learner(model, valid=True, **options):
    toy = toy_learner()
    batches = [*toy.dls.valid]
    dls = (batches, batches if valid else None)
    learn = Learner(dls, model, mse_loss, device="cpu", seed=0, **options)
    learn.cbs = toy.cbs
    return learn


def flags(model):
    return [part.training for part in model.modules()]


# Parts of a model ---------------------------------------------------------------------------


@pytest.mark.parametrize("valid", [True, False])
def test_a_part_in_evaluation_mode_stays_there_in_every_pass_of_every_fit(valid, caplog):
    model, seen = normed(), []
    model[0].requires_grad_(False).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learn = learner(model, valid)
    watch = Callback(before_batch=lambda learn: seen.append(flags(model)) if learn.training else 0)
    learn.fit(2, cbs=[watch])
    learn.fit(1, cbs=[watch])
    assert seen == [[True, False, False, False, False, True]] * 24
    changed = [name for name, value in model.state_dict().items() if (value != before[name]).any()]
    assert changed == ["1.weight", "1.bias"]
    assert len(caplog.messages) == 1
    assert "in evaluation mode, and so it stays in training: '0'" in caplog.text


def test_training_equals_a_loop_by_hand_that_does_the_same():
    ours, theirs = normed(), normed()
    for model in (ours, theirs):
        model[0][1].eval()
    learn = learner(ours, opt_func=partial(torch.optim.SGD, fused=False), lr=0.1)
    torch.manual_seed(1)
    learn.fit(2)
    opt = torch.optim.SGD(theirs.parameters(), lr=0.1)
    torch.manual_seed(1)
    for _ in range(2):
        theirs.train()
        theirs[0][1].eval()
        for xb, yb in learn.dls.train:
            opt.zero_grad()
            mse_loss(theirs(xb), yb).backward()
            opt.step()
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_a_model_in_evaluation_mode_as_a_whole_trains_in_training_mode(caplog):
    model = normed().eval()
    learner(model, valid=False).fit(1)
    assert flags(model) == [True] * 6
    assert caplog.messages == []


def test_a_new_head_on_a_model_in_evaluation_mode_is_no_wish_and_that_is_said_once(caplog):
    model = normed().eval()
    model[1] = nn.Linear(8, 1)
    learn = learner(model, valid=False)
    learn.fit(2)
    learn.fit(1)
    assert flags(model) == [True] * 6
    assert len(caplog.messages) == 1
    assert "but for '1': all of it is put in training mode" in caplog.text


def test_training_mode_by_hand_ends_it():
    model = normed()
    model[0].eval()
    learn = learner(model)
    learn.fit(1)
    model.train()
    learn.fit(1)
    assert model[0][1].num_batches_tracked == 8


def test_what_trains_within_a_part_in_evaluation_mode_goes_on():
    model = normed()
    model[0].eval()
    model[0][2].train()
    kept = put_in_training(model, [], [])
    assert flags(model) == [True, False, False, False, True, True]
    model.eval()
    put_in_training(model, kept, [])
    assert flags(model) == [True, False, False, False, True, True]


def test_a_train_method_of_the_models_own_is_no_hand(caplog):
    class Own(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[0][1].training = False
            return self

    model = Own(*normed())
    learner(model, valid=False).fit(2)
    assert flags(model) == [True, True, True, False, True, True]
    assert caplog.messages == []


def test_what_freeze_to_put_in_evaluation_mode_thaws_and_what_a_person_did_does_not():
    def halves(model):
        return [model[0].parameters(), model[1].parameters()]

    for by_hand in (False, True):
        learn = learner(normed(), splitter=halves)
        if by_hand:
            learn.model[0][1].eval()
        learn.freeze(train_bn=False)
        learn.fit(1)
        assert learn.model[0][1].num_batches_tracked == 0
        learn.unfreeze()
        learn.fit(1)
        assert learn.model[0][1].num_batches_tracked == (0 if by_hand else 8)


def test_an_average_leaves_the_statistics_of_such_a_part_alone():
    model = normed()
    model[0][1].eval()
    model[0][1].running_mean.fill_(0.25)
    learner(model).fit(2, cbs=[SWA(0.0)])
    assert model[0][1].running_mean.tolist() == [0.25] * 8


def test_a_range_test_keeps_and_leaves_them():
    model, seen = normed(), []
    model[0].eval()
    learn = learner(model)
    model.register_forward_hook(lambda *_: seen.append(flags(model)))
    before = LearnerState(learn)
    learn.lr_find(1e-5, 1e-3, 10, show_plot=False)
    assert before.changes(LearnerState(learn)) == []
    assert seen == [[True, False, False, False, False, True]] * 10


def test_statistics_of_frozen_layers_that_move_are_told_once(caplog):
    model = normed()
    model[0].requires_grad_(False)
    learn = learner(model)
    learn.fit(2)
    learn.fit(1)
    assert len(caplog.messages) == 1
    assert "frozen, but not in evaluation mode: '0.1'" in caplog.text
    assert model[0][1].num_batches_tracked == 24


# Optimizers with modes ----------------------------------------------------------------------


class Averaged(torch.optim.Optimizer):
    """Trains at one point and is evaluated at a mix of it and of a mean, up to rounding.

    As schedule-free optimizers do; the flag is in the group, or a field that no state has.
    """

    def __init__(self, params, lr=0.1, *, in_group=True):
        super().__init__(params, {"lr": lr} | ({"train_mode": False} if in_group else {}))
        self.mode = False

    def _is_training(self):
        return self.param_groups[0].get("train_mode", self.mode)

    @torch.no_grad()
    def _switch(self, mode):
        if mode != self._is_training():
            for group in self.param_groups:
                for p in group["params"]:
                    mean = self.state[p].setdefault("mean", p.clone())
                    p.lerp_(mean, 0.5 if not mode else 1 - 1 / 0.5)
                if "train_mode" in group:
                    group["train_mode"] = mode
            self.mode = mode

    def train(self):
        self._switch(True)

    def eval(self):
        self._switch(False)

    @torch.no_grad()
    def step(self, closure=None):
        assert self._is_training()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)
                self.state[p]["mean"].lerp_(p, 0.1)


def averaged_learner(valid=True, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    return learner(model, valid, opt=Averaged(model.parameters(), **options))


def test_it_is_switched_as_in_a_loop_by_hand():
    learn, by_hand, valid = averaged_learner(), averaged_learner(), []
    learn.fit(3, 0.1)
    model, opt = by_hand.model, by_hand.opt
    for _ in range(3):
        opt.train()
        for xb, yb in learn.dls.train:
            opt.zero_grad()
            mse_loss(model(xb), yb).backward()
            opt.step()
        opt.eval()
        with torch.no_grad():
            valid.append(sum(mse_loss(model(xb), yb).item() for xb, yb in learn.dls.valid) / 8)
    assert all(map(torch.equal, learn.model.parameters(), model.parameters()))
    assert learn.recorder.history["valid_loss"].values.tolist() == pytest.approx(valid, rel=1e-6)
    assert learn.validate()["valid_loss"] == learn.recorder.history["valid_loss"].values[-1]


@pytest.mark.parametrize("how", ["ends", "is cancelled", "fails"])
def test_after_a_fit_it_is_in_evaluation_mode(how):
    learn = averaged_learner(valid=False)

    def end(learn):
        if how != "ends" and learn.n_updates == 3:
            raise KeyboardInterrupt if how == "fails" else learn_cancel

    from onecycle import CancelFit

    learn_cancel = CancelFit("enough")
    try:
        learn.fit(1, cbs=[Callback(after_step=end)])
    except KeyboardInterrupt:
        assert how == "fails"
    assert not learn.opt._is_training()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda learn, path: learn.validate(),
        lambda learn, path: learn.get_preds(inference_mode=True),
        lambda learn, path: learn.lr_find(1e-5, 1e-3, 10, show_plot=False, valid=True),
        lambda learn, path: learn.save(path),
    ],
    ids=["validate", "get_preds", "lr_find", "save"],
)
def test_what_leaves_a_learner_as_it_was_does_so_to_the_bit(call, training, tmp_path):
    learn = averaged_learner()
    learn.fit(1)
    (learn.opt.train if training else learn.opt.eval)()
    before = LearnerState(learn)
    call(learn, tmp_path / "a")
    assert before.changes(LearnerState(learn)) == []


def test_what_is_measured_is_measured_in_evaluation_mode():
    learn = averaged_learner()
    learn.fit(1)
    expected = learn.validate()
    learn.opt.train()
    assert learn.validate()["valid_loss"] == pytest.approx(expected["valid_loss"], rel=1e-5)


@pytest.mark.parametrize("in_group", [True, False])
def test_a_file_has_the_weights_of_evaluation_mode(in_group, tmp_path):
    learn = averaged_learner(in_group=in_group)
    learn.fit(1)
    learn.opt.train()
    learn.save(tmp_path / "a")
    other = averaged_learner(in_group=in_group)
    other.opt.train()
    other.load(tmp_path / "a")
    assert not other.opt._is_training()
    learn.opt.eval()
    for ours, theirs in zip(other.model.parameters(), learn.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    learn.fit(1)
    other.fit(1)
    for ours, theirs in zip(other.model.parameters(), learn.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("every", ["3 updates", "1 epoch"])
@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("in_group", [True, False])
def test_a_resumed_fit_ends_in_the_same_bits(every, valid, in_group, tmp_path):
    def run(folder, **options):
        learn = averaged_learner(valid, in_group=in_group)
        learn.fit(2, cbs=[Checkpoint(tmp_path / folder, every, keep=9)], **options)
        return [*learn.model.parameters()]

    whole = run("whole")
    first, *_ = sorted((tmp_path / "whole").iterdir())
    assert all(map(torch.equal, run("resumed", resume=first), whole))


def test_an_interrupt_in_between_leaves_every_part_in_the_mode_it_had():
    class Interrupts(nn.Linear):
        def train(self, mode=True):
            if mode:
                raise KeyboardInterrupt
            return super().train(mode)

    model = nn.Sequential(nn.Dropout(), Interrupts(2, 2), nn.Dropout(), nn.Dropout())
    model.eval()
    model[3].training = True
    before = [part.training for part in model.modules()]
    with pytest.raises(KeyboardInterrupt):
        put_in_training(model, [], [])
    assert [part.training for part in model.modules()] == before
