"""`DataParallel`: the gradients and the loss of all processes, for one run.

torch's DistributedDataParallel holds the parameters and is called with the loss, when prediction
and loss have been made as in one process: so the model stays the user's module, `predict_batch` and
`compute_loss` may be anybody's, and what adds to the loss is seen. Its gradients are means over
processes; each loss is weighted before, so that they become the mean over all that counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from onecycle.core.callback import Callback, Stage
from onecycle.core.loop import Loop
from onecycle.data.generators import order_seed, seed_all
from onecycle.data.nested import leaves
from onecycle.errors import OnecycleError
from onecycle.optim.stepper import ScaledStepper
from onecycle.parallel.alike import check_state, check_weights
from onecycle.parallel.shards import Shards
from onecycle.processes import Processes
from onecycle.record.weights import Weight


class _Held(nn.Module):
    """The parameters, and a forward pass that has been made already.

    Args:
        parameters: All that train.
        sparse: The embeddings whose gradients are sparse, by which torch knows them.
    """

    def __init__(self, parameters: list[nn.Parameter], sparse: list[nn.Module]) -> None:
        super().__init__()
        self.sparse = nn.ModuleList(sparse)
        self.all = parameters
        own = {id(p) for p in self.sparse.parameters()}
        self.held = nn.ParameterList([p for p in parameters if id(p) not in own])
        # Never used: where all are, torch warns that looking for unused ones is in vain. It is
        # not: some models have them, and so the order of the buckets stays as it was first, and
        # with it the order in which more than two processes are added up.
        self.spare = nn.Parameter(torch.zeros((), device=parameters[0].device))

    def forward(self, loss: Tensor) -> Tensor:
        return loss


class DataParallel:
    """Makes the updates of one run those of all processes together.

    Args:
        processes: The processes.
        shards: What tells whether a batch has samples of this one.

    Attributes:
        front: The callback that hears of an event before all others.
        back: Those that hear of it after those that prepare, and after all.
    """

    def __init__(self, processes: Processes, shards: Shards) -> None:
        self._processes, self._shards = processes, shards
        self._wrapped: Any = None
        self._made_for: Any = None
        self._stepper: Any = None  # of the whole optimizer
        self._factor: Tensor = torch.tensor(1.0)
        self._waits = self._is_open = self._is_checked = False
        prepare, save = Stage.PREPARE, Stage.SAVE
        self.front = _callback(
            prepare,
            before_fit=self._part_streams,
            before_train=self._begin,
            before_batch=self._open,
            after_cancel_batch=self._check_agreed,
            after_cancel_train=self._check_agreed,
            after_cancel_epoch=self._check_agreed,
            after_cancel_fit=self._check_agreed,
            before_step=self._make_whole,
            after_train=self._share_buffers,
        )
        self.back = [
            _callback(prepare, after_loss=self._take_loss),
            _callback(
                save,
                before_train=self._check_state,
                before_batch=self._follow,
                before_backward=self._take_gradients,
                after_train=self._check_weights,
                cleanup_fit=self._unwrap,
            ),
        ]

    def _part_streams(self, learn: Loop) -> None:
        """Give each process random numbers of its own, as for dropout."""
        own = int(torch.randint(2**62, ()))
        if not self._processes.is_first:
            seed_all(order_seed(own, self._processes.rank))

    def _begin(self, learn: Any) -> None:
        """Begin a pass; the first one when all have the same fit in mind."""
        if not self._is_checked and learn.running == "fit":
            learn.check_same_plan(self._processes)
        self._wrap(learn)

    def _check_state(self, learn: Loop) -> None:
        """Before the first update, see that the optimizers are in one state."""
        if not self._is_checked:
            self._is_checked = True
            check_state(self._processes, learn)

    def _check_weights(self, learn: Loop) -> None:
        """After each pass, see that all have made the same updates."""
        if learn.running == "fit":
            check_weights(self._processes, learn)

    def _wrap(self, learn: Loop) -> None:
        """Begin a pass with the same weights everywhere, those of the first process."""
        if self._wrapped is not None:
            return
        self._stepper = learn.stepper
        parameters = self._parameters(learn)
        if any(map(is_lazy, parameters)):
            raise ValueError(
                "a lazy module has no parameters yet that several processes could share: run one "
                "batch through the model before the Learner is made"
            )
        self._rewrap(learn)
        self._share_buffers(learn)

    def _rewrap(self, learn: Loop, **options: Any) -> None:
        self._made_for = self._signature()
        self._wrapped = DistributedDataParallel(
            _Held(self._parameters(learn), _sparse(learn)),
            process_group=self._processes.device_group,
            find_unused_parameters=True,
            **options,
        )

    def _unwrap(self, learn: Loop) -> None:
        self._wrapped = self._stepper = None
        learn.whole_weight = None

    def _share_buffers(self, learn: Loop) -> None:
        """Let all have the first process's buffers, as batch norm's statistics."""
        roots = [root for root in (learn.model, learn.loss_module) if root is not None]
        buffers = [b for root in roots for b in root.buffers() if b.numel()]
        if not buffers:
            return
        # Of any dtype, as bytes: those of large numbers first, so that each begins where it may.
        buffers.sort(key=lambda b: -b.element_size())
        own = [b.detach().reshape(-1).contiguous().view(torch.uint8) for b in buffers]
        flat = self._processes.spread(torch.cat(own))
        if not self._processes.is_first:
            with torch.no_grad():
                for buffer, part in zip(buffers, torch.split(flat, [*map(len, own)]), strict=True):
                    buffer.copy_(part.view(buffer.dtype).view_as(buffer))

    def _open(self, learn: Any) -> None:
        """Note that the others wait for the loss of this batch."""
        self._is_open, learn.has_agreed = True, False

    def _check_agreed(self, learn: Any) -> None:
        """Refuse a cancel by which this process would leave a batch that the others go on with."""
        if self._is_open and not learn.has_agreed:
            raise OnecycleError(
                "the model, the loss function or the loader raised a cancel, of which the other "
                "processes do not hear: let a callback raise it, in before_batch say"
            )
        self._is_open = False

    def _take_loss(self, learn: Loop) -> None:
        """Make the loss that is reported the mean over all that counts, in every process."""
        loss = learn.loss
        if loss.numel() != 1:  # the backward pass refuses it, and says why
            return
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        counts = self._weight(learn)
        weight = torch.as_tensor(counts).to(loss.device, wide)
        if isinstance(counts, Tensor) or not counts > 0:
            _mask_what_counts_nothing(learn.pred, weight)
        part = (loss.to(wide).reshape(()) * weight).where(weight > 0, 0.0)
        both = self._processes.add_up(torch.stack([part, weight]))
        self._is_open = False
        learn.loss, learn.whole_weight = (both[0] / both[1]).to(loss.dtype).view_as(loss), both[1]
        share = weight * self._processes.world / both[1]
        self._factor = share.where(both[1] > 0, 0.0).to(loss.dtype)

    def _weight(self, learn: Loop) -> Weight:
        """Return how much this process's part of the batch counts."""
        if not self._shards.has_samples:
            return 0
        if learn.trains_in_turns:  # whose losses are of no prediction
            return learn.batch_size(learn.batch)
        return learn.loss_weight(learn.pred, learn.batch)

    def _take_gradients(self, learn: Loop) -> None:
        """Let torch take the gradients of the loss from all, unless more batches follow first."""
        if self._signature() != self._made_for:  # a part was frozen, or parameters were added
            self._take_waiting()
            self._rewrap(learn, init_sync=False)
        follows = learn.batches_in_window + 1 < learn.batches_per_update
        # A gradient scaler looks at the gradients before anybody can take them together.
        self._waits = follows and not isinstance(learn.stepper, ScaledStepper)
        loss = learn.loss_grad * self._factor
        if self._waits:
            with self._wrapped.no_sync():
                learn.loss_grad = self._wrapped(loss)
        else:
            learn.loss_grad = self._wrapped(loss)

    def _make_whole(self, learn: Loop) -> None:
        """Take the gradients of a window that ended before it was full; share the buffers."""
        self._take_waiting()
        self._share_buffers(learn)

    def _take_waiting(self) -> None:
        """Let torch take the gradients that were kept back in this window."""
        if self._waits:
            self._waits = False
            held = self._wrapped.module.all
            found = [p for p in held if p.requires_grad and p.grad is not None]
            nothing: Any = sum(p.reshape(-1)[:0].abs().sum() for p in found)
            if found:
                self._wrapped(nothing).backward()

    def _follow(self, learn: Loop) -> None:
        """Before a batch, let all have the first one's of what was added, thawed or frozen."""
        if self._signature() != self._made_for:
            self._take_waiting()
            self._rewrap(learn)

    def _parameters(self, learn: Loop) -> list[nn.Parameter]:
        """List what trains: what the optimizer holds, and what else model and loss have."""
        roots = [root for root in (learn.model, learn.loss_module) if root is not None]
        found = [*self._in_optimizer(), *(p for root in roots for p in root.parameters())]
        return list({id(p): p for p in found}.values())

    def _signature(self) -> Any:
        """Return what the wrapper was made for: which parameters train."""
        return [(id(p), p.requires_grad) for p in self._in_optimizer()]

    def _in_optimizer(self) -> list[nn.Parameter]:
        return [p for group in self._stepper.opt.param_groups for p in group["params"]]


def _sparse(learn: Loop) -> list[nn.Module]:
    """Return the embeddings of a model that give sparse gradients."""
    parts = learn.model.modules()
    return [m for m in parts if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]


def _mask_what_counts_nothing(pred: Any, weight: Tensor) -> None:
    """Give a part that does not count no gradient: a mean over nothing may have NaN."""
    for leaf in leaves(pred):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            hooked: Any = leaf
            hooked.register_hook(lambda gradient: gradient.where(weight > 0, 0.0))


def _callback(stage: Stage, **handlers: Any) -> Callback:
    made = Callback(during="train", **handlers)
    made.hears_last = stage is Stage.SAVE
    made.stage, made.runs_in = stage, frozenset(("fit", "range_test"))
    return made
