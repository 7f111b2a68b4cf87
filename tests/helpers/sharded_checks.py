"""Each process with a part of the model: the parameters and the record of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equal_checks import BOUND, MacroRecall
from resume_checks import ids
from together import (
    RANK,
    UPDATES,
    WHOLE,
    WORLD,
    N,
    X,
    Y,
    distance,
    flat,
    gathered,
    learner,
    loaders,
    net,
    run,
    same_bits,
    weights,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from onecycle import (
    EMA,
    SWA,
    ActivationCheckpointing,
    Callback,
    CancelBatch,
    CancelFit,
    CancelStep,
    ChannelsLast,
    Checkpoint,
    CudaGraph,
    EarlyStopping,
    GradientAccumulation,
    GradientClip,
    GradientNorm,
    Learner,
    MixedPrecision,
    OnecycleError,
    ReduceLROnPlateau,
    SaveModel,
    TensorLoader,
    TerminateOnNonFinite,
    UpdateRatios,
    accuracy,
    token_weight,
)
from onecycle.optim.sharded import is_sharded, whole

EPOCHS = 2


def cut(**options: Any) -> Learner:
    return learner(parallel="fsdp", **options)


def equal_everywhere(learn: Learner) -> None:
    record = {name: series.values.tolist() for name, series in learn.recorder.history.items()}
    said = gathered(([w.tolist() for w in weights(learn)], record, learn.stop_reason))
    assert all(other == said[0] for other in said), said


def both(cbs: Any = list, n_epoch: int = 3, **options: Any) -> tuple[Learner, Learner]:
    """Fit together and alone, and compare all that is recorded and trained."""
    learn, alone = cut(**options), learner(alone=True, **options)
    for each in (learn, alone):
        each.fit_one_cycle(n_epoch, 0.1, cbs=cbs())
    equal_everywhere(learn)
    assert learn.n_updates == alone.n_updates > 0
    assert distance(learn, alone) < BOUND
    assert all(map(is_sharded, learn.model.parameters()))
    return learn, alone


def check_each_process_has_a_part(folder: Path) -> None:
    learn = cut()
    own = [p.to_local().numel() for p in learn.model.parameters()]
    sizes = [sum(each) for each in gathered(own)]
    assert sum(sizes) == sum(p.numel() for p in net().parameters())
    assert max(sizes) < sum(sizes) * 0.9
    learn.fit(1)
    states = [state["momentum_buffer"] for state in learn.opt.state.values()]
    assert [state.to_local().numel() for state in states] == own


def check_the_weights_are_the_first_ones(folder: Path) -> None:
    torch.manual_seed(RANK)
    layers = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
    model = nn.Sequential(*layers).double()
    model[1].running_mean.fill_(RANK + 7)
    first = gathered([each.detach().tolist() for each in (*model.parameters(), *model.buffers())])
    learn = cut(model=model)
    assert [w.tolist() for w in weights(learn)] == first[0]


def check_plain_sgd_over_200_updates(folder: Path) -> None:
    learn, _ = both(n_epoch=200 // UPDATES)
    assert learn.n_updates == 200


def check_gradients_of_other_weights_are_seen(folder: Path) -> None:
    """The negative control: one process counts for twice its samples."""

    def spoil(learn: Any) -> None:
        learn.loss_grad = learn.loss_grad * (1 + (RANK == 0))

    learn, alone = cut(), learner(alone=True)
    learn.fit(1, cbs=[Callback(before_backward=spoil)])
    alone.fit(1)
    assert distance(learn, alone) > 1000 * BOUND


def check_the_blocks_that_are_named_are_cut(folder: Path) -> None:
    def are_cut(learn: Learner) -> list[bool]:
        return [hasattr(part, "reshard") for part in learn.model]

    learn, other = cut(blocks=["2"]), cut()
    assert are_cut(learn) == [False, False, True]
    assert are_cut(other) == [True, False, True]
    for each in (learn, other):
        each.fit(1)
    same_bits(learn, other)
    with pytest.raises(ValueError, match="blocks must be the same in every process"):
        cut(blocks=["2"] if RANK else ["0"])


def check_optimizers(folder: Path) -> None:
    optim = torch.optim
    for kind in (optim.AdamW, optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.RMSprop):
        both(n_epoch=2, opt_func=kind)
    for kind in (optim.Adagrad, optim.Adadelta, optim.ASGD):
        both(n_epoch=2, opt_func=kind)


def check_groups_and_decay(folder: Path) -> None:
    def splitter(model: nn.Module) -> Any:
        return [list(model[0].parameters()), list(model[2].parameters())]

    both(splitter=splitter, wd=0.1, opt_func=torch.optim.AdamW)


def check_accumulation_and_its_last_window(folder: Path) -> None:
    both(lambda: [GradientAccumulation(4), GradientClip(0.5)])


def check_the_norm_that_clips_is_over_all_parts(folder: Path) -> None:
    clips: list[GradientClip] = []

    def cbs() -> list[Callback]:
        clips.append(GradientClip(0.1))
        return [clips[-1], GradientNorm(), UpdateRatios(2)]

    both(cbs)
    norms = [float(clip.norm) for clip in clips]
    assert abs(norms[0] - norms[1]) < BOUND
    assert not is_sharded(clips[0].norm)
    assert norms[0] > 0.1


def check_clipping_by_value(folder: Path) -> None:
    both(lambda: [GradientClip(max_value=0.01)])


def check_activation_checkpointing(folder: Path) -> None:
    both(lambda: [ActivationCheckpointing(["0", "2"]), GradientClip(0.1)])


def check_averages(folder: Path) -> None:
    both(lambda: [EMA(0.9)])
    both(lambda: [SWA(0.5)])


def check_a_last_batch_of_one_sample(folder: Path) -> None:
    made, n = [], 2 * WHOLE + 1
    for alone in (False, True):
        size = WHOLE if alone else WHOLE // WORLD
        train = TensorLoader(X[:n], Y[:n], batch_size=size, shuffle=True)
        dls = (train, TensorLoader(X[:n], Y[:n], batch_size=size))
        made.append(learner(True, dls) if alone else cut(dls=dls))
        made[-1].fit(4)
    assert distance(*made) < BOUND


def check_a_loss_over_valid_targets(folder: Path) -> None:
    y = torch.where(torch.arange(N) % 3 > 0, Y, -100)
    for cbs in ([], [GradientAccumulation(3)]):
        made = []
        for alone in (False, True):
            size = WHOLE if alone else WHOLE // WORLD
            dls = (
                TensorLoader(X, y, batch_size=size, shuffle=True),
                TensorLoader(X, y, batch_size=8),
            )
            options = {"loss_func": F.cross_entropy, "metrics": [], "loss_weight": token_weight()}
            made.append(learner(True, dls, **options) if alone else cut(dls=dls, **options))
            made[-1].fit(3, cbs=cbs)
        assert distance(*made) < BOUND


def check_metrics_and_data_loaders(folder: Path) -> None:
    made = []
    for alone in (False, True):
        size = WHOLE if alone else WHOLE // WORLD
        data = TensorDataset(X, Y)
        dls = DataLoader(data, size, shuffle=True), DataLoader(data, 5)
        options = {"dls": dls, "metrics": [MacroRecall(), accuracy]}
        made.append(learner(alone=True, **options) if alone else cut(**options))
        made[-1].fit(2)
    assert distance(*made) < BOUND


def check_a_loss_with_parameters(folder: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))

        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(pred * self.scale, target)

    learn, alone = cut(loss_func=Scaled()), learner(True, loss_func=Scaled())
    for each in (learn, alone):
        each.fit(3)
    assert distance(learn, alone) < BOUND
    scales = [float(whole(each.loss_func.scale.detach())) for each in (learn, alone)]
    assert abs(scales[0] - scales[1]) < BOUND
    assert scales[0] != 1.5


def check_freezing(folder: Path) -> None:
    def freeze(learn: Any) -> None:
        for p in learn.model[0].parameters():
            p.requires_grad_(learn.epoch > 0)

    both(lambda: [Callback(before_epoch=freeze)])
    made = []
    for alone in (False, True):
        options = {"splitter": lambda m: [[*m[0].parameters()], [*m[2].parameters()]]}
        learn = learner(alone=True, **options) if alone else cut(**options)
        before = weights(learn)
        learn.freeze()
        learn.fit(1, cbs=[EMA(0.5)])
        assert torch.equal(weights(learn)[0], before[0])
        learn.unfreeze()
        learn.fit(1)
        assert not torch.equal(weights(learn)[0], before[0])
        made.append(learn)
    assert distance(*made) < BOUND


class Tied(nn.Module):
    """A head with the weights of the first layer, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mixes = nn.Linear(5, 3, bias=False), nn.Linear(3, 3)
        self.head = nn.Linear(5, 3, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        inner = self.mixes(self.mixes(self.embed(x)).tanh())
        return inner + self.head(x)


def check_tied_weights(folder: Path) -> None:
    made = []
    for alone in (False, True):
        torch.manual_seed(0)
        model = Tied().double()
        made.append(learner(True, model=model) if alone else cut(model=model))
        made[-1].fit(3)
        assert made[-1].model.head.weight is made[-1].model.embed.weight
    assert distance(*made) < BOUND
    made[0].save(folder / f"tied-{WORLD}.pt")
    torch.manual_seed(1)
    other = learner(True, model=Tied().double())
    other.load(folder / f"tied-{WORLD}.pt")
    assert torch.equal(other.model.head.weight, weights(made[0])[0])


def check_plateau_best_model_and_early_stopping(folder: Path) -> None:
    made = []
    for alone in (False, True):
        learn = learner(alone=True) if alone else cut()
        path = folder / (f"alone-{WORLD}-{RANK}.pt" if alone else f"best-{WORLD}.pt")
        cbs = [ReduceLROnPlateau(min_delta=0.5, factor=0.3), SaveModel(path), EMA(0.5)]
        learn.fit(5, 5.0, cbs=[*cbs, EarlyStopping(min_delta=0.5, patience=3)])
        made.append(learn)
        gathered(None)
    assert made[0].n_updates == made[1].n_updates
    assert distance(*made) < BOUND
    equal_everywhere(made[0])


def check_cancels_in_one_process(folder: Path) -> None:
    for event, cancel in (("before_batch", CancelBatch), ("after_loss", CancelBatch)):
        both(lambda event=event, cancel=cancel: [raising(event, cancel)])
    both(lambda: [raising("after_backward", CancelBatch), GradientAccumulation(3)])
    both(lambda: [raising("before_step", CancelStep)])
    # What comes after it asks the others for their parts of the gradients.
    both(lambda: [raising("before_step", CancelStep), TerminateOnNonFinite("skip")])


def raising(event: str, cancel: type[Exception]) -> Callback:
    """Let the last process raise a cancel at the fifth event."""
    heard: list[int] = []

    def hear(learn: Any) -> None:
        heard.append(1)
        if len(heard) == 5 and (learn.processes is None or RANK == WORLD - 1):
            raise cancel("enough")

    return Callback(**{event: hear})


def check_what_is_not_finite_ends_the_fit_alike(folder: Path) -> None:
    for action in ("stop", "skip"):
        made = []
        for alone in (False, True):
            learn = learner(alone=True) if alone else cut()
            stop = TerminateOnNonFinite(action, max_skips=2)

            def spoil(learn: Any) -> None:
                if learn.n_updates == 2:  # one number, which one of the processes has
                    learn.model[2].bias.grad.mul_(float("nan"))

            late = Callback(before_step=spoil)
            late.stage = stop.stage
            learn.fit(1, cbs=[late, stop])
            made.append((learn, stop))
        (learn, stop), (alone_, stop_alone) = made
        assert learn.n_updates == alone_.n_updates
        assert learn.n_skipped == alone_.n_skipped == (2 if action == "skip" else 0)
        assert str(stop.post_mortem)[:200] == str(stop_alone.post_mortem)[:200]
        assert stop.post_mortem.bad_parameters == stop_alone.post_mortem.bad_parameters


# What leaves nothing behind ---------------------------------------------------------------


def check_the_range_test_is_that_of_one_process(folder: Path) -> None:
    learn, alone = cut(), learner(alone=True)
    found, right = (each.lr_find(num_it=30, show_plot=False) for each in (learn, alone))
    assert abs(found.suggestion / right.suggestion - 1) < 1e-6
    for each in (learn, alone):
        each.fit(1)
    before, rng = weights(learn), torch.get_rng_state()
    state = [[*map(whole, each.values())] for each in learn.opt.state.values()]
    state = [[value.clone() for value in each] for each in state]
    held = [*learn.model.parameters()]
    found, right = (each.lr_find(num_it=30, show_plot=False) for each in (learn, alone))
    assert np.abs(found.losses - right.losses).max() < 1e-5 * np.abs(right.losses).max()
    assert gathered(found.losses.tolist()) == [found.losses.tolist()] * WORLD
    assert all(torch.equal(*pair) for pair in zip(weights(learn), before, strict=True))
    assert all(p is was for p, was in zip(learn.model.parameters(), held, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    for n, each in enumerate(learn.opt.state.values()):
        assert all(map(torch.equal, map(whole, each.values()), state[n]))
    assert all(p.grad is None for p in held)
    learn.lr_find(num_it=12, show_plot=False, valid=True)
    learn.check()
    assert learn.total_updates == UPDATES
    for each in (learn, alone):
        each.fit(1)
    assert distance(learn, alone) < BOUND


def check_inference_of_all_together(folder: Path) -> None:
    learn, alone = cut(), learner(alone=True)
    for each in (learn, alone):
        each.fit(1)
    assert abs(learn.validate()["valid_loss"] - alone.validate()["valid_loss"]) < BOUND
    preds = learn.get_preds().preds
    assert (preds - alone.get_preds().preds).abs().max() < BOUND
    assert gathered(preds.tolist()) == [preds.tolist()] * WORLD
    assert (learn.predict(X[0]) - alone.predict(X[0])).abs().max() < BOUND
    table, right = (
        each.compare(2, 0.1, ["constant", "one_cycle"], seeds=[0], init=net)
        for each in (learn, alone)
    )
    for policy in ("constant", "one_cycle"):
        ends = [float(each.final(policy, "train_loss")[0]) for each in (table, right)]
        assert abs(ends[0] - ends[1]) < BOUND


# Files ------------------------------------------------------------------------------------


def check_a_saved_file_is_a_plain_one(folder: Path) -> None:
    learn = cut(opt_func=torch.optim.AdamW)
    learn.fit(2)
    path = folder / f"saved-{WORLD}.pt"
    learn.save(path)
    for other in (
        learner(True, opt_func=torch.optim.AdamW),
        cut(opt_func=torch.optim.AdamW),
        learner(opt_func=torch.optim.AdamW),
    ):
        other.load(path)
        assert all(map(torch.equal, weights(learn), weights(other)))
        for mine, theirs in zip(learn.opt.state.values(), other.opt.state.values(), strict=True):
            assert all(torch.equal(whole(mine[name]), whole(theirs[name])) for name in mine)
        assert is_sharded(next(other.model.parameters())) is (other.sharded is not None)
        other.fit(1)
    torch.load(path, weights_only=True, map_location="cpu")
    alone = learner(True, opt_func=torch.optim.AdamW)
    alone.fit(2)
    if RANK == 0:
        alone.save(folder / f"one-saved-{WORLD}.pt")
    gathered(None)
    learn.load(folder / f"one-saved-{WORLD}.pt")
    assert all(map(torch.equal, weights(learn), weights(alone)))


def numbered(kind: str, size: int | None = None, **options: Any) -> Learner:
    alone = kind == "one"
    size = size or (WHOLE if alone else WHOLE // WORLD)
    train = TensorLoader(X, Y, torch.arange(N), batch_size=size, shuffle=True)
    options |= {"loss_func": lambda pred, y, i: F.cross_entropy(pred, y), "n_inp": 1, "metrics": []}
    how = {} if kind == "one" else {"parallel": kind}
    return learner(alone, (train, None), **how, **options)


def begin(kind: str, folder: Path, at: int, cbs: Any = list, **options: Any) -> None:
    learn = numbered(kind, **options)

    def stop(learn: Any) -> None:
        if learn.n_updates == at:
            raise CancelFit

    ends = Callback(after_step=stop)
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=[*cbs(), Checkpoint(folder, "2 updates"), ends])
    assert learn.n_updates == at


def check_the_same_number_ends_in_the_same_bits(folder: Path) -> None:
    def cbs() -> list[Callback]:
        return [EMA(0.9), GradientAccumulation(2), GradientClip(0.3)]

    mine, options = folder / f"same-{WORLD}", {"opt_func": torch.optim.AdamW}
    begin("fsdp", mine, 4, cbs, **options)
    right = numbered("fsdp", **options)
    right.fit_one_cycle(EPOCHS, 0.1, cbs=cbs())
    learn = numbered("fsdp", **options)
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=cbs(), resume=mine)
    assert learn.n_updates == right.n_updates
    same_bits(learn, right)


def check_another_way_goes_on(folder: Path) -> None:
    """From ``ddp`` to ``fsdp`` and back, from and to one process."""
    right, seen_right = numbered("one"), []
    right.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen_right)])
    for was, now in (("ddp", "fsdp"), ("fsdp", "ddp"), ("one", "fsdp"), ("fsdp", "one")):
        mine = folder / f"{was}-{now}-{WORLD}"
        if was != "one" or RANK == 0:
            begin(was, mine, 7)
        gathered(None)
        size = {"one": WHOLE, "ddp": WHOLE // WORLD, "fsdp": WHOLE // WORLD}[was]
        learn, seen = numbered(now, size), []
        learn.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen)], resume=mine)
        parts = [seen] if now == "one" else gathered(seen)
        assert [flat(each) for each in zip(*parts, strict=True)] == seen_right[6:]
        assert distance(learn, right) < BOUND, (was, now)


