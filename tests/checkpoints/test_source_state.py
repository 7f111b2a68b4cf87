"""What a fit draws from and counts by goes on after a resume, or is named before it is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_state import trained
from moving_parts import Passes, PythonField, Queue, Steers, Transformed
from own_samplers import SAMPLERS, Stateful
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, WeightedRandomSampler

from onecycle import Callback, Checkpoint, Learner, SeededDataset
from onecycle.callbacks import resume as resuming
from onecycle.checkpoints import fit_files

N = 12


class KilledError(Exception):
    pass


def learner(loader: Any, model: nn.Module | None = None, *cbs: Callback) -> Learner:
    torch.manual_seed(0)
    model = model or nn.Linear(1, 1)

    def loss(pred: Tensor) -> Tensor:
        return (pred - 1).pow(2).mean()

    return Learner((loader, None), model, loss, device="cpu", seed=0, cbs=cbs, check=False)


def run(learn: Learner, folder: Path, *, at: int | None = None, **options: Any) -> dict[str, Any]:
    """Fit three epochs of three batches, or be killed after an update; return what it ended in."""
    random.seed(7), np.random.seed(7), torch.manual_seed(7)

    def kill(learn: Learner) -> None:
        if learn.n_updates == at:
            raise KilledError

    cbs = [Callback(after_batch=kill), Checkpoint(folder, "1 updates", keep=99)]
    with learn.no_bar():
        learn.fit(3, 0.01, cbs=cbs, **options)
    return trained(learn)


def same_bits(make: Any, folder: Path, at: int) -> bool:
    whole = run(make(), folder / "whole")
    with pytest.raises(KilledError):
        run(make(), folder / "killed", at=at)
    (folder / "killed").joinpath(f"checkpoint-{at:06d}.pt").unlink(missing_ok=True)
    return run(make(), folder / "killed", resume=folder / "killed") == whole


def over(sampler: Sampler[int] | None = None, data: Any = None, **options: Any) -> DataLoader[Any]:
    values = torch.arange(float(N))[:, None] / N
    return DataLoader(values if data is None else data, 4, sampler=sampler, **options)


class Counting(Dataset[Tensor]):
    """Counts its samples, and draws nothing."""

    calls = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Tensor:
        self.calls += 1
        return torch.tensor([(i + self.calls) / N])


SETTINGS: dict[str, Any] = {
    **{name: lambda make=make: learner(over(make())) for name, make in SAMPLERS.items()},
    "containers": lambda: learner(over(Queue())),
    "a data set's generators": lambda: learner(over(None, Transformed(), shuffle=True)),
    "an iterable that counts": lambda: learner(over(None, Passes())),
    "a model's fields": lambda: learner(over(), PythonField()),
    "workers that count": lambda: learner(over(None, SeededDataset(Counting()), num_workers=1)),
    "workers and a sampler": lambda: learner(over(Stateful(), num_workers=1)),
}


@pytest.mark.parametrize("make", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("at", [3, 5])
def test_a_resumed_fit_sees_the_order_of_one_left_alone(make: Any, at: int, tmp_path: Path) -> None:
    assert same_bits(make, tmp_path, at)


@pytest.mark.parametrize("name", ["Numpy", "InPlace", "Stateful", "a model's fields"])
def test_negative_control_without_it_another_order_comes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "load_sources", lambda *args, **options: [])
    assert not same_bits(SETTINGS[name], tmp_path, 5)


def test_the_objects_of_an_interrupted_fit_may_be_used_again(tmp_path: Path) -> None:
    for name in ("Counts", "InPlace", "Stateful", "a data set's generators"):
        whole = run(SETTINGS[name](), tmp_path / name / "whole")
        used = SETTINGS[name]()
        folder = tmp_path / name / "killed"
        with pytest.raises(KilledError):
            run(used, folder, at=5)
        assert run(learner(used.dls.train), folder, resume=folder) == whole, name


def test_settings_that_do_not_move_are_those_of_the_resumed_fit(tmp_path: Path) -> None:
    class Strong(Transformed):
        strength = 0.0

    first, second = Strong(), Strong()
    first.strength, second.strength = 1.0, 2.0
    with pytest.raises(KilledError):
        run(learner(over(None, first)), tmp_path, at=5)
    run(learner(over(None, second)), tmp_path, resume=tmp_path)
    assert second.strength == 2.0
    assert second.calls == 3 * N


class Remembers(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach()
        return super().forward(x)


class Stream:
    def __init__(self) -> None:
        self.source = iter([torch.tensor([[float(i)]]) for i in range(99)])

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return self.source


class Opaque(Stateful):
    def state_dict(self) -> dict[str, Any]:
        return {"self": object()}


LOST: dict[str, Any] = {
    "Steers.n changes in the fit": lambda: learner(over(), None, Steers()),
    "Remembers.last changes in the fit": lambda: learner(over(), Remembers(1, 1)),
    "Stream.source is an iterator": lambda: learner(Stream()),
    "state_dict of train.sampler has more": lambda: learner(over(Opaque())),
    "Transformed draws random numbers or counts in worker": lambda: learner(
        over(None, Transformed(), num_workers=1, persistent_workers=True)
    ),
    "Counting draws random numbers or counts": lambda: learner(
        over(None, SeededDataset(Counting()), num_workers=1, persistent_workers=True)
    ),
    "Passes draws random numbers or counts in worker": lambda: learner(
        over(None, Passes(), num_workers=1, persistent_workers=True)
    ),
}


@pytest.mark.parametrize(("words", "make"), LOST.items())
def test_what_cannot_be_kept_is_named_once_at_the_first_checkpoint_and_at_the_resume(
    words: str, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KilledError):
        run(make(), tmp_path, at=5)
    said = [each.getMessage() for each in caplog.records if words in each.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("Checkpoint: a resumed fit may end in other bits")
    caplog.clear()
    run(make(), tmp_path, resume=tmp_path)
    said = [each.getMessage() for each in caplog.records if words in each.getMessage()]
    assert any(each.startswith("resume: the fit may end in other bits") for each in said)


@pytest.mark.slow
def test_nothing_is_said_where_all_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, make in SETTINGS.items():
        run(make(), tmp_path / name)
    assert caplog.records == []


def test_a_generator_that_is_not_there_any_more_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sampler = SAMPLERS["InADict"]()
    with pytest.raises(KilledError):
        run(learner(over(sampler)), tmp_path, at=5)
    other = SAMPLERS["InADict"]()
    other.held = {"h": torch.Generator(), **other.held}  # type: ignore[attr-defined]
    run(learner(over(other)), tmp_path, resume=tmp_path)
    assert "no place for that of, train.sampler.held['h']" in caplog.text


def test_a_file_holds_moving_fields_alone(tmp_path: Path) -> None:
    run(learner(over(SAMPLERS["Counts"]())), tmp_path)
    state = fit_files.read(fit_files.find(tmp_path)[0])["extra"]["sources"]
    assert state["now"]["fields"] == {"train.sampler.passes": 3}
    assert state["pass"]["fields"] == {"train.sampler.passes": 2}


class BeginsToAnswer(DataLoader[Any]):
    """Says where its pass stands, and begins one to be able to, as torchdata's loader does."""

    begun: Any = None

    def __iter__(self) -> Any:
        begun, self.begun = self.begun, None
        return super().__iter__() if begun is None else begun

    def state_dict(self) -> dict[str, int]:
        if self.begun is None:
            self.begun = super().__iter__()
        return {"drawn": self.begun._num_yielded}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise AssertionError("a pass that begins has nothing to take back")


