import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onecycle.record.means import WeightedMean
from onecycle.record.metrics import (
    RESERVED_NAMES,
    MeanMetric,
    Metric,
    MetricFunction,
    MetricSet,
    accuracy,
    as_metric,
    as_metrics,
    better_direction,
    binary_accuracy,
    error_rate,
    mae,
    mse,
    rmse,
    top_k_accuracy,
    value_owners,
)


class CountRight:
    """Has the interface of a torchmetrics object: reset, update, compute, to, and no name."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.reset()

    def reset(self) -> None:
        self.right = torch.tensor(0, device=self.device)
        self.seen = 0

    def to(self, device: torch.device) -> "CountRight":
        self.device = device
        self.right = self.right.to(device)
        return self

    def update(self, pred: Tensor, target: Tensor) -> None:
        self.right += (pred.argmax(1) == target).sum()
        self.seen += len(target)

    def compute(self) -> Tensor:
        return self.right / self.seen


@pytest.fixture
def classes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(103, 7, generator=generator)
    return pred, torch.randint(7, (103,), generator=generator)


def batches(pred: Tensor, target: Tensor, size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(pred.split(size), target.split(size), strict=True)


def run(metric: Any, pred: Tensor, target: Tensor) -> float:
    metric = as_metric(metric)
    metric.reset()
    for batch in batches(pred, target):
        metric.update(*batch)
    return float(metric.compute())


def test_accuracy_is_the_share_of_right_classes(classes: tuple[Tensor, Tensor]) -> None:
    pred, target = classes
    right = [
        row.index(max(row)) == t for row, t in zip(pred.tolist(), target.tolist(), strict=True)
    ]
    assert accuracy(pred, target).item() == pytest.approx(sum(right) / 103)
    assert error_rate(pred, target).item() == pytest.approx(1 - sum(right) / 103)
    assert accuracy(pred, target).ndim == 0


def test_accuracy_of_segmentation_is_the_share_of_right_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    pred = torch.randn(3, 4, 5, 6, generator=generator)
    target = torch.randint(4, (3, 5, 6), generator=generator)
    flat = pred.permute(0, 2, 3, 1).reshape(-1, 4)
    assert accuracy(pred, target) == accuracy(flat, target.reshape(-1))
    top_2 = top_k_accuracy(2)
    assert top_2(pred, target) == top_2(flat, target.reshape(-1))


def test_top_k_counts_the_k_best(classes: tuple[Tensor, Tensor]) -> None:
    pred, target = classes
    ranked = [sorted(range(7), key=row.__getitem__)[::-1] for row in pred.tolist()]
    for k in (1, 3, 7):
        right = [t in best[:k] for best, t in zip(ranked, target.tolist(), strict=True)]
        assert float(top_k_accuracy(k)(pred, target)) == pytest.approx(sum(right) / 103)
    assert float(top_k_accuracy(1)(pred, target)) == accuracy(pred, target).item()


def test_top_k_is_named_by_k_and_needs_k_classes(classes: tuple[Tensor, Tensor]) -> None:
    assert list(as_metrics([top_k_accuracy(), top_k_accuracy(3)])) == [
        "top_5_accuracy",
        "top_3_accuracy",
    ]
    with pytest.raises(ValueError, match="top_9_accuracy needs 9 classes or more, pred has 7"):
        top_k_accuracy(9)(*classes)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        top_k_accuracy(0)


def test_binary_accuracy_thresholds_logits_at_0_and_probabilities_at_what_is_asked() -> None:
    logits, target = torch.tensor([-2.0, -0.1, 0.1, 3.0]), torch.tensor([0, 1, 1, 0])
    assert binary_accuracy()(logits, target) == 0.5
    assert binary_accuracy(0.5)(logits.sigmoid(), target.float()) == 0.5
    assert binary_accuracy()(logits[:, None], target[:, None].bool()) == 0.5
    assert binary_accuracy(2.5)(logits, target) == 0.25


@pytest.mark.parametrize("metric", [accuracy, error_rate, top_k_accuracy(2)])
@pytest.mark.parametrize(
    ("pred", "target", "advice"),
    [
        (torch.zeros(4), torch.zeros(4), "binary_accuracy"),
        (torch.zeros(4, 1), torch.zeros(4, 1), "binary_accuracy"),
        (torch.zeros(4, 3), torch.zeros(4, 3), "argmax"),
        (torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.long), "argmax"),
        (torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.long), "squeeze"),
        (torch.zeros(4, 9, 3), torch.zeros(4, 9, dtype=torch.long), "transpose"),
    ],
)
def test_class_metrics_refuse_what_would_be_compared_wrongly(
    metric: MetricFunction, pred: Tensor, target: Tensor, advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        metric(pred, target)


@pytest.mark.parametrize("metric", [mse, mae, binary_accuracy()])
def test_shapes_that_would_broadcast_are_refused(metric: MetricFunction) -> None:
    with pytest.raises(ValueError, match=r"same shape, got \(4, 1\) and \(4,\)"):
        metric(torch.zeros(4, 1), torch.zeros(4))


def test_mse_and_mae_agree_with_torch() -> None:
    pred, target = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2))
    assert mse(pred, target) == F.mse_loss(pred, target)
    assert mae(pred, target) == F.l1_loss(pred, target)


@pytest.mark.parametrize("func", [accuracy, error_rate, top_k_accuracy(3)])
def test_mean_over_batches_is_that_of_the_whole_set(
    func: Callable[..., Tensor], classes: tuple[Tensor, Tensor]
) -> None:
    assert run(func, *classes) == pytest.approx(func(*classes).item(), rel=1e-6)


def test_mean_of_batch_means_would_differ_where_the_last_batch_is_smaller(
    classes: tuple[Tensor, Tensor],
) -> None:
    means = [accuracy(*batch).item() for batch in batches(*classes)]
    assert abs(sum(means) / len(means) - run(accuracy, *classes)) > 1e-3


def test_rmse_is_the_root_of_the_mean_over_all_samples() -> None:
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(-2, 2, 103)
    pred, target = scale * torch.randn(103, generator=generator), torch.zeros(103)
    assert run(rmse(), pred, target) == pytest.approx(pred.square().mean().sqrt().item(), rel=1e-6)
    assert list(as_metrics([rmse()])) == ["rmse"]


def test_sums_keep_their_digits_over_many_batches() -> None:
    mean = WeightedMean()
    for _ in range(20_000):
        mean.add(torch.tensor(0.1, dtype=torch.float32), 1000)
    assert mean.compute().item() == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)


@pytest.mark.parametrize("n_values", [1, 5, 256, 600])
def test_kept_values_have_the_mean_of_those_added_at_once(n_values: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(n_values, generator=generator)
    weights = [64] * (n_values // 2) + [10, 64, 64] * (n_values // 3) + [7]
    weights = [*weights, *[3] * n_values][:n_values]
    mean = WeightedMean()
    for i, (value, n) in enumerate(zip(values, weights, strict=True)):
        mean.keep(value, n)
        if i % 97 == 0:
            mean.compute()  # reading in between changes nothing
    expected = np.average(values.double().numpy(), weights=weights)
    assert mean.compute().item() == pytest.approx(expected, rel=1e-12)
    assert mean.count == sum(weights)
    mean.reset()
    assert math.isnan(mean.compute())


def test_reset_forgets_and_nothing_seen_is_nan(classes: tuple[Tensor, Tensor]) -> None:
    metric = MeanMetric(accuracy)
    metric.update(*classes)
    metric.reset()
    assert math.isnan(metric.compute())
    metric.update(*classes)
    assert float(metric.compute()) == pytest.approx(accuracy(*classes).item())


def test_update_reads_nothing_from_the_device() -> None:
    # Tensors on "meta" have no data: item(), float() or bool() of one raises.
    metrics = MetricSet([accuracy, error_rate, top_k_accuracy(2), rmse_of_scores, CountRight()])
    pred = torch.zeros(4, 3, device="meta")
    target = torch.zeros(4, dtype=torch.long, device="meta")
    for _ in range(2):
        metrics.update(pred, target, loss=torch.zeros((), device="meta"), n=4)
    with pytest.raises((RuntimeError, NotImplementedError)):
        metrics.compute()


def rmse_of_scores(pred: Tensor, target: Tensor) -> Tensor:
    return mse(pred[:, 0], target.float()).sqrt()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_update_does_not_wait_for_the_gpu() -> None:
    metrics = MetricSet([accuracy, error_rate, top_k_accuracy(2), rmse_of_scores])
    pred, target = torch.eye(4, device="cuda"), torch.arange(4, device="cuda")
    loss = torch.tensor(0.5, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            metrics.update(pred, target, loss=loss, n=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    results = metrics.compute()
    assert (results["valid_loss"], results["accuracy"], results["error_rate"]) == (0.5, 1.0, 0.0)


def test_update_keeps_no_graph() -> None:
    metric = MeanMetric(mse)
    metric.update(torch.ones(3, requires_grad=True), torch.zeros(3))
    assert not metric.compute().requires_grad


def test_only_the_function_has_to_understand_the_target() -> None:
    def box_error(pred: dict[str, Tensor], target: dict[str, Any]) -> Tensor:
        return mae(pred["box"], target["boxes"][0])

    metric = MeanMetric(box_error)
    metric.update({"box": torch.ones(3)}, {"boxes": (torch.zeros(3), "a name")})
    metric.update({"box": torch.ones(1)}, {"boxes": (torch.full((1,), 6.0), "a name")})
    assert metric.compute().item() == (3 * 1 + 1 * 5) / 4


def test_samples_are_counted_in_pred_where_the_target_has_no_tensor() -> None:
    metric = MeanMetric(lambda pred, target: pred.mean(), name="mean")
    metric.update(torch.ones(3), None)
    metric.update(torch.full((1,), 5.0), None)
    assert metric.compute().item() == 2.0


def test_function_may_return_a_float() -> None:
    metric = MeanMetric(lambda pred, target: 0.1, name="constant")
    metric.update(torch.ones(3), torch.ones(3))
    assert metric.compute().item() == pytest.approx(0.1, rel=1e-15)


def test_function_that_returns_a_value_for_each_sample_is_refused() -> None:
    metric = MeanMetric(lambda pred, target: pred == target, name="hits")
    with pytest.raises(ValueError, match=r"metric hits returned a tensor of shape \(4,\)"):
        metric.update(torch.zeros(4), torch.zeros(4))


def test_object_with_the_three_methods_is_used_as_it_is(classes: tuple[Tensor, Tensor]) -> None:
    metric = CountRight()
    assert as_metric(metric) is metric
    assert isinstance(MeanMetric(mse), Metric)
    assert run(metric, *classes) == pytest.approx(accuracy(*classes).item())
    assert list(as_metrics([metric])) == ["CountRight"]


def test_metrics_are_named_by_name_attribute_function_or_class() -> None:
    named = CountRight()
    named.name = "mine"  # type: ignore[attr-defined]
    metrics = as_metrics([accuracy, partial(mse), nn.L1Loss(), named, MeanMetric(mae, name="b")])
    assert list(metrics) == ["accuracy", "mse", "L1Loss", "mine", "b"]


def test_single_metric_needs_no_list() -> None:
    assert list(as_metrics(error_rate)) == ["error_rate"]


@pytest.mark.parametrize(
    ("thing", "advice"),
    [
        ("accuracy", "got 'accuracy'"),
        (None, "got None"),
        (CountRight, "the class CountRight: pass an object"),
        (rmse, r"pass what it returns, rmse\(\.\.\.\)"),
        (top_k_accuracy, r"pass what it returns, top_k_accuracy\(\.\.\.\)"),
    ],
)
def test_what_is_no_metric_is_refused_with_what_is_expected(thing: Any, advice: str) -> None:
    with pytest.raises(TypeError, match=rf"\(pred, target\) -> 0-dim tensor.*{advice}"):
        as_metrics([thing])


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two metrics are called 'accuracy'"):
        as_metrics([accuracy, accuracy])
    with pytest.raises(ValueError, match="two metrics are called 'CountRight'"):
        as_metrics([CountRight(), CountRight()])


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_names_of_the_record_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"something else called '{name}'"):
        as_metrics([MeanMetric(mse, name=name)])


def test_metric_set_gives_the_loss_first_and_floats(classes: tuple[Tensor, Tensor]) -> None:
    metrics = MetricSet([accuracy, CountRight()])
    for _ in range(2):
        metrics.reset()
        for pred, target in batches(*classes):
            metrics.update(pred, target, loss=F.cross_entropy(pred, target), n=len(target))
    results = metrics.compute()
    assert list(results) == ["valid_loss", "accuracy", "CountRight"]
    assert all(type(value) is float for value in results.values())
    assert results["valid_loss"] == pytest.approx(F.cross_entropy(*classes).item(), rel=1e-6)
    assert results["accuracy"] == pytest.approx(accuracy(*classes).item(), rel=1e-6)
    assert results["CountRight"] == pytest.approx(results["accuracy"])


def test_pass_without_a_batch_has_no_results() -> None:
    metrics = MetricSet([accuracy, CountRight()])
    assert metrics.compute() == {}
    metrics.update(torch.eye(2), torch.arange(2), loss=torch.tensor(1.0), n=2)
    metrics.reset()
    assert metrics.compute() == {}


def test_object_metric_is_moved_to_the_device_of_the_loss() -> None:
    metric = CountRight()
    metrics = MetricSet([metric])
    pred, target = torch.zeros(4, 3, device="meta"), torch.zeros(4, device="meta")
    metrics.update(pred, target, loss=torch.zeros((), device="meta"), n=4)
    assert metric.right.device.type == "meta"


class Given(CountRight):
    """Gives what it is told to."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def update(self, pred: Any, target: Any) -> None:
        pass

    def compute(self) -> Any:
        return self.value


