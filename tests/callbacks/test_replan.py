"""A fit that is resumed by another plan goes on as it was asked to, update by update."""

import math

import numpy as np
import pytest
from grouped_learner import MOMS, grouped_learner, record, sgd
from learner_state import trained
from torch.optim.lr_scheduler import StepLR

from onecycle import (
    AttributeScheduler,
    Callback,
    CancelStep,
    Checkpoint,
    GradientAccumulation,
    ParamScheduler,
    TorchScheduler,
    linear,
    one_cycle,
    torch_step,
)
from onecycle.checkpoints import fit_files
from onecycle.schedules.shapes import Schedule
from onecycle.testing import toy_learner

N = 4  # batches of an epoch


def learner(**options):
    return grouped_learner(N, **options)


def one_cycle_fit(learn, n_epoch=3, lr_max=(0.02, 0.1), **options):
    learn.fit_one_cycle(n_epoch, list(lr_max), **options)


def checkpoint_after(update, folder, fit=one_cycle_fit, make=learner, **options):
    """Run a fit and return its checkpoint after an update."""
    cbs = [*options.pop("cbs", ()), Checkpoint(folder, f"{update} updates", keep=99)]
    fit(make(), cbs=cbs, **options)
    return fit_files.find(folder)[-1]


def half_cosine(start, end, pos):
    weight = (1 + math.cos(math.pi * pos)) / 2
    return start * weight + end * (1 - weight)


def rates_of(peak, length, updates, **options):
    """Compute the rates of one cycle of a length at some updates; past its end the last holds."""
    schedule = one_cycle(peak, **options)
    return [schedule(min(1.0, u / (length - 1))) for u in updates]


PEAKS = (0.02, 0.1)


# What each way does


@pytest.mark.parametrize("at", [1, 4, 7, 11, 12])
def test_keep_goes_on_by_the_old_positions_and_then_holds(at, tmp_path):
    file = checkpoint_after(at, tmp_path)
    learn = learner()
    one_cycle_fit(learn, 5, resume=file, extend="keep")
    assert learn.n_updates == learn.n_updates_planned == 5 * N
    for g, peak in enumerate(PEAKS):
        assert record(learn)[:, g].tolist() == rates_of(peak, 3 * N, range(5 * N))
    assert record(learn, "momentum")[-1].tolist() == [0.9, 0.9]


def test_keep_ignores_the_new_peak_and_policy(tmp_path):
    file = checkpoint_after(5, tmp_path)
    learn = learner()
    one_cycle_fit(learn, 4, [1.0, 2.0], resume=file, extend="keep", policy="three_phase")
    assert record(learn)[:, 1].tolist() == rates_of(0.1, 3 * N, range(4 * N))


@pytest.mark.parametrize("at", [1, 4, 7, 11, 12])
def test_restretch_reads_the_new_schedule_at_the_present_update(at, tmp_path):
    file = checkpoint_after(at, tmp_path)
    learn = learner()
    one_cycle_fit(learn, 5, [0.04, 0.3], pct_start=0.5, resume=file, extend="restretch")
    for g, (old, new) in enumerate(zip(PEAKS, (0.04, 0.3), strict=True)):
        before = rates_of(old, 3 * N, range(at))
        after = rates_of(new, 5 * N, range(at, 5 * N), pct_start=0.5)
        assert record(learn)[:, g].tolist() == before + after


@pytest.mark.parametrize("at", [1, 4, 7, 11])
def test_tail_falls_on_half_a_cosine_from_the_present_values_to_the_new_end(at, tmp_path):
    file = checkpoint_after(at, tmp_path)
    learn = learner()
    one_cycle_fit(learn, 5, [0.04, 0.3], resume=file, extend="tail")
    left = 5 * N - at
    for g, (old, new) in enumerate(zip(PEAKS, (0.04, 0.3), strict=True)):
        before = rates_of(old, 3 * N, range(at))
        tail = [half_cosine(before[-1], new / 1e5, j / (left - 1)) for j in range(left)]
        np.testing.assert_allclose(record(learn)[:, g], before + tail, rtol=1e-12)
        assert record(learn)[at, g] == before[-1]
        assert record(learn)[-1, g] == new / 1e5
    momenta = record(learn, "momentum")[:, 0]
    expected = [half_cosine(momenta[at - 1], MOMS[2], j / (left - 1)) for j in range(left)]
    np.testing.assert_allclose(momenta[at:], expected, rtol=1e-12)


