"""What a metric holds in the middle of a pass, as plain values: for a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onecycle.record.means import NanWatch, WeightedMean
from onecycle.record.metrics import MetricSet

_PLAIN = (int, float, str, bool, type(None), Tensor)
_MEANS = (WeightedMean, NanWatch)
#: The key by which a dict says what it is a description of.
_KIND = "a description of"


def metrics_state(metrics: MetricSet) -> tuple[dict[str, Any], list[str]]:
    """Return what the metrics of a pass hold, and name those for which that cannot be told.

    Args:
        metrics: The metrics, in the middle of a pass.

    Returns:
        The state, for `load_metrics`, with that of the other processes; the names of the metrics
        that hold more than plain values, tensors and means.

    Example:
        >>> from onecycle.record.metrics import accuracy
        >>> state, untold = metrics_state(MetricSet([accuracy]))
        >>> list(state["metrics"]), untold
        (['accuracy'], [])
    """
    told = {name: _state(metric) for name, metric in metrics.metrics.items()}
    own = {name: value for name, value in vars(metrics).items() if name in ("_loss", "_watch")}
    state: dict[str, Any] = {
        "is_empty": metrics._is_empty,
        "own": {name: _copied(value) for name, value in own.items()},
        "metrics": {name: state for name, state in told.items() if state is not None},
    }
    if metrics.processes is not None:
        state["others"] = metrics.processes.gather(state)[1:]
    return state, [name for name, state in told.items() if state is None]


def load_metrics(metrics: MetricSet, state: dict[str, Any], device: torch.device) -> None:
    """Put back what `metrics_state` returned; a metric that is not in it begins anew.

    What as many processes have left, each takes again as its own; what another number has, the
    first one takes together.

    Args:
        metrics: The metrics.
        state: The state.
        device: Where to put the tensors that were not on the CPU.
    """
    processes, states = metrics.processes, [state, *state.get("others", [])]
    rank, world = (0, 1) if processes is None else (processes.rank, processes.world)
    if len(states) == world:
        _load(metrics, states[rank], device)
        return
    found, said = [], []
    for each in states:
        _load(metrics, each, device)
        said.append(metrics.names())
    for each in reversed(states):  # those of the first stay, of what sees every sample
        _load(metrics, each, device)
        metrics.have(said)
        found.append(metrics.sums())
    sums = [sum(parts) if rank == 0 else 0.0 for parts in zip(*found, strict=True)]
    metrics.take_sums(sums)


def _load(metrics: MetricSet, state: dict[str, Any], device: torch.device) -> None:
    metrics.reset()
    if not state["is_empty"]:
        metrics.begin(device)
    vars(metrics).update(_made(state["own"], device))
    for name, own in state["metrics"].items():
        if name in metrics.metrics:
            vars(metrics.metrics[name]).update(_made(own, device))


def _state(metric: Any) -> dict[str, Any] | None:
    """Return the fields of a metric that are state, or ``None`` if some are of unknown kinds."""
    if isinstance(metric, nn.Module) or not hasattr(metric, "__dict__"):
        return None
    found: dict[str, Any] = {}
    for name, value in vars(metric).items():
        if callable(value) and not isinstance(value, nn.Module):
            continue  # what it computes with
        if not _is_told(value):
            return None
        found[name] = _copied(value)
    return found


def _is_told(value: Any) -> bool:
    if type(value) is dict:
        return all(map(_is_told, (*value, *value.values())))
    if type(value) in (list, tuple):
        return all(map(_is_told, value))
    return isinstance(value, _PLAIN) or type(value) in _MEANS


def _copied(value: Any) -> Any:
    """Copy the containers, into which more is put later."""
    if type(value) in _MEANS:
        return {_KIND: type(value).__name__, "fields": _copied(vars(value))}
    if type(value) is dict:
        return {name: _copied(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return {_KIND: "device", "fields": value}
    return value


def _made(value: Any, device: torch.device) -> Any:
    if type(value) is dict:
        made = {name: _made(part, device) for name, part in value.items() if name != _KIND}
        kind = value.get(_KIND)
        if kind is None:
            return made
        if kind == "device":
            return made["fields"].to(device)
        mean = next(each for each in _MEANS if each.__name__ == kind)()
        vars(mean).update(made["fields"])
        return mean
    if type(value) in (list, tuple):
        return type(value)(_made(part, device) for part in value)
    return value
