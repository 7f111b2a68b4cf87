"""No library is measured that does not do the work of the loop by hand."""

import pytest
import torch
from bare_loop import LR, OPTIMIZERS, Batches, by_hand, make_batches, tiny_model
from peers import Trained, check, run_by_hand, run_onecycle

BATCHES = make_batches(100)


def trained(batches: Batches, opt_func=OPTIMIZERS["SGD"]) -> Trained:
    model = tiny_model()
    by_hand(opt_func, model, batches)()
    return Trained(model)


def without_cycled_momentum(batches: Batches) -> Trained:
    model = tiny_model()
    opt = OPTIMIZERS["SGD"](model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        opt, LR, total_steps=len(batches), cycle_momentum=False
    )
    for xb, yb in batches:
        torch.nn.functional.cross_entropy(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
        schedule.step()
    return Trained(model)


@pytest.mark.parametrize("side", [run_by_hand, run_onecycle])
def test_a_side_that_makes_every_update_is_accepted(side):
    did = check(side, BATCHES)
    assert did.startswith("100 updates, loss ")
    assert did.endswith("weights 0.00% off")


@pytest.mark.parametrize(
    ("side", "said"),
    [
        (lambda batches: Trained(tiny_model()), "0 updates.*weights 100.00% off"),
        (lambda batches: trained(batches[:-1]), "99 updates"),
        (lambda batches: trained(batches, OPTIMIZERS["AdamW"]), "100 updates"),
        (without_cycled_momentum, "100 updates"),
        (lambda batches: Trained(run_by_hand(batches).model, 99), "99 updates"),
    ],
    ids=["nothing", "one batch less", "another optimizer", "constant momentum", "own count"],
)
def test_a_side_that_does_other_work_is_refused(side, said):
    with pytest.raises(RuntimeError, match=f"not the work of the loop by hand: {said}"):
        check(side, BATCHES)
