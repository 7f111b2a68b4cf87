"""The time of a range test, and of a validation pass, against what a person writes by hand.

The range test makes 100 updates and puts everything back: weights, optimizer, random states,
record. It is compared with 100 steps of the bare loop, which puts nothing back. The validation
pass computes loss and accuracy over all batches; so does the bare loop, without gradients.

    python tests/benchmarks/range_test.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from bare_loop import Batches, make_batches, tiny_model
from pairs import Row, arguments, clock, compare
from step import bare
from torch import nn
from torch.optim import AdamW

from onecycle import Learner, accuracy, lenet

STEPS = 100


def image_batches(n: int) -> Batches:
    """Make batches of 64 images of MNIST's size."""
    torch.manual_seed(1)
    return [(torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))) for _ in range(n)]


def small_lenet() -> nn.Module:
    """Make Caffe's LeNet with seeded weights."""
    torch.manual_seed(0)
    return lenet()


def range_test(model: Callable[[], nn.Module], batches: Batches) -> float:
    """Time a range test that does not diverge; return seconds for each update."""
    learn = Learner((batches, None), model(), nn.functional.cross_entropy, AdamW)
    start = clock()
    # Random labels have no valley: after the test the default rule would go on with short cycles.
    result = learn.lr_find(1e-7, 1e-3, num_it=STEPS, show_plot=False, suggest_funcs="valley")
    seconds = clock() - start
    if len(result.lrs) != STEPS:
        raise RuntimeError(f"the range test stopped after {len(result.lrs)} updates")
    return seconds / STEPS


def validate(model: Callable[[], nn.Module], batches: Batches) -> float:
    """Time a validation pass; return seconds for each batch."""
    learn = Learner(
        (batches, batches), model(), nn.functional.cross_entropy, AdamW, metrics=[accuracy]
    )
    start = clock()
    learn.validate()
    return (clock() - start) / len(batches)


def bare_validate(model: Callable[[], nn.Module], batches: Batches) -> float:
    """Time the loop by hand with the same metrics, weighted by samples, read at the end."""
    net = model().eval()
    start = clock()
    loss_sum = correct = torch.zeros(())
    n = 0
    with torch.no_grad():
        for xb, yb in batches:
            pred = net(xb)
            loss_sum = loss_sum + nn.functional.cross_entropy(pred, yb) * len(xb)
            correct = correct + (pred.argmax(1) == yb).float().mean() * len(xb)
            n += len(xb)
    float(loss_sum / n), float(correct / n)
    return (clock() - start) / len(batches)


def rows() -> Iterator[Row]:
    """Give the rows of the table."""
    tiny, images, many = make_batches(STEPS), image_batches(STEPS), make_batches(1000)
    for name, model, batches, valid in (
        ("tiny", tiny_model, tiny, many),
        ("LeNet", small_lenet, images, images),
    ):
        yield Row(
            f"{name}: range test of 100 updates",
            partial(range_test, model, batches),
            partial(bare, AdamW, model, batches),
            1.02,
        )
        yield Row(
            f"{name}: validation pass with accuracy",
            partial(validate, model, valid),
            partial(bare_validate, model, valid),
            1.02,
        )


if __name__ == "__main__":
    compare(rows(), arguments(__doc__, pairs=15))
