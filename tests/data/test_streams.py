"""A training loader without an order of its own goes on where an epoch was cut."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_state import trained
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from onecycle import Callback, CancelEpoch, CancelFit, CancelTrain, Checkpoint, Learner
from onecycle.checkpoints.snapshot import preserved
from onecycle.data.streams import Stream

N = 10


def one(i: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[float(i)]]), torch.zeros(1, 1)


class Anew:
    """Ten batches, or endless ones, from the beginning each time that it is iterated."""

    def __init__(self, n: int | None = N) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        return map(one, itertools.count() if self.n is None else range(self.n))


class Sized(Anew):
    def __len__(self) -> int:
        return N


class Same(Anew):
    """Has one iterator, wherever the last who iterated it has stopped."""

    def __init__(self, n: int | None = None) -> None:
        super().__init__(n)
        self.place = super().__iter__()

    def __iter__(self) -> Iterator[Any]:
        return self.place


class Rows(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (each[0] for each in zip(map(one, range(N)), strict=True))


class RowsOfEpochs(Rows):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Counting(IterableDataset[Any]):
    """Is its own iterator, and keeps its place in a field."""

    place = 0

    def __iter__(self) -> Iterator[Any]:
        self.place = 0
        return self

    def __next__(self) -> Any:
        if self.place == N:
            raise StopIteration
        self.place += 1
        return one(self.place - 1)


class Forever(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(range(N))


class Items(Dataset[Any]):
    def __getitem__(self, i: int) -> Any:
        return one(i)


def rows(data: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(data or Rows(), None, **options)


def learner(train: Any, valid: Any = None, *cbs: Callback) -> Learner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
    loss, sgd = nn.functional.mse_loss, torch.optim.SGD
    return Learner((train, valid), model, loss, sgd, 1e-4, cbs=cbs, device="cpu", seed=0)


class Seen(Callback):
    during = "train"

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def after_batch(self, learn: Learner) -> None:
        self.numbers.append(int(learn.xb))


def fit(learn: Learner, *cbs: Callback, n_epoch: int | None = 3, **options: Any) -> list[int]:
    """Return the numbers of the batches that a fit trains on."""
    seen, options = Seen(), options or {"steps_per_epoch": 4}
    with learn.no_bar():
        learn.fit(n_epoch, cbs=[seen, *cbs], **options)
    return seen.numbers


def at_batch(number: int, error: Any) -> Callback:
    def leave(learn: Learner) -> None:
        if int(learn.xb) == number:
            raise error

    return Callback(after_batch=leave, during="train")


class Wrapper:
    """Passes on the batches of a DataLoader whose workers stay."""

    def __init__(self) -> None:
        self.loader = rows(num_workers=1, persistent_workers=True)

    def __iter__(self) -> Iterator[Any]:
        yield from self.loader


CUT: dict[str, Callable[[], Any]] = {
    "anew": Anew,
    "sized": Sized,
    "rows": rows,
    "a place in a field": lambda: rows(Counting()),
    "a worker": lambda: rows(num_workers=1),
    "a worker that stays": lambda: rows(num_workers=1, persistent_workers=True),
    "a wrapper": Wrapper,
    "an endless sampler": lambda: DataLoader(Items(), None, sampler=Forever()),
}


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_a_stream_goes_on_where_the_epoch_before_was_cut_and_begins_anew_at_its_end(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert fit(learner(make())) == [*range(N), 0, 1]
    assert caplog.text == ""


@pytest.mark.parametrize("make", [lambda: Anew(None), Same])
def test_an_endless_stream_is_trained_on_as_by_one_loop_over_it(make: Any) -> None:
    learn = learner(make())
    assert fit(learn) == [*range(12)]
    assert fit(learn, n_epoch=None, max_updates=3) == [12, 13, 14]
    assert fit(learn, n_epoch=1) == [*range(15, 19)]


@pytest.mark.parametrize("make", [Anew, Sized, rows])
def test_an_epoch_without_a_limit_is_the_whole_stream(make: Any) -> None:
    learn = learner(make())
    assert fit(learn, n_epoch=1) == [0, 1, 2, 3]
    assert fit(learn, n_epoch=2, steps_per_epoch=None) == [*range(N)] * 2
    assert fit(learn, n_epoch=1) == [0, 1, 2, 3]


def test_a_stream_shorter_than_an_epoch_ends_it() -> None:
    assert fit(learner(Anew(3)), n_epoch=2) == [0, 1, 2] * 2


def test_what_has_an_order_for_each_epoch_begins_each_with_it() -> None:
    assert fit(learner(rows(RowsOfEpochs()))) == [0, 1, 2, 3] * 3


class Shuffled(RowsOfEpochs):
    def __iter__(self) -> Iterator[Any]:
        return map(one, random.Random(self.epoch).sample(range(N), N))


class Always(Sampler[int]):
    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter(range(N))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: rows(RowsOfEpochs()), 1),
        (lambda: DataLoader(Items(), None, sampler=Always()), 1),
        (lambda: rows(Shuffled()), 0),
        (lambda: DataLoader([one(i) for i in range(N)], None, shuffle=True), 0),
    ],
)
def test_epochs_that_are_cut_and_begin_alike_are_told(
    make: Any, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    seen = fit(learner(make()))
    assert len(seen) == 12
    assert caplog.text.count("two epochs began with the same batch") == told
    assert (seen[:4] == seen[4:8]) is bool(told)
    caplog.clear()
    assert len(fit(learner(make()), steps_per_epoch=None)) == 3 * N
    assert caplog.text == ""


def test_a_stream_that_cannot_begin_anew_is_told() -> None:
    with pytest.raises(ValueError, match="the training loader gave no batch"):
        fit(learner(Same(N)), n_epoch=4)


@pytest.mark.parametrize("cancel", [CancelTrain, CancelEpoch, CancelFit])
def test_a_cancelled_pass_is_gone_on_with(cancel: Any) -> None:
    learn = learner(Anew(None))
    first = fit(learn, at_batch(1, cancel))
    assert first == ([0, 1] if cancel is CancelFit else [0, 1, *range(2, 10)])
    assert fit(learn, n_epoch=1)[0] == first[-1] + 1


@pytest.mark.parametrize("cancel", [CancelTrain, CancelEpoch])
def test_a_whole_pass_that_is_cancelled_begins_anew_and_that_is_said_once(
    cancel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shown = fit(learner(Anew()), at_batch(1, cancel), steps_per_epoch=None)
    assert shown == [0, 1] * 3
    assert caplog.text.count("an epoch was left after 2 batches of the training loader") == 1


def test_after_ctrl_c_the_next_batch_comes() -> None:
    learn = learner(Anew(None))
    with pytest.raises(KeyboardInterrupt):
        fit(learn, at_batch(5, KeyboardInterrupt))
    assert fit(learn, n_epoch=1) == [6, 7, 8, 9]


def test_a_stream_that_an_error_ended_is_drawn_again_up_to_where_it_stood(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Fails(Anew):
        fails = True

        def __iter__(self) -> Iterator[Any]:
            for i in range(N):
                if i == 5 and self.fails:
                    self.fails = False
                    raise KeyboardInterrupt
                yield one(i)

    learn = learner(Fails())
    with pytest.raises(KeyboardInterrupt):
        fit(learn)
    assert fit(learn, n_epoch=1) == [5, 6, 7, 8]
    assert "its first 5 batches are drawn and dropped" in caplog.text


def test_another_loader_begins_anew() -> None:
    learn = learner(Anew())
    fit(learn, n_epoch=1)
    learn.dls.train = Anew()
    assert fit(learn, n_epoch=1) == [0, 1, 2, 3]


def test_two_learners_each_go_on_by_themselves() -> None:
    for make in (Anew, rows, lambda: rows(num_workers=1, persistent_workers=True)):
        stream = make()
        first, second = learner(stream), learner(stream)
        found = [fit(each, n_epoch=1) for each in (first, second, first, second)]
        assert found == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2


SHARED = [
    *(pytest.param(CUT[name], id=name) for name in ("anew", "a place in a field")),
    *(
        pytest.param(CUT[name], id=name, marks=pytest.mark.slow)
        for name in ("rows", "a worker that stays", "a wrapper")
    ),
]


@pytest.mark.parametrize("make", SHARED)
def test_range_tests_validation_and_predictions_leave_a_stream_where_it_is(make: Any) -> None:
    learn = learner(make())
    assert fit(learn, n_epoch=1) == [0, 1, 2, 3]
    learn.lr_find(num_it=12, show_plot=False)
    learn.check()
    assert len(learn.get_preds(learn.dls.train).preds) == N
    learn.validate(learn.dls.train)
    assert fit(learn, n_epoch=1) == [4, 5, 6, 7]


@pytest.mark.parametrize("make", SHARED)
def test_a_stream_that_also_validates_goes_on_behind_the_validation(make: Any) -> None:
    stream = make()
    assert fit(learner(stream, stream)) == [*range(N), 0, 1]


def test_a_data_set_that_two_loaders_share_goes_on_behind_the_validation() -> None:
    data = Counting()
    assert fit(learner(rows(data), rows(data))) == [*range(N), 0, 1]


def test_a_range_test_within_a_pass_leaves_it_where_it_is() -> None:
    learn = learner(rows(Counting()))
    between = Callback(after_step=lambda learn: learn.lr_find(num_it=3, show_plot=False))
    assert fit(learn, between) == [*range(N), 0, 1]


def test_a_copy_and_a_fit_that_is_undone_leave_a_stream_where_it_is() -> None:
    learn = learner(rows())
    fit(learn, n_epoch=1)
    twins = [copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))]
    with preserved(learn):
        assert fit(learn, n_epoch=1) == [0, 1, 2, 3]
    for each in (learn, *twins):
        assert fit(each, n_epoch=1) == [4, 5, 6, 7]


class Noisy(Anew):
    """Draws from torch's generator, when it begins and for each batch."""

    def __iter__(self) -> Iterator[Any]:
        offset = float(torch.rand(()))
        return (one(offset + i / N + float(torch.rand(()))) for i in range(N))


