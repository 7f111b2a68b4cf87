"""`Learner.export` writes what `load_predictor` predicts with: the same bits, and no code."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from onecycle import CheckpointError, DataLoaders, Learner, TensorLoader, load_predictor
from onecycle.callbacks import MixedPrecision
from onecycle.checkpoints.sealed import read_sealed, write_sealed
from onecycle.testing import toy_learner
from onecycle.vision import digits_cnn, image_folder


def image_tree(root, n=3, side=12):
    rng = np.random.default_rng(0)
    for part in ("train", "valid"):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (side, side + 5, 3), np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def image_learner(root, **options):
    torch.manual_seed(0)
    dls = image_folder(root, size=8, batch_size=4)
    model = digits_cnn(n_classes=2, in_channels=3)
    return Learner(dls, model, F.cross_entropy, device="cpu", seed=0, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = image_tree(tmp_path_factory.mktemp("images"))
    learn = image_learner(root)
    with learn.no_bar():
        learn.fit_one_cycle(1, 0.01)
    path = root / "model.onecycle"
    learn.export(path)
    return learn, path


def test_predictions_are_those_of_the_learner_to_the_bit(exported):
    learn, path = exported
    predictor = load_predictor(path)
    with torch.no_grad():
        found = torch.cat([predictor(x) for x, _ in learn.dls.valid])
    assert torch.equal(found, learn.get_preds().preds)
    assert repr(predictor) == "Predictor(images of 8x8, 2 classes, reads='softmax', device='cpu')"


def test_image_files_are_seen_as_the_training_data_were(exported):
    learn, path = exported
    files = [name for name, _ in image_files(path.parent / "valid")]
    found = load_predictor(path).predict_images(files, batch_size=4)
    expected = learn.get_preds().preds.softmax(1)
    for row, each in zip(expected.tolist(), found, strict=True):
        assert each == dict(zip(("cat", "dog"), row, strict=True))
        assert list(each.values()) == sorted(each.values(), reverse=True)


def image_files(folder):
    return [(file, file.parent.name) for file in sorted(folder.rglob("*.png"))]


def test_export_leaves_the_learner_as_it_was(exported, tmp_path):
    learn, _ = exported
    learn.model.train()
    state = {name: value.clone() for name, value in learn.model.state_dict().items()}
    rng = torch.get_rng_state()
    learn.export(tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), rng)
    assert learn.model.training
    assert all(torch.equal(value, state[name]) for name, value in learn.model.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(2, 3, 9, 8), r"expected a tensor of shape \(batch, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "and torch.float32"),
        (torch.zeros(0, 3, 8, 8), "expected a tensor of shape"),
        ((torch.zeros(2, 3, 8, 8),) * 2, "expected 1 inputs; got 2"),
        ("text", "got 'text'|got a str|got str"),
    ],
)
def test_a_batch_of_another_kind_is_refused(exported, batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_predictor(exported[1])(batch)


READS = [
    (F.cross_entropy, "softmax"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), "softmax"),
    (F.binary_cross_entropy_with_logits, "sigmoid"),
    (nn.NLLLoss(), "exp"),
    (F.mse_loss, "values"),
    (lambda pred, y: (pred - y).square().mean(), "values"),
]


class Branching(nn.Module):
    """Its course depends on values: torch.export finds no one list of operators."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


@pytest.fixture
def weights(tmp_path, said):
    torch.manual_seed(0)
    loader = TensorLoader(torch.randn(8, 4), torch.zeros(8, 1), batch_size=4)
    learn = Learner((loader, loader), Branching(), F.mse_loss, device="cpu")
    learn.export(tmp_path / "weights")
    return learn, tmp_path / "weights", said()


def test_where_torch_export_does_not_work_the_weights_are_kept_and_it_is_said(weights):
    learn, path, messages = weights
    assert "holds the weights alone" in messages[-1]
    with pytest.raises(ValueError, match=r"load_predictor\(path, model=\.\.\.\)"):
        load_predictor(path)
    torch.manual_seed(1)
    model = Branching()
    predictor = load_predictor(path, model=model)
    assert not model.training
    found = torch.cat([predictor(x) for x, _ in learn.dls.valid])
    assert torch.equal(found, learn.get_preds().preds)


