from torch import nn

from onecycle.parallel.blocks import blocks_of


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
