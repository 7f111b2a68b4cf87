"""Files that somebody wrote by hand: valid checksums over what nobody's training could be."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from learner_state import LearnerState
from torch import nn
from torch.nn.functional import mse_loss

from onecycle import Checkpoint, CheckpointError, Learner
from onecycle.checkpoints import fit_files
from onecycle.checkpoints import sealed as sealed_files
from onecycle.checkpoints.archives import read_archive
from onecycle.testing import toy_learner

#: Changes the state of a good file in place.
Edit = Callable[[dict[str, Any]], None]
KINDS = ("model", "fit")
_GONE = object()


def learner() -> Learner:
    """Make a learner whose optimizer makes its step in one kernel, without checks of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    learn = Learner(toy_learner().dls, model, mse_loss, lr=1e-3, device="cpu", seed=0)
    learn.cbs = learn.cbs[:1]
    return learn


def good(kind: str, folder: Path) -> dict[str, Any]:
    """Write a good file and return the state in it."""
    learn, path = learner(), folder / "good"
    learn.fit(2, cbs=[Checkpoint(folder / "good-fit", "5 updates")])
    if kind == "fit":
        return fit_files.read(fit_files.find(folder / "good-fit")[0])
    learn.save(path)
    state: dict[str, Any] = read_archive(path.read_bytes())
    return state


def write(kind: str, state: Any, path: Path) -> None:
    """Write a state with the checksum that it has, whatever it is."""
    path.write_bytes(sealed(kind, archive(state)))


def put(path: tuple[Any, ...], value: Any) -> Edit:
    """Return what puts a value somewhere, or takes it away."""

    def edit(state: dict[str, Any]) -> None:
        found: Any = state
        for key in path[:-1]:
            found = found[key]
        if value is _GONE:
            del found[path[-1]]
        else:
            found[path[-1]] = value

    return edit


def tensors(*shape: int) -> dict[str, Any]:
    """Return what is no tensor of floating-point numbers of a shape."""
    n = torch.Size(shape).numel()
    return {
        "of one number": torch.zeros(()),
        "of nothing": torch.zeros(0),
        "of a number too few": torch.zeros(n)[:-1],
        "of a number more": torch.zeros(n + 1),
        "of too many dimensions": torch.zeros(*shape, 1),
        "of a larger side": torch.zeros(shape[0] * 50, *shape[1:]),
        "huge, expanded from one number": torch.zeros(1).expand(10**9),
        "expanded": torch.zeros(1).expand(*shape),
        "of integers": torch.zeros(shape, dtype=torch.int64),
        "of bytes": torch.zeros(shape, dtype=torch.uint8),
        "of truth values": torch.zeros(shape, dtype=torch.bool),
        "of complex numbers": torch.zeros(shape, dtype=torch.complex64),
        "of the meta device": torch.zeros(shape, device="meta"),
        "sparse": torch.zeros(shape).to_sparse(),
        **other_kinds(),
    }


def other_kinds() -> dict[str, Any]:
    """Return what is neither a tensor nor a number."""
    return {"a list": [0.0, 1.0], "text": "0.0", "a dict": {"a": torch.zeros(2)}, "a tuple": ((),)}


STEPS = {
    "nan": torch.tensor(float("nan")),
    "infinite": torch.tensor(float("inf")),
    "negative": torch.tensor(-1.0),
    "many": torch.zeros(6, 4),
    "none": torch.zeros(0),
    "complex": torch.tensor(1j),
    "text": "8",
    "a list": [8.0],
    "of the meta device": torch.zeros((), device="meta"),
    "sparse": torch.zeros(1).to_sparse(),
}


