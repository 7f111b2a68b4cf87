"""Whatever is captured is put back in place, to the bit."""

import random
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onecycle.core.restore import Capture, RngState, preserved_rng


class TestCapture:
    def test_puts_back_containers_of_every_kind_in_place(self) -> None:
        values: dict[str, Any] = {
            "dict": {"a": [1, 2]},
            "ordered": OrderedDict(b=1, a=2),
            "default": defaultdict(list, x=[1]),
            "deque": deque([1, 2, 3], maxlen=3),
            "set": {1, 2},
            "tuple": ([1], torch.ones(2)),
        }
        inner, tensor = values["tuple"]
        parts = dict(values)
        capture = Capture()
        capture.add(values)
        values["dict"]["a"].append(3)
        values["ordered"].move_to_end("b")
        values["default"]["y"].append(1)
        values["deque"].append(4)
        values["set"].clear()
        inner.clear()
        tensor.zero_()
        values["new"] = 1
        capture.restore()
        assert all(values[name] is part for name, part in parts.items())
        assert list(values) == list(parts)
        assert values["dict"] == {"a": [1, 2]}
        assert list(values["ordered"]) == ["b", "a"]
        assert values["default"] == {"x": [1]}
        assert values["deque"] == deque([1, 2, 3])
        assert values["set"] == {1, 2}
        assert inner == [1]
        assert tensor.tolist() == [1, 1]

    def test_follows_what_has_a_state_dict_and_keeps_anything_else_by_reference(self) -> None:
        class Plain:
            def __init__(self) -> None:
                self.best = [1.0]

        class Stateful(Plain):
            def state_dict(self) -> dict[str, Any]:
                return {"best": self.best}

        stateful, plain, module = Stateful(), Plain(), nn.Linear(1, 1)
        best, capture = stateful.best, Capture()
        capture.add([stateful, plain, module, Stateful])
        stateful.best.append(2.0)
        stateful.best, stateful.more = [3.0], 1
        plain.best, module.more = [3.0], 1
        capture.restore()
        assert vars(stateful) == {"best": [1.0]}
        assert stateful.best is best
        assert (plain.best, module.more) == ([3.0], 1)

    def test_follows_a_cycle_once(self) -> None:
        value: list[Any] = [1]
        value.append(value)
        capture = Capture()
        capture.add(value)
        value.clear()
        capture.restore()
        assert value[0] == 1
        assert value[1] is value

    def test_can_restore_twice(self) -> None:
        tensor, capture = torch.ones(2), Capture()
        capture.add(tensor)
        for _ in range(2):
            tensor.add_(1)
            capture.restore()
        assert tensor.tolist() == [1, 1]

    def test_leaves_graphs_usable(self) -> None:
        weight = torch.ones(2, requires_grad=True)
        hidden = weight.exp()  # its backward needs its own value
        capture = Capture()
        capture.add([hidden])
        capture.restore()
        hidden.sum().backward()
        assert torch.equal(weight.grad, hidden.detach())

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.ones(1).expand(3),
            torch.ones(2, 1).expand(2, 3),
            torch.ones(0, 3),
            torch.ones(()),
            torch.eye(2).to_sparse(),
            torch.ones(3, dtype=torch.complex64),
            torch.ones(4, 4).t()[1:, ::2],
        ],
        ids=["expanded", "rows", "empty", "scalar", "sparse", "complex", "strided"],
    )
    def test_puts_back_tensors_of_any_layout(self, tensor: Tensor) -> None:
        expected, capture = tensor.clone(), Capture()
        capture.add(tensor)
        base = tensor._base if tensor._base is not None else tensor
        base.zero_()
        capture.restore()
        assert torch.equal(tensor.to_dense(), expected.to_dense())

    def test_keeps_nan_and_signed_zero(self) -> None:
        tensor = torch.tensor([float("nan"), -0.0, float("inf")])
        expected, capture = tensor.numpy().tobytes(), Capture()
        capture.add(tensor)
        tensor.zero_()
        capture.restore()
        assert tensor.numpy().tobytes() == expected

    def test_passes_over_what_cannot_be_written(self) -> None:
        array = np.broadcast_to(np.ones(1), 3)
        capture = Capture()
        capture.add([array])
        capture.restore()
        assert array.tolist() == [1, 1, 1]

    def test_remembers_every_one_of_many_short_lived_containers(self) -> None:
        # Where a list dies once it was added, the next one may lie at its address.
        tensors = [torch.ones(1) for _ in range(20)]
        capture = Capture()
        for tensor in tensors:
            capture.add([tensor])
        for tensor in tensors:
            tensor.zero_()
        capture.restore()
        assert [float(tensor) for tensor in tensors] == [1.0] * 20


class TestBlocks:
    def test_preserved_rng_puts_every_generator_back_also_after_an_error(self) -> None:
        def draw() -> tuple[float, float, float]:
            return random.random(), float(np.random.rand()), float(torch.rand(()))

        with pytest.raises(KeyError), preserved_rng():  # noqa: PT012
            first = draw()
            raise KeyError
        assert draw() == first


class Device:
    """Stands in for the generators of a device that is not here."""

    def __init__(self, *, cuda: bool, mps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states = {"cuda": torch.tensor([1]), "mps": torch.tensor([2])}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [self.states["cuda"]])
        monkeypatch.setattr(
            torch.cuda, "set_rng_state_all", lambda states: self.set("cuda", states[0])
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.mps, "get_rng_state", lambda: self.states["mps"])
        monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: self.set("mps", state))

    def set(self, name: str, state: Tensor) -> None:
        self.states[name] = state


class TestDevices:
    @pytest.mark.parametrize("cuda", [True, False])
    @pytest.mark.parametrize("mps", [True, False])
    def test_the_states_of_those_in_use_are_put_back_and_those_of_others_are_left(
        self, cuda: bool, mps: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device(cuda=cuda, mps=mps, monkeypatch=monkeypatch)
        kept = RngState()
        device.states = {"cuda": torch.tensor([7]), "mps": torch.tensor([8])}
        kept.restore()
        found = {name: int(state) for name, state in device.states.items()}
        assert found == {"cuda": 1 if cuda else 7, "mps": 2 if mps else 8}

    def test_cuda_that_nothing_has_touched_yet_stays_untouched(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Device(cuda=True, mps=False, monkeypatch=monkeypatch)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert RngState().cuda == []

    @pytest.mark.parametrize("here", [True, False])
    def test_states_of_a_file_are_taken_where_the_devices_are_the_same(
        self, here: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = Device(cuda=True, mps=True, monkeypatch=monkeypatch)
        state = RngState().state_dict()
        device = Device(cuda=here, mps=here, monkeypatch=monkeypatch)
        device.states = {"cuda": torch.tensor([7]), "mps": torch.tensor([8])}
        RngState.from_state_dict(state).restore()
        found = {name: int(state) for name, state in device.states.items()}
        assert found == ({"cuda": 1, "mps": 2} if here else {"cuda": 7, "mps": 8})


def test_the_random_states_go_through_a_file_bit_for_bit(tmp_path):
    random.seed(4), np.random.seed(4), torch.manual_seed(4)
    random.gauss(0, 1), np.random.randn()  # both keep a second number for the next call
    torch.save(RngState().state_dict(), tmp_path / "rng.pt")
    expected = random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist()
    state = torch.load(tmp_path / "rng.pt", weights_only=True)
    RngState.from_state_dict(state).restore()
    assert (random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist()) == expected
