"""A fit keeps its record and nothing else: no batch, no graph, no process, no growth."""

from __future__ import annotations

import gc
import multiprocessing
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_learner import tiny
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from onecycle import Callback, Learner

#: Of the record for each update: loss, rate and momentum, each a value with its update.
BYTES = 100


def measured(call: Callable[[], object]) -> int:
    """Return by how many bytes of Python and NumPy a call made the process grow."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def resident() -> int:
    """Return the memory of this process in bytes, libraries and tensors included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_twenty_thousand_updates_grow_by_their_record_alone() -> None:
    x = torch.zeros(4, 4), torch.zeros(4, 1)
    learn = tiny([x] * 1000)
    learn.dls.valid = None
    learn.fit(2)  # what is made once: caches, allocators
    gc.collect()
    before = resident()
    learn.fit(20)
    gc.collect()
    grown = resident() - before
    assert grown < BYTES * 20_000 + 2 * 2**20  # a page here and there
    assert learn.total_updates == 22_000
    again = tiny([x] * 1000)
    again.dls.valid = None
    # The last 256 losses wait unread, at 540 bytes.
    assert measured(lambda: again.fit(5)) < BYTES * 5000 + 2**18


class Spy(Callback):
    """Holds everything of each batch weakly."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.refs: list[weakref.ref[Any]] = []
        self.fail_at = fail_at

    def after_loss(self, learn: Learner) -> None:
        # loss_grad holds the graph.
        self.refs += map(weakref.ref, (learn.xb, learn.yb, learn.pred, learn.loss_grad))
        if learn.n_updates == self.fail_at:
            raise LookupError("deliberate")

    def alive(self) -> int:
        gc.collect()
        return sum(ref() is not None for ref in self.refs)


def fresh_batches() -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(3):
        yield torch.zeros(4, 4), torch.zeros(4, 1)


class Fresh:
    """Makes new batches for each pass, and remembers its iterators weakly."""

    def __init__(self) -> None:
        self.passes: list[weakref.ref[Any]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = fresh_batches()
        self.passes.append(weakref.ref(batches))
        return batches


@pytest.mark.parametrize("fail_at", [None, 2])
def test_no_batch_prediction_graph_or_iterator_outlives_a_fit(fail_at: int | None) -> None:
    loader, spy = Fresh(), Spy(fail_at)
    learn = tiny(loader)
    learn.dls.valid = Fresh()
    # The frames of a traceback hold what they worked on, for as long as somebody holds the error.
    with suppress(LookupError):
        learn.fit(2, cbs=[spy])
    assert len(spy.refs) >= 9
    assert spy.alive() == 0
    gc.collect()
    assert [ref() for ref in loader.passes if ref() is not None] == []


def test_the_check_finds_a_prediction_that_is_kept() -> None:
    kept, spy = [], Spy()
    tiny(Fresh()).fit(1, cbs=[spy, Callback(after_pred=lambda learn: kept.append(learn.pred))])
    assert spy.alive() > 0


@pytest.mark.parametrize("fail_at", [None, 1])
def test_no_worker_process_outlives_a_fit(fail_at: int | None) -> None:
    loader = DataLoader(TensorDataset(torch.zeros(8, 4), torch.zeros(8, 1)), 2, num_workers=1)
    learn = tiny(loader)
    with suppress(LookupError):
        learn.fit(1, cbs=[Spy(fail_at)])
    gc.collect()
    assert multiprocessing.active_children() == []
