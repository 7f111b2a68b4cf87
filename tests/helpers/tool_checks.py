"""What looks at a training, in several processes: the numbers of one, and what is written, once."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from equal_checks import BOUND
from resume_checks import interrupted
from together import (
    RANK,
    UPDATES,
    WHOLE,
    WORLD,
    N,
    X,
    Y,
    distance,
    equal_everywhere,
    gathered,
    learner,
    loaders,
    net,
    run,
)

from onecycle import (
    EMA,
    ActivationStats,
    Callback,
    Checkpoint,
    CSVLogger,
    GradientClip,
    GradientNorm,
    JSONLines,
    Learner,
    SaveModel,
    TensorLoader,
    Throughput,
    Timeline,
    UpdateRatios,
    load_predictor,
)
from onecycle.callbacks import throughput

#: By these Python asks the other processes; the gradients' own are torch's.
ASKING = ("all_reduce", "broadcast", "all_gather", "all_gather_object", "broadcast_object_list")


def check_gradients_updates_and_activations(folder: Path) -> None:
    made: list[tuple[Learner, ActivationStats]] = []
    for alone in (False, True):
        stats = ActivationStats(["0", "1"], every=3)
        learn = learner(alone)
        cbs = [GradientNorm(), UpdateRatios(every=2), stats, GradientClip(0.3)]
        learn.fit(3, cbs=cbs)
        made.append((learn, stats))
    (learn, stats), (alone_learn, right) = made
    equal_everywhere(learn)
    assert distance(learn, alone_learn) < BOUND
    assert stats.updates.tolist() == right.updates.tolist() == list(range(3, 3 * UPDATES + 1, 3))
    for name in ("means", "stds", "dead", "histograms"):
        mine, theirs = getattr(stats, name), getattr(right, name)
        assert np.abs(mine - theirs).max() < 1e-5, name
        assert gathered(mine.tolist()) == [mine.tolist()] * WORLD


def check_layers_of_processes_without_samples(folder: Path) -> None:
    made = []
    for alone in (False, True):
        stats = ActivationStats(["1"], every=1)
        dls = TensorLoader(X[:1], Y[:1], batch_size=WHOLE if alone else WHOLE // WORLD), None
        learner(alone, dls, metrics=[]).fit(2, cbs=[stats])
        made.append(stats.means)
    assert np.abs(made[0] - made[1]).max() < 1e-6


def check_samples_a_second_are_those_of_all(folder: Path) -> None:
    learn = learner(dls=(loaders(WHOLE // WORLD)[0], None))
    clock, before = iter([0.0, 2.0 + RANK]), throughput.perf_counter
    throughput.perf_counter = lambda: next(clock)
    try:
        learn.fit(1, cbs=[Throughput()])
    finally:
        throughput.perf_counter = before
    seconds = 2 + (WORLD - 1) / 2  # the mean of theirs
    assert learn.recorder.history["samples_per_s"].values.tolist() == [N / seconds]


def check_what_is_logged_is_written_once_and_goes_on(folder: Path) -> None:
    """Files of a fit that was interrupted are those of one that was not."""

    def fit(learn: Learner, name: str, *cbs: Callback, **options: Any) -> None:
        own = folder / f"{name}-{WORLD}"
        logs = [JSONLines(own / "run.jsonl", name="run"), CSVLogger(own / "run.csv")]
        saves = Checkpoint(own / "checkpoints", "2 updates")
        learn.fit(3, cbs=[*logs, GradientNorm(), saves, *cbs], **options)

    fit(learner(), "whole")
    with suppress(InterruptedError):
        fit(learner(), "cut", interrupted(8))
    gathered(None)
    resumed = learner()
    fit(resumed, "cut", resume=folder / f"cut-{WORLD}" / "checkpoints")
    equal_everywhere(resumed)
    gathered(None)
    alone = learner(alone=True)
    if RANK == 0:
        alone.fit(3, cbs=[JSONLines(folder / "alone.jsonl", name="run"), GradientNorm()])
    whole, cut = (folder / f"{name}-{WORLD}" for name in ("whole", "cut"))
    rows = [
        [json.loads(line) for line in (each / "run.jsonl").read_text().splitlines()]
        for each in (whole, cut)
    ]
    assert rows[0][1:-1] == rows[1][1:-1]  # the first says the model, the last where files are
    assert [row["update"] for row in rows[0][1:-1]] == list(range(1, 3 * UPDATES + 1))
    texts = [(each / "run.csv").read_text() for each in (whole, cut)]
    tables = [[*csv.DictReader(text.splitlines())] for text in texts]
    for each in (row for table in tables for row in table):
        del each["seconds"]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 3
    if RANK == 0:
        right = [json.loads(line) for line in (folder / "alone.jsonl").read_text().splitlines()]
        for mine, theirs in zip(rows[0][1:-1], right[1:], strict=True):
            assert mine.keys() == theirs.keys()
            assert all(abs(mine[name] - theirs[name]) < BOUND for name in mine)


class Own(Callback):
    def after_batch(self, learn: Any) -> None: ...


def check_the_timeline_is_that_of_the_first_process(folder: Path) -> None:
    timeline = Timeline(batches=4, skip=2)
    learner().fit(1, cbs=[timeline, Own()])
    names = [part.name for part in timeline.parts]
    assert {"data", "forward", "backward", "step"} <= set(names) if RANK == 0 else not names
    assert ("Own" in names) is (RANK == 0)


def check_looking_at_predictions_is_whole_everywhere(folder: Path) -> None:
    learn, alone = learner(), learner(alone=True)
    for each in (learn, alone):
        each.fit(1)
    tops = learn.top_losses(4)
    losses = [sample.loss for sample in tops]
    assert gathered(losses) == [losses] * WORLD
    assert np.abs(np.array(losses) - [sample.loss for sample in alone.top_losses(4)]).max() < BOUND
    matrix = learn.confusion_matrix().counts.tolist()
    assert gathered(matrix) == [alone.confusion_matrix().counts.tolist()] * WORLD


def check_metrics_that_add_up_by_themselves_are_asked_once(folder: Path) -> None:
    """They are given the samples of all: added up besides, each would count for every process."""
    try:
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score
    except ImportError:
        return

    class Hits(MulticlassConfusionMatrix):
        def compute(self) -> torch.Tensor:
            return super().compute().diagonal().sum()

    made = []
    for alone in (False, True):
        metrics = [Hits(3), MetricCollection({"more": Hits(3), "f1": MulticlassF1Score(3)})]
        learn = learner(alone, metrics=metrics)
        learn.fit(1)
        made.append(learn)
        # One process alone may ask, and none waits for it.
        found = learn.validate() if RANK == 0 else {}
        record = learn.recorder.history
        assert all(abs(found[name] - record[name].values[-1]) < 1e-6 for name in found)
    assert distance(*made) < BOUND


def check_the_best_weights_are_read_by_the_first_process(folder: Path) -> None:
    own = folder / f"best-{WORLD}-of-{RANK}"  # as on machines that share no disk
    own.mkdir()
    learn = learner()
    learn.fit(4, 5.0, cbs=[SaveModel(own / "best.pt")])
    assert learn.recorder.history["valid_loss"].values.argmin() < 3
    equal_everywhere(learn)


def counted(learn: Learner, *cbs: Callback) -> list[int]:
    """Return how often Python asks the other processes, by batch of a pass."""
    asked, kept = [0], {name: getattr(dist, name) for name in ASKING}
    by_batch: list[int] = []

    def counting(name: str) -> Any:
        def ask(*args: Any, **options: Any) -> Any:
            asked[0] += 1
            return kept[name](*args, **options)

        return ask

    class Counts(Callback):
        """Is no callback of the user's, which would have all agree."""

        def after_batch(self, learn: Any) -> None:
            by_batch.append(asked[0])
            asked[0] = 0

    Counts.__module__ = "onecycle.of_these_tests"
    try:
        vars(dist).update({name: counting(name) for name in kept})
        learn.fit(1, cbs=[*cbs, Counts(during="train")])
    finally:
        vars(dist).update(kept)
    return by_batch[1:-1]


