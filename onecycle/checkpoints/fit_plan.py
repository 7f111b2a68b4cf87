"""The plan of a fit: what a resumed one must have in common with it, or may change.

A plan is a dict of plain values. Its keys are stored in every checkpoint, and never change; what
people read is looked up from them in one table. There are three kinds:

- ``"n_epoch"``: of the learner. Compared where both plans have it, so that a later version may say
  more of itself.
- ``"schedule.lr"``, with a dot: of the fit, whichever callback says it. One that says nothing and
  one that says something differ.
- the callback's name and a key of its own, below ``"callbacks"``. Compared where both plans have
  that callback; those that prepare batches and updates are also listed, in their order, below
  ``"preparing"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from onecycle.checkpoints.description import described, name_of, plain
from onecycle.checkpoints.opt_names import opt_name, parameter_names
from onecycle.core.callback import Callback, Stage
from onecycle.data.lengths import batches_in, least, updates_in
from onecycle.optim.several import each_of
from onecycle.schedules.shapes import Schedule

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: How a resumed fit goes on by a plan that has changed.
Extend = Literal["keep", "restretch", "tail"]
#: What differs between two plans by key: the value that was, and the one that is.
Changes = dict[str, tuple[Any, Any]]

_SCHEDULE = "schedule."
_FIT = "fit."
#: A callback that drives an attribute says whose, as in ``"MixUp.alpha"``: its value is no setting.
_DRIVES = "drives"
_MAY_CHANGE = (
    *("n_epoch", "max_updates", "batches_per_update", "n_updates_planned", "lr"),
    *("cycle.lr_max", "cycle.policy"),
)
#: Options of an optimizer that are compared elsewhere, or change no more than the rounding.
_NO_OPTIONS = ("lr", "weight_decay", "foreach", "fused", "capturable", "differentiable")
#: What people read instead of a key.
_WORDS = {
    "buffers": "the buffers that are not saved",
    "batch_size": "the batch size of the training loader",
    "average.decay": "the decay of EMA",
    "average.kind": "the average of the weights",
    "average.start": "the start of SWA",
    "cycle.lr_max": "lr_max",
    "cycle.policy": "policy",
    "data": "the training data set",
    "dtype": "the dtype of the parameters",
    "groups": "the parameters of each group",
    "learner": "the class of the learner",
    "loader": "the training loader",
    "loss_func": "the loss function",
    "n_samples": "the number of training samples",
    "n_train_batches": "the number of training batches",
    "n_updates_planned": "the number of planned updates",
    "opt": "the optimizer",
    "preparing": "the preparing callbacks",
    "shuffled": "the order of the training loader",
}


# What a fit says ----------------------------------------------------------------------------


def plan_of(learn: Loop) -> dict[str, Any]:
    """Return what a resumed fit must have in common with the interrupted one, or extend.

    Args:
        learn: The learner after ``before_fit`` at `Stage.PREPARE`.

    Returns:
        Plain values by key; schedules as dicts where they can be stored, else as text.
    """
    said = [(cb, cb.plan(learn)) for cb in learn.cbs if cb.takes_part_in("fit")]
    driven = {own[_DRIVES] for _, own in said if isinstance(own.get(_DRIVES), str)}
    plan = _of_learner(learn, driven) | _of_data(learn) | _of_optimizer(learn)
    preparing: list[str] = []
    callbacks: dict[str, dict[str, Any]] = {}
    for callback, own in sorted(said, key=lambda each: each[0].stage):
        name = name_of(type(callback))
        mine = {}
        for key, value in own.items():
            if f"{name}.{key.rpartition('.')[2]}" in driven:
                continue
            if "." in key:
                _add(plan, key.removeprefix(_FIT), plain(value))
            else:
                mine[key] = plain(value)
        # One made from functions has no name that could be compared, and one that speaks of the
        # fit alone is compared by what it says.
        is_told = bool(own) and all("." in key for key in own)
        if callback.stage is Stage.PREPARE and type(callback) is not Callback and not is_told:
            preparing.append(name)
        if mine:
            callbacks[_numbered(name, callbacks)] = mine
    return plan | {"preparing": preparing, "callbacks": callbacks}


def _add(plan: dict[str, Any], key: str, value: Any) -> None:
    """Add what is said of the fit; schedules of one hyperparameter may be those of other groups."""
    if key.startswith(_SCHEDULE) and key in plan:
        both = zip(plan[key], value, strict=True)
        value = [new if old is None else old for old, new in both]
    plan[key] = value


def _numbered(name: str, taken: Mapping[str, Any]) -> str:
    n = sum(other.partition(" ")[0] == name for other in taken)
    return name if not n else f"{name} {n + 1}"


def _of_learner(learn: Loop, driven: set[str]) -> dict[str, Any]:
    fields = frozenset(
        name.removeprefix("loss_func.") for name in driven if name.startswith("loss_func.")
    )
    return {
        "learner": name_of(type(learn)),
        "n_epoch": learn.n_epoch,
        "steps_per_epoch": learn.steps_per_epoch,
        "max_updates": learn.max_updates,
        "n_train_batches": learn.count_batches(learn.dls.train),
        "batches_per_update": learn.batches_per_update,
        "n_updates_planned": learn.n_updates_planned,
        "n_inp": learn.n_inp,
        "loss_func": described(learn.loss_func, without=fields),
        "dtype": sorted({plain(p.dtype) for p in learn.model.parameters()}),
        "buffers": _unsaved_buffers(learn),
    }


def _unsaved_buffers(learn: Loop) -> list[str]:
    """Name the buffers that ``state_dict`` leaves out, with their shapes."""
    saved = learn.model.state_dict().keys()
    named = learn.model.named_buffers()
    return [f"{name} {list(each.shape)}" for name, each in named if name not in saved]


def _of_data(learn: Loop) -> dict[str, Any]:
    """Say what the data are, as far as the training loader tells."""
    loader = learn.dls.train
    data = getattr(loader, "dataset", None)
    tensors = getattr(loader, "tensors", None)
    size = learn.whole_batch_size(loader)
    shuffled = getattr(loader, "shuffle", None)
    if hasattr(loader, "sampler"):
        shuffled = name_of(type(loader.sampler))
    return {
        "loader": name_of(type(loader)),
        "data": None if data is None else name_of(type(getattr(data, "dataset", data))),
        "batch_size": size,
        "n_samples": _length(tensors[0] if isinstance(tensors, tuple) and tensors else data),
        "shuffled": shuffled if isinstance(shuffled, bool | str) else None,
    }


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _of_optimizer(learn: Loop) -> dict[str, Any]:
    groups, names = learn.groups, parameter_names(learn)
    said = {
        "opt": opt_name(learn.opt),
        "groups": [sorted(names[id(p)] for p in groups.params(g)) for g in range(len(groups))],
        "lr": groups.get("lr"),
    }
    if "weight_decay" in groups.names():
        said["weight_decay"] = groups.get("weight_decay")
    # What it was built with: schedules, and some optimizers, change what is in force.
    each = each_of(learn.opt)
    options = {
        k if len(each) == 1 else f"{k}.{i}": plain(v)
        for i, opt in enumerate(each)
        for k, v in opt.defaults.items()
        if k not in _NO_OPTIONS
    }
    return said | {"options": options}


# How two differ -----------------------------------------------------------------------------


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """Return what differs between two plans.

    Args:
        was: The plan of the interrupted fit.
        now: That of the fit which is to go on.

    Example:
        >>> changes({"n_epoch": 2}, {"n_epoch": 3, "added later": 1, "schedule.lr": []})
        {'n_epoch': (2, 3), 'schedule.lr': (None, [])}
    """
    old, new = _flat(was), _flat(now)
    return {
        key: (old.get(key), new.get(key))
        for key in {**old, **new}
        if old.get(key) != new.get(key) and (_is_of_fit(key) or (key in old and key in new))
    }


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Give the keys of options and callbacks a place beside the others: ``"GradientClip:norm"``."""
    flat = {key: value for key, value in plan.items() if key not in ("options", "callbacks")}
    parts = {"options": plan.get("options"), **(plan.get("callbacks") or {})}
    for name, own in parts.items():
        if isinstance(own, dict):
            flat.update({f"{name}:{key}": value for key, value in own.items()})
    return flat


