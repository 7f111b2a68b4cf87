"""State that an option needs, where the optimizer began without the option."""

from __future__ import annotations

import torch
from torch.optim import Adam, Optimizer, RMSprop

from onecycle.optim.wrapped import with_inner

#: Which state torch looks for without a word of why, by class and option. It makes it at the first
#: step of a parameter alone, and begins with 0.
_NEEDED: list[tuple[type[Optimizer], str, str]] = [
    (RMSprop, "momentum", "momentum_buffer"),
    (RMSprop, "centered", "grad_avg"),
    (Adam, "amsgrad", "max_exp_avg_sq"),
]


def fill_late_state(opt: Optimizer, *planned: str) -> None:
    """Give parameters that were stepped without an option the state that it needs, of 0.

    Args:
        opt: The optimizer; those in it are looked after too.
        *planned: Options that are to be on later, besides those that are on.

    Example:
        >>> p = torch.ones(1, requires_grad=True)
        >>> p.grad, opt = torch.ones(1), RMSprop([p])
        >>> opt.step()
        >>> opt.param_groups[0]["momentum"] = 0.9
        >>> fill_late_state(opt)
        >>> opt.state[p]["momentum_buffer"]
        tensor([0.])
    """
    for holder in with_inner(opt):
        for kind, option, key in _NEEDED:
            if not isinstance(holder, kind):
                continue
            for group in holder.param_groups:
                for p in group["params"] if group.get(option) or option in planned else ():
                    state = holder.state.get(p)
                    if state and key not in state:
                        state[key] = torch.zeros_like(p, memory_format=torch.preserve_format)