def test_weights_of_another_model_are_refused(weights):
    with pytest.raises(CheckpointError, match="holds another model"):
        load_predictor(weights[1], model=nn.Linear(3, 1))


@pytest.mark.parametrize(("loss_func", "reads"), READS)
def test_how_predictions_read_follows_from_the_loss(loss_func, reads, tmp_path):
    x = torch.randn(8, 4)
    is_nll = isinstance(loss_func, nn.NLLLoss)
    y = torch.zeros(8, dtype=torch.int64) if is_nll else torch.zeros(8, 1)
    loader = TensorLoader(x, y, batch_size=4)
    learn = Learner((loader, None), Branching(), loss_func, device="cpu", check=False)
    learn.export(tmp_path / "file")
    predictor = load_predictor(tmp_path / "file", model=learn.model)
    assert predictor.reads == reads
    pred = learn.get_preds(loader).preds[:4]
    known = {"softmax": pred.softmax(1), "sigmoid": pred.sigmoid(), "exp": pred.exp()}
    assert torch.equal(predictor.probabilities(x[:4]), known.get(reads, pred))
    learn.export(tmp_path / "file", reads="sigmoid")
    assert load_predictor(tmp_path / "file", model=learn.model).reads == "sigmoid"


def test_a_wrong_word_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="reads must be one of"):
        toy_learner().export(tmp_path / "file", reads="cat")
    assert not list(tmp_path.iterdir())


def test_callbacks_that_change_predictions_are_told_of(tmp_path, said):
    learn = toy_learner(cbs=[MixedPrecision("bf16")])
    learn.export(tmp_path / "file")
    assert any("gives other numbers than learn.get_preds" in message for message in said())


def test_without_image_loaders_files_are_refused(tmp_path):
    toy_learner().export(tmp_path / "file")
    with pytest.raises(ValueError, match="does not say what was done to images"):
        load_predictor(tmp_path / "file").predict_images([])


def test_a_file_that_is_no_image_is_named(exported, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    predictor = load_predictor(exported[1])
    with pytest.raises(ValueError, match=r"text\.png holds no image"):
        predictor.predict_images([tmp_path / "text.png"])
    with pytest.raises(FileNotFoundError):
        predictor.predict_images([tmp_path / "none.png"])
    with pytest.raises(TypeError, match="images must be a list of files"):
        predictor.predict_images("one.png")


# Files that mean harm -------------------------------------------------------------------------


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_runs_none(exported, tmp_path):
    made = tmp_path / "made"
    pickle.loads(pickle.dumps(Runs(made)))
    made.rmdir()  # the control: what follows could make it
    torch.save({"predictor": 1, "graph": Runs(made)}, tmp_path / "torch.save")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Runs(made)))
    with zipfile.ZipFile(exported[1]) as source, zipfile.ZipFile(tmp_path / "zip", "w") as target:
        for name in source.namelist():
            harm = name.endswith("data.pkl")
            target.writestr(name, pickle.dumps(Runs(made)) if harm else source.read(name))
    for name in ("torch.save", "pickle", "zip"):
        with pytest.raises(CheckpointError):
            load_predictor(tmp_path / name)
        assert not made.exists()


def changed_file(source, target, change):
    """Write the file anew, with a checksum that is right."""
    state = read_sealed(source, lambda state: None)
    change(state)
    write_sealed(target, state)
    return target


def harm(name, *arguments):
    def change(state):
        state["graph"]["nodes"].insert(0, ["harm", name, [*arguments], {"dict": []}])

    return change


