"""The time of a training step with `speed_profile()`, and with parts of it, against a plain one.

On the CPU, where the parts are `ChannelsLast` and, if the processor has instructions for it, bf16.
The models of `onecycle.vision` have filters that are laid out channels last from the start, which
goes on to their images; the "plain CNN", of three convolutions, is as torch makes it.

    python tests/benchmarks/speed_profile.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from pairs import Row, arguments, clock, compare
from step import larger_model, tiny_model
from torch import nn

from onecycle import Callback, ChannelsLast, Learner, MixedPrecision, lenet, resnet56, speed_profile
from onecycle.vision import digits_cnn


def plain_cnn(width: int = 32) -> nn.Module:
    """Make a CNN of three convolutions with batch normalisation, for images of 32x32."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


#: By model: how it is made, the shape of a batch, and the steps that are timed at once.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "perceptron, tiny": (tiny_model, (64, 32), 400),
    "perceptron, 512 wide": (larger_model, (64, 32), 50),
    "digits_cnn": (digits_cnn, (64, 1, 8, 8), 40),
    "plain CNN": (plain_cnn, (128, 3, 32, 32), 6),
    "lenet": (lenet, (256, 1, 28, 28), 10),
    "resnet56": (resnet56, (64, 3, 32, 32), 1),
}
SETTINGS: dict[str, Callable[[], list[Callback]]] = {
    "speed_profile()": speed_profile,
    "ChannelsLast": lambda: [ChannelsLast()],
    "bf16": lambda: [MixedPrecision("bf16")],
}


class Side:
    """A learner on random images that is fitted again and again.

    Args:
        model: Its name.
        cbs: Makes the callbacks.
    """

    def __init__(self, model: str, cbs: Callable[[], list[Callback]]) -> None:
        make, shape, self.steps = MODELS[model]
        torch.manual_seed(0)
        batch = torch.randn(shape), torch.randint(10, shape[:1])
        dls, loss = ([batch] * self.steps, None), nn.functional.cross_entropy
        self.learn = Learner(dls, make(), loss, cbs=cbs(), device="cpu", seed=0)

    def __call__(self) -> float:
        """Fit for an epoch; return seconds for each step."""
        with self.learn.no_bar():
            start = clock()
            self.learn.fit(1, lr=1e-3)
            return (clock() - start) / self.steps


def rows() -> Iterator[Row]:
    """Give the rows of the table."""
    for model in MODELS:
        plain = Side(model, list)
        for setting, cbs in SETTINGS.items():
            yield Row(f"{model}: {setting}", Side(model, cbs), plain)


if __name__ == "__main__":
    compare(rows(), arguments(__doc__, pairs=9))
