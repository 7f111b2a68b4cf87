"""What is predicted of batches of every kind, compared with loops by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from batch_kinds import Encoding, Moving, Output, graphs
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pack_sequence

from onecycle import Callback, CancelBatch, Learner, Stage, TensorLoader
from onecycle.testing import toy_learner

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(10, 3, generator=GENERATOR)
Y = torch.randn(10, 1, generator=GENERATOR)
CUTS = (slice(0, 4), slice(4, 8), slice(8, 10))


def learner(model: nn.Module, batches: list[Any], loss_func: Any = mse_loss, **options: Any) -> Any:
    return Learner((batches, batches), model, loss_func, device="cpu", seed=0, **options)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


class Tokens(nn.Module):
    """Classifies each token of texts that are padded to the longest of their batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, labels: Tensor | None = None, full: bool = True) -> Output:
        states = self.embed(ids)
        logits = self.out(states)
        loss = None if labels is None else cross_entropy(logits.mT, labels)
        if not full:
            return Output(loss=loss, logits=logits)
        cache = ((states, states), (states, states))
        return Output(loss=loss, logits=logits, past_key_values=cache, cache=Cache(), rest=None)


class Cache:
    """What some models keep between calls: no tensor, and no container."""


def token_batches(make: Callable[..., Any] = dict) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        make(
            ids=torch.randint(20, (n, length), generator=generator),
            labels=torch.randint(3, (n, length), generator=generator),
        )
        for n, length in ((4, 7), (4, 5), (2, 9))
    ]


class Detector(nn.Linear):
    """Finds i things in the i-th image of a batch."""

    def __init__(self, make: Callable[[list[Any]], Any] = list) -> None:
        super().__init__(3, 1)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return self.make([{"scores": score.expand(i)} for i, score in enumerate(scores)])


# Entries for each sample -------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [2, 3])
@pytest.mark.parametrize("container", [list, tuple])
def test_detections_and_their_targets_are_one_list_in_the_order_of_the_samples(
    cut: int, container: Any
) -> None:
    boxes = [{"boxes": torch.zeros(i, 4), "image": i} for i in range(4)]
    batches = [(X[:cut], container(boxes[:cut])), (X[cut:4], container(boxes[cut:]))]
    learn = learner(Detector(container), batches)
    preds, targets = learn.get_preds()
    by_hand = [found for xb, _ in batches for found in learn.model(xb)]
    assert [each["image"] for each in targets] == [*range(4)]
    assert all(torch.equal(t["boxes"], box["boxes"]) for t, box in zip(targets, boxes, strict=True))
    assert len(preds) == 4
    for mine, theirs in zip(preds, by_hand, strict=True):
        assert torch.equal(mine["scores"], theirs["scores"])


@pytest.mark.parametrize("container", [list, tuple])
def test_texts_are_one_list_beside_tensors_too(container: Any) -> None:
    ids = list("abcdefghij")
    batches = [(X[cut], (Y[cut], container(ids[cut]))) for cut in CUTS]
    targets = learner(linear(), batches).get_preds().targets
    assert torch.equal(targets[0], Y)
    assert targets[1] == ids


@pytest.mark.parametrize("make", [dict, Encoding, Output])
def test_of_a_language_model_logits_and_labels_are_kept_one_a_sample(
    make: Any, caplog: Any
) -> None:
    batches = token_batches(make)
    learn = learner(Tokens(), batches, None)
    preds, targets = learn.get_preds()
    by_hand = [row for b in batches for row in learn.model(b["ids"]).logits]
    assert list(preds) == ["logits"]
    assert list(targets) == ["labels"]
    assert all(map(torch.equal, preds["logits"], by_hand))
    labels = [row for batch in batches for row in batch["labels"]]
    assert all(map(torch.equal, targets["labels"], labels))
    assert len(preds["logits"]) == len(by_hand) == len(targets["labels"]) == 10
    assert caplog.messages == [
        "get_preds keeps the tensors and lists of what the model returns, and leaves out "
        "past_key_values, cache: to have them, let a callback put them in learn.pred, in after_pred"
    ]


def test_nothing_is_said_where_nothing_but_the_loss_is_left_out(caplog: Any) -> None:
    batches = [{**batch, "full": False} for batch in token_batches()]
    assert list(learner(Tokens(), batches, None).get_preds().preds) == ["logits"]
    assert caplog.messages == []


def test_a_dataclass_is_a_dict_of_its_fields() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Moving:
            return Moving(super().forward(x), x)

    learn = learner(Twice(3, 1), [(X[cut], Y[cut]) for cut in CUTS])
    preds = learn.get_preds().preds
    assert torch.equal(preds["x"], torch.cat([learn.model(X[cut]).x for cut in CUTS]))
    assert torch.equal(preds["y"], X)
    assert torch.equal(learn.predict(X[3])["y"], X[3])


