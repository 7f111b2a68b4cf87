import pytest
import torch
from torch import nn

from onecycle.vision import digits_cnn, lenet, resnet9, resnet56
from onecycle.vision.models import _Block


def n_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "shape", "documented", "by_hand"),
    [
        (lenet, (1, 28, 28), 431_080, 25 * 20 + 20 + 500 * 50 + 50 + 801 * 500 + 501 * 10),
        (digits_cnn, (1, 8, 8), 56_554, 9 * (32 + 32 * 64 + 64 * 64) + 2 * 160 + 650),
        (
            resnet9,
            (3, 32, 32),
            6_573_120,
            9 * (3 * 64 + 64 * 128 + 2 * 128**2 + 128 * 256 + 256 * 512 + 2 * 512**2)
            + 2 * (64 + 3 * 128 + 256 + 3 * 512)
            + 5120,
        ),
        (
            resnet56,
            (3, 32, 32),
            853_018,
            9 * (3 * 16 + 18 * 16**2 + 16 * 32 + 17 * 32**2 + 32 * 64 + 17 * 64**2)
            + 2 * (16 + 18 * (16 + 32 + 64))
            + 650,
        ),
    ],
)
def test_models_have_the_documented_shapes_and_number_of_parameters(
    build, shape, documented, by_hand
):
    model = build()
    assert n_parameters(model) == documented == by_hand
    assert f"{documented:,}" in " ".join(build.__doc__.split())
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 10)
    assert build(n_classes=7).eval()(torch.zeros(1, *shape)).shape == (1, 7)


def test_models_take_other_channels_where_they_say_so():
    assert lenet(in_channels=3)(torch.zeros(1, 3, 28, 28)).shape == (1, 10)
    assert resnet9(in_channels=1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize("w", [1, 12, 16])
def test_width_scales_every_stage_of_resnet9(w):
    convolutions = 9 * w * (3 + w * (2 + 2 * 4 + 8 + 32 + 2 * 64))
    norms = 2 * w * (1 + 3 * 2 + 4 + 3 * 8)
    assert n_parameters(resnet9(width=w)) == convolutions + norms + 10 * 8 * w
    assert resnet9(width=w).eval()(torch.zeros(2, 3, 16, 24)).shape == (2, 10)


@pytest.mark.parametrize(
    ("width", "error"), [(0, ValueError), (-8, ValueError), (7.5, TypeError), ("16", TypeError)]
)
def test_width_that_is_no_number_of_channels_is_refused(width, error):
    with pytest.raises(error, match="width must be"):
        resnet9(width=width)


@pytest.mark.parametrize(
    ("build", "images"),
    [(lenet, (4, 1, 28, 28)), (resnet9, (4, 3, 32, 32)), (resnet56, (4, 3, 32, 32))],
)
def test_models_compute_channels_last_and_the_same_as_otherwise(build, images):
    model, x = build().eval(), torch.randn(images)
    layouts = []
    model[0].register_forward_hook(
        lambda module, args, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last))
    )
    pred = model(x)
    otherwise = model.to(memory_format=torch.contiguous_format)(x)
    assert layouts == [True, False]
    torch.testing.assert_close(pred, otherwise, rtol=1e-4, atol=1e-4)


def test_resnet56_has_56_layers_with_weights():
    layers = [m for m in resnet56().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 56


def test_lenet_starts_as_caffes_xavier_filler_has_it():
    torch.manual_seed(0)
    for layer in lenet():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            bound = (3 / fan_in) ** 0.5
            assert layer.weight.abs().max() <= bound
            assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.1)
            assert not layer.bias.any()


def test_shortcut_of_a_halving_block_subsamples_and_pads_with_zeros():
    block = _Block(2, 4).eval()
    nn.init.zeros_(block.body[-1].weight)  # the last norm: the residual branch becomes 0
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, :2], x[:, :, ::2, ::2])
    assert not out[:, 2:].any()