def test_to_ask_a_loader_where_it_stands_draws_no_random_number_of_the_fit(tmp_path: Path) -> None:
    def ends(*cbs: Callback, **options: Any) -> dict[str, Any]:
        loader = BeginsToAnswer(torch.linspace(0, 1, N)[:, None], 4, shuffle=True)
        torch.manual_seed(7)
        learn = learner(loader, nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)))
        with learn.no_bar():
            learn.fit(3, 0.01, cbs=cbs, **options)
        return trained(learn)

    alone = ends()
    assert ends(Checkpoint(tmp_path, "1 updates", keep=99)) == alone
    (tmp_path / "checkpoint-000009.pt").unlink(missing_ok=True)
    (tmp_path / "checkpoint-000008.pt").unlink()
    assert ends(resume=tmp_path) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"shuffle": True, "generator": torch.Generator()},
        {"sampler": RandomSampler(range(N), replacement=True)},
        {"sampler": WeightedRandomSampler([1.0] * N, N)},
    ],
    ids=["shuffled", "own generator", "with replacement", "weighted"],
)
def test_torchs_samplers_beside_dropout_end_in_the_same_bits_and_nothing_is_said(
    options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> Learner:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        return learner(DataLoader(torch.linspace(0, 1, N)[:, None], 4, **options), model)

    assert same_bits(make, tmp_path, at=5)
    assert "other bits" not in caplog.text
