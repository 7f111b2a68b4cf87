"""Build the optimizer, fused where it can be, and refuse those that cannot serve."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from onecycle.arguments import check_flag, shown
from onecycle.optim.groups import ParamGroups
from onecycle.optim.late_state import fill_late_state
from onecycle.optim.loss_module import named_parts, own_parameters
from onecycle.optim.members import members_by_decay, members_of_split
from onecycle.optim.several import Optimizers, as_one
from onecycle.optim.sharded import check_elementwise, is_sharded
from onecycle.optim.wrapped import with_inner

log = logging.getLogger("onecycle")

#: Makes an optimizer of parameter groups: ``opt_func(groups, lr=...)``. A class, or a partial.
OptFunc = Callable[..., Optimizer]
#: One of these, or several by the names of the splitter's groups.
OptFuncs = OptFunc | Mapping[str, OptFunc]
#: Returns the parameter groups of a model, each some of its parameters; in a dict by name.
Splitter = Callable[
    [nn.Module], Sequence[Iterable[nn.Parameter]] | Mapping[str, Iterable[nn.Parameter]]
]

_FUSED_DEVICES = ("cpu", "cuda")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def build_optimizer(
    model: nn.Module,
    opt_func: OptFuncs,
    *,
    lr: float,
    wd: float | None = None,
    splitter: Splitter | None = None,
    loss: nn.Module | None = None,
) -> Optimizer:
    """Build the optimizer of a model.

    It is made fused where the class can be, unless ``fused`` or ``foreach`` was chosen
    explicitly, or a parameter is complex, has sparse gradients, or is on a device without fused
    kernels. A fused optimizer agrees with the plain one to rounding, not to the bit.

    Args:
        model: On its final device.
        opt_func: A class such as ``torch.optim.AdamW``, or a callable ``(groups, lr=...)``; or a
            dict of them, one for each of the names in the dict that the splitter returns.
        lr: The learning rate to begin with.
        wd: The weight decay; ``None`` for the optimizer's own.
        splitter: Returns the parameter groups; by default all parameters are one group.
        loss: The module of the loss function, whose parameters are added to the last group.

    Returns:
        The optimizer, with one of its ``param_groups`` for each of the splitter's groups.

    Raises:
        ValueError: If the model has no parameters, the splitter leaves some out, or the
            optimizer cannot serve.
    """
    groups = split_parameters(model, splitter, loss)
    parts = [model] if loss is None else [model, loss]
    parameters = named_parts(model, loss)
    sparse = {key for part in parts for key in _sparse_parameters(part)}
    kwargs: dict[str, Any] = {"lr": lr} | ({} if wd is None else {"weight_decay": wd})
    if isinstance(opt_func, Mapping):
        names = _owners(model, splitter, opt_func)
        opt: Optimizer = Optimizers(
            {
                name: _build(opt_func[name], [group], parameters, sparse, kwargs)
                for name, group in zip(names, groups, strict=True)
            }
        )
    else:
        opt = _build(opt_func, groups, parameters, sparse, kwargs)
    check_serves(opt, model)
    check_elementwise(opt)
    own = [*own_parameters(model, loss)]
    if own:
        log.info("the loss function's parameters train in group %d: %s", len(groups) - 1, own)
    return opt


def _build(
    opt_func: OptFunc,
    groups: list[list[nn.Parameter]],
    named: Mapping[str, nn.Parameter],
    sparse: set[int],
    kwargs: dict[str, Any],
) -> Optimizer:
    """Build one optimizer, of its groups."""
    ids = {id(p) for group in groups for p in group}
    parameters = {name: p for name, p in named.items() if id(p) in ids}
    _check_kind(parameters, sparse, opt_func)
    if not ids & sparse and _can_be_fused(parameters.values(), opt_func):
        kwargs = {**kwargs, "fused": True}
    try:
        opt = opt_func([{"params": group} for group in groups], **kwargs)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"opt_func={_name(opt_func)} cannot be built for this model: {error} "
            f"(it was called with {len(groups)} parameter group(s) and {kwargs})"
        ) from error
    if not hasattr(opt, "param_groups"):
        raise TypeError(f"opt_func={_name(opt_func)} must make an optimizer; got {shown(opt)}")
    return opt


def _owners(
    model: nn.Module, splitter: Splitter | None, opt_funcs: Mapping[str, OptFunc]
) -> list[str]:
    """Return the names of the splitter's groups, which are those of several optimizers."""
    split = None if splitter is None else splitter(model)
    if not isinstance(split, Mapping) or {*split} != {*opt_funcs}:
        came = "no splitter" if splitter is None else f"one that returns {shown(split)}"
        raise ValueError(
            f"opt_func= has optimizers by name, {[*opt_funcs]}: give it a splitter= that returns a "
            f"dict with the parameters of each, such as onecycle.muon_groups; got {came}"
        )
    return [*split]