class Buffer(IterableDataset[Any]):
    """Shuffles by a buffer, with Python's generator, and counts how often it began."""

    n = 0

    def __iter__(self) -> Iterator[Any]:
        self.n += 1
        buffer = [0, 1, 2]
        for i in range(3, N + 3):
            place = random.randrange(3)
            yield one(buffer[place] / N + self.n)
            buffer[place] = i


class KilledError(Exception):
    pass


def resumable(make: Any, folder: Path, at: int | None = None, **options: Any) -> Any:
    """Run four epochs of four batches, over ten; return what they end in."""
    random.seed(3), torch.manual_seed(3)
    learn = learner(make())

    def kill(learn: Learner) -> None:
        if learn.n_updates == at:
            raise KilledError

    cbs = [Callback(after_batch=kill), Checkpoint(folder, "1 updates", keep=99)]
    with learn.no_bar():
        learn.fit_one_cycle(4, 1e-2, moms=False, steps_per_epoch=4, cbs=cbs, **options)
    return trained(learn)


STREAMS: dict[str, Any] = {
    "anew": Anew,
    "rows": rows,
    "a place in a field": lambda: rows(Counting()),
    "noisy": Noisy,
    "buffer": lambda: rows(Buffer()),
    "a worker": lambda: rows(Buffer(), num_workers=1),
}