def test_a_callback_may_ask_for_what_is_left_out() -> None:
    def ask(learn: Any) -> None:
        learn.pred = learn.pred.past_key_values[0][0]

    callback = Callback(after_pred=ask)
    callback.stage = Stage.PREPARE
    batches = token_batches()
    learn = learner(Tokens(), batches, None, cbs=[callback])
    states = [row for batch in batches for row in learn.model.embed(batch["ids"])]
    assert all(map(torch.equal, learn.get_preds().preds, states))


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        ({"input": X, "y": Y}, ["y"]),
        ({"input": X, "id": ["a"] * 10, "weight": Y}, ["id", "weight"]),
        ({"input": X, "start_target": Y, "Label": Y}, ["start_target", "Label"]),
        ({"input": X}, ["input"]),
    ],
)
def test_the_targets_of_a_dict_are_what_the_model_does_not_take(
    batch: dict[str, Any], names: list[str]
) -> None:
    learn = learner(linear(), [batch])
    found = learn.get_preds(with_inputs=True)
    assert list(found.targets) == names
    assert list(found.inputs) == ["input"]
    assert all(found.targets[name] == batch[name] for name in names if name == "id")


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([graphs((1, 2)), graphs((3,))], lambda b: torch.cat([batch.y for batch in b])),
        ([Moving(X, Y)], lambda b: Y),
        ([pack_sequence([X])], lambda b: None),
    ],
)
def test_the_targets_of_an_object_are_its_y(batches: list[Any], expected: Any) -> None:
    class Nodes(nn.Linear):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch.data if hasattr(batch, "data") else batch.x)

    found = learner(Nodes(3, 1), batches).get_preds(with_inputs=True)
    wanted = expected(batches)
    assert found.targets is wanted if wanted is None else torch.equal(found.targets, wanted)
    nodes = sum(len(batch.data if hasattr(batch, "data") else batch.x) for batch in batches)
    assert len(found.preds) == nodes
    assert len(found.inputs) == len(batches)


def test_inputs_are_what_the_model_was_given() -> None:
    def double(learn: Any) -> None:
        learn.xb = 2 * learn.xb

    callback = Callback(before_batch=double)
    callback.stage = Stage.PREPARE
    learn = learner(linear(), [(X[cut], Y[cut]) for cut in CUTS], cbs=[callback])
    assert torch.equal(learn.get_preds(with_inputs=True).inputs, 2 * X)
    assert learn.get_preds().inputs is None


def test_batches_that_cannot_be_joined_say_which_keys_differ() -> None:
    learn = learner(linear(), [{"input": X, "y": Y}, {"input": X, "z": Y}])
    with pytest.raises(ValueError, match="different keys"):
        learn.get_preds()


# The loss of each sample -------------------------------------------------------------------------


def test_losses_are_those_of_batches_of_one() -> None:
    learn = learner(linear(), [(X[cut], Y[cut]) for cut in CUTS])
    losses = learn.get_preds(with_loss=True).losses
    by_hand = torch.stack([mse_loss(learn.model(X[i : i + 1]), Y[i : i + 1]) for i in range(10)])
    assert losses.shape == (10,)
    torch.testing.assert_close(losses, by_hand.detach())
    assert losses.mean().item() == pytest.approx(learn.validate()["valid_loss"])
    assert learn.get_preds().losses is None


