import re

import pytest
from torch import nn

from onecycle.parallel.blocks import blocks_of
from onecycle.testing import toy_learner


def names(model):
    wanted = {id(block) for block in blocks_of(model)}
    return [name for name, module in model.named_modules() if id(module) in wanted]


class Texts(nn.Module):
    """An embedding, equal layers in a list, a small norm and a head."""

    def __init__(self, tied):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight


LAYERS = [f"layers.{i}" for i in range(3)]


def test_the_layers_of_a_list_are_blocks_and_what_is_small_is_not():
    assert names(Texts(tied=False)) == ["embed", *LAYERS, "head"]


def test_what_shares_a_weight_is_no_block():
    assert names(Texts(tied=True)) == LAYERS


def test_a_layer_that_is_in_two_places_is_no_block():
    layer = nn.Linear(4, 4)
    assert names(nn.Sequential(layer, nn.Linear(4, 4), layer)) == ["1"]


def test_the_largest_children_are_blocks_until_little_is_left():
    sizes = (90, 6, 3, 1)
    model = nn.Sequential(*(nn.Linear(1, n, bias=False) for n in sizes))
    assert names(model) == ["0", "1"]


def test_a_model_without_children_has_none():
    assert names(nn.Linear(3, 3)) == []


class Inner(nn.Module):
    """Has most of the parameters, in layers that lie a level deeper than the model's children."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 8), nn.LayerNorm(8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))


def language_model(tied):
    model = nn.Module()
    model.inner, model.head = Inner(), nn.Linear(8, 50, bias=False)
    if tied:
        model.head.weight = model.inner.embed.weight
    return model


INNER = [f"inner.{layer}" for layer in LAYERS]


def test_a_child_with_most_of_the_parameters_is_looked_into():
    assert names(language_model(tied=False)) == ["inner.embed", *INNER, "head"]


def test_a_child_that_shares_a_weight_is_looked_into():
    assert names(language_model(tied=True)) == ["inner.norm", *INNER]


def test_a_large_child_without_a_container_stays_whole():
    model = nn.Module()
    model.attention, model.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 2)
    assert names(model) == ["attention", "head"]


def test_blocks_that_are_named_are_those_and_no_others():
    model = language_model(tied=True)
    found = blocks_of(model, ["inner.layers.[02]", "inner.norm"])
    assert found == [model.inner.norm, model.inner.layers[0], model.inner.layers[2]]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["inner.layer.*"], "no module of the model is called 'inner.layer.*'; it has inner, "),
        (["inner", "inner.layers.*"], "'inner.layers.0' lies in the block 'inner'"),
        (["inner.layers"], "a ModuleList, which is never called: name its layers"),
        (["inner.embed"], "'inner.embed' shares a weight with what is not in it"),
    ],
)
def test_a_name_that_can_be_no_block_is_refused(blocks, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        blocks_of(language_model(tied=True), blocks)


def test_wrong_blocks_are_refused_in_one_process_too():
    with pytest.raises(ValueError, match=r"no module of the model is called 'layers\.\*'"):
        toy_learner(parallel="fsdp", blocks=["layers.*"])
    with pytest.raises(ValueError, match="leave blocks= out, or give both"):
        toy_learner(blocks=["0"])
    with pytest.raises(TypeError, match="blocks must be a list"):
        toy_learner(parallel="fsdp", blocks="0")


def test_in_one_process_named_blocks_change_nothing():
    one, other = toy_learner(parallel="fsdp", blocks=["0"]), toy_learner()
    for learn in (one, other):
        learn.fit(1)
    assert one.validate() == other.validate()
