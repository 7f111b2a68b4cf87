"""What a trace of torch's profiler says of the loop: how long each of its parts took."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: How the profiler names a Python function: its file, its first line, its name.
_FUNCTION = re.compile(r"(.+)\((\d+)\): (.+)")
#: Of the files of the loop, by the function that calls: what the functions that it calls are.
_LOOP = "onecycle/core/loop.py"
_PARTS: dict[str, dict[str, str]] = {
    "_take": {"to_device": "transfer"},
    "_predict": {"predict_batch": "forward", "compute_loss": "loss"},
    "_train_batch": {"backward": "backward"},
    "_update": {"unscale": "step", "step": "step", "zero_grad": "step"},
    "_drop_gradients": {"zero_grad": "step"},
}
#: In the order of a batch.
ORDER = ("data", "transfer", "forward", "loss", "backward", "step")
#: What calls callbacks; and what is called beside them: what measures, and no callback at all.
_FIRES = "onecycle/core/handlers.py"
_FILTER = "onecycle/schedules/occasions.py"
_NO_PARTS = ("onecycle/callbacks/timeline.py", _FIRES)
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")

#: Where the methods of callbacks are: by first line and name, the file and whose they are.
Owners = Mapping[tuple[int, str], Sequence[tuple[str, str]]]


@dataclass(frozen=True)
class PartTime:
    """How long a part took, in all.

    Attributes:
        name: ``"data"``, ``"transfer"``, ``"forward"``, ``"loss"``, ``"backward"``, ``"step"``,
            ``"other"``, or the name of a callback.
        host: Seconds of the thread that runs the loop.
        device: Seconds of the device for what was given to it meanwhile; 0 without one.
    """

    name: str
    host: float
    device: float


def part_times(
    events: Iterable[Mapping[str, Any]], owners: Owners, total: float
) -> tuple[PartTime, ...]:
    """Add up a trace by parts of the loop.

    Args:
        events: The ``traceEvents`` of a Chrome trace, taken with Python's stack.
        owners: Of the callbacks.
        total: The seconds that the trace is of.

    Returns:
        The parts of a batch, then callbacks, the slowest first, then ``"other"``.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    python = [event for event in complete if event.get("cat") == "python_function"]
    by_id = {event["args"]["Python id"]: event for event in python}
    spans: list[tuple[float, float, str]] = []  # from, to, part; in microseconds
    for event in python:
        part = _part_of(event, by_id.get(event["args"].get("Python parent id")), owners)
        if part is not None:
            spans.append((event["ts"], event["ts"] + event["dur"], part))
    spans.sort()
    host: dict[str, float] = {}
    for begin, end, part in spans:
        host[part] = host.get(part, 0.0) + (end - begin) / 1e6
    device = _device_times(complete, spans)
    host["other"] = max(0.0, total - sum(host.values()))
    callbacks = sorted(set(host) - {*ORDER, "other"}, key=lambda name: -host[name])
    names = [*(name for name in ORDER if name in host), *callbacks, "other"]
    return tuple(PartTime(name, host[name], device.get(name, 0.0)) for name in names)


def _part_of(
    event: Mapping[str, Any], caller: Mapping[str, Any] | None, owners: Owners
) -> str | None:
    """Return which part of the loop a function is; ``None`` for any within one."""
    file, line, name = _where(event)
    if name == "_batches" and file.endswith(_LOOP):
        return "data"
    if caller is None or file.endswith(_NO_PARTS):
        return None
    calling_file, _, calling = _where(caller)
    if calling_file.endswith(_LOOP):
        return _PARTS.get(calling, {}).get(name)
    if file.endswith(_FILTER):
        return None  # what it calls is one
    if (calling == "fire" and calling_file.endswith(_FIRES)) or calling_file.endswith(_FILTER):
        found = owners.get((line, name), ())
        return next((owner for path, owner in found if path.endswith(file)), "other callbacks")
    return None


def _where(event: Mapping[str, Any]) -> tuple[str, int, str]:
    match = _FUNCTION.fullmatch(event["name"])
    return (match[1].replace("\\", "/"), int(match[2]), match[3]) if match else ("", 0, "")


def _device_times(
    events: Iterable[Mapping[str, Any]], spans: Sequence[tuple[float, float, str]]
) -> dict[str, float]:
    """Add up what the device did by the part that gave it to it, on whichever thread."""
    launched: dict[Any, float] = {}
    kernels = []
    for event in events:
        correlation = event.get("args", {}).get("correlation")
        if correlation is None:
            continue
        if event.get("cat") in _LAUNCHES:
            launched[correlation] = event["ts"]
        elif event.get("cat") in _ON_DEVICE:
            kernels.append((correlation, event["dur"]))
    begins = [begin for begin, _, _ in spans]
    device: dict[str, float] = {}
    for correlation, duration in kernels:
        at = launched.get(correlation)
        i = -1 if at is None else bisect_right(begins, at) - 1
        part = spans[i][2] if at is not None and i >= 0 and at <= spans[i][1] else "other"
        device[part] = device.get(part, 0.0) + duration / 1e6
    return device