def check_serves(opt: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that the loop cannot step, or that trains something else.

    Raises:
        ValueError: If its step needs a closure, or it holds none of the model's parameters.
    """
    closure = inspect.signature(opt.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(_needs_closure(type(opt).__name__))
    held = {id(p) for group in opt.param_groups for p in group["params"]}
    if not held & {id(p) for p in model.parameters()}:
        raise ValueError(
            f"the optimizer ({type(opt).__name__}) holds none of the model's parameters: "
            "build it from this model's parameters(), after any change that replaces them"
        )


def split_parameters(
    model: nn.Module, splitter: Splitter | None, loss: nn.Module | None = None
) -> list[list[nn.Parameter]]:
    """Return the splitter's groups of the model's parameters, those of the loss in the last one.

    Args:
        model: The model.
        splitter: As for `build_optimizer`.
        loss: Likewise.

    Raises:
        ValueError: If the model has no parameters, or the splitter leaves some out.
    """
    groups = _split(model, splitter)
    held = {id(p) for group in groups for p in group}
    groups[-1] += [p for p in own_parameters(model, loss).values() if id(p) not in held]
    return groups


def _split(model: nn.Module, splitter: Splitter | None) -> list[list[nn.Parameter]]:
    everything = list(model.parameters())
    if not everything:
        raise ValueError(f"the model ({type(model).__name__}) has no parameters to train")
    if splitter is None:
        return [everything]
    split = splitter(model)
    parts = split.values() if isinstance(split, Mapping) else split
    if not isinstance(parts, Iterable) or not all(isinstance(each, Iterable) for each in parts):
        raise TypeError(
            f"splitter {shown(splitter)} must return lists of the model's parameters; got "
            f"{shown(split)}"
        )
    groups = [list(group) for group in parts]
    if not groups or not all(groups):
        sizes = [len(group) for group in groups]
        raise ValueError(f"splitter must return groups of parameters, none empty; got {sizes}")
    held = {id(p) for group in groups for p in group}
    left = [name for name, p in model.named_parameters() if id(p) not in held]
    if left:
        raise ValueError(
            f"splitter leaves out {len(left)} parameter(s), which would never train: "
            f"{', '.join(left[:5])}{', ...' if len(left) > 5 else ''}; put each in a group "
            "(and freeze those that must not train)"
        )
    return groups


def _check_kind(
    parameters: Mapping[str, nn.Parameter], sparse: set[int], opt_func: OptFunc
) -> None:
    """Refuse early, and in the user's words, the classes that cannot serve."""
    kind = _underlying(opt_func)
    if isinstance(kind, Optimizer) or not callable(kind):
        raise TypeError(
            "opt_func must be a class such as torch.optim.AdamW, or a function (params, lr=...); "
            f"got {shown(kind)}, a {type(kind).__name__}: an optimizer that exists is given as opt="
        )
    if kind is torch.optim.LBFGS:
        raise ValueError(_needs_closure("LBFGS"))
    if kind is torch.optim.SparseAdam:
        dense = [name for name, p in parameters.items() if id(p) not in sparse]
        if dense:
            raise ValueError(
                f"SparseAdam trains only parameters with sparse gradients; {dense[0]!r} has dense "
                "ones: use AdamW, or nn.Embedding(sparse=True) throughout"
            )
    if kind is torch.optim.Muon:
        other = [name for name, p in parameters.items() if p.ndim != 2]
        if other:
            raise ValueError(
                f"Muon trains only matrices; {other[0]!r} is none ({len(other)} such "
                "parameters): use AdamW, or both: "
                'opt_func={"matrices": Muon, "rest": AdamW} with splitter=onecycle.muon_groups'
            )


def _needs_closure(name: str) -> str:
    return (
        f"{name} needs a closure that evaluates the model several times in each step, which a "
        "batch loop does not give: use a first-order optimizer such as AdamW or SGD"
    )


def _underlying(opt_func: OptFunc) -> Any:
    return opt_func.func if isinstance(opt_func, functools.partial) else opt_func


def _name(opt_func: OptFunc) -> str:
    return str(getattr(_underlying(opt_func), "__name__", opt_func))


def _sparse_parameters(model: nn.Module) -> set[int]:
    return {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    }


def _can_be_fused(parameters: Iterable[nn.Parameter], opt_func: OptFunc) -> bool:
    try:
        options = inspect.signature(opt_func).parameters
    except (TypeError, ValueError):
        return False
    if "fused" not in options or options["fused"].default is not None:
        return False
    if "foreach" in options and options["foreach"].default is not None:
        return False
    if "differentiable" in options and options["differentiable"].default:
        return False
    # Adagrad's fused kernel is documented for the CPU alone.
    devices = ("cpu",) if _underlying(opt_func) is torch.optim.Adagrad else _FUSED_DEVICES
    return all(
        p.is_floating_point() and p.device.type in devices and not is_sharded(p) for p in parameters
    )


def ready_state(opt: Optimizer) -> None:
    """Make the state of an optimizer, and of one in it, such that its next step can be made.

    That is: state of an option that was off so far, and, for fused kernels, momentum of parameters
    that begin late, and the layout in memory.

    Call it where weights, state or what trains may have changed since the last update.
    """
    fill_late_state(opt)
    for each in with_inner(opt):
        _fill_momentum(each)
        _match_layout(each)


def _match_layout(opt: Optimizer) -> None:
    """Lay out the state of each parameter of a fused optimizer in memory as the parameter is.

    Its kernel goes through weight and state in the order of memory: where a model was moved to
    ``torch.channels_last``, or a state comes from a file of another layout, it would pair each
    weight with the momentum of another one, without a word.
    """
    for group in opt.param_groups:
        for p in group["params"] if group.get("fused") else ():
            state = opt.state.get(p, {})
            for name, value in state.items():
                is_elementwise = isinstance(value, Tensor) and value.shape == p.shape
                if is_elementwise and value.stride() != p.stride():
                    state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)


