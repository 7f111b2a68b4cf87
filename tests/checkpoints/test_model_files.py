"""What `save` writes comes back to the bit, and nothing else is read."""

import os
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import LearnerState
from plain_learner import Net, halves, learner, plain
from torch import nn
from torch.optim import SGD, AdamW

from onecycle import CheckpointError

SGDM = partial(SGD, momentum=0.9)


class TestFiles:
    @pytest.mark.parametrize("opt_func", [SGDM, AdamW], ids=["sgd", "adamw"])
    def test_a_saved_learner_comes_back_to_the_bit(self, opt_func: Any, tmp_path: Path) -> None:
        learn = learner(opt_func=opt_func)
        learn.fit(2)
        learn.save(tmp_path / "a")
        other = learner(Net(), opt_func=opt_func, lr=0.5)
        other.load(tmp_path / "a")
        for name in ("model", "opt"):
            mine, theirs = (getattr(one, name).state_dict() for one in (learn, other))
            assert pickle.dumps(plain(mine)) == pickle.dumps(plain(theirs))

    @pytest.mark.parametrize("opt_func", [SGDM, AdamW], ids=["sgd", "adamw"])
    def test_training_goes_on_from_a_file_as_it_would_have(
        self, opt_func: Any, tmp_path: Path
    ) -> None:
        learn = learner(opt_func=opt_func)
        learn.fit(1)
        learn.save(tmp_path / "a")
        other = learner(opt_func=opt_func)
        other.load(tmp_path / "a")
        # A file holds no position: the order of the data is that of epoch 0 until it is told.
        assert other.total_epochs == 0
        ends = []
        for one, epochs in ((learn, 1), (other, 1), (learner(opt_func=opt_func), 0)):
            one.total_epochs = epochs
            if epochs == 0:
                one.load(tmp_path / "a")
            torch.manual_seed(1)  # dropout
            one.fit(1)
            ends.append(pickle.dumps(plain(one.model.state_dict())))
        assert ends[0] == ends[1]
        assert ends[0] != ends[2]  # the control: in another order

    def test_the_optimizers_state_matters(self, tmp_path: Path) -> None:
        learn = learner(opt_func=SGDM)
        learn.fit(1)
        learn.save(tmp_path / "a")
        ends = []
        for with_opt in (True, False):
            other = learner(opt_func=SGDM)
            other.load(tmp_path / "a", with_opt=with_opt)
            assert bool(other.opt.state) is with_opt
            torch.manual_seed(1)
            other.fit(1)
            ends.append(other.model.layers[0].weight.detach().clone())
        assert not torch.equal(*ends)

    def test_extra_state_of_a_module_comes_back(self, tmp_path: Path) -> None:
        class Counting(nn.Linear):
            count = 0

            def get_extra_state(self) -> Any:
                return {"count": self.count}

            def set_extra_state(self, state: Any) -> None:
                self.count = state["count"]

        learn, other = learner(Counting(4, 1)), learner(Counting(4, 1))
        learn.model.count = 3
        learn.save(tmp_path / "a")
        other.load(tmp_path / "a")
        assert other.model.count == 3

    def test_a_file_that_is_there_survives_a_failed_save(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        learn = learner()
        learn.save(tmp_path / "a")
        before = (tmp_path / "a").read_bytes()

        def full(path: Path) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr("onecycle.files._sync", full)
        with pytest.raises(OSError, match="no space"):
            learn.save(tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (lambda: learner(nn.Linear(4, 1)), "holds another model: missing"),
            (lambda: learner(nn.Sequential(Net())), "holds another model: missing"),
            (lambda: learner(opt_func=SGDM), "does not fit SGD: it is that of AdamW"),
            (lambda: learner(splitter=halves), "does not fit AdamW"),
        ],
        ids=["model", "nested model", "optimizer", "groups"],
    )
    def test_one_that_does_not_fit_is_refused_and_nothing_changes(
        self, other: Any, message: str, tmp_path: Path
    ) -> None:
        learn = learner()
        learn.fit(1)
        learn.save(tmp_path / "a")
        refusing = other()
        before = LearnerState(refusing)
        with pytest.raises(CheckpointError, match=message):
            refusing.load(tmp_path / "a")
        assert before.changes(LearnerState(refusing)) == []

    def test_a_model_of_another_width_is_refused(self, tmp_path: Path) -> None:
        learner(nn.Linear(4, 1)).save(tmp_path / "a")
        with pytest.raises(CheckpointError, match=r"of another shape \['weight'\]"):
            learner(nn.Linear(5, 1)).load(tmp_path / "a")

    def test_a_newer_format_asks_for_an_update(self, tmp_path: Path) -> None:
        torch.save({"format": 3, "what": "ever"}, tmp_path / "a")
        with pytest.raises(CheckpointError, match="format 3; this onecycle reads 2: update it"):
            learner().load(tmp_path / "a")

    def test_an_older_format_is_refused_by_name(self, tmp_path: Path) -> None:
        torch.save({"format": 1, "model": {}, "opt": {}, "opt_class": "AdamW"}, tmp_path / "a")
        with pytest.raises(CheckpointError, match="format 1; this onecycle reads 2: load it with"):
            learner().load(tmp_path / "a")

    @pytest.mark.parametrize(
        "content",
        [
            [1, 2],
            {"weight": torch.ones(1)},
            {"format": "pt", "model": {}, "opt": {}},
            {"format": 2, "model": [], "opt": {}},
            {"format": 2, "model": {}, "opt": []},
        ],
        ids=["list", "state dict", "format", "model", "opt"],
    )
    def test_a_file_of_something_else_is_refused(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "a")
        with pytest.raises(CheckpointError, match=r"was not written by Learner\.save$"):
            learner().load(tmp_path / "a")

    @pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
    def test_a_truncated_file_is_refused_in_one_line(self, keep: float, tmp_path: Path) -> None:
        learn = learner()
        learn.save(tmp_path / "a")
        whole = (tmp_path / "a").read_bytes()
        part = whole[: int(keep * len(whole)) if keep < 1 else int(keep)]
        (tmp_path / "a").write_bytes(part)
        with pytest.raises(
            CheckpointError, match=r"cannot be read as a checkpoint|is damaged"
        ) as error:
            learn.load(tmp_path / "a")
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_file_that_would_run_code_runs_none(self, zipped: bool, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> Any:
                return os.mkdir, (str(tmp_path / "ran"),)

        state = {"format": 2, "model": Evil(), "opt": {}}
        if zipped:
            torch.save(state, tmp_path / "a")
        else:
            (tmp_path / "a").write_bytes(pickle.dumps(state, protocol=2))
        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(CheckpointError, match="could run code") as error,
        ):
            learner().load(tmp_path / "a")
        assert not (tmp_path / "ran").exists()
        assert "\n" not in str(error.value)
        assert "weights_only" not in str(error.value)

    def test_a_missing_file_is_what_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            learner().load(tmp_path / "none")