class Pair(NamedTuple):
    lo: float
    hi: float


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"f1": torch.tensor(0.5), "recall": 0.25}, {"f1": 0.5, "recall": 0.25}),
        (
            torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
            {"Given_0": 0.1, "Given_1": 0.2, "Given_2": 0.3},
        ),
        (np.array([1, 2]), {"Given_0": 1.0, "Given_1": 2.0}),
        ((0.5, torch.tensor(2)), {"Given_0": 0.5, "Given_1": 2.0}),
        (Pair(0.1, 0.9), {"lo": 0.1, "hi": 0.9}),
        ({"iou": [0.5, 0.75], "all": {"iou": 0.6}}, {"iou_0": 0.5, "iou_1": 0.75, "all_iou": 0.6}),
        (torch.tensor([[4.0]]), {"Given": 4.0}),
        (torch.tensor([4.0]), {"Given": 4.0}),
        (np.float32(4), {"Given": 4.0}),
        ({}, {}),
    ],
)
def test_several_values_of_a_metric_go_by_their_names(
    value: Any, expected: dict[str, float], classes: tuple[Tensor, Tensor]
) -> None:
    metrics = MetricSet([Given(value)])
    metrics.update(*classes, loss=torch.tensor(1.0), n=103)
    results = metrics.compute()
    assert results == {"valid_loss": 1.0, **expected}
    assert all(type(number) is float for number in results.values())
    assert metrics.parts == {"Given": list(expected)}


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.zeros(3, 3), TypeError, r"metric Given gave a Tensor of shape \(3, 3\)"),
        ({"f1": None}, TypeError, "metric f1 gave a NoneType"),
        ("0.5", TypeError, "metric Given gave a str"),
        ({"lr": 0.5}, ValueError, "a value called 'lr', which the record has already"),
        ({"accuracy": 0.5}, ValueError, "a value called 'accuracy', which the record has already"),
        ({"a": {"b": 1.0}, "a_b": 2.0}, ValueError, "two values called 'a_b'"),
    ],
)
def test_values_without_a_name_or_a_number_are_refused(
    value: Any, error: type[Exception], words: str, classes: tuple[Tensor, Tensor]
) -> None:
    metrics = MetricSet([accuracy, Given(value)])
    metrics.update(*classes, loss=torch.tensor(1.0), n=103)
    with pytest.raises(error, match=words):
        metrics.compute()


