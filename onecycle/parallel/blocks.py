"""Which parts of a model are gathered and let go for themselves, where each process has a part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch import nn

from onecycle.optim.named_modules import matching

#: Blocks are taken, the largest first, until no more than this share of them is left to the root.
_LEFT = 0.05
#: What holds layers, and adds nothing of its own.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
#: A part with more than this share of the parameters is looked into.
_MOST = 0.5
#: By the place of a parameter: the names that it has.
Homes = dict[int, list[str]]


def blocks_of(model: nn.Module, names: Sequence[str] = ()) -> list[nn.Module]:
    """Return the children with most parameters, those of containers in place of these.

    A part that shares a weight with another one, as an embedding with a head, is none: both are
    gathered with the root, for a weight that was cut twice would be two. A child that does so, or
    that has most of the parameters, is looked into where there is a container of layers in it.

    Args:
        model: The model.
        names: The blocks to take in place of these, as of `matching`.

    Returns:
        Modules of which none is in another, in the order of the model; none of a small remainder.

    Raises:
        ValueError: If a name fits nothing, or something that can be no block.

    Example:
        >>> layers = [nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Linear(20, 1)]
        >>> model = nn.Sequential(nn.Sequential(*layers), nn.Linear(1, 1))
        >>> [layers.index(block) for block in blocks_of(model)]
        [0, 2]
        >>> [layers.index(block) for block in blocks_of(model, ["0.[02]", "0.3"])]
        [0, 2, 3]
    """
    homes: Homes = defaultdict(list)
    for name, p in model.named_parameters(remove_duplicate=False):
        homes[id(p)].append(name)
    if names:
        return _named(model, names, homes)
    most = _MOST * _size(model)

    def is_opened(name: str, part: nn.Module) -> bool:
        has_layers = any(type(inner) in _CONTAINERS for inner in part.modules())
        return has_layers and (_size(part) > most or not _is_apart(name, part, homes))

    pieces = [each for each in _pieces("", model, is_opened) if _is_apart(*each, homes)]
    sizes = {name: _size(piece) for name, piece in pieces}
    left = total = sum(sizes.values())
    taken = set()
    for name in sorted(sizes, key=lambda each: -sizes[each]):
        if left <= _LEFT * total or not sizes[name]:
            break
        taken.add(name)
        left -= sizes[name]
    return [piece for name, piece in pieces if name in taken]


def _named(model: nn.Module, names: Sequence[str], homes: Homes) -> list[nn.Module]:
    found = matching(model, names)
    for name, part in found.items():
        if type(part) in _CONTAINERS[1:]:
            raise ValueError(
                f"the block {name!r} is a {type(part).__name__}, which is never called: name its "
                f'layers, "{name}.*"'
            )
        if not _is_apart(name, part, homes):
            raise ValueError(
                f"the block {name!r} shares a weight with what is not in it, and that cannot be "
                "cut twice: leave it out of blocks, and it is gathered with the rest"
            )
    return [part for part in found.values() if any(True for _ in part.parameters())]


def _size(part: nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())


def _pieces(
    prefix: str, module: nn.Module, is_opened: Callable[[str, nn.Module], bool]
) -> list[tuple[str, nn.Module]]:
    """List the children by their names; those of what is opened in its place."""
    found = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        is_container = type(child) in _CONTAINERS and any(child.children())
        if is_container or is_opened(path, child):
            found += _pieces(f"{path}.", child, is_opened)
        else:
            found.append((path, child))
    return found


def _is_apart(name: str, piece: nn.Module, homes: Homes) -> bool:
    """Tell whether no parameter of a piece has a name, and so a place, outside of it too."""
    return all(home.startswith(f"{name}.") for p in piece.parameters() for home in homes[id(p)])
