"""What tests of several callbacks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from graph_stand_in import StandIn

from onecycle.callbacks import cuda_graph


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StandIn]]:
    """Put a stand-in in the place of what captures CUDA graphs; it counts from 0."""
    monkeypatch.setattr(cuda_graph, "Cuda", StandIn)
    StandIn.captures = StandIn.replays = 0
    yield StandIn
    StandIn.captures = StandIn.replays = 0
