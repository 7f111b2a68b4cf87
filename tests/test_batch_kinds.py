"""Batches of every kind reach model, loss and metrics as a loop by hand would give them."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from batch_kinds import Encoding, Graphs, Moving, Output, Pair, graphs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from onecycle import Callback, Learner, TensorLoader, mse

SIZES = (4, 4, 2)
GENERATOR = torch.Generator().manual_seed(0)
XS = [torch.randn(n, 3, generator=GENERATOR) for n in SIZES]
YS = [torch.randn(n, 1, generator=GENERATOR) for n in SIZES]
Named = namedtuple("Named", "x y")


class Image(Tensor):
    """A tensor with a type of its own, as those of torchvision's transforms are."""


class Linear(nn.Linear):
    """A linear layer that takes its input out of whatever it is given."""

    def __init__(self, take: Callable[..., Tensor] = lambda x: x) -> None:
        super().__init__(3, 1)
        self.take = take

    def forward(self, *args: Any) -> Tensor:
        return super().forward(self.take(*args))


class Keywords(nn.Linear):
    """Takes one key of a dict by name, and another one if it is there."""

    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return super().forward(x) * (1 if scale is None else scale)


class AnyKeywords(Keywords):
    def forward(self, x: Tensor, **others: Any) -> Tensor:
        return super().forward(x) * (1 + len(others))


class Labelled(Keywords):
    """Returns its loss with its prediction, as language models do."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Output:
        logits = super().forward(x)
        loss = None if labels is None else mse_loss(logits, labels)
        return Output(loss=loss, logits=logits)


class Texts(nn.Linear):
    """Sees of a text its length, and of its id nothing."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, texts: list[str]) -> Tensor:
        return super().forward(torch.tensor([[float(len(text))] for text in texts]))


class OfGraphs(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 1)

    def forward(self, batch: Graphs) -> Tensor:
        nodes = super().forward(batch.x)
        return torch.zeros(batch.num_graphs, 1).index_add(0, batch.owner, nodes)