def check_begin_for_others(folder: Path) -> None:
    """Leave a checkpoint for another number of processes: see the next one."""
    begin("fsdp", folder / f"cut-for-others-{WORLD}", 7)


def check_another_number_goes_on(folder: Path) -> None:
    mine = folder / f"cut-for-others-{6 - WORLD}"
    right, seen_right = numbered("one"), []
    right.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen_right)])
    learn, seen = numbered("fsdp", WHOLE // (6 - WORLD)), []
    learn.fit_one_cycle(EPOCHS, 0.1, cbs=[ids(seen)], resume=mine)
    assert [flat(each) for each in zip(*gathered(seen), strict=True)] == seen_right[6:]
    assert distance(learn, right) < BOUND


# What is refused --------------------------------------------------------------------------


def check_what_cannot_be_cut_is_refused(folder: Path) -> None:
    model = net()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": model, "opt": torch.optim.SGD(model.parameters(), 0.1)}, "opt_func="),
        ({"opt_func": torch.optim.Adafactor}, "Adafactor may need them whole"),
        ({"opt_func": torch.optim.Rprop}, "Rprop may need them whole"),
        ({"compile": True}, "compile="),
        ({"model": nn.Sequential(nn.Linear(5, 3).double(), nn.Linear(3, 3))}, "one dtype"),
        ({"model": nn.Sequential(nn.LazyLinear(3))}, "lazy"),
        ({"model": cut().model}, "the plain one"),
        ({"cbs": [MixedPrecision("fp16")]}, "fp16"),
    ]
    for options, word in cases:
        with pytest.raises(ValueError, match=word):
            cut(**options)
    for each in (CudaGraph(), ChannelsLast()):
        with pytest.raises(ValueError, match=f"{type(each).__name__} needs the whole model"):
            cut().fit(1, cbs=[each])
    with pytest.raises(ValueError, match="compute_losses is for"):
        InTurns(loaders(4), net(), F.mse_loss, parallel="fsdp")
    learn = cut()
    with pytest.raises(ValueError, match=r"cbs=\[MixedPrecision"):
        learn.fit(1, cbs=[MixedPrecision("bf16")])
    assert learn.n_updates == 0
    with pytest.raises(OnecycleError, match="make the Learner anew"):
        learn.fit(1)
    with pytest.raises(OnecycleError, match="make the Learner anew"):
        learn.validate()
    with pytest.raises(OnecycleError, match="make the Learner anew"):
        learn.save(folder / "parted.pt")
    with pytest.raises(ValueError, match="needs the whole model"):
        learn.export(folder / "exported.pt")
    with pytest.raises(ValueError, match="needs the whole model"):
        learn.summary()


