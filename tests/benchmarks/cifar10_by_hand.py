"""The loop that takes turns with `cifar10_speed.py`: what one writes without a library.

Network, loss, augmentation, optimizer and cycle are the same, and so are bf16, channels last and
the images, which lie in memory; a DataLoader transforms them one by one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from onecycle import DataLoaders
from onecycle.vision import resnet9

LOSS = nn.CrossEntropyLoss(label_smoothing=0.1)
WEIGHT_DECAY, PCT_START = 5e-4, 0.25

#: The seconds of a fit, and what measures the accuracies of the model that it trained.
Fit = tuple[float, Callable[[], list[float]]]


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory, each of them transformed when it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor, *moves: nn.Module) -> None:
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self.transform = v2.Compose([*moves, *scale])
        self.images, self.labels = images.cpu(), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def torch_loaders(dls: DataLoaders, workers: int) -> tuple[DataLoader, DataLoader]:
    """Make DataLoaders of the same images."""
    moves = [v2.RandomCrop(32, padding=2, padding_mode="reflect"), v2.RandomHorizontalFlip()]
    train, valid = Images(*dls.train.tensors, *moves), Images(*dls.valid.tensors)
    make = partial(DataLoader, batch_size=dls.train.batch_size, num_workers=workers)
    return make(train, shuffle=True, drop_last=True, persistent_workers=workers > 0), make(valid)


def bare(
    dls: tuple[DataLoader, DataLoader], options: argparse.Namespace, updates: int, seed: int
) -> Fit:
    """Train with a loop, and judge the weights as they are trained."""
    train, valid = dls
    device = options.device
    torch.manual_seed(seed)
    model = resnet9(width=options.width).to(device, memory_format=torch.channels_last)
    opt = SGD(
        model.parameters(), lr=options.lr, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = OneCycleLR(opt, options.lr, total_steps=updates, pct_start=PCT_START)
    model.train()
    start = now()
    for xb, yb in islice(chain.from_iterable(repeat(train)), updates):
        xb = xb.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            loss = LOSS(model(xb), yb.to(device))
        loss.backward()
        opt.step()
        opt.zero_grad()
        schedule.step()
    seconds = now() - start

    def judge() -> list[float]:
        model.eval()
        correct = 0
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            for xb, yb in valid:
                correct += int((model(xb.to(device)).argmax(1).cpu() == yb).sum())
        return [correct / len(valid.dataset)]

    return seconds, judge


def now() -> float:
    """Return the seconds on the clock, once the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
