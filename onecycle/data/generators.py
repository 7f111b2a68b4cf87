"""Random generators of torch, NumPy and Python: their states, and seeds for them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)

_UINT64 = 2**64 - 1


def order_seed(seed: int, epoch: int) -> int:
    """Mix a seed and an epoch into the seed of that epoch's data order.

    Neighbouring seeds and epochs give unrelated orders; with ``seed + epoch``, epoch 1 of seed 0
    would be epoch 0 of seed 1.

    Args:
        seed: Any integer; its low 64 bits count.
        epoch: Epochs begun before this one, over the life of the learner.

    Returns:
        An integer in [0, 2**63).

    Source:
        splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
        OOPSLA 2014.

    Example:
        >>> order_seed(0, 1) != order_seed(1, 0)
        True
    """
    return _splitmix64(_splitmix64(seed) + epoch) >> 1


def _splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _UINT64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _UINT64
    return x ^ (x >> 31)


def seed_generator(generator: Any, seed: int) -> None:
    """Seed a generator of any kind.

    Args:
        generator: One of `GENERATORS`. One that draws from the system cannot be seeded, and stays.
        seed: In [0, 2**63).

    Example:
        >>> own = np.random.default_rng()
        >>> seed_generator(own, 3)
        >>> own.random() == np.random.default_rng(3).random()
        True
    """
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        bits.state = type(bits)(seed).state
    else:
        generator.seed(seed & 0xFFFFFFFF)


def state_of(generator: Any) -> Any:
    """Return the state of a generator; ``None`` for one that draws from the system."""
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return None if isinstance(generator, random.SystemRandom) else generator.getstate()
    return generator.get_state()


def put_state(generator: Any, state: Any) -> None:
    """Put a generator back where `state_of` found it."""
    if state is None:
        return
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def seed_global(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, the latter's on the CPU alone.

    Args:
        seed: In [0, 2**63).
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch, all devices, with a number in [0, 2**63)."""
    seed_global(seed)
    torch.manual_seed(seed)


def global_states() -> tuple[Any, ...]:
    """Return the states of the global generators of Python, NumPy and torch, on the CPU."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def put_global_states(states: tuple[Any, ...]) -> None:
    """Put back what `global_states` returned."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


@contextmanager
def kept_states() -> Iterator[None]:
    """Run a block that leaves the global generators of Python, NumPy and torch as they were."""
    before = global_states()
    try:
        yield
    finally:
        put_global_states(before)
