"""A fit that was interrupted at any update and resumed ends in the bits of one that was not."""

import csv
import logging
import random
from functools import partial

import numpy as np
import pytest
import torch
from learner_state import LearnerState, trained
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from onecycle import (
    Callback,
    CancelFit,
    Checkpoint,
    CheckpointError,
    CSVLogger,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    Learner,
    MixedPrecision,
    ParamScheduler,
    Progress,
    ReduceLROnPlateau,
    SaveModel,
    TensorLoader,
    TerminateOnNonFinite,
    accuracy,
    linear,
)
from onecycle.checkpoints import fit_files, snapshot
from onecycle.testing import toy_learner

N, BATCH = 36, 8  # 5 batches, of which the last is not full


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 6, generator=generator)
    return x, (x.sum(1) > 0).long()


class Noise(Callback):
    """Draws from Python's and NumPy's generators for every batch, as an augmentation may."""

    during = "train"

    def before_batch(self, learn):
        learn.xb = learn.xb * (1 + 0.1 * random.random()) + 0.1 * float(np.random.rand())


class NoisyData(Dataset):
    """Draws from torch's generator for every sample."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        x, y = data()
        return x[i] + 0.1 * torch.randn(6), y[i]


class ShufflesByItself:
    """Has an order of its own, drawn from NumPy's generator when a pass begins."""

    def __init__(self):
        self.x, self.y = data()

    def __len__(self):
        return N // BATCH

    def __iter__(self):
        order = np.random.permutation(N)
        return iter([(self.x[i], self.y[i]) for i in torch.from_numpy(order).split(BATCH)][:-1])


def make_learner(train=None, *, cbs=(), **options):
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    x, y = data()
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
    )
    train = TensorLoader(x, y, batch_size=BATCH, shuffle=True) if train is None else train
    given = {"metrics": [accuracy], "device": "cpu", "opt_func": torch.optim.SGD, "seed": 3}
    learn = Learner(
        (train, TensorLoader(x, y, batch_size=20)),
        model,
        nn.functional.cross_entropy,
        cbs=[Noise(), *cbs],
        **(given | options),
    )
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


def one_cycle(learn, **options):
    learn.fit_one_cycle(2, 0.1, **options)


# Each returns a fresh learner, and the fit that is to be interrupted.
def sgd():
    return make_learner(opt_func=lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)), one_cycle


def adamw_accumulation_clip():
    cbs = [GradientAccumulation(3), GradientClip(0.5)]
    return make_learner(opt_func=torch.optim.AdamW, wd=0.1, cbs=cbs), one_cycle


def bf16():
    return make_learner(opt_func=torch.optim.AdamW, cbs=[MixedPrecision("bf16")]), one_cycle


def fp16_with_skipped_updates():
    cbs = [MixedPrecision("fp16", init_scale=2.0**20)]
    return make_learner(opt_func=torch.optim.AdamW, cbs=cbs), one_cycle


def random_data_set():
    return make_learner(DataLoader(NoisyData(), BATCH, shuffle=True)), one_cycle


def loader_that_cannot_be_repositioned():
    return make_learner(ShufflesByItself()), one_cycle


def two_epochs_and_a_half():
    def fit(learn, **options):
        learn.fit_one_cycle(None, 0.1, max_updates=12, policy="torch", **options)

    return make_learner(), fit


def weight_decay_scheduled():
    def fit(learn, **options):
        schedule = ParamScheduler({"weight_decay": linear(0.1, 0.0)})
        learn.fit(2, 0.05, cbs=[schedule, *options.pop("cbs", ())], **options)

    return make_learner(wd=0.0), fit


def by(verb, *arguments):
    """Fit by another verb than one cycle."""

    def scenario():
        opt_func = partial(torch.optim.SGD, momentum=0.9)
        return make_learner(opt_func=opt_func), lambda learn, **options: getattr(learn, verb)(
            *arguments, **options
        )

    scenario.__name__ = verb
    return scenario


SCENARIOS = [
    sgd,
    by("fit_sgdr", 2, 1, 0.1, 1),
    by("fit_flat_cos", 2, 0.1),
    by("fit_clr_beta", 2, 0.1, (10, 10, 0.95, 0.85)),
    adamw_accumulation_clip,
    bf16,
    fp16_with_skipped_updates,
    random_data_set,
    loader_that_cannot_be_repositioned,
    two_epochs_and_a_half,
    weight_decay_scheduled,
]


