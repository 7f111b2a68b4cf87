"""Operators of torch whose kernels believe what they are given, checked before they run.

Weights, states or offsets that do not fit each other let them read, and even write, memory that is
no tensor's: a model cannot give them such, and a file that is made by hand could.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

#: By operator how many gates the weights of a recurrent layer are for.
_GATES = {
    "aten.lstm.input": 4,
    "aten.gru.input": 3,
    "aten.rnn_tanh.input": 1,
    "aten.rnn_relu.input": 1,
}


def _recurrent(
    op: Callable[..., Any],
    x: Any,
    hidden: Any,
    weights: Any,
    has_biases: Any,
    n_layers: Any,
    dropout: Any,
    training: Any,
    is_bidirectional: Any,
    batch_first: Any,
) -> Any:
    """Run one of the operators on tensors of the shapes that it expects, or refuse them."""
    gates = _GATES[str(op)]
    numbers = (n_layers, dropout, has_biases, training, is_bidirectional, batch_first)
    if tuple(map(type, numbers)) != (int, float, bool, bool, bool, bool) or n_layers < 1:
        raise ValueError("a recurrent layer has other options than torch's")
    states = hidden if type(hidden) is list and gates == 4 else [hidden]
    tensors = [x, *states, *(weights if type(weights) is list else [None])]
    if not all(isinstance(each, Tensor) for each in tensors) or x.ndim != 3:
        raise ValueError("a recurrent layer takes tensors, and sequences in batches")
    if len({(each.dtype, each.device) for each in tensors}) > 1 or not x.is_floating_point():
        raise ValueError("the tensors of a recurrent layer are of one kind, on one device")
    directions, size = 1 + is_bidirectional, int(states[0].shape[-1]) if states[0].ndim else 0
    expected: list[tuple[int, ...]] = []
    for layer in range(n_layers):
        inputs = directions * size if layer else int(x.shape[-1])
        shapes: list[tuple[int, ...]] = [(gates * size, inputs), (gates * size, size)]
        shapes += [(gates * size,)] * 2 if has_biases else []
        expected += shapes * directions
    state = (n_layers * directions, int(x.shape[0 if batch_first else 1]), size)
    found = [tuple(each.shape) for each in tensors[1:]]
    if not size or found != [state] * (2 if type(hidden) is list else 1) + expected:
        raise ValueError("the states and weights of a recurrent layer do not fit each other")
    options = (has_biases, n_layers, dropout, training, is_bidirectional, batch_first)
    return op(x, hidden, weights, *options)


def _bag(op: Callable[..., Any], weight: Any, indices: Any, offsets: Any, *options: Any) -> Any:
    """Sum embeddings, of places that are there."""
    if not isinstance(offsets, Tensor) or not isinstance(indices, Tensor):
        raise ValueError("an embedding bag takes tensors of indices and of offsets")
    if offsets.numel() and (offsets.min() < 0 or offsets.max() > indices.numel()):
        raise ValueError("an offset of an embedding bag is beyond its indices")
    return op(weight, indices, offsets, *options)


def _attention(
    op: Callable[..., Any], query: Any, key: Any, value: Any, *options: Any, **named: Any
) -> Any:
    """Attend to as many values as there are keys."""
    tensors = (query, key, value)
    if not all(isinstance(each, Tensor) and each.ndim > 1 for each in tensors):
        raise ValueError("attention takes tensors of queries, keys and values")
    fits = key.shape[:-1] == value.shape[:-1] and query.shape[-1] == key.shape[-1]
    if not named.get("enable_gqa"):  # else there are fewer heads of keys, which torch looks at
        fits = fits and query.shape[:-2] == key.shape[:-2]
    if not fits:
        raise ValueError("the queries, keys and values of attention do not fit each other")
    return op(query, key, value, *options, **named)


#: By name what runs an operator, which it takes first.
GUARDS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_GATES, _recurrent),
    "aten.embedding_bag.default": _bag,
    "aten.embedding_bag.padding_idx": _bag,
    "aten.scaled_dot_product_attention.default": _attention,
}
