"""Modules of a model by their names, in which ``*`` stands for any part."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from onecycle.arguments import check_list, check_text


def check_blocks(blocks: Sequence[str]) -> list[str]:
    """Return the names of blocks as a list of texts.

    Args:
        blocks: As of `matching`.

    Raises:
        TypeError, ValueError: If they are no list of texts, or one is empty.
    """
    found = check_list("blocks", blocks, 'names of modules, such as ["layers.*"]')
    for block in found:
        check_text("each of blocks", block)
    return found


def matching(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules whose names fit one of the patterns, by name, in the model's order.

    Args:
        model: The model.
        patterns: Names; ``*`` stands for any part between two dots, or for some letters of one.

    Raises:
        ValueError: If no name fits a pattern, or one of the modules lies in another one.

    Example:
        >>> model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.ReLU())
        >>> [*matching(model, ["1", "0.*"])]
        ['0.0', '0.1', '1']
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found = set()
    for pattern in patterns:
        fitting = {name for name in modules if _fits(name, pattern)}
        if not fitting:
            names = ", ".join([*modules][:8]) + (", ..." if len(modules) > 8 else "")
            raise ValueError(
                f"blocks: no module of the model is called {pattern!r}; it has {names or 'none'}"
            )
        found |= fitting
    for inner in sorted(found):
        for outer in sorted(found):
            if inner.startswith(f"{outer}."):
                raise ValueError(
                    f"the block {inner!r} lies in the block {outer!r}, which is taken as a whole: "
                    "name one of them"
                )
    return {name: module for name, module in modules.items() if name in found}


def _fits(name: str, pattern: str) -> bool:
    parts, given = name.split("."), pattern.split(".")
    return len(parts) == len(given) and all(map(fnmatchcase, parts, given))
