"""A model as plain values computes the same bits, and can do nothing but compute."""

import copy

import pytest
import torch
from torch import nn

from onecycle.checkpoints.graphs import Graph, plain_graph

CPU = torch.device("cpu")


class Everything(nn.Module):
    """Takes several inputs; has a constant, sizes of the batch, slices, in-place steps, a dict."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.scale = torch.tensor([1.0, 2.0, 3.0])

    def forward(self, x, y):
        h = self.norm(self.linear(x)).relu_()
        h = h.view(x.shape[0], 2, 3) * self.scale
        first, rest = h[:, 0], h[:, 1:].flatten(1)
        mask = torch.zeros(2 * x.size(0), 3, dtype=torch.float32, device=x.device)
        return {"sum": (first + y.softmax(-1) + mask[: x.shape[0]], [rest]), "y": y.to(torch.int32)}


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    model = Everything().eval()
    batch = torch.export.Dim("batch")
    inputs = torch.randn(3, 4), torch.randn(3, 3)
    shapes = ({0: batch}, {0: batch})
    plain, constants = plain_graph(torch.export.export(model, inputs, dynamic_shapes=shapes))
    return model, plain, {"state": model.state_dict(), "constant": constants}


def test_the_graph_gives_the_bits_and_the_form_of_the_model(exported):
    model, plain, tensors = exported
    graph = Graph(plain, tensors, CPU)
    for n in (1, 2, 7):
        inputs = torch.randn(n, 4), torch.randn(n, 3)
        with torch.no_grad():
            found, expected = graph(inputs), model(*inputs)
        assert found.keys() == expected.keys()
        assert isinstance(found["sum"], tuple)
        assert torch.equal(found["sum"][0], expected["sum"][0])
        assert torch.equal(found["sum"][1][0], expected["sum"][1][0])
        assert torch.equal(found["y"], expected["y"])


def test_it_is_plain_values(exported):
    def kinds(value):
        if isinstance(value, (list, dict)):
            parts = value.values() if isinstance(value, dict) else value
            return {type(value)}.union(*map(kinds, parts))
        return {type(value)}

    assert kinds(exported[1]) <= {dict, list, str, int, float, bool, type(None)}


OUTSIDE = [
    "aten.from_file.default",  # opens any file
    "aten.as_strided.default",
    "aten.as_strided_.default",
    "aten.empty.memory_format",
    "aten.set_.source_Storage",
    "aten.resize_.default",
    "aten._print.default",
    "aten.save.default",
    "aten.linear.__class__",
    "aten.linear.default.__call__",
    "aten.linear",
    "aten.__class__.default",
    "aten._parse_name.default",
    "operator.attrgetter",
    "operator.methodcaller",
    "operator.setitem",
    "operator.pow",
    "operator.call",
    "os.system",
    "builtins.eval",
    "torch.load",
    "torch.hub.load",
    "prims.device_put.default",
    "torchvision.nms.default",
    "",
    None,
    7,
    ["aten.linear.default"],
]


@pytest.mark.parametrize("name", OUTSIDE, ids=str)
def test_what_is_no_known_operator_is_refused_before_anything_runs(exported, name):
    plain = copy.deepcopy(exported[1])
    plain["nodes"].append(["mine", name, ["/tmp/file"], {"dict": []}])
    with pytest.raises(ValueError, match="none of the operators that are known"):
        Graph(plain, exported[2], CPU)


ARGUMENTS = [
    {"node": "nobody"},
    {"node": "mine"},
    {"node": ["x"]},
    {"dtype": "load"},
    {"dtype": "device"},
    {"layout": "float32"},
    {"memory_format": "__builtins__"},
    {"call": "print"},
    {"dict": [["a"]]},
    {"dict": [[["a"], 1]]},
    {"tuple": 3},
    {"dtype": "float32", "node": "x"},
    {1, 2},
    b"bytes",
    torch.zeros(1),
    print,
]


@pytest.mark.parametrize("argument", ARGUMENTS, ids=str)
def test_arguments_of_another_kind_are_refused(exported, argument):
    plain = copy.deepcopy(exported[1])
    plain["nodes"].append(["mine", "aten.relu.default", [argument], {"dict": []}])
    with pytest.raises(ValueError, match=r"^it has"):
        Graph(plain, exported[2], CPU)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.update(nodes=None),
        lambda plain: plain.update(output={"node": "nobody"}),
        lambda plain: plain["nodes"].append(["short"]),
        lambda plain: plain["nodes"].append(plain["nodes"][0]),
        lambda plain: plain["held"].append(["more", "state", "nobody"]),
        lambda plain: plain["held"].append(["more", "file", "/etc/passwd"]),
        lambda plain: plain.pop("held"),
    ],
)
def test_a_graph_that_is_not_whole_is_refused(exported, change):
    plain = copy.deepcopy(exported[1])
    change(plain)
    with pytest.raises(ValueError, match=r"^it|^its"):
        Graph(plain, exported[2], CPU)


class Branches(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def test_what_cannot_be_plain_is_refused_when_it_is_written():
    exported = torch.export.export(Branches(), (torch.ones(3),))
    with pytest.raises(ValueError, match=r"^it (has|calls)"):
        plain_graph(exported)
