"""`Callback`, and the stages that order callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Any, ClassVar, Literal

from onecycle.arguments import check_one_of, shown
from onecycle.core.events import EVENT_PREFIXES, EVENTS
from onecycle.elsewhere import SaysOurNames, explain_foreign_name, explain_unknown_event
from onecycle.errors import UnknownEventError
from onecycle.processes import is_follower
from onecycle.schedules.occasions import Occasions

#: What takes a method of a callback: it is called with the learner and returns nothing.
Handler = Callable[[Any], None]
#: Which batches an event is for.
During = Literal["train", "valid", "both"]
#: What is running: a fit, a range test, or validation and prediction outside a fit.
Run = Literal["fit", "range_test", "inference"]

_KNOWN = [*EVENTS], EVENT_PREFIXES
_DURING: tuple[During, ...] = ("train", "valid", "both")
_ALL_RUNS: frozenset[Run] = frozenset(("fit", "range_test", "inference"))
_FITS: frozenset[Run] = frozenset(("fit",))


class Stage(IntEnum):
    """When a callback hears of an event, compared with the others.

    Within a stage the order is that of the list of callbacks, but for those that hear last.
    """

    PREPARE = 0  #: may change things: schedules, augmentation, precision, clipping
    RECORD = 1  #: writes down what is in force
    REACT = 2  #: the default: looks at what was recorded, and decides
    SAVE = 3  #: checkpoints, after everything else


class Callback(SaysOurNames):
    """Base of all callbacks: a class with methods named after events.

    Each method takes the learner and returns nothing. The events, and what each means, are
    drawn in `onecycle.core.events`. For something small, ``Callback(after_batch=f)`` makes a
    callback from functions, and ``Callback(after_batch=f, every=3)`` calls it now and then, by
    rules that `When` has for any callback.

    Attributes:
        stage: When this callback hears of an event, compared with the others.
        hears_last: Whether it hears of an event after the others of its stage, as what keeps the
            state of them all does.
        requires: Types of callbacks that must take part too; checked before the first batch.
        during: Whether the batch events are for ``"train"``, ``"valid"`` or ``"both"``.
        runs_in: The runs it takes part in: ``"fit"``, ``"range_test"``, ``"inference"``.
            By default all for `Stage.PREPARE`, fits only for the others.
        first_process_only: Whether, of several processes that train together, it is for the first
            one alone: for what prints, draws or writes, and decides nothing.
        needs_whole_model: Whether it is refused where each process has a part of the model alone.

    Args:
        during: As the attribute, for a callback made from functions.
        every: Call the functions every n-th time only, each event counted for itself; at least 1.
        once: Call them the first time only that the other rules let through.
        after: From this epoch on (an integer, the first one is 0), or from this fraction of the
            fit's updates on (a float in [0, 1]).
        before: Until the epoch before this one, or before this fraction.
        **handlers: Functions that take the learner, by event.

    Raises:
        UnknownEventError: If a method or keyword looks like an event and is none; raised when
            the class is made.

    Example:
        >>> class Count(Callback):
        ...     def before_fit(self, learn):
        ...         self.n = 0
        ...
        ...     def after_step(self, learn):
        ...         self.n += 1
        >>> Count().stage
        <Stage.REACT: 2>
        >>> Callback(after_epoch=lambda learn: print(learn.epoch))
        Callback(after_epoch)
        >>> from onecycle import Callback
        >>> from onecycle.testing import toy_learner
        >>> looks = Callback(after_step=lambda learn: print(learn.n_updates), every=3, after=0.5)
        >>> toy_learner(n_batches=10).fit(1, cbs=[looks])
        6
        9
    """

    stage: Stage = Stage.REACT
    requires: ClassVar[tuple[type[Callback], ...]] = ()
    hears_last: bool = False
    during: During = "both"
    runs_in: frozenset[Run] | None = None
    first_process_only: bool = False
    needs_whole_model: bool = False
    _occasions = Occasions()  # all of them, but for functions that are called now and then
    _called = "Callback"

    def __init__(
        self,
        *,
        during: During | None = None,
        every: int = 1,
        once: bool = False,
        after: float | None = None,
        before: float | None = None,
        **handlers: Handler,
    ) -> None:
        if during is not None:
            check_one_of("during", during, _DURING)
            self.during = during
        for name, handler in handlers.items():
            if name not in EVENTS:
                raise UnknownEventError(explain_unknown_event("Callback()", name, *_KNOWN))
            if isinstance(handler, type) or not callable(handler):
                raise TypeError(f"{name} must be a function of the learner; got {shown(handler)}")
        self._occasions = Occasions(every, once, after, before)
        vars(self).update(self._occasions.filtered(handlers))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in dir(cls):  # what a mixin brings included
            is_like_one = name.startswith(EVENT_PREFIXES) or explain_foreign_name(name)
            if is_like_one and name not in EVENTS:
                raise UnknownEventError(explain_unknown_event(cls.__name__, name, *_KNOWN))
        if cls.during not in _DURING:
            raise ValueError(
                f'{cls.__name__}.during must be "train", "valid" or "both"; got {cls.during!r}'
            )
        runs = cls.runs_in
        if runs is not None and (isinstance(runs, str) or not _ALL_RUNS.issuperset(runs)):
            raise ValueError(
                f"{cls.__name__}.runs_in must be a set of {', '.join(sorted(_ALL_RUNS))}; "
                f"got {runs!r}"
            )

    def __repr__(self) -> str:
        """Show the class with its arguments, and for one made from functions its events."""
        fields = vars(self)
        names = [name for name in inspect.signature(type(self)).parameters if name in fields]
        given = [f"{name}={shown(fields[name])}" for name in names]
        return f"{type(self).__name__}({', '.join([*given, *(n for n in EVENTS if n in fields)])})"

    def forward_context(self, learn: Any) -> AbstractContextManager[Any] | None:
        """Return a reusable context to run prediction and loss in, or ``None``."""
        return None

    def as_validated(self, learn: Any) -> AbstractContextManager[Any]:
        """Return a context in which the model has the weights that validation sees."""
        return nullcontext()

    def plan(self, learn: Any) -> dict[str, Any]:
        """Return by short, lasting keys what must agree for a resume: settings, no state.

        Values are compared: numbers and text as they are, schedules by their fields, functions
        and objects by qualified name and plain public fields. A resumed fit in which one differs
        is refused. A callback of `Stage.PREPARE` that says nothing is compared by its class. Keys
        with a dot are the fit's own: ``"schedule.lr"``.
        """
        return self._occasions.plan()

    def describe_step(self, learn: Any) -> str | None:
        """Say what this callback has make the updates of a fit; ``None`` if it does not choose."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a restart, as plain values and tensors."""
        return self._occasions.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._occasions.load_state_dict(state)

    def takes_part_in(self, run: Run) -> bool:
        """Tell whether this callback takes part in a run."""
        if self.first_process_only and is_follower():
            return False
        if self.runs_in is not None:
            return run in self.runs_in
        return run in (_ALL_RUNS if self.stage is Stage.PREPARE else _FITS)