@pytest.mark.parametrize("extend", ["keep", "restretch", "tail"])
def test_a_longer_constant_fit_is_the_longer_fit(extend, tmp_path):
    file = checkpoint_after(6, tmp_path, lambda learn, **o: learn.fit(2, 0.05, **o))
    learn, whole = learner(), learner()
    learn.fit(3, 0.05, resume=file, extend=extend)
    whole.fit(3, 0.05)
    assert trained(learn) == trained(whole)


def test_a_restretched_fit_is_the_longer_fit_where_their_rates_agree(tmp_path):
    """Data order, random states and optimizer go on: only the schedule was in question."""
    short = ParamScheduler({"lr": torch_step(8, lr=0.1, step_size=6)})
    long = ParamScheduler({"lr": torch_step(12, lr=0.1, step_size=6)})
    file = checkpoint_after(5, tmp_path, lambda learn, **o: learn.fit(2, **o), cbs=[short])
    learn, whole = learner(), learner()
    learn.fit(3, cbs=[long], resume=file, extend="restretch")
    whole.fit(3, cbs=[long])
    assert trained(learn) == trained(whole)


@pytest.mark.parametrize(
    ("extend", "expected"),
    [("keep", [0.1] * 8), ("restretch", [0.1] * 5 + [0.4] * 3), ("tail", None)],
)
def test_another_constant_rate(extend, expected, tmp_path):
    file = checkpoint_after(5, tmp_path, lambda learn, **o: learn.fit(2, 0.1, **o))
    learn = learner()
    learn.fit(2, 0.4, resume=file, extend=extend)
    expected = expected or [0.1] * 6 + [0.25, 0.4]
    np.testing.assert_allclose(record(learn)[:, 0], expected, rtol=1e-12)


def test_from_a_schedule_to_a_constant_rate_and_back(tmp_path):
    file = checkpoint_after(6, tmp_path)
    kept, constant = learner(), learner()
    kept.fit(4, 0.5, resume=file, extend="keep")
    assert record(kept)[:, 1].tolist() == rates_of(0.1, 3 * N, range(4 * N))
    constant.fit(4, 0.5, resume=file, extend="restretch")
    assert record(constant)[6:, 1].tolist() == [0.5] * 10

    file = checkpoint_after(6, tmp_path / "constant", lambda learn, **o: learn.fit(3, 0.5, **o))
    held = learner()
    one_cycle_fit(held, 4, resume=file, extend="keep")
    assert set(record(held)[:, 1]) == {0.5}


def test_attributes_run_over_the_old_length_with_keep_and_else_over_the_new(tmp_path):
    class Box:
        p = 0.0

    def run(folder=tmp_path, n_epoch=2, **options):
        box, seen = Box(), []
        cbs = [
            AttributeScheduler(box, "p", linear(0.0, 1.0)),
            Callback(after_step=lambda learn: seen.append(box.p)),
        ]
        cbs += options.pop("cbs", ())
        learner().fit(n_epoch, 0.1, cbs=cbs, **options)
        return seen

    run(cbs=[Checkpoint(tmp_path, "5 updates")])
    assert run(n_epoch=3, resume=tmp_path, extend="keep") == [5 / 7, 6 / 7, 1, 1, 1, 1, 1]
    expected = pytest.approx([u / 11 for u in range(5, 12)])
    assert run(n_epoch=3, resume=tmp_path, extend="restretch") == expected
    assert run(n_epoch=3, resume=tmp_path, extend="tail") == expected


# Lengths


@pytest.mark.parametrize("extend", ["keep", "restretch", "tail"])
def test_max_updates_may_change_within_an_epoch_that_it_cut_short(extend, tmp_path):
    def fit(learn, n=6, **options):
        learn.fit_one_cycle(None, 0.1, max_updates=n, **options)

    file = checkpoint_after(6, tmp_path, fit)
    learn = learner()
    fit(learn, 10, resume=file, extend=extend)
    assert (learn.n_updates, learn.total_epochs) == (10, 3)
    whole = learner()
    fit(whole, 10)
    # The same samples: each batch is another one within an epoch.
    assert len(record(learn)) == len(record(whole)) == 10
    if extend == "restretch":
        assert record(learn)[6:].tolist() == record(whole)[6:].tolist()


