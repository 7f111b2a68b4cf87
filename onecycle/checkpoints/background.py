"""Write in a thread what was copied before: training goes on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn


def copied(value: Any) -> Any:
    """Copy a nested value with all its tensors, to memory of the CPU.

    Tensors that share memory share it in the copy too, so that a file of it is as large as one of
    the value.

    Args:
        value: What `onecycle.checkpoints.readable.readable` returned.

    Example:
        >>> weight = torch.ones(2)
        >>> made = copied({"a": [weight], "b": weight[1:]})
        >>> _ = weight.zero_()
        >>> made, made["a"][0][1:].data_ptr() == made["b"].data_ptr()
        ({'a': [tensor([1., 1.])], 'b': tensor([1.])}, True)
    """
    return _copied(value, {})


def _copied(value: Any, storages: dict[int, torch.UntypedStorage]) -> Any:
    if isinstance(value, dict):
        made = copy(value)  # with the versions of its modules, in a state of torch
        for key, part in value.items():
            made[key] = _copied(part, storages)
        return made
    if type(value) in (list, tuple):
        return type(value)(_copied(part, storages) for part in value)
    if type(value) in (Tensor, nn.Parameter) and _is_plain(value):
        storage = value.untyped_storage()
        known = storages.get(storage._cdata)
        if known is None:
            on_cpu = storage.device.type == "cpu"
            known = storages[storage._cdata] = storage.clone() if on_cpu else storage.cpu()
        tensor = torch.empty(0, dtype=value.dtype)
        tensor.set_(known, value.storage_offset(), value.size(), value.stride())
        return tensor if type(value) is Tensor else nn.Parameter(tensor, value.requires_grad)
    return deepcopy(value)


def _is_plain(value: Tensor) -> bool:
    return value.layout == torch.strided and not (
        value.is_quantized or value.is_conj() or value.is_neg() or value.is_meta
    )


class BackgroundWriter:
    """Does one piece of work after another in a thread.

    Example:
        >>> done = []
        >>> writer = BackgroundWriter()
        >>> writer.start(lambda: done.append(1))
        >>> writer.wait()
        >>> done
        [1]
    """

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, when the one before it is done.

        Args:
            work: Called in the thread.

        Raises:
            Exception: What the work before it raised.
        """
        self.wait()
        # Not a daemon: where the interpreter ends before, it waits.
        self._thread = Thread(target=self._run, args=(work,), name="onecycle checkpoint")
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        """Wait until the work is done.

        Raises:
            Exception: What it raised, once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
