"""`speed_profile`: what makes training fast on a device, as one setting."""

from __future__ import annotations

from typing import Literal

from onecycle.callback import Callback
from onecycle.callbacks.backend_flags import BackendFlags
from onecycle.callbacks.memory_format import ChannelsLast
from onecycle.callbacks.precision import MixedPrecision


def speed_profile(precision: Literal["fp32", "bf16", "fp16"] | None = None) -> list[Callback]:
    """Return the callbacks that make training, and inference, fast on the learner's device.

    What they choose is settled when the learner's device is known:

    ===================  ======================  ===================================  =========
    ..                   CUDA                    CPU                                  MPS
    ===================  ======================  ===================================  =========
    `ChannelsLast`       channels last           channels last                        unchanged
    `MixedPrecision`     bf16; fp16 with scaler  bf16 if torch can use instructions   float32
                         before Ampere           for it, else float32
    `BackendFlags`       TF32, cuDNN benchmark   unchanged                            unchanged
    ===================  ======================  ===================================  =========

    Each is a callback of its own: leave one out by writing the list by hand, as in
    ``[ChannelsLast(), MixedPrecision("bf16")]``. Results agree with those of a plain learner to
    the precision chosen, not to the bit. A model that takes less than a few milliseconds for a
    batch is not limited by what is made faster here, and may become slower.

    Args:
        precision: ``"bf16"`` or ``"fp16"`` for that on every device, ``"fp32"`` for no mixed
            precision; on CUDA products are then in TF32. By default as in the table.

    Returns:
        A new list of callbacks, for ``Learner(cbs=...)``.

    Raises:
        ValueError: For another precision.

    Example:
        >>> from onecycle import speed_profile
        >>> from onecycle.testing import toy_learner
        >>> speed_profile("fp32")
        [BackendFlags(), ChannelsLast()]
        >>> toy_learner(cbs=(*speed_profile("bf16"),)).fit(1)
    """
    if precision not in (None, "fp32", "bf16", "fp16"):
        raise ValueError(f"precision must be 'fp32', 'bf16', 'fp16' or None; got {precision!r}")
    callbacks: list[Callback] = [BackendFlags(), ChannelsLast()]
    return callbacks if precision == "fp32" else [*callbacks, MixedPrecision(precision)]