def test_a_fit_may_become_shorter(tmp_path):
    file = checkpoint_after(5, tmp_path)
    learn = learner()
    one_cycle_fit(learn, 2, resume=file, extend="tail")
    assert learn.n_updates == 8
    assert record(learn)[-1].tolist() == [0.02 / 1e5, 0.1 / 1e5]


@pytest.mark.parametrize("n_epoch", [1, 2])
def test_a_length_that_is_behind_already_is_refused(n_epoch, tmp_path):
    file = checkpoint_after(8, tmp_path)
    learn = learner()
    with pytest.raises(ValueError, match=f"8 updates are done, .* to have {n_epoch * N} in all"):
        one_cycle_fit(learn, n_epoch, resume=file, extend="tail")
    assert learn.total_updates == 0


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1), (3, 2)])
def test_accumulation_may_change(old, new, tmp_path):
    def make():
        return toy_learner(6, opt_func=sgd)

    def fit(learn, n, **options):
        cbs = [GradientAccumulation(n), *options.pop("cbs", ())]
        learn.fit_one_cycle(3, 0.1, cbs=cbs, **options)

    def old_fit(learn, **options):
        fit(learn, old, **options)

    per_epoch = math.ceil(6 / old)
    file = checkpoint_after(per_epoch, tmp_path, old_fit, make)  # the end of the first epoch
    learn = make()
    fit(learn, new, resume=file, extend="restretch")
    total = per_epoch + 2 * math.ceil(6 / new)
    assert learn.n_updates == learn.n_updates_planned == total
    assert record(learn)[per_epoch:].tolist() == rates_of(0.1, total, range(per_epoch, total))


def test_tail_gets_to_its_end_although_updates_were_skipped(tmp_path):
    def skip(learn):
        if learn.n_updates == 1 and learn.n_skipped < 2:
            raise CancelStep

    file = checkpoint_after(3, tmp_path, cbs=[Callback(before_step=skip)])
    learn = learner()
    one_cycle_fit(learn, 5, resume=file, extend="tail")
    assert (learn.n_updates, learn.n_skipped, learn.n_updates_planned) == (18, 2, 20)
    assert record(learn)[-1].tolist() == [0.02 / 1e5, 0.1 / 1e5]


# Again


class KilledError(Exception):
    pass


def kill_at(update):
    def kill(learn):
        if learn.n_updates == update:
            raise KilledError

    return Callback(after_loss=kill)


@pytest.mark.parametrize("extend", ["keep", "restretch", "tail"])
@pytest.mark.parametrize(("every", "bpu"), [("1 update", 1), ("3 updates", 2), ("1 epoch", 2)])
def test_an_extended_fit_that_is_killed_and_resumed_ends_in_the_same_bits(
    extend, every, bpu, tmp_path
):
    """The checkpoint knows its plan: what was extended once is not extended anew."""

    def fit(learn, folder, *cbs):
        accumulate = [GradientAccumulation(bpu)] if bpu > 1 else []
        saving = Checkpoint(folder, every, keep=99)
        one_cycle_fit(
            learn, 6, (0.1, 0.4), cbs=[*accumulate, *cbs, saving], resume=folder, extend=extend
        )

    def first(folder):
        with pytest.raises(KilledError):
            one_cycle_fit(learner(), cbs=[Checkpoint(folder, every), kill_at(6)])

    first(tmp_path / "a"), first(tmp_path / "b")
    whole = learner()
    fit(whole, tmp_path / "a")
    killed_at = (9, 11) if bpu > 1 else (9, 14, 20)
    for update in killed_at:
        with pytest.raises(KilledError):
            fit(learner(), tmp_path / "b", kill_at(update))
    learn = learner()
    fit(learn, tmp_path / "b")
    assert learn.n_updates == whole.n_updates
    assert trained(learn) == trained(whole)


def test_a_kept_schedule_can_be_kept_again(tmp_path):
    one_cycle_fit(learner(), cbs=[Checkpoint(tmp_path, "5 updates")])
    options = {"resume": tmp_path, "extend": "keep"}
    one_cycle_fit(learner(), 4, cbs=[Checkpoint(tmp_path, "5 updates")], **options)
    learn = learner()
    one_cycle_fit(learn, 6, **options)
    assert record(learn)[:, 1].tolist() == rates_of(0.1, 3 * N, range(6 * N))


