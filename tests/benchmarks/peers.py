"""The step of the tiny model in other libraries, against the loop written by hand.

Each trains the batches of `bare_loop.py` once, by SGD and the same 1cycle policy, as its
documentation shows it, with progress, checkpoints and logging off where they can be. Before it is
measured, each is checked: it has to make one update for each batch, and to end at the weights of
the loop by hand. What is measured is the time of all batches less that of a few, so that what
happens once a fit is not in it. What is not installed is skipped: `pip install onecycle[bench]`.

Composer needs an older torch than onecycle, and so an environment of its own, with `mosaicml` and
nothing else in it. There it is compared with the loop by hand on that torch.

    python tests/benchmarks/peers.py
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bare_loop import LR, OPTIMIZERS, Batches, by_hand, make_batches, tiny_model
from pairs import Row, arguments, clock, compare
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

#: The batches whose time is taken off that of all.
FEW = 200
#: How far from the weights of the loop by hand a side may end, as a part of the way that they went.
TOLERANCE = 0.02
SGD = OPTIMIZERS["SGD"]
CROSS_ENTROPY = nn.functional.cross_entropy


@dataclass(frozen=True)
class Trained:
    """What a side made of the tiny model.

    Attributes:
        model: The model.
        updates: The updates made, where they are not made by an optimizer of torch.
    """

    model: nn.Module
    updates: int | None = None


def loader_of(batches: Batches) -> DataLoader[Any]:
    """Wrap batches for the libraries that take nothing but a DataLoader."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type] # a list is map-style


def one_cycle_of(batches: Batches, model: nn.Module) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """Make the optimizer and the schedule that the loop by hand has."""
    opt = SGD(model.parameters(), lr=LR)
    return opt, OneCycleLR(opt, LR, total_steps=len(batches))


def run_by_hand(batches: Batches) -> Trained:
    """Run the loop by hand."""
    model = tiny_model()
    by_hand(SGD, model, batches)()
    return Trained(model)


def run_onecycle(batches: Batches) -> Trained:
    """Run onecycle with its default callbacks."""
    from onecycle import Learner

    learn = Learner((batches, None), tiny_model(), CROSS_ENTROPY, SGD)
    learn.fit_one_cycle(1, LR, policy="torch")
    return Trained(learn.model)


def run_ignite(batches: Batches) -> Trained:
    """Run PyTorch-Ignite: its supervised trainer, with the scheduler as a handler."""
    from ignite.engine import Events, create_supervised_trainer

    model = tiny_model()
    opt, schedule = one_cycle_of(batches, model)
    trainer = create_supervised_trainer(model, opt, CROSS_ENTROPY)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    trainer.run(batches, max_epochs=1)
    return Trained(model)


def run_skorch(batches: Batches) -> Trained:
    """Run skorch: `NeuralNet` over ready batches, the scheduler stepped by the batch."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import LRScheduler

    class Net(NeuralNetClassifier):
        def get_iterator(self, dataset: Any, training: bool = False) -> Batches:
            return batches

    net = Net(
        tiny_model(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=LR,
        max_epochs=1,
        train_split=None,
        verbose=0,
        callbacks=[
            LRScheduler(OneCycleLR, max_lr=LR, total_steps=len(batches), step_every="batch")
        ],
    )
    net.fit(*batches[0])
    return Trained(net.module_)


def run_accelerate(batches: Batches) -> Trained:
    """Run Accelerate: the loop by hand with everything prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = tiny_model()
    opt, schedule = one_cycle_of(batches, model)
    model, opt, loader, schedule = accelerator.prepare(model, opt, loader_of(batches), schedule)
    losses = []
    for xb, yb in loader:
        with accelerator.accumulate(model):
            loss = CROSS_ENTROPY(model(xb), yb)
            accelerator.backward(loss)
            opt.step()
            schedule.step()
            opt.zero_grad()
            losses.append(loss.detach())
    return Trained(accelerator.unwrap_model(model))


def run_lightning(batches: Batches, *, log: bool = False) -> Trained:
    """Run Lightning: the scheduler stepped by the batch; on request the loss in its log."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            xb, yb = batch
            loss = CROSS_ENTROPY(self.model(xb), yb)
            if log:
                self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            opt, schedule = one_cycle_of(batches, self)
            return [opt], [{"scheduler": schedule, "interval": "step"}]

    module = Module()
    with TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            default_root_dir=folder,
            logger=log,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader_of(batches))
    return Trained(module.model)


def run_fastai(batches: Batches) -> Trained:
    """Run fastai 2: `Learner.fit_one_cycle` without its bar, and torch's SGD."""
    from fastai.callback import progress, schedule  # noqa: F401 # they add methods to Learner
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    dls = DataLoaders(loader_of(batches), loader_of(batches[:1]))
    learn = Learner(dls, tiny_model(), CROSS_ENTROPY, opt_func=partial(OptimWrapper, opt=SGD))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, LR, div_final=1e4 * 25, pct_start=0.3)
    return Trained(learn.model)


