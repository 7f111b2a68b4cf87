"""The step of the tiny model in other libraries, against the loop written by hand.

Each trains the batches of `step.py` once, by SGD with OneCycleLR or the library's own 1cycle
policy, as its documentation shows it, with logging, progress and checkpoints off where they can
be. What is not installed is skipped: `pip install onecycle[bench]`.

    python tests/benchmarks/peers.py --pairs 5
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from typing import Any

import torch
from pairs import Row, arguments, clock, compare
from step import OPTIMIZERS, Batches, bare, make_batches, ours, tiny_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

LR = 1e-3
SGD = OPTIMIZERS["SGD"]
CROSS_ENTROPY = nn.functional.cross_entropy


def loader_of(batches: Batches) -> DataLoader[Any]:
    """Wrap batches for the libraries that take nothing but a DataLoader."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type] # a list is map-style


def seconds_of(run: Callable[[], object], batches: Batches) -> float:
    """Time a run over the batches; return seconds for each of them."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        start = clock()
        run()
        return (clock() - start) / len(batches)


def run_ignite(batches: Batches) -> float:
    """PyTorch-Ignite: its supervised trainer, with the scheduler as a handler."""
    from ignite.engine import Events, create_supervised_trainer

    model = tiny_model()
    opt = SGD(model.parameters(), lr=LR)
    schedule = OneCycleLR(opt, LR, total_steps=len(batches))
    trainer = create_supervised_trainer(model, opt, CROSS_ENTROPY)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    return seconds_of(lambda: trainer.run(batches, max_epochs=1), batches)


def run_skorch(batches: Batches) -> float:
    """Skorch: `NeuralNet` over ready batches, the scheduler stepped by the batch."""
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
    return seconds_of(lambda: net.fit(*batches[0]), batches)


def run_accelerate(batches: Batches) -> float:
    """Accelerate: the loop by hand with everything prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = tiny_model()
    opt = SGD(model.parameters(), lr=LR)
    schedule = OneCycleLR(opt, LR, total_steps=len(batches))
    model, opt, loader, schedule = accelerator.prepare(model, opt, loader_of(batches), schedule)

    def run() -> None:
        for xb, yb in loader:
            with accelerator.accumulate(model):
                accelerator.backward(CROSS_ENTROPY(model(xb), yb))
                opt.step()
                schedule.step()
                opt.zero_grad()

    return seconds_of(run, batches)


def run_lightning(batches: Batches) -> float:
    """Lightning: a module with the scheduler stepped by the batch; logger and bar off."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_model()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            xb, yb = batch
            return CROSS_ENTROPY(self.model(xb), yb)

        def configure_optimizers(self) -> Any:
            opt = SGD(self.parameters(), lr=LR)
            schedule = OneCycleLR(opt, LR, total_steps=len(batches))
            return [opt], [{"scheduler": schedule, "interval": "step"}]

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module()
    return seconds_of(lambda: trainer.fit(module, loader_of(batches)), batches)


def run_fastai(batches: Batches) -> float:
    """Fastai 2: `Learner.fit_one_cycle` without its bar."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    dls = DataLoaders(loader_of(batches), loader_of(batches[:1]))
    learn = Learner(dls, tiny_model(), CROSS_ENTROPY, opt_func=partial(OptimWrapper, opt=SGD))
    with learn.no_bar(), learn.no_logging():
        return seconds_of(lambda: learn.fit_one_cycle(1, LR), batches)


def run_keras(batches: Batches) -> float:
    """Keras 3 on torch: `fit` with a schedule of the rate."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    model = keras.Sequential([keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)])
    schedule = keras.optimizers.schedules.CosineDecay(
        LR / 25, len(batches), warmup_target=LR, warmup_steps=len(batches) // 4
    )
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return seconds_of(lambda: model.fit(loader_of(batches), epochs=1, verbose=0), batches)


def run_composer(batches: Batches) -> float:
    """Composer: its `Trainer`, the scheduler stepped by the batch."""
    from composer import Trainer
    from composer.models import ComposerClassifier

    model = ComposerClassifier(tiny_model(), num_classes=10)
    opt = SGD(model.parameters(), lr=LR)
    trainer = Trainer(
        model=model,
        train_dataloader=loader_of(batches),
        max_duration="1ep",
        optimizers=opt,
        schedulers=OneCycleLR(opt, LR, total_steps=len(batches)),
        step_schedulers_every_batch=True,
        device="cpu",
        progress_bar=False,
    )
    return seconds_of(trainer.fit, batches)


PEERS = (
    run_ignite,
    run_skorch,
    run_accelerate,
    run_lightning,
    run_fastai,
    run_keras,
    run_composer,
)


def rows() -> Iterator[Row]:
    """Give the rows of what is installed; say what is not."""
    batches = make_batches()
    against = partial(bare, SGD, tiny_model, batches)
    yield Row("onecycle", partial(ours, SGD, tiny_model, batches), against, 0.82)
    for peer in PEERS:
        name = peer.__name__.removeprefix("run_")
        try:
            peer(batches[:2])
        except ImportError as error:
            print(f"{name}: skipped, {error}", flush=True)
            continue
        yield Row(name, partial(peer, batches), against)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    compare(rows(), arguments(__doc__, pairs=5))
