"""Batches go to a device whole, on CUDA beside its work: with fake streams, and on a GPU."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from batch_kinds import Encoding, Moving, graphs
from batch_kinds import Pair as Whole
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from onecycle import Learner, TensorLoader
from onecycle.data import transfer
from onecycle.data.transfer import AHEAD, LARGE, to_device

CUDA = torch.device("cuda", 0)

Pair = namedtuple("Pair", ["x", "y"])


class Named(dict):
    name = "set by the user"


def test_to_device_moves_every_tensor_and_keeps_every_container():
    t = torch.zeros(2)
    batch = [Pair(t, [t, "a"]), {"k": (t, None)}, 3]
    moved = to_device(batch, "meta")
    pair, mapping, number = moved
    assert isinstance(moved, list)
    assert isinstance(pair, Pair)
    assert pair.x.device.type == pair.y[0].device.type == mapping["k"][0].device.type == "meta"
    assert (pair.y[1], mapping["k"][1], number) == ("a", None, 3)
    assert batch[0].x is t  # what was passed is not changed
    assert batch[1]["k"][0] is t


def test_to_device_keeps_what_a_dict_subclass_stores_beside_its_items():
    batch = Named(x=torch.zeros(1))
    batch.name = "kept"
    moved = to_device(batch, "meta")
    assert (type(moved), moved.name, moved["x"].device.type) == (Named, "kept", "meta")


def test_to_device_keeps_the_batch_sizes_of_a_packed_sequence_on_the_cpu():
    packed = to_device(pack_sequence([torch.zeros(2, 1), torch.zeros(1, 1)]), "meta")
    assert packed.data.device.type == "meta"
    assert packed.batch_sizes.tolist() == [2, 1]


def test_to_device_lets_an_object_move_itself_wherever_it_is_nested():
    t = torch.zeros(2)
    encoding = Encoding(x=t)
    moved = to_device((Moving(t, t), {"texts": encoding}, [graphs((1, 2))]), "meta")
    assert type(moved[0]) is Moving
    assert moved[0].x.device.type == moved[0].y.device.type == "meta"
    assert moved[1]["texts"] is encoding  # which it moved in place
    assert encoding["x"].device.type == moved[2][0].x.device.type == "meta"


def test_to_device_calls_the_method_of_an_object_with_the_device_alone():
    called = []

    class Own:
        def to(self, *args, **kwargs):
            called.append((args, kwargs))
            return self

    to_device(Own(), "cpu")
    assert called == [((torch.device("cpu"),), {})]


def test_to_device_takes_an_object_that_returns_nothing_for_a_mistake():
    class Forgets:
        def to(self, device):
            pass

    with pytest.raises(TypeError, match=r"Forgets.to\(device\) returned None: it must return"):
        to_device((torch.zeros(1), Forgets()), "cpu")


def test_to_device_passes_an_object_that_cannot_be_moved():
    pair = Whole(torch.zeros(1), torch.zeros(1))
    array = np.zeros(2)
    assert to_device((pair, array), "meta") == (pair, array)


def test_to_device_looks_for_no_item_of_a_dict_with_attributes():
    class Attributes(dict):
        __getattr__ = dict.__getitem__

    moved = to_device(Attributes(x=torch.zeros(1)), "meta")
    assert type(moved) is Attributes
    assert moved.x.device.type == "meta"


def test_to_device_moves_a_mapping_that_cannot_be_changed():
    given = MappingProxyType({"x": torch.zeros(1), "id": 3})
    moved = to_device(given, "meta")
    assert moved["x"].device.type == "meta"
    assert moved["id"] == 3
    assert given["x"].device.type == "cpu"


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_to_device_returns_the_same_object_where_nothing_moves(device):
    t = torch.zeros(1)
    for batch in (t, (t, t), [t, "a"], {"x": t, "y": [t]}, Pair(t, 1), "text", ()):
        assert to_device(batch, device) is batch


# Beside the work of a GPU ----------------------------------------------------------------------


class FakeStream:
    """Notes what is called on it, in one list for all."""

    calls: list[str]

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        FakeStream.calls.append(f"{self.name} begins")

    def __exit__(self, *_: object) -> None:
        FakeStream.calls.append(f"{self.name} ends")

    def wait_stream(self, other: FakeStream) -> None:
        FakeStream.calls.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> FakeEvent:
        return FakeEvent()


class FakeEvent:
    """Numbers itself, and notes that the host waits for it."""

    made = 0

    def __init__(self) -> None:
        FakeEvent.made += 1
        self.number = FakeEvent.made

    def synchronize(self) -> None:
        FakeStream.calls.append(f"host waits for {self.number}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Put fakes in the place of what torch.cuda has; give what is called on them."""
    FakeStream.calls, FakeEvent.made = [], 0
    transfer._side.cache_clear()
    for name, made in {
        "Stream": lambda device: FakeStream("side"),
        "current_stream": lambda device: FakeStream("current"),
        "stream": lambda stream: stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, made)
    moved = transfer._moved

    def copy(batch: Any, device: torch.device) -> Any:
        """Copy to the meta device, as CUDA is not there."""
        if device == CUDA:
            FakeStream.calls.append("copy")
        return moved(batch, torch.device("meta"))

    def record_stream(tensor: Tensor, stream: FakeStream) -> None:
        FakeStream.calls.append(f"{stream.name} uses {list(tensor.shape)}")

    monkeypatch.setattr(transfer, "_moved", copy)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    yield FakeStream.calls
    transfer._side.cache_clear()