def _is_of_fit(key: str) -> bool:
    return "." in key and ":" not in key


def may_change(differing: Iterable[str]) -> bool:
    """Tell whether a fit can go on although its plan differs in these keys."""
    return all(key in _MAY_CHANGE or key.startswith(_SCHEDULE) for key in differing)


def told(differing: Changes) -> str:
    """Show what differs between two plans; schedules only where nothing shorter tells them.

    Example:
        >>> told({"opt": ("SGD", "Adam"), "GradientClip:max_norm": (1.0, 1e-06)})
        'the optimizer was SGD and is Adam; max_norm of GradientClip was 1.0 and is 1e-06'
    """
    shorter = {key: both for key, both in differing.items() if not key.startswith(_SCHEDULE)}
    return "; ".join(
        f"{_words(key)} was {_shown(key, was)} and is {_shown(key, now)}"
        for key, (was, now) in (shorter or differing).items()
    )


def _words(key: str) -> str:
    owner, is_owned, field = key.partition(":")
    if is_owned:
        return f"{field} of {_WORDS['opt'] if owner == 'options' else owner}"
    if key.startswith(_SCHEDULE):
        return f"the schedule of {key.removeprefix(_SCHEDULE)}"
    return _WORDS.get(key, key)


def _shown(key: str, value: Any) -> str:
    if key == "groups" and isinstance(value, list):
        return ", ".join(f"{len(names)} with {names[0] if names else None!r}" for names in value)
    return str(value)


