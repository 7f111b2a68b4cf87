from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pack_sequence

from onecycle import GradientAccumulation, Learner
from onecycle.data.sizes import BatchSizes, size_of


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(3, 2), 3),
        ((torch.zeros(4, 2), torch.zeros(4)), 4),
        ((torch.zeros(7, 4, 2), torch.zeros(4)), 4),  # time first: the targets decide
        ((torch.zeros(4, 2), torch.tensor(1.0)), 4),
        ((torch.zeros(4, 2), None), 4),
        (([torch.zeros(3, 9), torch.zeros(3, 7)], [{"boxes": torch.zeros(5, 4)}] * 2), 2),
        ((pack_sequence([torch.zeros(3, 1), torch.zeros(2, 1)]), torch.zeros(2)), 2),
        (pack_sequence([torch.zeros(3, 1), torch.zeros(2, 1), torch.zeros(1, 1)]), 3),
        ({"ids": torch.zeros(5, 2), "labels": torch.zeros(8)}, 8),
        (SimpleNamespace(num_graphs=6, x=torch.zeros(31, 4), y=torch.zeros(6)), 6),
        ((torch.zeros(2, 3), ["a", "b"]), 2),
    ],
)
def test_the_size_is_that_of_the_targets_then_of_the_inputs(batch: Any, size: int) -> None:
    assert BatchSizes()(batch) == size


@pytest.mark.parametrize("batch", [torch.tensor(1.0), (None, None), "text", object()])
def test_a_batch_without_a_size_is_refused_with_what_to_override(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"override batch_size\(self, batch\)"):
        BatchSizes()(batch)


def test_parts_that_disagree_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sizes = BatchSizes()
    with caplog.at_level("INFO", "onecycle"):
        for _ in range(3):
            sizes((torch.zeros(7, 4, 2), torch.zeros(4)))
    (message,) = caplog.messages
    assert message.startswith(
        "the batch size is taken to be 4, where other parts of the batch have 7"
    )


def test_targets_are_asked_before_inputs() -> None:
    assert size_of(torch.zeros(3), torch.zeros(5)) == 3
    assert size_of(None, torch.zeros(5)) == 5


class LastStep(nn.Module):
    """Reads sequences with time first, as recurrent layers of torch do by default."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.RNN(2, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][-1])


def time_first(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, n, 2, generator=generator), torch.randn(n, 1, generator=generator))
        for n in sizes
    ]


def test_the_validation_loss_of_sequences_with_time_first_is_the_mean_over_samples() -> None:
    batches = time_first(4, 4, 1)
    learn = Learner((batches, batches), LastStep(), mse_loss, device="cpu", seed=0)
    x, y = torch.cat([x for x, _ in batches], 1), torch.cat([y for _, y in batches])
    with torch.no_grad():
        expected = mse_loss(learn.model(x), y)
    assert learn.validate()["valid_loss"] == pytest.approx(float(expected), rel=1e-6)


def test_accumulated_sequences_with_time_first_make_the_update_of_one_large_batch() -> None:
    def fit(batches: Any, *cbs: Any) -> list[torch.Tensor]:
        model = LastStep()
        learn = Learner((batches, None), model, mse_loss, torch.optim.SGD, lr=0.1, device="cpu")
        with learn.no_bar():
            learn.fit(1, cbs=list(cbs))
        return [p.detach() for p in model.parameters()]

    small = time_first(3, 1)
    whole = [(torch.cat([x for x, _ in small], 1), torch.cat([y for _, y in small]))]
    for ours, theirs in zip(fit(small, GradientAccumulation(2)), fit(whole), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_an_overridden_batch_size_weights_validation() -> None:
    class ByTime(Learner):
        def batch_size(self, batch: Any) -> int:
            return 1

    batches = time_first(4, 1)
    learn = ByTime((batches, batches), LastStep(), mse_loss, device="cpu", seed=0)
    with torch.no_grad():
        each = [float(mse_loss(learn.model(x), y)) for x, y in batches]
    assert learn.validate()["valid_loss"] == pytest.approx(sum(each) / 2, rel=1e-6)


@pytest.mark.parametrize("target", [torch.tensor(1.0), torch.ones(1), torch.ones(4)])
def test_a_size_that_only_the_input_of_a_target_without_dimension_tells_is_said_once(
    target: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = BatchSizes()
    expected = len(target) if target.ndim else 4
    assert [sizes((torch.zeros(4, 2), target)) for _ in range(3)] == [expected] * 3
    assert caplog.text.count("the target has no dimension") == (1 - target.ndim)