def run_keras(batches: Batches) -> Trained:
    """Run Keras 3 on torch: `fit`, rate and momentum set by a callback."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    class OneCycle(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            group = schedule.optimizer.param_groups[0]
            self.model.optimizer.learning_rate = group["lr"]
            self.model.optimizer.momentum = group["momentum"]

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            schedule.step()

    theirs = tiny_model()
    _, schedule = one_cycle_of(batches, theirs)
    model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
    model.build((None, 32))
    model.set_weights([p.detach().T.numpy() for p in theirs.parameters()])
    model.compile(
        keras.optimizers.SGD(LR, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(loader_of(batches), epochs=1, verbose=0, callbacks=[OneCycle()])
    for p, w in zip(theirs.parameters(), model.get_weights(), strict=True):
        p.data.copy_(torch.from_numpy(w.T))
    return Trained(theirs, int(model.optimizer.iterations))


def run_composer(batches: Batches) -> Trained:
    """Run Composer: its `Trainer`, the scheduler stepped by the batch."""
    from composer import Trainer
    from composer.models import ComposerClassifier

    model = ComposerClassifier(tiny_model(), num_classes=10, loss_fn=CROSS_ENTROPY)
    opt, schedule = one_cycle_of(batches, model)
    trainer = Trainer(
        model=model,
        train_dataloader=loader_of(batches),
        max_duration="1ep",
        optimizers=opt,
        schedulers=schedule,
        step_schedulers_every_batch=True,
        device_train_microbatch_size=64,
        device="cpu",
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    return Trained(model.module)


Peer = Callable[[Batches], Trained]
#: By the name of the distribution, and what is special.
PEERS: dict[str, Peer] = {
    "onecycle": run_onecycle,
    "pytorch-ignite": run_ignite,
    "skorch": run_skorch,
    "accelerate": run_accelerate,
    "lightning": run_lightning,
    "lightning, loss logged": partial(run_lightning, log=True),
    "fastai": run_fastai,
    "keras": run_keras,
    "mosaicml": run_composer,
}


def weights_of(model: nn.Module) -> Tensor:
    """Return the weights as one flat tensor."""
    return parameters_to_vector(model.parameters()).detach()


def mean_loss(model: nn.Module, batches: Batches) -> float:
    """Return the loss of a model over all batches."""
    with torch.no_grad():
        return sum(float(CROSS_ENTROPY(model(xb), yb)) for xb, yb in batches) / len(batches)


def quietly(peer: Peer, batches: Batches) -> Trained:
    """Train without a word."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        return peer(batches)


def check(peer: Peer, batches: Batches) -> str:
    """Refuse a side that does not do the work of the loop by hand; tell what it did."""
    start, goal = tiny_model(), run_by_hand(batches).model
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1

    hook = register_optimizer_step_post_hook(count)
    try:
        trained = quietly(peer, batches)
    finally:
        hook.remove()
    way = weights_of(goal) - weights_of(start)
    off = float((weights_of(trained.model) - weights_of(goal)).norm() / way.norm())
    losses = [mean_loss(model, batches) for model in (start, trained.model)]
    updates = made if trained.updates is None else trained.updates
    did = f"{updates} updates, loss {losses[0]:.3f} to {losses[1]:.3f}, weights {off:.2%} off"
    if updates != len(batches) or off > TOLERANCE or losses[1] >= losses[0]:
        raise RuntimeError(f"not the work of the loop by hand: {did}")
    return did


def seconds_of(peer: Peer, batches: Batches) -> float:
    """Return the seconds of a batch, those of a fit taken off."""

    def timed(batches: Batches) -> float:
        start = clock()
        quietly(peer, batches)
        return clock() - start

    return (timed(batches) - timed(batches[:FEW])) / (len(batches) - FEW)


def rows(only: str) -> Iterator[Row]:
    """Give the rows of what is installed; say what is not."""
    batches = make_batches()
    against = partial(seconds_of, run_by_hand, batches)
    for name, peer in PEERS.items():
        if only not in name:
            continue
        try:
            did = check(peer, batches)
        except ImportError as error:
            print(f"{name}: skipped, {error}", flush=True)
            continue
        distribution, *special = name.split(",")
        title = ",".join([f"{distribution} {version(distribution)}", *special])
        print(f"{title}: {did}", flush=True)
        yield Row(title, partial(seconds_of, peer, batches), against, warm_up=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    options = arguments(__doc__, pairs=5)
    compare(rows(options.only), options)