CHANGES = {
    "opens a file": harm("aten.from_file.default", "/tmp/file", True, 10),
    "calls Python": harm("os.system", "true"),
    "calls torch": harm("torch.hub.load", "a/b", "c"),
    "reads any memory": harm("aten.as_strided.default", {"node": "x"}, [100], [1], 0),
    "believes its statistics": harm("aten._native_batch_norm_legit_no_training.default"),
    "believes its mode": harm("aten.grid_sampler_2d.default"),
    "of packed sequences": harm("aten.lstm.data"),
    "no graph": lambda state: state["graph"].update(nodes=3),
    "no inputs": lambda state: state["graph"].pop("inputs"),
    "a type that is none": lambda state: state["graph"].update(inputs=[["load", [3]]]),
    "more inputs": lambda state: state["graph"]["inputs"].append(["float32", [3]]),
    "another version": lambda state: state.update(predictor=2),
    "no version": lambda state: state.pop("predictor"),
    "no weights": lambda state: state.update(state=None),
    "another reading": lambda state: state.update(reads="eval"),
    "classes that are none": lambda state: state.update(classes=[1, 2]),
    "images that are none": lambda state: state.update(image={"size": "8"}),
    "weights that are not there": lambda state: state["state"].clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_made_to_do_harm_is_refused_with_its_name(exported, tmp_path, change):
    path = changed_file(exported[1], tmp_path / "harmful", change)
    with pytest.raises(CheckpointError, match="harmful"):
        load_predictor(path)


def calls(name, arguments, tensors):
    """Let a file call one operator on tensors of its own."""

    def nodes_of(value):
        if isinstance(value, list):
            return [nodes_of(part) for part in value]
        return {"node": value} if value in tensors else value

    def change(state):
        state["constants"].update(tensors)
        state["graph"]["held"] += [[key, "constant", key] for key in tensors]
        state["graph"]["nodes"] = [["harm", name, nodes_of(arguments), {"dict": []}]]
        state["graph"]["output"] = {"node": "harm"}

    return change


LSTM = {
    **{"x": torch.ones(2, 3, 5), "h": torch.ones(1, 2, 7), "i": torch.ones(28, 5)},
    **{"u": torch.ones(28, 7), "b": torch.ones(28)},
}
CALL = ["x", ["h", "h"], ["i", "u", "b", "b"], True, 1, 0.0, False, False, True]
SHORT = {
    f"a short {key} of an LSTM": calls("aten.lstm.input", CALL, {**LSTM, key: LSTM[key][..., :1]})
    for key in ("h", "i", "u", "b")
} | {
    "offsets of a bag": calls(
        "aten.embedding_bag.default",
        ["w", "n", "o"],
        {
            "w": torch.ones(2, 2),
            "n": torch.zeros(9, dtype=torch.long),
            "o": torch.tensor([0, -5, 3]),
        },
    ),
    "fewer values than keys": calls(
        "aten.scaled_dot_product_attention.default",
        ["q", "k", "v"],
        {"q": torch.ones(1, 2, 4, 8), "k": torch.ones(1, 2, 9, 8), "v": torch.ones(1, 2, 3, 8)},
    ),
}


def test_an_operator_that_is_given_what_fits_runs(exported, tmp_path):
    path = changed_file(exported[1], tmp_path / "fits", calls("aten.lstm.input", CALL, LSTM))
    assert load_predictor(path)(torch.ones(2, 3, 8, 8))[0].shape == (2, 3, 7)


@pytest.mark.parametrize("change", SHORT.values(), ids=SHORT)
def test_tensors_that_would_let_a_kernel_leave_its_memory_are_refused(exported, tmp_path, change):
    predictor = load_predictor(changed_file(exported[1], tmp_path / "harmful", change))
    with pytest.raises(ValueError, match=r"do not fit|beyond its indices"):
        predictor(torch.ones(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        ({"path": 3}, TypeError, "path must be a path"),
        ({"path": ""}, ValueError, "path must be a path"),
        ({"model": nn.Linear}, TypeError, "model must be a Module"),
        ({"model": "resnet"}, TypeError, "model must be a Module"),
        ({"path": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(exported, given, kind, sentence):
    with pytest.raises(kind, match=sentence):
        load_predictor(**({"path": exported[1]} | given))


def test_one_flipped_bit_is_noticed(exported, tmp_path):
    content = bytearray(exported[1].read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_predictor(tmp_path / "flipped")


def test_other_files_are_told_apart(exported, tmp_path):
    learn, path = exported
    learn.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"was not written by Learner\.export"):
        load_predictor(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"was not written by Learner\.save"):
        learn.load(path)


IN_NEW_PROCESS = """
import json, sys, torch
from onecycle import load_predictor
torch.set_num_threads(1)
path, inputs, files = sys.argv[1], sys.argv[2], sys.argv[3:]
load_predictor(path).predict_images(files)  # whatever is imported by the first call
events = []
sys.addaudithook(lambda event, args: events.append([event, str(args[:1])]))
predictor = load_predictor(path)
found = [row for x in torch.load(inputs) for row in predictor(x).tolist()]
heard = [each for each in events if each[0] in
         ("exec", "compile", "import", "os.system", "subprocess.Popen", "socket.connect", "open")]
print(json.dumps([found, predictor.predict_images(files, 4), heard]))
"""


@pytest.mark.slow
def test_a_new_process_predicts_the_same_bits_and_runs_nothing_of_the_file(exported, tmp_path):
    learn, path = exported
    torch.save([x for x, _ in learn.dls.valid], tmp_path / "x")
    files = [str(file) for file, _ in image_files(path.parent / "valid")]
    command = [sys.executable, "-c", IN_NEW_PROCESS, str(path), str(tmp_path / "x"), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=os.getcwd())
    found, images, heard = json.loads(done.stdout)
    expected = learn.get_preds().preds
    assert torch.equal(torch.tensor(found), expected)
    shown = [dict(zip(("cat", "dog"), row, strict=True)) for row in expected.softmax(1).tolist()]
    assert images == shown
    allowed = {str(path), str(tmp_path / "x"), *files}
    assert all(event == "open" and any(file in name for file in allowed) for event, name in heard)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.layer = kind(5, 7, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(14, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.first, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layers(self.first(x)).mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "attention"])
def test_recurrent_nets_and_attention_are_exported_as_their_operators(name, tmp_path, said):
    torch.manual_seed(0)
    kind = None if name == "attention" else getattr(nn, name)
    model = Attention() if kind is None else Recurrent(kind, num_layers=2)
    loader = TensorLoader(torch.randn(9, 4, 5), torch.arange(9) % 3, batch_size=4)
    learn = Learner((loader, loader), model, F.cross_entropy, device="cpu", check=False)
    learn.export(tmp_path / "model")
    predictor = load_predictor(tmp_path / "model")
    found, own = torch.cat([predictor(x) for x, _ in loader]), learn.get_preds().preds
    if kind is None:  # of which torch has fused kernels too
        assert any("may differ by rounding" in line for line in said())
        torch.backends.mha.set_fastpath_enabled(False)
        slow = learn.get_preds().preds
        torch.backends.mha.set_fastpath_enabled(True)
        torch.testing.assert_close(slow, own)
        own = slow
    assert torch.equal(found, own)


@pytest.mark.slow
def test_a_model_of_torchvision_is_exported_as_its_operators(tmp_path):
    import torchvision

    torch.manual_seed(0)
    x = torch.randn(6, 3, 32, 32)
    loader = TensorLoader(x, torch.arange(6) % 2, batch_size=4)
    for name in ("resnet18", "mobilenet_v3_small", "convnext_tiny"):
        model = torchvision.models.get_model(name, num_classes=2)
        dls = DataLoaders(loader, loader, classes=["a", "b"])
        learn = Learner(dls, model, F.cross_entropy, device="cpu")
        learn.export(tmp_path / name)
        predictor = load_predictor(tmp_path / name)
        found = torch.cat([predictor(x) for x, _ in loader])
        assert torch.equal(found, learn.get_preds().preds)
        assert predictor.classes == ["a", "b"]
