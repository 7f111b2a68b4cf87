"""`summarize`: a model layer by layer, with the optimizer and the callbacks that train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from onecycle.errors import CancelValid
from onecycle.optim.compiled import uncompiled

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


@dataclass(frozen=True)
class Layer:
    """One row of a `Summary`: a module without children, or with parameters of its own.

    Attributes:
        name: The path in the model, as in ``model.named_modules()``.
        kind: The name of its class.
        output: The shapes of what it returned, as text such as ``"(64, 10)"``, batch first; empty
            where it was not called, or not from Python.
        n_parameters: The numbers in its own parameters.
        n_trainable: Those of them that take gradients.
    """

    name: str
    kind: str
    output: str
    n_parameters: int
    n_trainable: int

    @property
    def trainable(self) -> str:
        """``"yes"``, ``"no"`` or ``"part"``; empty without parameters."""
        if not self.n_parameters:
            return ""
        return {0: "no", self.n_parameters: "yes"}.get(self.n_trainable, "part")


@dataclass(frozen=True, repr=False)
class Summary:
    """What `summarize` returns; prints as a table.

    Attributes:
        layers: The rows, in the order of ``model.named_modules()``.
        n_parameters: The numbers in all parameters; one that several layers share counts once.
        n_trainable: Those of them that take gradients.
        n_buffers: The numbers in all buffers.
        n_bytes: What parameters and buffers take in memory.
        groups: The parameter groups, as a table.
        optimizer: Its class, whether it is fused, and what momentum it can cycle.
        step: Which step makes the updates, of the fit that runs or of one with the learner's
            callbacks, and why where it is torch's own.
        loss_func: The name of the loss function.
        device: Where the model is.
        callbacks: For each stage the names of its callbacks, in their order.
    """

    layers: tuple[Layer, ...]
    n_parameters: int
    n_trainable: int
    n_buffers: int
    n_bytes: int
    groups: str
    optimizer: str
    step: str
    loss_func: str
    device: str
    callbacks: tuple[tuple[str, tuple[str, ...]], ...]

    def __repr__(self) -> str:
        rows = [("layer", "type", "output", "parameters", "trainable")]
        rows += [
            (layer.name or "(model)", layer.kind, layer.output, count, layer.trainable)
            for layer in self.layers
            for count in [f"{layer.n_parameters:,}" if layer.n_parameters else ""]
        ]
        is_shared = sum(layer.n_parameters for layer in self.layers) != self.n_parameters
        facts = {
            "parameters": f"{self.n_parameters:,}, trainable {self.n_trainable:,}"
            + (" (what layers share counts once)" if is_shared else ""),
            "buffers": f"{self.n_buffers:,}",
            "size": _size(self.n_bytes),
            "optimizer": self.optimizer,
            "step": self.step,
            "loss": self.loss_func,
            "device": self.device,
        }
        facts |= {f"cbs {stage}": ", ".join(names) for stage, names in self.callbacks}
        width = max(map(len, facts))
        lines = [f"{name:<{width}}  {fact}" for name, fact in facts.items()]
        return "\n".join([*_align(rows), "", self.groups, "", *lines])


def summarize(learn: Loop) -> Summary:
    """Describe the model layer by layer, the parameter groups, the optimizer and the callbacks.

    The shapes are those of one training batch, which the model sees in evaluation mode and
    without gradients. Nothing is left behind: no hook, and no random number is drawn; also where
    the model raises an error.

    Args:
        learn: The learner.

    Returns:
        A `Summary`, which prints as a table.

    Example:
        >>> from onecycle.testing import toy_learner
        >>> summary = summarize(toy_learner())
        >>> summary.n_parameters
        49
        >>> summary.layers[0]
        Layer(name='0', kind='Linear', output='(8, 8)', n_parameters=40, n_trainable=40)
    """
    model = learn.model
    shown = {name: module for name, module in model.named_modules() if _is_shown(module)}
    outputs = _output_shapes(learn, list(shown.values()))
    parameters, buffers = list(model.parameters()), list(model.buffers())
    layers = []
    for name, module in shown.items():
        own = list(module.parameters(recurse=False))
        output = outputs.get(module, "")
        layers.append(Layer(name, type(module).__name__, output, _count(own), _trainable(own)))
    ordered = sorted(learn.cbs, key=lambda cb: (cb.stage, cb.hears_last))
    by_stage = groupby(ordered, key=lambda cb: cb.stage)
    return Summary(
        layers=tuple(layers),
        n_parameters=_count(parameters),
        n_trainable=_trainable(parameters),
        n_buffers=_count(buffers),
        n_bytes=sum(t.numel() * t.element_size() for t in (*parameters, *buffers)),
        groups=learn.groups.table(),
        optimizer=_describe_optimizer(learn),
        step=_describe_step(learn),
        loss_func=_name_of(learn.loss_func),
        device=str(learn.device),
        callbacks=tuple((s.name, tuple(type(cb).__name__ for cb in cbs)) for s, cbs in by_stage),
    )


def _is_shown(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or next(module.children(), None) is None


def _output_shapes(learn: Loop, modules: Sequence[nn.Module]) -> dict[nn.Module, str]:
    """Run one batch, and return what each module gave when it was first called."""
    outputs: dict[nn.Module, str] = {}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        outputs.setdefault(module, _shapes(output))

    def stop(_: Loop) -> None:
        raise CancelValid("one batch is enough")

    with ExitStack() as stack:
        for module in modules:
            if not isinstance(module, torch.jit.ScriptModule):  # they take no hooks
                stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(uncompiled())
        # The learner draws the batch itself: it knows to leave the loader's generators alone.
        with suppress(CancelValid):
            learn.infer(learn.dls.train, stop, with_loss=False)
    return outputs


def _shapes(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{key}: {_shapes(part)}" for key, part in output.items()) + "}"
    if isinstance(output, tuple | list):
        return "[" + ", ".join(map(_shapes, output)) + "]"
    return type(output).__name__


def _describe_optimizer(learn: Loop) -> str:
    groups = learn.opt.param_groups
    fused = "fused" if all(group.get("fused") for group in groups) else "not fused"
    if learn.groups.momentum_is_on():
        slot = learn.groups.slots("momentum", 0)[0]
        key = slot.key if slot.index is None else f"{slot.key}[{slot.index}]"
        momentum = f"cycles {key}"
    else:
        momentum = "momentum 0" if learn.groups.has_momentum() else "no momentum to cycle"
    return f"{type(learn.opt).__name__} ({fused}; {momentum})"


def _describe_step(learn: Loop) -> str:
    if learn.running == "fit":
        return learn.stepper.describe()
    chosen = (callback.describe_step(learn) for callback in learn.cbs)
    said = next((step for step in chosen if step is not None), None)
    return said or learn.make_stepper(learn.opt).describe()


def _name_of(loss_func: Any) -> str:
    if loss_func is None:
        return "the model's own"
    inner = getattr(loss_func, "func", loss_func)  # of a functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def _count(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _trainable(parameters: Sequence[nn.Parameter]) -> int:
    return _count([parameter for parameter in parameters if parameter.requires_grad])


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the cells of every row to the widths of their columns; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if place == 3 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