def test_several_means_of_a_function_are_weighted_by_samples_each(
    classes: tuple[Tensor, Tensor],
) -> None:
    def both(pred: Tensor, target: Tensor) -> dict[str, Any]:
        return {"right": accuracy(pred, target), "wrong": (error_rate(pred, target), 0.5)}

    metrics = MetricSet([both])
    for pred, target in batches(*classes):
        metrics.update(pred, target, loss=torch.tensor(1.0), n=len(target))
    found = metrics.compute()
    assert list(found) == ["valid_loss", "right", "wrong_0", "wrong_1"]
    assert found["right"] == pytest.approx(accuracy(*classes).item(), rel=1e-6)
    assert found["wrong_0"] == pytest.approx(error_rate(*classes).item(), rel=1e-6)
    assert found["wrong_1"] == 0.5


def test_a_collection_of_torchmetrics_is_recorded_by_the_names_of_its_metrics() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")

    def collection(prefix: str) -> Any:
        kinds = torchmetrics.classification
        each = [kinds.MulticlassAccuracy(3, average="micro"), kinds.MulticlassF1Score(3)]
        return torchmetrics.MetricCollection(each, prefix=prefix)

    metrics = MetricSet([collection("a_"), collection("b_"), accuracy])
    alone = collection("a_")
    generator = torch.Generator().manual_seed(0)
    for n in (8, 8, 5):
        pred = torch.randn(n, 3, generator=generator)
        target = torch.randint(0, 3, (n,), generator=generator)
        metrics.update(pred, target, loss=torch.tensor(1.0), n=n)
        alone.update(pred, target)
    found, expected = metrics.compute(), {k: float(v) for k, v in alone.compute().items()}
    assert list(expected) == ["a_MulticlassAccuracy", "a_MulticlassF1Score"]
    assert {name: found[name] for name in expected} == expected
    assert found["b_MulticlassF1Score"] == expected["a_MulticlassF1Score"]
    owners = value_owners(metrics.metrics)
    assert [*owners] == [name for name in found if name != "valid_loss"]
    assert better_direction("a_MulticlassF1Score", owners["a_MulticlassF1Score"]) == "max"
    with pytest.raises(ValueError, match="two metrics are called 'a_MulticlassAccuracy'"):
        as_metrics([collection("a_"), collection("a_")])


