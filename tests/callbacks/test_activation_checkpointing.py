"""Blocks that are computed again train to the same bits, and keep less."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import LearnerState, trained
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.checkpoint import checkpoint

from onecycle import (
    EMA,
    ActivationCheckpointing,
    Callback,
    CancelFit,
    Checkpoint,
    Learner,
    MicroBatches,
    MixedPrecision,
    TensorLoader,
)

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


class Drifting(nn.Module):
    """Its output depends on a buffer that its forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.factor = self.factor * 0.9 + 0.2
        return x * self.factor


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), Drifting()
        self.layers = nn.Sequential(*layers)
        self.runs = 0

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        self.runs += 1
        return x + self.layers(x) * scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, scale=x.new_tensor(0.5))
        found: Tensor = self.head(x)
        return found


def learner(*cbs: Callback, **options: Any) -> Learner:
    dls = TensorLoader(X, Y, batch_size=8, shuffle=True), TensorLoader(X, Y, batch_size=40)
    learn = Learner(dls, Net(), mse_loss, lr=0.01, device="cpu", seed=0, **options)
    learn.cbs = [learn.recorder, *cbs]
    torch.manual_seed(1)
    return learn


@pytest.mark.parametrize("others", [[], [MixedPrecision("bf16")], [EMA(0.5)], [MicroBatches(3)]])
def test_training_ends_in_the_same_bits(others: list[Callback]) -> None:
    whole = learner(*map(deepcopy, others))
    whole.fit_one_cycle(2, 0.05)
    again = learner(*others, ActivationCheckpointing(["blocks.*"]))
    again.fit_one_cycle(2, 0.05)
    assert trained(again) == trained(whole)
    assert again.model.blocks[0].runs == 2 * whole.model.blocks[0].runs - 2  # validated once a pass


def test_a_plain_checkpoint_would_change_the_buffers_twice() -> None:
    whole, plain = Block(), Block()
    plain.load_state_dict(whole.state_dict())
    scale = torch.ones(())
    whole(X.clone().requires_grad_(), scale=scale).sum().backward()
    checkpoint(plain, X.clone().requires_grad_(), scale=scale, use_reentrant=False).sum().backward()
    mean = whole.layers[1].running_mean
    assert not torch.equal(mean, plain.layers[1].running_mean)


def saved_bytes(cbs: list[Callback]) -> int:
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    learn = learner(*cbs, check=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        learn.fit(1, steps_per_epoch=1)
    return total


def test_less_is_kept_for_the_backward_pass() -> None:
    assert saved_bytes([ActivationCheckpointing(["blocks.*"])]) < saved_bytes([])


def test_an_interrupted_fit_ends_in_the_same_bits(tmp_path: Path) -> None:
    def stop(learn: Any) -> None:
        if learn.n_updates == 4:
            raise CancelFit

    blocks = ActivationCheckpointing(["blocks.0", "blocks.2"])
    whole = learner(blocks)
    whole.fit(2)
    cut = learner(blocks)
    cut.fit(2, cbs=[Checkpoint(tmp_path, every="1 update"), Callback(after_step=stop)])
    resumed = learner()  # bits are the same without it, and so it need not be there
    resumed.fit(2, resume=tmp_path)
    assert trained(resumed) == trained(whole)


def test_a_range_test_leaves_the_model_as_it_was_also_in_a_fit() -> None:
    learn = learner(ActivationCheckpointing(["blocks.*"]))
    for block in learn.model.blocks:
        del block.runs
        type(block).runs = 0
    before = LearnerState(learn)
    learn.lr_find(num_it=12, show_plot=False)
    assert before.changes(LearnerState(learn)) == []
    wrapped = []

    def look(learn: Any) -> None:
        if learn.n_updates == 3:
            learn.lr_find(num_it=5, show_plot=False)
        wrapped.append(["forward" in vars(block) for block in learn.model.blocks])

    learn.fit(1, cbs=[Callback(after_step=look)])
    assert wrapped == [[True] * 3] * 5
    assert not any("forward" in vars(module) for module in learn.model.modules())


def test_blocks_are_whole_again_after_an_error() -> None:
    def fail(learn: Any) -> None:
        raise ZeroDivisionError

    learn = learner(ActivationCheckpointing(["blocks.*"]))
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, cbs=[Callback(after_step=fail)])
    assert not any("forward" in vars(module) for module in learn.model.modules())


def test_a_copy_of_the_model_made_in_a_fit_runs_its_own_blocks() -> None:
    copies = []

    def copy(learn: Any) -> None:
        if learn.n_updates == 2:
            copies.append((deepcopy(learn.model).eval(), learn.model(X).detach()))

    learn = learner(ActivationCheckpointing(["blocks.*"]))
    learn.fit(1, cbs=[Callback(after_step=copy)])
    copied = copies[0][0]
    before = copied(X)
    learn.fit(1)
    assert torch.equal(copied(X), before)
    with torch.no_grad():
        for p in copied.blocks.parameters():
            p.zero_()
    assert not torch.equal(copied(X), before)


def test_a_forward_pass_of_the_block_s_own_is_kept() -> None:
    learn = learner(ActivationCheckpointing(["head"]))
    head, seen = learn.model.head, []

    def own(x: Tensor) -> Tensor:
        seen.append(len(x))
        return nn.functional.linear(x, head.weight) * 2

    head.forward = own
    learn.fit(1, steps_per_epoch=1)
    assert head.forward is own
    assert seen.count(8) >= 2  # forward, and again backward


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        (["layers.*"], {}, "no module of the model is called 'layers.*'; it has blocks, blocks.0"),
        (["blocks"], {"name": "blocks.1"}, "'blocks.1' lies in the block 'blocks'"),
        ("blocks.*", {}, "names of modules"),
        ([3], {}, "each of blocks"),
        ([], {}, "names of modules"),
    ],
)
def test_what_names_no_blocks_is_refused(blocks: Any, options: Any, message: str) -> None:
    given = [*blocks, *options.values()] if options else blocks
    with pytest.raises((ValueError, TypeError), match=message):
        learner().fit(1, cbs=[ActivationCheckpointing(given)])
