import torch

from onecycle.vision.images import reflected


def test_reflection_is_that_of_torch() -> None:
    x = torch.arange(5.0).view(1, 1, 5)
    padded = torch.nn.functional.pad(x, (4, 4), mode="reflect").flatten()
    assert torch.equal(x.flatten()[reflected(torch.arange(-4, 9), 5)], padded)