# NaN among the predictions


SHARES = [accuracy, error_rate, top_k_accuracy(2), partial(accuracy)]


@pytest.mark.parametrize("func", SHARES)
def test_one_nan_among_the_scores_makes_the_metric_nan_and_infinite_scores_do_not(
    func: MetricFunction, classes: tuple[Tensor, Tensor]
) -> None:
    pred, target = classes
    infinite = pred.clone()
    infinite[5, 3], infinite[6, 2] = math.inf, math.inf
    assert run(func, infinite, target) == pytest.approx(float(func(infinite, target)), rel=1e-6)
    assert not math.isnan(run(func, -infinite, target))
    for row in (0, 40, 102):  # a batch of the beginning, the middle, the end
        broken = pred.clone()
        broken[row, 1] = math.nan
        assert math.isnan(func(broken, target))
        assert math.isnan(run(func, broken, target))
    metric = as_metric(func)
    metric.update(broken, target)
    metric.reset()
    metric.update(pred, target)
    assert not math.isnan(metric.compute())


@pytest.mark.parametrize("metric", [binary_accuracy(), mse, mae, rmse()])
def test_nan_among_other_predictions_makes_the_metric_nan(metric: Any) -> None:
    pred = torch.tensor([1.0, math.nan, -1.0])
    assert math.isnan(run(metric, pred, torch.tensor([1.0, 0.0, 0.0])))


