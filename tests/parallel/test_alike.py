import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from onecycle import OnecycleError, TensorLoader
from onecycle.parallel.alike import check_data, check_state, sign_of
from onecycle.testing import toy_learner

X = torch.arange(40.0).reshape(20, 2)


class Others:
    """Stands in for the processes: says what another one has said before."""

    def __init__(self):
        self.said = []

    def gather(self, value):
        self.said.append(value)
        return self.said


class Numbers(Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        raise AssertionError("a sample was loaded")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (X[0], X[1]),
        (torch.ones(4), torch.ones(2, 2)),
        ([1, 2], [2, 1]),
        ({"a": X, "b": "text"}, {"a": X, "b": "other"}),
        (X.numpy(), X.numpy() + 1),
        (torch.ones(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)),
        (torch.tensor([True]), torch.tensor([False])),
    ],
)
def test_what_differs_has_another_sign(one, other):
    assert sign_of(one) == sign_of(one)
    assert sign_of(one) != sign_of(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: TensorLoader(X + seed, batch_size=2),
        lambda seed: TensorLoader(X[: 20 - seed], batch_size=2),
        lambda seed: DataLoader(TensorDataset(X * (1 + seed)), 2),
        lambda seed: DataLoader(Numbers(20 + seed), 2),
        lambda seed: DataLoader(Subset(Numbers(20), [seed, 3, 4]), 2),
        lambda seed: DataLoader(Subset(Numbers(20), range(seed, 9 + seed)), 2),
        lambda seed: DataLoader(Subset(Numbers(9000), [*range(8000), 8000 + seed]), 2),
        lambda seed: DataLoader(Subset(Subset(Numbers(9), [seed, 2]), [0, 1]), 2),
    ],
)
def test_data_that_differ_are_refused_and_no_sample_is_loaded(make):
    others = Others()
    check_data(others, {"training": make(0)})
    check_data(others, {"training": make(0)})
    with pytest.raises(ValueError, match="the training data of process 2 are not those of"):
        check_data(others, {"training": make(1)})


def test_optimizers_in_one_state_may_differ_by_rounding_alone():
    others, learn = Others(), toy_learner()
    learn.fit(1)
    check_state(others, learn)
    state = next(iter(learn.opt.state.values()))
    buffer = next(each for each in state.values() if each is not None and each.ndim)
    buffer.mul_(1 + 1e-6)
    check_state(others, learn)
    buffer.mul_(3)
    with pytest.raises(OnecycleError, match="not in one state"):
        check_state(others, learn)


def test_other_updates_are_another_state():
    others, learn = Others(), toy_learner()
    check_state(others, learn)
    learn.total_updates = 1
    with pytest.raises(OnecycleError, match="process 1 1 in 0"):
        check_state(others, learn)