def bits(learn):
    counters = ("n_updates", "n_skipped", "total_updates", "total_epochs", "n_updates_planned")
    groups = [{k: v for k, v in g.items() if k != "params"} for g in learn.opt.param_groups]
    updates = {f"{n}.updates": s.updates.tobytes() for n, s in learn.recorder.history.items()}
    return trained(learn) | updates | {n: getattr(learn, n) for n in counters} | {"groups": groups}


def undisturbed(scenario):
    learn, fit = scenario()
    fit(learn)
    return bits(learn)


def differences(left, right):
    return [name for name in {**left, **right} if left.get(name) != right.get(name)]


def all_checkpoints(scenario, folder, every="1 update"):
    """Run a fit and return the checkpoints of all its updates, the first update's first."""
    learn, fit = scenario()
    fit(learn, cbs=[Checkpoint(folder, every, keep=1000)])
    return fit_files.find(folder)[::-1]


def resumed(scenario, file):
    """Resume with a fresh learner, in a process whose generators stand elsewhere."""
    learn, fit = scenario()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    fit(learn, resume=file)
    return bits(learn)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fit_resumed_after_any_update_ends_in_the_same_bits(scenario, tmp_path):
    expected = undisturbed(scenario)
    files = all_checkpoints(scenario, tmp_path)
    assert len(files) == expected["n_updates"] > 3
    assert (expected["n_skipped"] > 0) == (scenario is fp16_with_skipped_updates)
    for file in files:
        assert differences(resumed(scenario, file), expected) == [], file.name


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_fit_resumed_after_any_epoch_ends_in_the_same_bits(scenario, tmp_path):
    expected = undisturbed(scenario)
    files = all_checkpoints(scenario, tmp_path, "1 epoch")
    assert len(files) == expected["total_epochs"]
    for file in files:
        assert differences(resumed(scenario, file), expected) == [], file.name


def test_taking_checkpoints_changes_nothing(tmp_path):
    learn, fit = sgd()
    fit(learn, cbs=[Checkpoint(tmp_path, "1 update")])
    assert differences(bits(learn), undisturbed(sgd)) == []


class KilledError(Exception):
    pass


class KillAfter(Callback):
    """Ends the fit in the middle of a batch, some updates after it began or was resumed."""

    during = "train"

    def __init__(self, n):
        self.n = n

    def after_step(self, learn):
        self.n -= 1

    def after_loss(self, learn):
        if self.n == 0:
            raise KilledError


def test_in_a_notebook_the_learner_that_was_interrupted_resumes(tmp_path):
    learn, fit = sgd()
    with pytest.raises(KilledError):
        fit(learn, cbs=[Checkpoint(tmp_path, "3 updates"), KillAfter(8)])
    assert learn.total_updates == 8
    fit(learn, resume=tmp_path)
    assert differences(bits(learn), undisturbed(sgd)) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_on_a_gpu_a_fit_ends_in_the_same_bits(dtype, tmp_path):
    def scenario():
        cbs = [MixedPrecision(dtype), TerminateOnNonFinite()]
        return make_learner(opt_func=torch.optim.AdamW, cbs=cbs, device="cuda"), one_cycle

    def run(**options):
        learn, fit = scenario()
        torch.cuda.manual_seed_all(1 if "cbs" in options else 99)
        fit(learn, **options)
        return bits(learn) | {"cuda": torch.cuda.get_rng_state().tolist()}

    expected = run(cbs=[Checkpoint(tmp_path, "1 update", keep=99)])
    for file in fit_files.find(tmp_path):
        assert differences(run(resume=file), expected) == [], file.name


@pytest.mark.parametrize(
    "scenario", [sgd, adamw_accumulation_clip, loader_that_cannot_be_repositioned]
)
@pytest.mark.parametrize(("every", "lives"), [("1 update", 1), ("2 updates", 3), ("1 epoch", 7)])
def test_a_fit_killed_again_and_again_ends_in_the_same_bits(scenario, every, lives, tmp_path):
    n_kills = 0
    while True:
        learn, fit = scenario()
        try:
            fit(learn, cbs=[Checkpoint(tmp_path, every), KillAfter(lives)], resume=tmp_path)
            break
        except KilledError:
            n_kills += 1
            assert n_kills < 50
    assert n_kills >= (0 if scenario is adamw_accumulation_clip and lives == 7 else 1)
    assert differences(bits(learn), undisturbed(scenario)) == []