def of_optimizer(opt: tuple[Any, ...]) -> Iterator[tuple[str, Edit]]:
    """Give what is wrong in the state of the optimizer."""
    weight = (*opt, "state", "0.weight")
    for key in ("exp_avg", "exp_avg_sq"):
        for name, value in tensors(6, 4).items():
            yield f"{key} {name}", put((*weight, key), value)
    for name, value in STEPS.items():
        yield f"step {name}", put((*weight, "step"), value)
    for key, values in {
        "lr": ["0.1", float("nan"), float("inf"), [0.1], torch.zeros(3), True],
        "betas": [0.9, (0.9,), (0.9, "0.99"), (0.9, float("nan")), {}],
        "weight_decay": ["0", torch.zeros(0), float("nan")],
        "amsgrad": ["no", 0.5],
    }.items():
        for value in values:
            name = f"a tensor of {value.numel()}" if isinstance(value, torch.Tensor) else value
            yield f"{key} is {name}", put((*opt, "groups", 0, "options", key), value)
    for key in ("class", "groups", "params", "state", "rest", "values"):
        yield f"without {key}", put((*opt, key), _GONE)
        yield f"{key} is 5", put((*opt, key), 5)
    yield "a parameter less", put((*opt, "params", "0.weight"), _GONE)
    yield "a parameter more", put((*opt, "params", "9.weight"), [[4], "float32"])
    yield "state of one more", put((*opt, "state", "9.weight"), {"step": torch.zeros(())})
    yield "state by position", put((*opt, "rest"), {"state": {0: {"step": torch.zeros(())}}})
    yield "an optimizer in it", put((*opt, "inner"), {"base": {}})
    yield "a whole", put((*opt, "whole"), {"state": {}, "param_groups": []})
    yield "its shape is a number", put((*opt, "params", "0.weight"), [6, "float32"])
    yield "its entry is a list", put((*opt, "state", "0.weight"), [torch.zeros(6, 4)])
    yield "names are numbers", put((*opt, "groups", 0, "names"), [0, 1, 2])


def of_model(model: tuple[Any, ...]) -> Iterator[tuple[str, Edit]]:
    """Give what is wrong in the state of the model."""
    for name, value in tensors(6, 4).items():
        yield f"weight {name}", put((*model, "0.weight"), value)
    yield "weight is gone", put((*model, "0.weight"), _GONE)
    yield "a weight more", put((*model, "9.weight"), torch.zeros(3))
    yield "a mean is gone", put((*model, "1.running_mean"), _GONE)
    yield "a mean is larger", put((*model, "1.running_mean"), torch.zeros(600))
    yield "a count is real", put((*model, "1.num_batches_tracked"), torch.tensor(0.5))
    yield "a name is a number", put((*model, 7), torch.zeros(3))


def of_fit() -> Iterator[tuple[str, Edit]]:
    """Give what is wrong in the rest of the state of a fit."""
    for part in (
        *("plan", "position", "counters", "modules", "callbacks", "rng", "pass_rng", "extra"),
        *("frozen", "frozen_by_groups", "frozen_norms"),
    ):
        yield f"without {part}", put((part,), _GONE)
        yield f"{part} is text", put((part,), "text")
    for name in ("n_updates", "total_updates", "n_epoch", "seed", "n_updates_planned"):
        for value in (-1.5, "8", [8]):
            yield f"{name} is {value}", put(("counters", name), value)
    yield "no counter", put(("counters", "n_updates"), _GONE)
    for name, value in {"epoch": -1, "batches": "2", "total_epochs": None, "training": 1}.items():
        yield f"{name} is {value}", put(("position", name), value)
    for name, rng in {
        "numpy": ["MT19937", torch.zeros(624, dtype=torch.int64), 10**6, 0, 0.0],
        "python": (3, (1, 2), None),
        "torch": torch.zeros(8, dtype=torch.uint8),
    }.items():
        yield f"random state of {name}", put(("rng", name), rng)
    yield "no random state", put(("rng", "torch"), _GONE)
    yield "a callback is text", put(("callbacks", 0), "Recorder")
    yield "a callback's state is a list", put(("callbacks", 0, 1), [])
    yield "no state of a module", put(("modules", 0, "state"), _GONE)
    yield "buffers are a list", put(("modules", 0, "buffers"), [])
    yield "two models", put(("modules",), [{"state": {}, "buffers": {}}] * 2)
    yield "frozen numbers", put(("frozen",), [1, 2])
    yield "an unknown layer", put(("frozen_norms",), ["9"])
    yield "a field that is not there", put(("extra", "fields"), {"opt_d": {}})
    yield "fields are a list", put(("extra", "fields"), [1])