def first_is_right(pred: Any, target: Tensor) -> Tensor:
    scores = pred if isinstance(pred, Tensor) else pred["scores"]
    return (scores.argmax(1) == 0).float().mean()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("n_batches", [3, 300])
def test_a_metric_of_ones_own_is_nan_where_predictions_and_loss_are(
    n_batches: int, nested: bool
) -> None:
    def result(loss: float, score: float) -> float:
        metrics = MetricSet([first_is_right, Given(1.0)])
        for i in range(n_batches):
            pred = torch.zeros(2, 3)
            pred[0, 0] = score if i == 1 else 1.0
            given = {"scores": pred, "name": "x"} if nested else pred
            value = torch.tensor(loss if i == 1 else 0.5)
            metrics.update(given, torch.zeros(2).long(), loss=value, n=2)
        found = metrics.compute()
        assert math.isnan(found["first_is_right"]) == math.isnan(found["Given"])
        return found["first_is_right"]

    assert math.isnan(result(math.nan, math.nan))
    assert result(math.nan, 1.0) == 1.0  # a batch of nothing but ignored targets
    assert result(0.5, math.nan) == 1.0  # what is NaN was masked


# Which way is better


class Named(MeanMetric):
    higher_is_better = False


class Negated(MeanMetric):
    def compute(self) -> Any:
        return -super().compute()