def test_with_two_loader_workers_a_fit_ends_in_the_same_bits(tmp_path):
    def scenario():
        loader = DataLoader(TensorDataset(*data()), BATCH, shuffle=True, num_workers=2)
        return make_learner(loader), one_cycle

    expected = undisturbed(scenario)
    files = all_checkpoints(scenario, tmp_path)
    for file in (files[1], files[4], files[7]):
        assert differences(resumed(scenario, file), expected) == [], file.name


# Negative controls: the comparison can fail


def rng_left_alone(monkeypatch):
    monkeypatch.setattr(snapshot.RngState, "restore", lambda self: None)


def optimizer_left_alone(monkeypatch):
    monkeypatch.setattr(fit_files, "load_opt_state", lambda learn, state: None)


def batches_drawn_again(monkeypatch):
    restore = fit_files.restore

    def without_position(learn, state):
        restore(learn, state)
        learn.iter = 0

    monkeypatch.setattr(fit_files, "restore", without_position)


def callbacks_left_alone(monkeypatch):
    monkeypatch.setattr(fit_files, "_restore_callbacks", lambda learn, states: None)


@pytest.mark.parametrize(
    "spoil", [rng_left_alone, optimizer_left_alone, batches_drawn_again, callbacks_left_alone]
)
def test_without_a_part_of_the_state_the_bits_differ(spoil, tmp_path, monkeypatch):
    expected = undisturbed(sgd)
    file = all_checkpoints(sgd, tmp_path)[3]
    assert differences(resumed(sgd, file), expected) == []
    spoil(monkeypatch)
    differing = differences(resumed(sgd, file), expected)
    part = "train_loss" if spoil is callbacks_left_alone else "model.0.weight"
    assert part in differing


# Callbacks


def test_callbacks_go_on_where_they_were(tmp_path):
    def cbs(folder):
        return [
            CSVLogger(folder / "log.csv"),
            SaveModel(folder / "best.pt"),
            ReduceLROnPlateau("train_loss", patience=1, factor=0.5, min_delta=0.05),
            EarlyStopping("accuracy", patience=1),
            TerminateOnNonFinite(),
        ]

    def run(folder, n_epoch=9, **options):
        folder.mkdir(exist_ok=True)
        learn = make_learner()
        more = options.pop("cbs", [])
        learn.fit(n_epoch, 0.2, cbs=[*cbs(folder), *more], **options)
        with (folder / "log.csv").open() as file:
            rows = [dict(row, seconds="") for row in csv.DictReader(file)]
        weights = [value.tolist() for value in torch.load(folder / "best.pt")["model"].values()]
        return {"rows": rows, "weights": weights, "stop": learn.stop_reason, **bits(learn)}

    expected = run(tmp_path / "whole")
    assert expected["stop"]  # it stopped early
    run(tmp_path / "taken", cbs=[Checkpoint(tmp_path, "5 updates", keep=100)])
    files = fit_files.find(tmp_path)
    assert len(files) > 3
    for file in files:
        assert differences(run(tmp_path / "again", resume=file), expected) == []


@pytest.mark.parametrize(
    ("event", "every", "n_files"),
    [("after_batch", "1 update", 7), ("after_step", "1 update", 7), ("after_epoch", "1 epoch", 1)],
)
def test_a_stop_that_is_about_to_act_is_not_lost(event, every, n_files, tmp_path):
    """Resumed after its end, a fit that was stopped stops at the same place again."""

    def stop(learn):
        if learn.n_updates == (10 if event == "after_epoch" else 8):
            raise CancelFit("enough")

    learn, again = make_learner(), make_learner()
    taking = Checkpoint(tmp_path, every, keep=9)
    learn.fit(3, cbs=[taking, Callback(**{event: stop})])
    assert len(fit_files.find(tmp_path)) == n_files
    again.fit(3, cbs=[Callback(**{event: stop})], resume=tmp_path)
    assert differences(bits(again), bits(learn)) == []


def test_the_last_finite_loss_of_an_interrupted_fit_is_remembered(tmp_path):
    class Breaks(Callback):
        def after_loss(self, learn):
            if learn.n_updates == 5:
                learn.loss = learn.loss * float("nan")

    learn, again = make_learner(), make_learner()
    learn.fit(2, cbs=[Breaks(), TerminateOnNonFinite(), Checkpoint(tmp_path, "5 updates")])
    again.fit(2, cbs=[Breaks(), TerminateOnNonFinite()], resume=tmp_path)
    assert "the last finite one was" in learn.stop_reason
    assert again.stop_reason == learn.stop_reason


