"""A learner of a batch norm and a dropout, whose last batch is smaller."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from onecycle import Learner, TensorLoader


class Net(nn.Module):
    """Behaves otherwise in training: a batch norm and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


X = torch.randn(44, 4, generator=torch.Generator().manual_seed(0))  # 44: the last batch is smaller
Y = X.sum(1, keepdim=True)


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(X[i : i + 8], Y[i : i + 8]) for i in range(0, 44, 8)]


def learner(model: nn.Module | None = None, **options: Any) -> Learner:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "dls": (TensorLoader(X, Y, batch_size=8, shuffle=True), batches()),
        "model": Net() if model is None else model,
        "loss_func": mse_loss,
        "lr": 0.01,
        "device": "cpu",
        "seed": 0,
    }
    return Learner(**(given | options))


def halves(model: nn.Module) -> list[list[nn.Parameter]]:
    parameters = list(model.parameters())
    return [parameters[:2], parameters[2:]]


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return [(key, plain(part)) for key, part in value.items()]
    return [plain(part) for part in value] if isinstance(value, list | tuple) else repr(value)