def distance(pred: Tensor, target: Tensor) -> Tensor:
    return mse(pred, target)


def nearness(pred: Tensor, target: Tensor) -> Tensor:
    return -mse(pred, target)


def root_mean(name: str) -> MeanMetric:
    return MeanMetric(mse, name=name, transform=torch.sqrt, higher_is_better=False)


nearness.higher_is_better = True  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["x", "accuracy", "loss", "score"])
@pytest.mark.parametrize(
    ("make", "direction"),
    [
        (lambda name: MeanMetric(accuracy, name=name), "max"),
        (lambda name: MeanMetric(error_rate, name=name), "min"),
        (lambda name: MeanMetric(partial(mse), name=name), "min"),
        (lambda name: MeanMetric(top_k_accuracy(2), name=name), "max"),
        (lambda name: MeanMetric(binary_accuracy(), name=name), "max"),
        (lambda name: MeanMetric(nearness, name=name), "max"),
        (lambda name: MeanMetric(partial(nearness), name=name), "max"),
        (lambda name: MeanMetric(distance, name=name, higher_is_better=False), "min"),
        (lambda name: Named(accuracy, name=name), "min"),
        (root_mean, "min"),
    ],
)
def test_what_says_its_direction_means_the_same_under_any_name(
    make: Any, direction: str, name: str
) -> None:
    assert better_direction(name, make(name)) == direction


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        (MeanMetric(F.cross_entropy, name="nll"), "min"),
        (MeanMetric(F.cross_entropy, name="surprise"), "min"),
        (MeanMetric(F.cross_entropy, name="accuracy"), None),  # two names that disagree
        (MeanMetric(lambda pred, target: 0.0, name="perplexity"), "min"),
        (MeanMetric(lambda pred, target: 0.0), None),
        (MeanMetric(distance), None),
        (MeanMetric(mse, transform=torch.neg), None),
        (MeanMetric(mse, name="neg_mse", transform=torch.neg), None),
        (Negated(accuracy), None),
        (rmse(), "min"),
        (MeanMetric(nn.CrossEntropyLoss()), "min"),
    ],
)
def test_what_does_not_say_it_goes_by_the_names_it_is_known_by(
    metric: MeanMetric, direction: str | None
) -> None:
    assert better_direction(metric.name, metric) == direction


def test_a_torchmetrics_object_gives_what_our_accuracy_gives():
    torchmetrics = pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    theirs = torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro")
    metrics = MetricSet([accuracy, theirs])
    for n in (8, 8, 5):
        pred, target = torch.randn(n, 3), torch.randint(0, 3, (n,))
        metrics.update(pred, target, loss=torch.tensor(1.0), n=n)
    found = metrics.compute()
    assert found["MulticlassAccuracy"] == pytest.approx(found["accuracy"])


def test_a_function_may_return_one_tensor_again_and_again():
    total = torch.zeros(())

    def last_target(pred, target):
        return total.copy_(target.float().mean())

    metric = MeanMetric(last_target)
    for value, n in ((1.0, 4), (5.0, 4), (9.0, 2)):
        metric.update(torch.zeros(n), torch.full((n,), value))

    assert metric.compute().item() == (1.0 * 4 + 5.0 * 4 + 9.0 * 2) / 10


def test_a_value_with_a_graph_keeps_no_graph_alive():
    weight = torch.ones((), requires_grad=True)
    metric = MeanMetric(lambda pred, target: (pred * weight).mean())

    metric.update(torch.ones(2), torch.ones(2))

    assert not metric.compute().requires_grad


@pytest.mark.parametrize("sides", [[80, 20, 20], [20, 80, 30], [20, 20, 20], [90, 80, 90]])
def test_accuracy_of_images_of_any_sizes_is_the_mean_over_images(sides):
    torch.manual_seed(0)
    batches = [(torch.randn(2, 3, n, n), torch.randint(0, 3, (2, n, n))) for n in sides]
    metric = MeanMetric(accuracy)
    for pred, target in batches:
        metric.update(pred, target)
    each = [(p.argmax(1) == t).double().mean().item() for p, t in batches]
    assert metric.compute().item() == pytest.approx(sum(each) / len(each), rel=1e-7)