def test_a_fit_resumed_after_its_end_ends_at_once(tmp_path):
    learn, fit = two_epochs_and_a_half()
    fit(learn, cbs=[Checkpoint(tmp_path, "1 epoch")])
    events = []
    again, fit = two_epochs_and_a_half()
    logger = {
        name: lambda learn, name=name: events.append(name)
        for name in ("before_fit", "before_epoch", "before_batch", "after_fit", "cleanup_fit")
    }
    fit(again, cbs=[Callback(**logger)], resume=tmp_path)
    assert events == ["before_fit", "after_fit", "cleanup_fit"]
    assert differences(bits(again), bits(learn)) == []


def test_events_of_a_resumed_epoch_begin_with_its_own_and_go_on_with_the_next_batch(tmp_path):
    file = all_checkpoints(sgd, tmp_path)[4]  # the last update of the first epoch
    seen = []
    names = (
        "before_fit",
        "before_epoch",
        "before_train",
        "before_batch",
        "after_train",
        "before_validate",
        "after_validate",
        "after_epoch",
    )
    learn, fit = sgd()
    fit(
        learn,
        resume=file,
        cbs=[
            Callback(
                **{
                    name: lambda learn, name=name: seen.append((name, learn.epoch, learn.n_updates))
                    for name in names
                }
            )
        ],
    )
    first = [event for event in seen if event[1] == 0 and event[0] != "before_batch"]
    assert first == [
        (name, 0, 5 if name != "before_fit" else 0) for name in names if name != "before_batch"
    ]
    assert len([event for event in seen if event[0] == "before_batch"]) == 2 + 5 + 2


def test_the_table_of_a_resumed_epoch_has_the_mean_of_the_whole_epoch(tmp_path, capsys):
    def table(**options):
        learn = make_learner()
        learn.cbs.append(Progress())
        learn.fit(2, 0.1, **options)
        return [line.rsplit(maxsplit=1)[0] for line in capsys.readouterr().out.splitlines()]

    expected = table(cbs=[Checkpoint(tmp_path, "2 updates", keep=9)])
    files = fit_files.find(tmp_path)[::-1]  # after 2, 4, 6, 8 and 10 updates
    assert table(resume=files[1]) == expected
    assert table(resume=files[2]) == [expected[0], expected[2]]


def test_schedules_and_recorder_follow_the_optimizer_that_was_loaded(tmp_path):
    learn, fit = sgd()
    groups = [id(group) for group in learn.opt.param_groups]
    fit(learn, resume=all_checkpoints(sgd, tmp_path)[3])
    assert [id(group) for group in learn.opt.param_groups] == groups
    assert learn.groups.get("lr")[0] == learn.recorder.history["lr"].values[-1] == 0.1 / 1e5


def test_frozen_parameters_buffers_and_loss_modules_are_restored(tmp_path):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(()), persistent=False)
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, pred, yb):
            self.n += 1
            self.mean += pred.mean().detach()
            return nn.functional.mse_loss(pred, yb)

    def unfreeze(learn):
        learn.model[0].requires_grad_(learn.n_updates > 2)

    def run(**options):
        learn = toy_learner(n_batches=6, loss_func=Loss())
        learn.model[0].requires_grad_(False)
        learn.fit(1, 0.1, **options)
        loss = learn.loss_func
        flags = [p.requires_grad for p in learn.model.parameters()]
        return {"n": float(loss.n), "mean": float(loss.mean), "flags": flags, **trained(learn)}

    expected = run(cbs=[Checkpoint(tmp_path, "4 updates"), Callback(before_step=unfreeze)])
    assert expected["flags"] == [True] * 4
    assert differences(run(resume=tmp_path), expected) == []


def test_the_seed_of_the_interrupted_fit_is_taken_over(tmp_path):
    learn = toy_learner(seed=5)
    learn.fit(2, cbs=[Checkpoint(tmp_path, "5 updates")])
    other = toy_learner(seed=None)
    other.fit(2, resume=tmp_path)
    assert other.seed == 5
    assert differences(bits(other), bits(learn)) == []


# Another fit


