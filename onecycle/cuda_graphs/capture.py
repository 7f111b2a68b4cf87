"""`Cuda`: how a function is captured as a CUDA graph, all that needs CUDA. Experimental."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


class Cuda:
    """Captures functions, on a stream of its own. Experimental: no GPU has run it yet.

    Args:
        device: The device, with its index.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device)

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Tell whether a device has graphs."""
        return device.type == "cuda"

    def run(self, function: Callable[[], T]) -> T:
        """Run a function on the stream of the capture.

        Autograd adds up gradients on the stream that a parameter was first used on, and that
        cannot be captured if it is the default one.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            results = function()
        current.wait_stream(self._stream)
        return results

    def capture(
        self, function: Callable[[], T], *, draws: bool = True
    ) -> tuple[T, Callable[[], None]]:
        """Record what a function launches, without running it; return results and replay.

        Args:
            function: What is recorded.
            draws: Whether it may draw random numbers. If not, the generator has nothing to do with
                the graph, whatever becomes of the capture.
        """
        generator = torch.cuda.default_generators[self._device.index]
        own = generator.graphsafe_get_state()
        spare = generator.clone_state()
        if not draws:
            generator.graphsafe_set_state(spare)
        try:
            found = self._capture(function)
        except BaseException:
            # The generator may still believe that it is captured, and refuse to draw.
            generator.graphsafe_set_state(spare if draws else own)
            raise
        if not draws:
            generator.graphsafe_set_state(own)
        return found

    def _capture(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        # Thread-local, since the thread of a loader that pins memory may allocate meanwhile.
        capture = torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with torch.cuda.stream(self._stream), _original_error(capture):
                results = function()
        except BaseException:
            graph.reset()
            with suppress(RuntimeError, AttributeError):
                # torch 2.11 leaves the allocator in the capture, which then frees nothing any more;
                # a later one has left it, and says so.
                torch._C._cuda_endAllocateToPool(self._device.index, pool)
                torch._C._cuda_releasePool(self._device.index, pool)
            raise
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return results, graph.replay


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    # One for all fits: torch has 32 of a device, and keeps memory for each that was used.
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's


@contextmanager
def _original_error(capture: torch.cuda.graph) -> Iterator[None]:
    """Capture a block; an error in it is raised, not the one that then ends the capture."""
    capture.__enter__()
    try:
        yield
    except BaseException:
        with suppress(Exception):
            capture.__exit__(None, None, None)
        raise
    capture.__exit__(None, None, None)