class InTurns(Learner):
    """Trains by a loss for each optimizer."""

    def compute_losses(self, batch: Any) -> Any:
        yield "all", F.mse_loss(self.model(self.xb), self.yb)


def check_other_modules_in_one_process_are_refused(folder: Path) -> None:
    for in_training, n_updates in ((True, 0), (False, UPDATES)):
        learn = cut(model=Other(in_training).double())
        with pytest.raises(OnecycleError, match=r"must use the same ones|another process"):
            learn.fit(1)
        assert learn.n_updates == n_updates


class Borrowing(nn.Module):
    """Takes the weight of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.layer = nn.Sequential(nn.Linear(5, 3), nn.Tanh()), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.body(x), self.layer.weight)


def check_a_weight_of_a_part_that_is_not_called_is_explained(folder: Path) -> None:
    learn = cut(model=Borrowing().double(), blocks=["layer"])
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    assert "used without calling it" in "\n".join(caught.value.__notes__)


class Other(nn.Module):
    """Of two layers of one size, one process takes another one in training or in validation."""

    def __init__(self, in_training: bool) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)
        self.in_training = in_training

    def forward(self, x: Tensor) -> Tensor:
        if self.training is not self.in_training:
            return self.one(x) + self.other(x)
        return self.other(x) if RANK else self.one(x)


def check_an_error_in_one_process_ends_all(folder: Path) -> None:
    def fail(learn: Any) -> None:
        if learn.n_updates == 3 and RANK == WORLD - 1:
            raise ArithmeticError("the callback failed")

    for event in ("after_pred", "before_backward", "after_step"):
        learn = cut()
        try:
            learn.fit(3, cbs=[Callback(**{event: fail})])
        except Exception as error:
            own = repr(error)
        else:
            own = "no error"
        said = gathered(own)
        assert all("the callback failed" in each for each in said), said
        assert all(map(is_sharded, learn.model.parameters()))
        again = cut()
        again.fit(1)
        equal_everywhere(again)


# Precision --------------------------------------------------------------------------------


def check_bf16_by_torchs_policy(folder: Path) -> None:
    made, seen = [], []
    for precision in ([MixedPrecision("bf16")], []):
        model = net().float()
        dls = tuple(
            TensorLoader(X.float(), Y, batch_size=WHOLE // WORLD, shuffle=True) for _ in range(2)
        )
        model[2].register_forward_hook(lambda m, args, out: seen.append(out.dtype))
        learn = cut(model=model, dls=dls, cbs=precision)
        learn.cbs += [each for each in precision if each not in learn.cbs]
        learn.fit(4)
        assert next(learn.model.parameters()).dtype is torch.float32
        made.append(learn)
    assert seen[0] is torch.bfloat16
    assert seen[-1] is torch.float32
    assert made[0].get_preds().preds.dtype is torch.float32
    losses = [each.recorder.history["train_loss"].values for each in made]
    assert 0 < np.abs(losses[0] - losses[1]).max() < 0.02
    equal_everywhere(made[0])


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
CHECKS = {name: value for name, value in CHECKS.items() if value.__module__ == __name__}

if __name__ == "__main__":
    run(CHECKS)