@pytest.mark.parametrize("extend", ["keep", "restretch", "tail"])
def test_extend_changes_nothing_where_nothing_has_changed(extend, tmp_path):
    whole, learn = learner(), learner()
    one_cycle_fit(whole)
    one_cycle_fit(learn, resume=checkpoint_after(7, tmp_path), extend=extend)
    assert trained(learn) == trained(whole)


def test_without_a_checkpoint_extend_changes_nothing(tmp_path):
    whole, learn = learner(), learner()
    one_cycle_fit(whole)
    one_cycle_fit(learn, resume=tmp_path, extend="tail")
    assert trained(learn) == trained(whole)


# Refusals


def test_a_changed_plan_is_refused_with_both_plans_and_the_ways_out(tmp_path):
    file = checkpoint_after(5, tmp_path)
    learn = learner()
    with pytest.raises(ValueError, match=r"n_epoch was 3 and is 5; .* was 12 and is 20") as info:
        one_cycle_fit(learn, 5, (0.02, 0.3), resume=file)
    said = str(info.value)
    assert "lr_max was [0.02, 0.1] and is [0.02, 0.3]" in said
    assert '"keep" (the old schedule goes on' in said
    assert '"restretch" (the new' in said
    assert '"tail" (half a cosine' in said
    assert "kind" not in said  # no schedule in full where its arguments tell it
    assert learn.total_updates == 0


def test_what_is_no_matter_of_the_plan_is_refused_in_any_case(tmp_path):
    file = checkpoint_after(5, tmp_path)
    with pytest.raises(ValueError, match=r"another fit: .*weight_decay was"):
        one_cycle_fit(learner(), 5, resume=file, extend="tail", wd=0.5)
    with pytest.raises(ValueError, match=r"another fit: .*steps_per_epoch was"):
        one_cycle_fit(learner(), 5, resume=file, extend="tail", steps_per_epoch=2)


def test_extend_without_resume_is_an_error_that_says_so():
    learn = learner()
    with pytest.raises(ValueError, match="give resume= too"):
        learn.fit(2, 0.5, extend="keep")
    assert learn.groups.get("lr") == [1e-3, 1e-3]


def test_an_unknown_way_is_refused(tmp_path):
    with pytest.raises(ValueError, match="extend must be"):
        learner().fit(2, resume=tmp_path, extend="stretch")


def test_a_scheduler_of_torch_cannot_be_extended(tmp_path):
    def fit(learn, n_epoch=2, **options):
        halve = TorchScheduler(lambda opt: StepLR(opt, 2))
        learn.fit(n_epoch, cbs=[halve, *options.pop("cbs", ())], **options)

    file = checkpoint_after(3, tmp_path, fit)
    with pytest.raises(ValueError, match="TorchScheduler, which has a length of its own"):
        fit(learner(), 3, resume=file, extend="tail")


def test_a_tail_of_unknown_length_is_refused(tmp_path):
    class Unsized:
        def __init__(self, loader):
            self.loader = loader

        def __iter__(self):
            return iter(self.loader)

    def make():
        learn = learner()
        learn.dls.train = Unsized(learn.dls.train)
        return learn

    file = checkpoint_after(3, tmp_path, lambda learn, **o: learn.fit(2, 0.1, **o), make)
    learn = make()
    with pytest.raises(ValueError, match="loader has no length: give max_updates="):
        learn.fit(3, 0.2, resume=file, extend="tail")
    learn.fit(3, 0.2, resume=file, extend="restretch")
    assert record(learn)[:, 0].tolist() == [0.1] * 3 + [0.2] * 9


class Nameless(Schedule):
    def _values(self, p):
        return 0.1 + p


def test_a_schedule_that_could_not_be_stored_cannot_be_kept_but_left(tmp_path):
    def fit(learn, n_epoch=2, **options):
        learn.fit_one_cycle(n_epoch, 0.1, policy=Nameless(), **options)

    file = checkpoint_after(3, tmp_path, fit)
    with pytest.raises(ValueError, match="declare its class with a kind"):
        fit(learner(), 3, resume=file, extend="keep")
    learn = learner()
    fit(learn, 3, resume=file, extend="restretch")
    assert record(learn)[3:, 1].tolist() == [0.1 + u / 11 for u in range(3, 12)]