def test_a_large_batch_is_copied_on_the_side_and_waited_for_where_it_is_used(calls) -> None:
    moved = to_device({"x": torch.zeros(LARGE // 4), "y": (torch.zeros(3), "text")}, CUDA)

    assert calls == [
        "side begins",
        "copy",
        "side ends",
        "current waits for side",
        f"current uses [{LARGE // 4}]",
        "current uses [3]",
    ]
    assert moved["x"].device.type == "meta"
    assert moved["y"][1] == "text"


def test_of_a_packed_sequence_only_what_is_moved_is_used_there(calls) -> None:
    packed = pack_sequence([torch.zeros(LARGE, 1), torch.zeros(1, 1)])

    to_device(packed, CUDA)

    assert calls[4:] == [f"current uses [{LARGE + 1}, 1]"]


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(LARGE // 4 - 1), None),
        (torch.zeros(LARGE, device="meta"), torch.zeros(LARGE)),
        (torch.zeros(LARGE), torch.eye(2).to_sparse()),
        (torch.zeros(LARGE), Moving(torch.zeros(1), torch.zeros(1))),
        "text",
    ],
    ids=["small", "partly elsewhere", "sparse", "with an object", "no tensor"],
)
def test_other_batches_are_copied_as_ever(batch, calls) -> None:
    to_device(batch, CUDA)

    assert calls == ["copy"]


def test_the_host_is_never_more_than_a_few_batches_ahead(calls) -> None:
    for _ in range(AHEAD + 2):
        to_device(torch.zeros(LARGE), CUDA)

    assert [call for call in calls if "host" in call] == ["host waits for 1", "host waits for 2"]
    # The first of these events was recorded before the second batch was used.
    assert calls.index("host waits for 1") > [i for i, c in enumerate(calls) if c == "copy"][3]


def test_what_goes_to_the_cpu_can_be_read_at_once(monkeypatch) -> None:
    asked = []

    def to(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        asked.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "to", to)
    away, here = torch.zeros(1, device="meta"), torch.zeros(1)
    to_device((away, {"x": away}), "cpu")
    to_device(here, "meta")

    assert asked == [("cpu", False), ("cpu", False), ("meta", True)]


def test_cuda_without_an_index_is_the_current_device(calls, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "Stream", lambda device: made.append(device) or FakeStream("side")
    )

    to_device(torch.zeros(LARGE), "cuda")

    assert made == [torch.device("cuda", 1)]


def test_one_stream_serves_all_batches(calls, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(
        torch.cuda, "Stream", lambda device: made.append(device) or FakeStream("side")
    )
    for _ in range(3):
        to_device(torch.zeros(LARGE), CUDA)

    assert made == [CUDA]


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


@needs_cuda
@pytest.mark.parametrize("pinned", [True, False])
def test_batches_arrive_whole_at_a_busy_gpu(pinned) -> None:
    device = torch.device("cuda", 0)
    busy = torch.randn(4096, 4096, device=device)
    sums = []
    for i in range(50):
        batch = torch.full((LARGE,), float(i))
        for _ in range(3):
            busy = busy @ busy / 64
        sums.append(to_device(batch.pin_memory() if pinned else batch, device).double().mean())

    assert torch.stack(sums).tolist() == list(range(50))


@needs_cuda
def test_a_fit_with_large_batches_ends_in_the_same_bits_as_with_data_on_the_gpu() -> None:
    x = torch.randn(4096, 512, generator=torch.Generator().manual_seed(0))
    weights = []
    for where in ("cpu", "cuda"):
        torch.manual_seed(0)
        loader = TensorLoader(x, x.sum(1, keepdim=True), batch_size=1024, shuffle=True).to(where)
        learn = Learner((loader, None), nn.Linear(512, 1), nn.functional.mse_loss, device="cuda")
        learn.fit(2)
        weights.append([p.detach().cpu() for p in learn.model.parameters()])

    assert all(map(torch.equal, *weights))


@needs_cuda
def test_predictions_on_a_busy_gpu_are_read_when_they_are_there() -> None:
    x = torch.randn(4096, 512, generator=torch.Generator().manual_seed(0))
    loader = TensorLoader(x.cuda(), batch_size=512)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(20)))
    learn = Learner((loader, loader), model, nn.functional.mse_loss, device="cuda")
    with torch.no_grad():
        expected = learn.model(x.cuda()).cpu()

    for _ in range(5):
        torch.testing.assert_close(learn.get_preds().preds, expected)
