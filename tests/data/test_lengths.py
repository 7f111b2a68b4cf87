"""How long a fit is, and fits that end within an epoch."""

import math

import numpy as np
import pytest
from learner_state import trained
from scripted import same, weights
from torch.nn.functional import mse_loss

from onecycle import Callback, Checkpoint, DataLoaders, GradientAccumulation, one_cycle
from onecycle.checkpoints import fit_files
from onecycle.data.lengths import batches_in, updates_in
from onecycle.data.passes import start_pass
from onecycle.testing import toy_learner

N = 8  # batches of an epoch


def last(learn, name="lr"):
    return learn.recorder.history[name].values[-1]


@pytest.mark.parametrize(
    ("n_epoch", "batches"),
    [(0.5, [4]), (1.5, [8, 4]), (2.0, [8, 8]), (0.01, [1]), (0.51, [5]), (2.125, [8, 8, 1])],
)
def test_the_last_epoch_has_a_part_of_the_batches(n_epoch, batches):
    learn, seen = toy_learner(n_batches=N), []
    look = Callback(after_train=lambda learn: seen.append((learn.iter + 1, learn.n_iter)))
    learn.fit_one_cycle(n_epoch, 0.1, cbs=[look])
    assert seen == [(n, n) for n in batches]
    assert learn.n_updates == learn.n_updates_planned == sum(batches)
    lrs = learn.recorder.history["lr"].values
    assert lrs.tolist() == one_cycle(0.1)(np.arange(len(lrs)) / max(1, len(lrs) - 1)).tolist()
    assert len(learn.recorder.history["valid_loss"]) == len(batches)


def test_a_part_that_is_a_whole_number_of_batches_is_not_rounded_up():
    assert [batches_in(0, 30, tenths / 10) for tenths in range(1, 10)] == [
        3 * tenths for tenths in range(1, 10)
    ]


@pytest.mark.parametrize("per_update", [1, 3, 8, 20])
@pytest.mark.parametrize("n_epoch", [0.3, 1, 1.7, 3])
def test_as_many_updates_are_planned_as_are_made(n_epoch, per_update):
    learn = toy_learner(n_batches=N)
    learn.fit(n_epoch, cbs=[GradientAccumulation(per_update)])
    batches = [N] * int(n_epoch) + [math.ceil(round(n_epoch % 1 * N, 9))]
    assert learn.n_updates == sum(math.ceil(n / per_update) for n in batches)
    assert learn.n_updates == learn.n_updates_planned == updates_in({0: N}, n_epoch, per_update)


def test_half_an_epoch_is_the_first_half_of_a_loop_by_hand():
    learn, by_hand = toy_learner(n_batches=N), toy_learner(n_batches=N)
    learn.fit(0.5, 0.01)
    opt = by_hand.opt
    for group in opt.param_groups:
        group["lr"] = 0.01
    for i, (x, y) in enumerate(start_pass(by_hand.dls.train, by_hand.seed, 0)):
        if i < N // 2:
            opt.zero_grad()
            mse_loss(by_hand.model(x), y).backward()
            opt.step()
    assert same(weights(learn), weights(by_hand))


def test_the_share_that_is_done_rises_evenly_to_one():
    learn, seen = toy_learner(n_batches=N), []
    learn.fit(
        1.5, cbs=[Callback(before_batch=lambda learn: seen.append(learn.pct_train), during="train")]
    )
    assert seen == pytest.approx([i / 12 for i in range(12)])


def test_without_a_length_a_part_of_an_epoch_is_refused_before_the_first_batch():
    learn = toy_learner(n_batches=N)

    class Unsized:
        def __iter__(self):
            return iter(list(learn.dls.train))

    other = toy_learner()
    other.dls = DataLoaders(Unsized())
    with pytest.raises(
        ValueError, match="the training loader has no length: give steps_per_epoch="
    ):
        other.fit(0.5)
    assert other.total_updates == 0
    other.fit(0.5, steps_per_epoch=4)
    assert other.total_updates == 2


@pytest.mark.parametrize(
    ("fit", "updates"),
    [
        (lambda learn: learn.fit_flat_cos(0.5, 0.1), 4),
        (lambda learn: learn.fit_clr_beta(1.5, 0.1, (10, 10, 0.95, 0.85)), 12),
        (lambda learn: learn.fit_sgdr(2, 0.5, 0.1), 12),  # 0.5 and 1 epoch
        (lambda learn: learn.fine_tune(0.5, freeze_epochs=0.25), 6),
    ],
)
def test_every_verb_takes_fractions(fit, updates):
    learn = toy_learner(
        n_batches=N, splitter=lambda m: [list(m[0].parameters()), list(m[2].parameters())]
    )
    learn.moms = (0.95, 0.85, 0.95)
    fit(learn)
    assert learn.total_updates == updates


@pytest.mark.slow
def test_a_fraction_is_resumed_in_the_same_bits_and_extended_only_if_asked(tmp_path):
    def run(n_epoch=1.5, **options):
        learn = toy_learner(n_batches=N)
        learn.fit_one_cycle(n_epoch, 0.1, **options)
        return learn

    expected = run(cbs=[Checkpoint(tmp_path, "1 update", keep=99)])
    files = fit_files.find(tmp_path)
    assert len(files) == 12
    for file in files:
        assert trained(run(resume=file)) == trained(expected), file.name
    with pytest.raises(ValueError, match=r"n_epoch was 1.5 and is 2.25"):
        run(2.25, resume=files[5])
    longer = run(2.25, resume=files[5], extend="restretch")
    assert longer.n_updates == longer.n_updates_planned == 18
    assert last(longer) == 0.1 / 1e5


def test_compare_is_at_equal_budget_within_an_epoch_too():
    learn = toy_learner(n_batches=N)
    found = learn.compare(0.5, 0.05, ["constant", "one_cycle"], seeds=[0])
    assert [len(runs[0]["train_loss"]) for runs in found.runs.values()] == [4, 4]
    with pytest.raises(
        ValueError, match=r"trained for 8 updates, and a comparison is at equal budget: 0.5"
    ):
        learn.compare(0.5, 0.05, {"more": lambda learn, n_epoch: learn.fit(1)}, seeds=[0])
