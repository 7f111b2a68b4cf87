import pytest
import torch

from onecycle import Learner, launch, processes
from onecycle.parallel.joining import joined
from onecycle.processes import Processes, is_follower, is_launched, join, n_processes, rank
from onecycle.testing import toy_learner


def test_one_process_joins_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert join() is None
    assert (is_launched(), is_follower(), n_processes(), rank()) == (False, False, 1, 0)
    learn = toy_learner()
    assert learn.processes is learn.shards is None


def test_in_one_process_nothing_is_cut():
    learn = toy_learner(parallel="fsdp")
    assert learn.sharded is learn.processes is None
    learn.fit(1)
    assert type(learn.model[0].weight) is torch.nn.Parameter


def test_another_way_is_refused():
    with pytest.raises(ValueError, match="parallel"):
        joined("dp", None)


def test_training_apart_is_said(monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert joined(None, "cpu") == (None, "cpu")
    (message,) = caplog.messages
    assert message.endswith("each trains a copy of its own on all data, as parallel=None says")


def test_a_launcher_is_told_by_all_that_it_sets(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert not is_launched()
    monkeypatch.setenv("MASTER_PORT", "1")
    assert is_launched()
    assert rank() == 1


def defined_here():
    return None


@pytest.mark.parametrize("train", [lambda: None, type("Own", (), {})().__class__])
def test_what_no_other_process_can_import_is_not_launched(train):
    with pytest.raises((ValueError, TypeError), match="train must be a function"):
        launch(train, processes=2)


def test_a_function_of_a_notebook_cell_is_refused_with_the_line_to_write(monkeypatch):
    monkeypatch.delattr("__main__.__file__", raising=False)
    monkeypatch.setattr(defined_here, "__module__", "__main__")
    with pytest.raises(ValueError, match=r"%%writefile training\.py"):
        launch(defined_here, processes=2)


def test_no_number_of_processes_is_refused():
    with pytest.raises(ValueError, match="processes"):
        launch(defined_here, processes=0)


class Refusing(Processes):
    """Two processes of which one must not be asked."""

    def __getattribute__(self, name):
        if name in ("sums", "most", "gather", "add_up", "spread", "from_first"):
            raise AssertionError(f"{name} was called")
        return super().__getattribute__(name)


def test_inference_asks_no_other_process():
    learn: Learner = toy_learner()
    right = learn.validate(), learn.get_preds().preds.tolist()
    learn.processes = Refusing(1, 2)
    assert (learn.validate(), learn.get_preds().preds.tolist()) == right


def test_what_the_first_process_saved_alone_is_not_taken_for_the_next_file(monkeypatch):
    there, asked = set(), []

    class Store:
        def set(self, key, value):
            there.add(key)

        def wait(self, keys, timeout):
            asked.extend(keys)

    monkeypatch.setattr(processes, "_store", Store)
    monkeypatch.setattr(processes, "_groups", processes._Groups())
    for update in ("update 0", "update 9"):
        assert Processes(0, 2).after_first(lambda: "written", update) == "written"
    monkeypatch.setattr(processes, "_groups", processes._Groups())  # of another process
    assert Processes(1, 2).after_first(lambda: "never", "update 9") is None
    (last,) = asked
    assert last in there
    assert "update 9" in last
