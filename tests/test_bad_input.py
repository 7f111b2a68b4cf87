"""Data, loss functions and models that cannot work: one clear sentence, and nothing is broken."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
)

from onecycle import Callback, Learner, TensorLoader
from onecycle.explanations import accidental_broadcast, describe
from onecycle.testing import toy_learner

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 3
TARGETS = torch.ones(16, 3)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x), None


def linear():
    return nn.Linear(4, 3)


def one_output():
    return nn.Linear(4, 1)


def embedding():
    return nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 3))


def normed():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def learner(model, batch, loss_func=cross_entropy, **options):
    """Make a learner that begins to train with the one batch."""
    torch.manual_seed(0)
    learn = Learner(([batch], None), model(), loss_func, device="cpu", seed=0, **options)
    learn.cbs = [learn.recorder]
    return learn


def unreduced(pred, yb):
    return cross_entropy(pred, yb, reduction="none")


def squared(pred, yb):
    return (pred - yb).pow(2).mean()


def of_first_output(pred, yb):
    return cross_entropy(pred[0], yb)


FAULTS = {
    "input of another width": (
        (linear, (torch.ones(16, 5), LABELS)),
        RuntimeError,
        "the model got (16, 5) float32",
    ),
    "half input": (
        (linear, (X.half(), LABELS)),
        RuntimeError,
        "the model got (16, 4) float16; the parameters are float32: convert the input with "
        ".to(torch.float32)",
    ),
    "double input": (
        (linear, (X.double(), LABELS)),
        RuntimeError,
        "got (16, 4) float64; the parameters are float32",
    ),
    "integer input": (
        (linear, (X.long(), LABELS)),
        RuntimeError,
        "got (16, 4) int64; the parameters are float32",
    ),
    "complex input": (
        (linear, (X.to(torch.complex64), LABELS)),
        RuntimeError,
        "got (16, 4) complex64; the parameters are float32",
    ),
    "input of bytes to a convolution": (
        (lambda: nn.Conv2d(3, 4, 3), (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), LABELS[:2])),
        RuntimeError,
        "got (2, 3, 8, 8) uint8; the parameters are float32",
    ),
    "half model": (
        (lambda: linear().half(), (X, LABELS)),
        RuntimeError,
        "got (16, 4) float32; the parameters are float16",
    ),
    "floats to an embedding": (
        (embedding, (X, LABELS)),
        RuntimeError,
        "indices must be integers: convert the input with .long()",
    ),
    "index beyond an embedding": (
        (embedding, (torch.tensor([[0, 1, 2, 9]]), LABELS[:1])),
        IndexError,
        "its indices go from 0 to 9, beyond an embedding",
    ),
    "NumPy input": (
        (linear, (X.numpy(), LABELS)),
        TypeError,
        "the model got ndarray; a batch must hold tensors",
    ),
    "list of texts": (
        (linear, (["a", "b"], LABELS[:2])),
        TypeError,
        "the model got list of (str, str); a batch must hold tensors",
    ),
    "more inputs than the model takes": (
        (linear, (X, X, LABELS)),
        TypeError,
        "tuple of ((16, 4) float32, (16, 4) float32); n_inp= says",
    ),
    "one sample in batch norm": (
        (normed, (X[:1], LABELS[:1])),
        ValueError,
        "batch norm cannot train on one sample: use drop_last=True",
    ),
    "fewer labels than samples": (
        (linear, (X, LABELS[:10])),
        ValueError,
        "the loss function got pred (16, 3) float32 and target (10,) int64",
    ),
    "labels out of range": (
        (linear, (X, LABELS + 1)),
        IndexError,
        "labels must be in 0 to 2 for predictions of 3 classes, and these go from 1 to 3",
    ),
    "labels below 0": (
        (linear, (X, LABELS - 1)),
        IndexError,
        "these go from -1 to 1",
    ),
    "float labels": (
        (linear, (X, LABELS.float())),
        RuntimeError,
        "class labels must be integers: convert them with .long()",
    ),
    "labels in a column": (
        (linear, (X, LABELS[:, None])),
        RuntimeError,
        "class labels must have shape (batch,): drop the last dimension with squeeze(1)",
    ),
    "integer targets of one output": (
        (one_output, (X, LABELS[:, None] % 2), binary_cross_entropy_with_logits),
        RuntimeError,
        "targets of one output must be floats: convert them with .float()",
    ),
    "targets of another width": (
        (linear, (X, torch.ones(16, 2)), squared),
        RuntimeError,
        "pred (16, 3) float32 and target (16, 2) float32",
    ),
    "no target": (
        (linear, X),
        TypeError,
        "the batch has no target: a batch is (xb, yb)",
    ),
    "a tuple instead of a prediction": (
        (TwoOutputs, (X, LABELS)),
        TypeError,
        "pred tuple of ((16, 3) float32, NoneType) and target (16,) int64; take the prediction out",
    ),
    "a tuple without a loss function": (
        (TwoOutputs, (X, LABELS), None),
        TypeError,
        "the loss must be a tensor of one number; got tuple of ((16, 3) float32, NoneType): "
        "without a loss_func, the model itself must return the loss",
    ),
    "a loss for each sample": (
        (linear, (X, LABELS), unreduced),
        RuntimeError,
        "the loss must be one number and has shape (16,); take its mean",
    ),
    "a loss without a graph": (
        (linear, (X, LABELS), lambda pred, yb: cross_entropy(pred.detach(), yb)),
        RuntimeError,
        "the loss does not depend on any parameter that trains; look for .detach()",
    ),
    "a count instead of a loss": (
        (linear, (X, LABELS), lambda pred, yb: (pred.argmax(1) == yb).sum()),
        RuntimeError,
        "an argmax on the way to it",
    ),
    "a float instead of a loss": (
        (linear, (X, LABELS), lambda pred, yb: cross_entropy(pred, yb).item()),
        TypeError,
        "the loss must be a tensor of one number; got float: leave out .item()",
    ),
    "no loss": (
        (linear, (X, LABELS), lambda pred, yb: None),
        TypeError,
        "got NoneType: does the loss function end with return?",
    ),
    "a complex loss": (
        (linear, (X, LABELS), lambda pred, yb: pred.mean() * 1j),
        RuntimeError,
        "the loss must be real and is complex64",
    ),
}


def said(error):
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


def parameters(learn):
    return [p.detach().clone() for p in learn.model.parameters()]


def same(left, right):
    return all(map(torch.equal, left, right))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_in_one_sentence_that_says_what_came_and_what_to_do(fault):
    arguments, kind, words = FAULTS[fault]
    learn = learner(*arguments)
    with pytest.raises(kind) as caught:
        learn.fit(1)
    assert type(caught.value) is kind
    assert words in said(caught.value)
    assert sum(note.startswith("onecycle: ") for note in caught.value.__notes__) <= 2
    assert "epoch 0, training batch 0, after 0 updates" in said(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_the_learner_fits_good_data_to_the_bits_of_a_fresh_one(fault):
    arguments, kind, _ = FAULTS[fault]
    model = arguments[0]
    if fault in ("half model", "input of bytes to a convolution"):
        pytest.skip("the good data below is not for this model")
    good = {
        embedding: [(LABELS.reshape(4, 4), LABELS[:4])],
        one_output: [(X, TARGETS[:, :1])],
    }.get(model, [(X, LABELS)])
    loss_func = {one_output: mse_loss, TwoOutputs: of_first_output}.get(model, cross_entropy)
    learn, fresh = learner(*arguments), learner(model, good[0], loss_func)
    with pytest.raises(kind):
        learn.fit(1)
    assert all(p.grad is None for p in learn.model.parameters())
    assert learn.batch is learn.xb is learn.pred is learn.loss_grad is None
    assert learn.total_updates == 0
    learn.dls.train, learn.loss_func = good, loss_func
    learn.total_epochs = 0  # the epoch that failed has used its order of the data
    if model is normed:  # its statistics have seen nothing: batch norm failed before
        assert learn.model[1].num_batches_tracked <= 1
        learn.model[1].reset_running_stats()
    for each in (learn, fresh):
        torch.manual_seed(1)
        each.fit(2, lr=0.01)
    assert same(parameters(learn), parameters(fresh))
    assert not same(parameters(fresh), parameters(learner(model, good[0], loss_func)))


# What is known before the first batch -----------------------------------------------------


def test_a_model_whose_parameters_were_all_replaced_is_refused():
    learn = toy_learner()
    learn.model[0], learn.model[2] = nn.Linear(4, 8), nn.Linear(8, 1)
    with pytest.raises(ValueError, match=r"not hold '0.weight', .* 1 more: nothing would train"):
        learn.fit(1)


def test_a_layer_that_the_optimizer_does_not_hold_is_warned_of(caplog):
    learn = toy_learner(n_batches=2)
    learn.model[2] = nn.Linear(8, 1)
    before = learn.model[2].weight.clone()
    learn.fit(1)
    assert caplog.messages == [
        "the optimizer does not hold '2.weight', '2.bias', which will not train: make a new "
        "Learner after replacing parts of a model, or freeze them"
    ]
    assert torch.equal(learn.model[2].weight, before)
    caplog.clear()
    learn.model[2].requires_grad_(False)
    learn.fit(1)
    assert caplog.messages == []


@pytest.mark.parametrize("kind", ["TensorLoader", "DataLoader"])
@pytest.mark.parametrize(
    ("samples", "drop_last", "warned"),
    [(9, False, True), (9, True, False), (8, False, False), (10, False, False)],
)
def test_a_last_batch_of_one_sample_is_warned_of_before_batch_norm_fails_on_it(
    kind, samples, drop_last, warned, caplog
):
    tensors = X[:samples], LABELS[:samples]
    options = {"batch_size": 4, "drop_last": drop_last}
    if kind == "TensorLoader":
        loader = TensorLoader(*tensors, **options)
    else:
        data = torch.utils.data.TensorDataset(*tensors)
        loader = torch.utils.data.DataLoader(data, shuffle=True, **options)
    learn = learner(normed, (X, LABELS))
    learn.dls.train = loader
    if warned:
        with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
            learn.fit(1)
        assert "drop_last=True" in said(caught.value)
    else:
        learn.fit(1)
    assert len(caplog.messages) == warned
    assert all(
        "one sample (of 9, by 4), with which the batch norm '1'" in m for m in caplog.messages
    )


# Shapes that broadcast --------------------------------------------------------------------


def test_a_target_that_broadcasts_is_warned_of_once(caplog):
    learn = learner(one_output, (X, X.sum(1)), squared)
    learn.fit(3)
    assert caplog.messages == [
        "pred (16, 1) float32 and target (16,) float32 broadcast to (16, 16): each sample would "
        "be compared with every other; give both one shape, with unsqueeze or squeeze"
    ]


def test_a_target_that_broadcasts_is_among_what_check_finds():
    (found,) = learner(one_output, (X, X.sum(1)), squared).check().findings
    assert "broadcast to (16, 16)" in found


@pytest.mark.parametrize(
    ("pred", "target", "wrong"),
    [
        ((16, 1), (16,), True),
        ((16,), (16, 1), True),
        ((16, 1, 5), (16, 5), True),
        ((16, 1), (16, 1), False),
        ((16, 3), (16,), False),  # class labels
        ((3, 3), (3,), False),  # as many samples as classes
        ((16, 3), (16, 1), False),  # quantiles of one target
        ((16, 3, 8), (16, 8), False),  # labels of each place
        ((16, 3), (), False),
        ((1, 1), (1,), False),
    ],
)
def test_only_shapes_that_compare_each_with_each_are_told(pred, target, wrong):
    found = accidental_broadcast(torch.zeros(pred), (torch.zeros(target),))
    assert (found is not None) == wrong


@pytest.mark.parametrize("targets", [(), ("text",), (torch.zeros(3), torch.zeros(3, 1))])
def test_what_is_no_single_tensor_is_never_told(targets):
    assert accidental_broadcast(torch.zeros(3, 1), targets) is None


# Memory -----------------------------------------------------------------------------------


CPU_ALLOCATOR = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(CPU_ALLOCATOR),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("place", ["model", "loss", "after_backward"])
def test_out_of_memory_says_what_to_lower_and_keeps_nothing_alive(error, place):
    alive, kept = [], []

    def fail(*_):
        if alive:
            raise error

    class Model(nn.Linear):
        def forward(self, x):
            activation = super().forward(x)
            if len(x) == 16:
                alive.append(weakref.ref(activation))
            if place == "model":
                fail()
            return activation * 1

    def loss_func(pred, yb):
        if place == "loss":
            fail()
        return cross_entropy(pred, yb)

    learn = learner(lambda: Model(4, 3), (X, LABELS), loss_func)
    cbs = [Callback(after_backward=fail)] if place == "after_backward" else []
    with pytest.raises(type(error)) as caught:
        learn.fit(1, cbs=cbs)
    kept.append(caught.value)  # as a notebook does
    gc.collect()
    assert alive[0]() is None
    assert kept == [error]
    assert "out of memory with the input (16, 4) float32; lower the batch size" in said(error)
    assert "the model got" not in said(error)
    alive.clear()
    learn.dls.train = [(X[:8], LABELS[:8]), (X[8:], LABELS[8:])]
    learn.fit(1)
    assert learn.total_updates == 2
    del error.__notes__


def test_another_error_keeps_the_variables_of_its_frames():
    learn = learner(linear, (torch.ones(16, 5), LABELS))
    with pytest.raises(RuntimeError) as caught:
        learn.fit(1)
    frames, here = [], caught.value.__traceback__
    while here is not None:
        frames.append(here.tb_frame)
        here = here.tb_next
    assert any("xb" in frame.f_locals for frame in frames)
    assert "lower the batch size" not in said(caught.value)


# Words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, 3), "(2, 3) float32"),
        ((), "tuple of ()"),
        ({"a": torch.zeros(1), "b": None}, "dict of {a: (1,) float32, b: NoneType}"),
        ([1] * 9, "list of (int, int, int, ... 9 parts)"),
        (np.zeros(2), "ndarray"),
    ],
)
def test_a_value_is_described_by_its_shape_or_type(value, words):
    assert describe(value) == words