def test_a_loss_that_ignores_targets_is_the_mean_over_the_others_of_the_sample() -> None:
    target = torch.tensor([[0, 1, -100], [2, -100, -100]])
    scores = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))

    class Scores(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return scores

    losses = learner(Scores(1, 1), [(X[:2], target)], cross_entropy).get_preds(with_loss=True)
    each = -scores.log_softmax(1)
    by_hand = [(each[0, 0, 0] + each[0, 1, 1]) / 2, each[1, 2, 0]]
    torch.testing.assert_close(losses.losses, torch.stack(by_hand))


def test_losses_of_dicts_detections_and_several_targets_are_those_of_batches_of_one() -> None:
    dicts = [{"input": X[cut], "y": Y[cut]} for cut in CUTS]
    of_dicts = learner(linear(), dicts, lambda pred, batch: mse_loss(pred, batch["y"]))
    several = [(X[cut], Y[cut], 2 * Y[cut]) for cut in CUTS]
    of_several = learner(linear(), several, lambda pred, y, z: mse_loss(pred, z - y), n_inp=1)
    plain = learner(linear(), [(X[cut], Y[cut]) for cut in CUTS])
    expected = plain.get_preds(with_loss=True).losses
    for learn in (of_dicts, of_several):
        torch.testing.assert_close(learn.get_preds(with_loss=True).losses, expected)

    def of_boxes(pred: list[Any], target: list[Any]) -> Tensor:
        return torch.stack(
            [p["scores"].sum() + t["n"] for p, t in zip(pred, target, strict=True)]
        ).mean()

    batches = [(X[cut], [{"n": i} for i in range(10)[cut]]) for cut in CUTS]
    learn = learner(Detector(), batches, of_boxes)
    preds, targets, losses = learn.get_preds(with_loss=True)
    by_hand = [p["scores"].sum() + t["n"] for p, t in zip(preds, targets, strict=True)]
    torch.testing.assert_close(losses, torch.stack(by_hand))


def test_losses_use_what_a_learner_overrides() -> None:
    class Weighted(Learner):
        def compute_loss(self, pred: Tensor, batch: Any) -> Tensor:
            return (mse_loss(pred, batch["y"], reduction="none") * batch["w"]).mean()

    batches = [{"input": X[cut], "y": Y[cut], "w": X[cut][:, :1]} for cut in CUTS]
    learn = Weighted((batches, batches), linear(), device="cpu")
    by_hand = ((learn.model(X) - Y).square() * X[:, :1]).squeeze(1)
    torch.testing.assert_close(learn.get_preds(with_loss=True).losses, by_hand.detach())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: learner(Tokens(), token_batches(), None), "give the Learner a loss_func"),
        (
            lambda: learner(linear(), [(X.expand(4, 10, 3), torch.zeros(10, 4, 1))]),
            "cannot take one of",
        ),
        (
            lambda: learner(linear(), [(X, Moving(Y, Y))], lambda pred, batch: pred.mean()),
            "one of 10 samples out of Moving",
        ),
    ],
    ids=["the model's own", "time first", "an object"],
)
def test_losses_are_refused_where_there_is_none_of_a_sample(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make().get_preds(with_loss=True)


def test_the_loss_of_each_sample_leaves_the_learner_as_it_was() -> None:
    learn = learner(linear(), [(X[cut], Y[cut]) for cut in CUTS])
    fields = dict(vars(learn))
    learn.get_preds(with_loss=True, with_inputs=True)
    assert {name: id(value) for name, value in vars(learn).items()} == {
        name: id(value) for name, value in fields.items()
    }


# One sample --------------------------------------------------------------------------------------


def test_a_sample_of_any_kind_is_predicted_as_its_batch_is() -> None:
    learn = learner(Tokens(), token_batches(), None)
    ids = torch.tensor([3, 1, 4])
    assert torch.equal(learn.predict({"ids": ids})["logits"], learn.model(ids[None]).logits[0])
    learn = learner(Detector(), [(X, [{}] * 10)])
    assert learn.predict(X[0])["scores"].shape == (0,)
    learn = learner(linear(), [(X, Y)])
    assert torch.equal(learn.predict(X[0].numpy()), learn.model(X[:1])[0])


def test_a_sample_that_is_no_tensor_becomes_a_batch_as_by_a_data_loader() -> None:
    class Named(nn.Linear):
        def forward(self, name: list[str], age: Tensor) -> Tensor:
            assert name == ["a"]
            return super().forward(age[:, None])

    learn = learner(Named(1, 1), [{"name": ["a"], "age": torch.ones(1)}])
    expected = learn.model(["a"], torch.tensor([41.0]))[0]
    assert torch.equal(learn.predict({"name": "a", "age": 41.0}), expected)


def test_a_sample_of_another_number_of_inputs_is_refused() -> None:
    learn = learner(nn.Bilinear(3, 3, 1), [(X, X, Y)], n_inp=2)
    assert learn.predict((X[0], X[1])).shape == (1,)
    with pytest.raises(ValueError, match="expected 2 inputs, as n_inp= says; got 1"):
        learn.predict(X[0])


def test_a_sample_whose_batch_was_squeezed_is_refused() -> None:
    class Squeezed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    learn = learner(Squeezed(3, 2), [(X, Y)])
    with pytest.raises(ValueError, match=r"does it squeeze\(\) a batch of one"):
        learn.predict(X[0])


def test_a_sample_whose_batch_is_cancelled_has_no_prediction() -> None:
    def cancel(learn: Any) -> None:
        raise CancelBatch

    callback = Callback(before_batch=cancel)
    callback.stage = Stage.PREPARE
    assert learner(linear(), [(X, Y)], cbs=[callback]).predict(X[0]) is None


# Threads -----------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Gives other results in training, and gives other threads time to interfere."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.9))
        self.out = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        for _ in range(20):
            x = x + 0 * torch.relu(x)
        return self.out(x)


def test_threads_predict_what_one_does() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    loader = TensorLoader(x, x.sum(1, keepdim=True), batch_size=16)
    learn = Learner((loader, loader), Noisy(), mse_loss, device="cpu", seed=0)
    learn.model.train()
    fields = dict(vars(learn))
    expected = [learn.predict(sample) for sample in x]
    alone = learn.get_preds()
    validated = learn.validate()
    barrier = threading.Barrier(8)

    def many(part: int) -> list[Any]:
        barrier.wait()
        return [learn.predict(sample) for sample in x[part::8]]

    with ThreadPoolExecutor(10) as pool:
        preds = [pool.submit(many, part) for part in range(8)]
        others = [pool.submit(learn.get_preds), pool.submit(learn.validate)]
    for part, found in enumerate(preds):
        assert all(map(torch.equal, found.result(), expected[part::8]))
    assert torch.equal(others[0].result().preds, alone.preds)
    assert others[1].result() == validated
    assert all(module.training for module in learn.model.modules())
    assert dict(vars(learn)) == fields


def test_views_of_one_thread_are_not_shown_to_another() -> None:
    learn = toy_learner()
    expected, inside, seen = learn.predict(torch.ones(4)), threading.Event(), []

    def view(xb: Tensor) -> Tensor:
        if not seen:
            seen.append(1)
            inside.set()
        return 100 * xb

    with ThreadPoolExecutor(1) as pool:
        averaged = pool.submit(learn.tta, transforms=[view] * 20)
        inside.wait(10)
        for _ in range(20):
            assert torch.equal(learn.predict(torch.ones(4)), expected)
        averaged.result()


def test_another_thread_is_told_of_the_fit_that_is_running() -> None:
    learn, errors = toy_learner(), []

    def ask(learn: Any) -> None:
        def predict() -> None:
            try:
                learn.predict(torch.ones(4))
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=predict)
        thread.start()
        thread.join(10)
        learn.predict(torch.ones(4))  # the fit's own thread may

    learn.fit(1, max_updates=1, cbs=[Callback(after_step=ask)])
    assert len(errors) == 1
    assert errors[0].startswith("a fit is running in another thread")
    assert learn.predict(torch.ones(4)).shape == (1,)


