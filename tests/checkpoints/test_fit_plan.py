"""What differs between two fits is found, whoever says it; what does not differ never is."""

from __future__ import annotations

import logging
import re
from functools import partial

import pytest
import torch
from exported_callbacks import EXPORTED, FOR_IMAGES, maker
from image_learner import image_learner
from torch import nn
from torch.nn.functional import l1_loss, mse_loss
from torch.optim.lr_scheduler import StepLR

from onecycle import (
    EMA,
    SWA,
    AttributeScheduler,
    Callback,
    Checkpoint,
    CutMix,
    Cutout,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    LabelSmoothing,
    Learner,
    MixedPrecision,
    MixUp,
    ParamScheduler,
    PlannedScheduler,
    ProgressiveResizing,
    RandomCrop,
    RandomFlip,
    ReduceLROnPlateau,
    Stage,
    TensorLoader,
    TerminateOnNonFinite,
    TorchScheduler,
    constant,
    cosine,
    linear,
)
from onecycle.checkpoints import fit_files
from onecycle.checkpoints.fit_plan import changes, may_change, plan_of, told
from onecycle.testing import toy_learner


class KilledError(Exception):
    pass


def kill(learn):
    if learn.n_updates == 5:
        raise KilledError


def interrupted(learn, folder, *cbs):
    with pytest.raises(KilledError):
        learn.fit(2, 0.1, cbs=[*cbs, Checkpoint(folder, "2 updates"), Callback(after_step=kill)])


def refusal(learn, folder, *cbs):
    """Return what is said against going on, or nothing; nothing may have changed then."""
    before = [p.clone() for p in learn.model.parameters()]
    try:
        learn.fit(2, 0.1, cbs=cbs, resume=folder)
    except ValueError as error:
        assert learn.total_updates == 0
        assert all(map(torch.equal, before, learn.model.parameters()))
        return str(error)
    return ""


class Prepares(Callback):
    stage = Stage.PREPARE


class AlsoPrepares(Callback):
    stage = Stage.PREPARE


class Scales(Callback):
    stage = Stage.PREPARE

    def __init__(self, factor):
        self.factor = factor

    def plan(self, learn):
        return {"factor": self.factor}


def steps(size):
    return TorchScheduler(lambda opt: StepLR(opt, size, gamma=0.5))


def planned(end):
    return PlannedScheduler(lambda n: {"momentum": linear(0.9, end)})


def smooth(eps):
    return AttributeScheduler(nn.Dropout(0.5), "p", linear(eps, 0.0))


#: What differs, with what it is called in the message. Each is a pair of callbacks.
PAIRS = {
    "max_norm of GradientClip was 1.0 and is 1e-06": (GradientClip(1.0), GradientClip(1e-6)),
    "max_value of GradientClip was None and is": (GradientClip(1.0), GradientClip(max_value=1.0)),
    "the decay of EMA": (EMA(0.9), EMA(0.99)),
    "the start of SWA": (SWA(0.5), SWA(0.6)),
    "the average of the weights was EMA and is SWA": (EMA(), SWA()),
    "the average of the weights was EMA and is None": (EMA(), Callback()),
    "dtype of MixedPrecision": (MixedPrecision("bf16"), MixedPrecision("fp16")),
    "action of TerminateOnNonFinite": (TerminateOnNonFinite(), TerminateOnNonFinite("skip")),
    "patience of EarlyStopping": (EarlyStopping(patience=8), EarlyStopping(patience=9)),
    "monitor of EarlyStopping": (EarlyStopping("mse"), EarlyStopping("valid_loss")),
    "factor of ReduceLROnPlateau": (ReduceLROnPlateau(factor=0.5), ReduceLROnPlateau(factor=0.1)),
    "cooldown of ReduceLROnPlateau": (ReduceLROnPlateau(), ReduceLROnPlateau(cooldown=1)),
    "threshold of ReduceLROnPlateau": (ReduceLROnPlateau(), ReduceLROnPlateau(threshold=0.1)),
    "schedule of AttributeScheduler": (smooth(0.5), smooth(0.4)),
    "the schedule of momentum": (
        ParamScheduler({"momentum": linear(0.9, 0.8)}),
        ParamScheduler({"momentum": cosine(0.9, 0.8)}),
    ),
    "the schedule of momentum was": (planned(0.8), planned(0.7)),
    "of TorchScheduler": (steps(2), steps(3)),
    "every of TorchScheduler": (
        TorchScheduler(partial(StepLR, step_size=1)),
        TorchScheduler(partial(StepLR, step_size=1), every="epoch"),
    ),
    "factor of .*Scales was 1 and is 2": (Scales(1), Scales(2)),
    "the preparing callbacks was .*Prepares": (Prepares(), AlsoPrepares()),
    "the preparing callbacks was .*Scales": (Scales(1), Callback()),
}


def sgd(params, lr):
    return torch.optim.SGD(params, lr=lr, momentum=0.9)


