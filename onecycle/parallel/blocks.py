"""Which parts of a model are gathered and let go for themselves, where each process has a part."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

#: Blocks are taken, the largest first, until no more than this share of them is left to the root.
_LEFT = 0.05
#: What holds layers, and adds nothing of its own.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the children with most parameters, those of containers in place of these.

    A part that shares a weight with another one, as an embedding with a head, is none: both are
    gathered with the root, for a weight that was cut twice would be two.

    Args:
        model: The model.

    Returns:
        Modules of which none is in another, in the order of the model; none of a small remainder.

    Example:
        >>> layers = [nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Linear(20, 1)]
        >>> found = blocks_of(nn.Sequential(nn.Sequential(*layers), nn.Linear(1, 1)))
        >>> [layers.index(block) for block in found]
        [0, 2]
    """
    homes: dict[int, list[str]] = defaultdict(list)
    for name, p in model.named_parameters(remove_duplicate=False):
        homes[id(p)].append(name)
    pieces = [(name, piece) for name, piece in _pieces("", model) if _is_apart(name, piece, homes)]
    sizes = {name: sum(p.numel() for p in piece.parameters()) for name, piece in pieces}
    left = total = sum(sizes.values())
    taken = set()
    for name in sorted(sizes, key=lambda each: -sizes[each]):
        if left <= _LEFT * total or not sizes[name]:
            break
        taken.add(name)
        left -= sizes[name]
    return [piece for name, piece in pieces if name in taken]


def _pieces(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the children by their names; those of containers in their place."""
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        is_container = type(child) in _CONTAINERS and any(child.children())
        found += _pieces(f"{path}.", child) if is_container else [(path, child)]
    return found


def _is_apart(name: str, piece: nn.Module, homes: dict[int, list[str]]) -> bool:
    """Tell whether no parameter of a piece has a name, and so a place, outside of it too."""
    return all(home.startswith(f"{name}.") for p in piece.parameters() for home in homes[id(p)])
