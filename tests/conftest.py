import gc
import logging
from collections.abc import Callable, Iterator

import matplotlib
import pytest
import torch
import torch.utils.data._utils as loading
from graph_stand_in import StandIn

from onecycle.callbacks import cuda_graph

matplotlib.use("Agg")
torch.set_num_threads(1)
# Torch waits so long for a worker whose pass was broken off, whenever it is collected: 5 s.
loading.MP_STATUS_CHECK_INTERVAL = 0.2


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """Put a stand-in in the place of what captures CUDA graphs; it counts from 0."""
    monkeypatch.setattr(cuda_graph, "Cuda", StandIn)
    StandIn.captures = StandIn.replays = 0
    yield StandIn
    StandIn.captures = StandIn.replays = 0


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what lists the messages that were logged so far."""
    caplog.set_level(logging.INFO, "onecycle")
    return lambda: [record.getMessage() for record in caplog.records]


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what lives to the end, some 4,000 tests among it."""
    gc.collect()
    gc.freeze()
