"""A model as a list of torch's operators, of plain values: written, read back, and run.

``torch.export`` says which operators a model calls. Its own files are not read here: torch looks
up whatever function they name, and evaluates expressions in them. Here an operator is a name in a
list that this file knows, of functions that compute with tensors and do nothing else; whatever
else a file names is refused before anything of it is run.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from onecycle.checkpoints.guarded import GUARDS

#: Functions of numbers, such as sizes of a batch that is not known before.
_NUMBERS: dict[str, Callable[..., Any]] = {
    f"operator.{f.__name__}": f
    for f in (
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg),
        *(operator.truediv, operator.getitem),
    )
}
#: Operators of aten that compute with tensors and do nothing else; those in place go by their own
#: name and an underscore. None of them opens a file, or reads memory that is no tensor's; those
#: that would, of tensors that do not fit each other, are among `GUARDS`.
_NAMES = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _log_softmax _softmax _to_copy
    abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addcdiv addcmul addmm
    alias all alpha_dropout amax amin any arange argmax argmin asin asinh atan atan2 atanh
    avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bilinear bitwise_and
    bitwise_not bitwise_or bitwise_xor bmm broadcast_to cat cdist ceil celu channel_shuffle
    chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution copy cos cosh
    cosine_similarity count_nonzero cross cumprod cumsum diagonal div dot dropout einsum elu
    embedding eq erf erfc exp exp2 expand expand_as expm1 feature_dropout fft_irfft fft_rfft
    fill flatten flip floor floor_divide fmod frobenius_norm full full_like gather ge gelu
    glu group_norm gt hardsigmoid hardswish hardtanh index index_put index_select
    instance_norm isinf isnan layer_norm le leaky_relu lerp lift_fresh_copy
    linalg_vector_norm linear log log10 log1p log2 log_sigmoid log_softmax logaddexp
    logical_and logical_not logical_or logical_xor logsumexp lt masked_fill masked_scatter
    matmul max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d
    max_pool3d_with_indices maximum mean meshgrid min minimum mish mm movedim mul narrow
    native_dropout native_group_norm native_layer_norm ne neg new_full new_ones new_zeros
    nonzero norm numpy_T ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow
    prelu prod rand randn randperm reciprocal reflection_pad1d reflection_pad2d
    reflection_pad3d relu relu6 remainder repeat repeat_interleave replication_pad2d
    replication_pad3d reshape reshape_as rms_norm roll round rrelu rsqrt rsub scalar_tensor
    scatter scatter_add scatter_reduce select select_scatter selu sigmoid sign silu sin sinh
    slice slice_scatter softmax softplus softshrink sort split split_with_sizes sqrt square
    squeeze stack std sub sum swapaxes swapdims sym_numel sym_size t tan tanh tile to topk
    transpose tril triu trunc type_as unbind unflatten unfold unsafe_chunk unsafe_split
    unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean view view_as
    where zero zeros zeros_like
    """