def changed(learn=None, *, n_epoch=2, lr_max=0.1, **options):
    learn = learn or make_learner(opt_func=torch.optim.AdamW)
    return learn, lambda folder: learn.fit_one_cycle(n_epoch, lr_max, resume=folder, **options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: changed(n_epoch=3), "n_epoch was 2 and is 3"),
        (lambda: changed(lr_max=0.2), r"lr_max was \[0.1\] and is \[0.2\]"),
        (lambda: changed(policy="linear"), "policy was cosine and is linear"),
        (lambda: changed(policy=linear(0.1, 0)), "policy was cosine and is a Schedule"),
        (lambda: changed(pct_start=0.5), "the schedule of lr was"),
        (lambda: changed(moms=(0.9, 0.8, 0.9)), "the schedule of momentum was"),
        (lambda: changed(moms=False), "the schedule of momentum was .* and is None"),
        (lambda: changed(wd=0.5), r"weight_decay was \[0.01\] and is \[0.5\]"),
        (lambda: changed(steps_per_epoch=4), "steps_per_epoch was None and is 4"),
        (lambda: changed(max_updates=9), "max_updates was None and is 9"),
        (lambda: changed(cbs=[GradientAccumulation(2)]), "batches_per_update was 1 and is 2"),
        (lambda: changed(cbs=[GradientClip()]), "the preparing callbacks was .*GradientClip"),
        (lambda: changed(make_learner(opt_func=torch.optim.Adam)), "the optimizer was AdamW"),
        (
            lambda: changed(
                make_learner(TensorLoader(*data(), batch_size=9), opt_func=torch.optim.AdamW)
            ),
            "the number of training batches was 5 and is 4",
        ),
    ],
)
def test_another_fit_is_refused_with_what_differs_and_nothing_is_changed(make, words, tmp_path):
    make_learner(opt_func=torch.optim.AdamW).fit_one_cycle(
        2, 0.1, cbs=[Checkpoint(tmp_path, "5 updates")]
    )
    log = tmp_path / "log.csv"
    log.write_text("rows of a long fit")
    learn, fit = make()
    learn.cbs.append(CSVLogger(log))
    weights = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match=words) as info:
        fit(tmp_path)
    assert "start a new fit instead" in str(info.value)
    assert all(map(torch.equal, weights, learn.model.parameters()))
    assert log.read_text() == "rows of a long fit"
    assert learn.total_updates == 0


