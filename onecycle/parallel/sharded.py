"""`Sharded`: a model of which each process has a part of every parameter, by ``fully_shard``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from zlib import crc32

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from onecycle.core.callback import Callback, Stage
from onecycle.core.loop import Loop
from onecycle.errors import OnecycleError
from onecycle.parallel.blocks import blocks_of
from onecycle.parallel.wrapped import DataParallel
from onecycle.processes import Processes

#: Numbers that tell which modules ran stay below it.
_SIGNS = 2**40


class Sharded:
    """Cuts a model, and the module of its loss, into parts; one for each process.

    The first process's weights are those that are cut. Blocks, and what is left with the root, are
    gathered when they are needed, forward and backward, and let go afterwards: outside of both
    there are parts alone.

    Args:
        processes: The processes.
        model: The model.
        blocks: Names of its parts that are gathered for themselves, as of `blocks_of`.
        loss: The module of the loss function, if it has parameters.
        device: Where the parts go.
        half: In which dtype forward and backward pass compute; ``None`` for that of the weights.

    Attributes:
        half: As given.

    Raises:
        ValueError: For a model that cannot be cut.
    """

    def __init__(
        self,
        processes: Processes,
        model: nn.Module,
        blocks: Sequence[str],
        loss: nn.Module | None,
        device: torch.device,
        half: torch.dtype | None,
    ) -> None:
        _refuse_scaled(half)
        self.half, self._processes = half, processes
        if loss is not None and not any(True for _ in loss.parameters()):
            loss = None
        if not processes.is_alike(crc32(repr(sorted(blocks)).encode())):
            raise ValueError("blocks must be the same in every process of the job")
        self._roots = [model] if loss is None else [model, loss]
        self._sign = 0
        for root in self._roots:
            _check(root)
            within = blocks_of(root, blocks if root is model else ())
            _cut(processes, (*within, root), device, half)
        self._made = processes.generation
        counted = [part for root in self._roots for part in root.modules()]
        for number, part in enumerate(counted, 1):
            if any(True for _ in part.parameters(recurse=False)):
                part.register_forward_hook(self._count(number))

    def _count(self, number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._sign = (31 * self._sign + number) % _SIGNS

        return hook

    def begin_batch(self) -> None:
        """Note anew which modules run."""
        self._sign = 0

    def check_alike(self) -> None:
        """Refuse a batch for which not all processes ran the same modules in the same order.

        What one gathers, the others must give: other modules would get the wrong weights.

        Raises:
            OnecycleError: In every process.
        """
        self._agree(self._sign)

    def check_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Refuse an update for which not all processes have gradients of the same parameters.

        Args:
            parameters: Those of the optimizer.

        Raises:
            OnecycleError: In every process.
        """
        sign = 0
        for number, p in enumerate(parameters, 1):
            if p.grad is not None:
                sign = (31 * sign + number) % _SIGNS
        self._agree(sign)

    def _agree(self, sign: int) -> None:
        if not self._processes.is_alike(sign):
            raise OnecycleError(
                "the processes used other parts of the model for this batch, and none can gather "
                'the weights of the others then: with parallel="fsdp" each must use the same ones '
                'in the same order, whatever its samples; parallel="ddp" need not'
            )

    def check_joined(self) -> None:
        """Refuse to go on where the processes have parted since the model was cut.

        Raises:
            OnecycleError: With what to do.
        """
        if self._made != self._processes.generation:
            raise OnecycleError(
                "an error has ended a fit of these processes, and each of them is left with its "
                'part of the model (parallel="fsdp"): make the Learner anew, and go on with '
                "resume=, or load(path)"
            )

    def check_half(self, dtype: torch.dtype) -> None:
        """Refuse mixed precision that is not that in which the model was cut.

        Raises:
            ValueError: With what to do.
        """
        _refuse_scaled(dtype)
        if dtype is not self.half:
            raise ValueError(
                'with parallel="fsdp" the precision is that with which the model is cut: give '
                "MixedPrecision to the Learner, cbs=[MixedPrecision(...)], not to a fit"
            )

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Run a block after which each process has its part alone, whatever happens in it."""
        try:
            yield
        except BaseException:
            self.let_all_go()
            raise

    def let_all_go(self) -> None:
        """Let go of what was gathered, where an error came between gathering and letting go."""
        for root in self._roots:
            reset = getattr(root, "reset_iter_state", None)  # from torch 2.14 on
            with suppress(Exception):  # what was under way may have broken in any way
                if reset is not None:
                    reset()
            for part in filter(_is_cut, root.modules()):
                cut: Any = part
                cut.reshard()


class FullySharded(DataParallel):
    """Makes the updates of one run those of all processes, each with its part of the model.

    The gradients of every batch are added up and cut at once, also where more batches follow
    before the update: so no process ever keeps those of the whole model.
    """

    def __init__(self, sharded: Sharded, *args: Any) -> None:
        super().__init__(*args)
        self._sharded = sharded
        looks = Callback(before_batch=self._open_valid, after_pred=self._check_valid)
        looks.stage, looks.during, looks.runs_in = Stage.PREPARE, "valid", frozenset(("fit",))
        self.back = [looks, *self.back]

    def _open_valid(self, learn: Loop) -> None:
        self._sharded.begin_batch()

    def _check_valid(self, learn: Loop) -> None:
        self._sharded.check_alike()

    def _wrap(self, learn: Loop) -> None:
        """Begin a pass with the same buffers everywhere."""
        self._share_buffers(learn)

    def _follow(self, learn: Loop) -> None:
        """Do nothing: torch follows what trains by itself."""

    def _unwrap(self, learn: Loop) -> None:
        self._sharded.let_all_go()
        super()._unwrap(learn)

    def _open(self, learn: Any) -> None:
        super()._open(learn)
        self._sharded.begin_batch()

    def _take_loss(self, learn: Loop) -> None:
        self._sharded.check_alike()
        super()._take_loss(learn)

    def _take_gradients(self, learn: Loop) -> None:
        """Weight the loss: torch takes the mean over the processes, of what each differentiates."""
        learn.loss_grad = learn.loss_grad * self._factor

    def _make_whole(self, learn: Loop) -> None:
        self._sharded.check_gradients(learn.stepper.params)
        self._share_buffers(learn)


def check_parts_serve(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks that need the whole model.

    Args:
        callbacks: Those of a run.

    Raises:
        ValueError: If there is one.
    """
    for each in callbacks:
        if each.needs_whole_model:
            raise ValueError(
                f'{type(each).__name__} needs the whole model, and with parallel="fsdp" each '
                'process has a part of it: leave it out, or train with parallel="ddp"'
            )