# In the first epoch, at its end, in the third (in which the stream begins anew) and behind it.
EVERYWHERE = (2, 4, 6, 8, 9, 11, 12, 14)


@pytest.mark.parametrize(
    ("name", "killed"),
    [
        ("noisy", (8, 11)),
        *(pytest.param(name, EVERYWHERE, marks=pytest.mark.slow) for name in STREAMS),
    ],
)
def test_a_fit_over_a_stream_that_was_killed_ends_in_the_same_bits(
    name: str, killed: tuple[int, ...], tmp_path: Path
) -> None:
    whole = resumable(STREAMS[name], tmp_path / "whole")
    for at in killed:
        folder = tmp_path / str(at)
        with pytest.raises(KilledError):
            resumable(STREAMS[name], folder, at)
        assert resumable(STREAMS[name], folder, resume=folder) == whole, at


class OfTorch(Buffer):
    """The same, with torch's generator, from which dropout draws too."""

    def __iter__(self) -> Iterator[Any]:
        buffer = [0, 1, 2]
        for i in range(3, N + 3):
            place = int(torch.randint(3, ()))
            yield one(buffer[place] / N)
            buffer[place] = i


@pytest.mark.parametrize(("data", "told"), [(OfTorch, True), (Buffer, False)])
def test_a_stream_that_draws_in_turn_with_dropout_is_named_before_it_is_lost(
    data: Any, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = resumable(lambda: rows(data()), tmp_path / "whole")
    assert caplog.text.count("in turn with the dropout of the model") == told
    with pytest.raises(KilledError):
        resumable(lambda: rows(data()), tmp_path, 6)
    assert (resumable(lambda: rows(data()), tmp_path, resume=tmp_path) == whole) is not told


def test_negative_control_with_another_position_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = resumable(Anew, tmp_path / "whole")
    with pytest.raises(KilledError):
        resumable(Anew, tmp_path / "killed", 6)
    monkeypatch.setattr("onecycle.callbacks.resume.Stream", lambda **position: Stream())
    assert resumable(Anew, tmp_path / "killed", resume=tmp_path / "killed") != whole


def test_a_stream_that_an_earlier_fit_began_is_named_before_it_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learn = learner(Noisy())
    fit(learn, n_epoch=1)
    fit(learn, Checkpoint(tmp_path, "1 updates"), n_epoch=1)
    assert caplog.text.count("the training loader goes on from an earlier fit") == 1


class Longer(Rows):
    """Three rows for each of two workers: one batch more than six rows by two are."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(map(one, range(N)), 3)

    def __len__(self) -> int:
        return 6


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize(("n_workers", "told"), [(2, 1), (1, 0)])
def test_batches_that_a_length_leaves_out_are_told_once(
    n_workers: int, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    learn = learner(DataLoader(Longer(), 2, num_workers=n_workers))
    with learn.no_bar():
        learn.fit(2)
    assert caplog.text.count("more batches than its length says") == told
