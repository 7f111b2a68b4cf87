"""What test-time augmentation adds to the accuracy of a small CNN on CIFAR-10.

Each seed draws the training images, the weights and the order of the data anew; accuracy is on
5,000 of the test images. The gain is taken seed by seed, so that a model is compared
with itself.

    ONECYCLE_DATA=... python tests/benchmarks/tta.py --seeds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from speed_profile import plain_cnn
from torch.nn.functional import cross_entropy

from onecycle import ChannelsLast, Learner, RandomCrop, RandomFlip, TensorLoader, accuracy
from onecycle.data.loaders import DataLoaders
from onecycle.vision import cifar10


def subset(dls: DataLoaders, n: int, seed: int) -> DataLoaders:
    """Draw ``n`` of the training images, and take every second test image."""
    train, valid = dls.train, dls.valid
    chosen = torch.randperm(len(train.tensors[0]), generator=torch.Generator().manual_seed(seed))
    few = [tensor[chosen[:n]] for tensor in train.tensors]
    half = [tensor[::2] for tensor in valid.tensors]
    return DataLoaders(
        TensorLoader(*few, batch_size=128, shuffle=True, transform=train.transform),
        TensorLoader(*half, batch_size=500, transform=valid.transform),
    )


def accuracies(dls: DataLoaders, epochs: int, seed: int) -> dict[str, float]:
    """Train one model; return its accuracy in percent without views, and by kind of views."""
    torch.manual_seed(seed)
    cbs = [RandomFlip(), RandomCrop(padding=2), ChannelsLast()]
    learn = Learner(dls, plain_cnn(width=16), cross_entropy, cbs=cbs, seed=seed, device="cpu")
    with learn.no_bar():
        learn.fit_one_cycle(epochs, lr_max=1e-2)
    found = {
        "none": learn.get_preds(),
        "mirror image": learn.tta(transforms=[lambda xb: xb.flip(-1)], beta=0.5),
        "default": learn.tta(),
        "n=4": learn.tta(n=4),
    }
    return {kind: 100 * float(accuracy(each.preds, each.targets)) for kind, each in found.items()}


def main() -> None:
    """Print a table of every seed, and the gains with their spread."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole = cifar10(os.environ["ONECYCLE_DATA"], download=False)
    rows = []
    for seed in range(options.seeds):
        start = time.perf_counter()
        row = accuracies(subset(whole, options.images, seed), options.epochs, seed)
        rows.append(row)
        shown = "  ".join(f"{kind} {value:.2f}" for kind, value in row.items())
        print(f"seed {seed}: {shown}  ({time.perf_counter() - start:.0f} s)", flush=True)
    for kind in list(rows[0])[1:]:
        gains = [row[kind] - row["none"] for row in rows]
        print(
            f"{kind}: {statistics.mean(gains):+.2f} points ({min(gains):+.2f} to {max(gains):+.2f})"
        )


if __name__ == "__main__":
    main()