def callbacks_of(plan: Mapping[str, Any]) -> set[str]:
    """Name the classes of the callbacks that have said something of their own in a plan."""
    return {name.partition(" ")[0].rpartition(".")[2] for name in plan.get("callbacks", {})}


# Extending ----------------------------------------------------------------------------------


def updates_of(learn: Loop, tried: int, epoch: int, batches: int) -> int | None:
    """Count the updates of a fit that goes on in the middle.

    Args:
        learn: The learner, as the fit begins.
        tried: The updates done or skipped before.
        epoch: The epoch in which it goes on.
        batches: The batches of it that are done.

    Returns:
        The updates tried before and those to come; ``None`` if that cannot be known.
    """
    whole = learn.epoch_length(epoch)
    if whole is None or learn.n_epoch is None:
        return learn.max_updates
    left, per_update = learn.n_epoch - epoch, learn.batches_per_update
    of_this = batches_in(epoch, whole, learn.n_epoch) if left > 0 else None
    rest = math.ceil(((of_this or whole) - batches) / per_update)
    # Below 0 if the fit is to be shorter than it is already.
    until, lengths = learn.n_epoch if not 0 < left <= 1 else epoch + 1, learn.epoch_lengths()
    both = (updates_in(lengths, each, per_update) or 0 for each in (until, epoch + 1))
    return least(tried + rest + next(both) - next(both), learn.max_updates)


def kept_schedules(plan: Mapping[str, Any]) -> dict[str, list[Schedule | None]]:
    """Return the schedules of a stored plan, by hyperparameter, one for each group.

    Raises:
        ValueError: If one of them could not be stored.
    """
    stored = {
        key.removeprefix(_SCHEDULE): each for key, each in plan.items() if key.startswith(_SCHEDULE)
    }
    for name, each in stored.items():
        for text in each:
            if isinstance(text, str):
                raise ValueError(
                    f'extend="keep" needs the old schedule of {name}, {text}, which could not be '
                    "stored: declare its class with a kind, or choose another way to extend"
                )
    return read_schedules(stored)


def read_schedules(stored: Mapping[str, list[Any]]) -> dict[str, list[Schedule | None]]:
    """Make schedules of their descriptions; ``None`` stays."""
    return {
        name: [None if each is None else Schedule.from_dict(each) for each in given]
        for name, given in stored.items()
    }