def _refuse_scaled(dtype: torch.dtype | None) -> None:
    if dtype is torch.float16:
        raise ValueError(
            'fp16 needs a scaler that sees whole gradients, which parallel="fsdp" has not: use '
            'MixedPrecision("bf16")'
        )


def _check(root: nn.Module) -> None:
    if any(map(is_lazy, root.parameters())):
        raise ValueError(
            "a lazy module has no parameters yet that could be cut: run one batch through the "
            "model before the Learner is made"
        )
    if any(isinstance(each, DistributedDataParallel) or _is_cut(each) for each in root.modules()):
        raise ValueError(
            'parallel="fsdp" wraps the model itself: give the Learner the plain one, not in '
            "DistributedDataParallel and not through fully_shard"
        )
    for name, p in root.named_parameters():
        if not p.ndim:
            raise ValueError(
                f'the parameter {name!r} is one number, which parallel="fsdp" cannot cut: let it '
                "be a tensor of shape (1,)"
            )
    kinds = sorted({str(p.dtype) for p in root.parameters()})
    if len(kinds) > 1:
        raise ValueError(
            f'parallel="fsdp" takes the parameters of a model together, and they must be of one '
            f"dtype; got {', '.join(kinds)}"
        )


def _is_cut(part: nn.Module) -> bool:
    return hasattr(part, "reshard")


def _cut(
    processes: Processes,
    parts: Sequence[nn.Module],
    device: torch.device,
    half: torch.dtype | None,
) -> None:
    """Cut blocks and then their root, so that the device need not have all of it at once."""
    # Here, for it takes a while, and few ask for it.
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    wide = None if half is None else torch.float32  # gradients are added up in it
    # Torch keeps what it found for a mesh, and takes one of the same name for the same.
    names = (f"processes_{processes.generation}",)
    group = processes.device_group
    options: dict[str, Any] = {
        "mesh": DeviceMesh.from_group(group, device.type, mesh_dim_names=names),
        "reshard_after_forward": True,  # the root's too: parameters are then always parts
        "mp_policy": MixedPrecisionPolicy(param_dtype=half, reduce_dtype=wide),
    }
    for part in parts:
        tensors = (*part.parameters(), *part.buffers())
        with torch.no_grad():
            for tensor in tensors:
                if not hasattr(tensor, "full_tensor"):
                    here = tensor.detach().to(device).contiguous()
                    tensor.copy_(processes.spread(here))
        fully_shard(part, **options)