@pytest.mark.parametrize("words", PAIRS)
def test_other_settings_of_a_callback_are_another_fit(words, tmp_path):
    one, other = PAIRS[words]
    interrupted(toy_learner(opt_func=sgd), tmp_path, one)
    assert re.search(words, refusal(toy_learner(opt_func=sgd), tmp_path, other))
    assert refusal(toy_learner(opt_func=sgd), tmp_path, one) == ""  # the control


IMAGE_PAIRS = {
    "alpha of MixUp": (MixUp(0.4), MixUp(0.2)),
    "alpha of CutMix": (CutMix(1.0), CutMix(0.5)),
    "eps of LabelSmoothing": (LabelSmoothing(0.1), LabelSmoothing(0.2)),
    "p of RandomFlip": (RandomFlip(0.5), RandomFlip(0.4)),
    "target of RandomFlip": (RandomFlip(), RandomFlip(target="keep")),
    "padding of RandomCrop": (RandomCrop(1), RandomCrop(2)),
    "size of Cutout": (Cutout(2), Cutout(3)),
    "sizes of ProgressiveResizing": (
        ProgressiveResizing(linear(4, 8)),
        ProgressiveResizing(constant(8)),
    ),
    "multiple of ProgressiveResizing": (
        ProgressiveResizing(linear(4, 8)),
        ProgressiveResizing(linear(4, 8), multiple=2),
    ),
}


@pytest.mark.parametrize("words", IMAGE_PAIRS)
def test_other_settings_of_what_changes_images_are_another_fit(words):
    def plan(callback):
        learn = image_learner()
        learn.cbs.append(callback)
        return plan_of(learn)

    one, other = IMAGE_PAIRS[words]
    assert words in told(changes(plan(one), plan(other)))
    assert changes(plan(one), plan(one)) == {}  # the control


def loader(n=64, size=8, *, shuffle=True):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return TensorLoader(x, x.sum(1, keepdim=True), batch_size=size, shuffle=shuffle)


def of(train, **options):
    learn = toy_learner(**options)
    learn.dls.train = train
    return learn


class OtherLearner(Learner):
    pass


def other_class():
    toy = toy_learner()
    return OtherLearner(toy.dls, toy.model, mse_loss, device="cpu", seed=0)


LEARNERS = {
    "the loss function was mse_loss and is l1_loss": lambda: toy_learner(loss_func=l1_loss),
    "eps of the optimizer was": lambda: toy_learner(opt_func=partial(torch.optim.AdamW, eps=1e-4)),
    "betas of the optimizer was": lambda: toy_learner(
        opt_func=partial(torch.optim.AdamW, betas=(0.9, 0.9))
    ),
    "the optimizer was AdamW and is Adam": lambda: toy_learner(opt_func=torch.optim.Adam),
    "seed was 0 and is 1": lambda: toy_learner(seed=1),
    "the parameters of each group was 4 with": lambda: toy_learner(
        splitter=lambda m: [m[0].parameters(), m[2].parameters()]
    ),
    "the number of training samples": lambda: of(loader(60)),
    "the batch size of the training loader": lambda: of(loader(56, 7)),
    "the order of the training loader was True": lambda: of(loader(shuffle=False)),
    "the training loader was TensorLoader and is list": lambda: of(list(loader())),
    "the class of the learner": other_class,
    "n_inp": lambda: toy_learner(n_inp=1),
}


@pytest.mark.parametrize("words", LEARNERS)
def test_another_learner_is_another_fit(words, tmp_path):
    interrupted(toy_learner(), tmp_path)
    assert words in refusal(LEARNERS[words](), tmp_path)
    assert refusal(toy_learner(), tmp_path) == ""  # the control


def test_another_dtype_is_another_fit():
    one, other = toy_learner(), toy_learner()
    other.model.double()
    assert "the dtype of the parameters was ['torch.float32']" in told(
        changes(plan_of(one), plan_of(other))
    )


def test_another_order_of_groups_is_another_fit(tmp_path):
    """Schedules go by the number of the group: each would drive the other one's parameters."""

    def make(*order):
        return toy_learner(splitter=lambda m: [[*m[i].parameters()] for i in order])

    interrupted(make(0, 2), tmp_path)
    assert "the parameters of each group" in refusal(make(2, 0), tmp_path)


def test_a_drawn_seed_is_taken_over_and_an_explicit_one_must_agree(tmp_path):
    interrupted(toy_learner(seed=None), tmp_path)
    stored = fit_files.read(fit_files.find(tmp_path)[0])["counters"]["seed"]
    assert "seed was" in refusal(toy_learner(seed=stored + 1), tmp_path)
    learn = toy_learner(seed=None)
    assert refusal(learn, tmp_path) == ""
    assert learn.seed == stored


# What is no difference


