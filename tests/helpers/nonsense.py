"""Nonsense for every parameter of every public name, and what comes of it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from allowed import may_be, names
from exported_callbacks import FOR_IMAGES, PACKAGES
from torch import nn
from torch.optim.lr_scheduler import StepLR

import onecycle
from onecycle import Callback, Learner, TensorLoader, linear, toy_learner

#: What no refusal may take longer than, in seconds of processor time: others may be using it too.
#: A value that is taken is worked with, and has `WORK` times as long.
LIMIT = 1.0
WORK = 20

#: By a label: a value, made anew each time.
VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "5": lambda: 5,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "1.5": lambda: 1.5,
    "-0.5": lambda: -0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "10**30": lambda: 10**30,
    "10**400": lambda: 10**400,
    "1e300": lambda: 1e300,
    "complex": lambda: 3 + 4j,
    "text": lambda: "abc",
    "no text": lambda: "",
    "bytes": lambda: b"abc",
    "NUL": lambda: "a\0b",
    "long text": lambda: "x" * 300,
    "[]": list,
    "{}": dict,
    "()": tuple,
    "[None]": lambda: [None],
    "['a']": lambda: ["a"],
    "[nan]": lambda: [float("nan")],
    "[-1, 2]": lambda: [-1, 2],
    "{'a': 1}": lambda: {"a": 1},
    "set": lambda: {"a"},
    "object": object,
    "a class": lambda: int,
    "a callback class": lambda: onecycle.EMA,
    "a module class": lambda: nn.Linear,
    "no arguments": lambda: lambda: None,
    "five arguments": lambda: lambda a, b, c, d, e: None,
    "returns None": lambda: lambda *args, **options: None,
    "slice": lambda: slice(None),
    "ellipsis": lambda: ...,
    "empty range": lambda: range(0),
    "np nan": lambda: np.float64("nan"),
    "np text": lambda: np.str_("abc"),
    "np bool": lambda: np.bool_(True),
    "array": lambda: np.array([1.0, 2.0]),
    "array of objects": lambda: np.array([None, "a"], dtype=object),
    "empty array": lambda: np.array([]),
    "tensor": lambda: torch.tensor([1.0, 2.0]),
    "tensor nan": lambda: torch.tensor(float("nan")),
    "empty tensor": lambda: torch.empty(0),
    "meta tensor": lambda: torch.empty((), device="meta"),
    "schedule": lambda: linear(-1.0, float("1e300")),
    "module": lambda: nn.Linear(3, 2),
    "generator": lambda: (i for i in ()),
}

#: Arguments that are valid, for the parameters that have no default.
GIVEN: dict[str, Callable[[], Any]] = {
    "obj": lambda: nn.Dropout(0.5),
    "name": lambda: "p",
    "schedule": lambda: linear(0.5, 0.0),
    "path": lambda: "file.pt",
    "folder": lambda: "folder",
    "size": lambda: 4,
    "train": lambda: toy_learner(2, 4).dls.train,
    "n_batches": lambda: 2,
    "updates": lambda: 2,
    "dls": lambda: toy_learner(2, 4).dls,
    "model": lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)),
    "func": lambda: onecycle.mse,
    "lr_max": lambda: 0.1,
    "max_lr": lambda: 0.1,
    "base_lr": lambda: 0.01,
    "lr": lambda: 0.1,
    "schedules": lambda: {"lr": linear(0.1, 0.0)},
    "sizes": lambda: linear(4, 8),
    "dataset": lambda: torch.utils.data.TensorDataset(torch.ones(4, 2)),
    "tensors": lambda: torch.ones(4, 2),
    "total_steps": lambda: 10,
    "n_cycles": lambda: 1,
    "cycle_len": lambda: 1,
    "t_max": lambda: 4,
    "t_0": lambda: 4,
    "step_size": lambda: 4,
    "start": lambda: 0.1,
    "end": lambda: 0.2,
    "value": lambda: 0.1,
    "power": lambda: 2.0,
    "factor": lambda: 0.5,
    "n_epoch": lambda: 1,
    "epochs": lambda: 1,
    "n": lambda: 0,
    "x": lambda: torch.ones(4),
    "use_clr_beta": lambda: (10, 10, 0.95, 0.85),
    "pred": lambda: torch.ones(4, 3),
    "target": lambda: torch.ones(4, dtype=torch.long),
    "lrs": lambda: np.geomspace(1e-5, 1, 40),
    "losses": lambda: np.linspace(2, 1, 40) ** 3,
    "schedule_or_torch_scheduler": lambda: linear(0.0, 1.0),
    "cbs": tuple,
    "seed": lambda: 0,
    "kinds": lambda: onecycle.EMA,
    "blocks": lambda: ["0"],
    "opt": lambda: toy_learner(2, 4).opt,
}

#: Where one of the above will not do.
GIVEN_TO: dict[str, dict[str, Callable[[], Any]]] = {
    "PlannedScheduler": {"make": lambda: lambda n: {"lr": linear(0.1, 0.0)}},
    "TorchScheduler": {"make": lambda: lambda opt: StepLR(opt, 2)},
    "check_callback": {"make": lambda: onecycle.EMA},
    "When": {"callback": onecycle.EarlyStopping},
    "join": {"phases": lambda: [(0.5, linear(0, 1)), (0.5, linear(1, 0))]},
    "join_steps": {"phases": lambda: [(5, linear(0, 1)), (5, linear(1, 0))]},
    "mae": {"target": lambda: torch.ones(4, 3)},
    "mse": {"target": lambda: torch.ones(4, 3)},
    "head_splitter": {"model": lambda: onecycle.lenet()},
    "EarlyStopping": {"monitor": lambda: "valid_loss"},
    "Learner": {"loss_func": lambda: nn.functional.mse_loss},
    "Learner.compare": {"policies": lambda: ("constant",), "seeds": lambda: (0,)},
    "Learner.diagnose": {"num_it": lambda: 20, "wds": lambda: (), "lr_usual": lambda: 0.01},
    "Learner.regularization_report": {"wds": lambda: (0.0, 0.1), "seeds": lambda: (0, 1)},
    "Learner.lr_find": {"num_it": lambda: 4, "show_plot": lambda: False},
    "Learner.tta": {"transforms": lambda: (lambda xb: xb,)},
}

#: The events of a callback that is made from functions, and options that others take.
KEYWORDS = {
    "Callback": ("after_batch", "Handler"),
    "ChannelsLast": ("after_batch", "Handler"),
    "toy_learner": ("lr", "GroupValues | None"),
}

#: The verbs of a learner.
VERBS = (
    *("fit", "fit_one_cycle", "fit_clr_beta", "fit_flat_cos", "fit_sgdr", "fine_tune", "lr_find"),
    *("validate", "get_preds", "predict", "tta", "save", "load", "freeze", "freeze_to", "check"),
    *("compare", "diagnose", "regularization_report", "removed_cbs", "added_cbs", "land"),
    "top_losses",
)

#: What is made by the package and only read by people: records take what they are given.
RECORDS = frozenset(
    ("Comparison", "Diagnosis", "EnsembleReport", "LRFindResult", "Plateau", "PostMortem")
) | {"Predictions", "Predictor", "RangeTests", "RegularizationReport", "Stage", "Schedule"}

#: What reads a file that takes a second to make: its arguments are in training/test_exporting.py.
OF_FILES = frozenset(("load_predictor",))

#: What starts processes if nothing is wrong: its own tests say what it refuses.
STARTED = frozenset(("launch",))


@dataclass(frozen=True)
class Subject:
    """A public name that is called, and what it is called with."""

    name: str
    call: Callable[..., Any]
    given: Mapping[str, Callable[[], Any]]
    parameters: Mapping[str, inspect.Parameter]


def _use(made: Any) -> None:
    """Let what was made take part, so that it meets what is checked before the first batch."""
    if isinstance(made, FOR_IMAGES):
        return  # what they need is no part of a learner of lines
    if isinstance(made, Callback):
        learn = toy_learner(2, 4)
        learn.fit(1, cbs=[made])
    elif isinstance(made, Learner):
        with made.no_bar():
            made.fit(1)
    elif isinstance(made, TensorLoader):
        list(made)
    elif isinstance(made, onecycle.Schedule):
        made([0.0, 0.5, 1.0])
    elif isinstance(made, contextlib.AbstractContextManager):
        with made:
            pass


def _halves(model: nn.Sequential) -> list[list[nn.Parameter]]:
    return [list(model[0].parameters()), list(model[2].parameters())]


def _verb(name: str) -> Callable[..., Any]:
    def call(*args: Any, **given: Any) -> Any:
        learn = toy_learner(2, 4, splitter=_halves)
        if name == "load":
            learn.save("file.pt")
        try:
            return getattr(learn, name)(*args, **given)
        finally:
            if name == "load":
                Path("file.pt").unlink(missing_ok=True)

    return call


@lru_cache(maxsize=1)
def subjects() -> list[Subject]:
    """Return all that is called: exported classes and functions, and the verbs of a learner."""
    learn = toy_learner(2, 4)
    learn.fit(1)  # imports what would count as time later
    learn.lr_find(num_it=2, show_plot=True)
    calls: dict[str, Callable[..., Any]] = {}
    for name in onecycle.__all__:
        thing = getattr(onecycle, name)
        is_error = inspect.isclass(thing) and issubclass(thing, Exception)
        # What writes into trackers needs packages of theirs, and seconds for a run.
        if not is_error and name not in RECORDS | OF_FILES | STARTED and thing not in PACKAGES:
            calls[name] = thing
    verbs = {f"Learner.{verb}": _verb(verb) for verb in VERBS}
    return [_subject(name, call) for name, call in {**calls, **verbs}.items()]


def _subject(name: str, call: Callable[..., Any]) -> Subject:
    verb = name.partition(".")[2]
    parameters = dict(inspect.signature(getattr(Learner, verb) if verb else call).parameters)
    for other in ("self", "handlers", "options"):
        parameters.pop(other, None)
    own = GIVEN_TO.get(name, {})
    given = {
        each: own.get(each) or GIVEN[each]
        for each, parameter in parameters.items()
        if each in own or parameter.default is inspect.Parameter.empty
    }
    if name in KEYWORDS:
        keyword, annotation = KEYWORDS[name]
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters[keyword] = inspect.Parameter(keyword, kind, annotation=annotation)
    return Subject(name, call, given, parameters)


#: Errors of torch itself that are explained by a note, or need none.
EXPLAINED = ("the model got", "the loss function got", "meta tensor")


class TooLongError(BaseException):
    """A call did not come back in time."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def ring(*args: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGPROF, ring)
    gc.disable()  # what rings within a callback of the collector is swallowed
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        gc.enable()
        signal.signal(signal.SIGPROF, before)


