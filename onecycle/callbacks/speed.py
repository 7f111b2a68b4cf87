"""`speed_profile`: what makes training fast on a device, as one setting."""

from __future__ import annotations

from typing import Literal

from onecycle.arguments import check_one_of
from onecycle.callbacks.backend_flags import BackendFlags
from onecycle.callbacks.memory_format import ChannelsLast
from onecycle.callbacks.precision import MixedPrecision
from onecycle.core.callback import Callback


def speed_profile(precision: Literal["fp32", "bf16", "fp16"] | None = None) -> list[Callback]:
    """Return the callbacks that make training, and inference, fast on the learner's device.

    What they choose is settled by the device of the learner:

    ================  ===========================  =============================  ========
    ..                CUDA                         CPU                            MPS
    ================  ===========================  =============================  ========
    `MixedPrecision`  bf16, or before Ampere fp16  bf16 if it has instructions    float32
                      with a gradient scaler       for that, else float32
    `ChannelsLast`    channels last                channels last                  as it is
    `BackendFlags`    TF32, cuDNN's benchmark      as it is                       as it is
    ================  ===========================  =============================  ========

    Each is a callback of its own: to leave one out, write the list by hand, as in
    ``[ChannelsLast(), MixedPrecision()]``. Results agree with those of a plain learner up to the
    precision chosen. Mixed precision itself costs some 0.1 ms a step on a CPU, which a very small
    model does not gain back.

    Args:
        precision: ``"bf16"`` or ``"fp16"`` for that on every device, ``"fp32"`` for no mixed
            precision: on CUDA, products are then made in TF32. By default as in the table.

    Returns:
        A new list of callbacks, for ``Learner(cbs=...)``.

    Raises:
        ValueError: For another precision.

    Example:
        >>> from onecycle import speed_profile
        >>> from onecycle.testing import toy_learner
        >>> speed_profile("fp32")
        [BackendFlags(tf32=True, benchmark=True), ChannelsLast()]
        >>> toy_learner(cbs=(*speed_profile("bf16"),)).fit(1)
    """
    if precision is not None:
        check_one_of("precision", precision, ("fp32", "bf16", "fp16"))
    callbacks: list[Callback] = [BackendFlags(tf32=True, benchmark=True), ChannelsLast()]
    return callbacks if precision == "fp32" else [*callbacks, MixedPrecision(precision)]
