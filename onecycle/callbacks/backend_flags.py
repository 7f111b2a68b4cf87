"""`BackendFlags`: TF32 and cuDNN's search for algorithms, for as long as a run lasts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from onecycle.arguments import check_flags
from onecycle.core.callback import Callback, Run, Stage
from onecycle.core.restore import surely

if TYPE_CHECKING:
    from onecycle.core.loop import Loop


class BackendFlags(Callback):
    """Let a GPU multiply in TF32 and cuDNN try its algorithms, in every run of the learner.

    Both are flags of the whole process. They are set on CUDA devices only, for the time of a fit,
    a range test or a batch of inference, and then have the values that they had before, whatever
    ended the run. Elsewhere nothing is set.

    In TF32 the factors of a product are rounded from 24 to 11 significant bits, from Ampere on;
    sums, and everything else, stay in float32. torch does so for convolutions unless told
    otherwise, and for matrix products only if told.

    cuDNN tries its algorithms once for each new shape of a batch and keeps the fastest. That is
    lost time where shapes change all the time: with images of many sizes, or
    `ProgressiveResizing` in small steps. Two runs may get different algorithms, so that they, and
    a resumed fit, agree to rounding and no longer to the bit.

    Args:
        tf32: Whether TF32 is switched on; else it stays as it is.
        benchmark: Whether cuDNN tries its algorithms; else that stays as it is.

    Source:
        NVIDIA, "A100 Tensor Core GPU Architecture", 2020, for TF32.

    Example:
        >>> from onecycle import BackendFlags
        >>> from onecycle.testing import toy_learner
        >>> toy_learner(cbs=(BackendFlags(benchmark=False),)).fit(1)
    """

    stage = Stage.PREPARE

    def __init__(self, *, tf32: bool = True, benchmark: bool = True) -> None:
        check_flags(tf32=tf32, benchmark=benchmark)
        self.tf32, self.benchmark = tf32, benchmark
        self._before: tuple[Run | None, list[Any]] | None = None

    def applies_to(self, device: torch.device) -> bool:
        """Tell whether the flags mean something on a device.

        Args:
            device: Where the model is.
        """
        return device.type == "cuda"

    def plan(self, learn: Loop) -> dict[str, Any]:
        """Return the flags, where they mean something."""
        return {
            "tf32": self.tf32 and self.applies_to(learn.device),
            "benchmark": self.benchmark and self.applies_to(learn.device),
        }

    def before_fit(self, learn: Loop) -> None:
        """Keep the flags as they are, and set them for the run."""
        if not self.applies_to(learn.device):
            return
        # One fit cannot run in another: what an earlier one of the same kind left here was never
        # put back, as a second Ctrl-C cut its clean-up short.
        if self._before is None or self._before[0] != learn.running:
            self._before = learn.running, _read()
        self.switch_on()

    def cleanup_fit(self, learn: Loop) -> None:
        """Put the flags back."""
        surely(partial(self._put_back, learn.running))

    def forward_context(self, learn: Loop) -> AbstractContextManager[None] | None:
        """Return a context that sets the flags for inference; in a fit they are set already."""
        return _ForABatch(self) if self.applies_to(learn.device) else None

    def switch_on(self) -> None:
        """Set the flags, in both of torch's interfaces to them."""
        if self.tf32:
            # By way of the older one, which writes the newer one too: parts of torch.compile
            # still read the older one, which raises as soon as the two differ.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        if self.benchmark:
            torch.backends.cudnn.benchmark = True

    def _put_back(self, run: Run | None) -> None:
        # Another run than this one: a range test that failed before it came to `before_fit`, in a
        # fit that still needs the flags.
        if self._before is not None and self._before[0] == run:
            _write(self._before[1])
            self._before = None

    @property
    def is_on(self) -> bool:
        """Whether a fit or a range test has set the flags."""
        return self._before is not None


class _ForABatch(AbstractContextManager[None]):
    """Sets the flags around a batch, unless a fit has set them."""

    def __init__(self, flags: BackendFlags) -> None:
        self._flags = flags
        self._before: list[Any] | None = None

    def __enter__(self) -> None:
        if not self._flags.is_on:
            self._before = _read()
            try:
                self._flags.switch_on()
            except BaseException:
                self.__exit__()
                raise

    def __exit__(self, *error: object) -> None:
        surely(self._put_back)

    def _put_back(self) -> None:
        if self._before is not None:
            _write(self._before)
            self._before = None


class _Flag(NamedTuple):
    """How a flag is read and written, and the value that torch begins with."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    default: Any


def _attribute(owner: Any, name: str, default: Any) -> _Flag:
    return _Flag(partial(getattr, owner, name), partial(setattr, owner, name), default)


_backends: Any = torch.backends  # torch declares no types for what is in it

#: All that `BackendFlags` changes. The older interface first: it writes what follows too.
_FLAGS = (
    _Flag(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _attribute(_backends.cudnn, "allow_tf32", True),
    _attribute(_backends.cuda.matmul, "fp32_precision", "none"),
    _attribute(_backends.mkldnn.matmul, "fp32_precision", "none"),
    _attribute(_backends.cudnn.conv, "fp32_precision", "tf32"),
    _attribute(_backends.cudnn.rnn, "fp32_precision", "tf32"),
    _attribute(_backends.cudnn, "benchmark", False),
)


def _read() -> list[Any]:
    """Return the values of all flags."""
    return [_read_one(flag) for flag in _FLAGS]


def _read_one(flag: _Flag) -> Any:
    try:
        return flag.read()
    except RuntimeError:  # the newer interface says something else: the older one was not touched
        return flag.default


def _write(values: list[Any]) -> None:
    """Give all flags their values."""
    for flag, value in zip(_FLAGS, values, strict=True):
        flag.write(value)
