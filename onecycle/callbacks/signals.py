"""Signals by which a scheduler asks a fit to end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

log = logging.getLogger("onecycle")

#: With this code a process ends that was asked to: it is to be run again, and will go on. The
#: systems call it EX_TEMPFAIL.
EXIT_CODE = 75


class Signals:
    """Remembers a signal until there is time for it, and gives the handlers back afterwards.

    Args:
        wanted: Which signals.

    Attributes:
        came: The first one that came; ``None`` before.

    Example:
        >>> signals = Signals([signal.SIGUSR1])
        >>> signals.listen()
        >>> os.kill(os.getpid(), signal.SIGUSR1)
        >>> signals.came is signal.SIGUSR1
        True
        >>> signals.came = None
        >>> signals.give_back()
    """

    def __init__(self, wanted: Sequence[signal.Signals]) -> None:
        self.wanted = tuple(wanted)
        self.came: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Begin; outside of the main thread, where Python hears no signal, say so."""
        self.came = None
        if not self.wanted:
            return
        if threading.current_thread() is not threading.main_thread():
            log.warning(
                "Checkpoint: on_signal has no effect, the fit does not run in the main thread"
            )
            return
        self.give_back()
        self._before = {each: signal.signal(each, self._remember) for each in self.wanted}

    def _remember(self, number: int, frame: object) -> None:
        self.came = self.came or signal.Signals(number)

    def give_back(self) -> None:
        """Put the handlers back, and pass on a signal that came and was not acted on."""
        before, self._before = self._before, {}
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        if before and self.came is not None:
            came, self.came = self.came, None
            os.kill(os.getpid(), came)


def signals_of(on_signal: bool | signal.Signals | Sequence[signal.Signals]) -> Signals:
    """Read the argument ``on_signal``.

    Raises:
        TypeError: If it is neither a bool, nor one or several of `signal.Signals`.
    """
    if isinstance(on_signal, bool):
        return Signals([signal.SIGTERM] if on_signal else [])
    several = [on_signal] if isinstance(on_signal, signal.Signals) else on_signal
    if not isinstance(several, list | tuple | set) or not all(
        isinstance(each, signal.Signals) for each in several
    ):
        raise TypeError(
            "on_signal must be True, for SIGTERM, or signals such as (signal.SIGTERM, "
            f"signal.SIGUSR1); got {on_signal!r}"
        )
    return Signals(list(several))