_OPERATORS = frozenset(_NAMES.split())
#: Checks of sizes, which this reader makes on its own.
_CHECKS = frozenset(("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size"))
_PLAIN = (type(None), bool, int, float, str)
_KINDS: dict[str, type] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def plain_graph(exported: ExportedProgram) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what a model calls as plain values, and the constants among it.

    Args:
        exported: A model on the CPU, exported in evaluation mode.

    Returns:
        The graph, and by name the tensors that are in no ``state_dict``.

    Raises:
        ValueError: If it holds what is not read back: see `Graph`.
    """
    held, constants, n_inputs = [], {}, 0
    for spec in exported.graph_signature.input_specs:
        name, target = getattr(spec.arg, "name", None), spec.target
        if spec.kind is InputKind.USER_INPUT:
            held.append([name, "input", n_inputs])
            n_inputs += 1
        elif isinstance(tensor := exported.constants.get(target or ""), Tensor):
            held.append([name, "constant", target])
            constants[str(target)] = tensor
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            is_trained = getattr(exported.state_dict.get(target or ""), "requires_grad", False)
            held.append([name, "trained" if is_trained else "state", target])
        else:
            raise ValueError(f"it has an input of the kind {spec.kind.name}")
    nodes, output = [], None
    for node in exported.graph.nodes:
        if node.op == "output":
            leaves = list(node.args[0])[-len(exported.graph_signature.user_outputs) :]
            output = _plain(pytree.tree_unflatten(leaves, exported.call_spec.out_spec))
        elif node.op == "call_function":
            name = _name_of(node.target)
            if name.split(".")[1] not in _CHECKS:
                _function(name)
                nodes.append([node.name, name, _plain(list(node.args)), _plain(dict(node.kwargs))])
        elif node.op != "placeholder":
            raise ValueError(f"it has a {node.op} of {node.target}")
    return {"held": held, "nodes": nodes, "output": output}, constants


def _name_of(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = f"operator.{getattr(target, '__name__', '')}"
    return name if _NUMBERS.get(name) is target else f"{target}."


def _function(name: Any) -> Callable[..., Any]:
    """Return what a name of a file means, or refuse it."""
    if isinstance(name, str) and name in _NUMBERS:
        return _NUMBERS[name]
    namespace, _, rest = name.partition(".") if isinstance(name, str) else ("", "", "")
    packet, _, overload = rest.partition(".")
    guard = GUARDS.get(name) if isinstance(name, str) else None
    is_known = guard is not None or {packet, packet.removesuffix("_")} & _OPERATORS
    if namespace == "aten" and is_known and overload.isidentifier():
        found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if isinstance(found, torch._ops.OpOverload):
            return found if guard is None else partial(guard, found)
    raise ValueError(f"it calls {str(name)[:80]}, which is none of the operators that are known")


def _plain(value: Any) -> Any:
    """Return arguments of an operator as plain values."""
    if isinstance(value, Node):
        return {"node": value.name}
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list) or type(value) is torch.fx.immutable_collections.immutable_list:
        return [_plain(part) for part in value]
    if type(value) is tuple:
        return {"tuple": [_plain(part) for part in value]}
    if type(value) in (dict, OrderedDict) and all(type(key) in (str, int) for key in value):
        return {"dict": [[key, _plain(part)] for key, part in value.items()]}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": None}
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return {name: str(value).removeprefix("torch.")}
    raise ValueError(f"it has a {type(value).__name__} among its arguments")


class Graph:
    """Runs what `plain_graph` returned.

    Args:
        plain: The graph.
        tensors: ``{"state": ..., "constant": ...}``, by name.
        device: Where it runs; the tensors are moved there.

    Raises:
        ValueError: If it is no such graph, names an operator that is not known, or a tensor that
            is not there. Nothing of it has been run then.
    """

    def __init__(
        self, plain: Any, tensors: dict[str, dict[str, Any]], device: torch.device
    ) -> None:
        self._device = device
        self._known: set[str] = set()
        self._start: dict[str, Tensor] = {}
        self._inputs: dict[int, str] = {}
        for name, kind, key in _rows(plain, "held", 3):
            self._add(name)
            if kind == "input":
                self._inputs[key] = name
            else:
                held = tensors.get("state" if kind == "trained" else kind)
                # torch chooses kernels, which round otherwise, by it, also where no gradient is.
                self._start[name] = self._tensor(held, key).requires_grad_(kind == "trained")
        self._steps: list[tuple[str, Callable[..., Any], Any, Any, list[str]]] = []
        self._last_use: dict[str, int] = {}
        for i, (name, function, args, kwargs) in enumerate(_rows(plain, "nodes", 4)):
            called = _function(function)
            self._steps.append((name, called, self._read(args, i), self._read(kwargs, i), []))
            self._add(name)
        self._output = self._read(plain.get("output"), len(self._steps))
        self.n_inputs = len(self._inputs)
        for name, i in self._last_use.items():
            if i < len(self._steps):
                self._steps[i][-1].append(name)

    def _add(self, name: Any) -> None:
        if not isinstance(name, str) or name in self._known:
            raise ValueError(f"it names {str(name)[:80]} twice, or not by a text")
        self._known.add(name)

    def _tensor(self, found: Any, key: Any) -> Tensor:
        tensor = found.get(key) if isinstance(found, dict) and isinstance(key, str) else None
        if not isinstance(tensor, Tensor):
            raise ValueError(f"it has no tensor {str(key)[:80]}")
        return tensor.detach().to(self._device)

    def _read(self, value: Any, step: int) -> Any:
        """Check arguments, and make of each what `_filled` fills with what was computed."""
        if type(value) in _PLAIN:
            return value
        if type(value) is list:
            return [self._read(part, step) for part in value]
        if type(value) is not dict or len(value) != 1:
            raise ValueError(f"it has a {type(value).__name__} among its arguments")
        ((kind, held),) = value.items()
        if kind == "node" and isinstance(held, str) and held in self._known:
            self._last_use[held] = step
            return _Computed(held)
        if kind == "tuple" and type(held) is list:
            return tuple(self._read(part, step) for part in held)
        if kind == "dict" and type(held) is list and all(map(_is_item, held)):
            return {key: self._read(part, step) for key, part in held}
        if kind == "device":
            return self._device
        made = getattr(torch, held, None) if kind in _KINDS and isinstance(held, str) else None
        if made is None or not isinstance(made, _KINDS[kind]):
            raise ValueError(f"it has {str(held)[:80]} as a {str(kind)[:80]}")
        return made

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """Return what the model says of a batch.

        Args:
            inputs: As many as the model was exported with, on the graph's device.
        """
        values: dict[str, Any] = dict(self._start)
        values.update((name, inputs[i]) for i, name in self._inputs.items())
        for name, function, args, kwargs, done in self._steps:
            values[name] = function(*_filled(args, values), **_filled(kwargs, values))
            for each in done:
                del values[each]
        return _filled(self._output, values)


class _Computed(str):
    """The name of what an earlier step has computed, or of what was held before."""

    __slots__ = ()


def _is_item(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and type(value[0]) in (str, int)


def _rows(plain: Any, name: str, length: int) -> list[list[Any]]:
    rows = plain.get(name) if isinstance(plain, dict) else None
    if type(rows) is not list or any(type(row) is not list or len(row) != length for row in rows):
        raise ValueError(f"its {name} are not a list of {length} values each")
    return rows


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if type(value) is _Computed:
        return values[value]
    if type(value) is list:
        return [_filled(part, values) for part in value]
    if type(value) is tuple:
        return tuple(_filled(part, values) for part in value)
    if type(value) is dict:
        return {key: _filled(part, values) for key, part in value.items()}
    return value