class Recurrent(nn.Module):
    """Returns a packed sequence for a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 1)

    def forward(self, packed: PackedSequence) -> PackedSequence:
        return self.gru(packed)[0]


def packed_loss(pred: PackedSequence, target: PackedSequence) -> Tensor:
    return mse_loss(pred.data, target.data)


def two(pred: Tensor, y: Tensor, z: Tensor) -> Tensor:
    return mse_loss(pred, y + 2 * z)


def nested(pred: Tensor, both: list[Tensor]) -> Tensor:
    assert type(both) is list
    return two(pred, *both)


def pack(x: Tensor) -> PackedSequence:
    return pack_sequence([x[: len(x) - i // 2] for i in range(len(x))])


def jagged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x.split(1)), layout=torch.jagged)


def strided(x: Tensor) -> Tensor:
    with warnings.catch_warnings():  # a prototype, says torch
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor(list(x.split(1)))


def of_nested(pred: Tensor, target: Tensor) -> Tensor:
    return mse_loss(pred.values(), target.values())


@dataclass
class Kind:
    """Batches, and what the loop by hand makes of one.

    Attributes:
        batches: Three of them.
        model: Makes the model.
        loss_func: As the learner is given it.
        by_hand: Model and batch to prediction and loss.
        options: What else the learner is given.
    """

    batches: list[Any]
    model: Callable[[], nn.Module]
    loss_func: Callable[..., Tensor] | None
    by_hand: Callable[[nn.Module, Any], tuple[Any, Tensor]]
    options: dict[str, Any] = field(default_factory=dict)


def kind(
    make: Callable[[Tensor, Tensor], Any],
    model: Callable[[], nn.Module],
    loss_func: Callable[..., Tensor] | None,
    call: Callable[[nn.Module, Any], Any],
    loss: Callable[[Any, Any], Tensor],
    **options: Any,
) -> Kind:
    def by_hand(model: nn.Module, batch: Any) -> tuple[Any, Tensor]:
        pred = call(model, batch)
        return pred, loss(pred, batch)

    batches = [make(x, y) for x, y in zip(XS, YS, strict=True)]
    return Kind(batches, model, loss_func, by_hand, options)


def plain(pred: Tensor, batch: Any) -> Tensor:
    return mse_loss(pred, batch[1])


KINDS = {
    "tuple": kind(lambda x, y: (x, y), Linear, mse_loss, lambda m, b: m(b[0]), plain),
    "list": kind(lambda x, y: [x, y], Linear, mse_loss, lambda m, b: m(b[0]), plain),
    "two inputs": kind(
        lambda x, y: (x, 2 * x, y),
        lambda: Linear(torch.sub),
        mse_loss,
        lambda m, b: m(b[0], b[1]),
        lambda pred, b: mse_loss(pred, b[2]),
    ),
    "inputs in a tuple": kind(
        lambda x, y: ((x, 2 * x), y),
        lambda: Linear(torch.sub),
        mse_loss,
        lambda m, b: m(*b[0]),
        plain,
    ),
    "inputs in a list": kind(
        lambda x, y: [[x, 2 * x], y],
        lambda: Linear(torch.sub),
        mse_loss,
        lambda m, b: m(*b[0]),
        plain,
    ),
    "an input of None": kind(
        lambda x, y: (x, None, y),
        lambda: Linear(lambda x, mask: x if mask is None else x * mask),
        mse_loss,
        lambda m, b: m(b[0], None),
        lambda pred, b: mse_loss(pred, b[2]),
    ),
    "two targets": kind(
        lambda x, y: (x, y, 3 * y),
        Linear,
        two,
        lambda m, b: m(b[0]),
        lambda pred, b: two(pred, b[1], b[2]),
        n_inp=1,
    ),
    "targets in a tuple": kind(
        lambda x, y: (x, (y, 3 * y)),
        Linear,
        nested,
        lambda m, b: m(b[0]),
        lambda pred, b: two(pred, *b[1]),
    ),
    "targets in a list": kind(
        lambda x, y: [x, [y, 3 * y]],
        Linear,
        nested,
        lambda m, b: m(b[0]),
        lambda pred, b: two(pred, *b[1]),
    ),
    "dict": kind(
        lambda x, y: {"x": x, "scale": y},
        Keywords,
        lambda pred, batch: mse_loss(pred, batch["scale"]),
        lambda m, b: m(x=b["x"], scale=b["scale"]),
        lambda pred, b: mse_loss(pred, b["scale"]),
    ),
    "dict of which keys are left out": kind(
        lambda x, y: {"id": ["a"] * len(x), "x": x, "y": y},
        Keywords,
        lambda pred, batch: mse_loss(pred, batch["y"]),
        lambda m, b: m(x=b["x"]),
        lambda pred, b: mse_loss(pred, b["y"]),
    ),
    "dict for a model that takes any key": kind(
        lambda x, y: {"x": x, "y": y, "z": y},
        AnyKeywords,
        lambda pred, batch: mse_loss(pred, batch["y"]),
        lambda m, b: m(**b),
        lambda pred, b: mse_loss(pred, b["y"]),
    ),
    "encoding": kind(
        lambda x, y: Encoding(x=x, labels=y),
        Labelled,
        None,
        lambda m, b: m(**b.data),
        lambda pred, b: pred.loss,
    ),
    "texts in a dict": kind(
        lambda x, y: {"texts": ["ab", "c", "def", ""][: len(x)], "y": y},
        Texts,
        lambda pred, batch: mse_loss(pred, batch["y"]),
        lambda m, b: m(b["texts"]),
        lambda pred, b: mse_loss(pred, b["y"]),
    ),
    "arrays in a dict": kind(
        lambda x, y: {"input": x.numpy(), "y": y},
        lambda: Arrays(),
        lambda pred, batch: mse_loss(pred, batch["y"]),
        lambda m, b: m(b["input"]),
        lambda pred, b: mse_loss(pred, b["y"]),
    ),
    "graphs": kind(
        lambda x, y: graphs((1, 4, 2)[: len(x)], seed=len(x)),
        OfGraphs,
        lambda pred, batch: mse_loss(pred, batch.y),
        lambda m, b: m(b),
        lambda pred, b: mse_loss(pred, b.y),
    ),
    "graphs as input": kind(
        lambda x, y: (graphs((1,) * len(x)), y), OfGraphs, mse_loss, lambda m, b: m(b[0]), plain
    ),
    "object": kind(
        Moving,
        lambda: Linear(lambda batch: batch.x),
        lambda pred, batch: mse_loss(pred, batch.y),
        lambda m, b: m(b),
        lambda pred, b: mse_loss(pred, b.y),
    ),
    "named tuple": kind(
        Named,
        lambda: Linear(lambda batch: batch.x),
        lambda pred, batch: mse_loss(pred, batch.y),
        lambda m, b: m(b),
        lambda pred, b: mse_loss(pred, b.y),
    ),
    "packed sequence as input and prediction": kind(
        lambda x, y: (pack(x), pack(y)),
        Recurrent,
        packed_loss,
        lambda m, b: m(b[0]),
        lambda pred, b: packed_loss(pred, b[1]),
    ),
    "packed sequence alone": kind(
        lambda x, y: pack(x),
        Recurrent,
        lambda pred, batch: pred.data.sub(batch.data[:, :1]).square().mean(),
        lambda m, b: m(b),
        lambda pred, b: pred.data.sub(b.data[:, :1]).square().mean(),
    ),
    "sparse input": kind(
        lambda x, y: (x.to_sparse(), y),
        lambda: Linear(lambda x: x.to_dense()),
        mse_loss,
        lambda m, b: m(b[0]),
        plain,
    ),
    "subclass of a tensor": kind(
        lambda x, y: (x.as_subclass(Image), y),
        lambda: Linear(lambda x: x if type(x) is Image else 1 / 0),
        mse_loss,
        lambda m, b: m(b[0]),
        plain,
    ),
    "nested input with strides": kind(
        lambda x, y: (strided(x), y),
        lambda: Linear(lambda x: torch.cat(x.unbind())),
        mse_loss,
        lambda m, b: m(b[0]),
        plain,
    ),
    "nested prediction and target": kind(
        lambda x, y: (jagged(x), jagged(y)),
        Linear,
        of_nested,
        lambda m, b: m(b[0]),
        lambda pred, b: of_nested(pred, b[1]),
    ),
    "nested input": kind(
        lambda x, y: (torch.nested.nested_tensor(list(x.split(1)), layout=torch.jagged), y),
        lambda: Linear(lambda x: torch.cat(x.unbind())),
        mse_loss,
        lambda m, b: m(b[0]),
        plain,
    ),
}


class Arrays(Linear):
    def forward(self, input: np.ndarray) -> Tensor:
        return super().forward(torch.as_tensor(input))


def learner(kind: Kind, **options: Any) -> Learner:
    torch.manual_seed(0)
    model = kind.model()
    given = {"device": "cpu", "seed": 0, "opt": SGD(model.parameters(), 0.1), **kind.options}
    learn = Learner((kind.batches, kind.batches), model, kind.loss_func, **given | options)
    learn.cbs = [learn.recorder]
    return learn


def losses_by_hand(kind: Kind) -> list[float]:
    """Train once over the batches, and return the loss of each."""
    torch.manual_seed(0)
    model, losses = kind.model(), []
    opt = SGD(model.parameters(), 0.1)
    for batch in kind.batches:
        _, loss = kind.by_hand(model, batch)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", KINDS)
def test_the_losses_of_a_fit_are_those_of_the_loop_by_hand(name: str) -> None:
    learn = learner(KINDS[name])
    learn.dls.valid = None
    learn.fit(1, lr=0.1)
    assert learn.recorder.history["train_loss"].values.tolist() == losses_by_hand(KINDS[name])
    assert len(set(losses_by_hand(KINDS[name]))) == 3  # the control: it is no constant


def data_of(value: Any) -> Any:
    """Return the tensor in a prediction."""
    return value.data if isinstance(value, PackedSequence) else value


@pytest.mark.parametrize("name", KINDS)
def test_the_predictions_of_all_batches_are_those_of_the_model_by_hand(name: str) -> None:
    learn, each = learner(KINDS[name]), KINDS[name]
    learn.model.eval()
    with torch.no_grad():
        expected = [each.by_hand(learn.model, batch)[0] for batch in each.batches]
    preds = learn.get_preds().preds
    if isinstance(expected[0], PackedSequence):
        sequences = [s for packed in expected for s in torch.nn.utils.rnn.unpack_sequence(packed)]
        assert len(preds) == len(sequences) == 10
        assert all(map(torch.equal, preds, sequences))
    elif isinstance(expected[0], Tensor) and expected[0].is_nested:
        assert all(map(torch.equal, preds, [row for pred in expected for row in pred.unbind()]))
    else:
        logits = [getattr(pred, "logits", pred) for pred in expected]
        assert torch.equal(preds["logits"] if isinstance(preds, dict) else preds, torch.cat(logits))


# What reaches the loss and the metrics ---------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "n_inp", "n_targets", "form"),
    [
        (lambda x, y: (x, y), None, 1, Tensor),
        (lambda x, y: (x, y, y), 1, 2, Tensor),
        (lambda x, y: (x, (y, y)), None, 1, list),
        (lambda x, y: [x, [y, y]], None, 1, list),
        (lambda x, y: (x, [{"box": y}] * len(x)), None, 1, list),
        (lambda x, y: (x, tuple({"box": y} for _ in x)), None, 1, list),
        (lambda x, y: (x, ("a", "b", "c", "d")[: len(x)]), None, 1, list),
        (lambda x, y: (x, pack(y)), None, 1, PackedSequence),
        (lambda x, y: (x, {"y": y}), None, 1, dict),
        (lambda x, y: (x, Named(y, y)), None, 1, Named),
        (lambda x, y: (x, Moving(y, y)), None, 1, Moving),
        (lambda x, y: (x, y, None), 1, 2, (Tensor, type(None))),
    ],
)
def test_loss_and_metrics_get_the_same_arguments(
    make: Callable[[Tensor, Tensor], Any], n_inp: int | None, n_targets: int, form: Any
) -> None:
    heard: dict[str, list[tuple[Any, ...]]] = {"loss": [], "metric": []}

    def loss_func(pred: Tensor, *targets: Any) -> Tensor:
        heard["loss"].append(targets)
        return pred.square().mean()

    def metric(pred: Tensor, *targets: Any) -> Tensor:
        heard["metric"].append(targets)
        return pred.mean()

    batches = [make(x, y) for x, y in zip(XS, YS, strict=True)]
    learn = Learner(
        (batches, batches), Linear(), loss_func, metrics=[metric], n_inp=n_inp, device="cpu"
    )
    learn.validate()
    assert len(heard["loss"]) == len(heard["metric"]) == 3
    for mine, theirs in zip(*heard.values(), strict=True):
        assert len(mine) == len(theirs) == n_targets
        assert all(a is b for a, b in zip(mine, theirs, strict=True))
        assert all(isinstance(target, form) for target in mine)


def test_a_data_loader_gives_nested_targets_as_a_tuple_by_hand_does() -> None:
    class Twice(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            return XS[0][i], (YS[0][i], 3 * YS[0][i])

    hand = [(XS[0], (YS[0], 3 * YS[0]))]
    losses = []
    for loader in (DataLoader(Twice(), 4), hand):
        learn = learner(KINDS["targets in a tuple"])
        losses.append(learn.validate(loader)["valid_loss"])
    assert losses[0] == losses[1]


# Dicts -------------------------------------------------------------------------------------------


def test_the_keys_that_are_left_out_are_told_once_for_each_kind_of_dict(caplog: Any) -> None:
    learn = learner(KINDS["dict of which keys are left out"])
    learn.fit(2)
    learn.validate()
    told = "forward of Keywords takes no 'id' and no 'y': left out of its call"
    assert [told in message for message in caplog.messages] == [True]
    learn.get_preds([{"x": XS[0], "name": "a"}])
    assert len(caplog.messages) == 2
    assert "takes no 'name'" in caplog.messages[-1]


def test_nothing_is_left_out_where_forward_takes_every_key(caplog: Any) -> None:
    for name in ("dict", "dict for a model that takes any key", "encoding"):
        learner(KINDS[name]).fit(1)
    assert caplog.messages == []


def test_a_key_of_which_forward_needs_another_one_is_told() -> None:
    each = KINDS["dict of which keys are left out"]
    learn = learner(each)
    with pytest.raises(TypeError) as caught:
        learn.validate([{"image": XS[0], "y": YS[0]}])
    assert "its keys must be names that forward takes: x, scale" in "".join(caught.value.__notes__)


# What cannot be a batch ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (None, "gave None instead of a batch"),
        ((), "at least one item"),
        ([], "at least one item"),
        ({}, "no samples, the model would get dict of {}"),
        ((torch.zeros(0, 3), torch.zeros(0, 1)), r"no samples, the model would get \(0, 3\)"),
        ({"x": torch.zeros(0, 3), "y": torch.zeros(0, 1)}, "no samples"),
        (([], torch.zeros(0, 1)), "no samples"),
        ((torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 1)), "no samples"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "get_preds"])
def test_a_batch_of_nothing_is_named(batch: Any, words: str, verb: str) -> None:
    learn = learner(KINDS["tuple"])
    loader = [(XS[0], YS[0]), batch]
    learn.dls.train = loader
    with pytest.raises(ValueError, match=words) as caught:
        learn.fit(1) if verb == "fit" else learn.get_preds(loader)
    place = "epoch 0, training batch 1" if verb == "fit" else "epoch 0, validation batch 1"
    assert any(place in note for note in caught.value.__notes__)
    assert learn.total_updates == (verb == "fit")


@pytest.mark.parametrize(
    "batch",
    [
        (XS[0], torch.zeros(0, 6)),  # no box in any image
        ((XS[0], torch.zeros(0, 2)), YS[0]),
        {"x": XS[0], "edges": torch.zeros(0, 2)},
        (torch.zeros(4, 0), YS[0]),
        (torch.tensor(1.0), YS[0]),
    ],
)
def test_a_batch_with_samples_is_taken_though_a_part_is_empty(batch: Any) -> None:
    class Ones(nn.Linear):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward(torch.ones(4, 3))

    learn = Learner(([batch], None), Ones(3, 1), lambda pred, *_: pred.mean(), device="cpu")
    learn.cbs = [learn.recorder]
    learn.fit(1)
    assert learn.total_updates == 1


CONVERT = "a loss function of torch takes tensors: convert the targets with torch.tensor"
FAULTS: dict[str, tuple[Any, Any, str]] = {
    "a named tuple": (
        Named(XS[0], YS[0]),
        mse_loss,
        "a Named reaches the model whole, as only a plain tuple or list is taken apart",
    ),
    "nested targets": (
        (XS[0], (YS[0], YS[0])),
        mse_loss,
        "targets that are nested in a tuple or list are one argument, a list",
    ),
    "numbers": ((XS[0], [0.1, 0.2, 0.3, 0.4]), mse_loss, CONVERT),
    "classes": ((XS[0], [0, 0, 0, 0]), cross_entropy, CONVERT),
    "an array": ((XS[0], YS[0].numpy()), mse_loss, CONVERT),
    "a dict": (
        (XS[0], {"y": YS[0]}),
        mse_loss,
        "it gets the dict whole: let a loss function of your own",
    ),
    "an object": ((XS[0], Pair(XS[0], YS[0])), mse_loss, "it gets the Pair whole"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_loss_or_model_cannot_take_is_said_at_the_first_batch(fault: str) -> None:
    batch, loss_func, words = FAULTS[fault]
    learn = Learner(([batch], None), nn.Linear(3, 1), loss_func, device="cpu")
    learn.cbs = [learn.recorder]
    with pytest.raises((TypeError, AttributeError)) as caught:
        learn.fit(1)
    assert words in "\n".join(caught.value.__notes__)
    assert learn.total_updates == 0


def test_a_batch_object_that_cannot_be_moved_is_told() -> None:
    class Elsewhere(nn.Linear):
        def forward(self, batch: Pair) -> Tensor:
            raise RuntimeError("Expected all tensors to be on the same device")

    learn = Learner(([Pair(XS[0], YS[0])], None), Elsewhere(3, 1), mse_loss, device="cpu")
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    words = "a batch object is moved by its own method to(device), and Pair has none"
    assert any(words in note for note in caught.value.__notes__)


# What it costs -------------------------------------------------------------------------------


def test_a_signature_is_asked_once_for_each_kind_of_dict(monkeypatch: Any) -> None:
    from onecycle.data import calls

    asked = []
    names = calls._names
    monkeypatch.setattr(calls, "_names", lambda forward: asked.append(1) or names(forward))
    learner(KINDS["dict of which keys are left out"]).fit(3)
    assert len(asked) == 1


def test_a_model_within_a_wrapper_is_asked_for_its_own_keys(caplog: Any) -> None:
    each = KINDS["dict of which keys are left out"]
    torch.manual_seed(0)
    inner = Keywords()
    learn = Learner((each.batches, None), nn.DataParallel(inner), each.loss_func, device="cpu")
    expected = torch.cat([inner(batch["x"]) for batch in each.batches])
    assert torch.equal(learn.get_preds(each.batches).preds, expected)
    assert "forward of Keywords takes no 'id'" in caplog.text


def test_callbacks_change_what_a_whole_batch_is(caplog: Any) -> None:
    def halve(learn: Any) -> None:
        learn.xb = Moving(learn.xb.x / 2, learn.xb.y)

    learn = learner(KINDS["object"])
    first = torch.cat([learn.model(batch) for batch in KINDS["object"].batches])
    callback = Callback(before_batch=halve)
    callback.runs_in = frozenset(("inference",))
    with learn.added_cbs([callback]):
        found = learn.get_preds().preds
    half = torch.cat([learn.model(Moving(x / 2, x)) for x in XS])
    assert torch.equal(found, half)
    assert not torch.equal(found, first)


def test_the_metric_of_plain_batches_is_as_before() -> None:
    x, y = torch.cat(XS), torch.cat(YS)
    learn = learner(KINDS["tuple"], metrics=[mse])
    expected = mse_loss(learn.model(x), y).item()
    assert learn.validate(TensorLoader(x, y, batch_size=4))["mse"] == pytest.approx(expected)
