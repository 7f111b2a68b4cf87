"""Fine-tuning that was killed in either stage and resumed ends in the bits of one that was not."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from learner_state import trained
from torch import nn
from torch.optim import SGD

from onecycle import Callback, Checkpoint, Learner, TensorLoader
from onecycle import learner as learner_module
from onecycle.checkpoints import fit_files

BATCHES, EPOCHS = 5, (2, 3)  # epochs of the first stage, and of the second


def learner():
    torch.manual_seed(1)
    x = torch.randn(40, 4)
    loader = TensorLoader(x, x.sum(1, keepdim=True), batch_size=8, shuffle=True)
    body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
    model = nn.Sequential(body, nn.Linear(8, 1))
    return Learner(
        (loader, None),
        model,
        nn.functional.mse_loss,
        opt_func=partial(SGD, momentum=0.9),
        splitter=lambda model: [model[0].parameters(), model[1].parameters()],
        device="cpu",
        seed=3,
    )


def tune(learn, *cbs, first=EPOCHS[0], **options):
    with learn.no_bar():
        learn.fine_tune(EPOCHS[1], 0.1, first, 10, cbs=cbs, **options)
    learned = {n: getattr(learn, n) for n in ("total_updates", "total_epochs", "n_updates")}
    frozen = [p.requires_grad for p in learn.model.parameters()]
    return trained(learn) | learned | {"frozen": frozen, "lr": learn.groups.get("lr")}


class KilledError(Exception):
    pass


def kill_after(n):
    """Make a callback that ends what it takes part in, in the batch after so many updates."""

    def check(learn):
        if learn.total_updates == n:
            raise KilledError

    return Callback(during="train", after_loss=check)


def differences(left, right):
    return [name for name in {**left, **right} if left.get(name) != right.get(name)]


@pytest.mark.slow
@pytest.mark.parametrize("every", ["1 update", "3 updates", "1 epoch"])
def test_killed_after_any_update_of_both_stages_it_ends_in_the_same_bits(every, tmp_path):
    expected = tune(learner())
    assert expected["total_updates"] == BATCHES * sum(EPOCHS)
    kills = range(1, BATCHES * sum(EPOCHS))
    for n in kills if every == "3 updates" else random.Random(0).sample(kills, 6):
        folder = tmp_path / str(n)
        with pytest.raises(KilledError):
            tune(learner(), Checkpoint(folder, every), kill_after(n))
        learn = learner()
        if fit_files.find(folder):  # a process whose generators stand elsewhere
            random.seed(n), np.random.seed(n), torch.manual_seed(n)
        assert differences(tune(learn, Checkpoint(folder, every), resume=folder), expected) == [], n


def test_killed_again_and_again_it_ends_in_the_same_bits(tmp_path):
    expected, lives = tune(learner()), 0
    for n in (3, 8, 9, 10, 11, 14, 19, 99):
        try:
            found = tune(
                learner(), Checkpoint(tmp_path, "2 updates"), kill_after(n), resume=tmp_path
            )
        except KilledError:
            lives += 1
    assert lives == 7
    assert differences(found, expected) == []


def test_without_a_first_stage_it_resumes_the_second(tmp_path):
    expected = tune(learner(), first=0)
    with pytest.raises(KilledError):
        tune(learner(), Checkpoint(tmp_path, "2 updates"), kill_after(7), first=0)
    assert differences(tune(learner(), first=0, resume=tmp_path), expected) == []


def test_a_stage_goes_on_with_no_checkpoint_of_the_other(tmp_path, monkeypatch):
    with pytest.raises(KilledError):
        tune(learner(), Checkpoint(tmp_path, "1 epoch"), kill_after(22))
    monkeypatch.setattr(learner_module, "found_stage", lambda path: (1, path))
    with pytest.raises(ValueError, match=r"fine_tune\.stage was 2 and is 1"):
        tune(learner(), resume=tmp_path)


def test_the_checkpoint_of_another_fit_is_refused(tmp_path):
    learn = learner()
    learn.freeze()
    with learn.no_bar():
        learn.fit_one_cycle(2, slice(0.1), pct_start=0.99, cbs=[Checkpoint(tmp_path)])
    with pytest.raises(ValueError, match=r"fine_tune\.stage was None and is 1"):
        tune(learner(), resume=tmp_path)


def test_an_empty_folder_is_the_beginning(tmp_path, caplog):
    found = tune(learner(), resume=tmp_path)
    assert differences(found, tune(learner())) == []
    assert caplog.text.count("the fit starts from the beginning") == 1
