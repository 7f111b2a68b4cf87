"""A batch counts as much as its loss is a mean of: against one batch of all, and loops by hand."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from onecycle import GradientAccumulation, Learner, MeanMetric, MixedPrecision, token_weight
from onecycle.record.means import WeightedMean
from onecycle.record.weights import LossWeights, check_weight

CLASS_WEIGHT = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64)
Data = tuple[Tensor, Tensor]


class Tagger(nn.Module):
    """Scores of 4 classes for each of any number of tokens, classes in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.score = nn.Embedding(9, 6), nn.Linear(6, 4)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.score(self.embed(tokens)).movedim(-1, 1)


class LogTagger(Tagger):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens).log_softmax(1)


def data(*shape: int, ignored: int = -100, n: int = 32) -> Data:
    """Few targets count in the first samples, nearly all in the last."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(9, (n, *shape), generator=generator)
    y = torch.randint(4, (n, *shape), generator=generator)
    share = torch.linspace(0.1, 1, n).view(n, *(1 for _ in shape))
    return x, torch.where(torch.rand(n, *shape, generator=generator) < share, y, ignored)


def batches(xy: Data, *sizes: int) -> list[Data]:
    x, y = xy
    each = list(sizes) if len(sizes) > 1 else sizes[0]
    return list(zip(x.split(each), y.split(each), strict=True))


def learner(loss: Any, loader: Any, model: type[nn.Module] = Tagger, **options: Any) -> Learner:
    kind = options.pop("kind", Learner)
    opt_func = partial(SGD, momentum=0.9)
    made: Learner = kind(
        (loader, loader), model(), loss, opt_func, device="cpu", seed=0, check=False, **options
    )
    return made


def trained(learn: Learner, n_batches: int) -> tuple[float, Tensor, Tensor]:
    """Return the validation loss before, and the weights and losses of three epochs."""
    valid = learn.validate()["valid_loss"]
    with learn.no_bar():
        learn.fit(3, 0.5, cbs=[GradientAccumulation(n_batches)])
    losses = torch.tensor(learn.recorder.history["train_loss"].values)
    return valid, nn.utils.parameters_to_vector(learn.model.parameters()).detach(), losses


def assert_alike(one: tuple[float, Tensor, Tensor], other: tuple[float, Tensor, Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12, equal_nan=True)


def custom(pred: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(pred, target.clamp(min=0), reduction="none")
    valid = target != -100
    return (losses * valid).sum() / valid.sum()


def weighted(pred: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(pred, target, CLASS_WEIGHT)


LOSSES: dict[str, tuple[Any, Data, dict[str, Any]]] = {
    "function": (F.cross_entropy, data(7), {}),
    "module": (nn.CrossEntropyLoss(), data(7), {}),
    "partial": (partial(F.cross_entropy, ignore_index=2), data(7, ignored=2), {}),
    "pixels": (nn.CrossEntropyLoss(ignore_index=255), data(4, 3, ignored=255), {}),
    "class weights": (nn.CrossEntropyLoss(CLASS_WEIGHT), data(7), {}),
    "class weights of whole samples": (nn.CrossEntropyLoss(CLASS_WEIGHT), data(), {}),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), data(7), {}),
    "nll": (nn.NLLLoss(CLASS_WEIGHT), data(7), {"model": LogTagger}),
    "nll function": (F.nll_loss, data(7), {"model": LogTagger}),
    "own": (custom, data(7), {"loss_weight": token_weight()}),
    "own, weighted": (weighted, data(7), {"loss_weight": token_weight(-100, CLASS_WEIGHT)}),
    "labels, told": (F.cross_entropy, data(), {"loss_weight": token_weight()}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_batches_of_any_sizes_make_the_update_and_the_validation_loss_of_one_of_all(
    name: str,
) -> None:
    loss, xy, options = LOSSES[name]
    whole = trained(learner(loss, [xy], **options), 1)
    assert_alike(trained(learner(loss, batches(xy, 8), **options), 4), whole)
    uneven = batches(xy, 5, 16, 3, 8)  # the window is one of four, where six were expected
    assert_alike(trained(learner(loss, uneven, **options), 6), whole)


def test_by_samples_it_would_differ() -> None:
    whole, by_samples = (learner(custom, loader) for loader in ([data(7)], batches(data(7), 8)))
    one, other = trained(whole, 1), trained(by_samples, 4)
    assert abs(one[0] - other[0]) > 1e-3
    assert (one[1] - other[1]).abs().max() > 1e-2


def test_the_gradients_of_a_window_are_those_of_a_loop_by_hand() -> None:
    xy = data(7)
    model = Tagger()
    for x, y in batches(xy, 8):
        loss = F.cross_entropy(model(x), y, reduction="sum")
        (loss / (xy[1] != -100).sum()).backward()
    learn = learner(nn.CrossEntropyLoss(), batches(xy, 8))
    seen: list[Tensor] = []

    class Look(GradientAccumulation):
        def before_step(self, learn: Any) -> None:
            super().before_step(learn)
            seen.extend(p.grad.clone() for p in learn.model.parameters())

    learn.fit(1, 0.1, cbs=[Look(4)])
    for mine, p in zip(seen, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("empty", [0, 1, 3])
def test_a_batch_in_which_nothing_counts_adds_nothing(empty: int) -> None:
    x, y = data(7)
    y[8 * empty : 8 * (empty + 1)] = -100
    loss = nn.CrossEntropyLoss()
    assert_alike(trained(learner(loss, batches((x, y), 8)), 4), trained(learner(loss, [(x, y)]), 1))


def test_a_window_in_which_nothing_counts_leaves_the_weights_and_its_loss_is_nan() -> None:
    x, y = data(7)
    learn = learner(nn.CrossEntropyLoss(), batches((x, torch.full_like(y, -100)), 8))
    before = nn.utils.parameters_to_vector(learn.model.parameters()).detach().clone()
    valid, after, losses = trained(learn, 4)
    assert math.isnan(valid)
    assert bool(losses.isnan().all())
    assert torch.equal(before, after)


def test_half_precision_scales_what_is_weighted() -> None:
    x, y = data(7)
    y[:8] = -100  # so that the first batch says nothing of the weights to come
    results = []
    for loader, n in (([(x, y)], 1), (batches((x, y), 8), 4)):
        learn = learner(nn.CrossEntropyLoss(), loader, cbs=[MixedPrecision("bf16")])
        learn.model.float()
        results.append(trained(learn, n)[1])
    torch.testing.assert_close(*results, rtol=0, atol=0.05)


def test_the_factor_of_a_gradient_scaler_window_is_a_tensor_that_is_not_read() -> None:
    from onecycle.optim.stepper import ScaledStepper

    model = nn.Linear(2, 1)
    stepper = ScaledStepper(SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", 1024.0))
    stepper.backward(model(torch.ones(3, 2)).mean())
    stepper.grad_factor = torch.tensor(0.25)
    stepper.unscale()
    assert torch.equal(model.weight.grad, torch.full((1, 2), 0.25))
    assert stepper.grad_factor == 1.0


# --- what models of libraries look like -----------------------------------------------------------


class Causal(nn.Module):
    """Computes its own loss from labels that are its input: a mean over all but the first."""

    def __init__(self) -> None:
        super().__init__()
        self.tagger = Tagger()

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.tagger(input_ids)
        return {"loss": F.cross_entropy(logits[..., :-1], labels[..., 1:]), "logits": logits}


def dicts(loader: list[Data]) -> list[dict[str, Tensor]]:
    return [{"input_ids": x, "labels": y} for x, y in loader]


def test_a_model_that_computes_its_loss_is_weighted_by_its_labels() -> None:
    given = {"model": Causal, "loss_weight": token_weight(shift=True)}
    whole = trained(learner(None, dicts([data(7)]), **given), 1)
    assert_alike(trained(learner(None, dicts(batches(data(7), 8)), **given), 4), whole)


def test_a_method_of_a_subclass_says_the_weight_too() -> None:
    class Own(Learner):
        def predict_batch(self, batch: Any) -> Any:
            return self.model(batch["input_ids"])

        def compute_loss(self, pred: Any, batch: Any) -> Tensor:
            return F.cross_entropy(pred, batch["labels"])

        def loss_weight(self, pred: Any, batch: Any) -> Tensor:
            return (batch["labels"] != -100).sum()

    whole = trained(learner(None, dicts([data(7)]), kind=Own), 1)
    assert_alike(trained(learner(None, dicts(batches(data(7), 8)), kind=Own), 4), whole)


def test_a_range_test_on_validation_batches_has_the_loss_of_each() -> None:
    loader = batches(data(7), 8)
    learn = learner(nn.CrossEntropyLoss(), loader)
    result = learn.lr_find(1e-9, 1e-8, num_it=4, valid=True, show_plot=False)
    with torch.no_grad():
        expected = [float(F.cross_entropy(learn.model(x), y)) for x, y in loader]
    assert result.valid_losses is not None
    assert result.valid_losses.tolist() == pytest.approx(expected, rel=1e-6)


# --- metrics --------------------------------------------------------------------------------------


def token_accuracy(pred: Tensor, target: Tensor) -> Tensor:
    return (pred.argmax(1) == target)[target != -100].double().mean()


def test_a_metric_is_weighted_by_samples_or_as_the_loss_is() -> None:
    loader = batches(data(7), 8)
    metrics = [
        MeanMetric(token_accuracy, name="by_samples"),
        MeanMetric(token_accuracy, name="by_tokens", weighted_by="loss"),
    ]
    learn = learner(nn.CrossEntropyLoss(), loader, metrics=metrics)
    with torch.no_grad():
        each = [float(token_accuracy(learn.model(x), y)) for x, y in loader]
        x, y = data(7)
        overall = float(token_accuracy(learn.model(x), y))
    found = learn.validate()
    assert found["by_samples"] == pytest.approx(sum(each) / 4, rel=1e-12)
    assert found["by_tokens"] == pytest.approx(overall, rel=1e-12)
    assert abs(overall - sum(each) / 4) > 1e-3


def test_metrics_count_the_samples_that_the_learner_counts() -> None:
    class TimeFirst(Learner):
        def batch_size(self, batch: Any) -> int:
            return batch[1].size(1)

    values = [torch.full((4, 2), 1.0), torch.full((3, 6), 5.0)]  # of 2 and of 6 samples
    loader = [(torch.zeros(*v.shape, 1), v) for v in values]

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.p)[..., 0]

    def level(pred: Tensor, target: Tensor) -> Tensor:
        return target.mean()

    learn = TimeFirst((loader, loader), Zero(), F.mse_loss, metrics=[level], device="cpu")
    assert learn.validate() == {"valid_loss": (2 * 1 + 6 * 25) / 8, "level": (2 * 1 + 6 * 5) / 8}


def test_a_weight_by_nothing_known_is_refused() -> None:
    with pytest.raises(ValueError, match="weighted_by must be"):
        MeanMetric(token_accuracy, weighted_by="tokens")  # type: ignore[arg-type]


# --- the parts ------------------------------------------------------------------------------------


def test_a_weighted_mean_takes_numbers_and_tensors_and_leaves_out_what_counts_nothing() -> None:
    mean, generator = WeightedMean(), torch.Generator().manual_seed(0)
    values = torch.rand(600, generator=generator, dtype=torch.float64)
    weights = torch.randint(0, 5, (600,), generator=generator)
    for i, (value, weight) in enumerate(zip(values, weights, strict=True)):
        kept = value if weight else torch.tensor(math.nan)
        mean.add(kept, weight if i % 3 else int(weight))
    expected = (values * weights).sum() / weights.sum()
    assert float(mean.compute()) == pytest.approx(float(expected), rel=1e-12)
    assert int(mean.count) == int(weights.sum())


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (F.cross_entropy, torch.zeros(4, dtype=torch.long)),  # labels of whole samples
        (F.cross_entropy, torch.zeros(4, 3, 2)),  # probabilities
        (nn.MSELoss(), torch.zeros(4, 3, dtype=torch.long)),
        (custom, torch.zeros(4, 3, dtype=torch.long)),
    ],
)
def test_other_losses_count_samples(loss: Callable[..., Tensor], target: Tensor) -> None:
    assert LossWeights(loss)(loss, None, None, target) is None


def test_a_loss_with_a_forward_of_its_own_is_not_taken_for_torchs() -> None:
    class Focal(nn.CrossEntropyLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input, target).square()

    loss = Focal()
    assert LossWeights(loss)(loss, None, None, torch.zeros(4, 3, dtype=torch.long)) is None


def test_options_of_a_loss_are_read_when_it_is_weighted() -> None:
    loss, target = nn.CrossEntropyLoss(), torch.tensor([[0, 1, 1]])
    weights = LossWeights(loss)
    loss.ignore_index = 1
    assert weights(loss, None, None, target) == 1
    assert weights(F.cross_entropy, None, None, target) == 3  # another loss since


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(reduction="sum"), partial(partial(F.mse_loss, reduction="sum"))]
)
def test_a_loss_that_is_a_sum_is_refused_unless_a_weight_is_given(loss: Any) -> None:
    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match='has reduction="sum", and grows with the batch'):
        Learner(([(x, x)], None), nn.Linear(1, 1), loss, device="cpu")
    Learner(([(x, x)], None), nn.Linear(1, 1), loss, device="cpu", loss_weight=lambda *_: 1)


@pytest.mark.parametrize(
    ("weight", "error"),
    [
        (torch.ones(2), TypeError),
        (None, TypeError),
        (-1, ValueError),
        (math.nan, ValueError),
    ],
)
def test_what_is_no_weight_is_refused(weight: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="loss_weight must be"):
        check_weight(weight)
    for run in (lambda learn: learn.validate(), lambda learn: trained(learn, 2)):
        learn = learner(custom, batches(data(7), 8), loss_weight=lambda pred, batch: weight)
        with pytest.raises(error, match="loss_weight must be"):
            run(learn)


class Batch:
    def __init__(self, y: Tensor) -> None:
        self.y = y


LABELS = torch.tensor([[3, 1, -100], [2, -100, -100]])


@pytest.mark.parametrize(
    ("batch", "options", "expected"),
    [
        ((None, LABELS), {}, 3),
        ([None, LABELS], {}, 3),
        ({"x": None, "labels": LABELS}, {}, 3),
        (Batch(LABELS), {}, 3),
        ((None, LABELS, None), {"target": 1}, 3),
        ({"tags": LABELS}, {"target": "tags"}, 3),
        ({"labels": LABELS}, {"shift": True}, 1),
        ((None, LABELS), {"ignore_index": 2}, 5),
        ((None, LABELS.clamp(min=0)), {"class_weight": CLASS_WEIGHT}, 0.5 + 2 + 1 + 5 + 1 + 1),
    ],
)
def test_valid_targets_are_found_and_counted(
    batch: Any, options: dict[str, Any], expected: float
) -> None:
    assert float(token_weight(**options)(None, batch)) == expected


@pytest.mark.parametrize("batch", [(None, None, LABELS), {"x": LABELS}, (None, torch.ones(3))])
def test_targets_that_are_not_found_are_asked_for(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"token_weight\(target=...\)"):
        token_weight()(None, batch)