def test_the_same_lr_without_a_schedule_is_asked_for(tmp_path):
    toy_learner().fit(2, 0.1, cbs=[Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match=r"lr was \[0.1\] and is \[0.3\]"):
        toy_learner().fit(2, 0.3, resume=tmp_path)


def test_another_model_is_refused_before_any_of_it_is_loaded(tmp_path):
    toy_learner().fit(1, 0.1, cbs=[Checkpoint(tmp_path)])
    learn = toy_learner()
    learn.model[0].weight.data = torch.zeros(8, 5)
    with pytest.raises(CheckpointError, match=r"holds another model: .*another shape \['0.weight'"):
        learn.fit(1, 0.1, resume=tmp_path)


def test_after_a_refused_resume_the_learner_can_fit(tmp_path):
    toy_learner().fit(2, 0.1, cbs=[Checkpoint(tmp_path)])
    learn = toy_learner()
    with pytest.raises(ValueError, match="the plan has changed"):
        learn.fit(3, 0.1, resume=tmp_path)
    learn.fit(1, 0.1)
    assert learn.total_updates == 8


@pytest.mark.parametrize("make", [lambda p: p / "missing", lambda p: p, lambda p: str(p / "no.pt")])
def test_without_a_checkpoint_the_fit_starts_from_the_beginning_and_says_so(make, tmp_path, said):
    learn = toy_learner()
    learn.fit(1, resume=make(tmp_path))
    assert learn.total_updates == 8
    assert said() == [
        f"resume: no checkpoint in {make(tmp_path)}, the fit starts from the beginning"
    ]


def test_a_loader_that_cannot_be_repositioned_is_said_to_be_drawn(tmp_path, said):
    files = all_checkpoints(loader_that_cannot_be_repositioned, tmp_path)
    resumed(loader_that_cannot_be_repositioned, files[3])
    assert any("cannot be repositioned: its first 4 batches are drawn" in line for line in said())


def test_a_callback_that_is_new_or_gone_is_named(tmp_path, said):
    toy_learner().fit(2, 0.1, cbs=[Checkpoint(tmp_path, "5 updates")])
    learn = toy_learner(cbs=(EarlyStopping(patience=9),))
    learn.fit(2, 0.1, resume=tmp_path)
    assert "resume: EarlyStopping begins anew, it was not in the interrupted fit" in said()
    assert "resume: the state of Checkpoint is left out, it is not in this fit" in said()


# A resume that is refused


class Spoilt(Callback):
    """Has a state that it does not take back."""

    def state_dict(self):
        return {"n": 1}

    def load_state_dict(self, state):
        raise RuntimeError("not mine")


@pytest.mark.parametrize("every", ["1 epoch", "3 updates"])
def test_a_callback_that_does_not_take_its_state_leaves_the_learner_as_it_was(every, tmp_path):
    learn = make_learner()
    learn.fit_one_cycle(2, 0.2, cbs=[Spoilt(), Checkpoint(tmp_path, every)])
    again = make_learner()
    again.fit(1)
    before = LearnerState(again)
    for fit in (again.fit, again.fit_one_cycle):
        with pytest.raises((RuntimeError, ValueError)):
            fit(2, 0.2, cbs=[Spoilt()], resume=tmp_path)
        assert before.changes(LearnerState(again)) == []


def test_a_refused_resume_changes_no_rate_and_no_group(tmp_path):
    learn = make_learner()
    learn.fit_one_cycle(2, 0.2, cbs=[Checkpoint(tmp_path)])
    again = make_learner()
    again.fit(1)
    before = LearnerState(again)
    decay = ParamScheduler({"weight_decay": linear(0.1, 0.2)})
    for options in ({"lr_max": 0.3}, {"cbs": [decay]}, {"wd": 0.5, "moms": (0.9, 0.8, 0.9)}):
        with pytest.raises(ValueError, match="cannot resume"):
            again.fit_one_cycle(**{"n_epoch": 2, "lr_max": 0.2, **options}, resume=tmp_path)
        assert before.changes(LearnerState(again)) == []


def test_a_resume_says_where_it_goes_on_and_that_a_fit_is_complete(tmp_path, capfd):
    # As a plain script shows it, where nobody has set up logging.
    def killed(learn):
        if learn.n_updates == 12:
            raise KeyError

    with pytest.raises(KeyError):
        toy_learner().fit(2, cbs=[Checkpoint(tmp_path, "5 updates"), Callback(after_step=killed)])
    handlers = logging.root.handlers[:]
    logging.root.handlers.clear()
    try:
        toy_learner().fit(2, cbs=[Checkpoint(tmp_path)], resume=tmp_path)
        first = capfd.readouterr().err
        again = toy_learner()
        again.fit(2, cbs=[Checkpoint(tmp_path)], resume=tmp_path)
        second = capfd.readouterr().err
    finally:
        logging.root.handlers[:] = handlers
    assert f"resume: from {tmp_path / 'checkpoint-000001.pt'}, epoch 1, after 10 updates" in first
    assert "complete" not in first
    assert "this fit is complete, nothing is trained" in second
    assert again.total_updates == 16


class Shifted(nn.Module):
    """Has a buffer that is not saved."""

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(6, 2)
        self.register_buffer("shift", torch.zeros(size), persistent=False)

    def forward(self, x):
        return self.layer(x) + self.shift.mean()


def a_run(data=TensorDataset, size=3, loss=nn.functional.cross_entropy, seed=3, **options):
    torch.manual_seed(0)
    loader = DataLoader(data(*data_of(options.pop("n", 36))), BATCH)
    given = {"device": "cpu", "seed": seed, "check": False} | options
    dtype = given.pop("dtype", torch.float32)
    learn = Learner((loader, None), Shifted(size).to(dtype), loss, **given)
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, Progress)]
    return learn


def data_of(n):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=generator), torch.zeros(n, dtype=torch.long)


class OtherData(TensorDataset):
    pass


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"size": 4}, r"of another shape \['shift'\]"),
        ({"data": OtherData}, "training data set was TensorDataset and is"),
        ({"n": 38}, "number of training samples was 36 and is 38"),
        ({"loss": nn.functional.multi_margin_loss}, "the loss function was cross_entropy and is"),
        ({"loss": partial(nn.functional.cross_entropy, label_smoothing=0.1)}, "label_smoothing"),
        ({"opt_func": partial(torch.optim.AdamW, betas=(0.8, 0.999))}, "betas of the optimizer"),
        ({"opt_func": partial(torch.optim.AdamW, eps=1e-3)}, "eps of the optimizer"),
        ({"dtype": torch.float64}, "dtype of the parameters|dtype"),
    ],
)
def test_a_run_knows_itself_and_refuses_to_be_another(other, words, tmp_path):
    a_run().fit(1, cbs=[Checkpoint(tmp_path, "2 updates")])
    learn = a_run(**other)
    with pytest.raises((ValueError, CheckpointError), match=words):
        learn.fit(1, resume=tmp_path)
    assert learn.total_updates == 0
