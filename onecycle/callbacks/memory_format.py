"""`ChannelsLast`: the order of images in memory that convolutions are faster with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onecycle.core.callback import Callback, Stage
from onecycle.data.nested import map_tensors

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class ChannelsLast(Callback):
    """Give images to the model with their channels last in memory.

    Shapes and values are as before; the order in memory is what convolutions are faster with, on
    CPUs, and in half precision on GPUs. It goes through the model from layer to layer. Results
    agree up to rounding. Batches in range tests, validation and inference are laid out too.

    The weights stay as they are: convolutions do not need them otherwise, and the fused optimizers
    of torch go wrong, without a word, where a weight and what they remember of it differ in
    layout.

    On MPS images stay as they are: torch's convolutions go backwards many times slower there from
    the other layout. `speed_profile` is this together with what else makes a device fast.

    Example:
        >>> from onecycle import ChannelsLast
        >>> from onecycle.testing import toy_learner
        >>> toy_learner().fit(1, cbs=[ChannelsLast()])
    """

    stage = Stage.PREPARE
    needs_whole_model = True

    def before_batch(self, learn: Loop) -> None:
        """Lay out every input of four dimensions; others are left alone."""
        if learn.device.type != "mps":
            learn.xb = map_tensors(_channels_last, learn.xb)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
