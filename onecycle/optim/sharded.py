"""Tensors of which each process has a part: told from others, made whole, and cut anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)

from onecycle.data.nested import map_tensors
from onecycle.optim.several import each_of

#: Those that look at each number of a parameter for itself, so that a part needs no other part.
_ELEMENTWISE = (SGD, Adam, AdamW, NAdam, RAdam, Adamax, RMSprop, Adagrad, Adadelta, ASGD)


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is one of which this process has a part.

    Args:
        tensor: Anything.

    Example:
        >>> import torch
        >>> is_sharded(torch.ones(2))
        False
    """
    return isinstance(tensor, Tensor) and hasattr(tensor, "full_tensor")


def whole(value: Any, *, keeps: bool = True) -> Any:
    """Return a nested value in which all tensors are whole; every process must call it alike.

    Args:
        value: Whatever holds tensors; it stays as it is.
        keeps: Whether this process keeps what was cut, on the CPU; else it gets empty tensors
            there. Only one such tensor at a time is whole on the device.

    Example:
        >>> import torch
        >>> whole({"a": torch.ones(1)})
        {'a': tensor([1.])}
    """

    def made(tensor: Any) -> Tensor:
        if not is_sharded(tensor):
            return tensor  # type: ignore[no-any-return]
        found: Tensor = tensor.detach().full_tensor()
        return found.cpu() if keeps else found.new_empty(0, device="cpu")

    return map_tensors(made, value)


def whole_number(number: Any) -> Any:
    """Return a number over sharded tensors as a plain tensor; every process must call it alike."""
    return number.full_tensor() if is_sharded(number) else number


def part_of(tensor: Any, like: Any) -> Any:
    """Return the part of a whole tensor that this process has of another one; asks nobody.

    Args:
        tensor: A whole tensor, the same in every process; all else is returned as it is.
        like: A tensor that is cut already; nothing is cut where this is whole, or has another
            shape.
    """
    cut: Any = like
    if not is_sharded(like) or not isinstance(tensor, Tensor) or is_sharded(tensor):
        return tensor
    if tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # slow, and few need it

    here = tensor.to(like.device)
    return distribute_tensor(here, cut.device_mesh, cut.placements, src_data_rank=None)


def parts_of(state: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state of whole tensors with those cut that are cut in another one.

    Args:
        state: By name; with what else it has, as the versions of modules.
        own: By the same names.
    """
    if not any(map(is_sharded, own.values())):
        return state
    made = map_tensors(lambda tensor: tensor, state)
    made.update({name: part_of(value, own.get(name)) for name, value in state.items()})
    return made  # type: ignore[no-any-return]


def check_elementwise(opt: Optimizer) -> None:
    """Refuse an optimizer whose step needs whole parameters, where they are cut.

    Raises:
        ValueError: If it is none of those that are known to need none.
    """
    held = [p for group in opt.param_groups for p in group["params"]]
    if not any(map(is_sharded, held)):
        return
    for each in each_of(opt):
        if type(each) not in _ELEMENTWISE:
            raise ValueError(
                f'parallel="fsdp" cuts parameters into parts, and {type(each).__name__} may need '
                f"them whole: use one of {', '.join(kind.__name__ for kind in _ELEMENTWISE)}"
            )
    if not all(map(is_sharded, held)):
        raise ValueError(
            'the splitter gives the optimizer parameters that are not the model\'s: parallel="fsdp"'
            " trains those of model and loss function alone"
        )


def sharded_parameters(*roots: nn.Module | None) -> bool:
    """Tell whether parameters of modules are cut.

    Args:
        *roots: The modules, or ``None``.
    """
    found = (root for root in roots if root is not None)
    return any(is_sharded(p) for root in found for p in root.parameters())


def check_plain_compile(model: nn.Module, compile: bool | str) -> None:
    """Refuse to compile a model whose parameters are cut.

    Raises:
        ValueError: If it is to be compiled.
    """
    if compile and sharded_parameters(model):
        raise ValueError(
            'compile= and parallel="fsdp" do not go together here: leave one of them out'
        )
