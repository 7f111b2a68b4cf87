import csv
import gc
import math
import sys
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from onecycle.record.history import BLOCK, History


class CountCalls(TorchFunctionMode):
    """Counts the calls of torch functions and methods on tensors, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def filled() -> History:
    history = History()
    loss, lr, valid = history.series("train_loss"), history.series("lr", 2), history.series("valid")
    for update in (1, 2, 3):
        loss.append(update, torch.tensor(1 / update))
        lr.append(update, [0.1 * update, 0.3 * update])
    valid.append(2, 0.7)
    return history


def test_values_come_back_in_order_with_their_updates() -> None:
    series = History().series("lr")
    for update in range(1, 2 * BLOCK + 10):
        series.append(update, update / 7)
    assert series.updates.dtype == np.int64
    assert series.values.dtype == np.float64
    assert series.updates.tolist() == list(range(1, 2 * BLOCK + 10))
    assert series.values.tolist() == [update / 7 for update in range(1, 2 * BLOCK + 10)]
    assert len(series) == 2 * BLOCK + 9


def test_groups_are_columns() -> None:
    series = History().series("lr", width=2)
    series.append(1, [0.1, 0.2])
    series.append(2, (0.3, torch.tensor(0.5)))
    assert series.values.tolist() == [[0.1, 0.2], [0.3, 0.5]]


@pytest.mark.parametrize("width", [1, 3])
def test_empty_series_has_the_shape_of_its_width(width: int) -> None:
    series = History().series("lr", width)
    assert series.updates.shape == (0,)
    assert series.values.shape == ((0,) if width == 1 else (0, 3))


def test_list_of_one_is_a_number_where_there_is_one_group() -> None:
    series = History().series("lr")
    series.append(1, [0.25])
    assert series.values.tolist() == [0.25]


def test_no_operation_runs_on_a_tensor_before_its_block_is_full_and_then_one_stack() -> None:
    loss = torch.tensor(0.5)
    append = History().series("train_loss").append
    with CountCalls() as mode:
        for update in range(BLOCK - 1):
            append(update, loss)
        assert mode.calls == {}
        append(BLOCK, loss)
        assert (mode.calls["stack"], mode.calls["tolist"]) == (1, 1)
    assert "item" not in mode.calls
    assert sum(mode.calls.values()) < 3 * BLOCK  # device and dtype of each, and the read


def test_tensors_without_data_can_be_appended_since_nothing_reads_them() -> None:
    series = History().series("train_loss")
    for update in range(BLOCK - 1):
        series.append(update, torch.zeros((), device="meta"))
    assert len(series) == BLOCK - 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_append_does_not_wait_for_the_gpu() -> None:
    series = History().series("train_loss")
    losses = [torch.tensor(i / 3, device="cuda") for i in range(BLOCK)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for update in range(BLOCK - 1):
            series.append(update, losses[update])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    series.append(BLOCK, losses[-1])
    assert series.values.tolist() == [float(np.float32(i / 3)) for i in range(BLOCK)]


def test_each_dtype_becomes_float64_without_a_change_of_value() -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
    tensors = [torch.tensor(1000 / 3).to(dtype) for dtype in dtypes]
    series = History().series("loss")
    expected = [tensor.item() for tensor in tensors] + [0.1, 3.0]
    for value in [*tensors, 0.1, np.float32(3.0)]:
        series.append(1, value)
    assert series.values.tolist() == expected


def test_integer_beside_a_float32_is_not_rounded() -> None:
    series = History().series("count")
    series.append(1, torch.tensor(2**24 + 1))
    series.append(2, torch.tensor(0.5))
    assert series.values.tolist() == [2**24 + 1, 0.5]


def test_numbers_that_are_not_finite_are_kept() -> None:
    series = History().series("loss")
    for value in (torch.tensor(math.nan), math.inf, torch.tensor(-math.inf)):
        series.append(1, value)
    np.testing.assert_array_equal(series.values, [math.nan, math.inf, -math.inf])


def test_tensor_with_a_graph_is_read_and_its_graph_freed() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(_ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * x

        @staticmethod
        def backward(_ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad

    loss = Square.apply(torch.tensor(3.0, requires_grad=True))
    graph = weakref.ref(loss.grad_fn)
    series = History().series("loss")
    series.append(1, loss)
    del loss
    assert series.values.tolist() == [9.0]
    gc.collect()
    assert graph() is None


def test_tensor_made_in_inference_mode_is_read_outside_and_inside() -> None:
    series = History().series("loss")
    with torch.inference_mode():
        series.append(1, torch.tensor(2.0) * 2)
        assert series.values.tolist() == [4.0]
        series.append(2, torch.tensor(3.0) * 2)
    assert series.values.tolist() == [4.0, 6.0]


def test_a_hundred_thousand_updates_cost_less_than_100_bytes_each() -> None:
    history = History()
    loss, lr, mom = (history.series(name).append for name in ("train_loss", "lr", "momentum"))
    value = torch.tensor(0.5)
    loss(0, value)
    assert history["train_loss"].values.tolist() == [0.5]  # what torch loads once is not ours
    count = 100_000
    tracemalloc.start()
    for update in range(count):
        loss(update, value)
        lr(update, update * 1e-6)
        mom(update, 0.95 - update * 1e-6)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / count < 60
    assert peak / count < 100
    for series in history.values():
        series.updates  # noqa: B018 - drains
        stored = sys.getsizeof(series._updates) + sys.getsizeof(series._values)
        assert stored / len(series) < 20


def test_returned_arrays_are_equal_copies() -> None:
    series = filled()["train_loss"]
    first = series.values
    np.testing.assert_array_equal(first, series.values)
    first[:] = -1
    series.updates[:] = -1
    assert series.values[0] == 1.0
    assert series.updates.tolist() == [1, 2, 3]
    series.append(4, 0.25)  # no array that was handed out blocks the growth
    assert len(series.values) == 4


def test_unknown_name_lists_the_names() -> None:
    with pytest.raises(KeyError, match="'accuracy'; recorded: train_loss, lr, valid"):
        filled()["accuracy"]
    with pytest.raises(KeyError, match="nothing yet"):
        History()["lr"]


def test_history_is_a_mapping_in_the_order_of_first_use() -> None:
    history = filled()
    assert "lr" in history
    assert "accuracy" not in history
    assert list(history) == ["train_loss", "lr", "valid"]
    assert len(history) == 3


def test_series_is_made_once_and_keeps_its_width() -> None:
    history = History()
    assert history.series("lr", 2) is history.series("lr", 2)
    with pytest.raises(ValueError, match=r"'lr' is recorded with 2 number.* got 3"):
        history.series("lr", 3)


def test_entry_of_the_wrong_width_is_named_and_nothing_else_is_lost() -> None:
    series = History().series("lr", width=2)
    series.append(1, [0.1, 0.2])
    series.append(17, 0.5)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'lr' has 2 number\(s\), got 1 at update 17"):
            series.values  # noqa: B018
    assert len(series) == 2


def test_tensor_of_many_elements_is_refused() -> None:
    series = History().series("loss")
    series.append(1, torch.zeros(3))
    with pytest.raises(ValueError, match=r"'loss' is a tensor of shape \(3,\)"):
        series.values  # noqa: B018


def test_columns_are_aligned_on_every_update() -> None:
    columns = filled().to_columns()
    assert list(columns) == ["update", "train_loss", "lr_0", "lr_1", "valid"]
    assert columns["update"] == [1, 2, 3]
    assert columns["lr_1"] == [0.3 * 1, 0.3 * 2, 0.3 * 3]
    assert columns["valid"] == [None, 0.7, None]


def test_last_of_several_values_at_one_update_is_the_one_in_its_row() -> None:
    history = History()
    history.series("valid_loss").append(5, 2.0)
    history.series("valid_loss").append(5, 1.0)
    assert history.to_columns() == {"update": [5], "valid_loss": [1.0]}
    assert history["valid_loss"].values.tolist() == [2.0, 1.0]


def test_csv_reads_back_to_the_same_bits_with_empty_cells(tmp_path: Path) -> None:
    history = filled()
    path = tmp_path / "history.csv"
    path.write_text("old")
    history.to_csv(path)
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(history.to_columns())
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [float(row[1]) for row in rows] == history["train_loss"].values.tolist()
    assert [row[4] for row in rows] == ["", "0.7", ""]
    assert list(tmp_path.iterdir()) == [path]


def test_csv_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError("no space left")

    path = tmp_path / "history.csv"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        filled().to_csv(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_csv_of_nothing_is_a_header(tmp_path: Path) -> None:
    History().to_csv(tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().split() == ["update"]


def test_frame_has_the_update_as_index_and_nan_where_nothing_was_recorded() -> None:
    pytest.importorskip("pandas")
    frame = filled().to_frame()
    assert frame.index.name == "update"
    assert frame.index.tolist() == [1, 2, 3]
    assert list(frame.columns) == ["train_loss", "lr_0", "lr_1", "valid"]
    np.testing.assert_array_equal(frame["valid"], [math.nan, 0.7, math.nan])
    assert set(frame.dtypes) == {np.dtype("float64")}


def test_frame_without_pandas_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'onecycle\[pandas\]'"):
        filled().to_frame()


def test_state_survives_a_file_read_with_weights_only(tmp_path: Path) -> None:
    history = filled()
    torch.save(history.state_dict(), tmp_path / "history.pt")
    restored = History()
    restored.load_state_dict(torch.load(tmp_path / "history.pt", weights_only=True))
    assert list(restored) == list(history)
    for name, series in history.items():
        np.testing.assert_array_equal(restored[name].updates, series.updates)
        np.testing.assert_array_equal(restored[name].values, series.values)
        assert restored[name].width == series.width


def test_load_replaces_the_record_and_keeps_the_series_objects() -> None:
    state = filled().state_dict()
    history = History()
    kept, unknown = history.series("train_loss").append, history.series("extra")
    kept(99, 9.0)
    unknown.append(99, 9.0)
    history.load_state_dict(state)
    kept(4, 0.25)
    assert history["train_loss"].updates.tolist() == [1, 2, 3, 4]
    assert history["train_loss"].values.tolist() == [1.0, 0.5, float(np.float32(1 / 3)), 0.25]
    assert len(unknown) == 0


def test_load_with_another_number_of_groups_changes_nothing() -> None:
    history = History()
    history.series("lr", 3).append(1, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="parameter groups"):
        history.load_state_dict(filled().state_dict())
    assert list(history) == ["lr"]
    assert history["lr"].values.tolist() == [[1.0, 2.0, 3.0]]


def test_state_is_a_copy() -> None:
    history = filled()
    history.state_dict()["train_loss"]["values"].fill_(-1)
    assert history["train_loss"].values[0] == 1.0