@dataclass(frozen=True)
class Outcome:
    """What came of a call with one nonsense argument."""

    subject: str
    parameter: str
    value: str
    verdict: str  # "ok", or what is wrong with it
    said: str = ""

    def __str__(self) -> str:
        return f"{self.subject}({self.parameter}={self.value}): {self.verdict}: {self.said[:200]}"


def outcome(subject: Subject, parameter: str, label: str, value: Any) -> Outcome:
    """Call a subject with one argument that may be nonsense, in the folder that is current.

    The folder must be empty, since whatever is in it afterwards is removed.
    """
    if os.listdir():
        raise RuntimeError(f"{Path.cwd()} is not empty, and all in it would be removed")
    given = {name: make() for name, make in subject.given.items()} | {parameter: value}
    kinds = {each.name: each.kind for each in subject.parameters.values()}
    star = [given.pop(name) for name in [*given] if kinds[name] is inspect.Parameter.VAR_POSITIONAL]
    verdict, said = "ok", ""
    is_valid = may_be(subject.parameters[parameter].annotation, value)
    try:
        with _limited(LIMIT * WORK if is_valid else LIMIT):
            _use(subject.call(*star, **given))
        if not is_valid:
            verdict = "taken without a word"
    except TooLongError:
        verdict = "too slow"
    except Exception as error:
        said = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        if not isinstance(error, TypeError | ValueError | onecycle.OnecycleError):
            is_missing = isinstance(error, FileNotFoundError) and parameter == "path"
            is_explained = any(words in said for words in EXPLAINED)
            verdict = "ok" if is_missing or is_explained else "another kind of error"
        elif not names(parameter, value, said):
            verdict = "names no argument or no value"
        if os.listdir():
            verdict = f"wrote {os.listdir()}"
    for path in Path().iterdir():
        _remove(path)
    return Outcome(subject.name, parameter, label, verdict, said)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        path.unlink()


def is_nonsense(subject: Subject, parameter: str, value: Any) -> bool:
    """Tell whether a value has no place there: what can be called may well be a function."""
    place = subject.name, parameter
    if place == ("Learner", "compile") and value is True:
        return False  # takes its time
    if place == ("Learner", "loss_func") and value is None:
        return False  # for models that return their loss
    takes_functions = may_be(subject.parameters[parameter].annotation, _a_function)
    return not (takes_functions and isinstance(value, onecycle.Schedule | nn.Module))


def _a_function() -> None:
    """Do nothing."""


def calls() -> list[tuple[Subject, str, str]]:
    """Return all calls, each as a subject, one of its parameters, and the label of a value."""
    return [
        (subject, parameter, label)
        for subject in subjects()
        for parameter in subject.parameters
        for label, make in VALUES.items()
        if is_nonsense(subject, parameter, make())
    ]
