"""One call seeds all that a script draws from."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset

from onecycle import Learner, TensorLoader, seed_everything


class Noisy(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        return torch.tensor([random.random(), np.random.rand(), float(torch.rand(()))])


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_drawn_by_whichever_process_are_the_same_again(workers: int) -> None:
    def samples(seed: int) -> Tensor:
        seed_everything(seed)
        return torch.cat(list(DataLoader(Noisy(), num_workers=workers)))

    assert torch.equal(samples(3), samples(3))
    assert not torch.equal(samples(3), samples(4))


def test_a_learner_without_a_seed_trains_the_same_again() -> None:
    def trained(seed: int) -> tuple[Learner, list[float]]:
        seed_everything(seed)
        loader = TensorLoader(torch.rand(32, 4), torch.rand(32, 1), batch_size=8, shuffle=True)
        learn = Learner((loader, None), nn.Linear(4, 1), mse_loss, device="cpu")
        with learn.no_bar():
            learn.fit(1, lr=0.1)
        return learn, learn.recorder.history["train_loss"].values.tolist()

    (one, first), (two, again), (three, other) = trained(0), trained(0), trained(1)
    assert (one.seed, first) == (two.seed, again)
    assert three.seed != one.seed
    assert other != first


@pytest.mark.parametrize(("seed", "error"), [(True, TypeError), ("7", TypeError), (-1, ValueError)])
def test_what_is_no_seed_is_refused(seed: object, error: type[Exception]) -> None:
    state = torch.get_rng_state()
    with pytest.raises(error, match="seed must be"):
        seed_everything(seed)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