def edits(kind: str) -> dict[str, Edit]:
    """Return all that is wrong in one kind of file, by name."""
    if kind == "model":
        found = [
            *of_optimizer(("opt",)),
            *of_model(("model",)),
            *((f"{part} is {v!r}", put((part,), v)) for part in ("model", "opt") for v in (5, [])),
            ("no format", put(("format",), _GONE)),
            ("format is true", put(("format",), True)),
            ("no loss", put(("loss",), _GONE)),
            ("a loss of numbers", put(("loss",), {"weight": torch.zeros(2)})),
        ]
    else:
        found = [*of_optimizer(("opt",)), *of_model(("modules", 0, "state")), *of_fit()]
    return dict(found)


def edited(state: dict[str, Any], edit: Edit) -> dict[str, Any]:
    """Return a copy of a state with an edit; an expanded tensor stays one."""
    made = deepcopy(state)
    edit(made)
    return made


def bombs(state: dict[str, Any], n: int = 100_000_000) -> dict[str, bytes]:
    """Return archives that are small, and large in memory, by what makes them so."""
    many: list[Any] = [0.0]
    for _ in range(40):
        many = [many] * 10  # as many parts as no memory has
    packed = {**state, "more": torch.zeros(n)}
    return {
        "unpacked": _packed(archive(packed)),
        "bytes of a number": archive({**state, "more": _Greedy()}),
        "expanded": archive({**state, "more": torch.zeros(1).expand(10**9)}),
        "of itself": archive({**state, "more": many}),
    }


def damaged(content: bytes, rng: random.Random, n: int = 15) -> dict[str, bytes]:
    """Return what a disk may make of a good file: cut, with other bits, with holes, grown.

    Args:
        content: The whole file, with its checksum.
        rng: Draws where.
        n: How many of each.
    """
    files = {}
    for i in range(n):
        at = rng.randrange(len(content))
        bit, hole = 1 << rng.randrange(8), rng.randint(1, 4096)
        files[f"cut at byte {at}, {i}"] = content[:at]
        flipped = bytes([content[at] ^ bit])
        files[f"another bit at byte {at}, {i}"] = content[:at] + flipped + content[at + 1 :]
        nothing = bytes(len(content[at : at + hole]))
        holed = content[:at] + nothing + content[at + hole :]
        if holed != content:
            files[f"a hole of {hole} bytes at {at}, {i}"] = holed
        files[f"{hole} bytes more, {i}"] = content + rng.randbytes(hole)
    return files


class _Greedy:
    """Becomes a gigabyte."""

    def __reduce__(self) -> Any:
        return bytearray, (10**9,)


def archive(state: Any) -> bytes:
    """Write a state as torch does."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _packed(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


def sealed(kind: str, content: bytes) -> bytes:
    """Give an archive the checksum of a kind of file."""
    if kind == "fit":
        return fit_files._header(content) + content
    buffer = io.BytesIO()
    seal = sealed_files._Sealed(buffer)
    seal.write(content)
    seal.close()
    return buffer.getvalue()


def changed(before: LearnerState, learn: Learner) -> list[str]:
    """List what a refused file has changed of all that training changes."""
    parts = ("learn.model", "learn.opt", "learn.groups", "learn.total", "torch", "random", "numpy")
    return [
        path
        for path in before.changes(LearnerState(learn))
        if path.startswith(parts) and not path.endswith(".grad")
    ]


def outcome(kind: str, path: Path) -> str:
    """Load a file into a fresh learner; return what is wrong with how it is refused."""
    learn = learner()
    before = LearnerState(learn)
    try:
        take(kind, learn, path)
    except CheckpointError as error:
        after = changed(before, learn)
        if after:
            return f"changed {after[:3]}"
        return "" if str(path) in str(error) else f"says {error}"
    except Exception as error:
        return f"came as {error!r}"
    return "was loaded"


def take(kind: str, learn: Learner, path: Path) -> None:
    """Load a file."""
    if kind == "model":
        learn.load(path)
    else:
        learn.fit(2, resume=path)