def _fill_momentum(opt: Optimizer) -> None:
    """Give the parameters that begin to train late in a fused SGD a momentum, of 0.

    Its kernel takes either all momenta of a group or, at the first step, none: it fails on a
    group in which some parameters were frozen so far. With dampening, which is not applied to
    a first step otherwise, the first step of those parameters is smaller for it.
    """
    if not isinstance(opt, torch.optim.SGD):
        return
    for group in opt.param_groups:
        params = [p for p in group["params"] if p.requires_grad]
        without = [p for p in params if opt.state.get(p, {}).get("momentum_buffer") is None]
        if group["fused"] and len(without) < len(params):
            for p in without:
                opt.state[p]["momentum_buffer"] = torch.zeros_like(p)


def norm_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of normalization layers."""
    return {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }


def norms_and_biases(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that should not decay: those of norms, and biases."""
    biases = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if "bias" in name
    }
    return norm_parameters(model) | biases


def move_to(device: str | torch.device | None, *parts: object) -> None:
    """Move the modules among the parts to a device: the accelerator where none is named."""
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError("it is neither a text nor a torch.device")
        for part in parts:
            if isinstance(part, nn.Module):
                part.to(device)
    except (RuntimeError, TypeError, AssertionError) as error:  # the last of a torch without CUDA
        raise ValueError(
            f"device must be one that torch can use, such as 'cpu' or 'cuda:0'; got "
            f"{shown(device)}: {error}"
        ) from error


def param_groups(
    model: nn.Module,
    loss: nn.Module | None,
    given: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer] | None,
    opt_func: OptFuncs,
    wd: float | None,
    splitter: Splitter | None,
    wd_bn_bias: bool,
) -> ParamGroups:
    """Return the parameter groups of an optimizer that exists, or of one built for the model.

    What they are says the splitter. Without one, all parameters are one group, or, where the
    optimizer has several of its own, those of them are that were not made for decay.
    """
    exempt: set[int] = set()
    check_flag("wd_bn_bias", wd_bn_bias)
    opt = as_one(given)
    if opt is None:
        opt = build_optimizer(model, opt_func, lr=1e-3, wd=wd, splitter=splitter, loss=loss)
        if not wd_bn_bias:
            exempt = norms_and_biases(model) | (set() if loss is None else norms_and_biases(loss))
    elif wd is not None:
        raise ValueError("opt= is used as it is: give the optimizer its weight decay, not wd=")
    else:
        check_serves(opt, model)
    if splitter is None:
        members = members_by_decay(opt, model)
    else:
        members = members_of_split(opt, split_parameters(model, splitter, loss))
    return ParamGroups(opt, exempt, members)
