"""Optimizers that take turns: what each does is what a loop written by hand does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import LearnerState, trained
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, RMSprop

from onecycle import (
    Callback,
    CancelBatch,
    CancelFit,
    CancelStep,
    Checkpoint,
    GradientAccumulation,
    GradientClip,
    Learner,
    MicroBatches,
    MixedPrecision,
    OnecycleError,
    TensorLoader,
)
from onecycle.training.turns import Losses

REAL = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) * 0.1 + 1


def networks() -> nn.ModuleDict:
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Linear(8, 1))
    return nn.ModuleDict({"generator": generator, "critic": critic})


def optimizers(parts: nn.ModuleDict) -> dict[str, Any]:
    return {
        name: Adam(part.parameters(), lr=0.01, betas=(0.5, 0.99)) for name, part in parts.items()
    }


def critic_loss(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    return softplus(-critic(real)).mean() + softplus(critic(fake.detach())).mean()


class GAN(Learner):
    """Both parts step in each batch."""

    def compute_losses(self, batch: Any) -> Losses:
        generator, critic = self.model["generator"], self.model["critic"]
        fake = generator(torch.randn(len(self.xb), 2))
        yield "critic", critic_loss(critic, self.xb, fake)
        yield "generator", softplus(-critic(fake)).mean()


class WGAN(Learner):
    """The critic steps in each batch, and the generator in every fifth; its weights are bounded."""

    def compute_losses(self, batch: Any) -> Losses:
        generator, critic = self.model["generator"], self.model["critic"]
        fake = generator(torch.randn(len(self.xb), 2))
        yield "critic", critic(fake.detach()).mean() - critic(self.xb).mean()
        for p in critic.parameters():
            p.data.clamp_(-0.1, 0.1)
        if self.n_updates % 5 == 4:
            yield "generator", -critic(fake).mean()


def learner(
    kind: type[Learner] = GAN,
    make: Callable[[nn.ModuleDict], dict[str, Any]] = optimizers,
    *cbs: Callback,
    **options: Any,
) -> Learner:
    parts = networks()
    loader = TensorLoader(REAL, batch_size=8)
    given: dict[str, Any] = {"opt": make(parts)} | options
    learn = kind((loader, None), parts, device="cpu", seed=0, cbs=cbs, **given)
    learn.cbs = [learn.recorder, *cbs]
    torch.manual_seed(2)
    return learn


def series(learn: Learner, name: str) -> list[float]:
    return learn.recorder.history[name].values.tolist()


def weights(parts: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in parts.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_gan_over_one_cycle_is_that_of_a_loop_by_hand_to_the_bit() -> None:
    learn = learner()
    learn.fit_one_cycle(3, [0.02, 0.01])
    rates, betas = (learn.recorder.history[name].values for name in ("lr", "momentum"))
    assert rates.shape == (15, 2)

    parts = networks()
    opts, generator, critic = optimizers(parts), parts["generator"], parts["critic"]
    torch.manual_seed(2)
    losses: dict[str, list[float]] = {"critic": [], "generator": []}
    for i, (real,) in enumerate([*TensorLoader(REAL, batch_size=8)] * 3):
        for g, opt in enumerate(opts.values()):
            opt.param_groups[0].update(lr=rates[i, g], betas=(betas[i, g], 0.99))
        fake = generator(torch.randn(8, 2))
        of_critic = critic_loss(critic, real, fake)
        opts["critic"].zero_grad()
        of_critic.backward()
        opts["critic"].step()
        of_generator = softplus(-critic(fake)).mean()
        opts["generator"].zero_grad()
        of_generator.backward()
        opts["generator"].step()
        losses["critic"].append(of_critic.item())
        losses["generator"].append(of_generator.item())
    for name, expected in losses.items():
        assert series(learn, f"train_loss/{name}") == expected
    total = [torch.tensor(a) + torch.tensor(b) for a, b in zip(*losses.values(), strict=True)]
    assert series(learn, "train_loss") == [value.item() for value in total]
    assert equal(weights(learn.model), weights(parts))
    assert learn.n_updates == 15


def rmsprops(parts: nn.ModuleDict) -> dict[str, Any]:
    return {name: RMSprop(part.parameters(), lr=0.001) for name, part in parts.items()}


def test_a_critic_that_steps_five_times_as_often_and_is_clipped_is_that_of_a_loop_by_hand() -> None:
    learn = learner(WGAN, rmsprops, GradientClip(0.05))
    learn.fit(4)
    parts = networks()
    opts, generator, critic = rmsprops(parts), parts["generator"], parts["critic"]
    torch.manual_seed(2)
    losses: dict[str, list[float]] = {"critic": [], "generator": []}

    def step(name: str, loss: Tensor) -> None:
        opts[name].zero_grad()
        loss.backward()
        clip_grad_norm_(parts[name].parameters(), 0.05)
        opts[name].step()
        losses[name].append(loss.item())

    for i, (real,) in enumerate([*TensorLoader(REAL, batch_size=8)] * 4):
        fake = generator(torch.randn(8, 2))
        step("critic", critic(fake.detach()).mean() - critic(real).mean())
        for p in critic.parameters():
            p.data.clamp_(-0.1, 0.1)
        if i % 5 == 4:
            step("generator", -critic(fake).mean())
    for name, expected in losses.items():
        assert series(learn, f"train_loss/{name}") == expected
    assert learn.recorder.history["train_loss/generator"].updates.tolist() == [5, 10, 15, 20]
    assert equal(weights(learn.model), weights(parts))
    assert [opt.state[next(iter(opt.state))]["step"].item() for opt in learn.opt.members.values()]


@pytest.mark.parametrize("kind", [GAN, WGAN])
def test_a_fit_that_was_killed_ends_in_the_same_bits(kind: type[Learner], tmp_path: Path) -> None:
    whole = learner(kind)
    whole.fit_one_cycle(2, 0.02)

    def kill(learn: Any) -> None:  # between the turns of the seventh update
        if learn.n_updates == 6 and learn.stepper is not own[0]:
            raise KeyboardInterrupt

    own: list[Any] = []
    keep_own = Callback(
        before_fit=lambda learn: own.append(learn.stepper),
        before_step=kill,
    )
    cut = learner(kind)
    with pytest.raises(KeyboardInterrupt):
        cut.fit_one_cycle(2, 0.02, cbs=[Checkpoint(tmp_path, every="1 update"), keep_own])
    assert cut.n_updates == 6
    torch.manual_seed(9)
    resumed = learner(kind)
    resumed.fit_one_cycle(2, 0.02, resume=tmp_path)
    assert trained(resumed) == trained(whole)


def test_a_range_test_puts_both_back_also_between_two_updates() -> None:
    learn = learner()
    learn.fit(1)
    before = LearnerState(learn)
    assert len(learn.lr_find(num_it=20, show_plot=False).lrs) > 10
    assert before.changes(LearnerState(learn)) == []

    def look(learn: Any) -> None:
        if learn.n_updates == 7:
            learn.lr_find(num_it=5, show_plot=False)

    plain = learner()
    plain.fit(2)
    interrupted = learner()
    interrupted.fit(2, cbs=[Callback(after_step=look)])
    assert equal(weights(plain.model), weights(interrupted.model))
    assert series(plain, "train_loss") == series(interrupted, "train_loss")


def test_an_optimizer_that_is_frozen_has_no_turn() -> None:
    learn = learner(splitter=lambda parts: [part.parameters() for part in parts.values()])
    learn.freeze_to(1, train_bn=False)  # the generator is the first
    before = weights(learn.model["generator"][0]), weights(learn.model["critic"])
    learn.fit(1)
    assert equal(before[0], weights(learn.model["generator"][0]))
    assert not equal(before[1], weights(learn.model["critic"]))
    assert "train_loss/generator" not in learn.recorder.history
    assert series(learn, "train_loss") == series(learn, "train_loss/critic")


def test_each_turn_fires_the_events_of_its_step_and_the_batch_its_own_once() -> None:
    heard: list[Any] = []
    named = {
        event: lambda learn, event=event: heard.append((event, len(learn.stepper.params)))
        for event in (
            "before_batch", "after_pred", "after_loss", "before_backward", "after_backward",
            "before_step", "after_step", "after_batch",
        )
    }  # fmt: skip
    learner(check=False).fit(1, cbs=[Callback(**named)], steps_per_epoch=1)  # type: ignore[arg-type]
    turn = ["after_loss", "before_backward", "after_backward", "before_step"]
    of_critic, of_generator = ([(event, n) for event in turn] for n in (4, 6))
    once = [("before_batch", 10)], [("after_step", 10), ("after_batch", 10)]
    assert heard == [*once[0], *of_critic, *of_generator, *once[1]]


def test_a_turn_that_is_skipped_leaves_the_other_and_an_update_of_none_is_skipped() -> None:
    def skip(learn: Any) -> None:
        of_critic = len(learn.stepper.params) == 4
        if learn.iter == 3 or (learn.iter == 1 and of_critic):
            raise CancelStep

    learn = learner()
    learn.fit(1, cbs=[Callback(before_step=skip)])
    assert (learn.n_updates, learn.n_skipped) == (4, 1)
    history = learn.recorder.history
    assert history["train_loss/critic"].updates.tolist() == [1, 3, 4]
    assert history["train_loss/generator"].updates.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("cancel", [CancelBatch, CancelFit])
def test_a_batch_cancelled_after_one_turn_is_an_update_of_that(
    cancel: type[Exception],
) -> None:
    def stop(learn: Any) -> None:
        if learn.iter == 2 and len(learn.stepper.params) == 6:
            raise cancel

    learn = learner()
    learn.fit(1, cbs=[Callback(after_loss=stop)])
    assert learn.n_updates == (5 if cancel is CancelBatch else 3)
    updates = learn.recorder.history["train_loss/generator"].updates.tolist()
    assert updates == ([1, 2, 4, 5] if cancel is CancelBatch else [1, 2])
    assert learn.recorder.history["train_loss"].updates.tolist() == [*range(1, learn.n_updates + 1)]
    assert all(p.grad is None for p in learn.model.parameters())


def test_bf16_holds_for_the_losses_and_not_for_the_steps() -> None:
    modes = []

    class Half(GAN):
        def compute_losses(self, batch: Any) -> Losses:
            for turn in super().compute_losses(batch):
                modes.append(torch.is_autocast_enabled("cpu"))
                yield turn

    look = Callback(before_step=lambda learn: modes.append(torch.is_autocast_enabled("cpu")))
    learn = learner(Half, optimizers, MixedPrecision("bf16"), look)
    learn.fit(1, steps_per_epoch=1)
    assert modes == [True, False] * 2


def test_the_check_finds_nothing_in_a_gan() -> None:
    assert learner().check().findings == ()


def test_validation_goes_by_the_loss_of_predictions() -> None:
    class Judged(GAN):
        def predict_batch(self, batch: Any) -> Tensor:
            pred: Tensor = self.model["critic"](self.xb)
            return pred

        def compute_loss(self, pred: Any, batch: Any) -> Tensor:
            return softplus(-pred).mean()

    learn = learner(Judged)
    learn.dls.valid = TensorLoader(REAL, batch_size=40)
    learn.fit(1)
    learn.model.eval()
    expected = softplus(-learn.model["critic"](REAL)).mean().item()
    assert series(learn, "valid_loss") == [pytest.approx(expected, rel=1e-6)]


def yielding(*turns: Any) -> type[Learner]:
    class Odd(Learner):
        def compute_losses(self, batch: Any) -> Losses:
            loss = self.model["critic"](self.xb).mean()
            for turn in turns:
                yield (turn, loss) if isinstance(turn, str) else turn

    return Odd


class Returning(Learner):
    def compute_losses(self, batch: Any) -> Any:
        return None


class Postpones(Callback):
    def after_backward(self, learn: Any) -> None:
        raise CancelStep


@pytest.mark.parametrize(
    ("kind", "options", "cbs", "message"),
    [
        (yielding("judge"), {}, [], "one of 'generator', 'critic' with a loss; got 'judge'"),
        (yielding("critic", "critic"), {}, [], "'critic' twice"),
        (yielding(0.5), {}, [], "it yielded 0.5"),
        (yielding(("critic", 0.5)), {}, [], "leave out .item"),
        (yielding(), {}, [], "no loss for a batch"),
        (Returning, {}, [], "it returned None"),
        (GAN, {"opt": None}, [], "the learner has one, AdamW: give it several by name"),
        (GAN, {}, [GradientAccumulation(2)], "GradientAccumulation cannot"),
        (GAN, {}, [MixedPrecision("fp16")], r'MixedPrecision\("bf16"\) makes none'),
        (GAN, {}, [MicroBatches(4)], "made in another way, of one loss"),
        (GAN, {}, [Postpones()], "skip it in before_step"),
    ],
)
def test_what_cannot_take_turns_is_refused_in_words(
    kind: type[Learner], options: Any, cbs: list[Callback], message: str
) -> None:
    learn = learner(kind, optimizers, *cbs, **options)
    before = weights(learn.model["generator"][0])
    with pytest.raises((ValueError, TypeError, OnecycleError), match=message):
        learn.fit(1)
    assert equal(before, weights(learn.model["generator"][0]))
    assert learn.total_updates == (1 if message == "'critic' twice" else 0)


class Apart:
    """Stands in for processes of which another one takes other turns."""

    rank, world, is_first = 0, 2, True

    def is_alike(self, value: int) -> bool:
        return False

    def fail(self, error: BaseException) -> None:
        return None


def test_turns_that_differ_between_processes_are_refused() -> None:
    learn = learner()
    learn.processes = Apart()  # type: ignore[assignment]
    with pytest.raises(OnecycleError, match="go by other turns"):
        learn.fit(1)


def test_of_several_processes_none_passes_over_a_batch_by_itself() -> None:
    class Passes(GAN):
        def compute_losses(self, batch: Any) -> Losses:
            raise CancelBatch
            yield

    learn = learner(Passes)
    learn.processes = Apart()  # type: ignore[assignment]
    with pytest.raises(OnecycleError, match="of which the other processes do not hear"):
        learn.fit(1)
