"""An ONNX file says what the model says; its packages come with `pip install -e '.[onnx]'`."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from onecycle import DataLoaders, Learner, TensorLoader, load_predictor
from onecycle.errors import CheckpointError
from onecycle.training import onnx_files
from onecycle.vision import digits, digits_cnn

pytestmark = pytest.mark.slow


@pytest.fixture
def runtime():
    pytest.importorskip("onnx", reason="needs onnx")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    return pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def said(runtime, path, *inputs):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    feed = dict(zip(names, (each.numpy() for each in inputs), strict=True))
    return session.run(None, feed), session.get_modelmeta().custom_metadata_map


def test_the_file_says_what_the_model_says_of_batches_of_any_size(runtime, tmp_path):
    torch.manual_seed(0)
    learn = Learner(digits(), digits_cnn(), F.cross_entropy, device="cpu", seed=0)
    learn.fit(1)
    rng, was_training = torch.get_rng_state(), learn.model.training
    learn.export(tmp_path / "digits.onnx")
    assert torch.equal(torch.get_rng_state(), rng)
    assert learn.model.training == was_training
    assert [file.name for file in tmp_path.iterdir()] == ["digits.onnx"]
    for size in (1, 7, 64):
        x = torch.randn(size, 1, 8, 8)
        (found,), words = said(runtime, tmp_path / "digits.onnx", x)
        with torch.no_grad():
            own = learn.model.eval()(x).numpy()
        assert np.abs(found - own).max() < 1e-5 * max(1, np.abs(own).max())
    assert json.loads(words["classes"]) == list("0123456789")
    assert json.loads(words["reads"]) == "softmax"
    with pytest.raises(CheckpointError):
        load_predictor(tmp_path / "digits.onnx")


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, a, b):
        return self.layer(a) + b, a.sum(1)


def loaders(*tensors):
    loader = TensorLoader(*tensors, batch_size=4)
    return DataLoaders(loader, loader)


def test_several_inputs_and_outputs_keep_their_order(runtime, tmp_path):
    dls = loaders(torch.randn(8, 3), torch.randn(8, 2), torch.zeros(8))
    learn = Learner(dls, TwoInputs(), lambda pred, y: pred[0].mean(), device="cpu")
    learn.export(tmp_path / "two.ONNX")
    a, b = torch.randn(5, 3), torch.randn(5, 2)
    found, _ = said(runtime, tmp_path / "two.ONNX", a, b)
    with torch.no_grad():
        own = learn.model.eval()(a, b)
    for mine, its in zip(own, found, strict=True):
        assert np.allclose(mine.numpy(), its, atol=1e-6)


class ByValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x) if float(x.sum()) > 0 else -self.layer(x)


def test_what_cannot_be_written_or_gives_other_numbers_is_refused_and_leaves_no_file(
    runtime, tmp_path, monkeypatch
):
    dls = loaders(torch.randn(8, 3), torch.zeros(8, 1))
    learn = Learner(dls, ByValue(), F.mse_loss, device="cpu")
    with pytest.raises(ValueError, match=r"torch\.onnx cannot write this model"):
        learn.export(tmp_path / "model.onnx")
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, device="cpu")
    monkeypatch.setattr(onnx_files, "_CLOSE", -1.0)
    with pytest.raises(ValueError, match="other numbers than the model"):
        learn.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class AnyInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, first, *more):
        return self.scale * sum(more, first).sum(1) / 0  # infinite, and NaN where the sum is 0


def test_inputs_of_any_number_and_what_is_not_finite_are_compared_too(runtime, tmp_path):
    x = torch.randn(8, 3)
    x[0] = 0
    dls = loaders(x, x, x, torch.zeros(8))
    learn = Learner(dls, AnyInputs(), lambda pred, y: pred.mean(), device="cpu")
    learn.export(tmp_path / "any.onnx")
    (found,), _ = said(runtime, tmp_path / "any.onnx", x, x, x)
    assert np.array_equal(found, learn.model(x, x, x).detach().numpy(), equal_nan=True)
    learn.export(tmp_path / "any.onecycle")
    assert np.array_equal(load_predictor(tmp_path / "any.onecycle")((x, x, x)), found, True)


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x + torch.rand(len(x), 1))


def test_a_model_that_draws_is_refused_as_giving_other_numbers(runtime, tmp_path):
    learn = Learner(loaders(torch.randn(8, 3), torch.zeros(8, 1)), Drawing(), F.mse_loss)
    with pytest.raises(ValueError, match="other numbers than the model"):
        learn.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_its_packages_the_command_is_said(name, tmp_path, monkeypatch):
    for each in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, each, sys)
    monkeypatch.setitem(sys.modules, name, None)
    dls = loaders(torch.randn(8, 3), torch.zeros(8, 1))
    learn = Learner(dls, nn.Linear(3, 1), F.mse_loss, device="cpu")
    with pytest.raises(ImportError, match=rf"needs {name}, .*pip install 'onecycle\[onnx\]'"):
        learn.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
