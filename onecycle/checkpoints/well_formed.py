"""Whether what a file of a fit holds has the form of what was written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from onecycle.core.restore import RngState, preserved_rng

_PARTS = {
    "plan": dict,
    "position": dict,
    "counters": dict,
    "modules": list,
    "opt": dict,
    "frozen": list,
    "frozen_by_groups": list,
    "frozen_norms": list,
    "callbacks": list,
    "pass_rng": dict,
    "rng": dict,
    "extra": dict,  # what a reader may pass over
}
_MT19937_WORDS = 624


def malformed(state: Any, counters: tuple[str, ...]) -> str | None:
    """Name the part of a state that nobody could have written; ``None`` where there is none.

    Args:
        state: What should be what `onecycle.checkpoints.fit_files.capture` returned.
        counters: The names of the counters.
    """
    if not isinstance(state, dict):
        return "all of it"
    for part, kind in _PARTS.items():
        if not isinstance(state.get(part), kind):
            return part
    looks: dict[str, Callable[[Any], bool]] = {
        "plan": _is_plan,
        "position": _is_position,
        "counters": lambda found: _are_counters(found, counters),
        "modules": lambda found: all(map(_is_module, found)),
        "frozen": _are_names,
        "frozen_by_groups": _are_names,
        "frozen_norms": _are_names,
        "callbacks": lambda found: all(map(_is_callback, found)),
        "rng": _is_rng,
        "extra": _is_extra,
    }
    if state["position"].get("batches") is not None or "stream" in state["extra"]:
        looks["pass_rng"] = _is_rng
    return next((part for part, fits in looks.items() if not fits(state[part])), None)


def _is_plan(found: Mapping[str, Any]) -> bool:
    callbacks = found.get("callbacks")
    return (
        isinstance(found.get("options"), dict)
        and isinstance(callbacks, dict)
        and all(isinstance(own, dict) for own in callbacks.values())
    )


def _is_position(found: Mapping[str, Any]) -> bool:
    counts = all(_is_count(found.get(name)) for name in ("epoch", "total_epochs"))
    maybe = all(_is_count(found.get(name, -1), maybe=True) for name in ("batches", "n_iter"))
    return counts and maybe and isinstance(found.get("training"), bool)


def _is_extra(found: Mapping[str, Any]) -> bool:
    stream = found.get("stream", {})
    if not isinstance(stream, dict) or (stream and "sources" not in found):
        return False
    return set(stream) <= {"epoch", "drawn"} and all(map(_is_count, stream.values()))


def _are_counters(found: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    if any(name not in found for name in names):
        return False
    reason = found["stop_reason"]
    numbers = [name for name in names if name not in ("stop_reason", "seed", "n_epoch")]
    epochs = found["n_epoch"]
    if not (_is_count(epochs, maybe=True) or (type(epochs) is float and 0 < epochs < math.inf)):
        return False
    if not all(_is_count(found[name], maybe=name not in _ALWAYS) for name in numbers):
        return False
    return (reason is None or isinstance(reason, str)) and type(found["seed"]) is int


_ALWAYS = ("n_updates", "n_skipped", "total_updates")


def _is_count(value: Any, *, maybe: bool = False) -> bool:
    return (maybe and value is None) or (type(value) is int and value >= 0)


def _is_module(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("state"), dict):
        return False
    buffers = found.get("buffers")
    return (
        isinstance(buffers, dict)
        and all(isinstance(name, str) for name in (*found["state"], *buffers))
        and all(isinstance(value, Tensor) for value in buffers.values())
    )


def _are_names(found: list[Any]) -> bool:
    return all(isinstance(name, str) for name in found)


def _is_callback(found: Any) -> bool:
    return (
        isinstance(found, list)
        and len(found) == 2
        and isinstance(found[0], str)
        and isinstance(found[1], dict)
    )


def _is_rng(found: Any) -> bool:
    """Try random states: of some, a wrong one is refused by nobody until it is drawn from."""
    try:
        kind, keys, position = found["numpy"][:3]
        if (kind, tuple(keys.shape)) != ("MT19937", (_MT19937_WORDS,)):
            return False
        if not 0 <= position <= _MT19937_WORDS:
            return False
        with preserved_rng():
            RngState.from_state_dict(found).restore()
    except Exception:
        return False
    return True
