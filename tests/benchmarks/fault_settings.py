"""The settings that are killed in `faults.py`: each makes a learner and says how it is fitted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))

from moving_parts import Passes, PythonField, Queue, Steers, Transformed
from own_samplers import SAMPLERS, N

import onecycle as oc
from onecycle import Learner, TensorLoader

#: What is fitted: the learner, and the fit, which takes `cbs` and `resume`.
Setting = Callable[[Path], tuple[Learner, Callable[..., None]]]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Make the samples: two classes, divided by a line."""
    x = torch.randn(44, 6, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()


def net(*layers: nn.Module) -> nn.Sequential:
    """Make a small model with the given layers in its middle."""
    return nn.Sequential(nn.Linear(6, 8), *layers, nn.ReLU(), nn.Linear(8, 2))


def learner(train: Any = None, *cbs: Any, model: Any = None, **options: Any) -> Learner:
    """Make a learner over the samples."""
    torch.manual_seed(1)
    x, y = data()
    train = TensorLoader(x, y, batch_size=8, shuffle=True) if train is None else train
    model = net(nn.BatchNorm1d(8), nn.Dropout(0.3)) if model is None else model()
    given = {"metrics": [oc.accuracy], "device": "cpu", "seed": 3, "check": False} | options
    valid = TensorLoader(x, y, batch_size=16)
    return Learner((train, valid), model, F.cross_entropy, cbs=cbs, **given)


def cycle(learn: Learner, **options: Any) -> None:
    """Fit one cycle of three epochs."""
    learn.fit_one_cycle(3, 0.05, **options)


def plain(learn: Learner, **options: Any) -> None:
    """Fit three epochs at one rate."""
    learn.fit(3, 0.05, **options)


def with_cbs(*makes: Callable[[Path], Any]) -> Setting:
    return lambda folder: (learner(None, *(make(folder) for make in makes)), cycle)


def with_opt(make: Any, **options: Any) -> Setting:
    return lambda folder: (learner(opt_func=make, **options), plain)


def with_loader(make: Callable[[Any], Any]) -> Setting:
    return lambda folder: (learner(make(TensorDataset(*data()))), cycle)


def with_model(make: Callable[[], nn.Module]) -> Setting:
    return lambda folder: (learner(model=make), cycle)


def with_fit(fit: Callable[..., None], **options: Any) -> Setting:
    return lambda folder: (learner(**options), fit)


def over(make: Callable[[], Any], **options: Any) -> Setting:
    """Fit a model of one input over samples that a sampler or a data set of one's own orders."""

    def setting(folder: Path) -> tuple[Learner, Callable[..., None]]:
        part = make()
        own = hasattr(part, "__getitem__") or not hasattr(part, "__len__")
        values = torch.arange(float(N))[:, None] / N
        loader = DataLoader(part, 4, **options) if own else DataLoader(values, 4, sampler=part)
        torch.manual_seed(1)
        learn = Learner((loader, None), nn.Linear(1, 1), torch.mean, device="cpu", seed=3)
        return learn, plain

    return setting


def two_fits(learn: Learner, *, resume: Path | None = None, cbs: Any = ()) -> None:
    """Fit twice, each fit with a folder of its own."""
    for name in ("first", "second"):
        own = None if resume is None else resume / name
        given = [oc.Checkpoint(own, "1 updates")] if own is not None else []
        others = [cb for cb in cbs if not isinstance(cb, oc.Checkpoint)]
        learn.fit_one_cycle(2, 0.05, cbs=[*given, *others], resume=own)


def after_a_range_test(learn: Learner, **options: Any) -> None:
    """Look for a rate, then fit."""
    learn.lr_find(num_it=5, show_plot=False)
    learn.fit_one_cycle(3, 0.05, **options)


def looked_at(learn: Learner, **options: Any) -> None:
    """Validate, predict and fit."""
    learn.validate(learn.dls.train), learn.get_preds(learn.dls.train)
    learn.fit(3, 0.05, **options)


class Noise(nn.Module):
    """Adds noise from the global generator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * torch.randn_like(x)


class Unsaved(nn.Module):
    """Has a buffer that its state leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


def shared(layer: nn.Module) -> nn.Module:
    """Make a model that has a layer twice."""
    return net(layer, nn.ReLU(), layer)


CALLBACKS: dict[str, Setting] = {
    "GradientAccumulation": with_cbs(lambda f: oc.GradientAccumulation(3)),
    "GradientClip": with_cbs(lambda f: oc.GradientClip(0.5)),
    "accumulation and clipping": with_cbs(
        lambda f: oc.GradientAccumulation(2), lambda f: oc.GradientClip(0.5)
    ),
    "MixedPrecision bf16": with_cbs(lambda f: oc.MixedPrecision("bf16")),
    "MixedPrecision fp16, skips": with_cbs(lambda f: oc.MixedPrecision("fp16", init_scale=2.0**24)),
    "EMA": with_cbs(lambda f: oc.EMA(0.9)),
    "SWA": with_cbs(lambda f: oc.SWA(0.4)),
    "MixUp": with_cbs(lambda f: oc.MixUp(0.4)),
    "LabelSmoothing": with_cbs(lambda f: oc.LabelSmoothing(0.1)),
    "EarlyStopping": with_cbs(lambda f: oc.EarlyStopping(patience=1)),
    "ReduceLROnPlateau": lambda f: (learner(None, oc.ReduceLROnPlateau(patience=1)), plain),
    "SaveModel": with_cbs(lambda f: oc.SaveModel(f / "best.pt")),
    "CSVLogger": with_cbs(lambda f: oc.CSVLogger(f / "log.csv")),
    "SnapshotEnsemble": lambda f: (
        learner(None, oc.SnapshotEnsemble()),
        lambda learn, **o: learn.fit_sgdr(2, 1, 0.05, **o),
    ),
    "TerminateOnNonFinite": with_cbs(lambda f: oc.TerminateOnNonFinite("skip")),
    "TorchScheduler": lambda f: (
        learner(None, oc.TorchScheduler(lambda opt: StepLR(opt, 4, 0.5))),
        plain,
    ),
    "TorchScheduler, by epochs": lambda f: (
        learner(None, oc.TorchScheduler(lambda o: CosineAnnealingLR(o, 3), every="epoch")),
        plain,
    ),
    "ParamScheduler": lambda f: (
        learner(None, oc.ParamScheduler({"weight_decay": oc.linear(0.1, 0.0)})),
        plain,
    ),
    "a callback that counts": with_cbs(lambda f: Steers()),
}
OPTIMIZERS: dict[str, Setting] = {
    "SGD": with_opt(optim.SGD),
    "SGD, momentum, Nesterov": with_opt(partial(optim.SGD, momentum=0.9, nesterov=True)),
    "SGD, weight decay": with_opt(partial(optim.SGD, momentum=0.9), wd=0.1),
    "Adam": with_opt(optim.Adam),
    "Adam, AMSGrad": with_opt(partial(optim.Adam, amsgrad=True)),
    "AdamW": with_opt(optim.AdamW, wd=0.1),
    "AdamW, fast_step=False": with_opt(optim.AdamW, fast_step=False),
    "NAdam": with_opt(optim.NAdam),
    "RAdam": with_opt(optim.RAdam),
    "Adamax": with_opt(optim.Adamax),
    "Adagrad": with_opt(optim.Adagrad),
    "Adadelta": with_opt(optim.Adadelta),
    "RMSprop, centered": with_opt(partial(optim.RMSprop, centered=True, momentum=0.5)),
    "Rprop": with_opt(optim.Rprop),
    "ASGD": with_opt(optim.ASGD),
    "Adafactor": with_opt(optim.Adafactor),
    "two groups": lambda f: (
        learner(splitter=lambda m: [list(m[0].parameters()), list(m[1:].parameters())]),
        cycle,
    ),
}
LOADERS: dict[str, Setting] = {
    "TensorLoader": with_fit(cycle),
    "DataLoader, shuffled": with_loader(lambda ds: DataLoader(ds, 8, shuffle=True)),
    "DataLoader, 2 workers": with_loader(lambda ds: DataLoader(ds, 8, shuffle=True, num_workers=2)),
    "DataLoader, workers that live on": with_loader(
        lambda ds: DataLoader(ds, 8, shuffle=True, num_workers=1, persistent_workers=True)
    ),
    "own generator": with_loader(
        lambda ds: DataLoader(ds, 8, shuffle=True, generator=torch.Generator())
    ),
    "WeightedRandomSampler": with_loader(
        lambda ds: DataLoader(ds, 8, sampler=WeightedRandomSampler([1.0] * 44, 40))
    ),
    "SubsetRandomSampler": with_loader(
        lambda ds: DataLoader(ds, 8, sampler=SubsetRandomSampler(range(40)))
    ),
    "own BatchSampler": with_loader(
        lambda ds: DataLoader(ds, batch_sampler=BatchSampler(RandomSampler(ds), 8, drop_last=True))
    ),
    "a list of batches": with_loader(lambda ds: [*DataLoader(ds, 8)]),
    **{f"sampler: {name}": over(make) for name, make in SAMPLERS.items()},
    "sampler: deque, set, array": over(Queue),
    "random data set": over(Transformed),
    "random data set, shuffled": over(Transformed, shuffle=True),
    "random data set, 2 workers": over(Transformed, shuffle=True, num_workers=2),
    "random data set, workers that live on": over(
        Transformed, num_workers=1, persistent_workers=True
    ),
    "SeededDataset, workers that live on": over(
        lambda: oc.SeededDataset(Transformed()), num_workers=1, persistent_workers=True
    ),
    "iterable that counts": over(Passes),
    "iterable that counts, 1 worker": over(Passes, num_workers=1),
}
MODELS: dict[str, Setting] = {
    "LayerNorm": with_model(lambda: net(nn.LayerNorm(8))),
    "noise in the model": with_model(lambda: net(Noise())),
    "a buffer that is not saved": with_model(lambda: net(Unsaved())),
    "shared weights": with_model(lambda: shared(nn.Linear(8, 8))),
    "frozen layer": with_model(lambda: net(nn.Linear(8, 8).requires_grad_(False))),
    "a frozen BatchNorm": with_model(lambda: net(nn.BatchNorm1d(8).eval())),
    "plain fields and a generator": lambda f: (
        Learner(
            (DataLoader(torch.ones(12, 1), 4), None),
            PythonField(),
            torch.mean,
            device="cpu",
            seed=3,
        ),
        plain,
    ),
}
FITS: dict[str, Setting] = {
    "fit_flat_cos": with_fit(lambda learn, **o: learn.fit_flat_cos(3, 0.05, **o)),
    "fit_sgdr": with_fit(lambda learn, **o: learn.fit_sgdr(2, 1, 0.05, **o)),
    "policy torch, by updates": with_fit(
        lambda learn, **o: learn.fit_one_cycle(None, 0.05, max_updates=14, policy="torch", **o)
    ),
    "steps_per_epoch": with_fit(lambda learn, **o: learn.fit(4, 0.05, steps_per_epoch=4, **o)),
    "two fits": with_fit(two_fits),
    "a range test, then a fit": with_fit(after_a_range_test),
    "a range test, own sampler": lambda f: (over(SAMPLERS["Numpy"])(f)[0], after_a_range_test),
    "validate and predict, own sampler": lambda f: (over(SAMPLERS["Numpy"])(f)[0], looked_at),
}
SETTINGS = {
    f"{kind}: {name}": setting
    for kind, several in (
        ("callback", CALLBACKS),
        ("optimizer", OPTIMIZERS),
        ("loader", LOADERS),
        ("model", MODELS),
        ("fit", FITS),
    )
    for name, setting in several.items()
}