def test_a_fit_waits_for_the_predictions_of_another_thread() -> None:
    alone, both = toy_learner(), toy_learner()
    alone.fit(1)
    inside, go_on = threading.Event(), threading.Event()

    def wait(learn: Any) -> None:
        inside.set()
        go_on.wait(10)

    callback = Callback(before_batch=wait)
    callback.runs_in = frozenset(("inference",))
    with ThreadPoolExecutor(2) as pool:
        with both.added_cbs([callback]):
            predicted = pool.submit(both.predict, torch.ones(4))
            inside.wait(10)
        fitted = pool.submit(both.fit, 1)
        assert not fitted.done()
        go_on.set()
        predicted.result()
        fitted.result()
    assert both.total_updates == alone.total_updates == 8
    assert all(map(torch.equal, both.model.parameters(), alone.model.parameters()))


def test_a_loader_and_a_model_may_write_all_batches_to_the_same_memory() -> None:
    class OneBuffer:
        def __iter__(self) -> Any:
            x, y = torch.empty(4, 3), torch.empty(4, 1)
            for cut in CUTS:
                n = len(X[cut])
                x[:n], y[:n] = X[cut], Y[cut]
                yield x[:n], y[:n]

    class Reuses(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.out[: len(x)] = super().forward(x)
            return self.out[: len(x)]

    torch.manual_seed(0)
    model = Reuses(3, 1)
    model.out = torch.empty(4, 1)
    found = learner(model, OneBuffer()).get_preds(with_inputs=True)  # type: ignore[arg-type]
    assert torch.equal(found.inputs, X)
    assert torch.equal(found.targets, Y)
    torch.testing.assert_close(found.preds, nn.functional.linear(X, model.weight, model.bias))


@pytest.mark.parametrize("target_of_batch", [True, False])
def test_predictions_that_are_not_one_for_each_target_are_told(
    target_of_batch: bool, caplog: pytest.LogCaptureFixture
) -> None:
    batches = [(X[cut], Y[cut].mean() if target_of_batch else Y[cut]) for cut in CUTS]
    learn = learner(linear(), batches, lambda pred, y: (pred - y).square().mean())
    preds, targets = learn.get_preds()
    assert (len(preds), len(targets)) == (10, 3 if target_of_batch else 10)
    assert ("joins 10 predictions and 3 targets" in caplog.text) is target_of_batch
