"""What was found when a loss or a gradient was not finite: a `PostMortem`, which prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from onecycle.callbacks.recorder import recorder_of
from onecycle.checkpoints.snapshot import preserved
from onecycle.optim.compiled import uncompiled
from onecycle.optim.groups import listed
from onecycle.optim.sharded import whole_number
from onecycle.record.smoothing import smooth

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

#: How many updates a report shows before the one that failed.
SHOWN = 10
_NAMED = 4
#: The weight of the past in the smoothing that the proposed rate goes by: about ten updates.
_BETA = 0.9


@dataclass(frozen=True)
class UpdateRecord:
    """One update of the report.

    Attributes:
        update: Of the learner's life, from 1.
        loss: Its training loss.
        lr: The learning rate of each parameter group.
        momentum: The momentum of each group; empty where the optimizer has none.
    """

    update: int
    loss: float
    lr: tuple[float, ...]
    momentum: tuple[float, ...]


@dataclass(frozen=True)
class PostMortem:
    """What was found when a loss or a gradient was NaN or infinite; prints as a table.

    Attributes:
        update: The update that failed, of the learner's life, from 1.
        loss: Its training loss; finite if only a gradient was not.
        updates: The ten updates before it, oldest first, and the one that failed.
        batches_late: How many batches later it was noticed. If above 0, weights and batch are
            those of that moment, not those of the failure.
        bad_parameters: The parameters and buffers that are not finite, by name.
        bad_inputs: The parts of the batch that are not finite, or empty, each in words; of several
            processes in the part of any.
        bad_module: The first module whose output was not finite when the batch was run once more
            (the random numbers of dropout are others), as ``name (type)``; ``None`` if all were.
        gradient_norms: The 2-norm of each group's gradient of that batch; empty if it could not
            be differentiated.
        lr: A proposed learning rate of the last group: a tenth of the one at the last time that
            the smoothed loss of this fit was at its minimum. ``None`` where the rate is not to
            blame.
        reason: Why this rate, or why none.
        failure: The error that ended the second run of the batch, or ``None``.

    Source:
        A tenth of the rate at the minimum: the range test of fastai, "minimum / 10".
    """

    update: int
    loss: float
    updates: tuple[UpdateRecord, ...]
    batches_late: int
    bad_parameters: tuple[str, ...]
    bad_inputs: tuple[str, ...]
    bad_module: str | None
    gradient_norms: tuple[float, ...]
    lr: float | None
    reason: str
    failure: str | None

    def __str__(self) -> str:
        """Return the report as a table and a few lines."""
        lines = [f"{'update':>8}  {'loss':>12}  {'learning rate':<20}  momentum"]
        lines += [
            f"{row.update:>8}  {row.loss:>12.6g}  {listed(row.lr):<20}  "
            f"{listed(row.momentum) or '-'}"
            for row in self.updates
        ]
        norms = listed(self.gradient_norms) or "not known"
        facts = {
            "gradient norm": f"{norms} (of this batch, by parameter group)",
            "parameters": _found(self.bad_parameters),
            "batch": _found(self.bad_inputs),
            "first bad output": self.bad_module or "none: every module's output is finite",
            "proposed rate": f"{'none' if self.lr is None else f'{self.lr:.3g}'}: {self.reason}",
        }
        if self.failure is not None:
            facts["second run"] = f"ended in {self.failure}"
        if self.batches_late:
            facts["noticed"] = (
                f"{self.batches_late} batches late: parameters, batch and gradient are of then"
            )
        return "\n".join([*lines, *(f"{name + ':':<17} {fact}" for name, fact in facts.items())])


def examine(learn: Loop, update: int, loss: float, batches_late: int = 0) -> PostMortem:
    """Examine the batch that a learner has just run, and leave everything as it was.

    The batch is run once more, forward and backward; weights, buffers, gradients and random
    states are put back, in place: a loss that still waits for its backward pass cannot be
    differentiated afterwards.

    Args:
        learn: The learner, in the middle of a fit; its `Recorder` takes part.
        update: The update that failed, of the learner's life, from 1.
        loss: Its training loss.
        batches_late: How many batches ago that was.
    """
    tensors = {**dict(learn.model.named_parameters()), **dict(learn.model.named_buffers())}
    bad_parameters = tuple(name for name, tensor in tensors.items() if not _is_finite(tensor))
    bad_inputs = (*_bad_parts("input", learn.xb), *_bad_parts("target", learn.yb))
    bad_inputs, run = _of_all(learn, bad_inputs), _run_again(learn)
    bad_modules = _of_all(learn, run.bad_modules[:1])
    record = _record(learn, update)
    lr, reason = _proposed_rate(record, bad_inputs)
    return PostMortem(
        update=update,
        loss=loss,
        updates=_last_updates(learn, record, update, loss),
        batches_late=batches_late,
        bad_parameters=bad_parameters,
        bad_inputs=bad_inputs,
        bad_module=bad_modules[0] if bad_modules else None,
        gradient_norms=tuple(run.gradient_norms),
        lr=lr,
        reason=reason,
        failure=run.failure,
    )


def _of_all(learn: Loop, found: Sequence[str]) -> tuple[str, ...]:
    """Return what was found; of several processes what each found in its part of the batch."""
    if learn.processes is None:
        return tuple(found)
    said = enumerate(learn.processes.gather(list(found)))
    return tuple(f"process {rank}: {each}" for rank, part in said for each in part)


@dataclass
class _Run:
    """What the second run of a batch showed."""

    bad_modules: list[str] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    failure: str | None = None


def _run_again(learn: Loop) -> _Run:
    run = _Run()
    # Contexts are asked for anew: one of the fit's may be entered at this moment.
    contexts = [callback.forward_context(learn) for callback in learn.cbs]
    try:
        with preserved(learn), ExitStack() as stack:
            _watch(learn.model, run.bad_modules, stack)
            learn.opt.zero_grad()
            with ExitStack() as inner:
                for context in filter(None, contexts):
                    inner.enter_context(context)
                loss = learn.compute_loss(learn.predict_batch(learn.batch), learn.batch)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
            groups = range(len(learn.groups))
            run.gradient_norms = [_norm(learn.groups.params(g)) for g in groups]
    except Exception as error:  # a report with a gap is better than none
        run.failure = f"{type(error).__name__}: {error}"
    return run


def _watch(model: nn.Module, bad: list[str], stack: ExitStack) -> None:
    """Collect the modules whose output is not finite until the stack is closed."""
    stack.enter_context(uncompiled())
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):  # they take no hooks
            note = partial(_note_output, bad, name)
            stack.callback(module.register_forward_hook(note).remove)


def _note_output(bad: list[str], name: str, module: nn.Module, _: Any, output: Any) -> None:
    """Note a module whose output is not finite; inner modules finish before outer ones."""
    if not all(_is_finite(tensor) for _, tensor in _tensors("", output)):
        bad.append(f"{name or 'the model'} ({type(module).__name__})")


def _norm(params: Sequence[nn.Parameter]) -> float:
    gradients = [p.grad for p in params if p.grad is not None]
    return float(whole_number(nn.utils.get_total_norm(gradients))) if gradients else 0.0


def _bad_parts(name: str, value: Any) -> Iterator[str]:
    for place, tensor in _tensors(name, value):
        if not tensor.numel():
            yield f"{place} {tuple(tensor.shape)} is empty"
        elif not _is_finite(tensor):
            n = int((~torch.isfinite(tensor)).sum())
            yield f"{place} {tuple(tensor.shape)}: {n} of {tensor.numel()} values"


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a nested value, with its place."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | tuple | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in items:
            yield from _tensors(f"{name}[{key!r}]", part)


def _is_finite(tensor: Tensor) -> bool:
    return bool(whole_number(torch.isfinite(tensor).all()))


@dataclass(frozen=True)
class _Record:
    """What the recorder has of this fit up to an update: one row for each update."""

    updates: NDArray[np.int64]
    losses: NDArray[np.float64]
    lrs: NDArray[np.float64]
    momenta: NDArray[np.float64]


def _record(learn: Loop, last: int) -> _Record:
    history, first = recorder_of(learn).history, learn.total_updates - learn.n_updates + 1

    def rows(name: str) -> NDArray[np.float64]:
        updates, values = history[name].updates, history[name].values
        values = values[(first <= updates) & (updates <= last)]
        return values[:, None] if values.ndim == 1 else values

    updates = history["train_loss"].updates
    updates = updates[(first <= updates) & (updates <= last)]
    momenta = rows("momentum") if learn.groups.has_momentum() else np.empty((len(updates), 0))
    return _Record(updates, rows("train_loss")[:, 0], rows("lr"), momenta)


def _last_updates(
    learn: Loop, record: _Record, update: int, loss: float
) -> tuple[UpdateRecord, ...]:
    columns = (record.updates, record.losses, record.lrs, record.momenta)
    rows = [
        UpdateRecord(at, value, tuple(lr), tuple(momentum))
        for at, value, lr, momentum in zip(
            *(column[-SHOWN - 1 :].tolist() for column in columns), strict=True
        )
    ]
    if rows and rows[-1].update == update:  # noticed late, it was made
        return tuple(rows)
    groups = learn.groups
    momenta = groups.get("momentum") if groups.has_momentum() else ()
    failed = UpdateRecord(update, loss, tuple(groups.in_force("lr")), tuple(momenta))
    return (*rows[-SHOWN:], failed)


def _proposed_rate(record: _Record, bad_inputs: Sequence[str]) -> tuple[float | None, str]:
    if bad_inputs:
        return None, "the batch itself is not finite; look at the data"
    smoothed = smooth(record.losses, beta=_BETA)
    if not np.isfinite(smoothed).any():
        why = "no update was made before with a finite loss; look at the data, the loss function"
        return None, f"{why} and the initial weights"
    at = int(np.flatnonzero(smoothed == np.nanmin(smoothed))[-1])
    lr = float(record.lrs[at, -1])
    where = f"at update {record.updates[at]}, where the smoothed loss was last at its minimum"
    return lr / 10, f"a tenth of the one {where}"


def _found(bad: Sequence[str]) -> str:
    if not bad:
        return "all finite"
    more = f", ... {len(bad)} in all" if len(bad) > _NAMED else ""
    return f"not finite: {', '.join(bad[:_NAMED])}{more}"
