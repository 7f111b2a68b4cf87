"""What a device can do at best, and what the operators of a batch would take of that.

The table has the dense peaks of the makers' data sheets, without sparsity, in TFLOP/s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch


class Peak(NamedTuple):
    """The peaks of a device in TFLOP/s.

    Attributes:
        half: In bf16 and fp16, added up in fp32.
        tf32: In float32 of which tensor cores take 19 bits; that of ``fp32`` where there is none.
        fp32: In float32.
        has_bf16: Whether ``half`` is of bf16 too.
    """

    half: float
    tf32: float
    fp32: float
    has_bf16: bool = True


#: By the words that a device's name has, the more special first.
_PEAKS: tuple[tuple[set[str], Peak], ...] = (
    # NVIDIA H100 and H200 Tensor Core GPU data sheets; half of what they give with sparsity.
    ({"H100", "PCIE"}, Peak(756, 378, 51)),
    ({"H100", "NVL"}, Peak(835, 417.5, 60)),
    ({"H100"}, Peak(989, 494, 67)),
    ({"H200", "NVL"}, Peak(835, 417.5, 60)),
    ({"H200"}, Peak(989, 494, 67)),
    # NVIDIA A100, A30 and A10 Tensor Core GPU data sheets.
    ({"A100"}, Peak(312, 156, 19.5)),
    ({"A30"}, Peak(165, 82, 10.3)),
    ({"A10"}, Peak(125, 62.5, 31.2)),
    # NVIDIA L4 and L40S data sheets; half of what they give with sparsity.
    ({"L4"}, Peak(121, 60, 30.3)),
    ({"L40S"}, Peak(362, 183, 91.6)),
    # NVIDIA V100 and T4 Tensor Core GPU data sheets; neither has bf16 or TF32.
    ({"V100", "SXM2"}, Peak(125, 15.7, 15.7, has_bf16=False)),
    ({"V100", "PCIE"}, Peak(112, 14, 14, has_bf16=False)),
    ({"T4"}, Peak(65, 8.1, 8.1, has_bf16=False)),
)


def device_name(device: torch.device) -> str | None:
    """Return what a device is called; ``None`` for a CPU and what does not say it.

    Example:
        >>> device_name(torch.device("cpu")) is None
        True
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def peak_of(name: str | None) -> Peak | None:
    """Return the peaks of a device; ``None`` where they are not known.

    Args:
        name: What it is called. A slice of a device is not known.

    Example:
        >>> peak_of("NVIDIA H100 80GB HBM3").half
        989
        >>> peak_of("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None
        True
    """
    words = set() if name is None else set(name.upper().replace("-", " ").split())
    if "MIG" in words:
        return None
    return next((peak for special, peak in _PEAKS if special <= words), None)


def least_seconds(flops: Mapping[Any, int], peak: Peak, dtype: torch.dtype) -> float | None:
    """Return how long a device would take for operators at its peak.

    Args:
        flops: How many operations each of torch's operators was, as `FlopCounterMode` counts them.
        peak: Of the device.
        dtype: What is multiplied.

    Returns:
        The seconds; ``None`` where the device has no peak for the dtype.
    """
    if dtype is torch.float16 or (dtype is torch.bfloat16 and peak.has_bf16):
        return sum(flops.values()) / (peak.half * 1e12)
    if dtype is not torch.float32:
        return None
    seconds, backends = 0.0, cast(Any, torch.backends)
    for operator, n in flops.items():
        is_conv = "convolution" in str(operator)
        backend = backends.cudnn.conv if is_conv else backends.cuda.matmul
        best = peak.tf32 if backend.fp32_precision == "tf32" else peak.fp32
        seconds += n / (best * 1e12)
    return seconds