def test_schedules_are_compared_by_what_they_drive_and_not_by_who_says_it():
    by_function, by_dict = toy_learner(), toy_learner()
    by_function.cbs.append(PlannedScheduler(lambda n: {"beta1": linear(0.9, 0.8)}))
    by_dict.cbs.append(ParamScheduler({"momentum": linear(0.9, 0.8)}))
    assert changes(plan_of(by_function), plan_of(by_dict)) == {}


def test_schedules_of_other_groups_by_other_callbacks_are_all_compared():
    def make(end):
        learn = toy_learner(splitter=lambda m: [m[0].parameters(), m[2].parameters()])
        learn.cbs.append(ParamScheduler({"lr": [linear(0.1, end), None]}))
        learn.cbs.append(ParamScheduler({"lr": [None, linear(0.1, 0.0)]}))
        return plan_of(learn)

    assert list(changes(make(0.0), make(0.01))) == ["schedule.lr"]


def test_a_setting_that_is_driven_is_no_setting(tmp_path):
    """In a notebook it stands where the interrupted fit has left it."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = 1.0

        def forward(self, pred, y):
            return self.weight * mse_loss(pred, y)

    clip, loss = GradientClip(1.0), Loss()
    learn = toy_learner(loss_func=loss)
    cbs = [
        AttributeScheduler(clip, "max_norm", linear(1.0, 0.1)),
        AttributeScheduler(loss, "weight", linear(1.0, 0.1)),
        clip,
    ]
    interrupted(learn, tmp_path, *cbs)
    assert clip.max_norm < 1.0
    assert loss.weight < 1.0
    learn.fit(2, 0.1, cbs=cbs, resume=tmp_path)
    assert learn.total_updates == 16


def test_who_only_watches_may_be_new_or_gone_and_a_warning_says_so(tmp_path, caplog):
    interrupted(toy_learner(), tmp_path, EarlyStopping(patience=9))
    assert refusal(toy_learner(), tmp_path, ReduceLROnPlateau(patience=9)) == ""
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "resume: the state of EarlyStopping is left out, it is not in this fit" in said
    assert "resume: ReduceLROnPlateau begins anew, it was not in the interrupted fit" in said


def test_accumulation_is_told_as_the_batches_of_an_update():
    one, other = toy_learner(), toy_learner()
    other.cbs.append(GradientAccumulation(1))
    assert changes(plan_of(one), plan_of(other)) == {}


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_what_a_callback_says_is_the_same_of_one_made_again(kind, tmp_path):
    def plan():
        learn = image_learner() if kind in FOR_IMAGES else toy_learner()
        learn.cbs.append(maker(kind, tmp_path)())
        return plan_of(learn)

    said = plan()
    assert changes(said, plan()) == {}
    assert changes(said, said | {"n_epoch": 99}) != {}  # the control


# What is stored


def test_keys_are_short_and_stay(tmp_path):
    """They are in every checkpoint: one that is renamed makes older ones another fit."""
    learn = toy_learner()
    learn.fit_one_cycle(1, 0.1, cbs=[Checkpoint(tmp_path), GradientClip(1.0)])
    plan = fit_files.read(fit_files.find(tmp_path)[0])["plan"]
    assert set(plan) == {
        *("learner", "n_epoch", "steps_per_epoch", "max_updates", "n_train_batches"),
        *("batches_per_update", "n_updates_planned", "n_inp", "loss_func", "dtype", "loader"),
        *("batch_size", "n_samples", "shuffled", "opt", "groups", "lr", "weight_decay", "options"),
        *("schedule.lr", "schedule.momentum", "cycle.lr_max", "cycle.policy"),
        *("preparing", "callbacks", "buffers", "data"),
    }
    assert plan["callbacks"] == {"GradientClip": {"max_norm": 1.0, "max_value": None}}
    assert plan["groups"] == [["0.bias", "0.weight", "2.bias", "2.weight"]]


def test_what_an_older_version_did_not_say_is_not_compared():
    now = {"n_epoch": 1, "later": 1, "options": {"eps": 0.1}, "callbacks": {"A": {"a": 1, "b": 2}}}
    assert changes({"n_epoch": 1, "callbacks": {"A": {"a": 1}}}, now) == {}
    assert changes({"n_epoch": 1}, {"n_epoch": 1, "schedule.lr": []}) == {"schedule.lr": (None, [])}


def test_two_of_a_class_are_compared_each_with_its_own():
    def make(*limits):
        learn = toy_learner()
        learn.cbs += [GradientClip(limit) for limit in limits]
        return plan_of(learn)

    assert changes(make(1.0, 0.5), make(1.0, 0.5)) == {}
    assert list(changes(make(1.0, 0.5), make(1.0, 0.1))) == ["GradientClip 2:max_norm"]


@pytest.mark.parametrize(
    ("keys", "may"),
    [
        (["n_epoch", "lr", "schedule.lr", "cycle.policy"], True),
        (["n_epoch", "GradientClip:max_norm"], False),
        (["average.decay"], False),
        (["seed"], False),
    ],
)
def test_only_length_rates_and_schedules_may_change(keys, may):
    assert may_change(keys) is may