def check_a_batch_asks_the_others_once_beside_its_gradients(folder: Path) -> None:
    assert set(counted(learner(metrics=[]))) == {1}
    assert set(counted(learner(metrics=[]), GradientClip(0.1), EMA(0.9))) == {1}
    saves = Checkpoint(folder / f"asks-{WORLD}", "100 updates", on_signal=True)
    assert set(counted(learner(metrics=[]), saves)) == {2}
    assert set(counted(learner(metrics=[]), Callback(after_step=lambda each: None))) == {2}


def check_a_predictor_is_exported_once(folder: Path) -> None:
    learn, path = learner(), folder / f"exported-{WORLD}"
    learn.fit(1)
    learn.export(path)
    assert torch.equal(load_predictor(path)(X[:4]), learn.get_preds([(X[:4], Y[:4])]).preds)
    before = path.stat().st_mtime_ns
    assert gathered(before) == [before] * WORLD


def validated(alone: bool) -> Learner:
    """Make a learner whose validation batches are the same for any number of processes."""
    train, _ = loaders(WHOLE if alone else WHOLE // WORLD)
    return learner(alone, (train, TensorLoader(X[:29], Y[:29], batch_size=8)))


def check_studies_print_one_table_that_is_that_of_one_process(folder: Path) -> None:
    studies: list[Callable[[Learner], Any]] = [
        lambda each: each.regularization_report(0.1, wds=[0.0, 0.1], seeds=[0, 1], init=net),
        lambda each: each.diagnose(num_it=20, seeds=[0], wds=(0.0, 0.1), n_epoch=1),
        lambda each: each.compare(1, 0.1, ["constant", "one_cycle"], seeds=[0, 1], target=0.5),
        lambda each: each.lr_find(num_it=30, confirm=10, show_plot=False),
        lambda each: each.lr_find(num_it=12, wds=[0.0, 0.1], show_plot=False, valid=True),
    ]
    learn, alone = validated(alone=False), validated(alone=True)
    before = [p.detach().clone() for p in learn.model.parameters()]
    for study in studies:
        said = repr(study(learn))
        assert gathered(said) == [said] * WORLD
        assert repr(study(alone)) == said, (said, repr(study(alone)))
        for mine, was in zip(learn.model.parameters(), before, strict=True):
            assert torch.equal(mine, was)
    equal_everywhere(learn)


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
CHECKS = {name: value for name, value in CHECKS.items() if value.__module__ == __name__}

if __name__ == "__main__":
    run(CHECKS)
