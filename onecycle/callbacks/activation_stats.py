"""`ActivationStats`: what comes out of the layers while they learn."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import activation

from onecycle import plots
from onecycle.arguments import check_count, check_list, check_one_of, check_text
from onecycle.core.callback import Callback, Stage
from onecycle.optim.compiled import CompiledSteps
from onecycle.processes import Processes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.core.loop import Loop

log = logging.getLogger("onecycle")

#: What is nearer to 0 than this counts as dead.
NEAR_ZERO = 0.05
#: The bins of the histogram are equal in sign(x) log(1 + |x|), up to this magnitude, which holds
#: whatever is beyond it too.
BINS, FARTHEST = 61, 1000.0
_LIMIT = float(np.log1p(FARTHEST))
#: A histogram of more values would take long, and float32 would not count them.
_MOST = 2**20
#: So many measurements wait on the device before they are read.
_BLOCK = 64


class ActivationStats(Callback):
    """Measure what comes out of layers in training: mean, spread, dead share, histogram.

    A network learns well from the start where the spread of every layer is near 1 and stays there,
    and badly where spreads grow and collapse, or where most of what comes out of a layer is 0.
    What several batches, or several calls of a layer, give to one update is one measurement.
    Values stay on the device and are read in blocks; nothing waits for it in between. Of several
    processes they are over the samples of all.

    Args:
        layers: The names of the layers, as ``model.named_modules()`` has them. By default the
            activation functions of the model that are modules; where there are none, the layers
            that have a weight matrix.
        every: Measure every so many updates of a fit, at least 1.

    Attributes:
        names: The layers that are measured.

    Raises:
        ValueError: Before the first batch, if the model has no such layer, or is compiled.

    Example:
        >>> from onecycle import ActivationStats
        >>> from onecycle.testing import toy_learner
        >>> stats = ActivationStats(every=4)
        >>> toy_learner(n_batches=8).fit(1, cbs=[stats])
        >>> stats.names, stats.updates.tolist(), stats.means.shape
        (['1'], [4, 8], (2, 1))
    """

    stage = Stage.RECORD
    during = "train"

    def __init__(self, layers: Sequence[str] | None = None, *, every: int = 10) -> None:
        self.layers = None if layers is None else check_list("layers", layers, "names")
        for name in self.layers or ():
            check_text("each of layers", name)
        self.every = check_count("every", every)
        self.names: list[str] = []
        self._updates: list[int] = []
        self._read = torch.empty(0)  # of shape (measurements, layers, 3 + BINS)
        self._pending: list[Tensor] = []
        self._calls: dict[int, _Call] = {}
        self._is_due = self._has_warned = False
        self._hooks: list[Any] = []

    def before_fit(self, learn: Loop) -> None:
        """Look for the layers, and hook onto them."""
        if isinstance(learn.make_stepper, CompiledSteps) or hasattr(learn.model, "_orig_mod"):
            raise ValueError("ActivationStats cannot look into a compiled model: train it without")
        modules = dict(learn.model.named_modules())
        unknown = [name for name in self.layers or () if name not in modules]
        names = _default_layers(modules) if self.layers is None else self.layers
        if unknown or not names:
            raise ValueError(
                f"layers: the model has no layer {unknown[0]!r}"
                if unknown
                else "the model has no layer "
                "that could be measured: give layers=, the names of some"
            )
        if names != self.names:
            self.names, self._updates = list(names), []
            self._read, self._pending = torch.empty(0), []
        self._calls, self._is_due, self._has_warned = {}, False, False
        self._hooks = [
            modules[name].register_forward_hook(partial(self._see, i))
            for i, name in enumerate(names)
        ]

    def before_batch(self, learn: Loop) -> None:
        """Look on, if this update is measured."""
        self._is_due = learn.has_samples and (learn.n_updates + 1) % self.every == 0
        if not learn.batches_in_window:
            self._calls = {}

    def _see(self, i: int, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._is_due:
            return
        found = _first_tensor(output)
        if found is not None:
            call = _Call.of(found.detach())
            self._calls[i] = self._calls[i].joined(call) if i in self._calls else call

    def after_pred(self, learn: Loop) -> None:
        """Look away: a backward pass may call layers anew."""
        self._is_due = False

    def after_step(self, learn: Loop) -> None:
        """Keep the measurement of this update."""
        if learn.n_updates % self.every:
            return
        processes = learn.processes
        if processes is not None:
            self._keep(learn, _rows_of_all(self._calls, len(self.names), processes, learn.device))
        elif self._calls:
            self._keep(learn, self._rows())
        elif not self._has_warned:
            self._has_warned = True
            log.warning("ActivationStats: no layer was called in update %d", learn.n_updates)

    def _rows(self) -> Tensor:
        device = next(iter(self._calls.values())).values.device
        nothing = torch.full((3 + BINS,), torch.nan, device=device)
        rows = [
            self._calls[i].row() if i in self._calls else nothing for i in range(len(self.names))
        ]
        return torch.stack([row.to(device) for row in rows])

    def _keep(self, learn: Loop, rows: Tensor) -> None:
        self._pending.append(rows)
        self._updates.append(learn.total_updates)
        self._calls = {}
        if len(self._pending) >= _BLOCK:
            self._drain()

    def cleanup_fit(self, learn: Loop) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._calls, self._is_due = [], {}, False

    def _drain(self) -> None:
        if self._pending:
            new = torch.stack(self._pending).cpu()
            self._read = torch.cat([self._read, new]) if self._read.numel() else new
            self._pending = []

    def _column(self, index: int | slice) -> NDArray[np.float64]:
        self._drain()
        if not self._read.numel():
            raise ValueError("nothing was measured: fit first, with ActivationStats in cbs")
        return self._read[..., index].double().numpy()

    @property
    def updates(self) -> NDArray[np.int64]:
        """The updates over the learner's life that were measured, shape ``(n,)``."""
        return np.array(self._updates, dtype=np.int64)

    @property
    def means(self) -> NDArray[np.float64]:
        """The mean of what each layer gave, shape ``(n, layers)``; NaN where it was not called."""
        return self._column(0)

    @property
    def stds(self) -> NDArray[np.float64]:
        """Its standard deviation, likewise."""
        return self._column(1)

    @property
    def dead(self) -> NDArray[np.float64]:
        """The share of it, in [0, 1], that is nearer to 0 than 0.05, likewise."""
        return self._column(2)

    @property
    def histograms(self) -> NDArray[np.float64]:
        """The share of values in each bin, shape ``(n, layers, bins)``, of at most a million.

        Bins are equal in ``sign(x) log(1 + |x|)`` and reach from -1000 to 1000; what is beyond is
        in the outermost ones.
        """
        return self._column(slice(3, None))

    def plot(self, what: Literal["mean", "std", "dead"] = "std", ax: Axes | None = None) -> Axes:
        """Plot the means, the spreads or the dead shares of all layers against the update.

        Args:
            what: Which of them.
            ax: Where to draw; by default a new figure.
        """
        check_one_of("what", what, ("mean", "std", "dead"))
        values = {"mean": self.means, "std": self.stds, "dead": self.dead}[what]
        words = {
            "mean": "mean of activations",
            "std": "standard deviation of activations",
            "dead": f"share of activations within {NEAR_ZERO:g} of 0",
        }
        labels = [name or "the model" for name in self.names]
        return plots.plot_levels(self.updates, values, labels, ylabel=words[what], ax=ax)

    def plot_histogram(self, layer: str | None = None, ax: Axes | None = None) -> Axes:
        """Draw the histogram of a layer as it changes, a column for each update.

        Args:
            layer: One of ``names``; by default the first.
            ax: Where to draw; by default a new figure.
        """
        histograms = self.histograms
        layer = self.names[0] if layer is None else layer
        check_one_of("layer", layer, tuple(self.names))
        shares = histograms[:, self.names.index(layer)]
        title = f"activations of layer {layer}" if layer else "what the model gives"
        return plots.plot_color_histogram(self.updates, shares, FARTHEST, ylabel=title, ax=ax)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured."""
        self._drain()
        return {"names": list(self.names), "updates": list(self._updates), "read": self._read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.names, self._updates = list(state["names"]), list(state["updates"])
        self._read, self._pending = state["read"], []


class _Call:
    """What a layer gave in a call, or in several: how many values, and what they are.

    Args:
        n: How many.
        values: Mean, variance, how many are dead, and the counts of the bins, on the device.
        n_counted: How many are in the bins.
    """

    def __init__(self, n: int, values: Tensor, n_counted: int) -> None:
        self.n, self.values, self.n_counted = n, values, n_counted

    @classmethod
    def of(cls, output: Tensor) -> _Call:
        x = output.flatten().float()
        var, mean = torch.var_mean(x, correction=0)
        dead = (x.abs() <= NEAR_ZERO).sum()
        # An odd step comes to every channel, of which there often are a power of two.
        few = x[:: (len(x) // _MOST) | 1]
        scaled = (few.sign() * few.abs().log1p()).clamp(-_LIMIT, _LIMIT)
        with _counting():
            counts = scaled.histc(BINS, -_LIMIT, _LIMIT)
        return cls(len(x), torch.cat([torch.stack([mean, var, dead]), counts]), len(few))

    def joined(self, other: _Call) -> _Call:
        """Return both as one."""
        n, share = self.n + other.n, other.n / (self.n + other.n)
        apart = other.values[0] - self.values[0]
        values = self.values + other.values
        values[0] = self.values[0] + share * apart
        values[1] = self.values[1] * (1 - share) + other.values[1] * share
        values[1] += apart.square() * share * (1 - share)
        return _Call(n, values, self.n_counted + other.n_counted)

    def sums(self) -> Tensor:
        """Return what adds up over calls: numbers, values, squares, dead ones, and the bins."""
        n, mean, var = self.n, *self.values[:2].double()
        numbers = torch.tensor([n, self.n_counted], dtype=torch.float64, device=mean.device)
        sums = torch.stack([n * mean, n * (var + mean.square())])
        return torch.cat([numbers, sums, self.values[2:].double()])

    def row(self) -> Tensor:
        """Return mean, standard deviation, dead share and the shares of the bins."""
        values = self.values.clone()
        values[1] = values[1].sqrt()
        values[2] /= self.n
        values[3:] /= self.n_counted
        return values


def _rows_of_all(
    calls: Mapping[int, _Call], n_layers: int, processes: Processes, device: torch.device
) -> Tensor:
    """Return for each layer what `_Call.row` does, of the samples of all processes; or NaN."""
    sums = torch.zeros(n_layers, 5 + BINS, dtype=torch.float64, device=device)
    for i, call in calls.items():
        sums[i] = call.sums().to(device)
    sums = processes.add_up(sums)
    n, n_counted, total, squares, dead = sums[:, :5].unbind(1)
    mean = total / n
    std = (squares / n - mean.square()).clamp(min=0).sqrt()
    shares = sums[:, 5:] / n_counted[:, None]
    return torch.cat([torch.stack([mean, std, dead / n], 1), shares], 1).float()


@contextmanager
def _counting() -> Iterator[None]:
    """Let CUDA count in any order, which changes no count, also where it is to be deterministic."""
    if not torch.are_deterministic_algorithms_enabled():
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


def _first_tensor(output: Any) -> Tensor | None:
    """Return the tensor of floats that a layer gave; of several the first."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.numel() else None
    parts = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, Mapping | tuple | list):
        return None
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)


def _default_layers(modules: Mapping[str, nn.Module]) -> list[str]:
    functions = [
        name
        for name, module in modules.items()
        if type(module).__module__ == activation.__name__
        and not isinstance(module, nn.MultiheadAttention)
    ]
    return functions or [
        name
        for name, module in modules.items()
        if any(p.ndim > 1 for p in module.parameters(recurse=False))
    ]
