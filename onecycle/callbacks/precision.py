"""`MixedPrecision`: forward pass and loss in half precision, with a gradient scaler for fp16."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from onecycle.arguments import check_positive, shown
from onecycle.core.callback import Callback, Stage
from onecycle.data.nested import map_tensors
from onecycle.elsewhere import says_our_keywords
from onecycle.optim.stepper import ScaledStepper

if TYPE_CHECKING:
    from onecycle.core.loop import Loop

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: Instruction sets of x86 and of Arm that multiply in bf16, as torch names them.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


class MixedPrecision(Callback):
    """Run forward pass and loss under ``torch.autocast``, in fits, range tests and inference.

    Weights, gradients and the optimizer stay in float32, and so does what the model returns: the
    loss function, metrics, callbacks and ``get_preds`` see float32 predictions.

    In fp16 small gradients would vanish, so a ``torch.amp.GradScaler`` multiplies the loss. It
    finds its scale by skipping updates whose gradients overflow. Such an update is counted in
    ``learn.n_skipped``, fires ``after_cancel_step``, and does not advance the schedules; the fit
    reports the number at its end. The scale lives on over fits and checkpoints.

    Args:
        dtype: ``"bf16"``, ``"fp16"``, or the dtype of torch. By default bf16, which needs no
            scaler and skips no update, where the device has instructions for it; fp16 on CUDA
            devices that have none (before Ampere); float32, that is no mixed precision, on a CPU
            that has none, and on MPS, which does not say. By name, both save memory on every
            device, if not time.
        init_scale: What the scaler begins with, above 0. Lower it if the first updates of a fit
            are skipped.

    Attributes:
        scaler: The gradient scaler; ``None`` before the first fit in fp16.

    Raises:
        ValueError: For another dtype; before the first batch, for weights that are in fp16.

    Where each process has a part of the model (``parallel="fsdp"``), the parts are gathered in bf16
    and all layers compute in it, by torch's own policy in place of autocast; gradients are added up
    in float32. fp16 is refused there, and so is a fit's own `MixedPrecision`: give it to the
    `Learner`.

    Source:
        Micikevicius et al., "Mixed Precision Training", arXiv:1710.03740.

    Example:
        >>> from onecycle import MixedPrecision
        >>> from onecycle.testing import toy_learner
        >>> learn = toy_learner(cbs=(MixedPrecision("bf16"),))
        >>> learn.fit(1)
        >>> learn.get_preds().preds.dtype
        torch.float32
    """

    stage = Stage.PREPARE

    @says_our_keywords
    def __init__(
        self,
        dtype: Literal["bf16", "fp16"] | torch.dtype | None = None,
        *,
        init_scale: float = 2.0**16,
    ) -> None:
        known = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        is_known = isinstance(known, torch.dtype) and known in _DTYPES.values()
        if not is_known and dtype is not None:
            raise ValueError(
                f"dtype must be 'bf16' or 'fp16', or torch's dtype; got {shown(dtype)}"
            )
        check_positive("init_scale", init_scale)
        self.dtype, self.init_scale = known, init_scale
        self.scaler: torch.amp.GradScaler | None = None
        self._scaler_state: dict[str, Any] = {}  # loaded before there is a scaler

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Return the dtype that is used on a device.

        Args:
            device: Where the model is.
        """
        return _fastest_on(device) if self.dtype is None else self.dtype

    def forward_context(self, learn: Loop) -> AbstractContextManager[Any] | None:
        """Return the autocast of this learner's device, unless all stays in float32."""
        dtype = self.dtype_on(learn.device)
        if dtype is torch.float32:
            return None
        if learn.sharded is not None:  # gathered in half precision: autocast would keep a copy
            learn.sharded.check_half(dtype)
            return None
        return torch.autocast(learn.device.type, dtype=dtype)

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the dtype; the scale of the losses is state."""
        return {"dtype": self.dtype_on(learn.device)}

    def describe_step(self, learn: Loop) -> str | None:
        """Say that a fit in fp16 takes the step of a gradient scaler."""
        scales = self.dtype_on(learn.device) is torch.float16
        return f"{ScaledStepper.kind}: {ScaledStepper.WHY}" if scales else None

    def before_fit(self, learn: Loop) -> None:
        """Let a gradient scaler make the updates of a fit in fp16."""
        if self.dtype_on(learn.device) is not torch.float16:
            return
        for name, parameter in learn.model.named_parameters():
            if parameter.dtype is torch.float16:
                raise ValueError(
                    f"mixed precision needs float32 weights; {name!r} is float16: do not call "
                    "model.half()"
                )
        if self.scaler is None:
            self.scaler = torch.amp.GradScaler(learn.device.type, init_scale=self.init_scale)
            self.load_state_dict({"scaler": self._scaler_state})
        learn.stepper = ScaledStepper(learn.opt, self.scaler)

    def after_pred(self, learn: Loop) -> None:
        """Give the prediction the precision that everyone after the model expects."""
        learn.pred = map_tensors(_as_float32, learn.pred)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scaler, if there is one."""
        return {"scaler": self.scaler.state_dict() if self.scaler else self._scaler_state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the state of a scaler."""
        self._scaler_state = state["scaler"]
        if self.scaler is not None and self._scaler_state:
            self.scaler.load_state_dict(self._scaler_state)


def half_of(callbacks: Iterable[Callback], device: str | torch.device | None) -> torch.dtype | None:
    """Return the dtype of the `MixedPrecision` among callbacks; ``None`` for the weights' own.

    Args:
        callbacks: Any.
        device: Where the model trains; ``None`` for the CPU.
    """
    for callback in callbacks:
        if isinstance(callback, MixedPrecision):
            dtype = callback.dtype_on(torch.device("cpu" if device is None else device))
            return None if dtype is torch.float32 else dtype
    return None


def _fastest_on(device: torch.device) -> torch.dtype:
    """Return bf16 unless it is emulated: that runs everywhere, but slower than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # it asks the current one
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_has_bf16() else torch.float32
    return torch.float32 if device.type == "mps" else torch.bfloat16


def _cpu_has_bf16() -> bool:
    """Tell whether the processor has instructions for bf16, and torch the library to use them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch gives it no types
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BF16_INSTRUCTIONS)


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _DTYPES.values() else tensor
