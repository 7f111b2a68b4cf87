"""Models and batches of other libraries: each update, validation and prediction as by hand.

They come with `pip install -e '.[integration]'`; models have random weights, nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW

from onecycle import Learner, token_weight

# What these libraries do on their import is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
GENERATOR = torch.Generator().manual_seed(0)


def images(n: int, size: int) -> Tensor:
    return torch.rand(n, 3, size, size, generator=GENERATOR)


def labels(n: int, classes: int) -> Tensor:
    return torch.randint(0, classes, (n,), generator=GENERATOR)


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.01, momentum=0.9)


def by_hand(
    model: nn.Module, batches: Iterable[Any], loss_of: Callable[[nn.Module, Any], Tensor]
) -> list[float]:
    """Train a pass by hand; return the loss of each update."""
    opt, losses = sgd(model), []
    model.train()
    for batch in batches:
        loss = loss_of(model, batch)
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
    return losses


def fitted(learn: Learner) -> list[float]:
    learn.cbs = learn.cbs[:1]
    learn.fit(1)
    found: list[float] = learn.recorder.history["train_loss"].values.tolist()
    return found


def same(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    one = make()
    torch.manual_seed(0)
    return one, make()


def test_a_vision_transformer_of_timm_with_rates_by_layer() -> None:
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    def make() -> nn.Module:
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2, embed_dim=48, num_heads=3
        )

    mine, theirs = same(make)
    batches = [(images(4, 32), labels(4, 5)) for _ in range(3)]
    groups = param_groups_layer_decay(mine, weight_decay=0.05, layer_decay=0.5)
    learn = Learner(
        (batches, batches[:2]), mine, cross_entropy, opt=AdamW(groups, lr=1e-3), lr=1e-3, seed=0
    )
    losses = fitted(learn)
    opt = AdamW(param_groups_layer_decay(theirs, weight_decay=0.05, layer_decay=0.5), lr=1e-3)
    for group in opt.param_groups:
        group["lr"] = 1e-3 * group["lr_scale"]
    expected = []
    theirs.train()
    for x, y in batches:
        loss = cross_entropy(theirs(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        expected.append(loss.item())
    assert losses == expected
    theirs.eval()
    with torch.no_grad():
        preds = torch.cat([theirs(x) for x, _ in batches[:2]])
        assert torch.equal(learn.get_preds().preds, preds)
        loss = cross_entropy(preds, torch.cat([y for _, y in batches[:2]])).item()
    assert learn.validate()["valid_loss"] == pytest.approx(loss, rel=1e-6)


def test_a_text_classifier_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32, num_labels=3, dropout=0.0
    )
    config.attention_dropout = config.seq_classif_dropout = 0.0
    mine, theirs = same(lambda: transformers.DistilBertForSequenceClassification(config))
    batches = [
        {
            "input_ids": torch.randint(0, 50, (4, 7), generator=GENERATOR),
            "attention_mask": torch.ones(4, 7, dtype=torch.long),
            "labels": labels(4, 3),
        }
        for _ in range(3)
    ]
    learn = Learner((batches, batches[:2]), mine, opt=sgd(mine), seed=0)
    assert fitted(learn) == by_hand(theirs, batches, lambda model, b: model(**b).loss)
    theirs.eval()
    with torch.no_grad():
        outputs = [theirs(**batch) for batch in batches[:2]]
    preds, targets = learn.get_preds()
    assert torch.equal(preds["logits"], torch.cat([each.logits for each in outputs]))
    assert torch.equal(targets["labels"], torch.cat([batch["labels"] for batch in batches[:2]]))
    expected = sum(each.loss.item() for each in outputs) / 2
    assert learn.validate()["valid_loss"] == pytest.approx(expected, rel=1e-6)


def test_a_language_model_of_transformers_validates_by_the_token() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    mine, theirs = same(lambda: transformers.GPT2LMHeadModel(config))
    batches = []
    for length in (9, 5, 3):
        ids = torch.randint(0, 50, (2, length), generator=GENERATOR)
        batches.append({"input_ids": ids, "labels": ids.where(ids > 9, -100)})
    weight = token_weight(shift=True)
    learn = Learner((batches, batches), mine, opt=sgd(mine), seed=0, loss_weight=weight)
    assert fitted(learn) == by_hand(theirs, batches, lambda model, b: model(**b).loss)
    theirs.eval()
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            logits, target = theirs(batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
            total += cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
            count += (target != -100).sum().item()
    assert learn.validate()["valid_loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_graph_network_of_torch_geometric_counts_its_graphs() -> None:
    pytest.importorskip("torch_geometric")
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCNConv, global_mean_pool

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = GCNConv(3, 8), nn.Linear(8, 2)

        def forward(self, graphs: Any) -> Tensor:
            nodes = self.conv(graphs.x, graphs.edge_index).relu()
            return self.head(global_mean_pool(nodes, graphs.batch, size=graphs.num_graphs))

    def graph(n: int) -> Any:
        edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
        return Data(torch.randn(n, 3, generator=GENERATOR), edges, y=labels(1, 2))

    sizes = [[3, 5, 4], [6, 3, 3], [9]]
    batches = [Batch.from_data_list([graph(n) for n in each]) for each in sizes]

    def loss_func(pred: Tensor, graphs: Any) -> Tensor:
        return cross_entropy(pred, graphs.y)

    class Graphs(Learner):
        def compute_loss(self, pred: Tensor, batch: Any) -> Tensor:
            return loss_func(pred, batch)

    mine, theirs = same(Net)
    learn = Graphs((batches, batches), mine, opt=sgd(mine), seed=0)
    assert fitted(learn) == by_hand(theirs, batches, lambda model, b: loss_func(model(b), b))
    theirs.eval()
    with torch.no_grad():
        preds = torch.cat([theirs(batch) for batch in batches])
    targets = torch.cat([batch.y for batch in batches])
    assert [learn.batch_size(batch) for batch in batches] == [3, 3, 1]
    expected = cross_entropy(preds, targets).item()
    assert learn.validate()["valid_loss"] == pytest.approx(expected, rel=1e-6)
    assert torch.equal(learn.get_preds().preds, preds)


def test_a_detector_of_torchvision_takes_lists_and_returns_one_entry_an_image() -> None:
    detection = pytest.importorskip("torchvision.models.detection")

    def make() -> nn.Module:
        return detection.ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=3, norm_layer=nn.Identity
        )

    def target() -> dict[str, Tensor]:
        corner = torch.rand(1, 2, generator=GENERATOR) * 100
        return {"boxes": torch.cat([corner, corner + 80], 1), "labels": labels(1, 2) + 1}

    def batch() -> Any:
        return [*images(2, 64)], [target() for _ in range(2)]

    class Detector(Learner):
        def predict_batch(self, batch: Any) -> Any:
            inputs, targets = batch
            return self.model(inputs, targets) if self.model.training else self.model(inputs)

        def compute_loss(self, pred: Any, batch: Any) -> Tensor:
            if isinstance(pred, dict):
                return torch.stack([*pred.values()]).sum()
            return torch.zeros(())  # torchvision's detectors have no loss in evaluation mode

    mine, theirs = same(make)
    batches = [batch() for _ in range(2)]
    learn = Detector((batches, batches), mine, opt=sgd(mine), seed=0)
    torch.manual_seed(1)
    losses = fitted(learn)
    torch.manual_seed(1)
    expected = by_hand(theirs, batches, lambda model, b: torch.stack([*model(*b).values()]).sum())
    assert losses == expected
    preds = learn.get_preds().preds
    theirs.eval()
    with torch.no_grad():
        found = [each for inputs, _ in batches for each in theirs(inputs)]
    assert len(preds) == len(found) == 4
    for mine_, theirs_ in zip(preds, found, strict=True):
        assert mine_.keys() == theirs_.keys()
        assert all(torch.equal(mine_[key], theirs_[key]) for key in mine_)


def test_a_segmenter_of_torchvision_counts_its_valid_pixels() -> None:
    segmentation = pytest.importorskip("torchvision.models.segmentation")

    def make() -> nn.Module:
        return segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        )

    class Segmenter(Learner):
        def predict_batch(self, batch: Any) -> Tensor:
            out: Tensor = self.model(batch[0])["out"]
            return out

    def loss_func(pred: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(pred, target, ignore_index=255)

    batches = []
    for n in (4, 3):
        mask = torch.randint(0, 4, (n, 32, 32), generator=GENERATOR)
        mask[: n // 2, :20] = 255
        batches.append((images(n, 32), mask))
    mine, theirs = same(make)
    learn = Segmenter(
        (batches, batches),
        mine,
        loss_func,
        opt=sgd(mine),
        seed=0,
        loss_weight=token_weight(ignore_index=255),
    )
    losses = fitted(learn)
    assert losses == by_hand(theirs, batches, lambda model, b: loss_func(model(b[0])["out"], b[1]))
    theirs.eval()
    with torch.no_grad():
        preds = torch.cat([theirs(x)["out"] for x, _ in batches])
    expected = loss_func(preds, torch.cat([y for _, y in batches])).item()
    assert learn.validate()["valid_loss"] == pytest.approx(expected, rel=1e-5)
